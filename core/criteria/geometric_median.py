"""Geometric median: the filters that the others can stand in for matter least."""

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
class GeometricMedian(Criterion):
    """The sum of a filter's Euclidean distances to all filters of its layer.

    Filters close to the layer's geometric median are like many others and go first; a small filter
    among large ones may be kept. A layer of one filter has score 0.

    Source: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration", CVPR 2019, arXiv:1811.00250, equations 4 to 7.
    """

    name: ClassVar[str] = "geometric-median"
    grain: ClassVar[Grain] = "filter"

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        found = {}
        for name, layer in run.track(prunable(model).items(), "Comparing filters"):
            weight = layer.weight.detach().flatten(1).double()  # float32 would blur equal filters
            found[name] = torch.cdist(weight, weight).sum(1).float()  # (O,)
        return found
