"""Naive or matched: the same network pruned and trained again, with and without its maps in mind."""

import numpy as np
import pandas as pd
import streamlit as st

from core.attribution import AttributionMethod
from core.drift import shipped, shipped_network
from core.figure import Figure, Reference
from core.method import from_dict
from core.recipe import COMPRESSORS
from core.run import Run
from view import charts, engine, figures, frame, maps, pictures, reasons
from view import state as states
from view.engine import Scene
from view.forms import held
from view.maps import Pair
from view.shared import shared
from view.url import steps_to_text

ATTRIBUTIONS, METHODS = "pages/attributions.py", "pages/methods.py"
WAYS = ("naive", "matched")
RECIPE = (
    {"method": "prune-weights", "sparsity": 0.9, "scope": "global"},
    {"method": "fine-tuning", "objective": {"method": "attribution-matching"}},
)
MEASURES = {  # measure -> (title of its curve, name of its axis and row, format)
    "accuracy": ("Accuracy", "accuracy", ".1%"),
    "spearman": (
        "Agreement with the original's maps",
        "rank correlation of integrated gradients, which no training used",
        ".3f",
    ),
    "auc": ("Are the strong pixels on the object?", "AUC of the collapsed map on the object", ".3f"),
    "pointing_game": (
        "Is the strongest pixel on the object?",
        "strongest pixel of the collapsed map on the object",
        ".1%",
    ),
}


@shared()
def records() -> pd.DataFrame:
    return shipped()


def show(scene: Scene, method: AttributionMethod, target: str, run: Run) -> None:
    """The present picture in both networks, and what became of accuracy and maps along the way."""
    st.html(
        charts.heading(
            "What does training bring back?",
            "pruned, then trained for the labels alone (naive), or for the original's maps as well (matched)",
        )
    )
    if not known(scene):
        _elsewhere(scene)
        return
    sparsity = _sparsity()
    place = st.empty()
    pairs = {way: pair(scene, way, sparsity, method, target, run) for way in WAYS}
    place.html(comparison(scene, pairs))
    st.html(table(pairs, sparsity))
    figures.show(curves(records()), "matched")


def known(scene: Scene) -> bool:
    """Were such networks made of the one on show?"""
    return scene.key in set(records().model + "--" + records().data)


def _elsewhere(scene: Scene) -> None:
    made = f"{records().model.iloc[0]}--{records().data.iloc[0]}"
    st.caption("Two trained networks to compare come with one network; on any other, train your own.")
    with st.container(horizontal=True):
        other = {"model": made, "plan": "", "image": 0}
        frame.goto(ATTRIBUTIONS, f"Show {engine.title(made)}", icon=":material/visibility:", **other)
        steps = steps_to_text([from_dict(COMPRESSORS, step) for step in RECIPE])
        frame.goto(METHODS, "Train this network", icon=":material/fitness_center:", steps=steps)


def _sparsity() -> float:
    """Which of the pruned networks is looked at."""
    levels, kept = sorted(set(records().sparsity) - {0.0}), states.state().kept
    held("matched.sparsity", kept.get("matched.sparsity", levels[-1]))

    def choose() -> None:
        states.act()
        kept["matched.sparsity"] = st.session_state["matched.sparsity"]

    return st.segmented_control(
        "Convolution weights that are gone",
        levels,
        format_func=lambda level: charts.percent(level, 0),
        required=True,
        key="matched.sparsity",
        on_change=choose,
    )


def pair(scene: Scene, way: str, sparsity: float, method: AttributionMethod, target: str, run: Run) -> Pair:
    """The present picture in the original and in one of the two."""
    with run.step(WAYS.index(way), len(WAYS)):
        return maps.pair(scene, method, target, run, b=shipped_network(way, sparsity).module)


def comparison(scene: Scene, pairs: dict[str, Pair]) -> str:
    """Picture | original | naive | matched, all on one scale."""
    first = next(iter(pairs.values()))
    drawn = {"A original": (first, 0)} | {f"B {way}": (found, 1) for way, found in pairs.items()}
    end = pictures.limit(*(found.drawn[index] for found, index in drawn.values()))
    cells = [reasons.own(scene)] + [
        reasons.one(scene, found, index, name, found.drawn[index], (end, end), "map")
        for name, (found, index) in drawn.items()
    ]
    return f'<div class="ps-row">{"".join(cells)}</div>'


def table(pairs: dict[str, Pair], sparsity: float) -> str:
    """What was measured of both on all test pictures, and of this picture here."""
    rows, found = [], records()
    at = {way: found[(found.training == way) & (found.sparsity == sparsity)].iloc[0] for way in WAYS}
    before = found[found.training == "original"].iloc[0]
    for name, (_, words, form) in MEASURES.items():
        cells = "".join(f"<td>{_cell(row[name], form)}</td>" for row in (before, *at.values()))
        rows.append(f"<tr><th>{words[0].upper()}{words[1:]}</th>{cells}</tr>")
    here = "".join(f"<td>{_cell(p.agreement.spearman.item(), '.3f')}</td>" for p in pairs.values())
    rows.append(f"<tr><th>Rank correlation, this picture and method</th><td></td>{here}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("", "original", *WAYS))
    return f'<table class="ps-table"><tr>{head}</tr>{"".join(rows)}</table>'


def _cell(value: float, form: str) -> str:
    return "none" if value is None or np.isnan(value) else format(value, form)


def curves(found: pd.DataFrame) -> list[Figure]:
    """What was measured along the way, naive against matched."""
    return [_curve(found, name) for name in MEASURES]


def _curve(found: pd.DataFrame, name: str) -> Figure:
    title, words, form = MEASURES[name]
    original, pruned = found[found.training == "original"].iloc[0], found[found.training != "original"]
    last = pruned[pruned.sparsity == pruned.sparsity.max()].set_index("training")
    rows = {"original": original} | {way: last.loc[way] for way in WAYS}
    ends = {way: _cell(row[name], form) for way, row in rows.items()}
    return Figure(
        title,
        f"At {pruned.sparsity.max():.0%}: {ends['naive']} naive, {ends['matched']} matched; "
        f"the original has {ends['original']}"
        + (f" (n = {int(original.n):,})." if name == "accuracy" else "."),
        pruned[["sparsity", "training", name]],
        "sparsity",
        name,
        colour="training",
        percent=frozenset({"sparsity"} | ({name} if "%" in form else set())),
        labels={"sparsity": "convolution weights that are gone", name: words},
        references=(Reference("y", float(original[name]), "original"),),
    )
