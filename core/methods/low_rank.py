"""Low rank: layers become products of smaller layers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import numpy as np
import pandas as pd
from torch import Tensor, nn

from core.bundles import Setting
from core.cost import layer_macs, output_positions
from core.cutting import replace_layer
from core.errors import ParameterError
from core.factors import (
    Ranks,
    dense_weight,
    factorisable,
    factorised,
    factorised_size,
    full_ranks,
    is_matrix,
    options,
    ranks_by_budget,
    ranks_by_energy,
    ranks_by_ratio,
    shrinks,
)
from core.figure import Figure
from core.layers import prunable, require_layers, require_prunable
from core.method import choice, flag, number, per_layer
from core.recipe import COMPRESSORS, Compressor
from core.run import Run
from core.spectra import singular_values, unfolding

DRAWN = 8  # spectra in one figure
SMALLEST = 1e-8  # of the largest singular value: below is rounding


@COMPRESSORS.register
@dataclass(frozen=True)
class LowRank(Compressor):
    """Replace layers by two or three thinner ones whose product is close to them.

    A linear layer or 1x1 convolution becomes two through its largest singular values; a larger
    convolution becomes 1x1, k x k, 1x1 (Tucker-2), without a 1x1 where all channels of that side
    stay. Weights really go, and with them nearly always multiply-adds; time falls where layers are
    wide and ranks low, since two or three calls replace one. Rule "budget": `sparsity` is the share
    of the weights of all convolutions and linear layers that is saved, shared out so that the sum of
    the layers' relative squared errors is least; at 1, every layer has rank 1. "energy": the smallest
    ranks that keep that share of the squared norm. "ratio": that share of the full ranks. `ranks`
    settles layers by hand, as "ratio" does.

    A layer stays as it is where it would not have fewer weights, where it is grouped, where it
    shares weights, and where the network never calls it. A factorised layer is dense: masks of
    earlier steps end in it.

    Source: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power
    Mobile Applications", ICLR 2016, arXiv:1511.06530 (Tucker-2); De Lathauwer, De Moor and
    Vandewalle, "On the Best Rank-1 and Rank-(R1, ..., RN) Approximation of Higher-Order Tensors",
    SIAM J. Matrix Anal. Appl. 2000 (HOOI).
    """

    name: ClassVar[str] = "low-rank"

    sparsity: float = number(
        0.5, 0.0, 1.0, 0.01, help="Fraction of the weights that is saved, for rule budget"
    )
    rule: str = choice("budget", "energy", "ratio", help="What decides the ranks")
    energy: float = number(
        0.9, 0.01, 1.0, 0.001, help="Share of the squared norm that stays, for rule energy"
    )
    ratio: float = number(0.5, 0.0, 1.0, 0.01, help="Share of the full ranks that stays, for rule ratio")
    sweeps: int = number(10, 0, 50, 1, help="Rounds that improve the factors of convolutions (HOOI)")
    skip_first: bool = flag(False, help="Leave the first layer as it is")
    skip_last: bool = flag(False, help="Leave the last layer as it is")
    ranks: tuple[tuple[str, float], ...] = per_layer(
        0.0, 1.0, 0.01, help="Share of the full ranks of single layers; 1 leaves a layer as it is"
    )

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        require_layers(model, dict(self.ranks))
        layers = _candidates(model, setting.train.take(slice(0, 1)).images)
        with run.step(0, 2):
            ranks = self._ranks(model, layers, run)
        with run.step(1, 2):
            for name, pair in run.track(ranks.items(), "Factorising layers"):
                replace_layer(model, name, factorised(layers[name], pair, self.sweeps))
        return model

    def _ranks(self, model: nn.Module, layers: Mapping[str, nn.Module], run: Run) -> dict[str, Ranks]:
        """Layer -> its ranks, of the layers that become smaller."""
        for name, _ in self.ranks:
            if name not in layers:
                raise ParameterError(
                    f"{self.name}: ranks: {name} must be a linear layer or an ungrouped convolution that the "
                    "network calls and that shares no weights, got another"
                )
        shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
        settled = {name: ranks_by_ratio(shapes[name], share) for name, share in self.ranks}
        every = list(prunable(model))
        skipped = {*every[: self.skip_first], *every[len(every) - self.skip_last :]}
        weights = {n: layer.weight for n, layer in layers.items() if n not in settled and n not in skipped}
        tracked = run.track(weights.items(), "Choosing ranks")
        match self.rule:
            case "energy":
                chosen = {name: ranks_by_energy(weight, self.energy) for name, weight in tracked}
            case "ratio":
                chosen = {name: ranks_by_ratio(shapes[name], self.ratio) for name, _ in tracked}
            case "budget":
                found = {name: options(weight) for name, weight in tracked}
                sizes = {name: layer.weight.numel() for name, layer in prunable(model).items()}
                left = int((1 - self.sparsity) * sum(sizes.values()))
                sizes |= {name: _size(shapes[name], pair) for name, pair in settled.items()}
                chosen = ranks_by_budget(
                    found, left - sum(sizes[name] for name in sizes if name not in found)
                )
        ranks = chosen | settled
        return {name: ranks[name] for name in layers if name in ranks and shrinks(shapes[name], ranks[name])}

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        layers = prunable(before)
        spectra = {
            name: singular_values(unfolding(layer.weight))
            for name, layer in run.track(layers.items(), "Measuring spectra")
        }
        table = _layers_table(before, after, setting.train.take(slice(0, 1)).images)
        shown = [_ranks_figure(table), _cost_figure(table, "weights"), _cost_figure(table, "multiply_adds")]
        if table.error.notna().any():
            shown.append(_error_figure(table.dropna(subset="error")))
        living = {name: s for name, s in spectra.items() if s[0] > 0}
        return (*([_spectra_figure(living)] if living else []), *shown)


def _candidates(model: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """The layers that may be replaced: what reads their weights is their own forward pass alone."""
    require_prunable(model)
    holders = Counter(id(value) for _, value in model.named_parameters(remove_duplicate=False))
    calls = output_positions(model, example)
    return {
        name: layer
        for name, layer in prunable(model).items()
        if name
        and factorisable(layer)
        and calls[name]
        and all(holders[id(p)] == 1 for p in layer.parameters())
    }


def _size(shape: tuple[int, ...], ranks: Ranks) -> int:
    """Weights of a layer with these ranks, which stays as it is where they would not be fewer."""
    return min(factorised_size(shape, ranks), int(np.prod(shape)))


# ------------------------------------------------------------------------------------------ figures


def _layers_table(before: nn.Module, after: nn.Module, example: Tensor) -> pd.DataFrame:
    """One row per layer of `before`: its ranks, costs and error; the error of untouched layers is NaN."""
    macs_before, macs_after = layer_macs(before, example), layer_macs(after, example)
    layers_after = prunable(after)
    rows = []
    for name, layer in prunable(before).items():
        now, weight = after.get_submodule(name), layer.weight.detach()
        full = full_ranks(tuple(weight.shape))
        row = {"layer": name, "matrix": is_matrix(weight.shape), "outputs": full[0], "inputs": full[1]}
        row |= {"outputs_kept": full[0], "inputs_kept": full[1], "error": np.nan}
        parts = dict(now.named_children())
        if "expand" in parts:
            row["outputs_kept"] = parts["expand"].weight.shape[1]
        if "reduce" in parts:
            row["inputs_kept"] = parts["reduce"].weight.shape[0]
        if parts:
            row["error"] = _relative(dense_weight(now) - weight, weight)
        row |= {"weights_before": weight.numel(), "multiply_adds_before": macs_before[name]}
        now_called = [f"{name}.{part}" for part in parts] or [name]
        row["weights_after"] = sum(layers_after[part].weight.numel() for part in now_called)
        row["multiply_adds_after"] = sum(macs_after[part] for part in now_called)
        rows.append(row)
    return pd.DataFrame(rows)


def _relative(difference: Tensor, weight: Tensor) -> float:
    """|difference| / |weight|; 0 where nothing was there to lose."""
    size = weight.double().norm().item()
    return difference.norm().item() / size if size else 0.0


def _spectra_figure(spectra: Mapping[str, np.ndarray]) -> Figure:
    """Of at most eight layers, evenly through the depth; `spectra` has no layer of zeros."""
    rows = [
        {"layer": name, "position": number / len(s), "value": value / s[0]}
        for name in list(spectra)[:: ceil(len(spectra) / DRAWN)]
        for s in [spectra[name]]
        for number, value in enumerate(s, 1)
        if value > s[0] * SMALLEST
    ]
    kept = {name: (s[: ceil(len(s) / 2)] ** 2).sum() / (s**2).sum() for name, s in spectra.items()}
    least, most = min(kept, key=kept.get), max(kept, key=kept.get)
    finding = (
        f"The larger half of the singular values holds {kept[most]:.1%} of the squared norm in {most}, and "
        f"{kept[least]:.1%} in {least}: the more, the less half the rank costs."
    )
    labels = {"position": "number of the singular value, of all", "value": "singular value, of the largest"}
    return Figure(
        "Spectra of the layers",
        finding,
        pd.DataFrame(rows),
        "position",
        "value",
        colour="layer",
        log=frozenset({"value"}),
        percent=frozenset({"position"}),
        labels=labels,
    )


def _ranks_figure(table: pd.DataFrame) -> Figure:
    rows = []
    for row in table.to_dict("records"):
        for side in ("outputs",) if row["matrix"] else ("outputs", "inputs"):
            rank, full = row[f"{side}_kept"], row[side]
            what = "matrix" if row["matrix"] else f"{side} of a kernel"
            rows.append(
                {"layer": row["layer"], "side": what, "rank": rank, "full": full, "share": rank / full}
            )
    ranks = pd.DataFrame(rows)
    fewest = ranks.loc[ranks.share.idxmin()]
    finding = f"{table.error.notna().sum()} of {len(table)} layers are factorised"
    if fewest.share < 1:
        finding += (
            f"; {fewest.layer} keeps the smallest share, {fewest['rank']} of {fewest.full} ({fewest.side})"
        )
    return Figure(
        "Ranks that are kept",
        f"{finding}.",
        ranks,
        "layer",
        "share",
        "bars",
        colour="side",
        percent=frozenset({"share"}),
        labels={"share": "rank, of the full one"},
    )


def _cost_figure(table: pd.DataFrame, what: str) -> Figure:
    rows = [
        {"layer": row["layer"], "network": when, what: row[f"{what}_{when}"]}
        for row in table.to_dict("records")
        for when in ("before", "after")
    ]
    old, new = table[f"{what}_before"].sum(), table[f"{what}_after"].sum()
    words = what.replace("_", "-")
    finding = f"{old:,} {words} became {new:,} ({new / max(old, 1) - 1:+.1%})."
    if risen := (table[f"{what}_after"] > table[f"{what}_before"]).sum():
        finding += f" In {risen} it rose: the first 1x1 convolution works before the stride."
    return Figure(
        f"{words.capitalize()} by layer",
        finding,
        pd.DataFrame(rows),
        "layer",
        what,
        "bars",
        colour="network",
        labels={what: words},
    )


def _error_figure(table: pd.DataFrame) -> Figure:
    worst, best = table.loc[table.error.idxmax()], table.loc[table.error.idxmin()]
    finding = f"{worst.layer} lost most: its weights are {worst.error:.1%} of their norm away"
    finding += f"; {best.layer} lost least, {best.error:.1%}." if len(table) > 1 else "."
    return Figure(
        "What truncation lost",
        finding,
        table[["layer", "error"]],
        "layer",
        "error",
        "bars",
        percent=frozenset({"error"}),
        labels={"error": "distance of the weights, of their norm"},
    )
