"""Fine-tuning: train on, so that the weights that are left make up for those that are gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from core.bundles import Setting
from core.figure import Figure
from core.layers import require_prunable
from core.method import nested
from core.objective import OBJECTIVES, Objective
from core.recipe import COMPRESSORS
from core.run import Run
from core.tuning import Tuning


@COMPRESSORS.register
@dataclass(frozen=True)
class FineTuning(Tuning):
    """Train for a few more epochs at a small learning rate; what was pruned stays pruned.

    Weights masked by an earlier step stay exactly zero. Batch-norm statistics are updated too. The
    objective says what is learned from: the labels, or the original network's answers, features or
    attribution maps; the original is always the untouched one, whatever steps came before.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015, arXiv:1506.02626, section 3 (retraining); the schedule of the preset "paper" is that
    of Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710, section 4, where
    the objective has none of its own.
    """

    name: ClassVar[str] = "fine-tuning"
    variants: ClassVar[tuple[str, ...]] = ("objective",)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "epochs": 40,
            "learning_rate": 0.001,
            "schedule": "constant",
            "crop": 4,
            "images": 1_000_000,
        },
        "fresh-weights": {"epochs": 10, "learning_rate": 0.1, "schedule": "one-cycle", "images": 4096},
    }

    objective: Objective = nested(OBJECTIVES, "labels", help="What the network learns from")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        require_prunable(model)
        self.tune(model, self.objective.bind(model, setting, self, run), setting, run)
        return model

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        return self.objective.figures(before, after, setting, run)
