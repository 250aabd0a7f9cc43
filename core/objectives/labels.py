"""Labels alone: plain training."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from core.bundles import Setting
from core.objective import OBJECTIVES, Objective
from core.run import Run
from core.training import Classification, Schedule, Task


@OBJECTIVES.register
@dataclass(frozen=True)
class Labels(Objective):
    """The right class, as the labels say: cross-entropy, nothing of the original network.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015, arXiv:1506.02626, section 3 (retraining).
    """

    name: ClassVar[str] = "labels"

    def bind(self, model: nn.Module, setting: Setting, schedule: Schedule, run: Run) -> Task:
        return Classification(schedule.label_smoothing)
