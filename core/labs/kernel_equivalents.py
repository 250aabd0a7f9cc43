"""Kernel equivalents: a wide random network's kernel from a few numbers of its activation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from core.bundles import Setting
from core.conjugate import Mixture, conjugate_kernel, equivalents, relative_distance, relu_kernels
from core.figure import Figure
from core.lab import LABS, Lab
from core.method import number
from core.moments import Activation, coefficients, propagate
from core.random_features import Draw, Standard, gaussian, random_layers, ternary, twin_activations
from core.run import Run

DEPTHS = (1, 2, 3)


@LABS.register
@dataclass(frozen=True)
class KernelEquivalents(Lab):
    """Two Gaussian classes: how few numbers of an activation decide what a wide random network sees.

    Points come from two classes that differ in mean and in variance, as many as they have
    dimensions. First, the exact kernels of infinitely wide ReLU networks against matrices made of
    three coefficients, the points' inner products and the classes: they agree better the more points
    there are. Second, kernels of networks of finite width: ternary weights come as close to the
    limit as Gaussian ones. Third, three steps with ReLU's moments: the kernel is ReLU's and a
    multiple of the identity, which is known beforehand. The network on the screen is not looked at.

    Source: Gu et al., "'Lossless' Compression of Deep Neural Networks: A High-dimensional Neural
    Tangent Kernel Approach", NeurIPS 2022, arXiv:2403.00258.
    """

    name: ClassVar[str] = "kernel-equivalents"

    samples: int = number(400, 40, 1000, 20, help="Points, and dimensions, of the largest experiment")
    width: int = number(2000, 64, 8000, 8, unit="units", help="Units of the widest network that is drawn")
    zeros: float = number(0.5, 0.0, 0.95, 0.01, help="Fraction of the ternary weights that are zero")
    apart: float = number(3.0, 0.0, 10.0, 0.1, help="Distance of the classes' means from the origin")
    spread: float = number(
        2.0, 0.0, 4.0, 0.1, help="Difference of the classes' variances, times root of dimensions"
    )

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        with run.step(0, 3):
            growing = self._equivalents(run)
        with run.step(1, 3):
            points = self._classes(self.samples // 2).sample(self.samples // 2)[0]
            widening = self._widths(points, run)
        with run.step(2, 3):
            shifting = self._shift(points, run)
        return growing, widening, shifting

    def _classes(self, dimensions: int) -> Mixture:
        mean = torch.randn(dimensions)
        mean *= self.apart / mean.norm()
        half = self.spread / math.sqrt(dimensions) / 2
        variances = torch.ones(2, dimensions) * torch.tensor([[1 - half], [1 + half]])
        return Mixture(torch.stack([mean, -mean]), variances)

    def _equivalents(self, run: Run) -> Figure:
        rows = []
        layers = coefficients(propagate((F.relu,) * len(DEPTHS)))
        for count in run.track([self.samples // 4, self.samples // 2, self.samples], "Comparing kernels"):
            classes = self._classes(count)
            points, labels = classes.sample(count)
            for depth, exact in enumerate(relu_kernels(points @ points.T, len(DEPTHS)), 1):
                found = equivalents(layers[depth - 1], classes, points, labels)
                for kind, kernel, matrix in zip(("conjugate", "tangent"), exact, found, strict=True):
                    distance = relative_distance(kernel, matrix)
                    rows.append({"kernel": kind, "layers": f"{depth}", "points": count, "distance": distance})
        table = pd.DataFrame(rows)
        deep = table[table.layers == f"{DEPTHS[-1]}"].set_index(["kernel", "points"]).distance
        words = ", ".join(
            f"{kind} {deep[kind, self.samples // 4]:.0%} to {deep[kind, self.samples]:.0%}"
            for kind in ("conjugate", "tangent")
        )
        return Figure(
            "Exact kernels and their equivalents",
            f"Relative distance in operator norm for {DEPTHS[-1]} layers of infinite width, from "
            f"{self.samples // 4} to {self.samples} points in as many dimensions: {words}.",
            table,
            "points",
            "distance",
            colour="layers",
            panel="kernel",
            log=frozenset({"points", "distance"}),
            labels={"points": "points = dimensions", "distance": "relative distance"},
        )

    def _widths(self, points: Tensor, run: Run) -> Figure:
        exact = relu_kernels(points @ points.T, 1)[0][0]
        rows = []
        for width in run.track([self.width // 8, self.width // 4, self.width // 2, self.width], "Drawing"):
            for name, draw in self._draws().items():
                distance = relative_distance(exact, _sampled(points, draw, (F.relu,), width))
                rows.append({"weights": name, "units": width, "distance": distance})
        table = pd.DataFrame(rows)
        widest = table[table.units == self.width].set_index("weights").distance
        words = ", ".join(f"{name} {distance:.1%}" for name, distance in widest.items())
        return Figure(
            "Width",
            f"Distance of the kernel of one random ReLU layer of {self.width} units from that of an "
            f"infinitely wide one, {len(points)} points: {words}.",
            table,
            "units",
            "distance",
            colour="weights",
            log=frozenset({"units", "distance"}),
            labels={"units": "units in the layer", "distance": "relative distance"},
        )

    def _shift(self, points: Tensor, run: Run) -> Figure:
        """Three steps against ReLU, both drawn with Gaussian weights."""
        rows = []
        for depth in run.track(DEPTHS, "Drawing networks"):
            relu, steps = twin_activations("weights-only", depth), twin_activations("paper", depth)
            dense, again, few = (
                _sampled(points, gaussian, activations, self.width) for activations in (relu, relu, steps)
            )
            delta = propagate(steps)[-1].tau ** 2 - propagate(relu)[-1].tau ** 2
            cleared = few - delta * torch.eye(len(few), dtype=few.dtype)
            for name, kernel in (
                ("ReLU, drawn again", again),
                ("three steps", few),
                ("three steps, less the known multiple of I", cleared),
            ):
                rows.append({"network": name, "layers": depth, "distance": relative_distance(dense, kernel)})
        table = pd.DataFrame(rows)
        deep = table[table.layers == DEPTHS[-1]].distance.tolist()
        return Figure(
            "Three steps in the place of ReLU",
            f"With {DEPTHS[-1]} layers of {self.width} units the kernel of three steps is {deep[1]:.0%} from "
            f"ReLU's, and {deep[2]:.0%} once the known multiple of the identity is taken off; another draw "
            f"of ReLU's weights is {deep[0]:.0%} away.",
            table,
            "layers",
            "distance",
            "bars",
            colour="network",
            labels={"distance": "relative distance"},
        )

    def _draws(self) -> dict[str, Draw]:
        few = partial(ternary, zeros=min(self.zeros, 1 - 2 / self.samples))
        return {"Gaussian": gaussian, f"ternary, {self.zeros:.0%} zeros": few}


def _sampled(points: Tensor, draw: Draw, activations: Sequence[Activation], width: int) -> Tensor:
    """The conjugate kernel (N, N) of one random network."""
    network = random_layers(draw, activations, width, Standard(torch.zeros(points.shape[1]), 1.0))
    with torch.no_grad():
        return conjugate_kernel(network(points.float()), propagate(activations)[-1].mean)
