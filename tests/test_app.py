"""The app's logic without a browser: every page runs, sliders move numbers, links and Undo restore."""

import json
import re
import time
from pathlib import Path

import pytest

pytest.importorskip("streamlit")
import streamlit as st
from streamlit.testing.v1 import AppTest

from core.bundles import Setting
from core.evaluation import evaluate
from core.recipe import COMPRESSORS, Recipe, compress
from core.weights import load_dataset, load_model, shipped

ROOT = Path(__file__).parent.parent
NAMES = ("start", "prune", "attributions", "methods", "prove", "learn")
PAGES = [f"pages/{name}.py" for name in NAMES]
PATIENCE_S = 240

pytestmark = pytest.mark.slow


@pytest.fixture
def app():
    if not shipped():
        pytest.skip("no trained network is shipped yet")
    return lambda: AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_S)


def opened(app, page: str, **query: str) -> AppTest:
    test = app()
    for name, value in query.items():
        test.query_params[name] = value
    test.run()
    return test if page == PAGES[0] else test.switch_page(page).run()


def plain(test) -> AppTest:
    """The plain sliders in place of the live bars, whose script does not run here."""
    return test.segmented_control(key="view").set_value("Plain sliders").run()


def html(test) -> str:
    return "\n".join(element.proto.body for element in test.get("html"))


def accuracy(test) -> float:
    return float(re.search(r'>Accuracy</div><div class="v">([\d.]+) %', html(test))[1])


@pytest.mark.parametrize("page", PAGES)
def test_every_page_runs_without_an_exception(page, app):
    test = opened(app, page)
    assert not test.exception
    assert not test.error


def test_moving_a_slider_changes_plan_link_and_accuracy(app):
    test = plain(opened(app, "pages/prune.py"))
    before = accuracy(test)
    slider = next(s for s in test.slider if s.key.startswith("slider."))
    slider.set_value(100).run()
    assert not test.exception
    assert accuracy(test) < before
    assert test.query_params["plan"] == "remove:filter-l2:1"
    next(b for b in test.button if b.key == "undo").click().run()
    assert accuracy(test) == before


def test_a_preset_leaves_locked_sliders_alone(app):
    test = plain(opened(app, "pages/prune.py"))
    first = next(s for s in test.slider if s.key.startswith("slider."))
    name = first.key.split(".", 3)[-1]
    next(m for m in test.multiselect if m.key == "locks").set_value([name]).run()
    next(b for b in test.button if b.key == "preset.break-it").click().run()
    levels = [s.value for s in test.slider if s.key.startswith("slider.")]
    assert levels[0] == 0
    assert set(levels[1:]) == {95}


def test_nothing_removed_is_no_change_in_grey(app):
    body = html(opened(app, "pages/prune.py"))
    assert re.search(r'<div class="d ps-grey">0\.0 points', body)


def test_every_page_survives_95_per_cent_everywhere(app):
    for page in PAGES:
        test = opened(app, page, plan="remove:filter-l2:.95x12")
        assert not test.exception
        assert not test.error


@pytest.mark.parametrize("method", ["saliency", 'integrated-gradients{"steps":8}', "grad-cam"])
def test_an_attribution_method_of_the_link_is_used_and_its_form_drawn(method, app):
    test = opened(app, "pages/attributions.py", attr=method, plan="remove:filter-l2:.3x12")
    assert not test.exception
    chosen = next(s for s in test.selectbox if s.key == "attribution")
    assert method.startswith(chosen.value)
    if "steps" in method:
        assert next(s for s in test.slider if s.key.endswith(".steps")).value == 8


def test_a_goal_moves_all_sliders_until_it_is_met(app):
    test = plain(opened(app, "pages/prune.py", m="small-cnn--cluttered-digits", plan="weights:magnitude"))
    next(b for b in test.button if b.key == "goal.find").click().run()
    assert not test.exception
    levels = {s.value for s in test.slider if s.key.startswith("slider.")}
    assert len(levels) == 1
    assert 20 < levels.pop() < 95
    assert "weights:magnitude:." in test.query_params["plan"]


def carried(app, *steps: str, **query: str) -> AppTest:
    """The Methods page as a link with these steps shows it."""
    return opened(app, "pages/methods.py", m="mlp--digits", steps=json.dumps(steps), **query)


def press(test, words: str) -> AppTest:
    return next(b for b in test.button if words in b.label).click().run()


def test_a_link_to_a_recipe_shows_what_it_makes_of_the_network(app):
    test = carried(app, 'prune-weights{"sparsity":0.9}')
    assert not test.exception
    data = load_dataset("digits")
    bundle = load_model("mlp", "digits")
    step = COMPRESSORS["prune-weights"](sparsity=0.9)
    made = compress(bundle.module, Setting(data.train, data.validation, bundle.module), Recipe((step,))).model
    assert accuracy(test) == pytest.approx(100 * evaluate(made, data.test).accuracy, abs=0.05)
    assert "What changed inside" in html(test)
    assert "B compressed says" in html(test)  # the present picture's maps


@pytest.mark.parametrize(
    ("page", "query"),
    [("pages/methods.py", {"steps": '["low-rank"]'}), ("pages/learn.py", {"lab": "shapley-game"})],
)
def test_what_was_worked_out_under_a_bar_is_drawn_again_for_the_next_reader(page, query, app, monkeypatch):
    monkeypatch.setattr("view.progress.PATIENCE_S", -1.0)  # a bar from the first report on
    monkeypatch.setattr("view.progress.REFRESH_S", -1.0)
    for _ in range(2):
        test = opened(app, page, m="mlp--digits", seed="77", **query)
        assert not test.exception
        assert not test.run().exception
        assert test.get("plotly_chart")


def test_a_changed_form_leaves_the_old_numbers_dimmed_until_they_are_made_anew(app):
    test = carried(app, 'prune-weights{"sparsity":0.9}')
    before = accuracy(test)
    next(s for s in test.slider if s.key.endswith(".sparsity")).set_value(0.5).run()
    assert accuracy(test) == before
    assert "ps-dim" in html(test)
    assert json.loads(test.query_params["steps"]) == ["prune-weights"]  # 0.5 is the default
    press(test, "Carry out")
    assert accuracy(test) > before
    assert "ps-card ps-dim" not in html(test)


def test_steps_are_added_looked_at_and_removed(app):
    test = carried(app, "prune-weights")
    press(test, "Add a step")
    assert json.loads(test.query_params["steps"]) == ["prune-weights", "fine-tuning"]
    assert next(s for s in test.selectbox if s.key == "recipe.method").value == "fine-tuning"
    next(s for s in test.selectbox if s.key == "recipe.method").set_value("semi-structured").run()
    assert json.loads(test.query_params["steps"]) == ["prune-weights", "semi-structured"]
    press(test, "Remove this step")
    assert json.loads(test.query_params["steps"]) == ["prune-weights"]
    press(test, "Undo")
    assert json.loads(test.query_params["steps"]) == ["prune-weights", "semi-structured"]


def test_a_method_that_does_not_fit_the_network_says_why_and_the_page_stays(app):
    test = carried(app, "layer-removal")
    assert not test.exception
    assert "residual block" in test.error[0].value
    next(s for s in test.selectbox if s.key == "recipe.method").set_value("prune-weights").run()
    assert not test.error
    press(test, "Carry out")
    assert accuracy(test) > 50


def test_layers_of_another_network_are_refused_with_a_sentence_and_can_be_taken_out(app):
    test = carried(app, 'prune-weights{"layers":{"nope":0.5}}')
    assert not test.exception
    assert "no layer is called 'nope'" in test.error[0].value
    next(m for m in test.multiselect if m.key.endswith(".layers")).set_value([]).run()
    press(test, "Carry out")
    assert not test.error
    assert accuracy(test) > 50


def test_nonsense_in_a_link_gives_the_default_recipe_and_a_notice(app):
    for steps in ('["no-such"]', "[3]", "{", '["prune-weights{"]'):
        test = opened(app, "pages/methods.py", m="mlp--digits", steps=steps)
        assert not test.exception
        assert test.info


def test_the_leaderboard_or_the_command_for_it_stands_on_trade_offs(app):
    test = opened(app, "pages/tradeoffs.py", m="mlp--digits")
    assert not test.exception
    assert "Which method keeps most?" in html(test)
    assert any("cli.py leaderboard mlp" in code.value for code in test.code)


def test_a_recipe_that_trains_becomes_a_job_that_is_found_again(app, monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNESCOPE_CACHE", str(tmp_path))
    st.cache_resource.clear()
    steps = ('prune-weights{"sparsity":0.9}', 'fine-tuning{"epochs":2,"images":200}')
    test = carried(app, *steps)
    assert any("takes its time" in box.value for box in test.info)
    press(test, "Carry out")
    due = time.monotonic() + PATIENCE_S
    while "Accuracy" not in html(test):
        assert not test.exception
        assert time.monotonic() < due
        time.sleep(0.5)
        test.run()
    found = accuracy(test)
    again = carried(app, *steps)  # another reader, later
    assert accuracy(again) == found
    other = carried(app, "prune-weights")
    next(b for b in other.button if b.label == "Show").click().run()
    assert json.loads(other.query_params["steps"])[1].startswith("fine-tuning")
    assert accuracy(other) == found
    press(other, "Forget")
    assert any("takes its time" in box.value for box in other.info)  # nothing is kept of it
    assert not list(tmp_path.glob("jobs/*"))
    st.cache_resource.clear()


def proving(app, **query: str) -> AppTest:
    """The Prove page on a network that can be reasoned about."""
    return opened(app, "pages/prove.py", **({"m": "mlp-24--digits"} | query))


def undecided(test) -> list[int]:
    """ReLUs that bounds leave undecided, in both networks."""
    return [int(n) for n in re.findall(r"(\d+) of 48 ReLUs are undecided", html(test))]


def bounds(test) -> dict[str, list[str]]:
    """Mean widths of bounds of all layers, by network."""
    said = re.findall(r'<div class="(a|b)"><p>.*?Mean width of bounds: ([^"]+)"', html(test))
    return {role: [words for each, words in said if each == role] for role in "ab"}


def test_the_radius_moves_the_bounds_at_once(app):
    test = proving(app, prop='robustness{"radius":0.02}')
    assert not test.exception
    few = undecided(test)
    assert len(few) == 2
    next(s for s in test.slider if s.key.endswith(".radius")).set_value(0.2).run()
    assert not test.exception
    assert test.query_params["prop"] == 'robustness{"radius":0.2}'
    assert all(more > less for more, less in zip(undecided(test), few, strict=True))


def test_a_network_that_cannot_be_reasoned_about_is_refused_with_a_way_out(app):
    test = proving(app, m="vgg11-bn--cifar10")
    assert not test.exception
    assert "Nothing can be proved about this network here" in test.warning[0].value
    assert not any(button.label == "Prove" for button in test.button)


@pytest.mark.parametrize(
    "junk", ["nothing", "robustness{", 'robustness{"radius":7}', 'robustness{"x":1}', "{}"]
)
def test_junk_for_a_property_gives_the_default_and_a_notice(junk, app):
    test = proving(app, prop=junk)
    assert not test.exception
    assert test.info
    assert next(s for s in test.slider if s.key.endswith(".radius")).value == 0.15


def test_what_is_compared_is_the_plan_then_the_recipe_then_a_quick_choice(app):
    test = proving(app, plan="weights:magnitude:.5x3", steps='["low-rank"]')
    assert not test.exception
    chosen = next(s for s in test.selectbox if s.key == "prove.compressed")
    assert chosen.value == "plan"
    assert chosen.options[:2] == ["Your plan from Prune", "Your recipe from Methods: Low rank"]
    assert len(chosen.options) > 2
    planned = bounds(test)
    chosen.set_value("steps").run()
    assert not test.exception
    assert test.query_params["by"] == "steps"
    assert bounds(test)["a"] == planned["a"]
    assert bounds(test)["b"] != planned["b"]
    assert next(s for s in proving(app).selectbox if s.key == "prove.compressed").value == "pruned"


@pytest.mark.parametrize(
    "query",
    [
        {"plan": "remove:filter-l2:.95x2"},
        {"plan": "weights:magnitude:1x3"},
        {"steps": '["ntk-lossless"]'},  # fewer layers than the original
        {"steps": '["student"]'},  # narrower ones
        {"steps": '["fine-tuning"]'},  # not carried out yet
        {"prop": 'robustness{"radius":0.5,"classes":"runner-up"}'},
        {"m": "small-cnn-2--digits", "plan": "remove:filter-l2:.5x3"},
    ],
)
def test_whatever_compression_did_both_networks_are_drawn_or_it_is_said_why_not(query, app):
    test = proving(app, **query)
    assert not test.exception
    assert not test.error
    drawn = html(test).count("ReLUs are undecided")
    assert drawn == 2 or any("This recipe trains" in caption.value for caption in test.caption)


def test_a_proof_is_found_again_and_brought_back_from_the_list(app, monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNESCOPE_CACHE", str(tmp_path))
    st.cache_resource.clear()
    test = proving(app, prop='robustness{"radius":0.02}')
    assert any("press Prove" in box.value for box in test.info)
    press(test, "Prove")
    due = time.monotonic() + PATIENCE_S
    while html(test).count("Proved robust") < 2:
        assert not test.exception
        assert time.monotonic() < due
        time.sleep(0.5)
        test.run()
    assert "Yes: both networks keep their answer" in html(test)
    other = proving(app, prop='robustness{"radius":0.3}')
    assert "Proved robust" not in html(other)
    next(b for b in other.button if b.label == "Show").click().run()
    assert html(other).count("Proved robust") == 2
    next(s for s in other.slider if s.key.endswith(".radius")).set_value(0.3).run()
    assert "ps-verdicts ps-dim" in html(other)  # the last verdicts stay, dimmed, with what they belong to
    assert any("radius 0.02" in caption.value for caption in other.caption)
    press(other, "Forget")
    assert not list(tmp_path.glob("jobs/*"))
    st.cache_resource.clear()
