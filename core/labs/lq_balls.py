"""l_q balls: why a small q means few weights, and what that says about one neuron."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.bundles import Setting
from core.compressibility import (
    keep_bound,
    keep_exact,
    lq_norm,
    pq_index,
    sparsity_index,
    stechkin,
    tail_shares,
)
from core.errors import ParameterError, UnsupportedModelError
from core.figure import Figure, Reference
from core.lab import LABS, Lab
from core.layers import require_prunable
from core.method import number
from core.run import Run

OTHERS = (0.25, 0.5, 1.0, 2.0)  # exponents of the balls drawn beside the chosen one
CORNER = 10  # degrees: a direction this close to an axis has one entry that outweighs the other


@LABS.register
@dataclass(frozen=True)
class LqBalls(Lab):
    """Unit balls of l_q shrink towards the axes; one neuron's sorted weights beside the bound they obey.

    The ball of q is where |x|^q + |y|^q <= 1. The smaller q, the nearer to an axis a vector of the ball must
    point, so a small l_q norm says that few entries carry the vector. The neuron is one output unit of the
    network: its nonzero weights in order of size; how much of their l_1 norm all but the m largest have,
    T_m; and the most that the l_q norm allows, C_q m^(1 - 1/q) ||w||_q. A neuron keeps the first m at which
    this is below the tolerance.

    Source: Yang et al., "A Theoretical Understanding of Neural Network Compression from Sparse Linear
    Approximation", 2022, arXiv:2206.05604; Gao, Ing and Yang, "Metric entropy and sparse linear
    approximation of l_q-hulls for 0 < q <= 1", Journal of Approximation Theory 166, 2013.
    """

    name: ClassVar[str] = "lq-balls"
    title: ClassVar[str] = "l_q balls"

    q: float = number(0.5, 0.1, 0.9, 0.05, help="Exponent of the norm")
    tolerance: float = number(
        0.3, 0.01, 0.99, 0.01, help="Share of its norm that the neuron may lose at most"
    )
    layer: int = number(1, 1, 500, 1, help="Convolution or linear layer, counted from the input")
    neuron: int = number(1, 1, 10000, 1, help="Filter or output unit of that layer, counted from 1")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        where, weights = self._neuron(setting)
        run.report(0.5, "Sorting weights")
        shares = tail_shares(weights)
        exact = int(keep_exact(shares, self.tolerance))
        index = sparsity_index(weights, self.q)
        bound = int(keep_bound(index, torch.tensor(len(weights)), self.q, self.tolerance))
        return (
            self._balls(),
            _sorted(where, weights, exact, bound, self.tolerance),
            self._tails(where, weights, shares, exact),
        )

    def _neuron(self, setting: Setting) -> tuple[str, Tensor]:
        """Its name, and its nonzero weights (d,), largest first."""
        layers = list(require_prunable(setting.teacher).items())
        if self.layer > len(layers):
            raise ParameterError(
                f"{self.name}: layer must be at most {len(layers)}, as many as there are, got {self.layer}"
            )
        name, layer = layers[self.layer - 1]
        if self.neuron > len(layer.weight):
            raise ParameterError(
                f"{self.name}: neuron must be at most {len(layer.weight)} in {name}, got {self.neuron}"
            )
        weights = layer.weight[self.neuron - 1].detach().double().abs().flatten()
        where = f"neuron {self.neuron} of {name}"
        if not weights.any():
            raise UnsupportedModelError(
                f"{self.name}: the model must have a nonzero weight in {where}, got none"
            )
        return where, weights[weights > 0].sort(descending=True).values

    def _balls(self) -> Figure:
        exponents = sorted({self.q, *OTHERS})
        curves = {q: _ball(q) for q in exponents}
        parts = [pd.DataFrame(curves[q], columns=["x", "y"]).assign(ball=f"q = {q:g}") for q in exponents]
        near, nearest = _near_axes(curves[self.q]), np.hypot(*curves[self.q].T).min()
        finding = (
            f"The ball of q = {self.q:g} reaches 1 along the axes and {nearest:.3f} between them; {near:.0%} "
            f"of its area lies within {CORNER} degrees of an axis, and {_near_axes(curves[2.0]):.0%} of a "
            f"circle's (q = 2)."
        )
        return Figure("Unit balls", finding, pd.concat(parts), "x", "y", colour="ball")

    def _tails(self, where: str, weights: Tensor, shares: Tensor, exact: int) -> Figure:
        norm, count = weights.sum(), len(weights)
        kept = torch.arange(1, count, dtype=torch.float64)
        limit = stechkin(self.q) * kept.pow(1 - 1 / self.q) * lq_norm(weights, self.q) / norm
        curves = {"T_m, exact": shares[1:count], f"l_q bound, q = {self.q:g}": limit}
        parts = [pd.DataFrame({"kept": kept, "share": v, "tail": name}) for name, v in curves.items()]
        start = pd.DataFrame({"kept": [0.0], "share": [1.0], "tail": ["T_m, exact"]})
        finding = (
            f"Keeping {exact} of the {count} weights of {where} leaves out {shares[exact]:.1%} of the norm"
        )
        if 0 < exact < count:
            finding += f"; the l_{self.q:g} norm alone would allow {min(limit[exact - 1], 1):.1%}"
        return Figure(
            "What all but the m largest have",
            f"{finding}. The tolerance is {self.tolerance:.0%}.",
            pd.concat([start, *parts]),
            "kept",
            "share",
            colour="tail",
            log=frozenset({"share"}),
            labels={"kept": "weights kept, m", "share": "share of the l_1 norm left out"},
            references=(Reference("y", self.tolerance, "tolerance"),),
        )


def _ball(q: float) -> np.ndarray:
    """Points (P, 2) all the way around where |x|^q + |y|^q = 1, dense where it turns."""
    angle = np.linspace(0, 2 * math.pi, 721)
    sides = np.stack([np.cos(angle), np.sin(angle)], 1)
    sides[np.abs(sides) < 1e-12] = 0
    return np.sign(sides) * np.abs(sides) ** (2 / q)


def _near_axes(curve: np.ndarray) -> float:
    """Share of the enclosed area in directions within `CORNER` degrees of an axis."""
    start, end = curve[:-1], curve[1:]
    areas = np.abs(start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0])
    middle = np.abs(start + end)
    away = np.degrees(np.arctan2(middle.min(1), middle.max(1)))
    return float(areas[away < CORNER].sum() / areas.sum())


def _sorted(where: str, weights: Tensor, exact: int, bound: int, tolerance: float) -> Figure:
    count = len(weights)
    table = pd.DataFrame({"rank": range(1, count + 1), "size": weights})
    table["weight"] = np.where(table["rank"] <= exact, "kept", "left out")
    finding = (
        f"Of the {count} weights of {where} the {exact} largest have all but {tolerance:.0%} of the norm; "
        f"the bound asks for {bound}. PQ index (0.5, 1) {pq_index(weights, 0.5, 1):.3f}, "
        f"(1, 2) {pq_index(weights, 1, 2):.3f}: 0 would be weights of equal size."
    )
    marks = (Reference("x", exact + 0.5, "exact"), Reference("x", bound + 0.5, "bound"))
    return Figure(
        "Weights in order of size",
        finding,
        table,
        "rank",
        "size",
        "points",
        colour="weight",
        log=frozenset({"size"}),
        labels={"size": "|weight|", "weight": ""},
        references=marks,
    )
