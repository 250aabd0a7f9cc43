"""Latent distance: AP2 and AP3 of every layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor, nn

from core.bundles import Setting
from core.diagnosis import DIAGNOSTICS, Diagnostic
from core.factors import dense_weight
from core.figure import Figure
from core.latent import Estimate, ap2, ap2_relative, ap3_gaussian, ap3_student
from core.layers import private_copy, prunable, require_finite, require_prunable
from core.method import number
from core.run import Run


@DIAGNOSTICS.register
@dataclass(frozen=True)
class LatentDistance(Diagnostic):
    """How far every layer's weights moved: squared distance, and divergence in two latent spaces.

    `ap2` is the squared distance of the weights before and after, `ap2_relative` the same over the
    squared norm before: for pruning, the energy of what went. `ap3_gaussian` is the divergence, in
    nats, of two Gaussians with those weights as centres and `scale` I as covariance, and so AP2 / (2
    scale) and nothing new. `ap3_student` is that of two Student-t distributions around means of
    neighbouring weights, a formula for small moves and else a mean over draws with a standard error.
    Biases are left out, and a factorised layer is what its factors amount to. Where the shape of a
    layer changed, or it is gone, nothing is defined: it is not known which filters are left.

    Source: Mozafari-Nia and Yasaei Sekeh, "Towards Explaining Deep Neural Network Compression
    Through a Probabilistic Latent Space", 2024, arXiv:2403.00155.
    """

    name: ClassVar[str] = "latent-distance"

    scale: float = number(
        1.0, 1e-6, 1e6, 1e-6, scale="log", help="Spread of both latent spaces, lambda: a choice, not a fit"
    )
    nu: float = number(
        4.0,
        1.0,
        100.0,
        0.1,
        scale="log",
        help="Degrees of freedom of the Student-t: many, and it is Gaussian",
    )
    groups: int = number(
        100, 1, 10_000, 1, scale="log", help="Groups of neighbouring weights whose means centre the Student-t"
    )
    samples: int = number(
        20_000,
        100,
        1_000_000,
        100,
        scale="log",
        help="Pairs of draws for the Student-t where a move is large",
    )

    def measure(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> pd.DataFrame:
        require_prunable(before)
        for model in (before, after):
            require_finite(model)
        old, new = prunable(private_copy(before)), dict(private_copy(after).named_modules())
        rows = [
            {"layer": name, "weights": layer.weight.numel()}
            | self._distances(layer.weight, dense_weight(new[name]) if name in new else None)
            for name, layer in run.track(old.items(), "Comparing layers")
        ]
        return pd.DataFrame(rows)

    def _distances(self, before: Tensor, after: Tensor | None) -> dict[str, Any]:
        known = after is not None and after.shape == before.shape
        student = Estimate(math.nan, math.nan)
        if known:
            groups = min(self.groups, before.numel())
            student = ap3_student(before, after, self.nu, self.scale, groups, self.samples)
        return {
            "ap2": ap2(before, after) if known else math.nan,
            "ap2_relative": ap2_relative(before, after) if known else math.nan,
            "ap3_gaussian": ap3_gaussian(before, after, self.scale) if known else math.nan,
            "ap3_student": student.value,
            "ap3_student_error": student.error,
        }

    def figures(self, table: pd.DataFrame) -> Sequence[Figure]:
        known = table.dropna(subset="ap2_relative")
        if known.empty:
            return ()  # no layer has the same shape before and after
        return (_distance_figure(known), *self._divergence_figure(known))

    def _divergence_figure(self, known: pd.DataFrame) -> tuple[Figure, ...]:
        spaces = {"ap3_gaussian": "Gaussian", "ap3_student": "Student-t"}
        long = known.rename(columns=spaces).melt("layer", list(spaces.values()), "latent_space", "ap3")
        long = long[long.ap3 > 0]
        if long.empty:
            return ()
        both = known[(known.ap3_gaussian > 0) & (known.ap3_student > 0)]
        times = (both.ap3_gaussian / both.ap3_student).median()
        compared = "" if math.isnan(times) else f" and {times:.3g} times the Student-t's in the median layer"
        finding = (
            f"The Gaussian AP3 is AP2 / (2 lambda), lambda = {self.scale:g}{compared}: "
            "weights of opposite signs nearly cancel in the means that centre the Student-t."
        )
        return (
            Figure(
                "Divergence by layer",
                finding,
                long,
                "layer",
                "ap3",
                "points",
                colour="latent_space",
                log=frozenset({"ap3"}),
                labels={"ap3": "AP3, nats"},
            ),
        )


def _distance_figure(known: pd.DataFrame) -> Figure:
    most = known.loc[known.ap2_relative.idxmax()]
    finding = (
        f"{most.layer} moved furthest: AP2 is {most.ap2_relative:.1%} of its squared norm, "
        f"against {known.ap2_relative.median():.1%} in the median layer."
    )
    return Figure(
        "Squared distance by layer",
        finding if most.ap2_relative else "No weight moved.",
        known,
        "layer",
        "ap2_relative",
        "bars",
        percent=frozenset({"ap2_relative"}),
        labels={"ap2_relative": "AP2, of the squared norm before"},
    )
