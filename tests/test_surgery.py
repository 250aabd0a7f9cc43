"""Coupled channels: found, masked and removed alike, and compared with Torch-Pruning itself."""

import copy
import json
import time

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from core import coupling, cutting, surgery
from core.bundles import MODELS
from core.cost import layer_macs
from core.errors import ParameterError, UnsupportedModelError
from core.groups import group_scores, normalised
from core.layers import ChannelShortcut, apply_mask, bake, prunable
from core.structure import describe, rebuild

OURS = ["resnet20", "resnet56", "small-cnn", "mlp", "vgg11-bn", "mobilenetv2"]
EXAMPLE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def trained_looking(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of the usual size, and batch norms that differ by channel in everything."""
    random = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=random)
            if layer.bias is not None:
                layer.bias.data.normal_(0, 0.2, generator=random)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5, generator=random)
            layer.bias.data.normal_(0, 0.3, generator=random)
            layer.running_mean.normal_(0, 0.3, generator=random)
            layer.running_var.uniform_(0.5, 1.5, generator=random)
    return model.eval().requires_grad_(False)


def ours(name: str) -> nn.Module:
    return trained_looking(MODELS[name]().build((3, 32, 32), 10))


def random_masks(groups, seed: int = 0) -> dict[str, Tensor]:
    """About half of every group, at random, at least one kept."""
    random = torch.Generator().manual_seed(seed)
    masks = {group.name: torch.rand(group.width, generator=random) < 0.5 for group in groups}
    for mask in masks.values():
        mask[0] = True
    return masks


def shapes(model: nn.Module) -> dict[str, tuple]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------ which groups


def test_the_groups_of_resnet20_are_its_three_trunks_and_nine_block_interiors():
    groups = {group.name: group for group in coupling.groups(ours("resnet20"), EXAMPLE)}
    trunk = ("conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2")
    assert groups["conv1"].layers == trunk
    assert groups["layer2.0.conv2"].layers == tuple(f"layer2.{i}.conv2" for i in range(3))
    assert groups["layer3.0.conv2"].layers == tuple(f"layer3.{i}.conv2" for i in range(3))
    interiors = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}
    assert groups.keys() == interiors | {"conv1", "layer2.0.conv2", "layer3.0.conv2"}
    assert [groups[name].width for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")] == [16, 32, 64]


def test_a_plain_network_has_a_group_per_layer_but_none_for_the_logits():
    model = ours("small-cnn")
    assert [group.layers for group in coupling.groups(model, EXAMPLE)] == [
        (f"conv{i}",) for i in (1, 2, 3, 4)
    ]
    assert coupling.output_layers(model, EXAMPLE) == ("linear",)


def test_a_network_that_ends_in_a_convolution_keeps_its_logits():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert coupling.output_layers(model, EXAMPLE) == ("2",)
    assert [group.name for group in coupling.groups(model, EXAMPLE)] == ["0"]


def test_logits_added_up_by_two_layers_keep_both():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.two = nn.Linear(12, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            x = F.relu(self.body(x.flatten(1)))
            return self.one(x) + F.relu(self.two(x))

    example = torch.randn(1, 3, 2, 2)
    assert coupling.output_layers(TwoHeads(), example) == ("one", "two")
    assert [group.name for group in coupling.groups(TwoHeads(), example)] == ["body"]


def test_groups_change_nothing_in_the_callers_model_in_any_mode():
    model = ours("resnet20").train().requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    addresses = {name: value.data_ptr() for name, value in model.state_dict(keep_vars=True).items()}
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            coupling._cache.clear()
            coupling.groups(model, EXAMPLE)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {n: v.data_ptr() for n, v in model.state_dict(keep_vars=True).items()} == addresses
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_finding_groups_draws_no_random_numbers(tiny_model):
    """A recipe is carried out alike whether or not the groups are known already."""
    coupling._cache.clear()
    state = torch.get_rng_state()
    coupling.groups(tiny_model, torch.zeros(1, 3, 16, 16))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_copy_of_an_architecture_costs_next_to_nothing():
    coupling._cache.clear()
    first = coupling.groups(ours("resnet20"), EXAMPLE)
    other = ours("resnet20")
    seconds = []
    for _ in range(5):
        start = time.process_time()
        assert coupling.groups(other, EXAMPLE) is first
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.02


def test_networks_that_differ_in_a_setting_only_do_not_share_an_answer():
    class Switch(nn.Module):
        def __init__(self, residual: bool):
            super().__init__()
            self.residual = residual
            self.one, self.two, self.head = nn.Linear(12, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = F.relu(self.one(x.flatten(1)))
            y = self.two(x)
            return self.head(F.relu(x + y if self.residual else y))

    example = torch.randn(1, 3, 2, 2)
    assert [g.layers for g in coupling.groups(Switch(True), example)] == [("one", "two")]
    assert [g.layers for g in coupling.groups(Switch(False), example)] == [("one",), ("two",)]


# ------------------------------------------------------------------------- masking equals removing


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("seed", [0, 1])
def test_masking_groups_and_removing_them_give_the_same_logits(name, seed):
    model = ours(name)
    masks = random_masks(coupling.groups(model, EXAMPLE), seed)
    removed = surgery.remove_groups(model, masks, EXAMPLE)
    masked = copy.deepcopy(model)
    surgery.mask_groups(masked, masks, EXAMPLE)
    expected, got = masked(images()), removed(images())
    assert (expected - model(images())).abs().max() > 1e-2 * expected.abs().max()
    assert (expected - expected[:1]).abs().max() > 1e-2 * expected.abs().max()  # logits depend on the image
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert sum(p.numel() for p in removed.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet20", "small-cnn"])
def test_each_group_alone_is_masked_and_removed_alike(name):
    model = ours(name).double()
    for group in coupling.groups(model, EXAMPLE):
        masks = {group.name: random_masks([group])[group.name]}
        masked = copy.deepcopy(model)
        surgery.mask_groups(masked, masks, EXAMPLE)
        expected = masked(images().double())
        got = surgery.remove_groups(model, masks, EXAMPLE)(images().double())
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9), group.name


def test_masking_by_hand_gives_what_tensor_masks_say():
    """conv2 of the small network: its filters, its batch norm, and the columns of conv3."""
    model = ours("small-cnn")
    keep = torch.arange(32) >= 5
    masks = surgery.tensor_masks(model, {"conv2": keep}, EXAMPLE)
    assert masks.keys() == {("conv2", "weight"), ("bn2", "weight"), ("bn2", "bias"), ("conv3", "weight")}
    assert torch.equal(masks["conv2", "weight"].flatten(), keep)
    assert torch.equal(masks["conv3", "weight"], keep.view(1, 32, 1, 1))
    assert torch.equal(masks["bn2", "weight"], keep)


def test_a_flattened_convolution_takes_all_its_columns_along():
    """Two channels of 2 x 2 pixels are eight columns of the linear layer; channel 1 owns the last four."""
    model = trained_looking(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))
    removed = surgery.remove_groups(model, {"0": torch.tensor([True, False])}, torch.randn(1, 1, 4, 4))
    assert torch.equal(removed[3].weight, model[3].weight[:, :4])
    assert torch.equal(removed[0].weight, model[0].weight[:1])


# ----------------------------------------------------------------------- against Torch-Pruning itself


class Projection(nn.Module):
    """A residual network with convolutions as shortcuts, which Torch-Pruning handles on its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.bn_a = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.bn_b = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.shortcut = nn.Conv2d(8, 12, 1, stride=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.bn_a(self.a(x)))
        x = F.relu(self.bn_b(self.b(x)) + self.shortcut(x))
        x = torch.cat([x, F.relu(self.depthwise(x))], 1)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["stem", "b"])
def test_removing_gives_the_modules_and_logits_of_torch_pruning(name):
    model = trained_looking(Projection())
    group = next(group for group in coupling.groups(model, EXAMPLE) if group.name == name)
    keep = random_masks([group])[name]
    theirs = copy.deepcopy(model).requires_grad_(True)
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, EXAMPLE)
    gone = (~keep).nonzero().flatten().tolist()
    graph.get_pruning_group(getattr(theirs, name), torch_pruning.prune_conv_out_channels, gone).prune()
    removed = surgery.remove_groups(model, {name: keep}, EXAMPLE)
    assert shapes(removed) == shapes(theirs)
    assert [str(module) for module in removed.modules()] == [str(module) for module in theirs.modules()]
    assert torch.equal(removed(images()), theirs(images()))
    assert all(torch.equal(value, theirs.state_dict()[n]) for n, value in removed.state_dict().items())


def test_their_pruner_takes_the_same_channels_off_vgg_by_the_same_score():
    """One filter norm per layer: their group importance of order 1, restricted to output channels."""
    model = trained_looking(MODELS["small-cnn"]().build((3, 32, 32), 10))
    theirs = copy.deepcopy(model).requires_grad_(True)
    importance = torch_pruning.importance.MagnitudeImportance(p=1, target_types=[nn.Conv2d, nn.Linear])

    class OutputsOnly(type(importance)):
        def __call__(self, group):
            return group[0].dep.target.module.weight.abs().flatten(1).sum(1)

    pruner = torch_pruning.pruner.MetaPruner(
        theirs, EXAMPLE, importance=OutputsOnly(p=1), pruning_ratio=0.5, ignored_layers=[theirs.linear]
    )
    pruner.step()
    groups = coupling.groups(model, EXAMPLE)
    scores = {name: layer.weight.abs().flatten(1).sum(1) for name, layer in prunable(model).items()}
    masks = {
        name: score >= score.sort().values[len(score) // 2]
        for name, score in group_scores(groups, scores).items()
    }
    removed = surgery.remove_groups(model, masks, EXAMPLE)
    assert shapes(removed) == shapes(theirs)
    assert torch.allclose(removed(images()), theirs(images()), atol=1e-5)


# ------------------------------------------------------------------------- shortcuts without weights


def test_half_of_resnet20_costs_what_arithmetic_says():
    """All channels halved: the stem costs half, every other convolution a quarter, the classifier half."""
    model = ours("resnet20")
    full = layer_macs(model, EXAMPLE)
    masks = {g.name: torch.arange(g.width) % 2 == 0 for g in coupling.groups(model, EXAMPLE)}
    removed = surgery.remove_groups(model, masks, EXAMPLE)
    half = layer_macs(removed, EXAMPLE)
    for name, macs in full.items():
        assert half[name] == macs // (2 if name in ("conv1", "linear") else 4), name
    assert sum(full.values()) == 40_551_040
    assert sum(half.values()) == 10_248_512


def test_a_cut_shortcut_stays_a_shortcut_without_weights():
    model = ours("resnet20")
    keep = {"conv1": torch.arange(16) >= 3, "layer2.0.conv2": torch.arange(32) % 4 != 1}
    shortcut = surgery.remove_groups(model, keep, EXAMPLE).layer2[0].shortcut
    assert type(shortcut) is ChannelShortcut
    assert not list(shortcut.parameters())
    expected = []
    for output in range(32):  # the published form: 8 zero channels on either side of the 16
        if output % 4 != 1:
            source = output - 8 if 8 <= output < 24 else -1
            expected.append(source - 3 if source >= 3 else -1)  # inputs 0, 1 and 2 have gone
    assert shortcut.source.tolist() == expected


def test_a_shortcut_is_the_padding_that_was_published(shared_dir):
    x = torch.randn(2, 16, 8, 8)
    published = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(ChannelShortcut.padding(16, 32, 2)(x), published)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_the_published_cifar_resnets_are_masked_and_removed_alike(file, shared_dir):
    model = MODELS[file.split("-")[0]]().build((3, 32, 32), 10).eval()
    saved = torch.load(shared_dir / "weights" / file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    for seed in range(3):
        masks = random_masks(coupling.groups(model, EXAMPLE), seed)
        masked = copy.deepcopy(model)
        surgery.mask_groups(masked, masks, EXAMPLE)
        with torch.no_grad():
            expected = masked(images(8))
            assert torch.allclose(
                surgery.remove_groups(model, masks, EXAMPLE)(images(8)), expected, atol=1e-4
            )


# ----------------------------------------------------------------------------------- what survives


def test_removal_leaves_the_callers_model_alone_and_shares_no_memory_with_it():
    model = ours("resnet20")
    before = copy.deepcopy(model.state_dict())
    masks = {"layer1.0.conv1": torch.arange(16) < 4}
    removed = surgery.remove_groups(model, masks, EXAMPLE)
    for tensor in [*removed.parameters(), *removed.buffers()]:
        tensor.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.layer1[0].conv1.out_channels == 16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision_mode_and_gradient_flags_survive(dtype):
    model = ours("small-cnn").to(dtype)
    model.conv2.weight.requires_grad_(True)
    model.bn1.train()
    removed = surgery.remove_groups(model, {"conv2": torch.arange(32) < 9}, EXAMPLE)
    assert {p.dtype for p in removed.parameters()} == {dtype}
    assert [n for n, p in removed.named_parameters() if p.requires_grad] == ["conv2.weight"]
    assert [n for n, m in removed.named_modules() if m.training] == ["bn1"]
    assert removed.conv2.weight.shape == (9, 16, 3, 3)


def test_biases_are_cut_with_their_filters():
    model = trained_looking(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2)))
    keep = torch.tensor([True, False, True, True, False])
    removed = surgery.remove_groups(model, {"0": keep}, torch.randn(1, 3, 4, 4))
    assert torch.equal(removed[0].bias, model[0].bias[keep])
    assert torch.equal(removed[3].bias, model[3].bias)


def grouped(groups: int) -> nn.Module:
    return trained_looking(
        nn.Sequential(
            nn.Conv2d(3, 12, 1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, groups=groups),
            nn.ReLU(),
            nn.Conv2d(24, 8, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    )


def test_a_grouped_convolution_loses_the_same_place_of_every_group():
    """12 inputs in 4 groups: 3 places; 24 outputs in 4 groups: 6 places."""
    model = grouped(4)
    groups = {group.name: group for group in coupling.groups(model, EXAMPLE)}
    assert {name: (group.width, group.channels) for name, group in groups.items()} == {
        "0": (3, 4),
        "3": (6, 4),
        "5": (8, 1),
    }
    masks = {"0": torch.tensor([False, True, True]), "3": torch.arange(6) % 2 == 0}
    removed = surgery.remove_groups(model, masks, EXAMPLE)
    assert (removed[3].in_channels, removed[3].out_channels, removed[3].groups) == (8, 12, 4)
    assert torch.equal(removed[0].weight, model[0].weight[[1, 2, 4, 5, 7, 8, 10, 11]])
    masked = copy.deepcopy(model)
    surgery.mask_groups(masked, masks, EXAMPLE)
    assert torch.allclose(removed(images()), masked(images()), atol=1e-5)


def test_a_depthwise_convolution_goes_with_its_inputs():
    model = ours("mobilenetv2")
    depthwise = {n for n, layer in prunable(model).items() if getattr(layer, "groups", 1) > 1}
    assert depthwise
    for group in coupling.groups(model, EXAMPLE):
        if depthwise & set(group.layers):
            assert not set(group.layers) <= depthwise
            assert group.channels == 1


def test_weights_that_are_held_at_zero_stay_held_after_a_removal():
    model = ours("resnet20")
    keep = torch.rand(16, 16, 3, 3, generator=torch.Generator().manual_seed(3)) < 0.5
    apply_mask(model.layer1[0].conv2, keep)
    masks = {"conv1": torch.arange(16) % 3 != 0, "layer1.0.conv1": torch.arange(16) < 10}
    expected = keep[masks["conv1"]][:, masks["layer1.0.conv1"]]
    removed = surgery.remove_groups(model, masks, EXAMPLE)
    layer = removed.layer1[0].conv2
    with torch.no_grad():
        layer.parametrizations.weight.original.fill_(7.0)  # as a step of training would
    assert torch.equal(layer.weight != 0, expected)
    assert torch.equal(bake(removed).layer1[0].conv2.weight, 7.0 * expected)
    assert torch.equal(model.layer1[0].conv2.weight != 0, keep)  # the masked original still works


def test_nothing_is_removed_twice_and_a_second_cut_continues_from_the_first():
    model = ours("resnet20")
    once = surgery.remove_groups(model, {"conv1": torch.arange(16) < 12}, EXAMPLE)
    twice = surgery.remove_groups(once, {"conv1": torch.arange(12) < 5}, EXAMPLE)
    at_once = surgery.remove_groups(model, {"conv1": torch.arange(16) < 5}, EXAMPLE)
    assert shapes(twice) == shapes(at_once)
    assert torch.equal(twice(images()), at_once(images()))
    assert once.layer2[0].shortcut.source.tolist() != twice.layer2[0].shortcut.source.tolist()


# -------------------------------------------------------------------------------- silence and zero


def test_silencing_a_filter_makes_its_batch_norm_put_out_zero_and_leaves_the_partners():
    model = ours("resnet20")
    silent = copy.deepcopy(model)
    keep = torch.arange(16) != 6
    surgery.silence(silent, {"layer1.0.conv2": keep}, EXAMPLE)
    seen = {}
    for name in ("layer1.0.bn2", "layer1.0"):
        silent.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, output)
        )
    silent(images())
    assert not seen["layer1.0.bn2"][:, 6].any()
    assert seen["layer1.0"][:, 6].any()  # the shortcut still fills the channel
    bake(silent)
    changed = {n for n, v in silent.state_dict().items() if not torch.equal(v, model.state_dict()[n])}
    assert changed == {"layer1.0.conv2.weight", "layer1.0.bn2.weight", "layer1.0.bn2.bias"}


def test_silence_finds_the_batch_norm_by_execution_and_not_by_name():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn_last, self.second = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
            self.bn_first, self.first = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1)
            self.lonely, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.bn_first(self.first(x))
            x = self.bn_last(self.second(x))
            return self.head(F.relu(self.lonely(x)).mean((2, 3)))

    model = trained_looking(Crossed())
    keep = torch.tensor([True, False, True, True])
    surgery.silence(model, {"first": keep, "lonely": keep}, EXAMPLE)
    bake(model)
    assert model.bn_first.weight[1] == model.bn_first.bias[1] == 0
    assert model.bn_last.weight.all()
    assert model.lonely.bias[1] == 0
    assert not model.lonely.weight[1].any()


def test_silenced_filters_stay_silent_when_the_network_is_trained():
    model = ours("small-cnn").requires_grad_(True)
    surgery.silence(model, {"conv1": torch.arange(16) >= 8}, EXAMPLE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = model.conv1.weight.detach().clone()
    for _ in range(2):
        F.cross_entropy(model(images()), torch.arange(4)).backward()
        optimizer.step()
    assert not model.conv1.weight[:8].any()
    assert not model.bn1.bias[:8].any()
    assert not torch.equal(model.conv1.weight, before)


def test_zeroing_is_what_ln_structured_does():
    model, theirs = ours("small-cnn"), ours("small-cnn")
    for layer in prunable(theirs).values():
        prune.ln_structured(layer, "weight", amount=0.4, n=1, dim=0)
    masks = {n: layer.weight_mask.flatten(1).any(1) for n, layer in prunable(theirs).items()}
    surgery.zero_filters(model, masks)
    assert torch.equal(model(images()), theirs(images()))


def test_the_three_questions_have_three_answers():
    model = ours("resnet20")
    keep = torch.arange(16) >= 8
    answers = []
    for ask in (
        lambda m: surgery.mask_groups(m, {"conv1": keep}, EXAMPLE),
        lambda m: surgery.silence(m, {"conv1": keep}, EXAMPLE),
        lambda m: surgery.zero_filters(m, {"conv1": keep}),
    ):
        asked = copy.deepcopy(model)
        ask(asked)
        answers.append(asked(images()))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (answers[first] - answers[second]).abs().max() > 1e-2


# ---------------------------------------------------------------------------------------- bad input


def test_a_member_is_told_the_name_of_its_group():
    model = ours("resnet20")
    with pytest.raises(ParameterError, match=r"layer layer1\.1\.conv2 shares its channels with conv1"):
        surgery.remove_groups(model, {"layer1.1.conv2": torch.ones(16, dtype=torch.bool)}, EXAMPLE)
    with pytest.raises(ParameterError, match="no group is called 'conv9'; did you mean 'conv1'"):
        surgery.remove_groups(model, {"conv9": torch.ones(16, dtype=torch.bool)}, EXAMPLE)


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.zeros(16, dtype=torch.bool), "at least one of 16 channels must stay"),
        (torch.ones(15, dtype=torch.bool), "must be bool and of length 16, got torch.bool of shape"),
        (torch.ones(16), "must be bool and of length 16, got torch.float32"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, sentence):
    with pytest.raises(ParameterError, match=sentence):
        surgery.remove_groups(ours("resnet20"), {"conv1": mask}, EXAMPLE)


def test_a_layer_mask_that_does_not_fit_is_refused():
    model = ours("small-cnn")
    with pytest.raises(ParameterError, match="layer conv1: the mask must be bool and of length 16"):
        surgery.zero_filters(model, {"conv1": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ParameterError, match="no layer is called 'bn1'"):
        surgery.silence(model, {"bn1": torch.ones(16, dtype=torch.bool)}, EXAMPLE)


class Odd(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.between = between

    def forward(self, x):
        return self.head(self.second(self.between(F.relu(self.first(x)))).mean((2, 3)))


def shuffled(x):
    return x.view(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def attended(x):
    flat = x.flatten(2)
    return torch.bmm(flat.mT, flat).softmax(-1).matmul(flat.mT).mT.reshape(x.shape)


@pytest.mark.parametrize(
    "between",
    [
        shuffled,
        attended,
        lambda x: F.layer_norm(x, x.shape[1:]),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x.softmax(1),
        lambda x: x.flip(1),
        lambda x: x[:, torch.arange(7, -1, -1)],
        lambda x: F.pad(x[:, :4], (0, 0, 0, 0, 2, 2)),
        nn.GroupNorm(2, 8),
        nn.ChannelShuffle(2),
        nn.LocalResponseNorm(2),
    ],
    ids=[
        *("shuffle", "attention", "layer-norm", "mean", "softmax", "flip", "index", "pad"),
        *("group-norm-module", "shuffle-module", "response-norm-module"),
    ],
)
def test_what_mixes_or_reorders_channels_is_refused_in_a_sentence_and_quickly(between):
    start = time.process_time()
    with pytest.raises(
        UnsupportedModelError, match=r"channel removal: .* must .*silencing and zeroing"
    ) as caught:
        coupling.groups(Odd(between), EXAMPLE)
    assert time.process_time() - start < 2
    assert len(str(caught.value)) < 400


def test_a_layer_that_predicts_nothing_is_refused():
    class Auxiliary(Odd):
        def __init__(self):
            super().__init__(nn.Identity())
            self.auxiliary = nn.Linear(8, 3)

    with pytest.raises(
        UnsupportedModelError, match="every layer must take part in a prediction, got auxiliary"
    ):
        coupling.groups(Auxiliary(), EXAMPLE)


def test_weights_without_a_layer_are_refused_where_channels_meet_them():
    class Scaled(Odd):
        def __init__(self):
            super().__init__(nn.Identity())
            self.scale = nn.Parameter(torch.rand(8, 1, 1))

        def forward(self, x):
            return self.head(self.second(self.first(x) * self.scale).mean((2, 3)))

    with pytest.raises(UnsupportedModelError, match="the parameter scale"):
        coupling.groups(Scaled(), EXAMPLE)


def test_silence_and_zero_work_where_removal_does_not():
    model = trained_looking(Odd(nn.ChannelShuffle(2)))
    keep = {"first": torch.arange(8) > 2}
    surgery.silence(model, keep, EXAMPLE)
    assert not bake(model).first.bias[:3].any()
    assert coupling.output_layers(model, EXAMPLE) == ("head",)


def test_models_without_layers_are_refused():
    with pytest.raises(UnsupportedModelError, match="no convolution or linear layer"):
        coupling.groups(nn.Sequential(nn.Flatten()), EXAMPLE)


def test_a_classifier_alone_has_no_group():
    assert coupling.groups(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(1, 3, 2, 2)) == ()


# ---------------------------------------------------------------------------------- scores of groups


def test_a_groups_score_is_the_mean_over_its_layers_of_scores_relative_to_the_layers_mean():
    class Coupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(12, 2), nn.Linear(2, 2), nn.Linear(2, 3)

        def forward(self, x):
            x = F.relu(self.one(x.flatten(1)))
            return self.head(F.relu(x + self.two(x)))

    (group,) = coupling.groups(Coupled(), torch.randn(1, 3, 2, 2))
    scores = {"one": torch.tensor([1.0, 3.0]), "two": torch.tensor([30.0, 10.0]), "head": torch.ones(3)}
    # one / 2 = (0.5, 1.5), two / 20 = (1.5, 0.5): their mean is (1, 1)
    assert group_scores([group], scores)["one"].tolist() == [1.0, 1.0]
    scores["two"] = torch.tensor([20.0, 20.0])
    assert group_scores([group], scores)["one"].tolist() == [0.75, 1.25]
    assert normalised({"dead": torch.zeros(3)})["dead"].tolist() == [0.0, 0.0, 0.0]


def test_a_unit_in_front_of_a_grouped_convolution_is_scored_by_the_mean_of_its_channels():
    groups = {group.name: group for group in coupling.groups(grouped(4), EXAMPLE)}
    scores = torch.arange(12.0)  # units are 0, 3, 6, 9 | 1, 4, 7, 10 | 2, 5, 8, 11
    got = group_scores([groups["0"]], {"0": scores})["0"]
    assert got.tolist() == pytest.approx([4.5 / 5.5, 5.5 / 5.5, 6.5 / 5.5])


# ------------------------------------------------------------------------------------ what is left over


@pytest.mark.parametrize("name", OURS)
def test_a_removed_network_is_rebuilt_from_json_and_its_state(name):
    """Nothing but plain layers is left, which a file can describe without pickle."""
    model = ours(name)
    removed = surgery.remove_groups(model, random_masks(coupling.groups(model, EXAMPLE)), EXAMPLE)
    if name.startswith("resnet"):
        cutting.replace_layer(removed, "layer1.1", nn.Identity())
    fresh = MODELS[name]().build((3, 32, 32), 10)
    changes = json.loads(json.dumps(describe(fresh, removed)))
    rebuilt = rebuild(fresh, changes).eval()
    rebuilt.load_state_dict(removed.state_dict(), strict=True, assign=True)
    assert torch.equal(rebuilt(images()), removed(images()))


def test_a_network_whose_own_setting_changes_is_looked_at_again():
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied = True
            self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            x = self.left(x) + self.right(x) if self.tied else self.left(x)
            return self.head(x.mean((2, 3)))

    model, example = Switched().eval(), torch.randn(1, 3, 8, 8)
    assert [group.layers for group in coupling.groups(model, example)] == [("left", "right")]
    model.tied = False
    with pytest.raises(UnsupportedModelError, match="got right, which does not"):
        coupling.groups(model, example)
