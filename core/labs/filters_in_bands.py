"""Filters in bands: one kernel as a sum of cosine patterns, and what is left of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from torch import Tensor

from core.bundles import Setting
from core.criterion import Ranking
from core.errors import UnsupportedModelError
from core.figure import Figure
from core.frequency import basis_of, importance, kernel_layers, kernel_of, side_names
from core.lab import LABS, Lab
from core.method import number
from core.run import Run

LARGEST = 11  # side of a kernel that can be looked at


@LABS.register
@dataclass(frozen=True)
class FiltersInBands(Lab):
    """What is a kernel made of, and what is left of it when most weights or coefficients are gone?

    One kernel of one layer: its weights, its cosine coefficients, and what is left of both when the
    same share of the whole layer's weights, or coefficients, becomes zero. Then the patterns that
    the coefficients stand for, side by side: their frequency rises downwards and to the right.
    Kernels are numbered by size, the largest first. Kernels of one axis, of three, or of more than
    11 x 11 numbers are left out.

    Source: Liu, Xu, Peng and Xiong, "Frequency-Domain Dynamic Pruning for Convolutional Neural
    Networks", NeurIPS 2018.
    """

    name: ClassVar[str] = "filters-in-bands"

    layer: int = number(2, 1, 500, 1, help="Which layer, counted from the input; the last if there are fewer")
    kernel: int = number(100, 1, 100_000, 1, help="Which of its kernels, 1 is the largest; the last if fewer")
    sparsity: float = number(0.7, 0.0, 1.0, 0.01, help="Fraction of the layer that goes, in either domain")
    tilt: float = number(0.0, -1.9, 1.9, 0.1, help="Above 0, high frequencies have to be larger to stay")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        layers = {
            name: layer.weight.detach().cpu().double()
            for name, layer in kernel_layers(self.name, setting.teacher).items()
            if len(kernel_of(layer.weight)) == 2 and max(kernel_of(layer.weight)) <= LARGEST
        }
        if not layers:
            raise UnsupportedModelError(
                f"{self.name}: the model must have kernels of at most {LARGEST} x {LARGEST}, got none"
            )
        name = list(layers)[min(self.layer, len(layers)) - 1]
        weight = layers[name]
        sizes = weight.flatten(2).norm(dim=2).flatten()
        chosen = int(sizes.argsort(descending=True, stable=True)[min(self.kernel, len(sizes)) - 1])
        spatial, frequency = (self._pruned(weight, domain) for domain in ("spatial", "frequency"))
        run.report(1.0, self.label())
        one = {  # panel -> one kernel
            "weights": weight,
            "weights pruned": spatial,
            "coefficients pruned": frequency,
            "what pruned weights lack": weight - spatial,
            "what pruned coefficients lack": weight - frequency,
        }
        basis, sides = basis_of(kernel_of(weight)), side_names(kernel_of(weight))
        two = {"all": basis.coefficients(weight), "left": basis.coefficients(frequency)}
        errors = [_error(weight, left) for left in (spatial, frequency)]
        here = [_error(weight.flatten(0, 1)[chosen], w.flatten(0, 1)[chosen]) for w in (spatial, frequency)]
        energy = basis.coefficients(weight).flatten(0, 1)[chosen].square().flatten()
        low = energy[basis.band < basis.bands / 2].sum() / energy.sum() if energy.any() else 0.0
        kept = (
            f"With {self.sparsity:.0%} zeros among weights this kernel is off by {here[0]:.1%} of its norm, "
            f"with as many among coefficients by {here[1]:.1%}; "
            f"all of {name} by {errors[0]:.1%} and {errors[1]:.1%}."
        )
        return (
            _kernels(f"One of {len(sizes):,} kernels in {name}", kept, one, chosen, ("row", "column")),
            _kernels(
                "Its coefficients",
                f"{low:.1%} of the kernel's energy lie in the lower half of the bands.",
                two,
                chosen,
                ("u", "v"),
            ),
            _patterns(basis.matrix, kernel_of(weight), sides),
        )

    def _pruned(self, weight: Tensor, domain: str) -> Tensor:
        basis = basis_of(kernel_of(weight), domain)
        keep = Ranking({"": importance(weight, basis, self.tilt)}).masks({"": self.sparsity})[""]
        return basis.weights(basis.coefficients(weight) * keep)


def _error(weight: Tensor, left: Tensor) -> float:
    """Of the norm of `weight`; 0 where that is 0."""
    return ((weight - left).norm() / weight.norm()).item() if weight.any() else 0.0


def _kernels(
    title: str, finding: str, panels: dict[str, Tensor], chosen: int, axes: tuple[str, str]
) -> Figure:
    """The kernel number `chosen` of every weight (O, I, H, W) in `panels`."""
    rows = [
        {"panel": panel, axes[0]: i, axes[1]: j, "value": value.item()}
        for panel, weight in panels.items()
        for (i, j), value in np.ndenumerate(weight.flatten(0, 1)[chosen])
    ]
    return Figure(title, finding, pd.DataFrame(rows), axes[1], axes[0], "heat", panel="panel", value="value")


def _patterns(matrix: Tensor, sides: tuple[int, int], name: str) -> Figure:
    """All patterns as one picture, an empty line between each and the next."""
    high, wide = sides
    rows = [
        {
            "down": u * (high + 1) + i,
            "across": v * (wide + 1) + j,
            "value": matrix[u * wide + v, i * wide + j].item(),
        }
        for u, v, i, j in np.ndindex(high, wide, high, wide)
    ]
    finding = (
        f"A kernel of {name} is a sum of these {high * wide} patterns; the first is the same everywhere."
    )
    return Figure("The patterns", finding, pd.DataFrame(rows), "across", "down", "heat", value="value")
