"""Weight pruning against PyTorch's own, by count, and at both ends of the slider."""

import copy

import pytest
import torch
from tiny import CLASSES
from torch.nn.utils import prune

from core.bundles import Setting
from core.criteria.magnitude import Magnitude
from core.criteria.taylor import Taylor
from core.errors import ParameterError
from core.layers import prunable
from core.methods.prune_weights import PruneWeights
from core.recipe import Recipe, compress


def pruned(model, setting, **parameters):
    return compress(model, setting, Recipe((PruneWeights(**parameters),))).model


def zeros(model):
    return {name: (layer.weight == 0).sum().item() for name, layer in prunable(model).items()}


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_each_layer_loses_what_torch_prune_takes(tiny_model, setting, sparsity):
    peer = copy.deepcopy(tiny_model)
    for layer in prunable(peer).values():
        prune.l1_unstructured(layer, "weight", sparsity)
    model = pruned(tiny_model, setting, sparsity=sparsity)
    for name, layer in prunable(peer).items():
        assert torch.equal(model.get_submodule(name).weight, layer.weight)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_the_network_loses_what_torch_prune_takes_globally(tiny_model, setting, sparsity):
    peer = copy.deepcopy(tiny_model)
    layers = [(layer, "weight") for layer in prunable(peer).values()]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=sparsity)
    model = pruned(tiny_model, setting, sparsity=sparsity, scope="global")
    for name, layer in prunable(peer).items():
        assert torch.equal(model.get_submodule(name).weight, layer.weight)


def test_only_the_layers_named_get_a_sparsity_of_their_own(tiny_model, setting):
    model = pruned(tiny_model, setting, sparsity=0.25, layers={"conv1": 0.75, "linear": 0.0})
    counts, sizes = zeros(model), {name: layer.weight.numel() for name, layer in prunable(model).items()}
    assert counts["conv1"] == 0.75 * sizes["conv1"]
    assert counts["linear"] == 0
    assert counts["layer1.0.conv1"] == 0.25 * sizes["layer1.0.conv1"]


def test_at_0_percent_nothing_changes(tiny_model, setting):
    model = pruned(tiny_model, setting, sparsity=0.0)
    images = setting.validation.images
    assert torch.equal(model(images), tiny_model(images))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_at_100_percent_every_weight_is_zero_and_every_image_gets_the_same_finite_answer(
    tiny_model, plain_model, setting, scope
):
    for original in (tiny_model, plain_model):
        model = pruned(original, setting, sparsity=1.0, scope=scope)
        assert zeros(model) == {name: layer.weight.numel() for name, layer in prunable(original).items()}
        logits = model(setting.validation.images)
        assert logits.shape == (24, CLASSES)
        assert logits.isfinite().all()
        assert (logits == logits[0]).all()


def test_everything_but_weights_stays(tiny_model, setting):
    before, after = tiny_model.state_dict(), pruned(tiny_model, setting, sparsity=0.9).state_dict()
    weights = {f"{name}.weight" for name in prunable(tiny_model)}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - weights)


def test_pruning_twice_is_pruning_to_the_higher_sparsity(tiny_model, setting):
    steps = (PruneWeights(sparsity=0.3), PruneWeights(sparsity=0.7))
    twice = compress(tiny_model, setting, Recipe(steps)).model
    once = pruned(tiny_model, setting, sparsity=0.7)
    assert all(torch.equal(a, b) for a, b in zip(twice.parameters(), once.parameters(), strict=True))


def test_a_layer_of_one_filter_and_one_weight_is_pruned_like_any_other(tiny_data):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.Flatten(), torch.nn.Linear(256, 1))
    setting = Setting(tiny_data.train, tiny_data.validation, model)
    assert zeros(pruned(model, setting, sparsity=0.34)) == {"0": 1, "2": 87}
    assert zeros(pruned(model, setting, sparsity=1.0)) == {"0": 3, "2": 256}


def test_wrong_layers_and_criteria_are_refused_with_a_sentence(tiny_model, setting):
    with pytest.raises(
        ParameterError, match=r"no layer is called 'layer1.0.conv'; did you mean 'layer1.0.conv"
    ):
        pruned(tiny_model, setting, layers={"layer1.0.conv": 0.5})
    with pytest.raises(
        ParameterError, match="prune-weights: criterion must score single weights, got taylor"
    ):
        PruneWeights(criterion=Taylor())
    with pytest.raises(ParameterError, match='prune-weights: scope must be "layer" where'):
        PruneWeights(scope="global", layers={"conv1": 0.5})
    assert PruneWeights().criterion == Magnitude()
