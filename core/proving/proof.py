"""Answers, and what is left of a proof to help with a changed network; it never decides by itself."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Literal as OneOf
from typing import NamedTuple, Self

import torch
from torch import Tensor

from core.errors import ParameterError
from core.proving.question import Question

Status = OneOf["proved", "refuted", "unknown"]


class Literal(NamedTuple):
    """A hidden ReLU whose input is positive (phase 1) or negative (phase -1)."""

    layer: int
    neuron: int
    phase: int


Core = tuple[Literal, ...]  # phases that no input of the box has together, as far as counterexamples go


@dataclass(frozen=True, eq=False)
class Proof:
    """Why a question had the answer it had.

    Of a proved one: either `cores` that jointly leave no choice of phases, the empty one where bounds
    were enough, or `boxes` that cover the box. Of another one: what had been found by then.
    """

    question: Question
    cores: tuple[Core, ...] = ()
    boxes: tuple[Tensor, Tensor] | None = None  # lower and upper ends, (B, I) each
    counterexample: Tensor | None = None

    def require_about(self, question: Question) -> None:
        """Refuse a proof of something else: the box may be smaller, never larger.

        Raises:
            ParameterError: inputs, outputs or box do not fit.
        """
        mine, theirs = self.question, question
        fits = len(mine.low) == len(theirs.low) and mine.network.outputs == theirs.network.outputs
        if not fits or (theirs.low < mine.low).any() or (theirs.high > mine.high).any():
            raise ParameterError(
                "proof: must be about the same picture, classes and a radius at least as large, got another's"
            )


@dataclass(frozen=True)
class Reuse:
    """What became of an old proof's cores (or boxes) on the changed network."""

    parts: int  # cores or boxes of the old proof
    trivial: int = 0  # hold because a literal's neuron cannot be in that phase any more
    valid: int = 0  # checked again, and hold
    broken: int = 0
    unchecked: int = 0  # left alone after too many were broken
    new: int = 0  # found for the changed network

    @property
    def rate(self) -> float:
        """Share of the old proof that holds."""
        return (self.trivial + self.valid) / self.parts if self.parts else 1.0

    @classmethod
    def total(cls, answers: Iterable["Answer"]) -> Self | None:
        """Of several questions together; None where nothing was to be reused."""
        parts = [astuple(answer.reuse) for answer in answers if answer.reuse is not None]
        return cls(*map(sum, zip(*parts, strict=True))) if parts else None


@dataclass(frozen=True, eq=False)
class Answer:
    """To one question. A counterexample (I,) has been put through the network."""

    status: Status
    seconds: float = 0.0
    bound: float = float("-inf")  # lower bound of the largest margin all over the box, as far as known
    counterexample: Tensor | None = None
    proof: Proof | None = None
    reuse: Reuse | None = None
    work: Mapping[str, int] = field(default_factory=dict)  # what it cost: "lps", "bounds", "boxes" ...
    reason: str = ""  # of an unknown, in words


def inside(low: Tensor, high: Tensor, boxes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The parts of `boxes` that lie in the box from `low` to `high`, without the empty ones."""
    lows, highs = torch.maximum(boxes[0], low), torch.minimum(boxes[1], high)
    kept = (lows <= highs).all(1)
    return lows[kept], highs[kept]
