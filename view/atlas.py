"""The atlas as a picture: a row per slider, a column per sparsity, colour and number for points lost."""

from math import isnan

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from core.atlas import Atlas
from core.evaluation import wilson
from view.charts import percent, points, span

ROW, HEAD = 25, 70  # pixels
SCALES = {  # of a change from everything lost over none to everything gained, on light and on dark
    False: ((0.0, "#d55e00"), (0.5, "#f6f7f9"), (1.0, "#009e73")),
    True: ((0.0, "#b84a00"), (0.5, "#1f2730"), (1.0, "#007a59")),
}
INK = {False: "#1b242e", True: "#e4e9ee"}


def figure(atlas: Atlas, dark: bool) -> go.Figure:
    """Cells with their change in points; a click on one selects its point, slider by slider."""
    change = 100 * atlas.change.numpy()  # (S, G)
    names = [f"{index} · {name}" for index, name in enumerate(atlas.sliders, start=1)]
    levels = [percent(sparsity, 0) for sparsity in atlas.sparsities]
    shown = go.Figure(
        go.Heatmap(
            x=levels,
            y=names,
            z=_shade(change),
            zmin=-1,
            zmax=1,
            colorscale=SCALES[dark],
            showscale=False,
            xgap=2,
            ygap=2,
            text=[[_short(value) for value in row] for row in change],
            texttemplate="%{text}",
            textfont={"size": 12, "color": INK[dark]},
            hoverinfo="skip",
        )
    )
    shown.add_scatter(  # Plotly selects marks, not cells
        x=levels * len(names),
        y=[name for name in names for _ in levels],
        mode="markers",
        marker={"symbol": "square", "size": 22, "opacity": 0, "color": INK[dark]},
        text=[_words(atlas, s, g) for s in range(len(names)) for g in range(len(levels))],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    shown.update_yaxes(autorange="reversed", showgrid=False, ticks="", automargin=True, fixedrange=True)
    shown.update_xaxes(
        title="sparsity of this slider alone", type="category", side="top", showgrid=False, fixedrange=True
    )
    return shown.update_layout(
        height=HEAD + ROW * len(names),
        margin={"l": 10, "r": 10, "t": HEAD - 10, "b": 10},
        clickmode="event+select",
        dragmode=False,
    )


def finding(atlas: Atlas) -> str:
    """Which slider costs most at a half, and which least, in a sentence."""
    middle = len(atlas.sparsities) // 2
    column = atlas.change[:, middle]
    if column.isnan().any() or not len(column):
        return "The first pictures are being measured, slider by slider."
    worst, best = int(column.argmin()), int(column.argmax())
    level = percent(atlas.sparsities[middle], 0)
    return (
        f"At {level}, {atlas.sliders[worst]} alone costs most ({points(column[worst].item())}), "
        f"{atlas.sliders[best]} least ({points(column[best].item())})."
    )


def table(atlas: Atlas) -> pd.DataFrame:
    """Accuracy of every cell, one row per slider."""
    columns = [percent(sparsity, 0) for sparsity in atlas.sparsities]
    return pd.DataFrame(atlas.accuracy.numpy(), index=list(atlas.sliders), columns=columns)


def cell(atlas: Atlas, point: int) -> tuple[int, int]:
    """(slider, level) of a selected point."""
    return divmod(point, len(atlas.sparsities))


def _short(change: float) -> str:
    """Whole points with their sign; nothing where nothing is known."""
    return "" if isnan(change) else "0" if abs(change) < 0.5 else f"{change:+.0f}"


def _words(atlas: Atlas, slider: int, level: int) -> str:
    hits = int(atlas.hits[slider, level])
    name = f"{atlas.sliders[slider]} at {percent(atlas.sparsities[level], 0)}"
    if hits < 0:
        return f"{name}: not measured yet"
    accuracy = percent(atlas.accuracy[slider, level].item())
    change = points(atlas.change[slider, level].item())
    return f"{name}<br>{change}<br>accuracy {accuracy} {span(wilson(hits, atlas.n))}, n = {atlas.n:,}"


def _shade(change: np.ndarray) -> np.ndarray:
    """Points -> [-1, 1], by the square root: a loss of 1 is seen beside one of 80."""
    return np.sign(change) * np.sqrt(np.abs(change) / 100)
