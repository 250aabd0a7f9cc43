"""Costs against independent counters and against the files themselves."""

import copy
import zipfile

import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from core.bundles import MODELS
from core.cost import Cost, cost, latency, layer_macs, output_positions, saved_bytes, twin
from core.layers import apply_mask, prunable


def build(name: str, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().build(shape, 10).eval()


def counted_by_torch(model: nn.Module, example: torch.Tensor) -> int:
    """FLOPs by torch's own counter, which hooks the operators and not the modules."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["small-cnn", "mlp", "resnet20", "vgg11-bn"])
def test_flops_of_torchs_counter_are_twice_our_macs(name):
    model, example = build(name), torch.rand(1, 3, 32, 32)
    assert 2 * sum(layer_macs(model, example).values()) == counted_by_torch(model, example)
    assert 2 * cost(model, example).macs == counted_by_torch(model, example)


def test_macs_of_strided_dilated_grouped_and_sequence_layers_equal_torchs_counter():
    model = nn.Sequential(
        nn.Conv2d(4, 8, (3, 5), stride=2, padding=1),
        nn.Conv2d(8, 8, 3, groups=8, dilation=2, padding=2),
        nn.Conv2d(8, 6, 1, groups=2),
        nn.Flatten(2),
        nn.Linear(16 * 15, 7),
    ).eval()
    example = torch.rand(1, 4, 32, 32)
    assert 2 * cost(model, example).macs == counted_by_torch(model, example)


def test_macs_are_those_of_one_image_whatever_the_batch():
    model = build("small-cnn")
    assert layer_macs(model, torch.rand(5, 3, 32, 32)) == layer_macs(model, torch.rand(1, 3, 32, 32))


def test_resnet20_has_the_published_parameters_and_macs():
    result = cost(build("resnet20"), torch.rand(1, 3, 32, 32))
    stem = 3 * 16 * 9
    stages = 6 * 16 * 16 * 9 + (16 * 32 + 5 * 32 * 32) * 9 + (32 * 64 + 5 * 64 * 64) * 9
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert result.parameters == stem + stages + norms + 64 * 10 + 10 == 269_722
    assert result.macs == pytest.approx(40.55e6, abs=0.01e6)
    assert result.theoretical_macs == result.macs
    assert result.sparsity == 0.0


def test_size_equals_the_file_written_and_zipped_size_the_entry_of_an_archive(tmp_path):
    model = build("resnet20")
    for layer in prunable(model).values():
        layer.weight.data *= torch.rand_like(layer.weight) > 0.7
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "model.safetensors")
    result = cost(model, torch.rand(1, 3, 32, 32))
    assert result.size_bytes == path.stat().st_size
    assert result.zipped_bytes == archive.getinfo("model.safetensors").compress_size


def test_zeros_pay_when_zipped_and_nowhere_else_in_the_file():
    model, example = build("small-cnn"), torch.rand(1, 3, 32, 32)
    dense = cost(model, example)
    for layer in prunable(model).values():
        layer.weight.data *= torch.rand_like(layer.weight) > 0.9
    sparse = cost(model, example)
    assert sparse.size_bytes == dense.size_bytes
    assert sparse.parameters == dense.parameters
    assert sparse.macs == dense.macs
    assert sparse.zipped_bytes < 0.35 * dense.zipped_bytes


def test_theoretical_macs_nonzeros_and_sparsity_are_counted_weight_by_weight():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=True), nn.Flatten(), nn.Linear(8, 3, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
        model[2].weight.fill_(1.0)
        model[0].weight[0] = 0.0  # 9 of 18 weights, each used at 4 positions
        model[2].weight[0, :5] = 0.0  # 5 of 24 weights, each used once
    result = cost(model, torch.rand(1, 1, 4, 4))
    assert result.macs == 18 * 4 + 24
    assert result.theoretical_macs == 9 * 4 + 19
    assert result.parameters == 18 + 2 + 24
    assert result.nonzero_parameters == 9 + 0 + 19
    assert result.sparsity == pytest.approx(14 / 42)


def test_masked_layers_are_measured_as_they_will_be_saved_and_are_left_masked():
    model, example = build("small-cnn"), torch.rand(1, 3, 32, 32)
    dense = cost(model, example)
    before = copy.deepcopy(model.state_dict())
    keep = torch.rand_like(model.conv2.weight) > 0.5
    apply_mask(model.conv2, keep)
    masked = cost(model, example)
    assert masked.size_bytes == dense.size_bytes
    assert masked.nonzero_parameters == dense.nonzero_parameters - int((~keep).sum())
    assert torch.equal(model.conv2.parametrizations.weight.original, before["conv2.weight"])


def test_a_layer_used_twice_counts_twice_and_an_unused_one_not_at_all():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(self.used(x.flatten(1)))

    assert layer_macs(Shared(), torch.rand(1, 1, 2, 2)) == {"used": 32, "idle": 0}


def test_tied_weights_are_stored_once():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[2].weight = model[1].weight
    assert list(load(saved_bytes(model))) == ["1.weight"]
    assert cost(model, torch.rand(1, 1, 2, 2)).parameters == 16


def test_counting_leaves_no_hook_and_no_mode_on_the_model():
    model = build("resnet20").train()
    mean = model.bn1.running_mean.clone()
    cost(model, torch.rand(1, 3, 32, 32))
    assert all(not layer._forward_hooks for layer in model.modules())
    assert all(layer.training for layer in model.modules())
    assert torch.equal(model.bn1.running_mean, mean)


def test_a_model_without_prunable_layers_costs_no_macs():
    result = cost(nn.Flatten(), torch.rand(1, 3, 4, 4))
    assert (result.parameters, result.macs, result.theoretical_macs, result.sparsity) == (0, 0, 0, 0.0)


def test_nan_weights_count_as_stored_and_not_zero():
    model = build("mlp")
    model.linear.weight.data.fill_(float("nan"))
    result = cost(model, torch.rand(1, 3, 32, 32))
    assert result.nonzero_parameters == cost(build("mlp"), torch.rand(1, 3, 32, 32)).nonzero_parameters
    assert result.sparsity == 0.0


def test_every_cost_says_how_it_is_shown():
    for name, shown in Cost.metrics().items():
        assert shown.help, name
        assert format(1, shown.format)
        assert shown.better in {"higher", "lower", "neither"}


def test_latency_reports_each_model_once_with_its_spread_and_threads():
    models = {"small": build("small-cnn"), "deep": build("resnet20")}
    table = latency(models, torch.rand(8, 3, 32, 32), rounds=3)
    assert list(table["name"]) == ["small", "deep"]
    assert (table["low_ms"] <= table["median_ms"]).all()
    assert (table["median_ms"] <= table["high_ms"]).all()
    assert set(table["batch"]) == {8}
    assert set(table["threads"]) == {torch.get_num_threads()}


def test_latency_gives_turns_round_by_round():
    calls = []

    class Noted(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            return x

    latency({"a": Noted("a"), "b": Noted("b")}, torch.rand(1, 1, 1, 1), rounds=3)
    assert calls == ["a", "b"] * 4


def test_a_twin_shares_the_tensors_and_not_the_modules():
    model = build("resnet20")
    other = twin(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert other.layer1 is not model.layer1
    assert output_positions(other, torch.rand(1, 3, 32, 32))["layer3.0.conv2"] == 64
