"""Ranks and factors against known answers, scipy and slow loops; what low-rank layers owe a network."""

import copy
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from tiny import TinyResNet, vary
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from core import spectra
from core.bundles import MODELS, ModelBundle, Setting
from core.cost import cost
from core.coupling import groups
from core.diagnostics.rank_of_change import RankOfChange
from core.errors import ParameterError, UnsupportedModelError
from core.evaluation import evaluate
from core.factors import (
    CHANGE,
    WEIGHTS,
    change_factors,
    changed,
    dense_weight,
    enough,
    factorised,
    factorised_size,
    full_ranks,
    leading,
    matrix_factors,
    options,
    own_accuracy,
    ranks_by_budget,
    ranks_by_energy,
    ranks_by_ratio,
    shrinks,
    truncated,
    truncation_curves,
    tucker,
)
from core.labs.lstm_rows import LSTMRows
from core.labs.rank_of_training import CHANCE, MEASURED, RankOfTraining
from core.layers import apply_mask, bake, prunable
from core.methods.fine_tuning import FineTuning
from core.methods.low_rank import LowRank
from core.methods.prune_filters import PruneFilters
from core.methods.prune_weights import PruneWeights
from core.recipe import Recipe, compress
from core.run import Run, seeded
from core.tracing import trace
from core.weights import load_dataset, load_model, read_model, save_model
from core.whatif import WhatIf

S = np.array([4.0, 2.0, 1.0, 0.5])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def kernel_of_ranks(outputs: int, inputs: int, shape: tuple[int, ...]) -> torch.Tensor:
    """(O, I, kh, kw) that mixes `outputs` channels, each of which reads `inputs` mixtures."""
    core = random(outputs, inputs, *shape[2:])
    return torch.einsum("srhw,os,ir->oihw", core, random(shape[0], outputs), random(shape[1], inputs))


# -------------------------------------------------------------------------------------------- spectra


def test_four_singular_values_have_the_ranks_computed_by_hand():
    assert spectra.participation_ratio(S) == pytest.approx(1.6537, abs=1e-4)
    assert spectra.entropy_rank(S) == pytest.approx(3.1171, abs=1e-4)
    assert spectra.stable_rank(S) == pytest.approx(1.3281, abs=1e-4)
    assert spectra.energy_rank(S, 0.9) == 2
    assert spectra.truncation_errors(S) == pytest.approx([1, 0.4971, 0.2425, 0.1085, 0], abs=1e-4)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_equal_values_count_as_many_as_they_are_at_any_size(count, size):
    s = np.append(np.full(count, size), np.zeros(5))
    for measure in (spectra.participation_ratio, spectra.entropy_rank, spectra.stable_rank):
        assert measure(s) == pytest.approx(count)
    assert spectra.energy_rank(s, 1.0) == count


def test_a_matrix_of_zeros_has_no_rank_and_nothing_to_lose():
    zeros = np.zeros(4)
    for measure in (spectra.participation_ratio, spectra.entropy_rank, spectra.stable_rank):
        assert math.isnan(measure(zeros))
    assert spectra.energy_rank(zeros, 0.9) == 1
    assert (spectra.truncation_errors(zeros) == 0).all()


def test_singular_values_are_scipys():
    matrix = random(7, 12)
    assert spectra.singular_values(matrix) == pytest.approx(scipy.linalg.svdvals(matrix.numpy()), rel=1e-12)
    assert spectra.singular_values(matrix.float()).dtype == np.float64


@pytest.mark.parametrize(("rows", "columns"), [(200, 200), (100, 400), (128, 64)])
def test_the_participation_ratio_of_chance_is_that_of_random_matrices(rows, columns):
    found = [spectra.participation_ratio(spectra.singular_values(random(rows, columns))) for _ in range(3)]
    assert np.mean(found) == pytest.approx(spectra.random_participation(rows, columns), rel=0.02)


def test_truncation_errors_are_those_of_the_truncated_matrix_and_no_matrix_of_that_rank_is_nearer():
    matrix = random(9, 6)
    errors = spectra.truncation_errors(spectra.singular_values(matrix))
    assert (np.diff(errors) <= 0).all()
    for rank in range(7):
        nearest = truncated(matrix, rank)
        assert torch.linalg.matrix_rank(nearest) == rank
        assert (matrix - nearest).norm() / matrix.norm() == pytest.approx(errors[rank], abs=1e-12)
        for _ in range(20):  # the best matrix with random rows: least squares (Eckart and Young)
            rows = random(rank, 6)
            other = torch.linalg.lstsq(rows.T, matrix.T).solution.T @ rows
            assert (matrix - other).norm() >= (matrix - nearest).norm() - 1e-12


def test_unfoldings_have_a_row_for_every_output_or_input_channel():
    kernel = random(4, 3, 2, 5)
    for side, rows, index in (("output", 4, 0), ("input", 3, 1)):
        matrix = spectra.unfolding(kernel, side)
        assert matrix.shape == (rows, kernel.numel() // rows)
        for channel in range(rows):
            assert torch.equal(matrix[channel], kernel.select(index, channel).flatten())
    assert spectra.unfolding(random(4, 3), "input").shape == (3, 4)


def test_biases_broken_numbers_and_wrong_energies_are_refused():
    with pytest.raises(TypeError, match="at least 2 dimensions, got 1"):
        spectra.unfolding(random(4))
    with pytest.raises(ValueError, match="finite entries, got NaN"):
        spectra.singular_values(torch.tensor([[1.0, math.nan]]))
    for energy in (0.0, -1, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"energy must lie in \(0, 1\]"):
            spectra.energy_rank(S, energy)


# ------------------------------------------------------------------------------------- decompositions


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_factors_of_a_matrix_are_scipys_singular_vectors_with_the_values_shared_out(shape):
    matrix = random(*shape)
    u, s, v = scipy.linalg.svd(matrix.numpy(), full_matrices=False)
    for rank in range(min(shape) + 1):
        left, right = matrix_factors(matrix, rank)
        assert (left.shape, right.shape) == ((shape[0], rank), (rank, shape[1]))
        assert left @ right == pytest.approx(u[:, :rank] * s[:rank] @ v[:rank], abs=1e-12)
        assert left.norm(dim=0).square() == pytest.approx(s[:rank], abs=1e-12)  # columns of U sqrt(S)
        assert right.norm(dim=1).square() == pytest.approx(s[:rank], abs=1e-12)


def test_factors_of_a_matrix_of_lower_rank_are_finite():
    matrix = random(6, 2) @ random(2, 7)
    for part in matrix_factors(matrix, 5):
        assert part.isfinite().all()
    assert truncated(matrix, 5) == pytest.approx(matrix, abs=1e-12)
    assert not truncated(torch.zeros(3, 4), 2).any()


@pytest.mark.parametrize("rank", [-1, 6, 1.5, None])
def test_a_rank_that_a_matrix_cannot_have_is_refused(rank):
    with pytest.raises(ValueError, match=r"a rank must be a whole number in \[0, 5\], got"):
        matrix_factors(random(5, 9), rank)


def test_leading_directions_are_orthonormal_and_those_of_scipy():
    matrix = random(6, 20)
    found, expected = leading(matrix, 3), scipy.linalg.svd(matrix.numpy())[0][:, :3]
    assert found.T @ found == pytest.approx(torch.eye(3, dtype=torch.float64), abs=1e-12)
    assert (found @ found.T).numpy() == pytest.approx(expected @ expected.T, abs=1e-10)


def hosvd_error(kernel: np.ndarray, ranks: tuple[int, int]) -> float:
    """Squared error of the truncated HOSVD, step by step with scipy."""
    left = scipy.linalg.svd(kernel.reshape(len(kernel), -1))[0][:, : ranks[0]]
    right = scipy.linalg.svd(kernel.transpose(1, 0, 2, 3).reshape(kernel.shape[1], -1))[0][:, : ranks[1]]
    projected = np.einsum("oihw,op,ij->pjhw", kernel, left @ left.T, right @ right.T)
    return float(((kernel - projected) ** 2).sum())


def tucker_error(kernel: torch.Tensor, ranks: tuple[int, int], sweeps: int) -> float:
    left, core, right = tucker(kernel.flatten(2), ranks, sweeps)
    near = torch.einsum("srk,os,ir->oik", core, left, right).view_as(kernel)
    return (kernel - near).square().sum().item()


@pytest.mark.parametrize("ranks", [(2, 3), (8, 6), (16, 4), (5, 12)])
def test_sweeps_never_make_the_error_larger_and_it_stays_within_the_bounds(ranks):
    kernel = random(16, 12, 3, 3)
    hosvd = tucker_error(kernel, ranks, 0)
    assert hosvd == pytest.approx(hosvd_error(kernel.numpy(), ranks), rel=1e-9)
    errors = [hosvd, *(tucker_error(kernel, ranks, sweeps) for sweeps in (1, 2, 5, 20))]
    assert all(later <= sooner + 1e-9 for sooner, later in itertools.pairwise(errors))
    tails = [
        (spectra.singular_values(spectra.unfolding(kernel, side))[rank:] ** 2).sum()
        for side, rank in zip(("output", "input"), ranks, strict=True)
    ]
    for error in errors:
        assert max(tails) - 1e-9 <= error <= sum(tails) + 1e-9
    if ranks == (8, 6):
        assert errors[-1] < 0.99 * hosvd  # they do help


def test_a_kernel_built_with_ranks_2_and_3_is_recovered():
    kernel = kernel_of_ranks(2, 3, (8, 7, 3, 3))
    assert tucker_error(kernel, (2, 3), 10) <= 1e-24 * kernel.square().sum()
    assert tucker_error(kernel, (2, 2), 10) > 1e-3 * kernel.square().sum()
    assert ranks_by_energy(kernel, 1.0) == (2, 3)


# --------------------------------------------------------------------------------------------- ranks


def test_full_ranks_are_what_the_unfoldings_can_have():
    assert full_ranks((64, 3, 3, 3)) == (27, 3)
    assert full_ranks((3, 64, 3, 3)) == (3, 27)
    assert full_ranks((10, 64)) == full_ranks((10, 64, 1, 1)) == (10, 10)


@pytest.mark.parametrize(
    ("shape", "largest"), [((10, 64), 8), ((128, 64), 42), ((256, 784), 192), ((512, 512), 255)]
)
def test_a_matrix_shrinks_below_the_rank_at_which_its_factors_break_even(shape, largest):
    assert shrinks(shape, (largest, largest))
    assert not shrinks(shape, (largest + 1, largest + 1))


@pytest.mark.parametrize(
    ("ratio", "size", "times"), [(0.25, 1088, 8.47), (0.5, 3328, 2.77), (0.75, 6720, 1.37)]
)
def test_a_square_kernel_at_a_ratio_has_the_size_computed_by_hand(ratio, size, times):
    shape = (32, 32, 3, 3)
    assert factorised_size(shape, ranks_by_ratio(shape, ratio)) == size
    assert math.prod(shape) / size == pytest.approx(times, abs=0.005)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (6, 5, 1, 1), (8, 6, 3, 3), (12, 3, 3, 3), (4, 9, 5, 1)])
def test_the_options_are_sizes_and_errors_of_real_layers_best_ones_only(shape):
    weight = random(*shape)
    found = options(weight)
    assert (found.sizes[0], found.errors[0]) == (weight.numel(), 0)
    assert (np.diff(found.sizes) < 0).all()
    assert (np.diff(found.errors) > 0).all()
    for size, error, ranks in list(zip(found.sizes, found.errors, found.ranks.tolist(), strict=True))[1:]:
        layer = factorised(layer_with(weight), tuple(ranks))
        assert sum(p.numel() for n, p in layer.named_parameters() if n.endswith("weight")) == size
        lost = (dense_weight(layer) - weight).square().sum() / weight.square().sum()
        assert lost.item() == pytest.approx(error, abs=1e-9)
    prices = [found.price(a, b) for a, b in itertools.pairwise(found.path())]
    assert prices == sorted(prices)


def layer_with(weight: torch.Tensor) -> nn.Module:
    """A layer of the right kind in float64, without bias."""
    if weight.dim() == 2:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    else:
        kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.dim()]
        layer = kind(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def sizes_and_errors(layers, ranks):
    size, error = 0, 0.0
    for name, pair in ranks.items():
        at = layers[name].ranks.tolist().index(list(pair))
        size, error = size + layers[name].sizes[at], error + layers[name].errors[at]
    return size, error


def test_no_choice_of_ranks_of_that_size_has_a_smaller_error_than_the_budgets():
    """Against every combination, at budgets that whole steps meet, and closely at all others."""
    layers = {"a": options(random(6, 8)), "b": options(random(5, 4, 3, 3)), "c": options(random(9, 7))}
    every = [
        (sum(o.sizes[i] for o, i in zip(layers.values(), at, strict=True)),
         sum(o.errors[i] for o, i in zip(layers.values(), at, strict=True)))
        for at in itertools.product(*(range(len(o.sizes)) for o in layers.values()))
    ]  # fmt: skip
    smallest, whole = min(size for size, _ in every), every[0][0]
    excess = []
    for budget in range(smallest, whole + 1):
        size, error = sizes_and_errors(layers, ranks_by_budget(layers, budget))
        assert size <= budget
        excess.append(error - min(e for s, e in every if s <= budget))
    assert max(excess) < 0.12
    assert np.mean(excess) < 0.01
    for price in (0.004, 0.006, 0.008, 0.01, 0.015):  # the best at a price is the best of its size
        best = min(every, key=lambda pair: pair[1] + price * pair[0])
        assert smallest < best[0] < whole
        assert sizes_and_errors(layers, ranks_by_budget(layers, best[0])) == pytest.approx(best)


def test_a_budget_that_cannot_be_met_gives_the_smallest_form_of_every_layer():
    layers = {"a": options(random(6, 8)), "b": options(random(5, 4, 3, 3))}
    assert ranks_by_budget(layers, -1) == ranks_by_budget(layers, 0) == {"a": (1, 1), "b": (1, 1)}


# -------------------------------------------------------------------------------------------- layers

LAYERS = {
    "linear": (nn.Linear(9, 12), (9,)),
    "1x1 with stride": (nn.Conv2d(8, 6, 1, stride=2), (8, 9, 9)),
    "1x1 with padding": (nn.Conv2d(8, 6, 1, padding=1), (8, 5, 5)),
    "3x3 with stride": (nn.Conv2d(6, 10, 3, stride=2, padding=1), (6, 9, 9)),
    "dilated": (nn.Conv2d(6, 8, 3, padding=2, dilation=2, bias=False), (6, 9, 9)),
    "circular": (nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), (4, 7, 7)),
    "reflecting": (nn.Conv2d(4, 8, (3, 1), padding=(1, 0), padding_mode="reflect"), (4, 7, 7)),
    "same": (nn.Conv2d(5, 7, (3, 5), padding="same"), (5, 8, 8)),
    "few inputs": (nn.Conv2d(2, 20, 3, padding=1), (2, 7, 7)),
    "1d": (nn.Conv1d(6, 9, 5, padding=2), (6, 11)),
    "3d": (nn.Conv3d(4, 5, 3, padding=1), (4, 5, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_a_factorised_layer_computes_what_the_layer_with_its_product_as_weight_does(name, share):
    layer, shape = LAYERS[name]
    layer = copy.deepcopy(layer).double().eval().requires_grad_(False)
    inputs = random(3, *shape)
    small = factorised(layer, ranks_by_ratio(tuple(layer.weight.shape), share), sweeps=2)
    expected = copy.deepcopy(layer)
    expected.weight.data = dense_weight(small)
    assert small(inputs) == pytest.approx(expected(inputs), abs=1e-10)
    if share == 1.0:
        assert small(inputs) == pytest.approx(layer(inputs), abs=1e-10)
    assert not any(module.training for module in small.modules())
    assert [part.bias is not None for part in small] == [False] * (len(small) - 1) + [layer.bias is not None]


def test_at_the_ranks_that_a_kernel_has_nothing_changes_in_single_precision():
    layer = nn.Conv2d(7, 8, 3, padding=1)
    layer.weight.data = kernel_of_ranks(2, 3, (8, 7, 3, 3)).float()
    images = torch.randn(2, 7, 6, 6)
    small = factorised(layer, (2, 3), sweeps=3)
    assert [tuple(part.weight.shape) for part in small] == [(3, 7, 1, 1), (2, 3, 3, 3), (8, 2, 1, 1)]
    assert (small(images) - layer(images)).abs().max() < 1e-5 * layer(images).abs().max()
    assert {p.dtype for p in small.parameters()} == {torch.float32}


def test_what_cannot_be_factorised_is_refused():
    for layer in (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(4)):
        with pytest.raises(TypeError, match="convolutions with groups = 1"):
            factorised(layer, (1, 1))
    for ranks in ((0, 1), (1, 0), (9, 1), (1, 5)):
        with pytest.raises(ValueError, match=r"ranks must lie between 1 and \(8, 4\), got"):
            factorised(nn.Conv2d(4, 8, 3), ranks)


def test_only_layers_and_factorised_layers_have_a_weight():
    assert dense_weight(nn.ReLU()) is None
    assert dense_weight(nn.Sequential()) is None
    assert dense_weight(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))) is None
    twice = factorised(nn.Linear(12, 10), (6, 6))
    expected = dense_weight(twice)
    twice.expand = factorised(twice.expand, (6, 6))
    assert dense_weight(twice) == pytest.approx(expected, abs=1e-6)


def test_multiply_adds_of_factorised_layers_are_those_that_torch_counts(tiny_model, setting):
    for step in (LowRank(), LowRank(rule="ratio", ratio=0.3)):
        model = compress(tiny_model, setting, Recipe((step,))).model
        example = setting.train.images[:1]
        counter = FlopCounterMode(display=False)
        with counter:
            model(example)
        assert 2 * cost(model, example).macs == counter.get_total_flops()
        assert cost(model, example).macs < cost(tiny_model, example).macs


# -------------------------------------------------------------------------------------------- method


def weights(model: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in prunable(model).values())


def low_rank(model: nn.Module, setting: Setting, **parameters) -> nn.Module:
    return compress(model, setting, Recipe((LowRank(**parameters),))).model


def replaced(model: nn.Module, original: nn.Module) -> list[str]:
    return [name for name in prunable(original) if name not in prunable(model)]


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    """A residual network with layers worth factorising."""
    torch.manual_seed(0)
    return vary(TinyResNet(width=32)).eval().requires_grad_(False)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_the_share_that_was_asked_for_is_saved(sparsity, wide, setting):
    saved = 1 - weights(low_rank(wide, setting, sparsity=sparsity)) / weights(wide)
    assert sparsity <= saved < sparsity + 0.01


def test_nothing_is_saved_at_0_and_everything_has_rank_1_at_1(wide, setting):
    assert replaced(low_rank(wide, setting, sparsity=0.0), wide) == []
    model = low_rank(wide, setting, sparsity=1.0)
    for name in prunable(wide):
        for part, width in {"reduce": 0, "expand": 1}.items():
            assert model.get_submodule(f"{name}.{part}").weight.shape[width] == 1


@pytest.mark.parametrize(
    "parameters",
    [{"rule": "energy", "energy": e} for e in (0.01, 0.6, 0.9, 1.0)]
    + [{"rule": "ratio", "ratio": r} for r in (0.0, 0.3, 0.8, 1.0)]
    + [{"sparsity": s} for s in (0.02, 0.7)],
    ids=str,
)
def test_no_layer_ever_grows(parameters, wide, setting):
    model = low_rank(wide, setting, **parameters)
    for name in replaced(model, wide):
        assert weights(model.get_submodule(name)) < wide.get_submodule(name).weight.numel()


def test_rule_energy_takes_the_smallest_ranks_that_keep_the_share_of_every_unfolding(wide, setting):
    model = low_rank(wide, setting, rule="energy", energy=0.8)
    kernels = [name for name in replaced(model, wide) if wide.get_submodule(name).weight[0, 0].numel() > 1]
    assert kernels
    for name in kernels:
        weight, parts = wide.get_submodule(name).weight, dict(model.get_submodule(name).named_children())
        for side, part, width in (("output", "expand", 1), ("input", "reduce", 0)):
            if part not in parts:
                continue
            rank = parts[part].weight.shape[width]
            s2 = scipy.linalg.svdvals(spectra.unfolding(weight, side).double().numpy()) ** 2
            assert s2[: rank - 1].sum() < 0.8 * s2.sum() <= s2[:rank].sum() + 1e-9


def test_rule_ratio_takes_that_share_of_the_full_ranks(wide, setting):
    model = low_rank(wide, setting, rule="ratio", ratio=0.25)
    assert [tuple(part.weight.shape) for part in model.layer2[1].conv1] == [
        (16, 64, 1, 1),
        (16, 16, 3, 3),
        (64, 16, 1, 1),
    ]


def test_first_and_last_layers_are_left_and_layers_are_settled_by_hand(wide, setting):
    model = low_rank(
        wide, setting, sparsity=0.9, skip_first=True, skip_last=True, ranks={"layer1.0.conv1": 1}
    )
    assert {"conv1", "linear", "layer1.0.conv1"}.isdisjoint(replaced(model, wide))
    model = low_rank(wide, setting, sparsity=0.0, ranks={"layer1.0.conv1": 0.0, "linear": 0.25})
    assert replaced(model, wide) == ["layer1.0.conv1", "linear"]
    assert model.layer1[0].conv1.kernel.weight.shape == (1, 1, 3, 3)
    assert model.linear.reduce.weight.shape == (1, 64)
    saved = 1 - weights(low_rank(wide, setting, ranks={"layer2.1.conv1": 0.1})) / weights(wide)
    assert 0.5 <= saved < 0.51  # what was settled counts


def test_layers_that_are_not_there_or_have_no_factors_cannot_be_settled(tiny_model, setting):
    with pytest.raises(ParameterError, match="no layer is called 'layer9'"):
        low_rank(tiny_model, setting, ranks={"layer9": 0.5})
    tiny_model.layer1[0].conv1 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    with pytest.raises(ParameterError, match=r"low-rank: ranks: layer1\.0\.conv1 must be .*, got another"):
        low_rank(tiny_model, setting, ranks={"layer1.0.conv1": 0.5})


def test_grouped_layers_stay(setting):
    model = MODELS["mobilenetv2"](width=0.25).build((3, 32, 32), 4).eval()
    small = low_rank(model, setting, sparsity=0.9)
    grouped = {name for name, layer in prunable(model).items() if getattr(layer, "groups", 1) > 1}
    assert grouped
    assert grouped.isdisjoint(replaced(small, model))
    assert small(setting.train.images[:2]).isfinite().all()


class Awkward(nn.Module):
    """Two layers that share a weight, one layer under two names, one whose weight alone is read."""

    def __init__(self) -> None:
        super().__init__()
        self.tied, self.partner, self.twice = (nn.Linear(20, 20) for _ in range(3))
        self.partner.weight = self.tied.weight
        self.again = self.twice
        self.read = nn.Linear(20, 20)
        self.attention = nn.MultiheadAttention(20, 2, batch_first=True)
        self.plain = nn.Linear(20, 20)

    def forward(self, images):
        x = images.flatten(1)[:, :20]
        x = self.partner(self.tied(x)) + self.again(self.twice(x)) + F.linear(x, self.read.weight)
        x = x + self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]
        return self.plain(x)[:, :4]


def test_layers_whose_weights_others_read_stay(setting):
    model = Awkward().eval()
    small = low_rank(model, setting, sparsity=0.99)
    assert replaced(small, model) == ["plain"]
    assert small(setting.train.images[:2]).shape == (2, 4)


def test_a_network_without_layers_is_refused(setting):
    with pytest.raises(UnsupportedModelError, match="no convolution or linear layer"):
        low_rank(nn.Sequential(nn.Flatten(), nn.ReLU()), setting)


def test_masks_stay_in_the_layers_that_stay_and_end_in_the_others(wide, setting):
    steps = (PruneWeights(sparsity=0.5), LowRank(sparsity=0.3), FineTuning(epochs=1))
    model = compress(wide, setting, Recipe(steps)).model
    changed_layers = replaced(model, wide)
    assert changed_layers
    for name, layer in prunable(model).items():
        part_of = any(name.startswith(f"{home}.") for home in changed_layers)
        assert ((layer.weight == 0).float().mean() > 0.1) != part_of, name


def test_filters_can_be_pruned_before_and_after_and_the_ranks_with_them(wide, setting):
    example = setting.train.images[:1]
    model = low_rank(wide, setting, rule="ratio", ratio=0.25)
    found = {group.name: group.width for group in groups(model, example)}
    assert found["layer2.1.conv1.reduce"] == found["layer2.1.conv1.kernel"] == 16  # ranks are channels, too
    both = {}
    for steps in ((LowRank(), PruneFilters()), (PruneFilters(), LowRank())):
        network = compress(wide, setting, Recipe(steps)).model
        both[steps[0].name] = cost(network, example).macs
        assert network(setting.train.images).isfinite().all()
    assert max(both.values()) < 0.5 * cost(wide, example).macs


def test_the_live_engine_and_torch_fx_give_the_factorised_networks_logits(wide, tiny_data, setting):
    model = low_rank(wide, setting, rule="ratio", ratio=0.5)
    expected = model(tiny_data.test.images)
    assert torch.equal(trace(model)(tiny_data.test.images), expected)
    bundle = ModelBundle(model, MODELS["small-cnn"](), "quadrants")
    live = WhatIf(bundle, tiny_data, tiny_data.test, precisions=(torch.float32,))
    assert "layer2.1.conv1.kernel" in prunable(model)
    assert (live.original.logits - expected).abs().max() <= 1e-4
    plan = live.preset("uniform", "remove", sparsity=0.5)
    pruned = compress(model, setting, plan.recipe()).model
    assert (live.exact(plan).logits - pruned(tiny_data.test.images)).abs().max() <= 1e-4


def test_a_factorised_network_is_saved_and_read_again(tmp_path):
    data = load_dataset("digits")
    torch.manual_seed(0)
    architecture = MODELS["resnet20"]()
    model = architecture.build(data.shape, 10).eval()
    small = low_rank(model, Setting(data.train, data.validation, model), rule="ratio", ratio=0.4)
    save_model(small, tmp_path / "small.safetensors", architecture, data, {})
    again = read_model(tmp_path / "small.safetensors").module
    images = data.test.images[:20]
    assert torch.equal(again(images), small(images))
    assert replaced(again, model) == replaced(small, model) != []


def test_the_figures_say_what_became_of_ranks_weights_and_multiply_adds(wide, setting):
    result = compress(wide, setting, Recipe((LowRank(sparsity=0.6),)), figures=True)
    shown = {figure.title: figure for figure in result.figures[0]}
    example, model = setting.train.images[:1], result.model
    for title, column, before, after in (
        ("Weights by layer", "weights", weights(wide), weights(model)),
        ("Multiply-adds by layer", "multiply_adds", cost(wide, example).macs, cost(model, example).macs),
    ):
        sums = shown[title].table.groupby("network")[column].sum()
        assert (sums["before"], sums["after"]) == (before, after)
        assert f"{before:,}" in shown[title].finding
        assert f"{after:,}" in shown[title].finding
    errors = shown["What truncation lost"].table.set_index("layer").error
    assert set(errors.index) == set(replaced(model, wide))
    for name, error in errors.items():
        weight = wide.get_submodule(name).weight
        lost = dense_weight(model.get_submodule(name)) - weight
        assert error == pytest.approx((lost.norm() / weight.norm()).item(), rel=1e-5)
    kept = shown["Ranks that are kept"].table.set_index(["layer", "side"])["rank"]
    name = errors.index[0]
    assert kept[name, "outputs of a kernel"] == dense_rank(model.get_submodule(name))


def dense_rank(layer: nn.Module) -> int:
    return int(torch.linalg.matrix_rank(spectra.unfolding(dense_weight(layer)), rtol=1e-5))


def test_half_of_a_trained_network_can_be_saved_and_few_points_are_lost():
    """The perceptron on digits, whose second layer is mostly what its random start left."""
    bundle, data = load_model("mlp", "digits"), load_dataset("digits")
    setting = Setting(data.train, data.validation, bundle.module)
    small = low_rank(bundle.module, setting, sparsity=0.5)
    before, after = evaluate(bundle.module, data.test), evaluate(small, data.test)
    assert after.macs <= 0.5 * before.macs
    assert after.accuracy >= before.accuracy - 0.02


# --------------------------------------------------------------------------------- what training changes


def batch(count: int, inputs: int = 30, classes: int = 10):
    return torch.randn(count, inputs), torch.randint(classes, (count,))


def rank_of(change: torch.Tensor) -> int:
    s = spectra.singular_values(change)
    return int((s > 1e-4 * s[0]).sum())


def test_one_step_of_gradient_descent_on_four_pictures_has_rank_four():
    layer = nn.Linear(30, 20)
    before = layer.weight.detach().clone()
    images, labels = batch(4)
    F.cross_entropy(layer(images), labels).backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert rank_of(layer.weight.detach() - before) == 4


def trained(make, steps: int = 30) -> torch.Tensor:
    """The change of a last layer of ten classes after a few steps with an optimiser."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 10)).double()
    before = network[2].weight.detach().clone()
    optimizer = make(network.parameters())
    for _ in range(steps):
        images, labels = batch(64)
        loss = F.cross_entropy(network(images.double()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network[2].weight.detach() - before


def test_the_last_layer_moves_in_at_most_one_direction_less_than_there_are_classes():
    assert rank_of(trained(lambda p: torch.optim.SGD(p, lr=0.1))) == 9
    assert rank_of(trained(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))) == 9


def test_adam_and_weight_decay_break_that_bound():
    assert rank_of(trained(lambda p: torch.optim.Adam(p, lr=0.01))) == 10
    assert rank_of(trained(lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01))) == 10


def test_a_whole_stored_change_is_the_trained_network_and_none_of_it_the_first():
    before, after = random(6, 9), random(6, 9)
    assert changed(before, change_factors(before, after, 6)) == pytest.approx(after, abs=1e-12)
    assert torch.equal(changed(before, change_factors(before, after, 0)), before)
    assert sum(part.numel() for part in change_factors(before, after, 2)) == 2 * (6 + 9)
    with pytest.raises(ValueError, match=r"equal shapes, got \(6, 9\) and \(9, 6\)"):
        change_factors(before, after.T, 1)


def test_a_stored_change_fills_the_zeros_of_pruning_unless_the_mask_is_put_back():
    keep = torch.rand(12, 10) > 0.5
    before, after = random(12, 10) * keep, random(12, 10) * keep
    factors = change_factors(before, after, 2)
    assert (changed(before, factors) != 0).all()
    assert torch.equal(changed(before, factors, keep) != 0, keep)


def test_truncation_curves_end_at_the_trained_weights_and_begin_at_the_first_ones_or_nothing():
    before, after = random(6, 9), random(6, 9)
    asked = []
    table = truncation_curves(before, after, lambda weight: asked.append(weight) or weight.norm().item())
    forms = {(what, rank): w for what, rank, w in zip(table.what, table["rank"], asked, strict=True)}
    assert sorted(set(table["rank"])) == [0, 1, 2, 3, 4, 6]
    assert torch.equal(forms[CHANGE, 0], before)
    assert not forms[WEIGHTS, 0].any()
    for what in (CHANGE, WEIGHTS):
        assert forms[what, 6] == pytest.approx(after, abs=1e-12)
    assert own_accuracy(table) == pytest.approx(after.norm().item())


def test_enough_is_the_first_rank_within_a_point_of_the_networks_own_accuracy():
    accuracies = {CHANGE: [0.2, 0.6, 0.891, 0.88, 0.9], WEIGHTS: [0.1, 0.2, 0.5, 0.889, 0.9]}
    table = pd.concat(
        pd.DataFrame({"what": what, "rank": [0, 1, 2, 3, 4], "accuracy": values})
        for what, values in accuracies.items()
    )
    assert enough(table) == {CHANGE: 2, WEIGHTS: 4}


# -------------------------------------------------------------------------------------- rank of change


def measure(before, after, **parameters):
    with seeded(0):
        return RankOfChange(**parameters).measure(before, after, None, Run()).set_index(["layer", "part"])


def test_a_change_of_rank_one_is_measured_as_such_and_what_stayed_has_no_rank(tiny_model):
    after = copy.deepcopy(tiny_model)
    kernel = after.layer1[0].conv1.weight
    kernel += torch.einsum("o,ihw->oihw", torch.randn(8), torch.randn(8, 3, 3))
    table = measure(tiny_model, after)
    row = table.loc["layer1.0.conv1", "kept"]
    for column in ("participation_ratio", "entropy_rank", "stable_rank", "rank_90"):
        assert row[column] == pytest.approx(1, abs=1e-3)
    assert row.random_participation_ratio == pytest.approx(8 * 72 / 80)
    difference = kernel - tiny_model.layer1[0].conv1.weight
    assert row.change == pytest.approx(
        (difference.norm() / tiny_model.layer1[0].conv1.weight.norm()).item(), rel=1e-5
    )
    others = table.drop("layer1.0.conv1")
    assert (others.change == 0).all()
    assert others.participation_ratio.isna().all()
    assert measure(tiny_model, after, matrix="input").loc["layer1.0.conv1", "kept"].participation_ratio > 2


def test_pruned_and_trained_weights_are_two_changes_that_add_up(tiny_model, setting):
    after = compress(tiny_model, setting, Recipe((PruneWeights(sparsity=0.8), FineTuning(epochs=2)))).model
    table = measure(tiny_model, after)
    for name, layer in prunable(tiny_model).items():
        old, new = layer.weight.double(), after.get_submodule(name).weight.double()
        mask = new != 0
        expected = {"zeroed": (mask.double() - 1) * old, "kept": new - mask * old}
        for part, change in expected.items():
            s = scipy.linalg.svdvals(change.flatten(1).numpy())
            assert table.loc[name, part].participation_ratio == pytest.approx(
                (s**2).sum() ** 2 / (s**4).sum()
            )
            assert table.loc[name, part].change == pytest.approx(change.norm().item() / old.norm().item())


def test_pruning_a_trained_network_looks_like_chance_and_tuning_it_does_not():
    bundle, data = load_model("mlp", "digits"), load_dataset("digits")
    setting = Setting(data.train, data.validation, bundle.module)
    steps = (PruneWeights(sparsity=0.8), FineTuning(epochs=10, crop=0))
    table = measure(bundle.module, compress(bundle.module, setting, Recipe(steps)).model).loc["linear1"]
    share = table.participation_ratio / table.random_participation_ratio
    assert share["zeroed"] > 0.9
    assert share["kept"] < 0.5


def test_a_factorised_layer_counts_as_its_product_and_lost_layers_have_no_numbers(tiny_model, setting):
    after = low_rank(tiny_model, setting, rule="ratio", ratio=0.5)
    table = measure(tiny_model, after)
    name = replaced(after, tiny_model)[0]
    lost = dense_weight(after.get_submodule(name)) - tiny_model.get_submodule(name).weight
    s = scipy.linalg.svdvals(lost.flatten(1).double().numpy())
    assert table.loc[name, "kept"].stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-6)
    after.layer2[1], after.linear = nn.Identity(), nn.Linear(16, 7)
    table = measure(tiny_model, after)
    for name in ("layer2.1.conv1", "linear"):
        assert table.loc[name, "kept"].isna().all()


def test_masked_networks_are_read_as_plain_ones(tiny_model):
    masked = copy.deepcopy(tiny_model)
    for layer in prunable(masked).values():
        apply_mask(layer, layer.weight > 0)
    assert measure(tiny_model, masked).equals(measure(tiny_model, bake(copy.deepcopy(masked))))


# ---------------------------------------------------------------------------------------------- labs


def lab_figures(lab):
    with seeded(0):
        return {figure.title: figure.table for figure in lab.figures(None, Run())}


def curve(table, what, rank):
    return table.set_index(["what", "rank"]).accuracy[what, rank]


def test_training_a_perceptron_changes_it_in_few_directions_that_carry_its_accuracy():
    shown = lab_figures(RankOfTraining(seeds=2))
    ratios = shown["Participation ratio, beside chance"]
    first = ratios[ratios.layer == "first layer"].pivot(index="matrix", columns="which", values="ratio")
    share = first[MEASURED] / first[CHANCE]
    assert share["trained - W0"] < 0.4
    assert share["W0"] == pytest.approx(1, abs=0.05)
    assert share["what pruning took"] > 0.9
    assert share["tuned after pruning"] < 0.5
    table = shown["Accuracy with truncated change and truncated weights"]
    assert curve(table, CHANGE, 64) > 0.95
    for rank in (4, 8):
        assert curve(table, CHANGE, rank) > curve(table, WEIGHTS, rank)
    assert curve(table, CHANGE, 1) < curve(table, CHANGE, 0)  # the curve need not rise everywhere


@pytest.mark.slow
def test_the_recurrent_weights_of_an_lstm_change_in_few_directions_too():
    shown = lab_figures(LSTMRows())
    spectrum = shown["Spectra of the recurrent weights"].pivot(
        index="number", columns="matrix", values="value"
    )
    ratio = {name: spectra.participation_ratio(s.to_numpy()) for name, s in spectrum.items()}
    assert ratio["W - W0"] < 0.1 * ratio["W0, before"]
    table = shown["Accuracy with truncated change and truncated weights"]
    assert curve(table, CHANGE, 64) > 0.7
    assert enough(table)[CHANGE] <= 24 < enough(table)[WEIGHTS]
