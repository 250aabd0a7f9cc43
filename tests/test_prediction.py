"""Predictions between measurements: the arithmetic, by hand, and how far off they are."""

import math
from dataclasses import replace
from random import Random

import pytest
import torch
from test_atlas import cache  # noqa: F401 (fixture)
from test_precision import reduced, trained  # noqa: F401 (fixtures)

from core.atlas import Atlas
from core.criteria.filter_l2 import FilterL2
from core.plan import Plan
from core.prediction import BAND, EPSILON, Anchor, Prediction, link, unlink

ATLAS = Atlas(
    "zero",
    FilterL2(),
    ("first", "second"),
    (0.25, 0.5),
    torch.tensor([[80, 60], [90, 85]]),
    n=100,
    exact=True,
    original_hits=90,
)
PREDICTION = Prediction.of(ATLAS)
ORIGINAL = Anchor(Plan("zero"), 0.9)


def odds(accuracy: float) -> float:
    return math.log((accuracy + EPSILON) / (1 - accuracy + EPSILON))


def test_the_link_is_undone_and_stays_finite():
    for accuracy in (0.0, 0.013, 0.5, 0.91, 1.0):
        assert unlink(link(accuracy)) == pytest.approx(accuracy)
    assert unlink(1000.0) == 1.0
    assert unlink(-1000.0) == 0.0


def test_a_slider_moved_alone_is_predicted_as_it_was_measured():
    for slider, name in enumerate(ATLAS.sliders):
        for level, sparsity in enumerate(ATLAS.sparsities):
            found, (low, high) = PREDICTION.predict(Plan("zero", None, {name: sparsity}), ORIGINAL)
            assert found == pytest.approx(ATLAS.accuracy[slider, level].item())
            assert low < found < high


def test_what_sliders_add_adds_up_in_log_odds():
    found, (low, high) = PREDICTION.predict(Plan("zero", None, {"first": 0.5, "second": 0.5}), ORIGINAL)
    change = odds(0.6) - odds(0.9) + odds(0.85) - odds(0.9)
    assert found == pytest.approx(unlink(odds(0.9) + change))
    half = BAND[0] + BAND[1] * abs(change)
    assert (low, high) == (
        pytest.approx(unlink(odds(0.9) + change - half)),
        pytest.approx(unlink(odds(0.9) + change + half)),
    )


def test_between_points_it_is_straight_and_beyond_the_last_it_goes_on():
    found, _ = PREDICTION.predict(Plan("zero", None, {"first": 0.1}), ORIGINAL)
    assert link(found) == pytest.approx(odds(0.9) + 0.4 * (odds(0.8) - odds(0.9)))
    found, _ = PREDICTION.predict(Plan("zero", None, {"first": 0.75}), ORIGINAL)
    assert link(found) == pytest.approx(odds(0.6) + (odds(0.6) - odds(0.8)))


def test_only_what_moved_since_the_last_measurement_is_guessed():
    plan = Plan("zero", None, {"first": 0.5, "second": 0.25})
    anchor = Anchor(plan, 0.42)  # much worse than the sum says
    assert PREDICTION.predict(plan, anchor)[0] == pytest.approx(0.42)
    found, _ = PREDICTION.predict(plan.with_sparsity("second", 0.5), anchor)
    assert link(found) == pytest.approx(odds(0.42) + odds(0.85) - odds(0.9))


def test_a_browser_is_told_the_same():
    told = PREDICTION.to_dict(Anchor(Plan("zero", None, {"second": 0.25}), 0.7))
    assert told["grid"] == (0.0, 0.25, 0.5)
    assert told["curves"][0] == pytest.approx([0.0, odds(0.8) - odds(0.9), odds(0.6) - odds(0.9)], abs=1e-4)
    assert told["anchor"] == {"levels": [0.0, 0.25], "value": 0.7}
    assert (told["eps"], told["band"]) == (EPSILON, BAND)


def test_cells_that_are_not_known_predict_nothing():
    with pytest.raises(ValueError, match="complete"):
        Prediction.of(replace(ATLAS, hits=torch.tensor([[80, 60], [90, -1]])))


def test_on_a_trained_network_most_measured_plans_lie_in_the_band(trained):  # noqa: F811
    *_, atlas = trained.atlas("zero")
    prediction, names = Prediction.of(atlas), [slider.name for slider in trained.sliders("zero")]
    random, inside, errors, changes = Random(0), 0, [], []
    for _ in range(30):
        some = random.sample(names, random.randint(0, len(names)))
        plan = Plan("zero", None, {name: random.choice((0.2, 0.4, 0.6)) * random.random() for name in some})
        target = plan.with_sparsity(random.choice(names), random.choice((0.4, 0.9)) * random.random())
        before, measured = (trained.exact(each).accuracy for each in (plan, target))
        found, (low, high) = prediction.predict(target, Anchor(plan, before))
        errors.append(abs(found - measured))
        changes.append(abs(before - measured))
        inside += low <= measured <= high
    assert inside >= 24  # of 30, where nine of ten are promised: fewer has a chance below 5 %
    assert sum(errors) < 0.8 * sum(changes)  # better than to guess that nothing changes
