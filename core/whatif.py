"""The live engine: what would this network do under that plan?

One `WhatIf` serves all readers of a model and a set of images. What readers share is never written
again: a plan changes steps of its own, and remembers what it found by what it did.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from core.atlas import Atlas, survey
from core.bundles import DatasetBundle, ModelBundle, Split
from core.cost import Cost
from core.criterion import Criterion
from core.engine import Engine, Route
from core.evaluation import Change, Interval, change, correct, wilson
from core.memory import Memory
from core.plan import Plan
from core.precision import PRECISIONS
from core.run import Run
from core.sliders import Slider, Sliders
from core.strata import STRATA, tier_ends

__all__ = ["Answer", "Slider", "WhatIf"]

EVALUATING = "Evaluating"  # what progress says while pictures go through the network
CHUNK_MACS = 2.5e9  # work between two points at which an answer can be given up: well below 50 ms
ANSWERS_BYTES = 64 << 20  # logits of answers that are remembered


@dataclass(frozen=True, eq=False)
class Answer:
    """How a plan does on the images looked at so far; `exact` once these are all."""

    plan: Plan
    n: int
    exact: bool
    accuracy: float  # NaN without images
    interval: Interval  # of the accuracy on new images, Wilson, 95 %
    remaining: Interval  # where the exact accuracy lies, 95 %
    change: Change  # against the original on the same images; its indices are positions in the split
    logits: Tensor = field(repr=False)  # (n, K)
    index: Tensor = field(repr=False)  # (n,) int64, positions in the split of the images used
    chance: float  # accuracy of guessing, 1 / K; see `at_chance`
    _cost: Callable[[Plan], Cost] = field(repr=False)

    @property
    def at_chance(self) -> bool:
        """Whether the network may as well be guessing: the interval reaches down to chance."""
        return self.interval[0] <= self.chance

    @cached_property
    def cost(self) -> Cost:
        """What the compressed network costs; of removed channels nothing is left to count."""
        return self._cost(self.plan)


class WhatIf(Sliders):
    """Answers plans for one model and one set of images; safe to share between threads."""

    def __init__(
        self,
        bundle: ModelBundle,
        dataset: DatasetBundle,
        split: Split,
        run: Run | None = None,
        precisions: Sequence[torch.dtype] = PRECISIONS,
    ) -> None:
        """Runs the original over `split` once, reporting to `run`; the fastest of `precisions` serves."""
        super().__init__(bundle, dataset)
        self._split = split
        self._answers: Memory[Answer] = Memory(ANSWERS_BYTES, lambda answer: answer.logits.nbytes)
        macs = sum(layer.weight.numel() * self._positions[name] for name, layer in self._layers.items())
        chunk = int(min(max(CHUNK_MACS // max(macs, 1), 1), STRATA))
        self.engine = Engine(bundle.module, split, len(dataset.classes), chunk, run or Run(), precisions)

    @property
    def words(self) -> str:
        """The form in which the network runs, for a person."""
        return self.engine.words

    @cached_property
    def original(self) -> Answer:
        """The untouched network on all images."""
        return self._answer(Plan(), self.engine.original[self.engine.order], exact=True)

    def answer(self, plan: Plan, run: Run | None = None) -> Iterator[Answer]:
        """Answers that tighten: on a representative subset, on more, then exactly on all images.

        An exact answer gives every image the class that the float32 network gives it; others may
        rest on less precision. Work is done only while an answer is asked for: a reader who closes
        the iterator, or raises from the progress of `run`, which is told after every chunk and while
        scores are computed, ends it within one chunk. A plan that was answered before is answered at once.

        Raises:
            ParameterError: the plan moves a slider that this model does not have.
        """
        route = self.engine.route(self.masks(plan, run))
        if not route.path or not len(self._split):
            yield replace(self.original, plan=plan)
            return
        known = self._answers.get(route.path)
        if known is not None:
            known = replace(known, plan=plan)
            yield known
        if known is None or not known.exact:
            yield from self._tiers(plan, route, known, run or Run())

    def exact(self, plan: Plan) -> Answer:
        """The last of `answer`: on all images."""
        *_, last = self.answer(plan)
        return last

    def atlas(
        self, question: str, criterion: Criterion | None = None, run: Run | None = None
    ) -> Iterator[Atlas]:
        """Every slider of a question alone at every one of `atlas.SPARSITIES`: coarse first, then exact.

        "remove" takes whole coupled groups, "silence" and "zero" filters of one layer, "weights" single
        weights: different questions, with different atlases. An exact atlas is kept on disk and found
        again by its content: the network, the images, and what every cell takes away. Ends like
        `answer` when the iterator is closed or `run` raises.

        Raises:
            UnsupportedModelError: the channels of the model cannot be followed.
        """
        return survey(self.engine, self, question, criterion, run or Run())

    def _tiers(self, plan: Plan, route: Route, known: Answer | None, run: Run) -> Iterator[Answer]:
        """Answers on more and more images, after `known`."""
        whole = len(self._split)
        logits = torch.empty(0, self.engine.classes) if known is None else known.logits
        for end in tier_ends(whole, self.engine.chunk):
            if end <= len(logits):
                continue
            parts, done = [logits], len(logits)
            for part in self.engine.forward(route, done, end):
                parts.append(part)
                done += len(part)
                run.report(done / whole, EVALUATING)
            logits = torch.cat(parts)
            elsewhere = self._answers.get(route.path)  # another reader may have been faster
            if elsewhere is not None and elsewhere.exact:
                yield replace(elsewhere, plan=plan)
                return
            exact = end == whole and self.engine.is_exact
            yield self._remembered(route, self._answer(plan, logits, exact))
        if not self.engine.is_exact:
            logits = self.engine.settled(route, logits)
            yield self._remembered(route, self._answer(plan, logits, exact=True))

    def _remembered(self, route: Route, answer: Answer) -> Answer:
        self._answers.put(route.path, answer)
        return answer

    def _answer(self, plan: Plan, logits: Tensor, exact: bool) -> Answer:
        """The answer from the logits (n, K) of the first places; an exact one is in split order."""
        n = len(logits)
        index = self.engine.order[:n]
        right = correct(logits, self._split.labels[index])
        remaining = self.engine.strata.remaining(right)
        if exact:
            back = index.argsort()
            index, logits = index[back], logits[back]
        found = change(self.engine.original[index], logits, self._split.labels[index])
        moved = {name: index[getattr(found, name)] for name in ("gained", "lost", "changed")}
        hits = int(right.sum())
        return Answer(
            plan=plan,
            n=n,
            exact=exact,
            accuracy=hits / n if n else math.nan,
            interval=wilson(hits, n),
            remaining=remaining,
            change=replace(found, **moved),
            logits=logits,
            index=index,
            chance=1 / self.engine.classes,
            _cost=self.cost,
        )
