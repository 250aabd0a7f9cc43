"""A second opinion in exact arithmetic: the question as formulas over rational numbers, given to z3.

Nothing here is shared with the ways in which questions are answered elsewhere: no bounds, no linear
programs, no rounding. It is slow beyond some twenty ReLUs, and is there to be believed.

Source: de Moura and Bjørner, "Z3: An Efficient SMT Solver", TACAS 2008.
"""

from collections.abc import Sequence
from fractions import Fraction

from core.proving.proof import Status
from core.proving.question import Question

Rationals = list[Fraction]


def exactly(question: Question, seconds: float) -> tuple[Status, Rationals | None]:
    """Whether some margin is above 0 all over the box, and if not, an input at which none is.

    Weights, biases and box count as the rational numbers that their floating-point numbers are.
    """
    import z3  # here: it takes a moment to load

    solver = z3.SolverFor("QF_LRA")
    solver.set("timeout", max(1, int(1000 * seconds)))
    inputs = [z3.Real(f"x{i}") for i in range(len(question.low))]
    for x, low, high in zip(inputs, _exact(question.low), _exact(question.high), strict=True):
        solver.add(x >= _number(low), x <= _number(high))
    values = inputs
    for k, (weight, bias) in enumerate(zip(question.network.weights, question.network.biases, strict=True)):
        sums = [
            z3.Sum([_number(w) * v for w, v in zip(_exact(row), values, strict=True) if w] or [_number(0)])
            + _number(shift)
            for row, shift in zip(weight, _exact(bias), strict=True)
        ]
        if k == len(question.network.widths):
            solver.add(*(margin <= 0 for margin in sums))
            break
        values = [z3.Real(f"h{k},{i}") for i in range(len(sums))]
        for h, z in zip(values, sums, strict=True):
            solver.add(z3.Or(z3.And(z >= 0, h == z), z3.And(z <= 0, h == 0)))
    said = solver.check()
    if said == z3.unsat:
        return "proved", None
    if said != z3.sat:
        return "unknown", None
    model = solver.model()
    found = [model.eval(x, model_completion=True).as_fraction() for x in inputs]
    if any(margin > 0 for margin in margins(question, found)):
        return "unknown", None
    return "refuted", found


def margins(question: Question, x: Sequence[Fraction]) -> Rationals:
    """The network's outputs at the input `x`, without any rounding."""
    values = list(x)
    for k, (weight, bias) in enumerate(zip(question.network.weights, question.network.biases, strict=True)):
        if k:
            values = [max(value, Fraction(0)) for value in values]
        values = [
            sum((w * v for w, v in zip(_exact(row), values, strict=True)), shift)
            for row, shift in zip(weight, _exact(bias), strict=True)
        ]
    return values


def _exact(values) -> Rationals:
    return [Fraction(value) for value in values.tolist()]


def _number(value: Fraction | int):
    import z3

    return z3.Q(Fraction(value).numerator, Fraction(value).denominator)
