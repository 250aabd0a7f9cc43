"""Measured time against multiply-adds: where zeros do not pay, and how far removal does."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from core.realised import ORIGINAL, REMOVED, ZEROS, Realised, realised
from view import charts, engine
from view import state as states
from view.charts import Card
from view.engine import Scene

BATCH = 64  # pictures at a time
HELP = "Measured on this server: median of interleaved runs; in brackets the fastest and the slowest"
INK = {  # role -> colour on light, on dark
    ORIGINAL: ("#4b5563", "#aab4c0"),
    ZEROS: ("#d55e00", "#f0803c"),
    REMOVED: ("#0072b2", "#56b4e9"),
    "line": ("#596573", "#a3aeba"),
}
MARKS = {ORIGINAL: "circle", ZEROS: "x", REMOVED: "square-open"}
PLACES = {ORIGINAL: "top left", ZEROS: "middle right", REMOVED: "middle right"}  # of the labels


def measure(scene: Scene) -> None:
    """Time the forms of the present plan on this machine and keep the result for it."""
    states.act()
    images = scene.split.take(slice(BATCH)).images
    with engine.slot():
        found = realised(scene.whatif, scene.plan, images)
    states.state().kept["latency"] = ((scene.key, scene.plan), found)


def measured(scene: Scene) -> Realised | None:
    """What was measured for the present plan."""
    key, found = states.state().kept.get("latency") or (None, None)
    return found if key == (scene.key, scene.plan) else None


def card(scene: Scene) -> Card:
    """Median time of what the plan leaves: the smaller network if it removes, else the one with zeros."""
    found = measured(scene)
    if not found:
        notes = ("depends on the machine:", "press Measure latency below")
        return Card("Latency", "not measured", notes=notes, help=HELP)
    rows = _rows(found)
    return timed(rows[ORIGINAL], rows[REMOVED if scene.plan.question == "remove" else ZEROS])


def timed(before: Any, after: Any) -> Card:
    """Two rows of `core.cost.latency`, one beside the other."""
    return Card(
        "Latency",
        f"{after.median_ms:.1f} ms",
        f"{100 * (after.median_ms / before.median_ms - 1):+.1f} %",
        notes=(
            f"[{after.low_ms:.1f}, {after.high_ms:.1f}], was {before.median_ms:.1f} ms",
            f"batch {after.batch}, threads {after.threads}",
        ),
        help=HELP,
    )


def report(scene: Scene) -> None:
    """The chart, its finding and its table; nothing until it was measured for the present plan."""
    found = measured(scene)
    if not found:
        return
    words = finding(found)
    st.html(charts.heading("Does it pay?", f"one batch of {BATCH} pictures on this server"))
    left, right = st.columns([3, 2], gap="large")
    dark = st.context.theme.type == "dark"
    left.plotly_chart(figure(found, dark), alt=words, key="latency", config={"displayModeBar": False})
    right.markdown(words)
    right.caption("Marks are medians of runs in turns, bars reach from the fastest to the slowest run.")
    details = right.expander("The measured times as a table", on_change=states.act, key="latency-table")
    if details.open:
        details.dataframe(found.table.round(2), hide_index=True, alt=words)


def finding(found: Realised) -> str:
    """What the measured numbers say, in sentences."""
    rows = _rows(found)
    before, zeros = rows[ORIGINAL], rows[ZEROS]
    if before.macs == zeros.macs:
        return "Nothing is pruned, so all forms are the same network and the differences are noise."
    said = [_compared("With zeros in the old shapes", before, zeros)]
    if REMOVED in rows:
        said.append(_compared("With the channels removed", before, rows[REMOVED]))
    else:
        said.append(f"There is no smaller network to measure ({found.why}).")
    return " ".join(said)


def _compared(form: str, before: pd.Series, after: pd.Series) -> str:
    """One form against the original: multiply-adds left, and time, which counts where the spreads part."""
    macs, time = (charts.percent(abs(1 - after[name] / before[name]), 0) for name in ("macs", "median_ms"))
    word = "less" if after.median_ms < before.median_ms else "more"
    if after.high_ms < before.low_ms or after.low_ms > before.high_ms:
        took = f"{time} {word} time"
    else:
        took = f"no clear difference in time: {time} {word}, within the spread of the runs"
    return f"{form} there are {macs} fewer MACs on paper, and {took}."


def figure(found: Realised, dark: bool) -> go.Figure:
    """Milliseconds against MACs, with the line on which both would shrink alike."""
    rows, shown = _rows(found), go.Figure()
    before, ink = rows[ORIGINAL], {role: colours[dark] for role, colours in INK.items()}
    end = 1.15 * max(found.table.macs) / 1e6
    promised = end * before.median_ms / (before.macs / 1e6)  # where the line meets the right edge
    line = {"dash": "dot", "color": ink["line"], "width": 1.5}
    shown.add_scatter(x=[0, end], y=[0, promised], mode="lines", line=line, hoverinfo="skip")
    for name, row in rows.items():
        shown.add_scatter(
            x=[row.macs / 1e6],
            y=[row.median_ms],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [row.high_ms - row.median_ms],
                "arrayminus": [row.median_ms - row.low_ms],
                "color": ink[name],
                "thickness": 1.5,
            },
            mode="markers+text",
            marker={"size": 11, "symbol": MARKS[name], "color": ink[name]},
            text=[name],
            textposition=PLACES[name],
            textfont={"color": ink[name], "size": 14},
            hovertemplate="%{text}: %{x:.3g} M MACs, %{y:.1f} ms<extra></extra>",
        )
    shown.add_annotation(
        text="what MACs alone promise",
        x=0.55 * end,
        y=0.55 * promised,
        xanchor="left",
        yanchor="top",
        showarrow=False,
        font={"color": ink["line"]},
    )
    shown.update_xaxes(title="MACs per picture, zeros skipped (millions)", range=[0, end])
    shown.update_yaxes(
        title=f"ms per batch of {before.batch}", range=[0, 1.1 * max(found.table.high_ms.max(), promised)]
    )
    return shown.update_layout(
        height=320, margin={"l": 10, "r": 10, "t": 10, "b": 10}, showlegend=False, dragmode=False
    )


def _rows(found: Realised) -> dict[str, pd.Series]:
    return {row["name"]: row for _, row in found.table.iterrows()}
