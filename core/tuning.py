"""What methods that train have in common: how long, on how many pictures, watched on which."""

from dataclasses import dataclass, replace
from typing import Self

from torch import nn

from core.bundles import Setting
from core.criterion import sample
from core.method import choice, flag, number
from core.recipe import Compressor
from core.run import Run
from core.training import Schedule, Task, fit

WATCHED = 1000  # validation pictures on which accuracy is recorded after every epoch


@dataclass(frozen=True)
class Tuning(Compressor, Schedule):
    """A compressor that trains. Its defaults suit any data and finish soon.

    They take few pictures and do not mirror them, which would harm digits.
    """

    epochs: int = number(2, 1, 500, 1, help="Passes over the pictures")
    learning_rate: float = number(0.02, 1e-6, 10.0, 1e-6, scale="log", help="Peak learning rate")
    schedule: str = choice("cosine", "one-cycle", "constant", help="Learning rate over time")
    crop: int = number(2, 0, 16, 1, unit="pixels", help="Random shift by up to this many pixels")
    flip: bool = flag(False, help="Mirror half of the pictures")
    images: int = number(2048, 1, 1_000_000, 1, help="Training pictures, drawn once; all if there are fewer")

    def preset(self, name: str) -> Self:
        """Of a method with an objective, the paper is the objective's."""
        found = super().preset(name)
        objective = getattr(self, "objective", None)
        return replace(found, **objective.paper) if name == "paper" and objective else found

    def tune(self, model: nn.Module, task: Task, setting: Setting, run: Run) -> None:
        """Train `model` in place for `task`; see `core.training.fit`."""
        train, watched = sample(setting.train, self.images), sample(setting.validation, WATCHED)
        fit(model, train, task, self, run, validation=watched)
