"""What became of a proof's cores on the compressed network, told from what is left of both proofs."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from core.proving.changes import match, translate
from core.proving.proof import Answer, Core, Literal, Reuse

MOST = 200  # cores of one class that are written down

WORDS = {
    "valid": "checked again on the compressed network, and holds, maybe with fewer phases",
    "trivial": "holds at once: one of its ReLUs can no longer be in that phase",
    "broken": "does not hold any more, and was dropped",
    "unchecked": "not looked at again: too many others were broken, or the search ended first",
    "dropped": "not part of the new proof: broken, or left alone",
    "not used": "the compressed network's answer did without it",
    "new": "found for the compressed network",
}  # status of a core -> what it means


@dataclass(frozen=True)
class CoreLine:
    """Phases that exclude counterexamples, and what became of that under compression."""

    other: int  # the class that they exclude
    literals: Core
    status: str  # one of `WORDS`


def fates(
    before: Mapping[int, Answer], after: Mapping[int, Answer], phases: Sequence[Sequence[int]]
) -> Iterator[CoreLine]:
    """Cores of the original, class by class, then the new ones; the empty one of bounds alone says nothing.

    `phases` are those that the compressed network's bounds leave to every ReLU: 1, -1, or 0 for both.
    """
    fixed = [torch.tensor(layer) for layer in phases]
    for other in dict.fromkeys([*before, *after]):
        old, new = (answers.get(other, Answer("unknown")) for answers in (before, after))
        cores, known = (answer.proof.cores if answer.proof else () for answer in (old, new))
        cores = [core for core in cores if core]
        if new.reuse is None or not new.proof:
            yield from (CoreLine(other, core, "not used") for core in cores)
            yield from (CoreLine(other, core, "new") for core in known if core)
            continue
        places = match(old.proof.question.network, new.proof.question.network)
        moved = translate(cores, places, fixed)
        held, fresh = related(moved, known)
        for index, core in enumerate(cores):
            yield CoreLine(other, core, fate(moved[index], index in held, new.reuse))
        yield from (CoreLine(other, core, "new") for core in fresh if core)


def related(moved: Sequence[Core | None], known: Sequence[Core]) -> tuple[set[int], list[Core]]:
    """(places of cores that hold because a known one says so with some of their phases, the others known)."""
    every = {index for index, core in enumerate(moved) if core is not None}
    having: dict[Literal, set[int]] = defaultdict(set)
    for index in every:
        for literal in moved[index]:
            having[literal].add(index)
    held: set[int] = set()
    fresh = []
    for core in known:
        over = set.intersection(*sorted((having[literal] for literal in core), key=len)) if core else every
        held |= over
        if not over:
            fresh.append(core)
    return held, fresh


def fate(moved: Core | None, held: bool, reuse: Reuse) -> str:
    """What became of one core: `moved` to the new network (None: it cannot be there), and `held` or not."""
    if moved is None:
        return "trivial"
    if held:
        return "valid"
    return "broken" if not reuse.unchecked else "unchecked" if not reuse.broken else "dropped"


def tally(lines: Sequence[CoreLine]) -> dict[str, dict[str, int]]:
    """Class -> status -> cores."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for line in lines:
        counts[str(line.other)][line.status] += 1
    return {other: dict(count) for other, count in counts.items()}


def shortest(lines: Sequence[CoreLine], most: int = MOST) -> tuple[CoreLine, ...]:
    """Of every class at most so many, those of the fewest phases, in the order in which they came."""
    kept: set[int] = set()
    room = Counter()
    for place in sorted(range(len(lines)), key=lambda place: len(lines[place].literals)):
        room[lines[place].other] += 1
        if room[lines[place].other] <= most:
            kept.add(place)
    return tuple(lines[place] for place in sorted(kept))
