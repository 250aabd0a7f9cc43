"""Random: the floor that every criterion must beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Grain, Scores
from core.layers import prunable
from core.run import Run


@CRITERIA.register
@dataclass(frozen=True)
class Random(Criterion):
    """Uniform random numbers: what a ranking that knows nothing would remove.

    Filters draw numbers of their own, one each, so that large filters are not favoured by a sum.

    Source: Mittal et al., "Recovering from Random Pruning: On the Plasticity of Deep Convolutional
    Neural Networks", WACV 2018, arXiv:1801.10447.
    """

    name: ClassVar[str] = "random"
    grain: ClassVar[Grain] = "weight"

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        return {name: torch.rand(layer.weight.shape) for name, layer in prunable(model).items()}

    def filter_scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        return {name: torch.rand(len(layer.weight)) for name, layer in prunable(model).items()}
