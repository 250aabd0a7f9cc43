"""Rank of change: in how many directions every layer's weights moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from torch import Tensor, nn

from core import spectra
from core.bundles import Setting
from core.diagnosis import DIAGNOSTICS, Diagnostic
from core.factors import dense_weight
from core.figure import Figure
from core.layers import private_copy, prunable, require_prunable
from core.method import choice
from core.run import Run

UNCHANGED = 1e-12  # of the norm: a smaller change is rounding
RANKS = {
    "participation_ratio": "participation ratio",
    "entropy_rank": "entropy rank",
    "stable_rank": "stable rank",
    "rank_90": "90 % of the squares",
}
RANDOM = "a random change of that shape"


@DIAGNOSTICS.register
@dataclass(frozen=True)
class RankOfChange(Diagnostic):
    """In how many directions training or pruning moved every layer's weights, beside pure chance.

    The change after - before, as a matrix with one row per output channel (or input channel), has
    singular values s. Four summaries: the participation ratio (sum s^2)^2 / sum s^4, which for a
    random m x n matrix is about m n / (m + n), given beside it; the entropy rank, the exponential of
    the entropy of s / sum s; the stable rank sum s^2 / s_1^2; and the smallest rank that holds 90 %
    of the squares.

    Weights that became zero are kept apart, since what pruning takes is near chance and would hide
    what training did: the row "zeroed" is their change alone, the row "kept" that of all others. A
    layer in which no weight became zero has the row "kept" only. `change` is relative to the norm of
    all weights of the layer before. Factorised layers count as their product. What did not change
    has no rank; a layer that is gone or has another shape has no numbers.

    Source: Schuessler et al., "The Interplay between Randomness and Structure during Learning in
    RNNs", NeurIPS 2020, arXiv:2006.11036 (low rank of what training changed); the summaries are ours.
    """

    name: ClassVar[str] = "rank-of-change"

    matrix: str = choice(
        "output", "input", help="Rows of a convolution's matrix: its output or its input channels"
    )

    def measure(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> pd.DataFrame:
        require_prunable(before)
        old, new = prunable(private_copy(before)), dict(private_copy(after).named_modules())
        rows = []
        for name, layer in run.track(old.items(), "Measuring ranks"):
            changes = _changes(layer.weight, dense_weight(new[name]) if name in new else None)
            size = layer.weight.double().norm().item()
            rows += [{"layer": name, "part": p} | self._row(change, size) for p, change in changes.items()]
        return pd.DataFrame(rows)

    def _row(self, change: Tensor | None, size: float) -> dict[str, Any]:
        """The summaries of one change of a layer whose weights had the norm `size`."""
        row = dict.fromkeys(("change", *RANKS, "random_participation_ratio"), np.nan)
        if change is None:
            return row
        matrix = spectra.unfolding(change, self.matrix)
        row["random_participation_ratio"] = spectra.random_participation(*matrix.shape)
        s = spectra.singular_values(matrix)
        moved = float(np.linalg.norm(s))
        row["change"] = moved / size if size else np.nan
        if moved > UNCHANGED * size:
            row["participation_ratio"] = spectra.participation_ratio(s)
            row["entropy_rank"] = spectra.entropy_rank(s)
            row["stable_rank"] = spectra.stable_rank(s)
            row["rank_90"] = float(spectra.energy_rank(s, 0.9))
        return row

    def figures(self, table: pd.DataFrame) -> Sequence[Figure]:
        known, moved = table.dropna(subset="change"), table.dropna(subset="participation_ratio")
        shown = [_against_chance(moved), _four_ways(moved)] if len(moved) else []
        return (*shown, *([_sizes(known)] if len(known) else []))


def _changes(before: Tensor, after: Tensor | None) -> dict[str, Tensor | None]:
    """Part -> its change; the parts add up to after - before."""
    if after is None or after.shape != before.shape:
        return {"kept": None}
    change = after.double() - before.double()
    zeroed = (after == 0) & (before != 0)
    if not zeroed.any():
        return {"kept": change}
    return {"kept": change * ~zeroed, "zeroed": change * zeroed}


def _against_chance(moved: pd.DataFrame) -> Figure:
    """Participation ratios of what changed, and what chance would give."""
    chance = moved.drop_duplicates("layer").assign(part=RANDOM)
    bars = pd.concat(
        [
            moved[["layer", "part", "participation_ratio"]],
            chance[["layer", "part"]].assign(participation_ratio=chance.random_participation_ratio),
        ]
    )
    share = moved.participation_ratio / moved.random_participation_ratio
    finding = []
    for part, shares in share.groupby(moved.part):
        least = moved.loc[shares.idxmin()]
        finding.append(
            f"{part.capitalize()} weights: lowest against chance in {least.layer}, participation ratio "
            f"{least.participation_ratio:.1f} where chance gives {least.random_participation_ratio:.1f}; "
            f"median of the layers {shares.median():.0%} of chance."
        )
    return Figure(
        "Rank of the change, beside chance",
        " ".join(finding),
        bars,
        "layer",
        "participation_ratio",
        "bars",
        colour="part",
        labels={"participation_ratio": "participation ratio of the change"},
    )


def _four_ways(moved: pd.DataFrame) -> Figure:
    long = moved.rename(columns=RANKS).melt(["layer", "part"], list(RANKS.values()), "measure", "rank")
    finding = []
    for part, rows in moved.groupby("part"):
        words = ", ".join(f"{name} {rows[column].median():.1f}" for column, name in RANKS.items())
        finding.append(f"{part.capitalize()} weights, medians of the layers: {words}.")
    return Figure(
        "Four ways to count",
        " ".join(finding),
        long,
        "layer",
        "rank",
        "points",
        colour="measure",
        panel="part",
        labels={"rank": "rank of the change"},
    )


def _sizes(known: pd.DataFrame) -> Figure:
    most = known.loc[known.change.idxmax()]
    finding = (
        f"{most.layer} changed most: its {most.part} weights moved by {most.change:.1%} of the layer's norm."
    )
    return Figure(
        "Size of the change",
        finding if most.change else "No weight changed.",
        known,
        "layer",
        "change",
        "bars",
        colour="part",
        percent=frozenset({"change"}),
        labels={"change": "change, of the norm before"},
    )
