"""Quantisation: every weight on a grid of few values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.bundles import Setting
from core.figure import Figure
from core.layers import prunable, require_finite, require_prunable
from core.method import choice, number
from core.recipe import COMPRESSORS, Compressor
from core.rounding import Rounding
from core.run import Run


@COMPRESSORS.register
@dataclass(frozen=True)
class Quantize(Compressor):
    """Round weights to integers of `bits` bits, times one number for the layer or for every filter.

    The grid is symmetric: from -(2^(bits-1) - 1) to 2^(bits-1) - 1, and the largest weight lies at its
    end, so that zero stays zero. Weights are kept as the real numbers that the integers stand for;
    biases, norms and activations stay as they are: what is lost is seen, what integer arithmetic would
    save in time is not. A later step that trains goes on training the weights before rounding and lets
    the gradient pass as if there were none (straight through), so that the network ends on the grid.

    Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018,
    arXiv:1806.08342, section 2 (symmetric, per layer and per channel); Bengio et al., "Estimating or
    Propagating Gradients Through Stochastic Neurons", 2013, arXiv:1308.3432 (straight through).
    """

    name: ClassVar[str] = "quantize"
    title: ClassVar[str] = "Quantisation"

    bits: int = number(8, 2, 16, 1, help="Bits of every weight")
    grid: str = choice("layer", "filter", help="What shares one step: a whole layer, or each of its filters")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        require_finite(model)
        layers = require_prunable(model)
        for layer in run.track(list(layers.values()), "Rounding"):
            parametrize.register_parametrization(layer, "weight", Rounding(self.bits, self.grid == "filter"))
        return model

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        there = prunable(after)
        rows = [
            {"layer": name, "error": _error(layer.weight, there[name].weight)}
            for name, layer in prunable(before).items()
            if name in there and there[name].weight.shape == layer.weight.shape
        ]
        if not rows:
            return ()
        table = pd.DataFrame(rows)
        worst = table.loc[table.error.idxmax()]
        finding = (
            f"Rounding moves the weights of a layer by {table.error.median():.2%} of their length in the "
            f"median, most in {worst.layer} ({worst.error:.2%})."
        )
        form = {
            "percent": frozenset({"error"}),
            "labels": {"error": "distance moved, of the weights' length"},
        }
        return [Figure("How far do weights move?", finding, table, "layer", "error", "bars", **form)]


def _error(before: Tensor, after: Tensor) -> float:
    length = before.norm().item()
    return (after - before).norm().item() / length if length else 0.0
