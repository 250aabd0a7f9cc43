"""Links, history, forms, pictures and charts: what a person sees, computed without a browser."""

import io
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image

from core.agreement import State, is_dead
from core.criterion import CRITERIA
from core.errors import UserError
from core.method import Number
from core.plan import Plan
from core.recipe import COMPRESSORS, Recipe
from view import charts, pictures
from view.forms import log_steps
from view.shared import computed, shared
from view.state import DEPTH, History
from view.url import LONGEST, Nouns, from_query, link, method_from_text, method_to_text, to_query

TEXTS = some.text(some.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=60).filter(str.isprintable)
NOUNS = some.builds(
    Nouns,
    model=TEXTS,
    plan=TEXTS,
    image=some.integers(0, 2**31 - 1),
    attribution=TEXTS,
    target=TEXTS,
    seed=some.integers(0, 2**31 - 1),
)


@given(NOUNS)
def test_a_link_restores_every_noun(nouns):
    assert from_query(to_query(nouns)) == (nouns, [])


def test_what_readers_share_tells_plans_and_recipes_apart_by_all_they_say():
    """Streamlit's own hash of a dataclass holds its values and not its class."""

    @shared()
    def words(asked) -> str:
        return repr(asked)

    sparsities = {"layer": 0.5}
    asked = [Plan("remove", name, sparsities) for name in ("filter-l1", "filter-l2", "random")]
    asked += [Recipe((COMPRESSORS[name](),)) for name in ("fine-tuning", "layer-removal")]
    assert [words(each) for each in asked] == [repr(each) for each in asked]


def test_what_draws_while_it_is_computed_is_computed_once_and_bounded():
    calls = []

    @computed(2)
    def double(number: int, *, run: object) -> int:
        calls.append(number)
        return 2 * number

    assert [double(n, run=object()) for n in (1, 1, 2, 1, 3, 1, 2)] == [2, 2, 4, 2, 6, 2, 4]
    assert calls == [1, 2, 3, 2]  # 2 was not asked for as lately as 1 when 3 came


def test_the_untouched_state_has_a_clean_link():
    assert link("/prune", Nouns()) == "/prune"
    assert link("/prune", Nouns(image=3, seed=2)) == "/prune?img=3&seed=2"


@pytest.mark.parametrize(
    "text", ["-1", "1e3", "three", "", "99999999999", "2147483648", "\uff11\uff12", "0x10"]
)
def test_a_garbled_number_gives_the_default_and_is_named(text):
    nouns, problems = from_query({"img": text, "seed": "7"})
    assert nouns == Nouns(seed=7)
    assert len(problems) == 1
    assert "img" in problems[0]


@pytest.mark.parametrize("text", ["x" * (LONGEST + 1), "a\x00b", "line\nline"])
def test_garbled_or_endless_text_gives_the_default_and_is_named(text):
    nouns, problems = from_query({"plan": text})
    assert nouns == Nouns()
    assert "plan" in problems[0]


@given(
    some.dictionaries(some.sampled_from(["m", "plan", "img", "attr", "seed", "zzz"]), some.text(max_size=80))
)
def test_no_query_whatever_raises(query):
    nouns, _ = from_query(query)
    assert from_query(to_query(nouns))[0] == nouns


def test_a_method_travels_with_what_differs_from_its_defaults_only():
    prune = COMPRESSORS["prune-weights"]
    assert method_to_text(prune()) == "prune-weights"
    changed = prune(sparsity=0.25, layers={"conv1": 0.5})
    assert method_from_text(method_to_text(changed), COMPRESSORS) == changed
    assert "scope" not in method_to_text(changed)


@pytest.mark.parametrize(
    "text", ["", "nothing", "magnitude{", "magnitude{]", 'magnitude{"depth":3}', "magnitude[1]"]
)
def test_a_garbled_method_is_a_user_error(text):
    with pytest.raises(UserError):
        method_from_text(text, CRITERIA)


def test_undo_and_redo_walk_through_what_was_recorded():
    history = History()
    for image in (1, 2, 2, 3):
        history.record(Nouns(image=image))
    seen = []
    for _ in range(5):  # two more than there are
        history.undo()
        seen.append(history.now.image)
    assert seen == [2, 1, 0, 0, 0]
    history.redo()
    assert history.now.image == 1
    history.record(Nouns(image=9))
    history.redo()
    assert history.now.image == 9  # what was undone is forgotten once a new step is taken


def test_history_does_not_grow_without_end():
    history = History()
    for image in range(3 * DEPTH):
        history.record(Nouns(image=image))
    assert len(history.past) == DEPTH


def test_a_map_is_drawn_blue_below_zero_white_at_zero_and_red_above():
    drawn = pictures.signed(np.array([[-2.0, 0.0, 2.0, 5.0]]), end=2.0)
    assert drawn[0, 0].tolist() == [5, 48, 97]  # the published ends of RdBu
    assert drawn[0, 1].min() >= 245
    assert drawn[0, 2].tolist() == [103, 0, 31]
    assert drawn[0, 3].tolist() == drawn[0, 2].tolist()  # beyond the end of the scale


def test_a_difference_is_drawn_orange_where_less_and_purple_where_more():
    less, more = pictures.signed(np.array([[-1.0, 1.0]]), 1.0, "PuOr")[0].tolist()
    assert less == [127, 59, 8]
    assert more == [45, 0, 75]


def test_a_magnitude_is_drawn_from_dark_blue_to_yellow():
    none, full = pictures.magnitude(np.array([[0.0, -3.0]]), 3.0)[0].tolist()
    assert none == pictures.colours("Cividis")[0].tolist()
    assert full == pictures.colours("Cividis")[255].tolist()
    assert none[2] > none[0]
    assert full[0] > full[2]


def test_the_scale_ends_at_the_99th_percentile_of_both_maps_pooled():
    a, b = np.linspace(-1, 1, 500), np.linspace(-20, 20, 500)
    by_hand = np.sort(np.abs(np.concatenate([a, b])))
    assert pictures.limit(a, b) == pytest.approx(np.percentile(by_hand, 99))
    assert pictures.limit(a, b) > 10 * pictures.limit(a)  # a weak map stays weak beside a strong one


def test_the_scale_of_a_map_with_one_bright_pixel_is_not_zero():
    lone = np.zeros((32, 32))
    lone[3, 4] = -7.0
    assert pictures.limit(lone) == 7.0
    assert pictures.limit(np.full((2, 2), np.nan)) == 0.0


def test_an_overlay_shows_the_grey_picture_where_nothing_counts_and_the_colour_where_all_does():
    picture = np.zeros((1, 2, 3), dtype=np.uint8)
    picture[0, 1] = (200, 100, 0)
    drawn = pictures.overlay(np.array([[1.0, 0.0]]), 1.0, picture)
    assert drawn[0, 0].tolist() == pictures.signed(np.array([[1.0]]), 1.0)[0, 0].tolist()
    assert drawn[0, 1].tolist() == [160, 160, 160]


def test_pixels_become_squares_of_one_colour_and_at_least_256_wide():
    small = np.arange(32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    read = np.array(Image.open(io.BytesIO(pictures.png(pictures.enlarge(small)))))
    assert read.shape == (256, 256, 3)
    for row, column in ((0, 0), (13, 30), (31, 31)):
        square = read[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert (square == small[row, column]).all()
    assert min(pictures.enlarge(np.zeros((28, 28, 3), np.uint8)).shape[:2]) >= 256


def test_equal_maps_give_equal_bytes_and_others_do_not():
    values = np.random.default_rng(0).normal(size=(32, 32))
    first = pictures.source(pictures.signed(values, 2.0))
    assert first == pictures.source(pictures.signed(values.copy(), 2.0))
    assert first != pictures.source(pictures.signed(-values, 2.0))


def test_grey_pictures_get_three_channels_and_colour_keeps_its_order():
    assert pictures.picture(np.full((1, 4, 5), 9, np.uint8)).shape == (4, 5, 3)
    colour = np.zeros((3, 2, 2), np.uint8)
    colour[0] = 255
    assert pictures.picture(colour)[0, 0].tolist() == [255, 0, 0]


def test_every_state_of_a_map_without_pattern_has_a_panel_and_no_other_has():
    for name in get_args(State):
        assert is_dead(name) == (name in pictures.PANELS)


def form_script():
    """One widget of every kind of declaration; what they say is kept in the session."""
    from dataclasses import dataclass

    import streamlit as st

    from core.criterion import CRITERIA
    from core.method import Method, choice, flag, nested, number, per_layer
    from view import forms

    @dataclass(frozen=True)
    class Everything(Method):
        """Says everything."""

        name = "everything"
        steps: int = number(5, 1, 50, 1, help="Whole")
        rate: float = number(0.1, 0.001, 1.0, 0.001, scale="log", help="Logarithmic")
        seed: int = number(0, 0, 2**31 - 1, 1, help="Too many steps for a slider")
        kind: str = choice("one", "two", help="One of two")
        quiet: bool = flag(False, help="Yes or no")
        criterion: object = nested(CRITERIA, "magnitude", help="Another method")
        layers: tuple = per_layer(0.0, 1.0, 0.01, help="Per layer")

    if "method" not in st.session_state:
        st.session_state["method"] = Everything()

    def save(method):
        st.session_state["method"] = method

    forms.configure(lambda: st.session_state["method"], save, "form", ["conv1", "conv2"])


@pytest.fixture
def form():
    from streamlit.testing.v1 import AppTest

    return AppTest.from_function(form_script, default_timeout=60).run()


def test_a_form_has_a_widget_for_every_declaration_and_shows_its_values(form):
    assert not form.exception
    assert [s.label for s in form.slider] == ["Steps"]
    assert [s.label for s in form.select_slider] == ["Rate"]
    assert [n.label for n in form.number_input] == ["Seed"]
    assert [s.label for s in form.selectbox] == ["Kind", "Criterion"]
    assert [t.label for t in form.toggle] == ["Quiet"]
    assert [m.label for m in form.multiselect] == ["Layers"]
    assert form.select_slider[0].value == 0.1


def test_several_changes_in_one_breath_all_count(form):
    form.slider[0].set_value(7)
    form.number_input[0].set_value(12)
    form.toggle[0].set_value(True)
    form.run()
    method = form.session_state["method"]
    assert (method.steps, method.seed, method.quiet, method.kind) == (7, 12, True, "one")


def test_a_nested_method_and_values_of_single_layers_are_chosen_in_the_form(form):
    form.selectbox[1].set_value("random").run()
    assert form.session_state["method"].criterion.name == "random"
    form.multiselect[0].set_value(["conv2"]).run()
    next(s for s in form.slider if s.label == "conv2").set_value(0.25).run()
    assert form.session_state["method"].layers == (("conv2", 0.25),)


def test_a_logarithmic_slider_stops_at_1_2_5_the_ends_and_the_present_value():
    stops = log_steps(Number(0.001, 1.0, 0.001, "", scale="log"), 0.03)
    assert stops == [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert log_steps(Number(1, 100, 1, "", scale="log"), 7) == [1, 2, 5, 7, 10, 20, 50, 100]


def test_differences_are_points_with_an_ascii_sign_and_never_minus_zero():
    assert charts.points(-0.0123) == "-1.2 points"
    assert charts.points(0.05) == "+5.0 points"
    assert charts.points(-0.0001) == "0.0 points"
    assert charts.span((-0.016, 0.001), signed=True) == "[-1.6, +0.1]"


def test_a_change_is_grey_while_its_interval_holds_zero():
    assert charts.tone((-0.01, 0.02)) == "grey"
    assert charts.tone((0.0, 0.0)) == "grey"
    assert charts.tone((-0.03, -0.01)) == "loss"
    assert charts.tone((0.01, 0.03)) == "kept"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (269722, "270 k"), (40_552_000, "40.6 M"), (9_999, "9,999"), (999_900, "1.00 M")],
)
def test_large_numbers_are_short(number, text):
    assert charts.count(number) == text


def test_bars_are_as_wide_as_their_share_and_as_high_as_what_is_kept():
    drawn = charts.bars([charts.Bar("a", 30, 1.0, ""), charts.Bar("b", 10, 0.4, "")], "weights")
    assert "flex-grow:75.000" in drawn
    assert "flex-grow:25.000" in drawn
    assert "height:40.0%" in drawn
    assert "1 of 2 are pruned; the most in b, which keeps 40 %" in drawn


def test_what_comes_from_names_is_escaped():
    evil = '<img src=x onerror="alert(1)">'
    drawn = [
        charts.bars([charts.Bar(evil, 1, 0.5, evil)], evil),
        charts.cards([charts.Card(evil, evil, evil, "grey", (evil,), evil)]),
        charts.heading(evil, evil),
        charts.between([charts.Between(evil, 0.5, 0.1, 0.9, help=evil)]),
        charts.figure(None, evil, evil, evil),
    ]
    assert not any(evil in each for each in drawn)


def test_a_score_lies_between_floor_and_ceiling_on_its_own_scale():
    drawn = charts.between(
        [charts.Between("Shift", 5.0, 20.0, 0.5, low=40.0, high=0.0, format=".1f", unit="pixels")]
    )
    assert "left:87.5%" in drawn  # no shift at the right end
    assert "width:50.0%" in drawn
    assert "5.0 pixels" in drawn
    assert "none" in charts.between([charts.Between("Score", float("nan"), None, None)])
