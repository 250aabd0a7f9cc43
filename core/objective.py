"""What a network is trained for, declared: the objectives that methods which train can be given."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from core.bundles import Setting
from core.figure import Figure
from core.method import Method
from core.registry import Registry
from core.run import Run
from core.training import Schedule, Task


class Objective(Method):
    """Makes the task that `core.training.fit` minimises."""

    paper: ClassVar[Mapping[str, Any]] = {}  # fields of Schedule as its source trained

    def bind(self, model: nn.Module, setting: Setting, schedule: Schedule, run: Run) -> Task:
        """The task of training `model`, which it may look at but not change, under `schedule`.

        May train something of its own first. Random numbers are torch's, already seeded.

        Raises:
            UnsupportedModelError: it cannot be trained for this.
        """
        raise NotImplementedError

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        """See `Compressor.figures`."""
        return ()


OBJECTIVES: Registry[type[Objective]] = Registry("core.objectives", "objective")
