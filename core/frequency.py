"""Kernels as sums of cosine patterns: the transform, its bands, and masks that hold or move coefficients.

A kernel of k x k numbers is as well described by its k x k coefficients in the discrete cosine
transform (DCT-II), and most of a smooth kernel lies in few of them. The transform is orthonormal:
it loses nothing, energies stay, gradients are transformed alike. Source: Ahmed, Natarajan and Rao,
"Discrete Cosine Transform", IEEE Transactions on Computers C-23, 1974.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.cost import output_positions, zipped_size
from core.criterion import Ranking
from core.errors import UnsupportedModelError
from core.figure import Figure
from core.layers import private_copy, prunable, require_prunable

DOMAINS = ("frequency", "spatial")
PANELS = 6  # sizes of kernels that a figure shows


# ------------------------------------------------------------------------------------ the transform


@dataclass(frozen=True, eq=False)
class Basis:
    """The patterns that a kernel of K numbers is written in: one orthonormal row each."""

    matrix: Tensor  # (K, K) float64
    band: Tensor  # (K,) int64, sum of a pattern's frequencies along the axes; all 0 in the spatial domain

    @property
    def bands(self) -> int:
        return int(self.band.max()) + 1

    @property
    def place(self) -> Tensor:
        """(K,) float64 where in (0, 1) the band of each coefficient lies: the lowest first."""
        return (self.band.double() + 0.5) / self.bands

    def coefficients(self, weight: Tensor) -> Tensor:
        """Weights (O, I, ...) as coefficients of the same shape and type."""
        return _turn(weight, self.matrix.T)

    def weights(self, coefficients: Tensor) -> Tensor:
        """The inverse of `coefficients`."""
        return _turn(coefficients, self.matrix)


def kernel_of(weight: Tensor) -> tuple[int, ...]:
    """Sides of the kernels of a weight (O, I, ...): (3, 3), or () for a linear layer."""
    return tuple(weight.shape[2:])


def basis_of(kernel: Sequence[int], domain: str = "frequency") -> Basis:
    """Cosines along every axis of `kernel`, which need not be square; or the kernel's numbers themselves."""
    matrix, band = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    for side in kernel:
        matrix = torch.kron(matrix, dct_matrix(side))
        band = (band[:, None] + torch.arange(side)).flatten()
    if domain == "spatial":
        return Basis(torch.eye(len(band), dtype=torch.float64), torch.zeros_like(band))
    return Basis(matrix, band)


def dct_matrix(size: int) -> Tensor:
    """(size, size) float64: row u is the orthonormal cosine of frequency u."""
    n = torch.arange(size, dtype=torch.float64)
    rows = math.sqrt(2 / size) * torch.cos(math.pi * (2 * n + 1) * n[:, None] / (2 * size))
    rows[0] = math.sqrt(1 / size)
    return rows


def _turn(weight: Tensor, matrix: Tensor) -> Tensor:
    """Every kernel of `weight` (O, I, ...), as a row of K numbers, times `matrix` (K, K)."""
    rows = weight.reshape(*weight.shape[:2], -1)
    return (rows @ matrix.to(weight)).reshape(weight.shape)


def present(weight: Tensor, basis: Basis) -> Tensor:
    """Mask (O, I, ...) of the coefficients that are not zero up to the rounding of the weights."""
    found = basis.coefficients(weight.detach().double()).abs()
    if basis.bands == 1:  # nothing was transformed, so nothing was rounded
        return found > 0
    rows = found.reshape(*found.shape[:2], -1)
    rounding = 8 * torch.finfo(weight.dtype).eps * rows.amax(-1, keepdim=True)
    return (rows > rounding).reshape(weight.shape)


def band_energy(weight: Tensor, basis: Basis) -> Tensor:
    """Mean square of the coefficients of each band, (bands,) float64."""
    return band_means(basis.coefficients(weight.detach().double()).square(), basis)


def band_means(values: Tensor, basis: Basis) -> Tensor:
    """Means (bands,) over each band of `values` (O, I, ...)."""
    place = values.cpu().double().reshape(*values.shape[:2], -1).mean((0, 1))  # (K,)
    sums = torch.zeros(basis.bands, dtype=torch.float64).index_add_(0, basis.band, place)
    return sums / basis.band.bincount()


# -------------------------------------------------------------------------------------- what goes


def tilts(basis: Basis, tilt: float) -> Tensor:
    """(K,) what a threshold is multiplied by: 1 in the middle band, for a tilt above 0 more above it."""
    return 1 + tilt * (basis.place - 0.5)


def importance(weight: Tensor, basis: Basis, tilt: float) -> Tensor:
    """(O, I, ...) float64: one threshold on it is a threshold T (1 + tilt (x - 1/2)) on magnitudes."""
    found = basis.coefficients(weight.detach().cpu().double()).abs()
    return found / tilts(basis, tilt).view(kernel_of(weight))


def threshold(weight: Tensor, basis: Basis, sparsity: float, tilt: float) -> Tensor:
    """Shaped like one kernel: what `sparsity` of all magnitudes lie at or below."""
    scores = importance(weight, basis, tilt)
    gone = round(sparsity * scores.numel())
    level = scores.flatten().kthvalue(gone).values if gone else scores.new_zeros(())
    return level * tilts(basis, tilt).view(kernel_of(weight))


def beta_shares(basis: Basis, sparsity: float, alpha: float, beta: float) -> Tensor:
    """(bands,) share that each band keeps: min(1, s g), g the density of a beta distribution.

    s is found by bisection, so that `sparsity` of all coefficients go.
    """
    counts = basis.band.bincount().double()
    place = (torch.arange(basis.bands).double() + 0.5) / basis.bands
    density = place ** (alpha - 1) * (1 - place) ** (beta - 1)
    wanted = (1 - sparsity) * counts.sum()
    low, high = 0.0, (1 / density.min()).item()
    for _ in range(200):  # until two neighbouring float64 are left
        middle = (low + high) / 2
        enough = (counts * (middle * density).clamp(max=1)).sum() >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return (high * density).clamp(max=1)


def beta_mask(weight: Tensor, basis: Basis, sparsity: float, alpha: float, beta: float) -> Tensor:
    """Mask (O, I, ...): of every band the largest, as many as `beta_shares` says."""
    scores = importance(weight, basis, 0.0)
    rows = scores.reshape(-1, len(basis.band))  # (O I, K)
    sizes = basis.band.bincount() * len(rows)
    exact = beta_shares(basis, sparsity, alpha, beta) * sizes
    ends = (exact.cumsum(0) + 0.5).floor().long()  # rounded sums: what one band loses the next one gains
    kept = torch.diff(ends, prepend=ends.new_zeros(1)).minimum(sizes)
    keep = torch.zeros_like(rows, dtype=torch.bool)
    for band in range(basis.bands):
        inside = basis.band == band
        values = rows[:, inside].flatten()
        chosen = torch.zeros_like(values, dtype=torch.bool)
        chosen[values.argsort(stable=True)[len(values) - kept[band] :]] = True
        keep[:, inside] = chosen.view(len(rows), -1)
    return keep.view(scores.shape)


def one_shot(model: nn.Module, layers: Iterable[str], sparsity: float, domain: str, tilt: float) -> nn.Module:
    """A copy of `model` with plain weights; each of `layers` lost `sparsity` of its numbers in `domain`."""
    network = private_copy(model)
    for name in layers:
        weight = network.get_submodule(name).weight
        basis = basis_of(kernel_of(weight), domain)
        keep = Ranking({name: importance(weight, basis, tilt)}).masks({name: sparsity})[name]
        weight.copy_(basis.weights(basis.coefficients(weight.double()) * keep))
    return network


# ----------------------------------------------------------------------------------------- holding


class KeptCoefficients(nn.Module):
    """Parametrization W -> weight, from the coefficients that are kept; what is trained is W.

    The gradient reaches all coefficients, as if none were masked: those that are not kept go on
    learning unseen, and may return.
    """

    def __init__(self, keep: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, coefficients: Tensor) -> Tensor:
        masked = coefficients + (coefficients * self.keep - coefficients).detach()
        return _turn(masked, self.matrix)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return _turn(weight, self.matrix.T)


def hold(layer: nn.Module, keep: Tensor, basis: Basis) -> KeptCoefficients:
    """Train `layer` from now on by its coefficients, and show those in `keep` (O, I, ...) only.

    Where an earlier step holds some of its weights, the coefficients that are zero now stay zero.
    That keeps what was taken away as a whole, filters and kernels; zeros inside a kernel are spread
    by the transform.
    """
    weight = layer.weight
    keep, matrix = keep.to(weight.device), basis.matrix.to(weight)
    if not parametrize.is_parametrized(layer, "weight"):
        step = KeptCoefficients(keep, matrix)
        parametrize.register_parametrization(layer, "weight", step)
        return step
    step = KeptCoefficients(keep & present(weight, basis), matrix)
    trained = any(p.requires_grad for p in layer.parametrizations.weight.parameters())
    original = nn.Parameter(weight.detach().clone(), trained)
    layer.parametrizations["weight"] = parametrize.ParametrizationList([step], original)
    return step


class MovingMasks:
    """Masks that change while the weights are trained: what is small goes, what has grown again returns.

    Thresholds are set once, from the coefficients as they are found: `sparsities` (layer -> fraction)
    of them lie below. Call `step` before every step of the training: with a chance of
    1 / (1 + decay t), and only in the first `stop` steps, a coefficient of at most `below` thresholds
    goes and one above `above` thresholds returns; between the two it stays as it is.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        sparsities: Mapping[str, float],
        *,
        stop: int,
        domain: str = "frequency",
        tilt: float = 0.0,
        below: float = 0.9,
        above: float = 1.1,
        decay: float = 0.01,
        splice: bool = True,
    ) -> None:
        self.stop, self.below, self.above, self.decay, self.splice = stop, below, above, decay, splice
        self.steps = self.pruned = self.spliced = 0
        self._held = {}  # layer -> (the weight's steps, mask, threshold, what may be kept)
        for name, layer in layers.items():
            basis = basis_of(kernel_of(layer.weight), domain)
            level = threshold(layer.weight, basis, sparsities[name], tilt).to(layer.weight)
            kept = hold(layer, torch.ones_like(layer.weight, dtype=torch.bool), basis)
            self._held[name] = layer.parametrizations.weight, kept, level, kept.keep.clone()

    @property
    def sparsities(self) -> dict[str, float]:
        """Layer -> fraction of its coefficients that is masked now."""
        return {name: 1 - kept.keep.float().mean().item() for name, (_, kept, _, _) in self._held.items()}

    @property
    def sparsity(self) -> float:
        """Fraction of all coefficients that is masked now."""
        masks = [kept.keep for _, kept, _, _ in self._held.values()]
        return 1 - sum(int(keep.sum()) for keep in masks) / sum(keep.numel() for keep in masks)

    def step(self) -> None:
        if self.steps < self.stop and torch.rand(()).item() < 1 / (1 + self.decay * self.steps):
            self.update()
        self.steps += 1

    @torch.no_grad()
    def update(self) -> None:
        """One look at all coefficients."""
        for weight, kept, level, free in self._held.values():
            size, keep = weight.original.abs(), kept.keep
            gone = keep & (size <= self.below * level)
            back = ~keep & free & (size > self.above * level) & self.splice
            kept.keep ^= gone | back
            self.pruned += int(gone.sum())
            self.spliced += int(back.sum())

    def tally(self) -> dict[str, float]:
        """How many were pruned and spliced since the last tally, and the sparsity now."""
        row = {"pruned": self.pruned, "spliced": self.spliced, "sparsity": self.sparsity}
        self.pruned = self.spliced = 0
        return row


# ------------------------------------------------------------------------------------------- costs


def packed_bytes(weight: Tensor, basis: Basis) -> int:
    """Bytes that the coefficients of `weight` that are not zero take: `packed`, deflated as in a zip."""
    return zipped_size(packed(basis.coefficients(weight.detach()), present(weight, basis)))


def packed(coefficients: Tensor, keep: Tensor) -> bytes:
    """One bit for every coefficient, is it there?, and then those that are, as float32, in their order."""
    keep = keep.cpu()
    return np.packbits(keep.numpy()).tobytes() + coefficients.cpu()[keep].float().numpy().tobytes()


def patch_macs(layer: nn.Module, shared: bool) -> int:
    """Multiply-adds that transform the inputs of a convolution for one output position.

    Axis by axis: 2 k^3 for each channel's k x k patch. With `shared`, patches that overlap along the
    last axis share their columns' transforms, and a stride of 1 brings one new column: k^2 + k^3.
    """
    kernel = kernel_of(layer.weight)
    if math.prod(kernel) == 1:
        return 0  # the pattern of one number is 1
    *rest, last = kernel
    new = min(layer.stride[-1], last) if shared else last
    return layer.in_channels * math.prod(rest) * (sum(rest) * new + last * last)


# -------------------------------------------------------------------------- what a network's kernels say


def kernel_layers(who: str, model: nn.Module, pointwise: bool = False) -> dict[str, nn.Module]:
    """The layers of `model` with kernels of more than one number; with `pointwise` all that have weights.

    Raises:
        UnsupportedModelError: there is none.
    """
    layers = require_prunable(model)
    found = {n: layer for n, layer in layers.items() if pointwise or math.prod(kernel_of(layer.weight)) > 1}
    if not found:
        raise UnsupportedModelError(
            f"{who}: the model must have a convolution with a kernel larger than 1, got none"
        )
    return found


def side_names(kernel: Sequence[int]) -> str:
    """(3, 3) -> "3 x 3"."""
    return " x ".join(map(str, kernel)) or "1"


def band_table(before: nn.Module, after: nn.Module, layers: Sequence[str]) -> pd.DataFrame:
    """One row per layer and band: energy of a coefficient and share of zeros, before and after.

    Energies are relative to the mean of the layer's coefficients before. They are NaN where all of
    these are zero; all numbers after are, where the layer is gone or has another kernel.
    """
    old, new = prunable(before), prunable(after)
    rows: list[dict[str, Any]] = []
    for name in layers:
        weight = old[name].weight
        other = new[name].weight if name in new else None
        if other is not None and kernel_of(other) != kernel_of(weight):
            other = None
        basis = basis_of(kernel_of(weight))
        mean = weight.detach().double().square().mean().item()
        columns = {"coefficients": basis.band.bincount() * math.prod(weight.shape[:2])}
        for when, value in (("before", weight), ("after", other)):
            energy = zero = torch.full((basis.bands,), math.nan, dtype=torch.float64)
            if value is not None:
                zero = 1 - band_means(present(value, basis), basis)
                energy = band_energy(value, basis) / mean if mean else energy
            columns |= {f"energy_{when}": energy, f"zero_{when}": zero}
        columns = {column: values.tolist() for column, values in columns.items()}
        about = {"layer": name, "kernel": side_names(kernel_of(weight)), "band": range(basis.bands)}
        rows += pd.DataFrame(about | columns).to_dict("records")
    return pd.DataFrame(rows)


def sizes(table: pd.DataFrame) -> list[str]:
    """The sizes of kernel in a `band_table` that most layers have, the commonest first; as fit a figure."""
    return list(table.drop_duplicates("layer").kernel.value_counts().index[:PANELS])


def energy_figure(table: pd.DataFrame) -> list[Figure]:
    """Mean energy of a coefficient by band over the layers of each size of kernel, from a `band_table`."""
    table = table.rename(columns={"energy_before": "before", "energy_after": "after"}).dropna(subset="before")
    if table.empty:
        return []
    table = table[table.kernel.isin(sizes(table))]
    means = table.groupby(["kernel", "band"], sort=False)[["before", "after"]].mean().reset_index()
    long = means.melt(["kernel", "band"], ["before", "after"], "network", "energy")
    long = long[long.energy > 0]  # what is zero has no place on a logarithmic axis
    name = sizes(table)[0]
    main = means[means.kernel == name]
    ends = ", ".join(
        f"{when} {main[when].iloc[0]:.2f} and {main[when].iloc[-1]:.2f} times"
        for when in ("before", "after")
        if main[when].notna().all()
    )
    finding = (
        f"In kernels of {name}, the mean energy of a coefficient in the lowest and in the highest band is "
        f"{ends} that of the layer before."
    )
    labels = {"energy": "energy per coefficient, of the mean before", "band": "band (sum of frequencies)"}
    panel = "kernel" if long.kernel.nunique() > 1 else ""
    return [
        Figure(
            "Energy by band", finding, long, "band", "energy", "bars", "network", panel, labels=labels,
            log=frozenset({"energy"}),
        )
    ]  # fmt: skip


def kept_figure(after: nn.Module, layers: Sequence[str], domain: str = "frequency") -> list[Figure]:
    """Share of the layers' coefficients that is left, at every place of a kernel of two axes or one."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for name in layers:
        weight = prunable(after)[name].weight
        if len(kernel := kernel_of(weight)) <= 2:
            keep = present(weight, basis_of(kernel, domain)).cpu().double()
            found.setdefault(kernel, []).append(keep.reshape(-1, math.prod(kernel)))
    most = sorted(found, key=lambda kernel: -len(found[kernel]))[:PANELS]
    if not most:
        return []
    rows = []
    for kernel in most:
        share = torch.cat(found[kernel]).mean(0).view((1,) * (2 - len(kernel)) + kernel)
        rows += [
            {"kernel": side_names(kernel), "v": v, "u": u, "kept": share[u, v].item()}
            for u, v in np.ndindex(*share.shape)
        ]
    table = pd.DataFrame(rows)
    name = side_names(most[0])
    main = table[table.kernel == name]
    first, last = main.iloc[0], main.iloc[-1]
    what = "coefficient" if domain == "frequency" else "weight"
    finding = (
        f"In kernels of {name}, {first.kept:.1%} of the {what}s at (0, 0) are left, the first of both axes, "
        f"and {last.kept:.1%} of those at ({last.u}, {last.v}), the last."
    )
    labels = {"u": "u, vertical", "v": "v, horizontal", "kept": "share that is left"}
    panel = "kernel" if len(most) > 1 else ""
    title = "What is left, by frequency" if domain == "frequency" else "What is left, by place in the kernel"
    return [
        Figure(title, finding, table, "v", "u", "heat", panel=panel, value="kept", labels=labels,
               percent=frozenset({"kept"}))
    ]  # fmt: skip


COSTS = {  # column of `layer_costs` -> for people
    "numbers": "numbers that are not zero",
    "packed": "bytes, packed",
    "macs": "multiply-adds",
    "macs_shared": "with transforms, shared",
    "macs_separate": "with transforms, of every patch",
}


def layer_costs(model: nn.Module, positions: Mapping[str, int], domain: str = "frequency") -> pd.DataFrame:
    """One row per convolution and linear layer, one column per cost in `COSTS`.

    Counted is what is not zero in `domain`; `positions` are the `cost.output_positions`. To the
    multiply-adds of one image come those that transform the inputs, shared between patches or not.
    """
    rows = []
    for name, layer in prunable(model).items():
        basis = basis_of(kernel_of(layer.weight), domain)
        numbers = int(present(layer.weight, basis).sum())
        shared, separate = (patch_macs(layer, s) if domain == "frequency" else 0 for s in (True, False))
        counts = (numbers, numbers + shared, numbers + separate)  # per position
        macs = [count * positions[name] for count in counts]
        rows.append((name, numbers, packed_bytes(layer.weight, basis), *macs))
    return pd.DataFrame(rows, columns=["layer", *COSTS])


def cost_figure(before: nn.Module, after: nn.Module, example: Tensor, domain: str = "frequency") -> Figure:
    """What the convolution and linear layers cost in `domain`, of what they cost before as they were."""
    positions = output_positions(before, example)
    shown = list(COSTS) if domain == "frequency" else [*COSTS][:3]  # weights need no transform
    old = layer_costs(before, positions, "spatial")[shown].sum()
    new = layer_costs(after, positions, domain)[shown].sum()
    table = pd.DataFrame({"cost": [COSTS[c] for c in shown], "before": old.values, "after": new.values})
    table["share"] = table.after / table.before.where(table.before > 0)
    share = dict(zip(shown, table.share, strict=True))
    finding = (
        f"{new.numbers:,} of {old.numbers:,} numbers are left, in {new.packed:,} of {old.packed:,} bytes. "
        "If zeros are skipped, which ordinary hardware does not do, "
        f"{share['macs']:.1%} of the multiply-adds are left"
    )
    if domain == "frequency":
        finding += (
            f", and with those that transform the inputs {share['macs_shared']:.1%} where patches share "
            f"them, {share['macs_separate']:.1%} else"
        )
    return Figure(
        "What it costs",
        f"{finding}.",
        table,
        "cost",
        "share",
        "bars",
        labels={"share": "of the network before"},
        percent=frozenset({"share"}),
    )
