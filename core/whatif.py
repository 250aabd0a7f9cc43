"""The live engine: what would this network do under that plan?

One `WhatIf` serves all readers of a model and a set of images. It changes nothing that it shares:
every plan gets a private copy of the network, and what is remembered is never written again.
"""

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from core.bundles import DatasetBundle, ModelBundle, Setting, Split
from core.cost import Cost, cost_at, output_positions
from core.coupling import groups, output_layers
from core.criterion import Criterion, Ranking
from core.errors import ParameterError
from core.evaluation import Change, change, correct, forward, wilson
from core.groups import group_scores, normalised
from core.layers import private_copy, require_prunable
from core.plan import QUESTIONS, Plan, preset
from core.registry import unknown
from core.run import Run

STRATA = 50  # bands of the original's margin; a tier holds equally many images of each
FIRST = 250  # images of the first answer; each later one has twice as many
CHUNK_MACS = 2.5e9  # work between two points at which an answer can be given up: well below 50 ms
REMEMBERED_BYTES = 64 << 20  # logits of finished answers that are kept

T = TypeVar("T")

# Chunks of all readers take turns here; one torch thread each, since two small ones beat a shared large one.
_WORKERS = ThreadPoolExecutor(os.cpu_count() or 1, "what-if", lambda: torch.set_num_threads(1))


@dataclass(frozen=True)
class Slider:
    """What one slider moves: a layer, or the layers that share their channels."""

    name: str
    layers: tuple[str, ...]
    width: int  # filters, or removable units of the group; for single weights: filters of the layer
    weights: int  # numbers in the weight tensors of `layers`
    macs: int  # multiply-adds of `layers` for one image

    def entries(self, question: str) -> int:
        """How many things it can take away: single weights, or filters."""
        return self.weights if question == "weights" else self.width

    def kept(self, question: str, sparsity: float) -> int:
        """How many of them stay; of filters, the best always does."""
        whole = self.entries(question)
        return max(whole - round(sparsity * whole), 0 if question == "weights" else 1)


@dataclass(frozen=True, eq=False)
class Answer:
    """How a plan does on the images looked at so far; `exact` once these are all."""

    plan: Plan
    n: int
    exact: bool
    accuracy: float  # NaN without images
    interval: tuple[float, float]  # of the accuracy on new images, Wilson, 95 %
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


class WhatIf:
    """Answers plans for one model and one set of images; safe to share between threads."""

    def __init__(
        self, bundle: ModelBundle, dataset: DatasetBundle, split: Split, run: Run | None = None
    ) -> None:
        """Runs the original over `split` once, reporting to `run`."""
        self._module = bundle.module
        self._bundle = bundle
        self._setting = Setting(dataset.train, dataset.validation, bundle.module)
        self._split = split
        self._classes = len(dataset.classes)
        self._example = split.normalise(torch.zeros(1, *dataset.shape, dtype=torch.uint8))
        self._layers = require_prunable(bundle.module)
        self._positions = output_positions(bundle.module, self._example)
        macs = sum(layer.weight.numel() * self._positions[name] for name, layer in self._layers.items())
        self._chunk = int(min(max(CHUNK_MACS // max(macs, 1), 1), STRATA))
        self._lock = threading.Lock()
        self._scoring: dict[tuple[bool, Criterion], threading.Lock] = {}
        self._sliders: Memory[tuple[Slider, ...]] = Memory(len(QUESTIONS))
        self._rankings: Memory[Ranking] = Memory(8)
        self._costs: Memory[Cost] = Memory(1000)
        self._answers: Memory[Answer] = Memory(REMEMBERED_BYTES, lambda answer: answer.logits.nbytes)
        self._before = self._run_original(run or Run())  # (N, K)
        self._order = strata_order(self._before, split.labels)

    @cached_property
    def original(self) -> Answer:
        """The untouched network on all images."""
        return self._answer(Plan(), torch.arange(len(self._split)), self._before)

    def sliders(self, question: str) -> tuple[Slider, ...]:
        """The sliders of a question: one per coupled group for "remove", else one per layer.

        The layer that makes the logits keeps its filters, so it has a slider for single weights only.

        Raises:
            UnsupportedModelError: the channels of the model cannot be followed.
        """
        found = self._sliders.get(question) or self._make_sliders(question)
        self._sliders.put(question, found)
        return found

    def answer(self, plan: Plan, run: Run | None = None) -> Iterator[Answer]:
        """Answers that tighten: on a representative subset, on more, then exactly on all images.

        Work is done only while an answer is asked for: a reader who closes the iterator, or raises
        from the progress of `run`, which is told after every chunk, ends it within one chunk. A plan
        that was answered before is answered at once.

        Raises:
            ParameterError: the plan moves a slider that this model does not have.
        """
        if not plan.sparsities:
            yield replace(self.original, plan=plan)
            return
        known = self._answers.get(plan)
        if known is not None:
            yield known
        if known is None or not known.exact:
            yield from self._tiers(plan, known, run or Run())

    def exact(self, plan: Plan) -> Answer:
        """The last of `answer`: on all images."""
        *_, last = self.answer(plan)
        return last

    def model(self, plan: Plan) -> nn.Module:
        """The compressed network, in eval mode and frozen; it belongs to the caller."""
        if not plan.sparsities:
            return private_copy(self._module)
        ranking = self._scored(plan)
        if plan.question != "weights":
            return plan.apply(self._module, self._setting, ranking.scores)
        model = private_copy(self._module)
        for name, keep in ranking.masks(dict(plan.sparsities)).items():
            model.get_submodule(name).weight.detach().mul_(keep)
        return model

    def cost(self, plan: Plan) -> Cost:
        """What the compressed network costs, without running it."""
        plan = plan if plan.sparsities else Plan()  # all questions start from the same network
        found = self._costs.get(plan) or cost_at(self.model(plan), self._positions)
        self._costs.put(plan, found)
        return found

    def code(self, plan: Plan) -> str:
        """Plain PyTorch that repeats the plan; see `Plan.code`."""
        return plan.code(self._bundle, self._setting, self._scored(plan).scores)

    def preset(
        self,
        name: str,
        question: str,
        criterion: Criterion | str | None = None,
        sparsity: float | None = None,
    ) -> Plan:
        """One of `plan.PRESETS` for this model."""
        plan = Plan(question, criterion)
        ranking = self._ranking(plan) if name == "global" else None
        return preset(name, self.sliders, question, plan.criterion, sparsity, ranking)

    def _make_sliders(self, question: str) -> tuple[Slider, ...]:
        if question == "remove":
            found = groups(self._module, self._example)
            return tuple(self._slider(group.name, group.layers, group.width) for group in found)
        kept = output_layers(self._module, self._example) if question in ("silence", "zero") else ()
        names = [name for name in self._layers if name not in kept]
        return tuple(self._slider(name, (name,), len(self._layers[name].weight)) for name in names)

    def _slider(self, name: str, layers: tuple[str, ...], width: int) -> Slider:
        weights = {layer: self._layers[layer].weight.numel() for layer in layers}
        macs = sum(count * self._positions[layer] for layer, count in weights.items())
        return Slider(name, layers, width, sum(weights.values()), macs)

    def _scored(self, plan: Plan) -> Ranking:
        """The scores of the plan's criterion: of single weights, or of filters; computed once."""
        key = (plan.question == "weights", plan.criterion)
        with self._lock:
            scoring = self._scoring.setdefault(key, threading.Lock())
        with scoring:  # of readers who ask for the same scores, one computes them
            found = self._rankings.get(key) or Ranking(plan.scores(self._module, self._setting))
            self._rankings.put(key, found)
        return found

    def _ranking(self, plan: Plan) -> Ranking:
        """Scores of what the sliders of the plan's question move, comparable between sliders."""
        scores = self._scored(plan).scores
        if plan.question == "remove":
            return Ranking(group_scores(groups(self._module, self._example), normalised(scores)))
        if plan.question == "weights":
            return Ranking(scores)
        return Ranking(
            normalised({slider.name: scores[slider.name] for slider in self.sliders(plan.question)})
        )

    def _run_original(self, run: Run) -> Tensor:
        """Logits (N, K) of the untouched network."""
        parts, done = [], 0
        model = private_copy(self._module).to(memory_format=torch.channels_last)
        for logits in self._forward(model, torch.arange(len(self._split))):
            parts.append(logits)
            done += len(logits)
            run.report(done / len(self._split), "Running the original")
        return self._join(parts)

    def _tiers(self, plan: Plan, known: Answer | None, run: Run) -> Iterator[Answer]:
        """Answers on more and more images, after `known`."""
        self._require_sliders(plan)
        model = self.model(plan).to(memory_format=torch.channels_last)
        parts = [] if known is None else [known.logits]
        done = 0 if known is None else known.n
        for end in tier_ends(len(self._split)):
            if end < done or (known is not None and end == known.n):
                continue
            for logits in self._forward(model, self._order[done:end]):
                parts.append(logits)
                done += len(logits)
                run.report(done / len(self._split), "Evaluating")
            parts = [self._join(parts)]
            answer = self._answer(plan, self._order[:end], parts[0])
            elsewhere = self._answers.get(plan)  # another reader may have been faster
            if elsewhere is not None and elsewhere.exact:
                yield elsewhere
                return
            self._answers.put(plan, answer)
            yield answer

    def _join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts) if parts else torch.empty(0, self._classes)

    def _require_sliders(self, plan: Plan) -> None:
        names = [slider.name for slider in self.sliders(plan.question)]
        for name, _ in plan.sparsities:
            if name not in names:
                raise ParameterError(f"plan: {unknown('slider', name, names)}")

    def _answer(self, plan: Plan, index: Tensor, logits: Tensor) -> Answer:
        """The answer from the logits (n, K) of the images at `index`; an exact one is in split order."""
        exact = len(index) == len(self._split)
        if exact:
            order = index.argsort()
            index, logits = index[order], logits[order]
        labels = self._split.labels[index]
        found = change(self._before[index], logits, labels)
        moved = {name: index[getattr(found, name)] for name in ("gained", "lost", "changed")}
        n, hits = len(index), int(correct(logits, labels).sum())
        return Answer(
            plan=plan,
            n=n,
            exact=exact,
            accuracy=hits / n if n else math.nan,
            interval=wilson(hits, n),
            change=replace(found, **moved),
            logits=logits,
            index=index,
            chance=1 / self._classes,
            _cost=self.cost,
        )

    def _forward(self, model: nn.Module, index: Tensor) -> Iterator[Tensor]:
        """Logits of the images at `index`, chunk by chunk; closing the iterator drops what has not begun."""

        def chunk(index: Tensor) -> Tensor:
            return forward(model, self._split.normalise(self._split.pixels[index]))

        return _WORKERS.map(chunk, index.split(self._chunk) if len(index) else ())


class Memory(Generic[T]):
    """The values used last, up to a limit on their weights together; safe to share between threads."""

    def __init__(self, limit: float, weigh: Callable[[T], float] = lambda value: 1) -> None:
        self._limit = limit
        self._weigh = weigh
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._weight = 0.0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Hashable, value: T) -> None:
        with self._lock:
            if key in self._held:
                self._weight -= self._weigh(self._held.pop(key))
            self._held[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._limit and len(self._held) > 1:
                self._weight -= self._weigh(self._held.popitem(last=False)[1])


def tier_ends(count: int) -> list[int]:
    """250, 500, 1,000 ... and `count`; a tier is left out where nearly all images would do."""
    ends, end = [], FIRST
    while 1.5 * end < count:
        ends.append(end)
        end *= 2
    return [*ends, count]


def strata_order(logits: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    """An order (N,) of the images in which every beginning represents the whole.

    The images are sorted by signed margin (the label's logit less the largest other one) and cut
    into `STRATA` bands; every run of `STRATA` images holds one of each band, drawn at random. Images
    near the border flip most easily, so a beginning predicts the effect of compression with two to
    six times fewer images than a random sample, while its accuracy stays a plain mean.
    """
    n, random = len(labels), torch.Generator().manual_seed(seed)
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    ranked = (right - others).nan_to_num(nan=-math.inf).argsort(stable=True)

    def sorted_at_random(key: Tensor) -> Tensor:
        order = torch.randperm(n, generator=random)
        return order[key[order].argsort(stable=True)]

    band = torch.arange(n) * STRATA // max(n, 1)  # of every place in `ranked`
    by_band = sorted_at_random(band)
    turn = torch.arange(n) - torch.searchsorted(band, band)  # of every place in `by_band`
    return ranked[by_band][sorted_at_random(turn)]
