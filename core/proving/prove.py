"""Answers a question with whatever is cheapest: bounds, an attack, then a search that is complete."""

from core.proving.attack import attack
from core.proving.bounds import Bounds, crown
from core.proving.proof import Answer, Proof
from core.proving.question import TOLERANCE, Deadline, Question


def prove(
    question: Question, deadline: Deadline, old: Proof | None = None, bounds: Bounds | None = None
) -> Answer:
    """Whether some margin is positive all over the box; "unknown" when time is over.

    `old`, of the same question about another network, may save work and changes no answer.

    Raises:
        ParameterError: `old` is about something else.
    """
    if old is not None:
        old.require_about(question)
        if old.counterexample is not None and question.violated_by(old.counterexample):
            return _refuted(question, old.counterexample, deadline)
    bounds = bounds or crown(question.network, question.low[None], question.high[None])
    margin = bounds.margin.item()
    if margin > TOLERANCE:
        proof = Proof(question, cores=((),))
        return Answer("proved", deadline.spent, margin, proof=proof, work={"bounds": 1})
    if (found := attack(question)) is not None:
        return _refuted(question, found, deadline)
    return Answer("unknown", deadline.spent, margin, reason="bounds are too loose", work={"bounds": 1})


def _refuted(question: Question, counterexample, deadline: Deadline) -> Answer:
    margin = question.margin(counterexample[None]).item()
    proof = Proof(question, counterexample=counterexample)
    return Answer("refuted", deadline.spent, margin, counterexample, proof)
