"""What can be proved about a network's answers."""

from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor, nn

from core.bundles import Split
from core.method import Method
from core.proving.proof import Status
from core.registry import Registry
from core.run import Run


@dataclass(frozen=True, eq=False)
class Verdict:
    """The answer about one picture.

    "proved": no input in question breaks the property. "refuted": `counterexample` (C, H, W), pixels
    in [0, 1], does, and has been put through the network. "unknown": neither was shown, for instance
    because time ran out; it is never reported as proved. `proof` may help with a changed network.
    """

    status: Status
    seconds: float
    counterexample: Tensor | None = None
    proof: Any = None

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"status must be one of {', '.join(get_args(Status))}, got {self.status!r}")
        if (self.status == "refuted") != (self.counterexample is not None):
            raise ValueError("a counterexample belongs to a refuted property, and to no other")


class Property(Method):
    """Something that a network should do on all inputs of a set around a picture."""

    def check(self, model: nn.Module, picture: Split, run: Run, proof: Any = None) -> Verdict:
        """Whether `model`, which must not be changed, has the property around a picture (a split of one).

        `proof`, of an earlier verdict on a similar network, may save work and never changes the answer.

        Raises:
            UnsupportedModelError: the network cannot be reasoned about.
            ParameterError: `proof` is about something else.
        """
        raise NotImplementedError


PROPERTIES: Registry[type[Property]] = Registry("core.properties", "property")
