"""The atlas as it is drawn: every cell says what was measured, and unknown ones say nothing."""

from dataclasses import replace

import pytest
import torch
from test_prediction import ATLAS  # 90 of 100 right; (80, 60) and (90, 85) in its cells

from view import atlas as atlases

UNKNOWN = replace(ATLAS, hits=torch.tensor([[80, 60], [90, -1]]))


def drawn(atlas):
    heat, marks = atlases.figure(atlas, dark=False).data
    return heat, marks


def test_cells_hold_whole_points_with_their_sign():
    heat, _ = drawn(ATLAS)
    assert [list(row) for row in heat.text] == [["-10", "-30"], ["0", "-5"]]
    assert list(heat.x) == ["25 %", "50 %"]
    assert list(heat.y) == ["1 · first", "2 · second"]


def test_a_loss_is_shaded_to_the_side_of_loss_and_a_larger_one_more():
    heat, _ = drawn(ATLAS)
    assert heat.z[0][1] < heat.z[0][0] < heat.z[1][0] == 0.0
    assert heat.z[0][1] == pytest.approx(-(0.30**0.5))


def test_every_mark_stands_for_its_cell_with_interval_and_n():
    _, marks = drawn(ATLAS)
    for point, (slider, level) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert atlases.cell(ATLAS, point) == (slider, level)
        assert marks.y[point].endswith(ATLAS.sliders[slider])
    assert marks.text[1].split("<br>") == [
        "first at 50 %",
        "-30.0 points",
        "accuracy 60.0 % [50.2, 69.1], n = 100",  # Wilson's interval of 60 in 100
    ]


def test_what_is_not_known_yet_shows_no_number():
    heat, marks = drawn(UNKNOWN)
    assert heat.text[1][1] == ""
    assert marks.text[3] == "second at 50 %: not measured yet"
    assert "being measured" in atlases.finding(UNKNOWN)


def test_the_finding_names_the_worst_and_the_best_slider():
    assert atlases.finding(ATLAS) == (
        "At 50 %, first alone costs most (-30.0 points), second least (-5.0 points)."
    )


def test_the_table_is_the_accuracy_of_every_cell():
    table = atlases.table(ATLAS)
    assert table.loc["first"].tolist() == [0.8, 0.6]
    assert list(table.columns) == ["25 %", "50 %"]
