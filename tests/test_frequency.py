"""The frequency domain: against SciPy, against loops, against the published rule, and on trained networks."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import MODELS, Setting
from core.cost import output_positions
from core.diagnostics.band_energy import BandEnergy
from core.digits import originals
from core.errors import ParameterError, UnsupportedModelError
from core.frequency import (
    KeptCoefficients,
    MovingMasks,
    band_energy,
    basis_of,
    beta_mask,
    beta_shares,
    dct_matrix,
    hold,
    importance,
    kernel_layers,
    kernel_of,
    layer_costs,
    one_shot,
    packed,
    packed_bytes,
    patch_macs,
    present,
    threshold,
)
from core.labs.filters_in_bands import FiltersInBands
from core.labs.prune_and_splice import PruneAndSplice
from core.labs.spatial_or_frequency import SpatialOrFrequency
from core.layers import apply_mask, bake, prunable
from core.methods.dynamic_frequency import DynamicFrequency
from core.methods.fine_tuning import FineTuning
from core.methods.frequency import Frequency
from core.methods.prune_filters import PruneFilters
from core.methods.prune_weights import PruneWeights
from core.recipe import Recipe, compress
from core.run import Run, seeded
from core.weights import load_dataset, load_model, read_model, save_model

KERNELS = [(1,), (3,), (2, 2), (3, 3), (4, 4), (5, 5), (7, 7), (11, 11), (1, 3), (5, 2), (3, 3, 3)]
LABELLED = [[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]]


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coefficients(kernel: list[list[float]]) -> Tensor:
    """Of one kernel (k, k)."""
    weight = torch.tensor(kernel, dtype=torch.float64)[None, None]
    return basis_of(kernel_of(weight)).coefficients(weight)[0, 0]


def convolution(inputs: int = 4, outputs: int = 6, kernel=3, **options) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, **options).double()


def everything(layer: nn.Module) -> Tensor:
    return torch.ones_like(layer.weight, dtype=torch.bool)


def pruned(network: nn.Module, data, **parameters) -> nn.Module:
    setting = Setting(data.train, data.validation, network)
    return compress(network, setting, Recipe((Frequency(**parameters),))).model


# ------------------------------------------------------------------------------------ the transform


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 11])
def test_the_cosines_are_orthonormal(size):
    assert torch.allclose(dct_matrix(size) @ dct_matrix(size).T, torch.eye(size).double(), atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_coefficients_are_scipys_and_go_back_without_loss(kernel):
    weight, basis = weights(3, 2, *kernel), basis_of(kernel)
    found = basis.coefficients(weight)
    axes = tuple(range(2, 2 + len(kernel)))
    assert np.allclose(found, dctn(weight, axes=axes, norm="ortho"), rtol=0, atol=1e-12)
    assert np.allclose(basis.weights(found), idctn(found, axes=axes, norm="ortho"), rtol=0, atol=1e-12)
    assert torch.allclose(basis.weights(found), weight, rtol=0, atol=1e-12)
    assert found.square().sum().item() == pytest.approx(weight.square().sum().item(), rel=1e-12)


def test_known_kernels():
    by_hand = torch.tensor([[15, -math.sqrt(6), 0], [-3 * math.sqrt(6), 0, 0], [0, 0, 0]]).double()
    assert torch.allclose(coefficients([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), by_hand, atol=1e-6)
    flat = torch.zeros(3, 3).double()
    flat[0, 0] = 3
    assert torch.allclose(coefficients([[1.0] * 3] * 3), flat, atol=1e-12)
    sobel = coefficients([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    assert (sobel[0, 1].item(), sobel[2, 1].item()) == pytest.approx((-3.2660, 1.1547), abs=1e-4)
    assert sobel.count_nonzero() >= 2
    assert sobel.square().sum() == pytest.approx(sobel[0, 1] ** 2 + sobel[2, 1] ** 2)
    laplacian = coefficients([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    places = laplacian[0, 2].item(), laplacian[2, 0].item(), laplacian[2, 2].item()
    assert places == pytest.approx((math.sqrt(2), math.sqrt(2), -4), abs=1e-6)


def test_a_kernel_of_one_number_is_its_own_coefficient():
    weight = weights(4, 3, 1, 1)
    assert torch.equal(basis_of((1, 1)).coefficients(weight), weight)
    linear = weights(4, 3)
    assert torch.equal(basis_of(()).coefficients(linear), linear)


def test_bands_are_sums_of_frequencies():
    square = basis_of((3, 3))
    assert square.band.view(3, 3).tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert square.band.bincount().tolist() == [1, 2, 3, 2, 1]
    assert square.place.view(3, 3)[0].tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert basis_of((2, 3)).band.view(2, 3).tolist() == [[0, 1, 2], [1, 2, 3]]
    assert basis_of((4,)).band.tolist() == [0, 1, 2, 3]
    assert basis_of((3, 3), "spatial").bands == 1


@pytest.mark.parametrize(("stride", "padding", "kernel"), [(1, 0, 3), (2, 1, 3), (1, 2, (5, 2)), (2, 0, 2)])
def test_a_convolution_is_the_transformed_patches_times_the_coefficients(stride, padding, kernel):
    """So sparse coefficients save work without any transform of the output."""
    layer = convolution(kernel=kernel, stride=stride, padding=padding, bias=False)
    x, basis = weights(2, 4, 9, 9, seed=1), basis_of(kernel_of(layer.weight))
    patches = F.unfold(x, layer.kernel_size, stride=stride, padding=padding)  # (N, I K, L)
    patches = patches.unflatten(1, (4, -1))
    transformed = torch.einsum("uk,nikl->niul", basis.matrix, patches)
    found = torch.einsum("oiu,niul->nol", basis.coefficients(layer.weight).flatten(2), transformed)
    expected = layer(x)
    assert torch.allclose(found.view_as(expected), expected, rtol=0, atol=1e-12)


def test_energy_of_a_band_is_the_mean_square_of_its_coefficients():
    weight = weights(5, 4, 3, 3)
    found = dctn(weight, axes=(2, 3), norm="ortho") ** 2
    by_hand = [
        np.mean([found[:, :, u, v] for u in range(3) for v in range(3) if u + v == band]) for band in range(5)
    ]
    assert band_energy(weight, basis_of((3, 3))).tolist() == pytest.approx(by_hand, rel=1e-12)


# ------------------------------------------------------------------------------------------- masks


def test_a_threshold_is_one_of_the_magnitudes_and_takes_the_share_it_should():
    weight, basis = weights(8, 4, 3, 3), basis_of((3, 3))
    level = threshold(weight, basis, 0.7, 0.0)
    assert level.unique().numel() == 1
    below = basis.coefficients(weight).abs() <= level * (1 + 1e-12)  # it is one of them, up to rounding
    assert int(below.sum()) == round(0.7 * weight.numel())
    assert not threshold(weight, basis, 0.0, 0.5).any()


def test_the_threshold_is_tilted_as_written():
    weight, basis, tilt = weights(8, 4, 3, 3), basis_of((3, 3)), 0.8
    level = threshold(weight, basis, 0.7, tilt)
    found = dctn(weight, axes=(2, 3), norm="ortho")
    gone = 0
    for u in range(3):
        for v in range(3):
            factor = 1 + tilt * ((u + v + 0.5) / 5 - 0.5)
            assert level[u, v].item() == pytest.approx(level[1, 1].item() * factor)
            gone += int((np.abs(found[:, :, u, v]) <= level[u, v].item() * (1 + 1e-12)).sum())
    assert gone == round(0.7 * weight.numel())


def test_more_tilt_prunes_more_of_the_highest_band():
    weight, basis = weights(32, 16, 3, 3), basis_of((3, 3))
    shares = []
    for tilt in (-1.0, 0.0, 1.0):
        keep = basis.coefficients(weight).abs() > threshold(weight, basis, 0.8, tilt)
        shares.append((keep[:, :, 0, 0].float().mean().item(), keep[:, :, 2, 2].float().mean().item()))
    lowest, highest = zip(*shares, strict=True)
    assert lowest[0] < lowest[1] < lowest[2]
    assert highest[0] > highest[1] > highest[2]


def test_quotas_of_the_published_table():
    gone = 1 - beta_shares(basis_of((5, 5)), 0.9, 1.0, 3.0)
    table = [0.702, 0.768, 0.826, 0.875, 0.916, 0.949, 0.974, 0.991, 0.999]
    assert gone.tolist() == pytest.approx(table, abs=5e-4)


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3), (5, 2), (7, 7)])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (1, 2), (0.1, 10), (10, 0.1), (2, 5)])
@pytest.mark.parametrize("sparsity", [0.0, 0.13, 0.5, 0.9, 1.0])
def test_quotas_meet_the_target_to_one_coefficient(kernel, alpha, beta, sparsity):
    basis, weight = basis_of(kernel), weights(5, 7, *kernel)
    shares = beta_shares(basis, sparsity, alpha, beta)
    assert ((shares >= 0) & (shares <= 1)).all()
    counts = basis.band.bincount()
    assert (shares * counts).sum().item() == pytest.approx((1 - sparsity) * counts.sum().item(), abs=1e-6)
    keep = beta_mask(weight, basis, sparsity, alpha, beta)
    assert abs(int(keep.sum()) - (1 - sparsity) * weight.numel()) <= 1


def test_equal_exponents_of_one_give_every_band_the_same_share():
    assert torch.allclose(beta_shares(basis_of((5, 5)), 0.7, 1.0, 1.0), torch.tensor(0.3).double())


def test_within_a_band_the_largest_stay():
    weight, basis = weights(6, 5, 3, 3), basis_of((3, 3))
    keep = beta_mask(weight, basis, 0.6, 1.0, 2.0)
    size = basis.coefficients(weight).abs().flatten(2)
    for band in range(5):
        inside = basis.band == band
        kept, gone = (
            size[:, :, inside][keep.flatten(2)[:, :, inside]],
            size[:, :, inside][~keep.flatten(2)[:, :, inside]],
        )
        assert kept.min() > gone.max()


@pytest.mark.parametrize("parameters", [{}, {"tilt": 1.5}, {"bands": "beta"}, {"scope": "global"}])
@pytest.mark.parametrize("sparsity", [0.2, 0.7])
def test_exactly_the_share_that_is_asked_for_goes(tiny_model, tiny_data, sparsity, parameters):
    after = prunable(pruned(tiny_model, tiny_data, sparsity=sparsity, **parameters))
    masks = {
        name: present(after[name].weight, basis_of(kernel_of(after[name].weight)))
        for name in kernel_layers("test", tiny_model)
    }
    total = sum(mask.numel() for mask in masks.values())
    if parameters.get("scope") == "global":
        assert sum(int((~mask).sum()) for mask in masks.values()) == round(sparsity * total)
        return
    for mask in masks.values():
        assert abs(int((~mask).sum()) - sparsity * mask.numel()) <= 1


def test_one_layer_by_hand(plain_model, tiny_data):
    """Transform with SciPy, zero the smallest, transform back."""
    found = pruned(plain_model, tiny_data, sparsity=0.6, tilt=0.0).conv2.weight
    values = dctn(plain_model.conv2.weight.double().numpy(), axes=(2, 3), norm="ortho")
    smallest = np.argsort(np.abs(values), axis=None, kind="stable")[: round(0.6 * values.size)]
    values.flat[smallest] = 0
    assert np.allclose(found, idctn(values, axes=(2, 3), norm="ortho"), atol=1e-6)


def test_nothing_goes_at_0_and_all_kernels_at_1(tiny_model, tiny_data):
    images = tiny_data.test.images
    same = pruned(tiny_model, tiny_data, sparsity=0.0)
    assert torch.allclose(same(images), tiny_model(images), atol=1e-5)
    empty = pruned(tiny_model, tiny_data, sparsity=1.0)
    assert not any(empty.get_submodule(name).weight.any() for name in kernel_layers("test", tiny_model))
    assert torch.equal(empty.linear.weight, tiny_model.linear.weight)
    assert torch.equal(empty(images)[0], empty(images)[1])


def test_with_pointwise_layers_the_network_is_pruned_by_weights(tiny_data):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    setting = Setting(tiny_data.train, tiny_data.validation, network.eval())
    ours = compress(network, setting, Recipe((Frequency(sparsity=0.5, pointwise=True),))).model
    theirs = compress(network, setting, Recipe((PruneWeights(sparsity=0.5),))).model
    for name in ("0", "4"):
        assert torch.equal(ours.get_submodule(name).weight, theirs.get_submodule(name).weight)


def test_the_best_mask_of_a_layer_is_at_least_as_close_as_any_other():
    """Among masks of one size, the largest coefficients leave the least error: Parseval."""
    weight, basis = weights(6, 4, 3, 3), basis_of((3, 3))
    size = importance(weight, basis, 0.0)
    keep = size > size.flatten().kthvalue(150).values
    best = (basis.weights(basis.coefficients(weight) * keep) - weight).square().sum()
    assert best.item() == pytest.approx(size[~keep].square().sum().item())
    for seed in range(20):
        other = torch.zeros(216, dtype=torch.bool)
        other[torch.randperm(216, generator=torch.Generator().manual_seed(seed))[:66]] = True
        shuffled = basis.weights(basis.coefficients(weight) * other.view_as(weight))
        assert (shuffled - weight).square().sum() > best


# ----------------------------------------------------------------------------------------- holding


def paths(optimizer, steps: int = 50) -> tuple[Tensor, Tensor]:
    """The same layer trained by its weights and by its coefficients, all of them kept."""
    x, y = weights(6, 4, 6, 6, seed=1), weights(6, 6, 4, 4, seed=2)
    spatial, frequency = convolution(), convolution()
    hold(frequency, everything(frequency), basis_of((3, 3)))
    for layer in (spatial, frequency):
        step = optimizer(layer.parameters())
        for _ in range(steps):
            step.zero_grad()
            F.mse_loss(layer(x), y).backward()
            step.step()
    return spatial.weight.detach(), frequency.weight.detach()


def test_sgd_goes_the_same_way_in_both_domains_and_adam_does_not():
    first, second = paths(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=1e-3))
    assert (first - convolution().weight).abs().max() > 0.1  # it did go somewhere
    assert (first - second).abs().max() < 1e-10
    first, second = paths(lambda p: torch.optim.Adam(p, lr=0.01))
    assert (first - second).abs().max() > 1e-3


def test_the_gradient_is_transformed_and_reaches_what_is_masked():
    layer, x = convolution(bias=False), weights(3, 4, 8, 8, seed=1)
    basis = basis_of((3, 3))
    keep = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    kept = copy.deepcopy(layer)
    kept.weight.data = basis.weights(basis.coefficients(layer.weight.detach()) * keep)
    kept(x).square().sum().backward()
    hold(layer, keep, basis)
    layer(x).square().sum().backward()
    found = layer.parametrizations.weight.original.grad
    assert torch.allclose(found, basis.coefficients(kept.weight.grad), rtol=0, atol=1e-9)
    assert (found[~keep] != 0).all()


def test_what_is_masked_is_not_in_the_weight_and_bake_leaves_it_so():
    layer, basis = convolution(), basis_of((3, 3))
    keep = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    before = basis.coefficients(layer.weight.detach())
    hold(layer, keep, basis)
    baked = bake(nn.Sequential(layer))[0].weight
    assert isinstance(baked, nn.Parameter)
    assert torch.allclose(basis.coefficients(baked.detach()), before * keep, rtol=0, atol=1e-12)
    assert torch.equal(present(baked, basis), keep)


def test_float32_rounding_is_not_taken_for_a_coefficient():
    layer, basis = convolution(8, 16).float(), basis_of((3, 3))
    keep = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    hold(layer, keep, basis)
    assert torch.equal(present(bake(layer).weight, basis), keep)


def test_zeros_stay_zero_while_the_network_trains_on(tiny_model, setting):
    steps = (Frequency(sparsity=0.7), FineTuning(epochs=2, learning_rate=0.05))
    before = compress(tiny_model, setting, Recipe(steps[:1])).model
    after = compress(tiny_model, setting, Recipe(steps)).model
    for name, layer in kernel_layers("test", before).items():
        basis = basis_of(kernel_of(layer.weight))
        assert not torch.allclose(after.get_submodule(name).weight, layer.weight)
        assert torch.equal(present(after.get_submodule(name).weight, basis), present(layer.weight, basis))


def test_a_second_step_takes_more_and_gives_nothing_back(tiny_model, setting):
    twice = Recipe((Frequency(sparsity=0.8), Frequency(sparsity=0.3), FineTuning(epochs=1)))
    for layer in kernel_layers("test", compress(tiny_model, setting, twice).model).values():
        gone = (~present(layer.weight, basis_of(kernel_of(layer.weight)))).float().mean().item()
        assert gone == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("method", [Frequency(sparsity=0.2), DynamicFrequency(sparsity=0.2, epochs=1)])
def test_filters_that_were_zeroed_before_stay_zero(tiny_model, setting, method):
    steps = (PruneFilters(sparsity=0.5, effect="zero"), method, FineTuning(epochs=1))
    after = compress(tiny_model, setting, Recipe(steps)).model
    before = compress(tiny_model, setting, Recipe(steps[:1])).model
    empty = before.conv1.weight.flatten(1).any(1).logical_not()
    assert empty.sum() == 4
    assert torch.equal(after.conv1.weight.flatten(1).any(1).logical_not(), empty)


def test_a_mask_of_a_bias_outlives_the_transform_of_the_weight():
    layer = convolution()
    keep = torch.arange(6) % 2 == 0
    apply_mask(layer, keep, "bias")
    apply_mask(layer, layer.weight > -1)
    hold(layer, everything(layer), basis_of((3, 3)))
    layer.parametrizations.bias.original.data.fill_(1.0)
    assert layer.bias.tolist() == keep.double().tolist()
    assert isinstance(layer.parametrizations.weight[0], KeptCoefficients)


def test_copies_of_a_network_are_held_on_their_own():
    """Deep copies share the class of a parametrized layer: to hold one must not touch the other."""
    first = nn.Sequential(convolution())
    apply_mask(first[0], first[0].weight > 0)
    second, before = copy.deepcopy(first), first[0].weight.detach().clone()
    hold(second[0], everything(second[0]) & False, basis_of((3, 3)))
    assert not second[0].weight.any()
    assert torch.equal(first[0].weight, before)


def test_the_compressed_network_is_saved_and_read(tmp_path, setting):
    digits = load_dataset("digits")
    torch.manual_seed(0)
    network = MODELS["resnet20"]().build(digits.shape, 10).eval()
    after = compress(network, Setting(digits.train, digits.validation, network), Recipe((Frequency(),))).model
    save_model(after, tmp_path / "held.safetensors", MODELS["resnet20"](), digits, {})
    again = read_model(tmp_path / "held.safetensors").module
    images = digits.test.images[:10]
    assert torch.equal(again(images), after(images))


# ---------------------------------------------------------------------------------- prune and splice


def masks_of(layer: nn.Module, **options) -> MovingMasks:
    options = {"stop": 100, "tilt": 0.0} | options
    return MovingMasks({"layer": layer}, {"layer": 0.5}, **options)


def state(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The coefficients that are trained, and their mask."""
    steps = layer.parametrizations.weight
    return steps.original.data, steps[0].keep


def test_between_the_two_marks_nothing_changes():
    layer = convolution()
    level = threshold(layer.weight, basis_of((3, 3)), 0.5, 0.0)[0, 0].item()
    masks = masks_of(layer)
    values, keep = state(layer)
    values[:] = torch.linspace(0.91 * level, 1.09 * level, values.numel()).view_as(values).to(values)
    keep[:3] = False
    before = keep.clone()
    for _ in range(50):
        masks.update()
    assert torch.equal(keep, before)
    assert masks.tally()["pruned"] == masks.tally()["spliced"] == 0


@pytest.mark.parametrize(("factor", "kept"), [(0.5, False), (0.9, False), (0.9001, True), (2.0, True)])
def test_at_most_nine_tenths_of_the_threshold_is_pruned(factor, kept):
    layer = convolution()
    level = threshold(layer.weight, basis_of((3, 3)), 0.5, 0.0)[0, 0].item()
    masks = masks_of(layer)
    values, keep = state(layer)
    values[:] = -2 * level
    values[0, 0, 1, 2] = factor * level
    masks.update()
    assert keep[0, 0, 1, 2] == kept
    assert masks.sparsity == pytest.approx((not kept) / 216)


def test_a_masked_coefficient_that_has_grown_returns_only_where_splicing_is_on():
    for splice in (True, False):
        layer = convolution()
        level = threshold(layer.weight, basis_of((3, 3)), 0.5, 0.0)[0, 0].item()
        masks = masks_of(layer, splice=splice)
        values, keep = state(layer)
        values[:] = 2 * level
        keep[1, 2, 0, 1] = False
        masks.update()
        assert keep.all() == splice
        assert masks.tally()["spliced"] == splice
        assert bool(basis_of((3, 3)).coefficients(layer.weight.detach())[1, 2, 0, 1].abs() > level) == splice


def test_masked_coefficients_that_the_training_needs_come_back():
    """A target with one pattern only: its coefficient returns by its gradient, and the others do not."""
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 1, 3, bias=False).double()
    basis = basis_of((3, 3))
    layer.weight.data = basis.weights(torch.tensor(LABELLED).double()[None] / 10)
    masks = MovingMasks({"layer": layer}, {"layer": 0.9}, stop=1000, decay=0.0)
    masks.step()
    keep = state(layer)[1]
    assert keep.sum() < 4
    assert not keep[0, 0, 0, 1]
    wanted = torch.zeros(1, 1, 3, 3).double()
    wanted[0, 0, 0, 1] = 3.0
    x = weights(64, 1, 8, 8, seed=3)
    target = F.conv2d(x, basis.weights(wanted))
    step = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(200):
        masks.step()
        step.zero_grad()
        F.mse_loss(layer(x), target).backward()
        step.step()
    assert keep.flatten().nonzero().flatten().tolist() == [1]
    assert torch.allclose(layer.weight, basis.weights(wanted), atol=0.02)


def test_the_mask_is_final_after_the_stop_and_updates_become_rare():
    layer = convolution()
    with seeded(0):
        masks = masks_of(layer, stop=400, decay=0.02)
        updates = []
        masks.update = lambda: updates.append(masks.steps)
        for _ in range(1000):
            masks.step()
    assert updates[0] == 0
    assert max(updates) < 400
    expected = sum(1 / (1 + 0.02 * t) for t in range(400))
    spread = math.sqrt(sum(1 / (1 + 0.02 * t) * (1 - 1 / (1 + 0.02 * t)) for t in range(400)))
    assert abs(len(updates) - expected) < 4 * spread


def test_the_spatial_domain_is_dynamic_network_surgery():
    """Step by step the published rule on weights, written out."""
    layer = convolution()
    original = layer.weight.detach().clone()
    masks = masks_of(layer, domain="spatial", tilt=1.0)  # a tilt means nothing to weights
    level = original.abs().flatten().kthvalue(108).values
    values, keep = state(layer)
    expected = torch.ones_like(keep)
    for step in range(20):
        masks.update()
        size = values.abs()
        expected = torch.where(expected & (size <= 0.9 * level), False, expected)
        expected = torch.where(~expected & (size > 1.1 * level), True, expected)
        assert torch.equal(keep, expected), step
        assert torch.equal(layer.weight, values * keep)
        values += 0.02 * torch.randn(values.shape, generator=torch.Generator().manual_seed(step))
    assert masks.sparsities == {"layer": pytest.approx((~expected).double().mean().item())}


def test_records_and_figures_tell_what_happened(tiny_model, setting):
    run = Run()
    step = DynamicFrequency(epochs=3, batch_size=8, sparsity=0.6, learning_rate=0.05)
    result = compress(tiny_model, setting, Recipe((step,)), run, figures=True)
    rows = [row for row in run.records if "spliced" in row]
    assert [row["step"] for row in rows] == list(range(1, 19))
    masked = sum(row["pruned"] - row["spliced"] for row in rows)
    layers = kernel_layers("test", result.model).values()
    zeros = sum(int((~present(m.weight, basis_of(kernel_of(m.weight)))).sum()) for m in layers)
    assert masked == zeros
    assert rows[-1]["sparsity"] == pytest.approx(zeros / sum(m.weight.numel() for m in layers))
    shown = {figure.title: figure for figure in result.figures[0]}
    assert shown["Pruned and spliced"].table["count"].sum() == sum(r["pruned"] + r["spliced"] for r in rows)
    assert {row["epoch"] for row in run.records if "epoch" in row} == {1, 2, 3}


# ------------------------------------------------------------------------------------------- costs


def unpacked(content: bytes, shape: tuple[int, ...]) -> Tensor:
    """What a reader makes of `packed`."""
    count = math.prod(shape)
    there = np.unpackbits(np.frombuffer(content[: -(-count // 8)], np.uint8), count=count).astype(bool)
    values = np.zeros(count, np.float32)
    values[there] = np.frombuffer(content[-(-count // 8) :], np.float32)
    return torch.from_numpy(values).view(shape)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_what_is_packed_can_be_read_again(share):
    values = weights(5, 3, 3, 3).float()
    keep = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) < share
    content = packed(values, keep)
    assert len(content) == math.ceil(135 / 8) + 4 * int(keep.sum())
    assert torch.equal(unpacked(content, (5, 3, 3, 3)), values * keep)


def test_bytes_fall_with_the_coefficients_that_are_left(tiny_model):
    layers, sizes = list(kernel_layers("test", tiny_model)), []
    for sparsity in (0.0, 0.5, 0.9):
        weight = one_shot(tiny_model, layers, sparsity, "frequency", 0.0).layer2[1].conv1.weight
        sizes.append(packed_bytes(weight, basis_of((3, 3))))
    whole = 4 * weight.numel()
    assert 0.85 * whole < sizes[0] < 1.05 * whole
    assert sizes[1] < 0.6 * whole
    assert sizes[2] < 0.15 * whole


def test_transforms_of_patches_cost_what_the_formulas_say():
    layer = nn.Conv2d(16, 16, 3, padding=1)
    assert patch_macs(layer, shared=False) == 2 * 3**3 * 16
    assert patch_macs(layer, shared=True) == (3**2 + 3**3) * 16
    assert patch_macs(nn.Conv2d(16, 16, 3, stride=3), shared=True) == 2 * 3**3 * 16  # nothing overlaps
    assert patch_macs(nn.Conv2d(7, 16, (5, 2)), shared=False) == 7 * (2 * 25 + 5 * 4)
    assert patch_macs(nn.Conv1d(7, 16, 5), shared=True) == 7 * 25
    assert patch_macs(nn.Conv2d(16, 16, 1), shared=False) == patch_macs(nn.Linear(5, 3), shared=True) == 0
    dense, kept = 9 * 16 * 16, 9 * 16 * 16 / 8.4
    assert (kept + patch_macs(layer, shared=True)) / dense == pytest.approx(0.119 + 0.25, abs=1e-3)


def test_costs_of_a_network_are_sums_over_its_positions(plain_model, tiny_data):
    example = tiny_data.train.images[:1]
    network = one_shot(plain_model, ["conv1", "conv2"], 0.5, "frequency", 0.0)
    positions = output_positions(plain_model, example)
    table = layer_costs(network, positions).set_index("layer")
    assert positions == {"conv1": 64, "conv2": 16, "linear1": 1, "linear2": 1}
    assert table.numbers.tolist() == [81, 135, 560, 28]
    assert table.macs.tolist() == [81 * 64, 135 * 16, 560, 28]
    assert (table.macs_separate - table.macs).tolist() == [64 * 54 * 3, 16 * 54 * 6, 0, 0]
    assert (table.macs_shared - table.macs).tolist() == [64 * (9 * 2 + 27) * 3, 16 * (9 * 2 + 27) * 6, 0, 0]
    spatial = layer_costs(network, positions, "spatial").set_index("layer")
    assert spatial.numbers.tolist() == [162, 270, 560, 28]  # no weight is zero
    assert spatial.macs.equals(spatial.macs_separate)


# --------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tilt": 2.0}, "tilt must lie in"),
        ({"tilt": -2.0}, "tilt must lie in"),
        ({"sparsity": 1.1}, "sparsity must lie in"),
        ({"alpha": 0.0}, "alpha must lie in"),
        ({"beta": -1.0}, "beta must lie in"),
        ({"bands": "beta", "scope": "global"}, 'scope must be "layer" where bands have quotas, got "global"'),
    ],
)
def test_what_has_no_meaning_is_refused(parameters, words):
    with pytest.raises(ParameterError, match=words):
        Frequency(**parameters)


@pytest.mark.parametrize("parameters", [{"below": 1.2}, {"above": 0.9}, {"decay": -0.1}, {"stop": 1.5}])
def test_marks_that_cross_and_chances_that_grow_are_refused(parameters):
    with pytest.raises(ParameterError, match="must lie in"):
        DynamicFrequency(**parameters)


@pytest.mark.parametrize("method", [Frequency(), DynamicFrequency(epochs=1)])
def test_a_network_without_kernels_is_refused_unless_all_layers_are_meant(method, tiny_data):
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    setting = Setting(tiny_data.train, tiny_data.validation, network)
    with pytest.raises(UnsupportedModelError, match="must have a convolution with a kernel larger"):
        compress(network, setting, Recipe((method,)))
    compress(network, setting, Recipe((type(method)(pointwise=True),)), figures=True)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, (5, 2)),
        nn.Conv2d(3, 6, 3, groups=3),
        nn.Conv2d(3, 6, (1, 3)),
        nn.Conv2d(3, 6, 7, dilation=2),
    ],
)
def test_kernels_of_every_shape_are_pruned_and_shown(layer, tiny_data):
    network = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    setting = Setting(tiny_data.train, tiny_data.validation, network)
    result = compress(network, setting, Recipe((Frequency(sparsity=0.4),)), figures=True)
    found = result.model[0].weight
    gone = int((~present(found, basis_of(kernel_of(found)))).sum())
    assert gone == round(0.4 * found.numel())
    assert [figure.title for figure in result.figures[0]] == [
        "Energy by band",
        "What is left, by frequency",
        "What it costs",
    ]


def test_removed_channels_leave_plain_weights_whose_coefficients_are_still_zero(tiny_model, setting):
    recipe = Recipe((Frequency(sparsity=0.6), PruneFilters(sparsity=0.25)))
    after = compress(tiny_model, setting, recipe).model
    for layer in kernel_layers("test", after).values():
        gone = (~present(layer.weight, basis_of(kernel_of(layer.weight)))).float().mean().item()
        assert gone == pytest.approx(0.6, abs=0.12)


# --------------------------------------------------------------------------------------- what is shown


def test_band_energy_by_hand():
    before = nn.Sequential(
        nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, (1, 2), bias=False)
    )
    before[0].weight.data[:] = 1.0  # W[0, 0] = 3 and nothing else
    before[2].weight.data[:] = torch.tensor([1.0, 0.0])  # half in each of two bands
    after = copy.deepcopy(before)
    after[0].weight.data[:] = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    after[2] = nn.Conv2d(1, 1, 3)
    table = BandEnergy().measure(before, after, None, Run())
    first, last = table[table.layer == "0"], table[table.layer == "2"]
    assert first.energy_before.tolist() == pytest.approx([9, 0, 0, 0, 0])
    assert first.zero_before.tolist() == [0, 1, 1, 1, 1]
    assert first.energy_after.tolist() == pytest.approx([0, 0, 2 * 2 / 3, 0, 16])  # Laplacian, of a mean of 1
    assert first.zero_after.tolist() == pytest.approx([1, 1, 1 / 3, 1, 0])
    assert last.energy_before.tolist() == pytest.approx([1, 1])
    assert last.energy_after.isna().all()
    assert set(table.layer) == {"0", "2"}


def test_what_is_left_is_counted_at_every_frequency(tiny_model, setting):
    step = Frequency(sparsity=0.6)
    result = compress(tiny_model, setting, Recipe((step,)), figures=True)
    shown = {figure.title: figure for figure in result.figures[0]}
    layers = [m for m in kernel_layers("test", result.model).values() if kernel_of(m.weight) == (3, 3)]
    masks = torch.cat([present(m.weight, basis_of((3, 3))).flatten(0, 1) for m in layers])
    table = shown["What is left, by frequency"].table.set_index(["u", "v"])
    assert table.kept[0, 2] == pytest.approx(masks[:, 0, 2].double().mean().item())
    assert table.kept[2, 1] == pytest.approx(masks[:, 2, 1].double().mean().item())
    costs = shown["What it costs"].table.set_index("cost")
    everything = sum(m.weight.numel() for m in prunable(tiny_model).values())
    left = int(masks.sum()) + sum(
        m.weight.numel() for m in prunable(tiny_model).values() if math.prod(kernel_of(m.weight)) == 1
    )
    assert costs.loc["numbers that are not zero"].tolist()[:2] == [everything, left]
    for figure in result.figures[0]:
        json.dumps(figure.to_dict(), allow_nan=False)


# --------------------------------------------------------------------------- trained networks: the idea


def measured(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and loss."""
    with torch.no_grad():
        answers = network(images)
    return (answers.argmax(1) == labels).float().mean().item(), F.cross_entropy(answers, labels).item()


def test_a_trained_network_keeps_more_in_the_frequency_domain():
    bundle = load_model("small-cnn", "cluttered-digits")
    split = load_dataset("cluttered-digits").test.take(slice(0, 400))
    layers = list(kernel_layers("test", bundle.module))
    found = {
        (domain, tilt): measured(
            one_shot(bundle.module, layers, 0.7, domain, tilt), split.images, split.labels
        )
        for domain, tilt in (("spatial", 0.0), ("frequency", 0.0), ("frequency", 0.5), ("frequency", -1.0))
    }
    accuracy = {way: values[0] for way, values in found.items()}
    assert accuracy["frequency", 0.0] > accuracy["spatial", 0.0] + 0.3
    assert accuracy["frequency", 0.5] > accuracy["frequency", 0.0] + 0.05
    assert accuracy["frequency", -1.0] < accuracy["frequency", 0.0] - 0.3


def enlarged() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits of 28 x 28 pixels in noise: training pictures and labels, 360 test pictures and labels."""
    pictures, labels = originals()
    large = F.interpolate(pictures[:, None] / 16, size=28, mode="bilinear")
    large = large + 0.35 * torch.randn(large.shape, generator=torch.Generator().manual_seed(1))
    large = (large - large.mean()) / large.std()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return large[order[:-360]], labels[order[:-360]], large[order[-360:]], labels[order[-360:]]


def train(network: nn.Module, data, steps: int, rate: float, before_step=lambda: None) -> None:
    images, labels, _, _ = data
    network.train().requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    for _ in range(steps):
        before_step()
        batch = torch.randint(len(labels), (64,))
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kernels_of_5_by_5_gain_from_the_domain_and_from_the_tilt_and_training_recovers(seed):
    """The reference experiment: three convolutions, 600 steps, one-shot; then 300 steps at 95 %."""
    data = enlarged()
    with seeded(seed):
        network = nn.Sequential(
            *(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(16, 10)),
        )
        train(network, data, 600, 0.05)
        layers = kernel_layers("test", network)
        dense, _ = measured(network, *data[2:])
        assert dense > 0.9
        for name in ("0", "3"):
            energy = band_energy(layers[name].weight, basis_of((5, 5)))
            assert energy[:2].min() > 2 * energy.mean()
            assert energy[5:].max() < energy.mean()
        for sparsity in (0.8, 0.9):
            spatial, plain = (
                measured(one_shot(network, layers, sparsity, domain, 0.0), *data[2:])[1]
                for domain in ("spatial", "frequency")
            )
            assert plain < 0.8 * spatial, sparsity
        losses = [
            measured(one_shot(network, layers, 0.9, "frequency", tilt), *data[2:])[1] for tilt in (-1, 0, 0.5)
        ]
        assert losses[0] > 1.3 * losses[1] > 1.3 * losses[2]
        masks = MovingMasks(layers, dict.fromkeys(layers, 0.95), stop=180, tilt=0.5)
        train(network, data, 300, 0.01, masks.step)
        assert masks.sparsity > 0.9
        assert masks.tally()["spliced"] > 0
        assert measured(network, *data[2:])[0] > dense - 0.03


# --------------------------------------------------------------------------------------------- labs


def figures_of(lab, network, data) -> dict:
    setting = Setting(data.train, data.validation, network)
    with seeded(0):
        return {figure.title: figure for figure in lab.figures(setting, Run())}


def test_one_kernel_is_shown_with_what_is_left_of_it(plain_model, tiny_data):
    shown = figures_of(FiltersInBands(layer=2, kernel=3, sparsity=0.5), plain_model, tiny_data)
    weight = plain_model.conv2.weight.detach().double()
    chosen = weight.flatten(0, 1)[weight.flatten(2).norm(dim=2).flatten().argsort(descending=True)[2]]

    def panel(figure: str, name: str) -> np.ndarray:
        table = shown[figure].table
        return table[table.panel == name].value.to_numpy().reshape(3, 3)

    kernels, sums = "One of 30 kernels in conv2", dctn(chosen, norm="ortho")
    assert np.allclose(panel(kernels, "weights"), chosen)
    assert np.allclose(panel("Its coefficients", "all"), sums)
    left = panel("Its coefficients", "left")
    assert np.allclose(np.where(np.abs(left) > 1e-9, sums, 0), left, atol=1e-9)
    assert np.allclose(panel(kernels, "coefficients pruned"), idctn(left, norm="ortho"))
    lacking = panel(kernels, "what pruned coefficients lack")
    assert np.allclose(lacking + panel(kernels, "coefficients pruned"), chosen)
    patterns = shown["The patterns"].table.set_index(["down", "across"]).value
    first = idctn(np.eye(9)[1].reshape(3, 3), norm="ortho")  # of u = 0, v = 1: four columns to the right
    assert [[patterns[i, 4 + j] for j in range(3)] for i in range(3)] == pytest.approx(first)


def test_the_lab_of_domains_measures_what_the_method_makes(plain_model, tiny_data):
    shown = figures_of(SpatialOrFrequency(images=20, tilt=1.0), plain_model, tiny_data)
    table = shown["Loss by sparsity"].table.set_index(["way", "sparsity"])
    split = tiny_data.validation.take(slice(0, 20))
    after = pruned(plain_model, tiny_data, sparsity=0.8, tilt=1.0)
    accuracy, loss = measured(after, split.images, split.labels)
    assert table.loc[("tilt +1", 0.8), "accuracy"] == pytest.approx(accuracy)
    assert table.loc[("tilt +1", 0.8), "loss"] == pytest.approx(loss, abs=1e-4)
    swept = shown["Loss by tilt"].table.set_index("tilt")
    assert swept.loss[1.0] == pytest.approx(table.loc[("tilt +1", 0.8), "loss"], abs=1e-4)
    assert swept.loss[0.0] == pytest.approx(table.loc[("coefficients", 0.8), "loss"], abs=1e-4)


def test_the_lab_of_splicing_compares_masks_of_one_size(plain_model, tiny_data):
    shown = figures_of(PruneAndSplice(epochs=2, sparsity=0.9), plain_model, tiny_data)
    ends = shown["Masked so far"].table.groupby("masks").sparsity.last()
    assert ends["pruned once"] == pytest.approx(ends["pruned and spliced"], abs=1e-3)
    assert ends["gone is gone"] >= ends["pruned and spliced"]
    scores = shown["Accuracy"].table.set_index("network").accuracy
    assert scores["dense"] > 0.95
    assert list(scores.index) == ["dense", "gone is gone", "pruned and spliced", "pruned once"]
