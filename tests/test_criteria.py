"""Every criterion against a slow, obvious definition or a peer."""

import itertools
import math
from collections import OrderedDict

import pytest
import torch
import torch_pruning
from tiny import plain_network, vary
from torch import nn
from torch.nn import functional as F

from core.bundles import Setting
from core.criteria.average_percentage_of_zeros import AveragePercentageOfZeros
from core.criteria.batch_norm_scale import BatchNormScale
from core.criteria.filter_l1 import FilterL1
from core.criteria.filter_l2 import FilterL2
from core.criteria.geometric_median import GeometricMedian
from core.criteria.magnitude import Magnitude
from core.criteria.random import Random
from core.criteria.snip import SNIP
from core.criteria.taylor import Taylor
from core.criterion import rank
from core.errors import ParameterError, UnsupportedModelError
from core.layers import following_batch_norms, prunable
from core.recipe import COMPRESSORS, Recipe, compress


@pytest.fixture
def plain_setting(plain_model, tiny_data):
    return Setting(tiny_data.train, tiny_data.validation, plain_model)


def one_filter_at_a_time(model, function):
    """Layer -> function(filter's weights, a list) of every filter, by loops."""
    layers = prunable(model)
    return {n: torch.tensor([function(w.flatten().tolist()) for w in layers[n].weight]) for n in layers}


@pytest.mark.parametrize(
    ("criterion", "definition"),
    [
        (FilterL1(), lambda w: sum(abs(v) for v in w)),
        (FilterL2(), lambda w: math.sqrt(sum(v * v for v in w))),
    ],
)
def test_filter_norms_are_those_of_the_loop(plain_model, plain_setting, criterion, definition):
    scores = rank(criterion, plain_model, plain_setting).scores
    for name, expected in one_filter_at_a_time(plain_model, definition).items():
        torch.testing.assert_close(scores[name], expected)


@pytest.mark.parametrize(("criterion", "p"), [(FilterL1(), 1), (FilterL2(), 2)])
def test_filters_are_removed_in_the_order_of_torch_pruning(tiny_model, setting, criterion, p):
    scores = rank(criterion, tiny_model, setting).scores
    conv = tiny_model.requires_grad_(True).layer1[0].conv1
    group = torch_pruning.DependencyGraph().build_dependency(tiny_model, torch.zeros(1, 3, 16, 16))
    group = group.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, list(range(8)))
    peer = torch_pruning.importance.MagnitudeImportance(p=p, group_reduction="first", normalizer=None)
    torch.testing.assert_close(scores["layer1.0.conv1"] ** p, peer(group), rtol=1e-5, atol=1e-6)


def test_magnitude_is_the_absolute_weight_and_sums_to_the_l1_norm(plain_model, plain_setting):
    weights = rank(Magnitude(), plain_model, plain_setting).scores
    filters = rank(Magnitude(), plain_model, plain_setting, grain="filter").scores
    norms = rank(FilterL1(), plain_model, plain_setting).scores
    for name, layer in prunable(plain_model).items():
        assert torch.equal(weights[name], layer.weight.abs())
        torch.testing.assert_close(filters[name], norms[name])


def test_geometric_median_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 4, (1, 2), bias=False))
    model[0].weight.data = torch.tensor([[0.0, 0], [3, 4], [0, 0], [6, 8]]).view(4, 1, 1, 2)
    scores = rank(GeometricMedian(), model, None).scores["0"]
    assert scores.tolist() == [15, 15, 15, 25]  # distances 5, 0, 10 | 5, 5, 5 | 0, 5, 10 | 10, 5, 10


def test_geometric_median_finds_equal_filters_exactly_equal(plain_setting):
    model = nn.Sequential(nn.Conv2d(64, 40, 3))
    model[0].weight.data[:20] = model[0].weight.data[0]
    model[0].weight.data *= 1000
    scores = rank(GeometricMedian(), model, plain_setting).scores["0"]
    assert scores[:20].unique().numel() == 1
    assert scores[:20].max() < scores[20:].min()


def gate_slopes(model, split, module, width):
    """dE/dgate (N, O) by central differences in float64: gate, one filter, one picture at a time."""
    model, slopes = model.double(), torch.zeros(len(split), width, dtype=torch.float64)
    step = 1e-5
    for n, o in itertools.product(range(len(split)), range(width)):
        values = []
        for gate in (1 + step, 1 - step):

            def scale(layer, inputs, output, gate=gate, o=o):
                output = output.clone()
                output[:, o] *= gate
                return output

            handle = module.register_forward_hook(scale)
            values.append(F.cross_entropy(model(split.images[n : n + 1].double()), split.labels[n : n + 1]))
            handle.remove()
        slopes[n, o] = (values[0] - values[1]) / (2 * step)
    return slopes


@pytest.mark.parametrize(
    ("layer", "gated", "batch_size"),
    [("conv1", "bn1", 1), ("conv2", "conv2", 1), ("linear1", "linear1", 1), ("conv1", "bn1", 5)],
)
def test_taylor_is_the_squared_slope_of_a_gate(plain_model, tiny_data, layer, gated, batch_size):
    few = tiny_data.train.take(slice(0, 7))  # all of them are sampled, so only their order is drawn
    setting = Setting(few, few, plain_model)
    scores = rank(Taylor(images=7, batch_size=batch_size), plain_model, setting, seed=3).scores[layer]
    torch.manual_seed(3)
    order = torch.randperm(7)
    slopes = gate_slopes(plain_model, few.take(order), plain_model.get_submodule(gated), len(scores))
    expected = torch.stack([part.mean(0) ** 2 for part in slopes.split(batch_size)]).mean(0)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-3, atol=1e-9)


def test_taylor_equals_gradient_times_parameters_of_the_batch_norm(tiny_model, tiny_data):
    """The paper's form: (gradient x scale + gradient x shift)^2, one picture at a time."""
    few = tiny_data.train.take(slice(0, 6))
    scores = rank(Taylor(images=6, batch_size=1), tiny_model, Setting(few, few, tiny_model)).scores
    for name, norm in {"conv1": tiny_model.bn1, "layer2.0.conv2": tiny_model.layer2[0].bn2}.items():
        expected = torch.zeros(len(norm.weight))
        for image, label in zip(few.images, few.labels, strict=True):
            norm.requires_grad_(True)
            loss = F.cross_entropy(tiny_model(image[None]), label[None])
            scale, shift = torch.autograd.grad(loss, [norm.weight, norm.bias])
            expected += (scale * norm.weight + shift * norm.bias).detach() ** 2 / len(few)
        torch.testing.assert_close(scores[name], expected, rtol=1e-3, atol=1e-8)


def test_snip_is_the_slope_of_a_mask_on_one_weight(plain_model, tiny_data):
    few = tiny_data.train.take(slice(0, 9))
    scores = rank(SNIP(images=9), plain_model, Setting(few, few, plain_model)).scores
    model, images = plain_model.double(), few.images.double()
    for name, place in [("conv1", (2, 1, 0, 2)), ("conv2", (4, 5, 1, 1)), ("linear2", (3, 6))]:
        weight = model.get_submodule(name).weight
        value, losses, step = weight[place].item(), [], 1e-5
        for mask in (1 + step, 1 - step):
            weight.data[place] = value * mask
            losses.append(F.cross_entropy(model(images), few.labels).item())
        weight.data[place] = value
        slope = abs(losses[0] - losses[1]) / (2 * step)
        assert scores[name][place].item() == pytest.approx(slope, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    "criterion", [SNIP(images=48), Taylor(images=48, batch_size=1), AveragePercentageOfZeros(images=24)]
)
def test_scores_on_all_pictures_do_not_depend_on_the_seed(tiny_model, setting, criterion):
    first, second = (rank(criterion, tiny_model, setting, seed=seed).scores for seed in (0, 1))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-7)


def test_apoz_counts_what_the_relu_lets_through(plain_model, plain_setting):
    scores = rank(AveragePercentageOfZeros(images=24), plain_model, plain_setting).scores
    images = plain_setting.validation.images
    for layer, relu in {"conv1": "relu1", "conv2": "relu2", "linear1": "relu3"}.items():
        x = images
        for name, module in plain_model.named_children():
            x = module(x)
            if name == relu:
                break
        for index, score in enumerate(scores[layer].tolist()):
            outputs = x[:, index].flatten().tolist()
            assert score == pytest.approx(sum(v != 0 for v in outputs) / len(outputs), abs=1e-6)
    assert scores["linear2"].tolist() == [1.0] * 4  # no ReLU follows


def test_apoz_follows_a_residual_block_to_the_relu_after_the_addition(tiny_model, setting):
    scores = rank(AveragePercentageOfZeros(images=24), tiny_model, setting).scores
    seen = {}
    for name in ("layer1.0.relu1", "layer1.0.relu2"):
        tiny_model.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: seen.update({name: o})
        )
    tiny_model(setting.validation.images)
    for layer, relu in {"layer1.0.conv1": "layer1.0.relu1", "layer1.0.conv2": "layer1.0.relu2"}.items():
        torch.testing.assert_close(scores[layer], (seen[relu] != 0).float().mean((0, 2, 3)))


def test_apoz_is_the_same_for_modules_functions_and_in_place_relu(plain_model, plain_setting):
    class Functional(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            x = F.relu(self.layers["bn1"](self.layers["conv1"](x)), inplace=True)
            x = self.layers["conv2"](x).relu_()
            return self.layers["linear2"](torch.relu(self.layers["linear1"](x.flatten(1))))

    names = ("conv1", "bn1", "conv2", "linear1", "linear2")
    functional = Functional(nn.ModuleDict({name: plain_model.get_submodule(name) for name in names}))
    expected = rank(AveragePercentageOfZeros(), plain_model, plain_setting).scores
    found = rank(AveragePercentageOfZeros(), functional.eval(), plain_setting).scores
    for name, score in expected.items():
        assert torch.equal(found[f"layers.{name}"], score)


def test_a_dead_filter_has_the_lowest_score_of_its_layer(tiny_model, setting):
    norm = tiny_model.layer1[0].bn1
    norm.weight.data[5], norm.bias.data[5] = 0.0, -1.0
    for criterion in (AveragePercentageOfZeros(), BatchNormScale(), Taylor()):
        score = rank(criterion, tiny_model, setting).scores["layer1.0.conv1"]
        assert score.argmin() == 5, criterion
        assert score[5] == 0, criterion


def test_batch_norm_scale_reads_the_norm_that_is_executed_next_not_the_one_defined_next(tiny_data):
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn_b, self.bn_a = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.conv_a, self.conv_b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            x = self.bn_a(self.conv_a(x)).relu()
            x = self.bn_b(self.conv_b(x)).relu()
            return self.linear(x.mean((2, 3)))

    model = vary(Shuffled()).eval()
    scores = rank(BatchNormScale(), model, Setting(tiny_data.train, tiny_data.validation, model)).scores
    assert torch.equal(scores["conv_a"], model.bn_a.weight.abs())
    assert torch.equal(scores["conv_b"], model.bn_b.weight.abs())


def test_batch_norm_scale_of_a_layer_without_one_is_what_an_inserted_one_would_have(
    plain_model, plain_setting
):
    scores = rank(BatchNormScale(images=48), plain_model, plain_setting).scores
    names = list(dict(plain_model.named_children()))
    body = plain_model[: names.index("conv2") + 1]
    outputs = body(plain_setting.train.images)
    norm = nn.BatchNorm2d(5, eps=0).eval()
    norm.running_mean, norm.running_var = outputs.mean((0, 2, 3)), outputs.var((0, 2, 3), correction=0)
    norm.weight.data, norm.bias.data = scores["conv2"], outputs.mean((0, 2, 3))
    torch.testing.assert_close(norm(outputs), outputs)  # inserted, it changes nothing


def test_batch_norm_scale_counts_a_norm_without_parameters_as_one(plain_model, plain_setting):
    plain_model.bn1 = nn.BatchNorm2d(6, affine=False).eval()
    assert rank(BatchNormScale(), plain_model, plain_setting).scores["conv1"].tolist() == [1.0] * 6


def test_criteria_that_do_not_apply_say_so(plain_setting):
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Sigmoid(), nn.Linear(4, 4))
    with pytest.raises(UnsupportedModelError, match="must be followed by batch norm"):
        rank(BatchNormScale(), smooth, plain_setting)
    with pytest.raises(UnsupportedModelError, match="must be followed by ReLU"):
        rank(AveragePercentageOfZeros(), smooth, plain_setting)


def test_a_norm_that_follows_an_addition_belongs_to_no_layer():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(x) + x)

    assert following_batch_norms(Late().eval(), torch.zeros(1, 3, 4, 4)) == {}


def test_random_filters_do_not_depend_on_the_size_of_a_filter():
    model = nn.Sequential(nn.Conv2d(1, 2000, 1), nn.Conv2d(1, 2000, 9))
    means = [s.mean().item() for s in rank(Random(), model, None, grain="filter").scores.values()]
    assert means == pytest.approx([0.5, 0.5], abs=0.03)


def test_criteria_read_the_weights_that_a_mask_leaves(tiny_model, setting):
    masked = compress(tiny_model, setting, Recipe((COMPRESSORS["prune-weights"](sparsity=0.6),))).model
    for criterion in (Magnitude(), SNIP()):
        for name, score in rank(criterion, masked, setting).scores.items():
            assert (score[masked.get_submodule(name).weight == 0] == 0).all()


def test_a_filter_criterion_is_refused_where_weights_are_asked_for(tiny_model, setting):
    with pytest.raises(ParameterError, match="must score single weights, got filter-l1"):
        rank(FilterL1(), tiny_model, setting, grain="weight")


def test_a_layer_that_is_never_executed_scores_zero_where_gradients_are_asked_for(plain_setting):
    model = nn.Sequential(OrderedDict(plain_network().named_children()))
    model.add_module("idle", nn.Identity())
    model.idle.linear = nn.Linear(3, 2)
    for criterion in (Taylor(), SNIP()):
        assert not rank(criterion, model.eval(), plain_setting).scores["idle.linear"].any()
