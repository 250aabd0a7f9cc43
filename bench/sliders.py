"""One slider released, against the plain way: the same question, the same pictures, in turns."""

import random
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
    "first answer": "one was, and the answer rests on a part of the pictures",
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
            first, second, third = fresh_plans(slider, 3, seed=100 * number + place)
            self._note("first touch", slider, timed(lambda: engine.exact(first)))  # noqa: B023
            if place % count == number:
                self._note("warm", slider, self._against_peers(engine, slider, second, place + number))
            else:
                self._note("warm", slider, timed(lambda: engine.exact(second)))  # noqa: B023
            begun = timed(lambda: next(engine.answer(third)))  # noqa: B023
            self._note("first answer", slider, begun)
            self.first_images = begun[1].n

    def _against_peers(self, engine: WhatIf, slider: Slider, plan: Plan, turn: int) -> Taken:
        ask = partial(timed, partial(classes, engine, plan))
        removed = removed_filters(plan, [slider])
        asks = {name: partial(peer.ask, "plain", removed) for name, peer in self.peers.items()}
        taken = turns({"ours": ask, **asks}, turn)
        for name in self.peers:
            self.plain[name].append(taken[name][0])
        self.agreement.add(taken["ours"][1], taken[PLAIN][1])
        return taken["ours"]

    def _note(self, kind: str, slider: Slider, taken: Taken) -> None:
        self.ours[kind][slider.name].append(taken[0])


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


def classes(engine: WhatIf, plan: Plan) -> np.ndarray:
    """The exact answer's classes (N,)."""
    return engine.exact(plan).logits.argmax(1).numpy()
