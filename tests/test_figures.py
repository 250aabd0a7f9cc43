"""Figures as pictures: every mark is where its number says, and is told apart without colour."""

import base64
import io
import json
import re
from math import log10

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from core.figure import Figure, Reference, picture
from view.figures import COLOURS, DASHES, ROLES, SYMBOLS, draw, sheet

TABLE = pd.DataFrame(
    [
        {"x": x, "who": who, "half": half, "y": 0.1 * x + offset, "low": 0.1 * x, "high": 1.0}
        for half in ("left", "right")
        for who, offset in (("original", 0.05), ("other", 0.2))
        for x in (1, 2, 3)
    ]
)


def figure(**given) -> Figure:
    return Figure(**{"title": "T", "finding": "So.", "table": TABLE, "x": "x", "y": "y"} | given)


def test_a_line_for_every_colour_in_every_panel_explained_once():
    drawn = draw(figure(colour="who", panel="half"), dark=False)
    assert len(drawn.data) == 4
    assert [trace.name for trace in drawn.data if trace.showlegend] == ["original", "other"]
    assert list(drawn.data[1].y) == pytest.approx([0.3, 0.4, 0.5])
    assert [note.text for note in drawn.layout.annotations] == ["left", "right"]


def test_series_differ_in_more_than_colour():
    drawn = draw(figure(table=TABLE[TABLE.half == "left"], colour="who"), dark=False)
    assert len({trace.line.dash for trace in drawn.data}) == 2
    assert len({trace.marker.symbol for trace in drawn.data}) == 2
    assert len(COLOURS) == len(DASHES) == len(SYMBOLS) == 8


@pytest.mark.parametrize("dark", [False, True])
def test_the_original_has_the_same_colour_in_every_figure(dark):
    table = TABLE[TABLE.half == "left"]
    for mark in ("line", "bars", "points"):
        drawn = draw(figure(table=table, colour="who", mark=mark), dark)
        first = next(trace for trace in drawn.data if trace.name == "original")
        assert ROLES["original"][dark] in (first.marker.color, first.line.color if mark == "line" else None)


def test_an_interval_is_a_band_around_a_line_and_bars_around_points():
    table = TABLE[(TABLE.half == "left") & (TABLE.who == "other")]
    band, line = draw(figure(table=table, low="low", high="high"), dark=False).data
    assert list(band.y) == pytest.approx([1, 1, 1, 0.3, 0.2, 0.1])
    assert list(line.y) == pytest.approx([0.3, 0.4, 0.5])
    (points,) = draw(figure(table=table, mark="points", low="low", high="high"), dark=False).data
    assert list(points.error_y.array) == pytest.approx([0.7, 0.6, 0.5])
    assert list(points.error_y.arrayminus) == pytest.approx([0.2, 0.2, 0.2])


def test_many_names_lie_down_and_read_from_the_top():
    table = pd.DataFrame({"layer": [f"layer{i}" for i in range(20)], "v": range(20)})
    (bars,) = (drawn := draw(figure(table=table, x="layer", y="v", mark="bars"), dark=False)).data
    assert bars.orientation == "h"
    assert bars.y[0] == "layer0"
    assert drawn.layout.yaxis.autorange == "reversed"
    few = draw(figure(table=table[:5], x="layer", y="v", mark="bars"), dark=False).data[0]
    assert few.orientation is None


def test_pictures_are_shown_as_they_are_under_their_captions_and_mistakes_are_marked():
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    pixels[1] = pixels[1, :1]  # grey
    sources = [picture(pixels[0]), picture(pixels[1, :1])]
    table = pd.DataFrame(
        {"of": sources, "said": ["<b>one", "two"], "wrong": [False, True], "row": ["up", "down"]}
    )
    figure = Figure("Pictures", "Two.", table, "of", "said", "pictures", panel="row", value="wrong")
    shown = sheet(Figure.from_dict(json.loads(json.dumps(figure.to_dict()))))
    found = re.findall(r'class="(\w*)"><img src="data:image/png;base64,([^"]+)"', shown)
    assert [name for name, _ in found] == ["", "marked"]
    for (_, data), expected in zip(found, pixels, strict=True):
        held = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert np.array_equal(held, expected.permute(1, 2, 0).numpy())
    assert "&lt;b&gt;one" in shown
    with pytest.raises(ValueError, match="needs a finding, and a value"):
        Figure("Pictures", "Two.", table, "of", "said", "pictures")


def test_a_heat_map_has_zero_in_the_middle_of_signed_values_and_numbers_in_its_cells():
    table = pd.DataFrame([{"x": i, "y": j, "v": i - 3.0 * j} for i in range(3) for j in range(2)])
    (heat,) = draw(figure(table=table, mark="heat", value="v"), dark=False).data
    assert (heat.zmin, heat.zmax) == (-3, 3)
    assert np.array(heat.z).tolist() == [[0, 1, 2], [-3, -2, -1]]
    assert heat.text[1][0] == "-3"
    (share,) = draw(
        figure(
            table=table.assign(v=[0.1, 0.2, 0.3, 0.4, 0.5, np.nan]),
            mark="heat",
            value="v",
            percent=frozenset({"v"}),
        ),
        dark=True,
    ).data
    assert share.text[0][0] == "10%"
    assert share.text[1][2] == ""


def test_a_reference_stands_where_its_value_is_also_on_a_logarithmic_axis():
    lines = (Reference("y", 0.01, "floor"), Reference("x", 2, "here"))
    drawn = draw(figure(references=lines, log=frozenset({"y"})), dark=False)
    across, upright = drawn.layout.shapes
    assert (across.y0, across.y1) == (0.01, 0.01)
    assert (upright.x0, upright.x1) == (2, 2)
    notes = {note.text: note for note in drawn.layout.annotations}
    assert notes["floor"].y == pytest.approx(log10(0.01))
    assert notes["here"].x == 2
    flat = pd.DataFrame({"layer": [f"layer{i}" for i in range(20)], "v": range(20)})
    drawn = draw(figure(table=flat, x="layer", y="v", mark="bars", references=lines[:1]), dark=False)
    assert drawn.layout.shapes[0].x0 == 0.01


def test_fractions_read_as_percentages_in_steps_that_differ():
    wide = draw(figure(percent=frozenset({"y"})), dark=False)
    assert wide.layout.yaxis.tickformat == ".0%"
    close = TABLE.assign(y=TABLE.y / 100)
    assert draw(figure(table=close, percent=frozenset({"y"})), dark=False).layout.yaxis.tickformat == ".1%"
