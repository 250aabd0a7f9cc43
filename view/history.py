"""How a training went: what was recorded of every epoch, as curves."""

from collections.abc import Sequence

import pandas as pd

from core.figure import Figure

CURVES = 6  # at most
FIRST = ("loss", "validation_accuracy")


def curves(history: Sequence[dict[str, float]]) -> list[Figure]:
    """What was recorded of the epochs of all steps, each against the epoch; none of fewer than two."""
    rows = [row for row in history if "epoch" in row and "loss" in row]
    if len(rows) < 2:
        return []
    table = pd.DataFrame(rows).assign(epoch=range(1, len(rows) + 1))
    first = [name for name in FIRST if name in table]
    moving = [name for name in table if name not in ("epoch", *first) and table[name].nunique() > 1]
    return [_curve(table.dropna(subset=name), name) for name in [*first, *moving][:CURVES]]


def _curve(table: pd.DataFrame, name: str) -> Figure:
    title, values = name.replace("_", " ").capitalize(), table[name]
    first, last = (f"{end:,.0f}" if abs(end) >= 1000 else f"{end:.3g}" for end in values.iloc[[0, -1]])
    words = f"{title} went from {first} to {last} in {len(values)} epochs."
    return Figure(title, words, table, "epoch", name, percent=frozenset({name} & {"validation_accuracy"}))
