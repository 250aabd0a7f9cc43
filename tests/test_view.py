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
from core.recipe import COMPRESSORS
from view import pictures
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


def test_the_untouched_state_has_a_clean_link():
    assert link("/prune", Nouns()) == "/prune"
    assert link("/prune", Nouns(image=3, seed=2)) == "/prune?img=3&seed=2"


@pytest.mark.parametrize("text", ["-1", "1e3", "three", "", "99999999999", "2147483648", "１２", "0x10"])
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
