"""What came of a recipe: cards, figures of its steps, what changed inside, and how to take it along."""

import json
import math
import shlex
import tempfile
from dataclasses import replace
from pathlib import Path

import streamlit as st

from core.diagnosis import DIAGNOSTICS, Diagnostic
from core.errors import UserError
from core.outcome import Outcome
from core.weights import save_model
from view import carried, charts, figures, forms, latency, maps, reasons, results
from view import state as states
from view.charts import Card
from view.engine import Scene
from view.history import curves
from view.progress import visible_run
from view.url import method_to_text

FIRST = "weight-change"  # of the diagnostics: works for every pair, at once


def show(scene: Scene, found: Outcome, stale: bool) -> None:
    """All of it; `stale`: it belongs to a recipe that has changed since."""
    st.html(charts.cards(cards(scene, found, dim=stale)))
    if stale:
        st.caption(
            "These numbers belong to the recipe that was carried out last, not to the one on the left."
        )
    with st.popover("Export", icon=":material/download:"):
        exports(scene, found)
    same_reason(scene, found)
    training(found)
    steps(found)
    inside(scene, found)


def cards(scene: Scene, found: Outcome, dim: bool) -> list[Card]:
    """Accuracy, weights, multiply-adds, bytes and time, each beside the original's."""
    after, before, chance = found.after, found.before, 1 / len(scene.data.classes)
    notes = [f"95 % {charts.span(after.interval)}, n = {after.n:,}"]
    if after.interval[0] <= chance <= after.interval[1]:
        notes.append(f"chance ({charts.percent(chance)})")
    rows = {row.name: row for row in carried.timed(scene.key, found.network).itertuples()}
    macs = f"was {charts.count(before.macs)}; zeros skipped: {charts.count(after.theoretical_macs)} in theory"
    shown = [
        Card(
            "Accuracy",
            charts.percent(after.accuracy),
            f"{charts.points(found.change.difference)} {charts.span(found.change.interval, signed=True)}",
            charts.tone(found.change.interval),
            (*notes, f"{len(found.change.gained):,} gained, {len(found.change.lost):,} lost"),
            "On the test pictures. The change is against the original on the same pictures, with its paired "
            "95 % interval: grey while that holds zero",
        ),
        *results.cost_cards(after, before, (macs,)),
        latency.timed(rows["original"], rows["compressed"]),
    ]
    return [replace(card, dim=dim) for card in shown]


def same_reason(scene: Scene, found: Outcome) -> None:
    """The present picture's maps in both networks, and how far they agree."""
    method = maps.method()
    st.html(charts.heading("Same answer, same reason?", f"the picture above, by {method.label()}"))
    try:
        with visible_run(method.label()) as run:
            pair = maps.pair(scene, method, reasons.target(scene), run, found.network)
    except UserError as error:  # a method may not go through what a recipe made
        st.caption(str(error))
        return
    diagonal = math.hypot(*scene.data.shape[1:])
    st.html(reasons.comparison(scene, pair, "shared", "map"))
    st.columns([3, 2])[0].html(reasons.scores(pair.agreement, None, None, diagonal))


def training(found: Outcome) -> None:
    """How it went, where a step trained."""
    if shown := curves(found.history):
        st.html(charts.heading("How did the training go?", "epoch by epoch, all steps"))
        figures.show(shown, "history")


def steps(found: Outcome) -> None:
    """The figures of every step, in order."""
    for index, shown in enumerate(found.figures):  # one that was stopped has fewer than it has steps
        step = found.recipe.steps[index]
        if shown:
            st.html(charts.heading(f"{index + 1} · {step.label()}", "what this step did"))
            figures.show(shown, f"step.{index}.{step.name}")


def inside(scene: Scene, found: Outcome) -> None:
    """A diagnostic of the reader's choice, on the network before and after."""
    kept = states.state().kept

    def get() -> Diagnostic:
        return kept.get("diagnostic") or DIAGNOSTICS[FIRST]()

    def save(chosen: Diagnostic) -> None:
        states.act()
        kept["diagnostic"] = chosen

    st.html(charts.heading("What changed inside?", "the original against what the recipe made of it"))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        with st.container(width=260):
            forms.pick("Diagnostic", DIAGNOSTICS, get, save, "diagnostic")
        with st.popover("Settings", icon=":material/tune:"):
            forms.configure(get, save, "diagnostic")
    forms.about(get())
    with visible_run(get().label()) as run:
        table, shown = carried.diagnose(scene.key, get(), found.network, found.recipe.seed, run)
    figures.show(shown, "diagnostic")
    details = st.expander("The whole table", on_change=states.act, key="diagnostic-table")
    if details.open:
        details.dataframe(table, hide_index=True, alt=get().summary())


def exports(scene: Scene, found: Outcome) -> None:
    """The recipe, the command that replays it, and the compressed network itself."""
    architecture = scene.bundle.architecture
    st.download_button(
        "Recipe (JSON)", found.recipe.to_json(), "recipe.json", "application/json", on_click="ignore"
    )
    st.download_button(
        "Network (safetensors)",
        lambda: _file(scene, found),
        "compressed.safetensors",
        on_click="ignore",
        help="Loads again here, in the shell and in Python; it holds no code",
    )
    st.caption("In a shell, with the recipe beside it:")
    words = ["python", "cli.py", "run", method_to_text(architecture), "recipe.json"]
    st.code(shlex.join([*words, "--data", scene.bundle.dataset]), language="sh", wrap_lines=True)


def _file(scene: Scene, found: Outcome) -> bytes:
    provenance = scene.bundle.provenance | {"compressed_by": json.loads(found.recipe.to_json())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compressed.safetensors"
        save_model(found.network, path, scene.bundle.architecture, scene.data, provenance)
        return path.read_bytes()
