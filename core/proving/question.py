"""What is asked of a network, and how long it may take."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import ParameterError
from core.proving.network import ReluNetwork

TOLERANCE = 1e-6  # a margin counts as positive from here on


@dataclass(frozen=True, eq=False)
class Question:
    """Is one of the network's outputs, its margins, positive at every input of a box?

    An input whose margins are all at most 0 is a counterexample. Robustness has one margin for every
    other class: the logit of the right class less that of the other one.
    """

    network: ReluNetwork
    low: Tensor  # (I,) float64
    high: Tensor  # (I,)

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.low).all() and torch.isfinite(self.high).all()):
            raise ParameterError("proof: the box must be finite, got NaN or infinity")
        if (self.low > self.high).any():
            raise ParameterError("proof: the box must not be empty, got a lower end above an upper one")

    def margin(self, x: Tensor) -> Tensor:
        """(N, I) -> (N,): the largest margin; at most 0 at counterexamples."""
        return self.network(x).max(1).values

    def violated_by(self, x: Tensor) -> bool:
        """Is the input (I,) a counterexample: in the box, and with no positive margin?"""
        inside = bool((x >= self.low).all() and (x <= self.high).all())
        return inside and self.margin(x[None]).item() <= 0


class Deadline:
    """A time limit, and a reader who may leave: `run` is told, and may raise."""

    def __init__(
        self, seconds: float, tell: Callable[[float, str], None] = lambda fraction, words: None
    ) -> None:
        self._start, self.seconds, self._tell = time.perf_counter(), seconds, tell

    @property
    def spent(self) -> float:
        return time.perf_counter() - self._start

    @property
    def over(self) -> bool:
        return self.spent >= self.seconds

    def tell(self, words: str) -> None:
        """Report the share of the time that is gone."""
        self._tell(min(self.spent / self.seconds, 1.0) if self.seconds else 1.0, words)
