"""How far predictions from an atlas lie from what is measured."""

import random
from collections.abc import Sequence
from statistics import mean
from typing import Any

from bench.plans import random_plans
from bench.sliders import QUESTION, Agreement, Peer, classes, removed_filters
from core.atlas import Atlas
from core.plan import Plan
from core.prediction import Anchor, Prediction
from core.whatif import WhatIf

PLANS = 25
Guess = tuple[float, bool]  # distance from the measured accuracy; whether that lay in the band


def measure(engine: WhatIf, atlas: Atlas, plans: int = PLANS) -> dict[str, Any]:
    """Random plans, predicted from the original; and one slider moved from each, once it is measured."""
    prediction, lot = Prediction.of(atlas), random.Random(0)
    sliders = engine.sliders(QUESTION)
    original, many, one = Anchor(Plan(QUESTION), engine.original.accuracy), [], []
    for plan in random_plans(sliders, plans, QUESTION):
        anchor = Anchor(plan, engine.exact(plan).accuracy)
        many.append(guess(prediction, anchor, original))
        moved = plan.with_sparsity(lot.choice(sliders).name, lot.randint(0, 90) / 100)
        one.append(guess(prediction, Anchor(moved, engine.exact(moved).accuracy), anchor))
    return {
        "prediction_plans": plans,
        "prediction_error": _error(many),
        "prediction_in_band": _in_band(many),
        "prediction_error_one_move": _error(one),
        "prediction_in_band_one_move": _in_band(one),
    }


def guess(prediction: Prediction, measured: Anchor, anchor: Anchor) -> Guess:
    """The accuracy of `measured` predicted from `anchor`."""
    found, (low, high) = prediction.predict(measured.plan, anchor)
    return abs(found - measured.accuracy), low <= measured.accuracy <= high


def compare(engine: WhatIf, peer: Peer, agreement: Agreement, plans: int) -> None:
    """Add so many of the same random plans of several layers to what is compared with the plain way."""
    sliders = engine.sliders(QUESTION)
    for plan in random_plans(sliders, plans, QUESTION):
        _, theirs = peer.ask("plain", removed_filters(plan, sliders))
        agreement.add(classes(engine, plan), theirs)


def _error(guesses: Sequence[Guess]) -> float:
    """Mean distance in percentage points."""
    return 100 * mean(distance for distance, _ in guesses)


def _in_band(guesses: Sequence[Guess]) -> float:
    return mean(inside for _, inside in guesses)
