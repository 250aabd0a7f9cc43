"""One slider released, against the plain way: the same question, the same pictures, in turns."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Protocol

import numpy as np

from bench.timing import Taken, timed, turns
from core.plan import Plan
from core.whatif import Slider, WhatIf

QUESTION = "zero"  # what `torch.nn.utils.prune.ln_structured` does
PLAIN, ONE_THREAD = "plain", "one thread"  # the plain way on torch's default threads, and on one
KINDS = {
    "first touch": "no slider of this layer was released before",
    "warm": "one was",
    "first answer": "one was; until the answer that rests on the fewest pictures",
    "recheck": "one was; from the answer on all pictures to the exact one",
}
Seconds = Mapping[str, Mapping[str, Sequence[float]]]  # kind -> layer -> what every round took


class Peer(Protocol):
    def ask(self, way: str, *arguments: Any) -> Taken: ...


@dataclass
class Agreement:
    """How many pictures get the same class from two ways of working out the same plan."""

    same: int = 0
    pictures: int = 0
    plans: int = 0

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        self.same += int((ours == theirs).sum())
        self.pictures += len(theirs)
        self.plans += 1

    @property
    def share(self) -> float:
        return self.same / self.pictures if self.pictures else float("nan")


@dataclass(frozen=True, eq=False)
class Release:
    """A slider released: when its answers came."""

    classes: np.ndarray  # (N,), of the exact answer
    seconds: float  # until the exact answer
    first_s: float
    first_images: int
    recheck_s: float  # of all that, the time in which close calls were run again in float32


@dataclass
class Sliders:
    """What one slider released takes, layer by layer, over rounds that each have a fresh engine.

    Every time it is released at a sparsity that this engine was not asked for.
    """

    chosen: Sequence[Slider]
    peers: Mapping[str, Peer]
    agreement: Agreement = field(default_factory=Agreement)

    def __post_init__(self) -> None:
        self.ours = {kind: {slider.name: [] for slider in self.chosen} for kind in KINDS}
        self.plain: dict[str, list[float]] = {name: [] for name in self.peers}

    def round(self, engine: WhatIf, number: int, count: int) -> None:
        """Round `number` of `count`: every layer with ours; with the peers, this round's share of layers."""
        order = list(enumerate(self.chosen))
        random.Random(number).shuffle(order)
        for place, slider in order:
            cold, plan = fresh_plans(slider, 2, seed=100 * number + place)
            self.ours["first touch"][slider.name].append(release(engine, cold).seconds)
            if place % count == number:
                found = self._against_peers(engine, slider, plan, place + number)
            else:
                found = release(engine, plan)
            self.ours["warm"][slider.name].append(found.seconds)
            self.ours["first answer"][slider.name].append(found.first_s)
            self.ours["recheck"][slider.name].append(found.recheck_s)
            self.first_images = found.first_images

    def _against_peers(self, engine: WhatIf, slider: Slider, plan: Plan, turn: int) -> Release:
        removed = removed_filters(plan, [slider])
        asks = {name: partial(peer.ask, "plain", removed) for name, peer in self.peers.items()}
        taken = turns({"ours": partial(timed, partial(release, engine, plan)), **asks}, turn)
        for name in self.peers:
            self.plain[name].append(taken[name][0])
        found = taken["ours"][1]
        self.agreement.add(found.classes, taken[PLAIN][1])
        return found


def summary(ours: Seconds, plain: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians over rounds for every layer, ratios of these medians, and medians of both over layers."""
    naive = {name: 1000 * median(values) for name, values in plain.items()}
    layers = []
    for name in ours["warm"]:
        took = {kind: 1000 * median(ours[kind][name]) for kind in ours}
        layers.append(
            {
                "layer": name,
                "ms": took["warm"],
                "first_touch_ms": took["first touch"],
                "first_answer_ms": took["first answer"],
                "recheck_ms": took["recheck"],
                "ratio": naive[PLAIN] / took["warm"],
                "ratio_first_touch": naive[PLAIN] / took["first touch"],
                "ratio_one_thread": naive[ONE_THREAD] / took["warm"],
            }
        )

    over_layers = {key: median(layer[key] for layer in layers) for key in layers[0] if key != "layer"}
    return {
        "slider_ratio": over_layers["ratio"],
        "slider_ratio_one_thread": over_layers["ratio_one_thread"],
        "slider_ratio_first_touch": over_layers["ratio_first_touch"],
        "slider_ms": over_layers["ms"],
        "slider_first_touch_ms": over_layers["first_touch_ms"],
        "first_answer_ms": over_layers["first_answer_ms"],
        "recheck_ms": over_layers["recheck_ms"],
        "plain_ms": naive[PLAIN],
        "plain_one_thread_ms": naive[ONE_THREAD],
        "layers": layers,
    }


def fresh_plans(slider: Slider, count: int, seed: int, question: str = QUESTION) -> list[Plan]:
    """Plans of this slider alone that keep different numbers of its filters, some and not all; by lot."""
    by_kept = {slider.kept(question, percent / 100): percent / 100 for percent in range(5, 96)}
    by_kept.pop(slider.width, None)
    levels = random.Random(seed).sample(sorted(by_kept.values()), count)
    return [Plan(question, None, {slider.name: level}) for level in levels]


def removed_filters(plan: Plan, sliders: Sequence[Slider]) -> dict[str, int]:
    """How many filters the plan takes from every slider that it moves."""
    moved = dict(plan.sparsities)
    return {s.name: s.width - s.kept(plan.question, moved[s.name]) for s in sliders if s.name in moved}


def spread(sliders: Sequence[Slider], limit: int | None) -> list[Slider]:
    """At most `limit` of the sliders, from the first to the last at even distances."""
    if limit is None or limit >= len(sliders):
        return list(sliders)
    return [sliders[round(i * (len(sliders) - 1) / max(limit - 1, 1))] for i in range(limit)]


def release(engine: WhatIf, plan: Plan) -> Release:
    """Ask until the answer is exact, as the app does."""
    begun, answers = time.perf_counter(), []
    for answer in engine.answer(plan):
        answers.append((time.perf_counter() - begun, answer))
    (first_s, first), (seconds, last) = answers[0], answers[-1]
    all_seen = next(moment for moment, answer in answers if answer.n == last.n)
    return Release(last.logits.argmax(1).numpy(), seconds, first_s, first.n, seconds - all_seen)


def classes(engine: WhatIf, plan: Plan) -> np.ndarray:
    """The exact answer's classes (N,)."""
    return release(engine, plan).classes
