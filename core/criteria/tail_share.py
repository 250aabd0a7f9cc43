"""Tail share: a weight matters least where it and all smaller ones are little of their neuron."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core.criterion import CRITERIA, Criterion, Grain, Scores
from core.layers import prunable
from core.run import Run


@CRITERIA.register
@dataclass(frozen=True)
class TailShare(Criterion):
    """How much of its neuron would be gone with this weight and all smaller ones.

    The sum of the absolute weights of an output unit up to and with this one, in order of size, over
    the sum of all: the largest weight of every unit scores 1. By one global threshold eta every unit
    keeps the fewest weights whose omission moves its output by at most eta ||w||_1 times the largest
    input: units of few large weights lose many, flat ones few, whatever their scale. Within a unit
    the order is that of magnitude, equal weights in order of position. A unit of zeros scores 0.

    Source: Yang et al., "A Theoretical Understanding of Neural Network Compression from Sparse Linear
    Approximation", 2022, arXiv:2206.05604 (keeping the largest weights of every neuron by how fast its
    sorted weights fall); as a score here.
    """

    name: ClassVar[str] = "tail-share"
    grain: ClassVar[Grain] = "weight"

    def scores(self, model: nn.Module, setting: object, run: Run) -> Scores:
        return {name: _tail_shares(layer.weight.detach()) for name, layer in prunable(model).items()}


def _tail_shares(weight: Tensor) -> Tensor:
    """(O, ...) -> the same shape, float32 in [0, 1]."""
    sizes, order = weight.double().abs().flatten(1).sort(stable=True)
    sums = sizes.cumsum(-1)
    shares = (sums / sums[:, -1:]).nan_to_num()
    return shares.scatter(-1, order, shares).view_as(weight)
