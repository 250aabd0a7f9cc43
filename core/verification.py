"""What can be proved about a network's answers."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from core.method import Method
from core.registry import Registry
from core.run import Run

Status = Literal["proved", "refuted", "unknown"]


@dataclass(frozen=True, eq=False)
class Verdict:
    """The answer to one question about one image.

    "proved": no input in question breaks the property. "refuted": `counterexample` (C, H, W) does.
    "unknown": neither was shown, for instance because time ran out; it is never reported as proved.
    `proof` is whatever the property can reuse when it checks a changed network.
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
    """Something that a network should do on all inputs of a set around an image."""

    def check(self, model: nn.Module, image: Tensor, run: Run, proof: Any = None) -> Verdict:
        """Whether `model`, which must not be changed, has the property around `image` (C, H, W).

        `proof`, of an earlier verdict on a similar network, may save work and never changes the answer.
        """
        raise NotImplementedError


PROPERTIES: Registry[type[Property]] = Registry("core.properties", "property")
