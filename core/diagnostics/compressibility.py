"""Compressibility: how unevenly the weights are spread, and how few of them would do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from core.bundles import Setting
from core.compressibility import gini, keep_bound, keep_exact, pq_index, sparsity_index, tail_shares
from core.diagnosis import DIAGNOSTICS, Diagnostic
from core.figure import Figure
from core.layers import private_copy, prunable, require_prunable
from core.method import number
from core.run import Run

ALL = "all layers"
INDICES = {"pq_half_one": "PQ index (0.5, 1)", "pq_one_two": "PQ index (1, 2)", "gini": "Gini index"}


@DIAGNOSTICS.register
@dataclass(frozen=True)
class Compressibility(Diagnostic):
    """How unevenly each layer's weights are spread, and how few of them would do, before and after.

    Of the nonzero weights of a layer: their number; the sparsity index ||w||_1 / ||w||_q, which is 1
    for a single weight and falls with their number; the PQ indices (p, q) = (0.5, 1) and (1, 2) and the
    Gini index, 0 where all are equal in size. `keep_exact` is the share of the weights that stays if
    every neuron keeps the fewest whose omission costs at most `tolerance` of its l_1 norm,
    `keep_bound` the share that Stechkin's inequality in ||w||_q asks for. Scale does not matter. The
    last row takes all layers together. A layer that is gone or all zero has no indices.

    Source: Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023,
    arXiv:2302.05601 (PQ index); Yang et al., "A Theoretical Understanding of Neural Network Compression
    from Sparse Linear Approximation", 2022, arXiv:2206.05604; Hurley and Rickard, "Comparing Measures
    of Sparsity", IEEE Transactions on Information Theory 55, 2009, arXiv:0811.4706 (Gini index).
    """

    name: ClassVar[str] = "compressibility"

    q: float = number(0.5, 0.1, 0.9, 0.05, help="Exponent of the sparsity index and of the bound")
    tolerance: float = number(0.3, 0.01, 0.99, 0.01, help="Share of its norm that a neuron may lose at most")

    def measure(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> pd.DataFrame:
        require_prunable(before)
        old, new = (
            {name: layer.weight.flatten(1) for name, layer in prunable(private_copy(model)).items()}
            for model in (before, after)
        )
        rows = []
        for name in run.track([*old, ALL], "Measuring layers"):
            parts = {"before": old.values(), "after": new.values()}
            if name != ALL:
                parts = {
                    when: [of[name]] if name in of else [] for when, of in zip(parts, (old, new), strict=True)
                }
            row = {"layer": name}
            for when, neurons in parts.items():
                row |= {f"{column}_{when}": value for column, value in self._describe(neurons).items()}
            rows.append(row)
        return pd.DataFrame(rows)

    def _describe(self, layers: Iterable[Tensor]) -> dict[str, float]:
        """All weights of `layers`, each (O, K), as one group, and the counts of their neurons."""
        layers = list(layers) or [torch.zeros(1, 1)]
        weights = torch.cat([rows.flatten() for rows in layers])
        there = weights != 0
        exact = bound = 0
        for rows in layers:
            exact += int(keep_exact(tail_shares(rows), self.tolerance).sum())
            index, nonzero = sparsity_index(rows, self.q), rows.count_nonzero(-1)
            bound += int(keep_bound(index, nonzero, self.q, self.tolerance).sum())
        count = int(there.sum())
        return {
            "weights": count,
            "sparsity_index": sparsity_index(weights, self.q).item(),
            "pq_half_one": pq_index(weights, 0.5, 1, there).item(),
            "pq_one_two": pq_index(weights, 1, 2, there).item(),
            "gini": gini(weights, there).item(),
            "keep_exact": exact / count if count else float("nan"),
            "keep_bound": bound / count if count else float("nan"),
        }

    def figures(self, table: pd.DataFrame) -> Sequence[Figure]:
        whole = table[table.layer == ALL].iloc[0]
        if not whole.weights_before:
            return ()  # nothing but zeros
        return (_indices(table, whole), self._keeps(table, whole))

    def _keeps(self, table: pd.DataFrame, whole: pd.Series) -> Figure:
        long = pd.concat(
            table[["layer"]].assign(network=when, rule=rule, kept=table[f"keep_{rule}_{when}"])
            for when in ("before", "after")
            for rule in ("exact", "bound")
        )
        finding = (
            f"Before, {whole.keep_exact_before:.1%} of the weights would do if every neuron could spare "
            f"{self.tolerance:.0%} of its l_1 norm; the l_{self.q:g} bound asks for "
            f"{whole.keep_bound_before:.1%}."
        )
        if whole.weights_after:
            finding += f" After, {whole.keep_exact_after:.1%} of those that are left would do."
        return Figure(
            "How many weights would do",
            finding,
            long.dropna(),
            "layer",
            "kept",
            "points",
            colour="rule",
            panel="network",
            percent=frozenset({"kept"}),
            labels={"kept": "of the nonzero weights"},
        )


def _indices(table: pd.DataFrame, whole: pd.Series) -> Figure:
    long = pd.concat(
        table[["layer"]].assign(network=when, index=name, value=table[f"{column}_{when}"])
        for column, name in INDICES.items()
        for when in ("before", "after")
    )
    single = table[table.layer != ALL].dropna(subset="pq_half_one_before")
    most, least = (
        single.loc[i] for i in (single.pq_half_one_before.idxmax(), single.pq_half_one_before.idxmin())
    )
    finding = (
        f"Before, {most.layer} is the most uneven layer and {least.layer} the most even: PQ index (0.5, 1) "
        f"{most.pq_half_one_before:.3f} and {least.pq_half_one_before:.3f}. Of all weights together it is "
        f"{whole.pq_half_one_before:.3f} before"
    )
    finding += f", {whole.pq_half_one_after:.3f} after." if whole.weights_after else "."
    return Figure(
        "How uneven the nonzero weights are",
        finding,
        long.dropna(),
        "layer",
        "value",
        "points",
        colour="network",
        panel="index",
        labels={"value": "index (0: all equal)"},
    )
