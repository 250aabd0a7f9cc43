"""Answers a question with whatever is cheapest: bounds and an attack, then a search that is complete."""

from torch import Tensor

from core.proving.attack import STEPS, attack
from core.proving.bounds import Bounds, crown
from core.proving.branching import branch
from core.proving.proof import Answer, Proof, Reuse
from core.proving.question import TOLERANCE, Deadline, Question
from core.proving.search import search
from core.proving.splitting import split

GLANCE = 3  # steps of an attack before an old proof is tried
FEW_INPUTS = 12  # up to which the box is cut
FEW_RELUS = 50  # undecided ones, up to which phases are searched with linear programs


def prove(question: Question, deadline: Deadline, old: Proof | None = None) -> Answer:
    """Whether some margin is positive all over the box; "unknown" when time is over.

    `old`, of the same question about another network, may save work and changes no answer.

    Raises:
        ParameterError: `old` is about something else.
    """
    bounds = crown(question.network, question.low[None], question.high[None])
    return quickly(question, bounds, old) or thoroughly(question, bounds, deadline, old)


def quickly(question: Question, bounds: Bounds, old: Proof | None = None) -> Answer | None:
    """What takes milliseconds: an old counterexample, `bounds` (those of the question), an attack.

    None where they do not tell.

    Raises:
        ParameterError: `old` is about something else.
    """
    deadline = Deadline(0.0)
    if old is not None:
        old.require_about(question)
        if old.counterexample is not None and question.violated_by(old.counterexample):
            return _refuted(question, old.counterexample, deadline)
    margin = bounds.margin.item()
    if margin > TOLERANCE:
        proof = Proof(question, cores=((),))
        return Answer("proved", deadline.spent, margin, proof=proof, reuse=_implied(old))
    helped = old is not None and old.cores not in ((), ((),))  # which is likely to be enough
    found = attack(question, steps=GLANCE if helped else STEPS)
    return None if found is None else _refuted(question, found, deadline)


def thoroughly(question: Question, bounds: Bounds, deadline: Deadline, old: Proof | None = None) -> Answer:
    """The answer of the search that suits the question best."""
    if len(question.low) <= FEW_INPUTS:
        return split(question, deadline, old)
    undecided = sum(int(layer.sum()) for layer in bounds.unstable())
    return (search if undecided <= FEW_RELUS else branch)(question, bounds, deadline, old)


def _implied(old: Proof | None) -> Reuse | None:
    """Where bounds are enough all old parts hold; nothing is said of a proof that was bounds alone, too."""
    if old is None or old.cores == ((),):
        return None
    parts = len(old.cores) if old.boxes is None else len(old.boxes[0])
    return Reuse(parts, valid=parts) if parts else None


def _refuted(question: Question, counterexample: Tensor, deadline: Deadline) -> Answer:
    margin = question.margin(counterexample[None]).item()
    proof = Proof(question, counterexample=counterexample)
    return Answer("refuted", deadline.spent, margin, counterexample, proof)
