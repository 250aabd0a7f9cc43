"""Pruning whole filters: how many go, which, and what happens to them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from core import coupling, surgery
from core.bundles import MODELS, Setting, Split
from core.cost import cost
from core.errors import ParameterError, UnsupportedModelError
from core.layers import prunable
from core.methods.prune_filters import PruneFilters, _step
from core.methods.prune_weights import PruneWeights
from core.recipe import Recipe, compress
from core.run import Run


def pruned(model: nn.Module, setting: Setting, *steps) -> nn.Module:
    return compress(model, setting, Recipe(steps)).model


def widths(model: nn.Module) -> dict[str, int]:
    return {name: len(layer.weight) for name, layer in prunable(model).items()}


def l1(layer: nn.Module) -> torch.Tensor:
    return layer.weight.detach().abs().flatten(1).sum(1)


# ---------------------------------------------------------------------------------------- how many


def test_half_of_every_group_goes_and_the_classifier_keeps_its_outputs(tiny_model, setting):
    before, after = widths(tiny_model), widths(pruned(tiny_model, setting, PruneFilters(sparsity=0.5)))
    assert after == {name: width if name == "linear" else width // 2 for name, width in before.items()}


@pytest.mark.parametrize("effect", ["remove", "silence", "zero"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_at_100_percent_the_best_filter_stays(effect, scope, plain_model, tiny_data):
    setting = Setting(tiny_data.train, tiny_data.validation, plain_model)
    step = PruneFilters(sparsity=1.0, effect=effect, scope=scope)
    masks = step.masks(plain_model, setting, Run())
    assert masks.keys() == {"conv1", "conv2", "linear1"}
    for name, mask in masks.items():
        assert mask.sum() == 1
        assert mask.int().argmax() == l1(plain_model.get_submodule(name)).argmax()
    model = pruned(plain_model, setting, step)
    assert model(tiny_data.test.images).isfinite().all()


@pytest.mark.parametrize("effect", ["remove", "silence", "zero"])
def test_at_0_percent_nothing_changes_to_the_bit(effect, tiny_model, setting):
    images = setting.validation.images
    model = pruned(tiny_model, setting, PruneFilters(sparsity=0.0, effect=effect))
    assert torch.equal(model(images), tiny_model(images))


def test_a_layer_of_one_filter_keeps_it(tiny_data):
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(196, 4)).eval()
    setting = Setting(tiny_data.train, tiny_data.validation, model)
    for effect in ("remove", "silence", "zero"):
        after = pruned(model, setting, PruneFilters(sparsity=1.0, effect=effect))
        assert torch.equal(after[0].weight, model[0].weight)


@settings(max_examples=60, deadline=None)
@given(
    sparsity=st.floats(0, 1),
    multiple=st.sampled_from([1, 8, 16]),
    width=st.integers(1, 70),
    channels=st.sampled_from([1, 2, 4, 8, 32]),
)
def test_the_number_kept_is_the_next_multiple_and_never_above_the_width(sparsity, multiple, width, channels):
    step = PruneFilters(sparsity=sparsity, round_to=multiple)
    masks = step._cut({"layer": torch.rand(width)}, {"layer": _step(multiple, channels)}, Run())
    kept = int(masks["layer"].sum())
    least = max(1, width - round(sparsity * width))
    slow = next((n for n in range(least, width + 1) if n * channels % multiple == 0), width)
    assert kept == slow


def test_kept_channels_are_multiples_of_eight_throughout_resnet20(tiny_data):
    model = MODELS["resnet20"]().build((3, 16, 16), 4).eval()
    setting = Setting(tiny_data.train, tiny_data.validation, model)
    after = widths(pruned(model, setting, PruneFilters(sparsity=0.4, round_to=8)))
    assert {after[f"layer{stage}.1.conv1"] for stage in (1, 2, 3)} == {16, 24, 40}
    assert all(width % 8 == 0 for name, width in after.items() if name != "linear")


def test_half_of_resnet20_leaves_a_quarter_of_its_macs(tiny_data):
    model = MODELS["resnet20"]().build((3, 32, 32), 10).eval()
    setting = Setting(tiny_data.train, tiny_data.validation, model)
    example = torch.randn(1, 3, 32, 32)
    after = cost(pruned(model, setting, PruneFilters(sparsity=0.5)), example)
    assert cost(model, example).macs == 40_551_040
    assert after.macs == after.theoretical_macs == 10_248_512


# ------------------------------------------------------------------------------------------- which


@pytest.mark.parametrize("effect", ["silence", "zero"])
def test_a_layer_loses_its_filters_of_smallest_norm(effect, tiny_model, setting):
    masks = PruneFilters(sparsity=0.25, effect=effect).masks(tiny_model, setting, Run())
    assert masks.keys() == widths(tiny_model).keys() - {"linear"}
    for name, mask in masks.items():
        norms = l1(tiny_model.get_submodule(name))
        assert mask.tolist() == [bool((norms < norm).sum() >= len(norms) // 4) for norm in norms]


def test_a_group_loses_the_units_of_smallest_mean_relative_norm(tiny_model, setting):
    masks = PruneFilters(sparsity=0.5).masks(tiny_model, setting, Run())
    members = [l1(tiny_model.conv1), l1(tiny_model.layer1[0].conv2)]
    score = sum(norm / norm.mean() for norm in members) / 2
    assert masks["conv1"].tolist() == (score >= score.sort().values[4]).tolist()


@pytest.mark.parametrize("effect", ["remove", "silence"])
def test_globally_the_smallest_relative_scores_go_wherever_they_are(effect, tiny_model, setting):
    masks = PruneFilters(sparsity=0.3, effect=effect, scope="global").masks(tiny_model, setting, Run())
    gone, kept = [], []
    for name, mask in masks.items():
        norms = [l1(tiny_model.get_submodule(name))]
        if effect == "remove":
            group = next(g for g in coupling.groups(tiny_model, setting.train.images[:1]) if g.name == name)
            norms = [l1(tiny_model.get_submodule(layer)) for layer in group.layers]
        score = sum(norm / norm.mean() for norm in norms) / len(norms)
        gone += score[~mask].tolist()
        kept += score[mask].tolist()
    assert len(gone) == round(0.3 * (len(gone) + len(kept)))
    assert max(gone) <= min(kept) + 1e-6


def test_masks_are_nested_in_sparsity(tiny_model, setting):
    for scope in ("layer", "global"):
        previous = None
        for sparsity in (0.0, 0.2, 0.45, 0.7, 0.9, 1.0):
            masks = PruneFilters(sparsity=sparsity, scope=scope).masks(tiny_model, setting, Run())
            if previous:
                assert all((mask <= previous[name]).all() for name, mask in masks.items())
            previous = masks


def test_any_criterion_scores_filters_weights_are_summed(tiny_model, setting):
    by_weight = PruneFilters(criterion="magnitude").masks(tiny_model, setting, Run())
    by_filter = PruneFilters(criterion="filter-l1").masks(tiny_model, setting, Run())
    assert all(torch.equal(by_weight[name], by_filter[name]) for name in by_filter)


def test_single_groups_take_a_sparsity_of_their_own(tiny_model, setting):
    step = PruneFilters(sparsity=0.0, layers={"conv1": 0.75, "layer2.0.conv1": 0.5})
    before, after = widths(tiny_model), widths(pruned(tiny_model, setting, step))
    assert after == before | {"conv1": 2, "layer1.0.conv2": 2, "layer2.0.conv1": 8}


def test_parts_of_a_group_that_only_some_layers_have_keep_a_filter_each():
    """Six channels of `wide` meet two and four of `left` and `right`: none of the three may be emptied."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.wide = nn.Linear(12, 2), nn.Linear(12, 4), nn.Linear(12, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            x = x.flatten(1)
            return self.head(torch.relu(torch.cat([self.left(x), self.right(x)], 1) + self.wide(x)))

    model = Joined().eval()
    split = Split(torch.randint(0, 255, (4, 3, 2, 2)).byte(), torch.arange(4) % 3, (0.5,) * 3, (0.5,) * 3)
    after = pruned(model, Setting(split, split, model), PruneFilters(sparsity=1.0))
    assert min(widths(after).values()) >= 1
    assert after.left.out_features + after.right.out_features == after.wide.out_features
    assert after(split.images).isfinite().all()


# ------------------------------------------------------------------------------------ what happens


def test_zero_gives_the_weights_of_ln_structured_and_keeps_biases_and_batch_norms(tiny_model, setting):
    after = pruned(tiny_model, setting, PruneFilters(sparsity=0.3, effect="zero"))
    for name, layer in prunable(tiny_model).items():
        theirs = copy.deepcopy(layer)
        if name != "linear":
            prune.ln_structured(theirs, "weight", amount=0.3, n=1, dim=0)
        assert torch.equal(after.get_submodule(name).weight, theirs.weight), name
    norms = [name for name in tiny_model.state_dict() if "bn" in name or name.endswith("bias")]
    assert all(torch.equal(after.state_dict()[n], tiny_model.state_dict()[n]) for n in norms)


def test_silence_takes_the_batch_norm_along(tiny_model, setting):
    step = PruneFilters(sparsity=0.5, effect="silence")
    masks = step.masks(tiny_model, setting, Run())
    after = pruned(tiny_model, setting, step)
    for stem in ("", "layer1.0.", "layer2.0.", "layer2.1."):
        keep = masks[f"{stem}conv1"]
        norm = after.get_submodule(f"{stem}bn1")
        assert not norm.weight[~keep].any()
        assert not norm.bias[~keep].any()
        assert torch.equal(norm.weight[keep], tiny_model.get_submodule(f"{stem}bn1").weight[keep])


def test_removal_equals_masking_the_same_groups(tiny_model, setting):
    step, example = PruneFilters(sparsity=0.4), setting.train.images[:1]
    masked = copy.deepcopy(tiny_model)
    surgery.mask_groups(masked, step.masks(tiny_model, setting, Run()), example)
    images = setting.validation.images
    assert torch.allclose(pruned(tiny_model, setting, step)(images), masked(images), atol=1e-5)


def test_inside_a_block_silence_is_removal_and_on_the_trunk_it_is_not(tiny_model, setting):
    images = setting.validation.images

    def logits(effect: str, layer: str):
        step = PruneFilters(sparsity=0.0, effect=effect, layers={layer: 0.5})
        return pruned(tiny_model, setting, step)(images)

    inside = "layer2.0.conv1"
    assert torch.allclose(logits("silence", inside), logits("remove", inside), atol=1e-5)
    assert (logits("silence", "conv1") - logits("remove", "conv1")).abs().max() > 1e-2
    assert (logits("zero", inside) - logits("remove", inside)).abs().max() > 1e-3


@pytest.mark.parametrize("effect", ["remove", "silence", "zero"])
def test_weights_pruned_before_stay_pruned(effect, tiny_model, setting):
    both = pruned(tiny_model, setting, PruneWeights(sparsity=0.6), PruneFilters(sparsity=0.5, effect=effect))
    for name, layer in prunable(both).items():
        assert (layer.weight == 0).float().mean() > 0.2, name
    assert both(setting.validation.images).isfinite().all()


def test_filters_can_go_twice(tiny_model, setting):
    step = PruneFilters(sparsity=0.5)
    after = widths(pruned(tiny_model, setting, step, step))
    assert after["conv1"] == 2
    assert after["layer2.0.conv1"] == 4


# ---------------------------------------------------------------------------------------- bad input


def test_a_member_named_for_removal_is_told_its_group(tiny_model, setting):
    with pytest.raises(ParameterError, match=r"layer layer1\.0\.conv2 shares its channels with conv1"):
        pruned(tiny_model, setting, PruneFilters(layers={"layer1.0.conv2": 0.5}))


@pytest.mark.parametrize("effect", ["silence", "zero"])
def test_a_wrong_layer_and_the_classifier_are_refused(effect, tiny_model, setting):
    with pytest.raises(ParameterError, match="no layer is called 'conv3'; did you mean 'conv1'"):
        pruned(tiny_model, setting, PruneFilters(effect=effect, layers={"conv3": 0.5}))
    with pytest.raises(ParameterError, match="prune-filters: layer linear makes the logits"):
        pruned(tiny_model, setting, PruneFilters(effect=effect, layers={"linear": 0.5}))


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ParameterError, match='scope must be "layer" where single layers have a sparsity'):
        PruneFilters(scope="global", layers={"conv1": 0.5})
    with pytest.raises(ParameterError, match='round_to must be 1 where effect is "zero"'):
        PruneFilters(effect="zero", round_to=8)


def test_a_classifier_alone_is_refused(tiny_data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    setting = Setting(tiny_data.train, tiny_data.validation, model)
    for effect in ("remove", "silence", "zero"):
        with pytest.raises(UnsupportedModelError, match=r"must have filters that can go, got"):
            pruned(model, setting, PruneFilters(effect=effect))
