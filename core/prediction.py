"""What a plan will do, guessed from an atlas and the plan measured last; never shown as a measurement."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.atlas import Atlas
from core.evaluation import Interval
from core.plan import Plan

EPSILON = 0.01  # keeps the log-odds of 0 and 1 finite
BAND = (0.3, 0.5)  # half-width of the band in log-odds: constant, and per unit of predicted change


@dataclass(frozen=True)
class Anchor:
    """A plan whose accuracy was measured."""

    plan: Plan
    accuracy: float


@dataclass(frozen=True)
class Prediction:
    """Accuracy in log-odds is what was measured last plus what each slider adds that has moved since.

    What a slider adds comes from the atlas, where it was moved alone: the sum forgets that losses in
    one layer make losses in another worse. The correction for that, and for everything else that was
    forgotten, is the anchor: only what has changed since the last measurement is guessed.
    """

    question: str
    sliders: tuple[str, ...]  # S names
    grid: tuple[float, ...]  # G + 1 sparsities, the first is 0
    curves: tuple[tuple[float, ...], ...]  # (S, G + 1): log-odds less those of the original

    @classmethod
    def of(cls, atlas: Atlas) -> "Prediction":
        """From an atlas in which every cell is known."""
        if not atlas.complete:
            raise ValueError("a prediction needs a complete atlas")
        original = link(atlas.original_hits / max(atlas.n, 1))
        curves = tuple(
            (0.0, *(link(accuracy) - original for accuracy in row)) for row in atlas.accuracy.tolist()
        )
        return cls(atlas.question, atlas.sliders, (0.0, *atlas.sparsities), curves)

    def predict(self, plan: Plan, anchor: Anchor) -> tuple[float, Interval]:
        """Accuracy, and the band it may lie in; docs/performance.md has how often it did."""
        moved = sum(
            self._added(curve, plan.sparsity(name)) - self._added(curve, anchor.plan.sparsity(name))
            for name, curve in zip(self.sliders, self.curves, strict=True)
        )
        middle, half = link(anchor.accuracy) + moved, BAND[0] + BAND[1] * abs(moved)
        return unlink(middle), (unlink(middle - half), unlink(middle + half))

    def to_dict(self, anchor: Anchor) -> dict[str, Any]:
        """The same for a browser, as JSON."""
        return {
            "grid": self.grid,
            "curves": [[round(value, 4) for value in curve] for curve in self.curves],
            "eps": EPSILON,
            "anchor": {
                "levels": [anchor.plan.sparsity(name) for name in self.sliders],
                "value": anchor.accuracy,
            },
            "band": BAND,
        }

    def _added(self, curve: tuple[float, ...], sparsity: float) -> float:
        """The curve at `sparsity`: straight between its points, and on beyond the last."""
        if sparsity <= self.grid[-1]:
            return float(np.interp(sparsity, self.grid, curve))
        slope = (curve[-1] - curve[-2]) / (self.grid[-1] - self.grid[-2])
        return curve[-1] + slope * (sparsity - self.grid[-1])


def link(accuracy: float) -> float:
    """Log-odds."""
    return math.log((accuracy + EPSILON) / (1 - accuracy + EPSILON))


def unlink(value: float) -> float:
    """The accuracy with these log-odds, in [0, 1]."""
    odds = math.exp(min(value, 50.0))
    return min(max((odds * (1 + EPSILON) - EPSILON) / (1 + odds), 0.0), 1.0)
