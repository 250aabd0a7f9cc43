"""Weight change: how far every layer's weights moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting
from core.diagnosis import DIAGNOSTICS, Diagnostic
from core.figure import Figure
from core.layers import private_copy, prunable, require_prunable
from core.run import Run


@DIAGNOSTICS.register
@dataclass(frozen=True)
class WeightChange(Diagnostic):
    """Relative change, cosine and sparsity of every layer's weights, before and after.

    `change` is |after - before| / |before| in the Frobenius norm: 0 for the same weights, 1 where
    all became zero. `cosine` is that of the two flattened weights; it is not defined where either
    is zero. Neither is defined where the shapes differ, since it is not known which filters are
    left. A layer that is gone has no numbers after.

    Source: Golub and Van Loan, "Matrix Computations", 4th edition, 2013, section 2.3.
    """

    name: ClassVar[str] = "weight-change"

    def measure(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> pd.DataFrame:
        require_prunable(before)
        old, new = (prunable(private_copy(model)) for model in (before, after))
        rows = [
            {"layer": name} | _compare(layer.weight, new[name].weight if name in new else None)
            for name, layer in run.track(old.items(), "Comparing layers")
        ]
        return pd.DataFrame(rows)

    def figures(self, table: pd.DataFrame) -> Sequence[Figure]:
        known = table.dropna(subset="change")
        if known.empty:
            return ()  # no layer has the same shape before and after
        most = known.loc[known.change.idxmax()]
        finding = f"{most.layer} changed most: by {most.change:.1%} of its norm."
        change = {"change": "change of the weights, of their norm"}
        return (Figure("Change by layer", finding, known, "layer", "change", "bars", labels=change),)


def _compare(before: Tensor, after: Tensor | None) -> dict[str, Any]:
    gone = float("nan")
    row = {
        "change": gone,
        "cosine": gone,
        "sparsity_before": (before == 0).float().mean().item(),
        "sparsity_after": gone,
        "weights_before": before.numel(),
        "weights_after": 0,
    }
    if after is None:
        return row
    row |= {"sparsity_after": (after == 0).float().mean().item(), "weights_after": after.numel()}
    if before.shape != after.shape:
        return row
    old, new = before.flatten().double(), after.flatten().double()
    if old.any():
        row["change"] = ((new - old).norm() / old.norm()).item()
    if old.any() and new.any():
        row["cosine"] = F.cosine_similarity(old, new, dim=0).clamp(-1, 1).item()
    return row
