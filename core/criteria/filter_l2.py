"""Filter L2: filters of small norm matter least."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Grain, Scores
from core.layers import prunable
from core.run import Run


@CRITERIA.register
@dataclass(frozen=True)
class FilterL2(Criterion):
    """The Euclidean norm of a filter's weights.

    Larger filters have larger norms, so a comparison across layers favours them.

    Source: He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks",
    IJCAI 2018, arXiv:1808.06866, equation 2.
    """

    name: ClassVar[str] = "filter-l2"
    title: ClassVar[str] = "Filter L2"
    grain: ClassVar[Grain] = "filter"

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        weights = {name: layer.weight.detach().flatten(1) for name, layer in prunable(model).items()}
        return {name: weight.norm(p=2, dim=1) for name, weight in weights.items()}  # (O,)
