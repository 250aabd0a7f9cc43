"""Answers a question case by case over the phases of ReLUs, and keeps why every case is closed: unsat cores.

A core is a set of phases that no counterexample has together. Cores are found by halving. Under the phases
chosen so far a linear program either leaves no counterexample, and then its multipliers name the few
phases that are to blame; or it names the ReLU that it is most wrong about, and both phases of that one are
tried. A half that is closed for reasons without the choice closes the other half, too.

The cores of one network are where the search for another begins: what still holds is a theorem about
the new network, too, and only what they leave open is searched.

Source: Li and Li, "MUC-G4: Minimal Unsat Core-Guided Incremental Verification for Deep Neural Network
Compression", 2025, arXiv:2506.04268; the algorithm is ours.
"""

from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from core.proving.bounds import Bounds, crown
from core.proving.changes import Places, match, translate
from core.proving.proof import Answer, Core, Literal, Proof, Reuse
from core.proving.question import TOLERANCE, Deadline, Question
from core.proving.relaxation import Dials, Found, Relaxation, Sides, lower_bound

Set = int  # of literals, a bit each: 2 v of ReLU v inactive, 2 v + 1 of it active

PATIENCE = 8  # cores broken in a row, and none valid, until the rest is left alone
DEEPEST = 400  # choices on top of each other


@dataclass(frozen=True, eq=False)
class Certified(Proof):
    """A proof whose cores come with the dials that prove them: a row for every core."""

    dials: Dials | None = None


def search(
    question: Question,
    bounds: Bounds,
    deadline: Deadline,
    old: Proof | None = None,
    *,
    minimal: bool = True,
    slack: float = 0.0,
) -> Answer:
    """The answer, with cores that leave no choice of phases; "unknown" when time is over.

    `bounds` are the question's, of one box. With `minimal`, no phase of a new core can be left out without
    its value falling to `slack`; else cores are what the multipliers leave.
    """
    state = _Search(question, bounds, deadline, minimal, max(slack, TOLERANCE))
    status, counterexample, reason = "proved", None, ""
    try:
        if old is None or not old.cores:
            state.refute(0)
        else:
            state.resume(old)
    except _Violated as found:
        status, counterexample = "refuted", found.args[0]
    except _Over as over:
        status, reason = "unknown", f"{over} ({state.unstable} open ReLUs, {len(state.cores)} cores)"
    if status == "proved" and state.doubts:
        status, reason = "unknown", f"the smallest margin lies within {TOLERANCE:g} of 0"
    bound = {
        "proved": lambda: min(found.value for found in state.cores.values()),
        "refuted": lambda: question.margin(counterexample[None]).item(),
        "unknown": lambda: bounds.margin.item(),
    }[status]()
    work = {"lps": state.lps, "bounds": state.rechecked, "cores": len(state.cores)}
    proof, reuse = state.proof(counterexample), state.reuse
    return Answer(status, deadline.spent, bound, counterexample, proof, reuse, work, reason)


class _Over(Exception):  # noqa: N818, it is a signal and no error
    """No more time, or too many choices on top of each other."""


class _Violated(Exception):  # noqa: N818
    """A counterexample was found."""


class _Search:
    """One search: which literals cannot be together, and why."""

    def __init__(
        self, question: Question, bounds: Bounds, deadline: Deadline, minimal: bool, slack: float
    ) -> None:
        self.question, self.bounds, self.deadline = question, bounds, deadline
        self.minimal, self.slack = minimal, slack
        self.sides = Sides(question, bounds)
        self.places = np.flatnonzero(self.sides.open)  # of ReLU v among all
        self.unstable = len(self.places)
        self.even: Set = sum(1 << 2 * v for v in range(self.unstable))
        self.literals = [
            Literal(k, int(neuron), phase)
            for k, part in enumerate(self.sides.layers)
            for neuron in np.flatnonzero(self.sides.open[part])
            for phase in (-1, 1)
        ]
        self.bits: dict[Literal, Set] = {literal: 1 << bit for bit, literal in enumerate(self.literals)}
        self.nogoods: list[Set] = []  # cores, and what follows from them
        self.cores: dict[Set, Found] = {}
        self.witnesses: list[Set] = []  # all phases of points that are no reason to close a case
        self.reuse: Reuse | None = None
        self.doubts = self.rechecked = 0
        self._told = 0.0

    # ------------------------------------------------------------------------------- closing one case

    def refute(self, held: Set, found: Found | None = None, guided: bool = False) -> Set:
        """Close the case in which all of `held` is true; returns those literals of it that are to blame.

        `found` is what the linear program says of the case, if it is known. While `guided`, choices follow
        what is known already, and no program is solved before that has run out.
        """
        self._look(held)
        nogood, literal = self._nearest(held, guided)
        if nogood is not None:
            return nogood
        if not literal:
            guided, found = False, found or self._solve(held)
            if found.support is not None:
                return self._learn(self._minimised(found) if self.minimal else found)
            literal = self._choice(held, found)
            if not literal:  # all is exact, and yet no counterexample: too close to tell
                self.doubts += 1
                return held
        other = self._negated(literal)
        first = self.refute(held | literal, guided=guided)
        if not first & literal:
            return first
        second = self.refute(held | other, guided=guided)
        if not second & other:
            return second
        both = (first | second) & ~(literal | other)
        self.nogoods.append(both)
        return both

    def _nearest(self, held: Set, guided: bool) -> tuple[Set | None, Set]:
        """A nogood that has come true; or else the literal, if any, that one of them wants next.

        One that lacks a single literal closes that half at no cost; longer ones only guide.
        """
        against, literal, fewest = self._negated(held), 0, self.unstable + 1 if guided else 2
        for nogood in self.nogoods:
            if nogood & against:
                continue
            missing = nogood & ~held
            if not missing:
                return nogood, 0
            if missing.bit_count() < fewest:
                literal, fewest = missing & -missing, missing.bit_count()
        return None, literal

    def _choice(self, held: Set, found: Found) -> Set:
        """The ReLU, inactive first, whose triangle costs most at the program's point; 0 if none does."""
        chosen = held | self._negated(held)
        if found.losses is None:  # nothing is known: any that is left
            left = self.even & ~chosen
            return left & -left
        losses = found.losses[self.places]
        for v in np.argsort(-losses, kind="stable"):
            if not losses[v]:
                return 0
            if not chosen >> 2 * int(v) & 1:  # chosen ones lose what the solver tolerates
                return 1 << 2 * int(v)
        return 0

    def _negated(self, literals: Set) -> Set:
        return (literals & self.even) << 1 | literals >> 1 & self.even

    # ----------------------------------------------------------------------------------- reasons to close

    @cached_property
    def relaxation(self) -> Relaxation:
        return Relaxation(self.question, self.bounds)

    def _solve(self, held: Set) -> Found:
        found = self.relaxation.value(self._core(held), self.slack)
        if found.point is not None:
            x = torch.from_numpy(found.point)
            if self.question.violated_by(x):
                raise _Violated(x)
            bits = np.packbits(found.fits[:, self.places].T, bitorder="little")
            self.witnesses.append(int.from_bytes(bits.tobytes(), "little"))
        return found

    def _minimised(self, found: Found) -> Found:
        """Without the literals that are not needed; those of the last layer are tried first."""
        core = self._set(found.support)
        for literal in map(self.bits.__getitem__, reversed(found.support)):
            fewer = core & ~literal
            if fewer == core or any(not fewer & ~seen for seen in self.witnesses):
                continue
            self._look(core)
            trial = self._solve(fewer)
            if trial.support is not None and trial.value > self.slack:
                found, core = trial, self._set(trial.support)
        return found

    def _learn(self, found: Found) -> Set:
        core = self._set(found.support)
        self.nogoods.append(core)
        self.cores[core] = found
        return core

    def _look(self, held: Set) -> None:
        """At the clock, and at who is watching."""
        if self.deadline.over:
            raise _Over("time is over")
        if held.bit_count() > DEEPEST:
            raise _Over(f"more than {DEEPEST} choices on top of each other")
        if self.deadline.spent - self._told > 0.2:
            self._told = self.deadline.spent
            self.deadline.tell(f"{len(self.cores)} cores from {self.lps} linear programs")

    @property
    def lps(self) -> int:
        return self.relaxation.solved if "relaxation" in vars(self) else 0

    # --------------------------------------------------------------------------------------- an old proof

    def resume(self, old: Proof) -> None:
        """Take over what still holds, repair what does not, and search what is left open."""
        places = match(old.question.network, self.question.network)
        moved = translate(old.cores, places, self._fixed())
        rows = [row for row, core in enumerate(moved) if core is not None]
        found = self._recheck(old, places, rows, [moved[row] for row in rows])
        parts, trivial = len(moved), len(moved) - len(rows)
        pending = [f.support for f in found if not f.value > TOLERANCE]
        valid, broken, taken = 0, 0, set()

        def take(found: Found) -> None:
            nonlocal valid
            valid += 1
            taken.add(self._learn(found))

        try:
            for certain in (f for f in found if f.value > TOLERANCE):
                take(certain)
            if pending and (root := self._solve(0)).support is not None:
                self._learn(root)
            left: list[tuple[float, Set, Found]] = []
            for core in sorted(pending, key=len):
                held = self._set(core)
                if any(not known & ~held for known in self.cores):
                    valid += 1  # a part of it is a core
                    continue
                if broken >= PATIENCE and not taken:
                    break
                broken += 1  # unless the program closes its case
                again = self._solve(held)
                if again.support is None:
                    left.append((again.value, held, again))
                else:
                    broken -= 1
                    take(again)
            for _, held, again in sorted(left, key=itemgetter(0)):  # where a counterexample is likeliest
                self.refute(held, again)
            self.refute(0, guided=valid > 0)
        finally:
            unchecked, new = parts - trivial - valid - broken, len(self.cores.keys() - taken)
            self.reuse = Reuse(parts, trivial, valid, broken, unchecked, new)

    def _fixed(self) -> list[Tensor]:
        """Per hidden layer: 1 and -1 where bounds leave one phase only, else 0."""
        fixed = torch.from_numpy(self.sides.on.astype(np.int8) - self.sides.off)
        return [fixed[part] for part in self.sides.layers]

    def _recheck(self, old: Proof, places: Places, rows: list[int], cores: list[Core]) -> list[Found]:
        """All cores at once, by the dials of the old proof, or by bounds where it has none."""
        self.rechecked += len(cores)
        phases = self.sides.phases(cores)
        if not isinstance(old, Certified) or old.dials is None:
            box = self.question.low[None], self.question.high[None]
            split = [torch.from_numpy(phases[:, part]) for part in self.sides.layers]
            values = crown(self.question.network, *box, split).margin.tolist() if cores else []
            return [Found(value, core) for value, core in zip(values, cores, strict=True)]
        dials = self._moved(old, places).take(rows)
        values = lower_bound(self.sides, phases, dials).values
        values[(values > TOLERANCE) & ~dials.shares.any(1)] = np.inf
        return [Found(float(values[n]), core, dials.take([n])) for n, core in enumerate(cores)]

    def _moved(self, old: Certified, places: Places) -> Dials:
        """The old dials where their neurons are now."""
        turns = np.repeat(self.sides.plain[None], len(old.cores), 0)
        tilts, start = np.zeros_like(turns), 0
        for part, place in zip(self.sides.layers, places, strict=False):
            kept = np.flatnonzero(place.numpy() >= 0)
            now = part.start + place.numpy()[kept]
            turns[:, now], tilts[:, now] = old.dials.turns[:, start + kept], old.dials.tilts[:, start + kept]
            start += len(place)
        shares = old.dials.shares.clip(0)  # a mean, or nothing, whatever was handed in
        total = shares.sum(1, keepdims=True)
        return Dials(shares / np.where(total > 0, total, 1.0), turns, tilts)

    def proof(self, counterexample: Tensor | None) -> Proof:
        found = list(self.cores.values())
        cores = tuple(each.support for each in found)
        dials = [each.dials for each in found]
        if not cores or None in dials:
            return Proof(self.question, cores, counterexample=counterexample)
        parts = ("shares", "turns", "tilts")
        rows = Dials(*(np.concatenate([getattr(each, part) for each in dials]) for part in parts))
        return Certified(self.question, cores, counterexample=counterexample, dials=rows)

    # -------------------------------------------------------------------------------- bits and literals

    def _set(self, core: Core) -> Set:
        return sum(map(self.bits.__getitem__, core))

    def _core(self, literals: Set) -> Core:
        found = []
        while literals:
            found.append(self.literals[(literals & -literals).bit_length() - 1])
            literals &= literals - 1
        return tuple(found)
