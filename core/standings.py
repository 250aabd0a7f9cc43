"""What a leaderboard shows: everybody as heat maps, a chosen few as curves."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from core.figure import Figure, Reference
from core.leaderboard import Leaderboard


def figures(board: Leaderboard, chosen: Sequence[str] = ()) -> list[Figure]:
    """Everybody as heat maps, and those `chosen`, at most eight, as curves."""
    standings, about = board.standings(), board.about
    if standings.empty:
        return []
    shown = [
        _heat(standings, about, "accuracy", "Accuracy"),
        _heat(standings, about, "spearman", "Agreement"),
    ]
    if "mass_inside" in standings:
        shown.append(_heat(standings, about, "mass_inside", "Mass inside"))
    some = standings[standings.contestant.isin(list(chosen)[:8])]
    return shown if some.empty else [*_curves(some, about), *shown]


def means_of(standings: pd.DataFrame, column: str = "accuracy") -> pd.Series:
    """Contestant -> mean over all sparsities, best first; a sparsity that is not reached counts as 0."""
    levels = standings.pivot(index="contestant", columns="asked", values=column)
    return levels.fillna(0.0).mean(axis=1).sort_values(ascending=False)


def _curves(some: pd.DataFrame, about: dict[str, Any]) -> list[Figure]:
    original = Reference("y", about["original"]["accuracy"], "original")
    fractions = frozenset({"accuracy", "asked"})
    names = {"asked": "sparsity asked for", "macs": "multiply-adds per picture"}
    ceiling = Reference("y", about["noise_ceiling"]["spearman"], "same network under noise")
    floor = Reference("y", about["random_floor"]["spearman"], "random network")
    at = some.asked.unique()[len(some.asked.unique()) // 2]
    best = some[some.asked == at].sort_values("accuracy").iloc[-1]
    finding = f"At {at:.0%}, {best.contestant} keeps most of them: {best.accuracy:.1%}"
    spread = {"low": "low", "high": "high", "percent": fractions, "labels": names, "colour": "contestant"}
    closest = some[some.asked == at].sort_values("spearman").iloc[-1]
    shown = [
        Figure(
            "Accuracy against sparsity",
            f"{finding} (n = {int(best.n):,}; bands: 95 %, all seeds).",
            some,
            "asked",
            "accuracy",
            references=(original,),
            **spread,
        ),
        Figure(
            "Accuracy against multiply-adds",
            "Realised multiply-adds: zeros alone save none, removed channels and smaller factors do.",
            some,
            "macs",
            "accuracy",
            references=(original,),
            **spread | {"labels": {"macs": names["macs"]}, "percent": frozenset({"accuracy"})},
        ),
        Figure(
            "Does it still look at the same pixels?",
            f"At {at:.0%}, {closest.contestant} moves maps least: rank correlation {closest.spearman:.2f}.",
            some,
            "asked",
            "spearman",
            colour="contestant",
            percent=frozenset({"asked"}),
            labels={"asked": names["asked"], "spearman": "rank correlation with the original's maps"},
            references=(ceiling, floor),
        ),
    ]
    return [figure for figure in shown if figure.x != "macs" or some.macs.nunique() > 1]


def _heat(standings: pd.DataFrame, about: dict[str, Any], column: str, title: str) -> Figure:
    """All contestants, best first, at every sparsity."""
    means = means_of(standings, column)
    order = standings.set_index("contestant").loc[means.index].reset_index()
    table = order.assign(level=[f"{asked:.0%}" for asked in order.asked])
    was = about["original"].get(column)
    before = f"; the original has {was:.1%}" if was is not None and column != "spearman" else ""
    finding = f"{means.index[0]} is first on average over sparsities, {means.index[-1]} last{before}."
    fractions = frozenset({column} - {"spearman"})
    names = {"level": "sparsity asked for", "contestant": ""}
    return Figure(
        title, finding, table, "level", "contestant", "heat", value=column, percent=fractions, labels=names
    )
