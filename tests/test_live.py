"""The live bars as the server sees them: what it tells the browser, and what it makes of the answers."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

from core.errors import UserError
from core.plan import Plan
from core.prediction import Anchor, Prediction
from core.weights import shipped
from core.whatif import WhatIf
from view import engine, live, surveys
from view.engine import Scene
from view.live import Commit

ROOT = Path(__file__).parent.parent
NAMES = ["conv1", "layer1.0", "layer2.0", "fc"]
SOME = some.sampled_from(NAMES)
LEVELS = some.dictionaries(SOME, some.integers(0, 100))
LARGEST = 20_000  # bytes of one description: it travels with every run


def message(**parts) -> dict:
    return {"commit": 1, "scene": "s", "levels": {}, "locks": {}} | parts


@given(LEVELS, LEVELS)
def test_levels_set_in_the_browser_round_trip_through_a_plan_and_its_link(before, levels):
    plan = Plan(sparsities=tuple((name, level / 100) for name, level in before.items()))
    moved = Commit.read(json.loads(json.dumps(message(levels=levels)))).moved(plan)
    again = Plan.from_text(moved.to_text(NAMES), NAMES)
    assert {name: round(100 * again.sparsity(name)) for name in NAMES} == {
        name: levels.get(name, before.get(name, 0)) for name in NAMES
    }


@given(
    some.frozensets(some.sampled_from(NAMES)), some.dictionaries(some.sampled_from(NAMES), some.booleans())
)
def test_locks_that_were_set_or_lifted_change_and_the_others_stay(locked, locks):
    found = Commit.read(message(locks=locks)).locked(locked)
    assert {name: name in found for name in NAMES} == {
        name: locks.get(name, name in locked) for name in NAMES
    }


@pytest.mark.parametrize(
    "junk",
    [
        None,
        "commit",
        {},
        message(commit="1"),
        message(levels={"conv1": 101}),
        message(levels={"conv1": -1}),
        message(levels={"conv1": 0.5}),
        message(levels={"conv1": True}),
        message(levels=[50]),
        message(locks={"conv1": "yes"}),
    ],
)
def test_a_message_that_no_browser_of_ours_sends_is_a_user_error(junk):
    with pytest.raises(UserError, match="live bars"):
        Commit.read(junk)


def test_nothing_is_fetched_from_elsewhere():
    sources = live.SCRIPT + "".join(path.read_text() for path in live.FOLDER.iterdir())
    addresses = set(re.findall(r"https?:[^\s\"'<>]+|\bimport\b[^.]+?from|fetch\(|@import", sources))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not a place


# the page


@pytest.fixture(scope="module")
def key() -> str:
    """Of the network that the app opens with."""
    if not shipped():
        pytest.skip("no trained network is shipped yet")
    return shipped()[0].path.stem


@pytest.fixture(scope="module")
def whatif(key) -> WhatIf:
    return engine.whatif(key)


def opened(**query: str) -> AppTest:
    test = AppTest.from_file(str(ROOT / "app.py"), default_timeout=240)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run().switch_page("pages/prune.py").run()


def description(test: AppTest) -> dict:
    (found,) = (each.proto for each in test.get("bidi_component") if each.proto.json)
    assert len(found.json) < LARGEST
    return json.loads(found.json)


def facts(test: AppTest) -> dict:
    (found,) = re.findall(r'data-facts="([^"]*)"', "".join(each.proto.body for each in test.get("html")))
    return json.loads(unescape(found))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["remove:filter-l2:0,.3,.5x3", "weights:magnitude:.2x20", "silence:filter-l1:.9"]
)
def test_the_browser_is_told_what_the_engine_knows(text, key, whatif):
    plan, test = Plan.from_text(text, whatif.sliders), opened(plan=text)
    survey = surveys.survey(key, plan)
    while survey.running:
        survey.wait(0.1)
    told, answer = description(test.run()), whatif.exact(plan)
    sliders = whatif.sliders(plan.question)
    assert [slider["name"] for slider in told["sliders"]] == [slider.name for slider in sliders]
    assert [slider["entries"] for slider in told["sliders"]] == [s.entries(plan.question) for s in sliders]
    assert told["levels"] == [round(100 * plan.sparsity(slider.name)) for slider in sliders]
    terms = whatif.cost_terms(plan.question)
    assert told["terms"] == [[term.weights, term.macs, list(term.sliders)] for term in terms]
    measured = facts(test)["measured"]
    assert facts(test)["scene"] == told["scene"]
    assert measured["levels"] == told["levels"]
    assert measured["value"] == answer.accuracy
    assert (measured["n"], measured["exact"]) == (answer.n, True)
    assert facts(test)["original"] == whatif.original.accuracy
    assert survey.complete.n >= surveys.ENOUGH
    expected = Prediction.of(survey.complete).to_dict(Anchor(plan, answer.accuracy))
    assert facts(test)["prediction"] == json.loads(json.dumps(expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("remove:filter-l2:.5", [50, 0, 0]),
        ("remove:filter-l1:.5", None),
        ("silence:filter-l2:.5", None),
        ("silence:filter-l2", [0, 0, 0]),  # nothing removed is the same network under every question
    ],
)
def test_what_was_measured_under_another_question_or_criterion_has_no_levels_here(text, levels, key, whatif):
    asked, measured = (Plan.from_text(plan, whatif.sliders) for plan in ("remove:filter-l2:0,.1", text))
    scene = Scene(key, None, None, whatif, asked, whatif.sliders("remove"), 0)
    told = json.loads(
        unescape(re.search(r'data-facts="([^"]*)"', live.facts(scene, whatif.exact(measured)))[1])
    )
    found = told["measured"]["levels"]
    assert (found and found[:3]) == levels
    assert found is None or not any(found[3:])
