"""The live engine: what would this network do under that plan?

One `WhatIf` serves all readers of a model and a set of images. What readers share is never written
again: a plan changes steps of its own, and remembers what it found by what it did.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import blake2b

import torch
from torch import Tensor

from core import workers
from core.bundles import DatasetBundle, ModelBundle, Split
from core.cost import Cost
from core.cutting import TensorMasks
from core.evaluation import Change, Interval, change, correct, wilson
from core.memory import Memory, Path, PrefixMemory, fork
from core.plan import Plan
from core.precision import CALIBRATION, PRECISIONS, doubt, race, settle
from core.run import Run
from core.sliders import Slider, Sliders
from core.steps import Step
from core.strata import STRATA, Strata, tier_ends

__all__ = ["Answer", "Slider", "WhatIf"]

CHUNK_MACS = 2.5e9  # work between two points at which an answer can be given up: well below 50 ms
ANSWERS_BYTES = 64 << 20  # logits of answers that are remembered
PREFIX_BYTES = 400 << 20  # activations that are remembered
STEPS_BYTES = 128 << 20  # weights of changed steps, laid out for the processor, that are remembered
RECENT = 16  # paths that a new one is compared with


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


@dataclass(frozen=True)
class Route:
    """A plan as the engine walks it."""

    masks: dict[int, TensorMasks]  # step -> what stays of its weights
    changed: dict[int, Step]  # the same steps, ready to run
    path: Path  # how to recognise them
    start: int  # the step where it leaves the closest path walked before


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
        self._classes = len(dataset.classes)
        macs = sum(layer.weight.numel() * self._positions[name] for name, layer in self._layers.items())
        self._chunk = int(min(max(CHUNK_MACS // max(macs, 1), 1), STRATA))
        self._prefixes = PrefixMemory(PREFIX_BYTES)
        self._answers: Memory[Answer] = Memory(ANSWERS_BYTES, lambda answer: answer.logits.nbytes)
        self._steps: Memory[Step] = Memory(STEPS_BYTES, lambda step: step.size_bytes)
        self._recent: deque[Path] = deque(maxlen=RECENT)
        batch = split.normalise(split.pixels[: self._chunk]) if len(split) else self._example
        (self._forms,) = workers.each(partial(race, bundle.module, precisions=precisions), [batch])
        self._order = torch.arange(len(split))
        self._before, self._doubt = self._run_original(run or Run())
        self._strata = Strata(self._before, split.labels)
        self._order = self._strata.order

    @property
    def words(self) -> str:
        """The form in which the network runs, for a person."""
        return self._forms.fast.words

    @cached_property
    def original(self) -> Answer:
        """The untouched network on all images."""
        return self._answer(Plan(), self._before[self._order], exact=True)

    def answer(self, plan: Plan, run: Run | None = None) -> Iterator[Answer]:
        """Answers that tighten: on a representative subset, on more, then exactly on all images.

        An exact answer gives every image the class that the float32 network gives it; others may
        rest on less precision. Work is done only while an answer is asked for: a reader who closes
        the iterator, or raises from the progress of `run`, which is told after every chunk, ends it
        within one chunk. A plan that was answered before is answered at once.

        Raises:
            ParameterError: the plan moves a slider that this model does not have.
        """
        route = self._route(self.masks(plan))
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

    def _route(self, masks: TensorMasks) -> Route:
        touched, changed = self._forms.fast.touched(masks), {}
        path = tuple((index, _digest(here)) for index, here in touched.items())
        for key in path:
            index = key[0]
            changed[index] = self._steps.get(key) or self._forms.fast.steps[index].masked(touched[index])
            self._steps.put(key, changed[index])
        with self._lock:
            forks = [fork(path, other) for other in ((), *self._recent)]
            if path not in self._recent:
                self._recent.append(path)
        return Route(touched, changed, path, max((step for step in forks if step is not None), default=0))

    def _tiers(self, plan: Plan, route: Route, known: Answer | None, run: Run) -> Iterator[Answer]:
        """Answers on more and more images, after `known`."""
        whole = len(self._split)
        logits = torch.empty(0, self._classes) if known is None else known.logits
        for end in tier_ends(whole, self._chunk):
            if end <= len(logits):
                continue
            parts, done = [logits], len(logits)
            for part in self._forward(route, done, end):
                parts.append(part)
                done += len(part)
                run.report(done / whole, "Evaluating")
            logits = torch.cat(parts)
            elsewhere = self._answers.get(route.path)  # another reader may have been faster
            if elsewhere is not None and elsewhere.exact:
                yield replace(elsewhere, plan=plan)
                return
            yield self._remembered(route, self._answer(plan, logits, exact=end == whole and self._settled))
        if not self._settled:
            logits = settle(logits, partial(self._exactly, route), self._doubt)
            yield self._remembered(route, self._answer(plan, logits, exact=True))

    @property
    def _settled(self) -> bool:
        """Whether the fastest form is the exact one, so that nothing is left to be settled."""
        return self._forms.fast is self._forms.exact

    def _run_original(self, run: Run) -> tuple[Tensor, float]:
        """Logits (N, K) of the untouched network, and how far margins may be off; see `settle`."""
        route, whole, parts, done = Route({}, {}, (), 0), len(self._split), [torch.empty(0, self._classes)], 0
        for part in self._forward(route, 0, whole):
            parts.append(part)
            done += len(part)
            run.report(done / whole, "Running the original")
        logits = torch.cat(parts)
        if self._settled or not whole:
            return logits, 0.0
        some = torch.arange(whole)[:: max(1, whole // CALIBRATION)]
        off = doubt(logits[some], self._exactly(route, some))
        return settle(logits, partial(self._exactly, route), off), off

    def _forward(self, route: Route, begin: int, end: int) -> Iterator[Tensor]:
        """Logits of the images in places [begin, end) of the order, chunk by chunk."""
        fast, size = self._forms.fast, self._chunk

        @torch.inference_mode()
        def run(chunk: int) -> Tensor:
            at, values = self._prefixes.nearest(chunk, route.start, route.path) or (0, None)
            if values is None:
                values = fast.enter(self._images(slice(chunk * size, (chunk + 1) * size)))
            if at < route.start:
                values = fast.run(values, at, route.start, route.changed)
                self._prefixes.put(chunk, route.start, route.path, values)
            return fast.finish(values, route.start, route.changed)

        return workers.each(run, range(begin // size, -(-end // size)))

    def _exactly(self, route: Route, places: Tensor) -> Tensor:
        """Float32 logits (M, K) of the images at `places` (M,) of the order."""
        exact = self._forms.exact
        changed = {index: exact.steps[index].masked(masks) for index, masks in route.masks.items()}

        @torch.inference_mode()
        def run(part: Tensor) -> Tensor:
            return exact.finish(exact.enter(self._images(part)), 0, changed)

        return torch.cat(list(workers.each(run, places.split(self._chunk))))

    def _images(self, places: Tensor | slice) -> Tensor:
        return self._split.normalise(self._split.pixels[self._order[places]])

    def _remembered(self, route: Route, answer: Answer) -> Answer:
        self._answers.put(route.path, answer)
        return answer

    def _answer(self, plan: Plan, logits: Tensor, exact: bool) -> Answer:
        """The answer from the logits (n, K) of the first images; an exact one is in split order."""
        n = len(logits)
        index, labels = self._order[:n], self._split.labels[self._order[:n]]
        right = correct(logits, labels)
        remaining = self._strata.remaining(right)
        if exact:
            back = index.argsort()
            index, logits, labels = index[back], logits[back], labels[back]
        found = change(self._before[index], logits, labels)
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
            chance=1 / self._classes,
            _cost=self.cost,
        )


def _digest(masks: TensorMasks) -> bytes:
    """The same for the same masks, and for no others."""
    digest = blake2b(digest_size=16)
    for place, keep in sorted(masks.items(), key=lambda item: item[0]):
        digest.update(f"{place}{tuple(keep.shape)}".encode())
        digest.update(keep.numpy().tobytes())
    return digest.digest()
