"""Figures of the engine as pictures: one way to draw each mark, the same everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, log10

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from plotly.subplots import make_subplots

from core.figure import Figure, Reference
from view import state as states

ROLES = {  # values that mean the same in every figure: on light, on dark
    **dict.fromkeys(("original", "before"), ("#4b5563", "#aab4c0")),
    **dict.fromkeys(("compressed", "after"), ("#0072b2", "#56b4e9")),
}
COLOURS = (
    *(("#0072b2", "#56b4e9"), ("#d55e00", "#f0803c"), ("#009e73", "#2bc39a"), ("#a3578a", "#d998bf")),
    *(("#b07c00", "#e6b422"), ("#5b4ea8", "#a59be0"), ("#4b5563", "#aab4c0"), ("#7a5230", "#c79a72")),
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "cross", "star", "pentagon")
LINE = ("#596573", "#a3aeba")  # of references
SCALES = {  # low to high on light and on dark; of signed values: negative, none, positive
    "magnitude": (["#f1f3f6", "#0072b2"], ["#1f2730", "#56b4e9"]),
    "signed": (["#d55e00", "#f6f7f9", "#0072b2"], ["#f0803c", "#1f2730", "#56b4e9"]),
}
ACROSS = 3  # panels side by side
LABELLED = 120  # cells of a heat map that carry their number
UPRIGHT = 8  # categories that upright bars have room for
HEIGHT, BAR, CELL, PANEL, HEAD = 340, 12, 22, 230, 34  # pixels
DENSE = 16  # points of a line beyond which they are not marked
ROUNDING = 1e-9  # of the largest value of a heat map: smaller ones are zero
NARROW = 0.08  # range of fractions in which whole percents would say the same twice


def show(figures: Sequence[Figure], key: str) -> None:
    """Two figures a row, each with its finding and the table behind it."""
    wide = [figure for figure in figures if figure.panel]
    narrow = [figure for figure in figures if figure not in wide]
    columns = st.columns(2, gap="large")
    for index, figure in enumerate(narrow):
        with columns[index % 2]:
            _show(figure, f"{key}.{figure.title}")
    for figure in wide:
        _show(figure, f"{key}.{figure.title}")


def _show(figure: Figure, key: str) -> None:
    st.markdown(f"**{figure.title}**  \n{figure.finding}")
    pictures = figure.mark == "pictures"
    if pictures:
        st.html(sheet(figure))
    else:
        drawn = draw(figure, st.context.theme.type == "dark")
        st.plotly_chart(drawn, alt=figure.finding, key=key, config={"displayModeBar": False})
    details = st.expander("As a table", on_change=states.act, key=f"{key}.table")
    if details.open:
        columns = {figure.x: st.column_config.ImageColumn()} if pictures else None
        details.dataframe(figure.table, hide_index=True, alt=figure.finding, column_config=columns)


def sheet(figure: Figure) -> str:
    """Pictures side by side under their captions, a row for every panel; those that are marked stand out."""
    panels = figure.table.groupby(figure.panel, sort=False) if figure.panel else [("", figure.table)]
    parts = []
    for name, part in panels:
        cells = [
            f'<figure class="{"marked" * marked}"><img src="{escape(source)}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}{' ✗' * marked}</figcaption></figure>"
            for source, caption, marked in part[[figure.x, figure.y, figure.value]].itertuples(index=False)
        ]
        parts.append(f'<p>{escape(str(name))}</p><div class="ps-sheet">{"".join(cells)}</div>')
    return "".join(parts)


def draw(figure: Figure, dark: bool) -> go.Figure:
    """The picture of `figure`; every panel has the same axes."""
    panels = list(dict.fromkeys(figure.table[figure.panel])) if figure.panel else [None]
    across = 2 if len(panels) == 4 else min(len(panels), ACROSS)
    rows = ceil(len(panels) / across)
    shared = {"shared_xaxes": "all", "shared_yaxes": "all"} if figure.mark != "heat" else {}
    drawn = make_subplots(
        rows,
        across,
        subplot_titles=[str(panel) for panel in panels] if figure.panel else None,
        vertical_spacing=0.32 / rows,
        horizontal_spacing=(0.5 if figure.mark == "heat" and figure.panel and not _alike(figure) else 0.16)
        / across,
        **shared,
    )
    for index, panel in enumerate(panels):
        table = figure.table if panel is None else figure.table[figure.table[figure.panel] == panel]
        place = {"row": index // across + 1, "col": index % across + 1}
        for trace in _Marks(figure, table, dark, first=index == 0).traces():
            drawn.add_trace(trace, **place)
    _axes(drawn, figure, rows, across)
    for line in figure.references:
        _refer(drawn, figure, line, LINE[dark])
    tall, head = _height(figure, rows), HEAD * (1 + bool(figure.panel) * bool(figure.colour))
    return drawn.update_layout(
        height=tall + head,
        margin={"l": 10, "r": 10, "t": head, "b": 10},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1 + (head - HEAD + 4) / (tall - 60), "x": 0},
        barmode="group",
        dragmode=False,
        hovermode="closest",
    )


def _height(figure: Figure, rows: int) -> int:
    """Pixels of the plot with its axes: enough for every bar and every cell."""
    if figure.mark == "heat":
        sides = (
            figure.table.groupby(figure.panel)[figure.y] if figure.panel else [("", figure.table[figure.y])]
        )
        return rows * max(PANEL, 60 + CELL * max(side.nunique() for _, side in sides))
    if figure.panel:
        return PANEL * rows
    return max(HEIGHT, 60 + BAR * len(figure.table)) if _flat(figure) else HEIGHT


@dataclass(frozen=True, eq=False)
class _Marks:
    """The marks of one panel."""

    figure: Figure
    table: pd.DataFrame
    dark: bool
    first: bool  # the panel whose marks the legend explains

    def traces(self) -> list[go.Scatter | go.Bar | go.Heatmap]:
        if self.figure.mark == "heat":
            return [self._heat()]
        if not self.figure.colour:
            return self._series(0, None, self.table)
        names = list(dict.fromkeys(self.figure.table[self.figure.colour]))
        parts = [(name, self.table[self.table[self.figure.colour] == name]) for name in names]
        return [
            trace for index, (name, part) in enumerate(parts) for trace in self._series(index, name, part)
        ]

    def _series(self, index: int, name: object, part: pd.DataFrame) -> list[go.Scatter | go.Bar]:
        """What one colour has in this panel: its marks, and the band of its interval under a line."""
        figure, ink = self.figure, ROLES.get(str(name), COLOURS[index % len(COLOURS)])[self.dark]
        common = {"name": str(name), "legendgroup": str(name)}
        common["showlegend"] = self.first and name is not None
        x, y = part[figure.x], part[figure.y]
        if figure.mark == "bars":
            ends = {"x": y, "y": x, "orientation": "h"} if _flat(figure) else {"x": x, "y": y}
            error = {"error_x" if _flat(figure) else "error_y": self._errors(part)}
            return [go.Bar(**ends, **common, **error, marker={"color": ink})]
        marker = {"color": ink, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8}
        if figure.mark == "points":
            return [go.Scatter(x=x, y=y, mode="markers", marker=marker, error_y=self._errors(part), **common)]
        mode = "lines+markers" if len(part) <= DENSE else "lines"
        line = {"color": ink, "dash": DASHES[index % len(DASHES)], "width": 2.2}
        traces = [go.Scatter(x=x, y=y, mode=mode, line=line, marker=marker | {"size": 6}, **common)]
        if figure.low:
            traces.insert(0, self._band(part, ink, common))
        return traces

    def _errors(self, part: pd.DataFrame) -> dict | None:
        figure = self.figure
        if not figure.low:
            return None
        above, below = part[figure.high] - part[figure.y], part[figure.y] - part[figure.low]
        return {"type": "data", "array": above, "arrayminus": below, "thickness": 1.2, "width": 3}

    def _band(self, part: pd.DataFrame, ink: str, common: dict) -> go.Scatter:
        """The interval around a line: along its upper ends and back along the lower ones."""
        part = part.dropna(subset=[self.figure.low, self.figure.high])
        x = pd.concat([part[self.figure.x], part[self.figure.x][::-1]])
        y = pd.concat([part[self.figure.high], part[self.figure.low][::-1]])
        red, green, blue = (int(ink[at : at + 2], 16) for at in (1, 3, 5))
        fill = f"rgba({red},{green},{blue},0.16)"
        quiet = common | {"showlegend": False, "hoverinfo": "skip"}
        return go.Scatter(x=x, y=y, fill="toself", fillcolor=fill, mode="lines", line={"width": 0}, **quiet)

    def _heat(self) -> go.Heatmap:
        figure = self.figure
        cells = self.table.pivot_table(
            index=figure.y, columns=figure.x, values=figure.value, sort=False, dropna=False
        )
        every = figure.table[figure.value].to_numpy(dtype=float)
        least, most = float(np.nanmin(every)), float(np.nanmax(every))
        signed = least < 0 < most
        reach = max(-least, most)
        cells = cells.mask(cells.abs() < ROUNDING * reach, 0.0)
        text = None
        if cells.size <= LABELLED:
            form = "{:.0%}" if figure.value in figure.percent else "{:.3g}"
            text = [["" if np.isnan(v) else form.format(v) for v in row] for row in cells.to_numpy()]
        return go.Heatmap(
            x=[str(column) for column in cells.columns],
            y=[str(row) for row in cells.index],
            z=cells.to_numpy(),
            zmin=-reach if signed else least,
            zmax=reach if signed else most,
            colorscale=SCALES["signed" if signed else "magnitude"][self.dark],
            text=text,
            texttemplate="%{text}" if text else None,
            showscale=self.first and text is None,
            hovertemplate="%{y}, %{x}: %{z:.4g}<extra></extra>",
            xgap=1,
            ygap=1,
        )


def _refer(drawn: go.Figure, figure: Figure, line: Reference, ink: str) -> None:
    """A straight line through every panel, named in the first."""
    across = (line.axis == "y") != _flat(figure)
    style = {"dash": "dot", "color": ink}
    place = log10(line.value) if getattr(figure, line.axis) in figure.log else line.value
    label = {"text": line.label, "showarrow": False, "bgcolor": "rgba(128,128,128,0.12)", "row": 1, "col": 1}
    if across:
        drawn.add_hline(line.value, line=style)
        drawn.add_annotation(x=0, xref="x domain", xanchor="left", y=place, yanchor="bottom", **label)
    else:
        drawn.add_vline(line.value, line=style)
        drawn.add_annotation(x=place, xanchor="right", y=1, yref="y domain", yanchor="top", **label)


def _axes(drawn: go.Figure, figure: Figure, rows: int, across: int) -> None:
    """Titles at the edges only; scales as the figure says."""
    x, y = (figure.y, figure.x) if _flat(figure) else (figure.x, figure.y)
    for column, update, edge in (
        (x, drawn.update_xaxes, {"row": rows}),
        (y, drawn.update_yaxes, {"col": 1}),
    ):
        update(fixedrange=True, automargin=True)
        update(title=figure.label(column), **edge)
        if figure.mark == "heat":
            update(showgrid=False, type="category")
        elif column in figure.log:
            update(type="log", exponentformat="power")
        if column in figure.percent and figure.mark != "heat":
            values = figure.table[column]
            update(tickformat=".1%" if values.max() - values.min() < NARROW else ".0%")
    if figure.mark == "heat" or _flat(figure):
        drawn.update_yaxes(autorange="reversed")
    if figure.panel and figure.mark == "heat" and _alike(figure):
        for column in range(2, across + 1):
            drawn.update_yaxes(showticklabels=False, col=column)


def _alike(figure: Figure) -> bool:
    """Do all panels of a heat map have the same rows?"""
    rows = [tuple(dict.fromkeys(names)) for _, names in figure.table.groupby(figure.panel)[figure.y]]
    return len(set(rows)) == 1


def _flat(figure: Figure) -> bool:
    """Bars with many names lie, so that the names can be read."""
    names = figure.table[figure.x]
    return figure.mark == "bars" and not pd.api.types.is_numeric_dtype(names) and names.nunique() > UPRIGHT
