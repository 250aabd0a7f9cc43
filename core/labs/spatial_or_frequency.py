"""Spatial or frequency: the same number of zeros among weights and among cosine coefficients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from torch import nn
from torch.nn import functional as F

from core.bundles import Setting, Split
from core.evaluation import correct, logits, wilson
from core.figure import Figure
from core.frequency import kernel_layers, one_shot
from core.lab import LABS, Lab
from core.method import number
from core.run import Run

SPARSITIES = (0.5, 0.7, 0.8, 0.9)
TILTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)


@LABS.register
@dataclass(frozen=True)
class SpatialOrFrequency(Lab):
    """Does a network keep more if cosine coefficients become zero, instead of as many weights?

    Every layer with kernels larger than 1 loses the same share of its smallest weights, or of the
    smallest coefficients of its kernels, or of these with a threshold that is tilted against high
    frequencies (see method "frequency"). Nothing is trained; other layers stay. Accuracy with its
    95 % interval and mean cross-entropy on the first `images` validation pictures; the second pair
    of figures has one sparsity and all tilts.

    Source: Liu, Xu, Peng and Xiong, "Frequency-Domain Dynamic Pruning for Convolutional Neural
    Networks", NeurIPS 2018. The tilted threshold is of our making.
    """

    name: ClassVar[str] = "spatial-or-frequency"
    title: ClassVar[str] = "Spatial or frequency?"

    images: int = number(200, 20, 10_000, 20, help="Validation pictures to measure on")
    sparsity: float = number(
        0.8, 0.1, 0.99, 0.01, help="Fraction of coefficients that goes, where tilts vary"
    )
    tilt: float = number(0.5, -1.9, 1.9, 0.1, help="Above 0, high frequencies have to be larger to stay")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        layers = list(kernel_layers(self.name, setting.teacher))
        split = setting.validation.take(slice(0, self.images))
        ways = {"weights": ("spatial", 0.0), "coefficients": ("frequency", 0.0)}
        if self.tilt:
            ways[f"tilt {self.tilt:+g}"] = ("frequency", self.tilt)
        points = [(name, s, *way) for s in SPARSITIES for name, way in ways.items()]
        points += [("every tilt", self.sparsity, "frequency", tilt) for tilt in TILTS]
        dense = _measure(setting.teacher, split)
        rows = [{"way": name, "sparsity": 0.0, "tilt": way[1]} | dense for name, way in ways.items()]
        for name, sparsity, domain, tilt in run.track(points, "Pruning and measuring"):
            network = one_shot(setting.teacher, layers, sparsity, domain, tilt)
            rows.append({"way": name, "sparsity": sparsity, "tilt": tilt} | _measure(network, split))
        table = pd.DataFrame(rows)
        swept = table.way == "every tilt"
        return *_by_sparsity(table[~swept], len(split)), *_by_tilt(table[swept], self.sparsity)


def _measure(network: nn.Module, split: Split) -> dict[str, Any]:
    answers = logits(network, split)
    hits = int(correct(answers, split.labels).sum())
    low, high = wilson(hits, len(split))
    loss = F.cross_entropy(answers, split.labels).item()
    return {"accuracy": hits / len(split), "low": low, "high": high, "loss": loss}


def _by_sparsity(table: pd.DataFrame, n: int) -> tuple[Figure, Figure]:
    wide = table.pivot(index="sparsity", columns="way", values=["accuracy", "loss"])
    gap = (wide.accuracy.coefficients - wide.accuracy.weights).iloc[1:]
    at = gap.abs().idxmax()
    accuracy = (
        f"At {at:.0%} zeros, where they differ most, {wide.accuracy.weights[at]:.1%} of {n} pictures are "
        f"right with zero weights and {wide.accuracy.coefficients[at]:.1%} with zero coefficients."
    )
    best = wide.loss.idxmin(axis=1).iloc[1:]
    loss = "The lowest loss at " + ", ".join(f"{s:.0%} has: {way}" for s, way in best.items()) + "."
    return (
        Figure("Accuracy by sparsity", accuracy, table, "sparsity", "accuracy", "line", "way",
               low="low", high="high", percent=frozenset({"sparsity", "accuracy"})),
        Figure("Loss by sparsity", loss, table, "sparsity", "loss", "line", "way",
               percent=frozenset({"sparsity"})),
    )  # fmt: skip


def _by_tilt(table: pd.DataFrame, sparsity: float) -> tuple[Figure, Figure]:
    best, plain = table.loc[table.loss.idxmin()], table[table.tilt == 0].iloc[0]
    loss = (
        f"At {sparsity:.0%} zeros the loss is lowest with tilt {best.tilt:g}: {best.loss:.3f}; with tilt 0 "
        f"it is {plain.loss:.3f}."
    )
    most = table.loc[table.accuracy.idxmax()]
    accuracy = (
        f"Most pictures are right with tilt {most.tilt:g}: {most.accuracy:.1%}; with tilt 0 it is "
        f"{plain.accuracy:.1%}."
    )
    return (
        Figure("Accuracy by tilt", accuracy, table, "tilt", "accuracy", "line", low="low", high="high",
               percent=frozenset({"accuracy"})),
        Figure("Loss by tilt", loss, table, "tilt", "loss", "line"),
    )  # fmt: skip
