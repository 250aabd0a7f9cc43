"""A property from a file, asked of a network: all of its questions within one time, one verdict."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core import rounding
from core.errors import ParameterError
from core.proving.bounds import Bounds, crown
from core.proving.network import ReluNetwork
from core.proving.proof import Answer, Proof, Reuse, Status
from core.proving.prove import quickly, thoroughly
from core.proving.question import Deadline
from core.proving.vnnlib import Case, questions


@dataclass(frozen=True, eq=False)
class Settled:
    """Of the whole property: proved if all questions are, refuted if one is."""

    status: Status
    seconds: float
    answers: Mapping[int, Answer]  # number of the case -> its answer; after a refuted one none is asked for

    @property
    def counterexample(self) -> Tensor | None:
        """(I,) inputs."""
        found = (answer.counterexample for answer in self.answers.values())
        return next((x for x in found if x is not None), None)

    @property
    def proofs(self) -> dict[int, Proof]:
        return {case: answer.proof for case, answer in self.answers.items() if answer.proof is not None}

    @property
    def work(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for answer in self.answers.values():
            for name, count in answer.work.items():
                total[name] = total.get(name, 0) + count
        return total

    @property
    def reuse(self) -> Reuse | None:
        """Over all questions; None where nothing was to be reused."""
        return Reuse.total(self.answers.values())

    @property
    def reason(self) -> str:
        """Why it is not known."""
        return next((a.reason for a in self.answers.values() if a.status == "unknown"), "")


def settle(
    network: ReluNetwork,
    cases: Sequence[Case],
    seconds: float,
    old: Mapping[int, Proof] | None = None,
    tell: Callable[[float, str], None] = lambda fraction, words: None,
) -> Settled:
    """The verdict, in about so many seconds; `old` are proofs of the same cases about another network.

    First all questions that bounds or an attack answer; then the others, the easiest first, each within
    half of the time that is left and the last one within all of it: where one stays unknown, the others
    can only refute.

    Raises:
        ParameterError: an old proof is about something else.
    """
    whole = Deadline(seconds, tell)
    asked, old = questions(network, cases), old or {}
    start = _bounds(network, cases)
    answers: dict[int, Answer] = {}
    for number, question in enumerate(asked):
        if whole.over:
            break
        begun = time.perf_counter()
        found = quickly(question, start[number], old.get(number))
        if found is not None:
            answers[number] = _timed(found, time.perf_counter() - begun)
            if found.status == "refuted":
                return Settled("refuted", whole.spent, answers)
    open_ = [number for number in range(len(asked)) if number not in answers]
    open_.sort(key=lambda number: start[number].margin.item(), reverse=True)
    for done, number in enumerate(open_):
        if whole.over:
            answers[number] = Answer("unknown", bound=start[number].margin.item(), reason="time is over")
            continue
        left = seconds - whole.spent
        last = done == len(open_) - 1
        share = Deadline(max(left if last else left / 2, 0.0), lambda _, words: whole.tell(words))
        answers[number] = thoroughly(asked[number], start[number], share, old.get(number))
        if answers[number].status == "refuted":
            return Settled("refuted", whole.spent, answers)
    known = all(answer.status == "proved" for answer in answers.values())
    return Settled("proved" if known else "unknown", whole.spent, answers)


def _timed(answer: Answer, seconds: float) -> Answer:
    return replace(answer, seconds=seconds)


def _bounds(network: ReluNetwork, cases: Sequence[Case]) -> list[Bounds]:
    """The bounds of every question; those about one box are made together."""
    groups: dict[bytes, list[int]] = {}
    for number, case in enumerate(cases):
        groups.setdefault(torch.stack([case.low, case.high]).numpy().tobytes(), []).append(number)
    found: dict[int, Bounds] = {}
    for numbers in groups.values():
        mine = [cases[number] for number in numbers]
        rows, offsets = (torch.cat([getattr(case, name) for case in mine]) for name in ("rows", "offsets"))
        whole = crown(network.then(rows, offsets), mine[0].low[None], mine[0].high[None])
        parts = whole.margins.split([len(case.rows) for case in mine], 1)
        for number, part in zip(numbers, parts, strict=True):
            found[number] = replace(whole, margins=part)  # they share what is found out about the box
    return [found[number] for number in range(len(cases))]


# ------------------------------------------------------------------------------- quick compressed copies


def rounded(network: ReluNetwork, bits: int) -> ReluNetwork:
    """Every layer's weights on a grid of so many bits; offsets stay.

    Raises:
        ParameterError: `bits` does not lie between 2 and 16.
    """
    if not 2 <= bits <= 16:
        raise ParameterError(f"proof: bits must lie between 2 and 16, got {bits}")
    weights = (rounding.rounded(weight, bits) for weight in network.weights)
    return ReluNetwork(tuple(weights), network.biases)


def thinned(network: ReluNetwork, sparsity: float) -> ReluNetwork:
    """The share `sparsity` of every layer's weights, the smallest, set to zero.

    Raises:
        ParameterError: `sparsity` does not lie between 0 and 1.
    """
    if not 0 <= sparsity <= 1:
        raise ParameterError(f"proof: sparsity must lie between 0 and 1, got {sparsity}")
    weights = []
    for weight in network.weights:
        gone = weight.abs().flatten().argsort(stable=True)[: round(sparsity * weight.numel())]
        weights.append(weight.flatten().index_fill(0, gone, 0.0).view_as(weight))
    return ReluNetwork(tuple(weights), network.biases)
