"""Layers as products of smaller ones: matrices by their singular vectors, convolutions by Tucker-2.

A weight is (O, I, ...). Of a linear layer or a 1x1 convolution it is a matrix, and its ranks are one
number twice, (R, R). Of a larger kernel the ranks are (Ro, Ri): the output channels are mixed from
Ro, and the input channels to Ri; a side at its full width needs no layer of its own.

Source: De Lathauwer, De Moor and Vandewalle, "On the Best Rank-1 and Rank-(R1, R2, ..., RN)
Approximation of Higher-Order Tensors", SIAM J. Matrix Anal. Appl. 2000 (HOSVD, HOOI); Kim et al.,
"Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
ICLR 2016, arXiv:1511.06530 (Tucker-2 as three convolutions).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.layers import PRUNABLE
from core.spectra import energy_rank, singular_values, unfolding

Ranks = tuple[int, int]
Shape = tuple[int, ...]

PARTS = ("reduce", "kernel", "expand")  # the layers that a factorised one consists of, in order
CONVERGED = 1e-9  # gain in kept energy below which HOOI stops
CHANGE, WEIGHTS = "change truncated", "weights truncated"
TRIED = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # ranks of a curve
NEAR = 0.01  # of an accuracy


# --------------------------------------------------------------------------------- decompositions


def leading(matrix: Tensor, rank: int) -> Tensor:
    """(m, rank) orthonormal: the left singular vectors of the largest singular values of (m, n).

    They come from the eigenvectors of matrix matrix^T, which is cheap for wide matrices. Singular
    values below 1e-8 of the first cannot be told apart this way; no projection feels them.

    Raises:
        ValueError: `rank` is no whole number in [0, m].
    """
    if not isinstance(rank, int | np.integer) or not 0 <= rank <= len(matrix):
        raise ValueError(f"a rank must be a whole number in [0, {len(matrix)}], got {rank!r}")
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]


def matrix_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(m, r) and (r, n), float64: U sqrt(S) and sqrt(S) V^T, whose product is the best of rank r.

    Raises:
        ValueError: `rank` is no whole number in [0, min(m, n)].
    """
    if len(matrix) > matrix.shape[1]:
        left, right = matrix_factors(matrix.T, rank)
        return right.T, left.T
    matrix = matrix.double()
    basis = leading(matrix, rank)
    rows = basis.T @ matrix  # their norms are the singular values
    scale = rows.norm(dim=1, keepdim=True).sqrt()
    return basis * scale.T, rows / scale.where(scale > 0, 1.0)


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The matrix (m, n) of rank `rank` nearest to `matrix`, float64."""
    left, right = matrix_factors(matrix, rank)
    return left @ right


def tucker(kernel: Tensor, ranks: Ranks, sweeps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(O, Ro), (Ro, Ri, K) and (I, Ri), float64, of a kernel (O, I, K): kernel ~ core x_O left x_I right.

    HOSVD, then up to `sweeps` sweeps of HOOI, none of which makes the error larger.

    Raises:
        ValueError: a rank does not lie between 0 and its channels.
    """
    kernel = kernel.double()
    left, right = leading(unfolding(kernel), ranks[0]), leading(unfolding(kernel, "input"), ranks[1])
    core = _core(kernel, left, right)
    total = kernel.square().sum()
    for _ in range(sweeps):
        kept = core.square().sum()
        left = leading(torch.einsum("oik,ir->ork", kernel, right).flatten(1), ranks[0])
        right = leading(torch.einsum("oik,os->isk", kernel, left).flatten(1), ranks[1])
        core = _core(kernel, left, right)
        if core.square().sum() - kept <= CONVERGED * total:
            break
    return left, core, right


def _core(kernel: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("oik,os,ir->srk", kernel, left, right)


# ------------------------------------------------------------------------------- changes of weights


def change_factors(before: Tensor, after: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(m, r) and (r, n): the change from `before` to `after` (m, n) in r (m + n) numbers.

    Raises:
        ValueError: the shapes differ, or the rank is out of range.
    """
    if before.shape != after.shape:
        raise ValueError(f"a change needs equal shapes, got {tuple(before.shape)} and {tuple(after.shape)}")
    return matrix_factors(after.double() - before.double(), rank)


def changed(before: Tensor, factors: tuple[Tensor, Tensor], keep: Tensor | None = None) -> Tensor:
    """`before` (m, n) with a stored change added, float64; zero where `keep` is False.

    A sum of outer products fills every zero that pruning made, so a pruned variant needs its mask.
    """
    after = before.double() + factors[0] @ factors[1]
    return after if keep is None else after * keep


def truncation_curves(before: Tensor, after: Tensor, accuracy: Callable[[Tensor], float]) -> pd.DataFrame:
    """What, rank, accuracy: of a network with the weights (m, n) truncated to rank 0 ... min(m, n).

    Either `before` keeps its place and the best rank-r part of the change is added, zeros of
    `before` staying zeros; or it is the best rank-r part of `after`. `accuracy` judges the weights.
    """
    full = min(after.shape)
    rows = []
    for rank in sorted({*(rank for rank in TRIED if rank < full), full}):
        forms = {
            CHANGE: changed(before, change_factors(before, after, rank), before != 0),
            WEIGHTS: truncated(after, rank),
        }
        rows += [{"what": what, "rank": rank, "accuracy": accuracy(form)} for what, form in forms.items()]
    return pd.DataFrame(rows)


def averaged(curves: pd.DataFrame) -> pd.DataFrame:
    """Several networks' `truncation_curves`: mean, lowest and highest accuracy."""
    by = curves.groupby(["what", "rank"], as_index=False).accuracy
    return by.agg(accuracy="mean", lowest="min", highest="max")


def enough(curves: pd.DataFrame) -> dict[str, int]:
    """What -> the smallest rank whose accuracy is within a point of the network's own."""
    own = own_accuracy(curves)
    return curves[curves.accuracy >= own - NEAR].groupby("what")["rank"].min().to_dict()


def own_accuracy(curves: pd.DataFrame) -> float:
    """Of the network as it is: with its whole change."""
    return curves[curves.what == CHANGE].set_index("rank").accuracy.sort_index().iloc[-1]


# -------------------------------------------------------------------------------------------- ranks


def is_matrix(shape: Shape) -> bool:
    """Of a linear layer or a 1x1 convolution?"""
    return math.prod(shape[2:]) == 1


def full_ranks(shape: Shape) -> Ranks:
    """The largest ranks that a weight of this shape can have."""
    outputs, inputs, positions = shape[0], shape[1], math.prod(shape[2:])
    if is_matrix(shape):
        return (min(outputs, inputs),) * 2
    return min(outputs, inputs * positions), min(inputs, outputs * positions)


def factorised_size(shape: Shape, ranks: Ranks) -> int:
    """Weights of a layer of this shape once it is factorised."""
    outputs, inputs, positions = shape[0], shape[1], math.prod(shape[2:])
    if is_matrix(shape):
        return ranks[0] * (outputs + inputs)
    mixers = inputs * ranks[1] * (ranks[1] < inputs) + outputs * ranks[0] * (ranks[0] < outputs)
    return positions * ranks[0] * ranks[1] + mixers


def shrinks(shape: Shape, ranks: Ranks) -> bool:
    """Does a layer of this shape have fewer weights once it is factorised?"""
    return factorised_size(shape, ranks) < math.prod(shape)


def ranks_by_energy(weight: Tensor, energy: float) -> Ranks:
    """The smallest ranks that keep the share `energy` of the squared norm, in each unfolding by itself."""
    sides = ("output", "output") if is_matrix(weight.shape) else ("output", "input")
    ranks = tuple(energy_rank(singular_values(unfolding(weight, side)), energy) for side in sides)
    return _attainable(weight.shape, ranks)


def ranks_by_ratio(shape: Shape, ratio: float) -> Ranks:
    """The share `ratio` of the full ranks, at least 1."""
    ranks = tuple(max(1, round(ratio * full)) for full in full_ranks(shape))
    return _attainable(shape, ranks)


def _attainable(shape: Shape, ranks: Ranks) -> Ranks:
    """Neither rank above what the other one, times the kernel's positions, can fill."""
    if is_matrix(shape):
        return ranks
    positions = math.prod(shape[2:])
    outputs = min(ranks[0], ranks[1] * positions)
    return outputs, min(ranks[1], outputs * positions)


@dataclass(frozen=True, eq=False)
class Options:
    """What a layer can become: itself first, then ever smaller forms with ever larger errors."""

    sizes: np.ndarray  # (K,) weights, falling
    errors: np.ndarray  # (K,) share of the squared norm that is lost, rising
    ranks: np.ndarray  # (K, 2); of the layer itself: the full ones

    def path(self) -> list[int]:
        """The lower convex hull: the options that are best at some price of a weight."""
        path: list[int] = []
        for index in range(len(self.sizes)):
            while len(path) > 1 and self.price(path[-2], path[-1]) >= self.price(path[-1], index):
                path.pop()
            path.append(index)
        return path

    def price(self, before: int, after: int) -> float:
        """Error added by every weight that is saved on the way from one option to the other."""
        return (self.errors[after] - self.errors[before]) / (self.sizes[before] - self.sizes[after])


def options(weight: Tensor) -> Options:
    """Every useful choice of ranks for `weight`, with the error of HOSVD (exact for matrices)."""
    shape, full = tuple(weight.shape), full_ranks(tuple(weight.shape))
    if is_matrix(shape):
        energies = singular_values(unfolding(weight)) ** 2
        ranks = np.repeat(np.arange(1, len(energies) + 1)[:, None], 2, axis=1)
        kept = np.cumsum(energies)
    else:
        kernel = weight.detach().double().cpu().flatten(2)
        left, right = leading(unfolding(kernel), full[0]), leading(unfolding(kernel, "input"), full[1])
        energies = _core(kernel, left, right).square().sum(2).numpy()
        ranks = np.indices(full).reshape(2, -1).T + 1
        kept = energies.cumsum(0).cumsum(1).flatten()
    errors = np.maximum(1 - kept / kept[-1], 0.0) if kept[-1] else np.zeros(len(kept))
    whole, sizes, positions = math.prod(shape), factorised_size(shape, ranks.T), math.prod(shape[2:])
    fills = (ranks[:, 0] <= ranks[:, 1] * positions) & (ranks[:, 1] <= ranks[:, 0] * positions)
    order = np.lexsort((errors, sizes))  # small to large
    order = order[(fills & (sizes < whole))[order]]
    least = np.minimum.accumulate(np.append(np.inf, errors[order]))[:-1]
    order = order[errors[order] < least][::-1]  # those that no smaller form beats
    return Options(
        np.append(whole, sizes[order]), np.append(0.0, errors[order]), np.vstack([full, ranks[order]])
    )


def ranks_by_budget(layers: Mapping[str, Options], budget: int) -> dict[str, Ranks]:
    """The ranks with which `layers` have at most `budget` weights together, at the least sum of errors.

    Every layer walks along its convex hull, whichever step adds the least error per weight saved
    first; of the last step only as much is taken as is needed. A budget that cannot be met gives
    the smallest form of every layer.
    """
    steps = [
        (options.price(before, after), name, before, after)
        for name, options in layers.items()
        for before, after in zip(options.path(), options.path()[1:], strict=False)
    ]
    at = dict.fromkeys(layers, 0)
    size = sum(int(options.sizes[0]) for options in layers.values())
    for _, name, before, after in sorted(steps, key=lambda step: step[0]):
        if size <= budget:
            break
        sizes = layers[name].sizes
        others = size - int(sizes[before])
        enough = np.flatnonzero(sizes <= budget - others)
        at[name] = min(after, int(enough[0])) if len(enough) else after
        size = others + int(sizes[at[name]])
    return {name: tuple(map(int, options.ranks[at[name]])) for name, options in layers.items()}


# ------------------------------------------------------------------------------------------- layers


def factorisable(layer: nn.Module) -> bool:
    """A linear layer, or a convolution in which every output reads every input?"""
    kind = _kind(layer)
    return kind is nn.Linear or (kind in PRUNABLE and layer.groups == 1)


def factorised(layer: nn.Module, ranks: Ranks, sweeps: int = 0) -> nn.Sequential:
    """`layer` as a sequence of smaller ones, in its precision and on its device, the bias on the last.

    A matrix becomes `reduce` and `expand`; a kernel becomes `reduce` (1x1, I to Ri), `kernel` (Ri to
    Ro, with the stride, padding and dilation of the layer) and `expand` (1x1, Ro to O).

    Raises:
        TypeError: it is no linear layer and no ungrouped convolution.
        ValueError: a rank does not lie between 1 and its full value.
    """
    if not factorisable(layer):
        raise TypeError(f"only linear layers and convolutions with groups = 1 have factors, got {layer}")
    shape, bias = tuple(layer.weight.shape), layer.bias
    for rank, full in zip(ranks, full_ranks(shape), strict=True):
        if not 1 <= rank <= full:
            raise ValueError(f"ranks must lie between 1 and {full_ranks(shape)}, got {ranks}")
    weights = _weights(layer.weight.detach(), ranks, sweeps)
    parts = OrderedDict()
    for name in (part for part in PARTS if part in weights):
        carries = name == "kernel" or (name == "reduce" and "kernel" not in weights)
        parts[name] = _part(layer, weights[name], bias if name == list(weights)[-1] else None, carries)
    return nn.Sequential(parts).train(layer.training)


def _weights(weight: Tensor, ranks: Ranks, sweeps: int) -> dict[str, Tensor]:
    """The weights of the parts, in the order of `PARTS`; each has as many dimensions as `weight`."""
    points = (1,) * (weight.dim() - 2)
    if is_matrix(weight.shape):
        left, right = matrix_factors(weight.flatten(1), ranks[0])
        return {"reduce": right.reshape(*right.shape, *points), "expand": left.reshape(*left.shape, *points)}
    left, core, right = tucker(weight.flatten(2), ranks, sweeps)
    parts = {"reduce": right.T, "kernel": core, "expand": left}
    if ranks[0] == weight.shape[0]:
        parts["kernel"] = torch.einsum("srk,os->ork", parts["kernel"], parts.pop("expand"))
    if ranks[1] == weight.shape[1]:
        parts["kernel"] = torch.einsum("srk,ri->sik", parts["kernel"], parts.pop("reduce"))
    parts["kernel"] = parts["kernel"].unflatten(2, weight.shape[2:])
    return {
        name: part if name == "kernel" else part.reshape(*part.shape, *points) for name, part in parts.items()
    }


def _part(layer: nn.Module, weight: Tensor, bias: Tensor | None, carries: bool) -> nn.Module:
    """A layer of the kind of `layer` with this weight; `carries`: with its stride, padding and dilation."""
    kind, (outputs, inputs) = _kind(layer), weight.shape[:2]
    if kind is nn.Linear:
        part = nn.Linear(inputs, outputs, bias is not None, device="meta")
    else:
        geometry = ("stride", "padding", "dilation", "padding_mode") if carries else ()
        part = kind(
            inputs,
            outputs,
            tuple(weight.shape[2:]),
            bias=bias is not None,
            device="meta",
            **{name: getattr(layer, name) for name in geometry},
        )
    trained = any(parameter.requires_grad for parameter in layer.parameters())
    part.weight = nn.Parameter(weight.to(layer.weight).contiguous(), trained)
    if bias is not None:
        part.bias = nn.Parameter(bias.detach().clone(), trained)
    return part


def dense_weight(layer: nn.Module) -> Tensor | None:
    """The weight (O, I, ...) of a layer, or the one that a factorised layer amounts to; None of others."""
    if isinstance(layer, PRUNABLE):
        return layer.weight.detach()
    parts = dict(layer.named_children()) if type(layer) is nn.Sequential else {}
    known = list(parts) == [name for name in PARTS if name in parts]
    if not known or not ("kernel" in parts or len(parts) == 2):
        return None
    weights = {name: dense_weight(part) for name, part in parts.items()}
    if any(weight is None for weight in weights.values()):
        return None
    mixers = {name: weights[name].double().flatten(1) for name in ("reduce", "expand") if name in weights}
    if "kernel" not in weights:
        shape = weights["expand"].shape[:1] + weights["reduce"].shape[1:]
        return (mixers["expand"] @ mixers["reduce"]).reshape(shape)
    weight = weights["kernel"].double()
    if "reduce" in mixers:
        weight = torch.einsum("sr...,ri->si...", weight, mixers["reduce"])
    if "expand" in mixers:
        weight = torch.einsum("si...,os->oi...", weight, mixers["expand"])
    return weight


def _kind(layer: nn.Module) -> type[nn.Module]:
    """The class of `layer`, masked or not."""
    return type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)
