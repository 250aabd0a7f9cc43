"""Fine-tuning: train on, so that the weights that are left make up for those that are gone."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from core.bundles import Setting
from core.criterion import sample
from core.layers import require_prunable
from core.method import choice, flag, number
from core.recipe import COMPRESSORS, Compressor
from core.run import Run
from core.training import Schedule, classification_loss, fit

WATCHED = 1000  # validation pictures on which accuracy is recorded after every epoch


@COMPRESSORS.register
@dataclass(frozen=True)
class FineTuning(Compressor, Schedule):
    """Train for a few more epochs at a small learning rate; what was pruned stays pruned.

    Weights masked by an earlier step stay exactly zero. Batch-norm statistics are updated too. The
    defaults suit any data and finish in seconds: few pictures, no mirroring, which would harm digits.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015, arXiv:1506.02626, section 3 (retraining).
    """

    name: ClassVar[str] = "fine-tuning"

    epochs: int = number(2, 1, 500, 1, help="Passes over the pictures")
    learning_rate: float = number(0.02, 1e-6, 10.0, 1e-6, scale="log", help="Peak learning rate")
    schedule: str = choice("cosine", "one-cycle", "constant", help="Learning rate over time")
    crop: int = number(2, 0, 16, 1, unit="pixels", help="Random shift by up to this many pixels")
    flip: bool = flag(False, help="Mirror half of the pictures")
    images: int = number(2048, 1, 1_000_000, 1, help="Training pictures, drawn once; all if there are fewer")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        require_prunable(model)
        train, watched = sample(setting.train, self.images), sample(setting.validation, WATCHED)
        fit(model, train, classification_loss(self.label_smoothing), self, run, validation=watched)
        return model
