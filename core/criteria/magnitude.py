"""Magnitude: the smallest weights matter least."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Grain, Scores
from core.layers import prunable
from core.run import Run


@CRITERIA.register
@dataclass(frozen=True)
class Magnitude(Criterion):
    """The absolute value of the weight.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015, arXiv:1506.02626, section 3.
    """

    name: ClassVar[str] = "magnitude"
    grain: ClassVar[Grain] = "weight"

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        return {name: layer.weight.detach().abs() for name, layer in prunable(model).items()}
