"""The linear program of a question: ReLUs in a chosen phase are exact, the others are triangles.

A ReLU's input z is written as h - n: h its output, n what the ReLU cuts off, both at least 0. An open ReLU
keeps h / high + n / -low <= 1, the triangle; an active one has n = 0, an inactive one h = 0. A phase is
thus one bound of one variable, and the program of the next phases starts where the last one ended.

The solver is not trusted. Its multipliers are turned into dials, one per ReLU, from which `lower_bound`
computes in double precision what they prove. The same dials prove, or fail to prove, something about a
network with other weights, and that costs a product of matrices and no linear program.

Source: Ehlers, "Formal Verification of Piece-Wise Linear Feed-Forward Neural Networks", ATVA 2017,
arXiv:1705.01320 (triangle); Salman et al., NeurIPS 2019, arXiv:1902.08722 (the dual of this program is a
bound on the way back); Wang et al., "Beta-CROWN", NeurIPS 2021, arXiv:2103.06624 (dials of split ReLUs).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from core.proving.bounds import Bounds
from core.proving.proof import Core, Literal
from core.proving.question import TOLERANCE, Question

Array = np.ndarray

THIN = 1e-9  # a ReLU whose input goes no further than this past 0 needs no triangle
EXACT = 1e-9  # a ReLU is in a phase when what contradicts it is no more than this
TINY = 1e-12  # what is divided by is no smaller


@dataclass(frozen=True, eq=False)
class Dials:
    """What makes a bound on the way back out of phases; any turns make a bound that holds.

    `shares` (B, R): how much every output counts, in a mean; all 0 where no input of the box fits the
    phases, and a bound above 0 shows it.
    `turns` (B, D), of all hidden ReLUs in a row: of an open one the slope of the line below it; of one
    with a phase the price of that phase. `tilts` (B, D): of an open one the price of the ends of its
    input, nearly always 0.
    """

    shares: Array
    turns: Array
    tilts: Array

    def take(self, index: Array | slice | list[int]) -> "Dials":
        return Dials(self.shares[index], self.turns[index], self.tilts[index])


@dataclass(frozen=True, eq=False)
class Found:
    """What one linear program said.

    `value` is a lower bound of the largest output that holds, infinite where no input is left. Where it
    is above TOLERANCE, `support` has phases that are enough for that, and `dials` (B = 1) prove it.
    Else `point` (I,) is where the program has its least value, `losses` (D,) say how much of it each
    ReLU's triangle may have cost there, 0 where it is exact, and `fits` (2, D) whether the point is in
    phase -1, and in phase 1. None of these where the solver was lost in rounding.
    """

    value: float
    support: Core | None = None
    dials: Dials | None = None
    point: Array | None = None
    losses: Array | None = None
    fits: Array | None = None


class Sides:
    """A question's network and bounds, laid out for `lower_bound`: D hidden ReLUs in a row."""

    def __init__(self, question: Question, bounds: Bounds) -> None:
        network = question.network
        self.weights = [weight.numpy() for weight in network.weights]
        self.biases = [bias.numpy() for bias in network.biases]
        ends = np.cumsum([0, *network.widths])
        self.layers = [slice(a, b) for a, b in pairwise(ends)]
        self.size = int(ends[-1])
        self.low, self.high = (
            np.concatenate([value[0].numpy() for value in side] or [np.zeros(0)])
            for side in (bounds.lows, bounds.highs)
        )
        self.on, self.off = self.low >= 0, self.high <= 0
        self.on &= ~self.off
        self.open = ~(self.on | self.off)
        self.middle = (question.low + question.high).numpy() / 2
        self.radius = (question.high - question.low).numpy() / 2

    @cached_property
    def steep(self) -> Array:
        """(D,) slope of the triangles' upper edge."""
        return self.high / np.where(self.open, self.high - self.low, 1.0)

    @cached_property
    def plain(self) -> Array:
        """(D,) turns for open ReLUs of which nothing is known."""
        return np.where(self.on | (self.high > -self.low), 1.0, 0.0) * ~self.off

    def index(self, literal: Literal) -> int:
        return self.layers[literal.layer].start + literal.neuron

    def phases(self, cores: Sequence[Core]) -> Array:
        """(B, D) int8."""
        found = np.zeros((len(cores), self.size), np.int8)
        for row, core in zip(found, cores, strict=True):
            for literal in core:
                row[self.index(literal)] = literal.phase
        return found


class Bound(NamedTuple):
    """What dials prove about B choices of phases."""

    values: Array  # (B,) lower bounds of the outputs' mean, weighted by their shares
    worth: Array  # (B, D) by how much the bound falls, at most, if a phase is left open; they add up
    reads: Array  # (B, D) what a unit of the ReLU's output is worth to what is behind it


def lower_bound(sides: Sides, phases: Array, dials: Dials) -> Bound:
    """From the outputs back to the inputs, under phases (B, D)."""
    read = dials.shares @ sides.weights[-1]
    total = dials.shares @ sides.biases[-1]
    worth, reads = np.zeros((2, *phases.shape))
    for k in range(len(sides.layers) - 1, -1, -1):
        part = sides.layers[k]
        low, high, turn, phase = sides.low[part], sides.high[part], dials.turns[:, part], phases[:, part]
        relaxed = np.where(read < 0, sides.steep[part], turn.clip(0, 1)) * read + dials.tilts[:, part]
        passed = np.where(phase > 0, read - turn, np.where(phase < 0, turn, relaxed))
        passed = np.where(sides.on[part], read, np.where(sides.off[part], 0.0, passed))
        # A triangle's corners are (h, n) = (0, 0), (high, 0) and (0, -low); a phase leaves two of them.
        above = np.where(sides.open[part], ((read - passed) * high).clip(max=0), 0.0)
        below = np.where(sides.open[part], (-passed * low).clip(max=0), 0.0)
        least = np.minimum(above, below)
        chosen = np.where(phase > 0, above, np.where(phase < 0, below, least))
        worth[:, part], reads[:, part] = chosen - least, read
        total = total + chosen.sum(1) + passed @ sides.biases[k]
        read = passed @ sides.weights[k]
    return Bound(total + read @ sides.middle - np.abs(read) @ sides.radius, worth, reads)


class Relaxation:
    """One question's linear program, solved again and again under other phases."""

    def __init__(self, question: Question, bounds: Bounds) -> None:
        import highspy  # here: it takes a moment to load, and most questions need none of it

        self.question, self.sides = question, Sides(question, bounds)
        self.solved = 0
        self._status = highspy.HighsModelStatus
        self._solver = _solver(highspy)
        self._pass_model(highspy)
        self._chosen = np.zeros(self.sides.size, np.int8)

    def value(self, phases: Core, slack: float = TOLERANCE) -> Found:
        """The program's least value under `phases`; above TOLERANCE, with the phases that are enough for it.

        Where the value is above `slack`, too, they are enough for that.
        """
        chosen = self.sides.phases([phases])
        self._choose(chosen[0])
        return (
            self._solved(phases, chosen, slack)
            or self._solved(phases, chosen, slack, afresh=True)
            or Found(-np.inf)
        )

    def _solved(self, phases: Core, chosen: Array, slack: float, afresh: bool = False) -> Found | None:
        """None where the solver was lost in rounding: a start from elsewhere may spoil a ray."""
        if afresh:
            self._solver.clearSolver()
        self._solver.run()
        self.solved += 1
        status = self._solver.getModelStatus()
        if status == self._status.kOptimal:
            solution = self._solver.getSolution()
            dials = self._dials(chosen, np.asarray(solution.row_dual), empty=False)
            bound = lower_bound(self.sides, chosen, dials)
            if bound.values[0] > TOLERANCE:
                return self._refuted(phases, chosen, dials, bound, slack)
            return self._point(bound, np.asarray(solution.col_value))
        if status == self._status.kInfeasible:
            _, found, ray = self._solver.getDualRay()
            if found:
                dials = self._dials(chosen, np.asarray(ray), empty=True)
                bound = lower_bound(self.sides, chosen, dials)
                if bound.values[0] > TOLERANCE:
                    return self._refuted(phases, chosen, dials, bound, TOLERANCE)
        return None

    # ------------------------------------------------------------------------------------ what it proves

    def _dials(self, chosen: Array, rows: Array, empty: bool) -> Dials:
        """From the multipliers of the program's rows, or of its ray where no input is left."""
        sides = self.sides
        passed = np.zeros(sides.size)
        passed[self._kept] = rows[: len(self._kept)]
        shares = np.zeros(len(sides.biases[-1]))
        if not empty:
            shares = (-rows[self._first_output :]).clip(0)
            shares = shares / shares.sum() if shares.sum() > 0.5 else np.full_like(shares, 1 / len(shares))
        reads, read = np.empty(sides.size), shares @ sides.weights[-1]
        for k in range(len(sides.layers) - 1, -1, -1):
            part = sides.layers[k]
            reads[part] = read
            passed[part] = np.where(sides.on[part], read, passed[part])
            read = passed[part] @ sides.weights[k]
        if empty:  # a ray has any length: its largest multiplier becomes 1
            largest = max(np.abs(passed).max(initial=0.0), np.abs(reads).max(initial=0.0)) or 1.0
            passed, reads = passed / largest, reads / largest
        slopes, tilts = self._lines(reads, passed)
        turns = np.where(chosen[0] > 0, reads - passed, np.where(chosen[0] < 0, passed, slopes))
        turns, tilts = np.where(sides.open, turns, sides.plain), tilts * sides.open * (chosen[0] == 0)
        return Dials(shares[None], turns[None], tilts[None])

    def _lines(self, reads: Array, passed: Array) -> tuple[Array, Array]:
        """The turns and tilts with which open ReLUs that are read like this pass that on."""
        slopes = (passed / np.where(np.abs(reads) > TINY, reads, 1.0)).clip(0, 1)
        return slopes, passed - np.where(reads < 0, self.sides.steep, slopes) * reads

    def _refuted(self, phases: Core, chosen: Array, dials: Dials, bound: Bound, slack: float) -> Found:
        """With as few phases as these dials allow: what is worth little is left open."""
        value = bound.values[0]
        least = TOLERANCE if value <= slack else max(slack, TOLERANCE)
        worth = {literal: bound.worth[0, self.sides.index(literal)] for literal in phases}
        order = sorted(phases, key=worth.__getitem__)
        free = int(np.searchsorted(np.cumsum([worth[literal] for literal in order]), value - least))
        needed = [literal for literal in order if worth[literal] > 0]
        passed = np.where(chosen > 0, bound.reads - dials.turns, dials.turns)
        slopes, tilts = self._lines(bound.reads, passed)
        for support in (order[free:], needed, order):
            left = self.sides.phases([support])
            opened = (chosen != 0) & (left == 0)
            turns, tilt = np.where(opened, slopes, dials.turns), np.where(opened, tilts, dials.tilts)
            fewer = Dials(dials.shares, turns, tilt)
            value = lower_bound(self.sides, left, fewer).values[0]
            if value > least:
                break
        return Found(float(value) if fewer.shares.any() else np.inf, tuple(sorted(support)), fewer)

    def _point(self, bound: Bound, columns: Array) -> Found:
        sides, box = self.sides, self.question
        inputs = columns[1 : 1 + len(sides.middle)].clip(box.low.numpy(), box.high.numpy())
        output, cut = np.zeros((2, sides.size))
        output[self._kept], cut[sides.open] = columns[self._h], columns[self._n]
        gap = np.minimum(output, cut)
        losses = np.where(sides.open & (gap > EXACT), gap * np.abs(bound.reads[0]).clip(TINY), 0.0)
        fits = np.stack([output, cut]) <= EXACT
        return Found(float(bound.values[0]), point=inputs, losses=losses, fits=fits)

    # -------------------------------------------------------------------------------------- the program

    def _choose(self, phases: Array) -> None:
        """Change the bounds of those variables whose ReLU has another phase than before."""
        changed = np.flatnonzero(phases != self._chosen)
        if not len(changed):
            return
        sides, phase = self.sides, phases[changed]
        columns = np.concatenate([self._column_h[changed], self._column_n[changed]]).astype(np.int32)
        upper = np.concatenate(
            [np.where(phase < 0, 0.0, sides.high[changed]), np.where(phase > 0, 0.0, -sides.low[changed])]
        )
        self._solver.changeColsBounds(len(columns), columns, np.zeros(len(columns)), upper)
        self._chosen = phases.copy()

    def _pass_model(self, highspy) -> None:
        """Columns: t, the largest output; the inputs; h of ReLUs that are not off; n of open ones.

        Rows: h - n = z of ReLUs that are not off; triangles; every output is at most t.
        """
        sides, infinity = self.sides, highspy.kHighsInf
        inputs = len(sides.middle)
        self._kept = np.flatnonzero(~sides.off)
        opened = np.flatnonzero(sides.open)
        self._h = slice(1 + inputs, 1 + inputs + len(self._kept))
        self._n = slice(self._h.stop, self._h.stop + len(opened))
        self._column_h, self._column_n = np.full((2, sides.size), -1)
        self._column_h[self._kept] = np.arange(self._h.start, self._h.stop)
        self._column_n[opened] = np.arange(self._n.start, self._n.stop)
        wide = opened[(sides.high[opened] > THIN) & (-sides.low[opened] > THIN)]
        self._first_output = len(self._kept) + len(wide)
        matrix = np.zeros((self._first_output + len(sides.biases[-1]), self._n.stop))
        below, above = np.full((2, len(matrix)), -infinity)
        before, start = np.arange(1, 1 + inputs), 0
        used = np.ones(inputs, bool)
        for k, part in enumerate(sides.layers):
            kept = ~sides.off[part]
            rows = np.arange(start, start + kept.sum())
            matrix[np.ix_(rows, before)] = -sides.weights[k][np.ix_(kept, used)]
            start += len(rows)
            before, used = self._column_h[part][kept], kept
            matrix[rows, before] = 1.0
            below[rows] = above[rows] = sides.biases[k][kept]
        numbers = {neuron: row for row, neuron in enumerate(self._kept)}
        for neuron in opened:
            matrix[numbers[neuron], self._column_n[neuron]] = -1.0
        rows = np.arange(len(self._kept), self._first_output)
        matrix[rows, self._column_h[wide]] = 1 / sides.high[wide]
        matrix[rows, self._column_n[wide]] = -1 / sides.low[wide]
        above[rows] = 1.0
        rows = np.arange(self._first_output, len(matrix))
        matrix[np.ix_(rows, before)] = sides.weights[-1][:, used]
        matrix[rows, 0] = -1.0
        above[rows] = -sides.biases[-1]
        lower, upper = np.full(matrix.shape[1], -infinity), np.full(matrix.shape[1], infinity)
        lower[1 : 1 + inputs], upper[1 : 1 + inputs] = (
            sides.middle - sides.radius,
            sides.middle + sides.radius,
        )
        lower[self._column_h[opened]] = lower[self._n] = 0.0
        upper[self._column_h[opened]], upper[self._n] = sides.high[opened], -sides.low[opened]
        program = highspy.HighsLp()
        program.num_row_, program.num_col_ = matrix.shape
        program.col_cost_ = np.eye(1, matrix.shape[1])[0]
        program.col_lower_, program.col_upper_ = lower, upper
        program.row_lower_, program.row_upper_ = below, above
        columns, rows = np.nonzero(matrix.T)
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_ = np.searchsorted(columns, np.arange(matrix.shape[1] + 1))
        program.a_matrix_.index_ = rows
        program.a_matrix_.value_ = matrix[rows, columns]
        self._solver.passModel(program)


def _solver(highspy):
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("presolve", "off")
    solver.setOptionValue("solver", "simplex")
    solver.setOptionValue("simplex_strategy", 1)  # dual: other bounds leave its start feasible
    solver.setOptionValue("threads", 1)
    return solver
