"""Answers for wide networks: phases of open ReLUs are decided one by one, and many cases bounded at once.

A case is a set of phases. Its linear bound, with slopes looked for (`slopes.py`), closes it, and then those
of its phases that the bound needs are kept as a core; or one more ReLU is decided both ways. Where phases
of early layers have been decided, the ranges of later layers are bounded anew. Cores close every other case
that has their phases. What no bound closes and has no open ReLU left is one linear program.

The cores of another network's proof say where its cases ended: they are bounded on this one, and only those
that fail are decided further.

Source: Bunel et al., "Branch and Bound for Piecewise Linear Neural Network Verification", JMLR 2020,
arXiv:1909.06588 (the score); Wang et al., "Beta-CROWN", NeurIPS 2021, arXiv:2103.06624; Ugare et al.,
"Incremental Verification of Neural Networks", PLDI 2023, arXiv:2304.01874 (leaves used again).
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from core.proving.bounds import Bounds
from core.proving.changes import match, translate
from core.proving.proof import Answer, Core, Literal, Proof, Reuse, Status
from core.proving.question import TOLERANCE, Deadline, Question
from core.proving.slopes import Line, Lines, Slopes, alive, lines, ranges, tightened

ROOT_STEPS, STEPS, CHECK_STEPS = 20, 16, 32
BATCH, EFFORT = 64, 4e9  # cases that are split at once: so many, or what takes so many operations
REFRESH = 2  # phases of early layers after which the ranges of later ones are bounded anew
MEMORY = 300e6  # bytes of waiting cases; beyond, those closest to the end go first
PATIENCE = 32  # old cores that are all broken until the rest is left alone
HOLES = 1000  # cases that old cores may leave open
CLOSERS = 4000  # cores that close other cases than their own
STARTS, DOWNHILL = 4, (0.5, 0.25, 0.1, 0.05)  # inputs that are tried further, and how far, of the box


def branch(question: Question, bounds: Bounds, deadline: Deadline, old: Proof | None = None) -> Answer:
    """The answer, with cores that leave no choice of phases; "unknown" when time is over.

    `bounds` are the question's, of one box; `old`, about another network, saves work where it can.
    """
    search = _Search(question, bounds, deadline, old)
    status: Status = "unknown"
    counterexample, reason = None, ""
    try:
        search.prepare()
        search.run(search.root() if old is None or not old.cores else search.resume(old))
        status = "unknown" if search.doubts else "proved"
        reason = f"the smallest margin lies within {TOLERANCE:g} of 0" if search.doubts else ""
    except _Violated as found:
        status, counterexample = "refuted", found.args[0]
    except _Over:
        reason = f"time is over ({search.unstable} open ReLUs, {len(search.queue)} cases left)"
    bound = search.bound if counterexample is None else question.margin(counterexample[None]).item()
    reuse = None if old is None else Reuse(**search.reused, new=len(search.cores) - search.taken)
    proof = Proof(question, tuple(search.cores), counterexample=counterexample)
    work = {**search.work, "cores": len(search.cores)}
    return Answer(status, deadline.spent, bound, counterexample, proof, reuse, work, reason)


class _Over(Exception):  # noqa: N818, it is a signal and no error
    """No more time."""


class _Violated(Exception):  # noqa: N818
    """A counterexample was found."""


@dataclass(frozen=True, eq=False)
class _Cases:
    """P sets of phases, what is known of each, and where to go on."""

    phases: Tensor  # (P, N) int8
    ranges: Tensor  # (P, 2, N) of the ReLUs' inputs, as of the last time they were bounded
    slopes: Slopes
    value: Tensor  # (P,) lower bound of the largest margin
    since: Tensor  # (P,) phases of early layers that the ranges do not know of
    choice: Tensor  # (P,) ReLU to decide next

    def take(self, index: Tensor) -> "_Cases":
        parts = (self.phases, self.ranges, self.slopes.take(index), self.value, self.since, self.choice)
        return _Cases(*(v if isinstance(v, Slopes) else v[index] for v in parts))


class _Search:
    """One search: cases that wait, and cores that were found."""

    def __init__(self, question: Question, bounds: Bounds, deadline: Deadline, old: Proof | None) -> None:
        self.question, self.bounds, self.deadline = question, bounds, deadline
        self.work: Counter[str] = Counter()
        self.queue: list[tuple[float, int, _Cases]] = []
        self.cores: dict[Core, None] = {}
        self.closers = torch.zeros(0, 0)  # (C, N) phases of those cores that close more than their own case
        self.bound, self.closed = bounds.margin.item(), float("inf")  # of all cases; of closed ones
        self.reused = Counter(parts=len(old.cores), unchecked=len(old.cores)) if old else None
        self.taken = 0  # cores of the old proof that hold
        self.doubts, self.unstable, self._ticket, self._relaxation = 0, 0, count(), None

    def prepare(self) -> None:
        """Bounds of the root, and the network without what is never active there."""
        question, whole = self.question, self.bounds
        self._look()
        if not whole.narrowed:
            whole.narrowed.append(self._narrowed())
        self.bounds = replace(whole, lows=whole.narrowed[0][0], highs=whole.narrowed[0][1])
        self.network, cut, kept = alive(question.network, self.bounds)
        self.places = [(k, i) for k, index in enumerate(kept) for i in index.tolist()]
        self.numbers = {place: number for number, place in enumerate(self.places)}
        self.ranges = torch.stack(ranges(cut), 1)
        self.open = (self.ranges[:, 0] < 0) & (self.ranges[:, 1] > 0)
        self.unstable = int(self.open.sum())
        self.early = len(self.places) - sum(self.network.widths[-1:])  # ReLUs before the last layer
        self.late = int(self.open[:, sum(self.network.widths[:1]) :].sum())  # open ones after the first
        self.closers = torch.zeros(0, len(self.places))
        once = sum(weight.numel() for weight in self.network.weights)
        self.batch = int(min(BATCH, max(2, EFFORT // (8 * once * (self.late + 2 * STEPS)))))

    def _narrowed(self) -> tuple[tuple[Tensor, ...], ...]:
        """Lower and upper ends of all ReLUs' inputs by slopes that are looked for."""
        question, whole = self.question, self.bounds
        network, cut, kept = alive(question.network, whole)
        cut = tightened(network, question.low, question.high, cut, ROOT_STEPS, self._look)
        lows, highs = [v.clone() for v in whole.lows], [v.clone() for v in whole.highs]
        for k, index in enumerate(kept):
            lows[k][:, index], highs[k][:, index] = cut.lows[k], cut.highs[k]
        return tuple(lows), tuple(highs)

    def root(self) -> _Cases:
        found = self._fresh(torch.zeros(1, len(self.places), dtype=torch.int8), None, ROOT_STEPS)
        self.bound = max(self.bound, found.value.item())
        return found

    # ------------------------------------------------------------------------------------- the search

    def run(self, cases: _Cases) -> None:
        """Until every case is closed.

        Raises:
            _Violated: a counterexample was found.
            _Over: time is over.
        """
        self._sort(cases)
        while self.queue:
            self.bound = max(self.bound, min(self.queue[0][0], self.closed))
            self._look()
            cases = self._next()
            if len(cases.value) == 0:
                continue
            self._sort(self._bounded(self._children(cases), STEPS))
        self.bound = max(self.bound, self.closed)

    def _next(self) -> _Cases:
        """The cases that wait with the lowest bounds; none that a core closes."""
        size = len(self.queue) * len(self.places) * 33
        if size < MEMORY:
            chosen = [heapq.heappop(self.queue) for _ in range(min(self.batch, len(self.queue)))]
        else:
            chosen = heapq.nlargest(self.batch, self.queue)
            taken = {entry[1] for entry in chosen}
            self.queue = [entry for entry in self.queue if entry[1] not in taken]
            heapq.heapify(self.queue)
        cases = _joined([entry[2] for entry in chosen])
        hit = (cases.phases.float() @ self.closers.T) == self.closers.abs().sum(1)
        return cases.take((~hit.any(1)).nonzero()[:, 0])

    def _children(self, cases: _Cases) -> _Cases:
        """Both ways of every case's next ReLU."""
        each = torch.arange(len(cases.value)).repeat_interleave(2)
        found = cases.take(each)
        ways = torch.tensor([1, -1], dtype=torch.int8).repeat(len(cases.value))
        found.phases[torch.arange(len(each)), found.choice] = ways
        since = found.since + (found.choice < self.early)
        return _Cases(found.phases, found.ranges, found.slopes, found.value, since, found.choice)

    def _sort(self, cases: _Cases) -> None:
        """Closed cases leave cores; the others wait, or are decided where no ReLU is open."""
        self.work["nodes"] += len(cases.value)
        closed = cases.value > TOLERANCE
        if closed.any():
            self._close(cases.take(closed.nonzero()[:, 0]))
        for index in (~closed).nonzero():
            case = cases.take(index)
            if case.choice.item() < 0:
                self._decide(case)
            else:
                heapq.heappush(self.queue, (case.value.item(), next(self._ticket), case))

    def _decide(self, case: _Cases) -> None:
        """The linear program of a case without open ReLUs."""
        if self._relaxation is None:
            from core.proving.relaxation import Relaxation  # its solver takes a moment to load

            self._relaxation = Relaxation(self.question, self.bounds)
        self.work["lps"] += 1
        found = self._relaxation.value(self._core(case.phases[0]))
        if found.value > TOLERANCE:
            self._keep(found.support, found.value)
        elif found.point is not None and self.question.violated_by(x := torch.as_tensor(found.point)):
            raise _Violated(x)
        else:
            self.doubts += 1
            self.closed = min(self.closed, max(found.value, case.value.item()))

    # ------------------------------------------------------------------------------------------ bounds

    def _fresh(self, phases: Tensor, slopes: Slopes | None, steps: int) -> _Cases:
        """Cases of which nothing but the phases is known, bounded."""
        sets = len(phases)
        every = self.ranges.expand(sets, -1, -1)
        slopes = slopes or self._lines(every, phases).start(sets)
        since = (phases[:, : self.early] != 0).sum(1) * REFRESH
        nothing = torch.full((sets,), -torch.inf, dtype=torch.float64)
        return self._bounded(_Cases(phases, every, slopes, nothing, since, since), steps)

    def _bounded(self, cases: _Cases, steps: int) -> _Cases:
        """Cases with better bounds, and what to decide next."""
        ways = self._lines(cases.ranges, cases.phases)
        line, slopes = self._improved(ways, cases.slopes, steps)
        line.value[ways.empty] = torch.inf
        self._try(line)
        choice, spans, since = self._choice(ways, line, cases.phases), cases.ranges, cases.since
        late = ((line.value <= TOLERANCE) & (since >= REFRESH)).nonzero()[:, 0]
        if len(late):
            self._look()
            again = ways.take(late).refreshed()
            self.work["bounds"] += len(late) * 2 * self.late
            better, now = self._improved(again, slopes.take(late), steps)
            self._try(better)
            spans, since = spans.clone(), since.clone()
            spans[late], since[late] = torch.stack([again.below, again.above], 1), 0
            slopes.alpha[late], slopes.beta[late] = now.alpha, now.beta
            line.value[late] = better.value.masked_fill(again.empty, torch.inf)
            choice[late] = self._choice(again, better, cases.phases[late])
        return _Cases(cases.phases, spans, slopes, torch.maximum(line.value, cases.value), since, choice)

    def _lines(self, spans: Tensor, phases: Tensor) -> Lines:
        return lines(self.network, self.question.low, self.question.high, tuple(spans.unbind(1)), phases)

    def _improved(self, ways: Lines, slopes: Slopes, steps: int) -> tuple[Line, Slopes]:
        """The best bound of the best margin of every case."""
        sets, outputs = len(slopes.alpha), self.network.outputs
        self.work["bounds"] += sets * outputs
        each = torch.arange(sets).repeat_interleave(outputs)
        rows = torch.eye(outputs, dtype=torch.float64).repeat(sets, 1)
        layer = len(self.network.widths)
        line, slopes = ways.take(each).improved(layer, rows, slopes.take(each), steps, TOLERANCE)
        best = line.value.view(sets, outputs).argmax(1) + torch.arange(sets) * outputs
        return line.take(best), slopes.take(best)

    def _choice(self, ways: Lines, line: Line, phases: Tensor) -> Tensor:
        """(P,) the open ReLU whose upper line costs the bound most; -1: there is none."""
        score = (-line.pull).clamp(min=0) * ways.lift
        score = score.masked_fill((ways.below >= 0) | (ways.above <= 0), -0.25)  # last: one way is empty
        score = score.masked_fill((phases != 0) | ~self.open, -1.0)
        best = torch.cat([score, score.new_full((len(score), 1), -0.5)], 1).argmax(1)
        return best.masked_fill(best == len(self.places), -1)

    def _try(self, line: Line) -> None:
        """The corners where bounds are reached, and what lies downhill of the lowest."""
        margin = self._violates(line.input)
        x = line.input[margin.argsort()[:STARTS]]
        for size in DOWNHILL:
            x.requires_grad_(True)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.network(x).max(1).values.sum(), x)
            step = slope.sign() * size * (self.question.high - self.question.low)
            x = (x.detach() - step).clamp(min=self.question.low, max=self.question.high)
            self._violates(x)

    def _violates(self, x: Tensor) -> Tensor:
        """(P,) margins of inputs in the box, of which none may be a counterexample."""
        margin = self.network(x).max(1).values
        for index in (margin <= 0).nonzero()[:, 0].tolist():
            if self.question.violated_by(x[index]):
                raise _Violated(x[index].clone())
        return margin

    def _look(self) -> None:
        if self.deadline.over:
            raise _Over
        self.deadline.tell(f"{len(self.queue)} cases, {len(self.cores)} cores")

    # ------------------------------------------------------------------------------------------- cores

    def _close(self, cases: _Cases) -> None:
        """Keep of closed cases the phases that they need: those that cost something to leave open."""
        phases, slopes = self._fewer(cases)
        fewer = (phases != cases.phases).any(1).nonzero()[:, 0]
        if len(fewer):
            tested = self._fresh(phases[fewer], slopes.take(fewer), CHECK_STEPS)
            held = tested.value > TOLERANCE
            phases[fewer[~held]] = cases.phases[fewer[~held]]
            cases.value[fewer[held]] = tested.value[held]
            self._learn(phases[fewer[held]])
        for row, value in zip(phases, cases.value.tolist(), strict=True):
            self._keep(self._core(row), value)

    def _fewer(self, cases: _Cases) -> tuple[Tensor, Slopes]:
        """Phases (P, N) without those whose lines serve open ReLUs as well, and the slopes for it.

        A line through 0 that bounds a ReLU in its phase costs at most the height by which it misses the
        other phase's end of the range.
        """
        ways, phases = self._lines(cases.ranges, cases.phases), cases.phases
        line, _ = self._improved(ways, cases.slopes, 0)
        low, high = self.ranges.unbind(1)
        passed = torch.where(phases > 0, line.pull - cases.slopes.beta, cases.slopes.beta)
        missed = torch.where(phases > 0, -passed * -low, (passed - line.pull) * high).clamp(min=0)
        missed = missed.masked_fill(phases == 0, torch.inf)
        order = missed.argsort(1)
        cost = missed.gather(1, order).cumsum(1)
        free = torch.zeros_like(phases, dtype=torch.bool)
        free.scatter_(1, order, cost <= (line.value - TOLERANCE).clamp(min=0)[:, None] * 0.5)
        alpha = torch.where(free, (passed / line.pull.clamp(min=1e-12)).clamp(0, 1), cases.slopes.alpha)
        return phases.masked_fill(free, 0), Slopes(alpha, cases.slopes.beta.masked_fill(free, 0.0))

    def _learn(self, phases: Tensor) -> None:
        """Close every case that has one of these sets of phases (C, N)."""
        self.closers = torch.cat([self.closers, phases.float()])[-CLOSERS:]

    def _keep(self, core: Core, value: float) -> None:
        self.cores[core] = None
        self.closed = min(self.closed, value)

    def _core(self, phases: Tensor) -> Core:
        """(N,) phases as literals of the whole network."""
        return tuple(Literal(*self.places[i], int(phases[i])) for i in phases.nonzero()[:, 0].tolist())

    # ------------------------------------------------------------------------------------------- reuse

    def resume(self, old: Proof) -> _Cases:
        """What the old cores leave to do: cases of broken ones, and such that no core is about."""
        root = self.root()
        moved = translate(old.cores, match(old.question.network, self.question.network), self._fixed())
        hints = Counter(core for core in moved if core is not None)
        self.reused["trivial"] = moved.count(None)
        self.reused["unchecked"] = sum(hints.values())
        if root.value.item() > TOLERANCE:
            self.reused.update(valid=self.reused.pop("unchecked"))
            return root
        sets = sorted(hints, key=lambda core: (len(core), core))
        phases = torch.zeros(len(sets), len(self.places), dtype=torch.int8)
        for row, core in zip(phases, sets, strict=True):
            for literal in core:
                row[self.numbers[literal.layer, literal.neuron]] = literal.phase
        valid = [torch.arange(0)]
        for part in torch.arange(len(sets)).split(self.batch) if sets else ():
            self._look()
            found = self._fresh(phases[part], None, CHECK_STEPS)
            holds = found.value > TOLERANCE
            for index, held, value in zip(part.tolist(), holds.tolist(), found.value.tolist(), strict=True):
                self.reused["valid" if held else "broken"] += hints[sets[index]]
                self.reused["unchecked"] -= hints[sets[index]]
                if held:
                    self._keep(sets[index], value)
            self.taken = len(self.cores)
            self._learn(phases[part[holds]])
            valid.append(part[holds])
            if not self.cores and part[-1] + 1 >= PATIENCE and part[-1] + 1 < len(sets):
                return root
        left = holes(phases[torch.cat(valid)], HOLES)
        return root if left is None else self._fresh(left, None, STEPS)

    def _fixed(self) -> list[Tensor]:
        """Per hidden layer, of the whole network: 1 or -1 where one phase is left, else 0."""
        sides = zip(self.bounds.lows, self.bounds.highs, strict=True)
        return [(low[0] >= 0).int() * (high[0] > 0) - (high[0] <= 0).int() for low, high in sides]


def _joined(cases: Sequence[_Cases]) -> _Cases:
    slopes = Slopes(*(torch.cat([getattr(c.slopes, name) for c in cases]) for name in ("alpha", "beta")))
    names = ("phases", "ranges", "value", "since", "choice")
    parts = {name: torch.cat([getattr(c, name) for c in cases]) for name in names}
    return _Cases(**parts, slopes=slopes)


def holes(cores: Tensor, most: int) -> Tensor | None:
    """Sets of phases (H, N) that, with `cores` (C, N), leave no choice of phases; None: more than `most`.

    The ReLU that most cores are about is decided both ways, until a core is complete or none is left.
    """
    found: list[Tensor] = []
    waiting = [(cores, cores.new_zeros(cores.shape[1]))]
    for _ in range(most + 10 * len(cores)):
        if not waiting or len(found) > most:
            break
        rows, phases = waiting.pop()
        if len(rows) == 0:
            found.append(phases)
            continue
        if not rows.any(1).all():
            continue
        place = (rows != 0).sum(0).argmax()
        for phase in (1, -1):
            kept = rows[rows[:, place] != -phase].clone()
            kept[:, place] = 0
            decided = phases.clone()
            decided[place] = phase
            waiting.append((kept, decided))
    if waiting or len(found) > most:
        return None
    return torch.stack(found) if found else cores[:0]
