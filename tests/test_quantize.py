"""Quantised weights lie on their grid, next to what they were, and stay there whatever comes after."""

import pytest
import torch
from torch import nn

from core.layers import prunable
from core.methods.fine_tuning import FineTuning
from core.methods.prune_weights import PruneWeights
from core.methods.quantize import Quantize
from core.recipe import Recipe, compress
from core.rounding import rounded


def test_by_hand():
    weight = torch.tensor([[0.0, 0.3, -0.7], [1.4, -0.1, 0.05]])
    # 3 bits: -3 to 3; one step is 1.4 / 3, and for the first filter alone 0.7 / 3
    expected = torch.tensor([[0, 1, -2], [3, 0, 0]]) * 1.4 / 3
    assert torch.allclose(rounded(weight, 3), expected)
    expected[0] = torch.tensor([0, 1, -3]) * 0.7 / 3
    assert torch.allclose(rounded(weight, 3, each=True), expected)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("each", [False, True])
def test_every_weight_takes_the_nearest_of_all_points_of_the_grid(bits, each):
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    found = rounded(weight, bits, each)
    for row, old in zip(found, weight, strict=True):
        largest = (old if each else weight).abs().max()
        steps = 2 ** (bits - 1) - 1
        if bits <= 8:
            points = torch.arange(-steps, steps + 1) * largest / steps
            nearest = points[(old.flatten()[:, None] - points).abs().argmin(1)].view_as(old)
            assert torch.allclose(row, nearest)
        assert (row - old).abs().max() <= largest / steps / 2 + 1e-12


def test_rounding_twice_is_rounding_once_and_zeros_stay():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).double()
    weight[:, ::3] = 0
    once = rounded(weight, 5)
    assert torch.allclose(rounded(once, 5), once)
    assert (once[:, ::3] == 0).all()
    assert torch.equal(rounded(torch.zeros(2, 2), 4), torch.zeros(2, 2))


@pytest.mark.parametrize("grid", ["layer", "filter"])
def test_a_network_ends_on_the_grid_though_it_was_pruned_before_and_trained_after(setting, grid):
    steps = (
        PruneWeights(sparsity=0.5),
        Quantize(bits=4, grid=grid),
        FineTuning(epochs=1, batch_size=8, crop=0),
    )
    pruned = compress(setting.teacher, setting, Recipe(steps[:1])).model
    trained = compress(setting.teacher, setting, Recipe(steps)).model
    untrained = compress(setting.teacher, setting, Recipe(steps[:2])).model
    moved = 0
    for name, layer in prunable(trained).items():
        assert isinstance(layer.weight, nn.Parameter)  # baked
        assert torch.allclose(rounded(layer.weight, 4, grid == "filter"), layer.weight, atol=1e-6)
        assert (layer.weight[pruned.get_submodule(name).weight == 0] == 0).all()
        rows = layer.weight if grid == "filter" else [layer.weight]
        assert all(len(row.unique()) <= 15 for row in rows)
        moved += int((layer.weight != untrained.get_submodule(name).weight).sum())
    assert moved > 0


def test_more_bits_come_closer(setting):
    def distance(bits: int) -> float:
        model = compress(setting.teacher, setting, Recipe((Quantize(bits=bits),))).model
        images = setting.validation.images
        return (model(images) - setting.teacher(images)).norm().item()

    found = [distance(bits) for bits in (2, 4, 8, 16)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 1e-2 * found[0]
