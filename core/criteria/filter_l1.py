"""Filter L1: filters of small absolute weights matter least."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Grain, Scores
from core.layers import prunable
from core.run import Run


@CRITERIA.register
@dataclass(frozen=True)
class FilterL1(Criterion):
    """The sum of the absolute weights of a filter.

    Larger filters have larger norms, so a comparison across layers favours them.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710, section 3.1.
    """

    name: ClassVar[str] = "filter-l1"
    title: ClassVar[str] = "Filter L1"
    grain: ClassVar[Grain] = "filter"

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        weights = {name: layer.weight.detach().flatten(1) for name, layer in prunable(model).items()}
        return {name: weight.norm(p=1, dim=1) for name, weight in weights.items()}  # (O,)
