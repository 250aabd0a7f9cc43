"""What comes of it on the Prove page: verdicts, bounds at once, classes, cores, certified accuracy."""

from html import escape

import streamlit as st
import torch

from core.certificate import Certificate
from core.certified import standing
from core.errors import CheckpointError
from core.fates import CoreLine
from core.jobs import Job
from core.proving.changes import Changes, classify
from view import charts, engine, figures, jobs, neurons, prove, verdicts
from view import state as states
from view.engine import Scene
from view.neurons import Look


def answer(scene: Scene) -> Certificate | None:
    """The verdicts on the present picture; until there are some, how to get them or how far they are."""
    kept, job = states.state().kept, jobs.jobs().get(prove.proof(scene))
    if job is None:
        st.info("Bounds below answer at once. For a proof, or a counterexample, press Prove.")
        _last(scene)
        return None
    if not jobs.over(job, "proof", "Prove", lambda: None):
        return None
    if (found := certificate(job)) is None:
        return None
    kept["prove.last"] = (scene.key, job.folder)
    classes = scene.data.classes
    st.html(f'<p class="ps-lede">{escape(verdicts.headline(found))}</p>{verdicts.badges(found, classes)}')
    if words := verdicts.helped(found):
        st.html(f'<div class="ps-status">{escape(words)}</div>')
    if shown := verdicts.counterexamples(
        found, scene.split.take(slice(scene.image, scene.image + 1)), classes
    ):
        st.html(shown)
    return found


def _last(scene: Scene) -> None:
    """The verdicts that were shown last, dimmed, with what they belong to."""
    key, folder = states.state().kept.get("prove.last") or ("", None)
    job = Job(folder) if folder else None
    if key != scene.key or (found := certificate(job)) is None:
        return
    asks = job.order.asks
    st.html(verdicts.badges(found, scene.data.classes, dim=True))
    st.caption(
        f"These verdicts belong to picture #{asks['image']}, radius {asks['property']['radius']:g} and "
        f"{prove.recipe_words(job.order.read_recipe())}."
    )


def certificate(job: Job) -> Certificate | None:
    """What a proof left; None where it was stopped before there was anything, or has been forgotten."""
    try:
        return Certificate.read(job.folder)
    except CheckpointError:
        return None


def looks(scene: Scene) -> tuple[dict[str, Look], Changes | None]:
    """Both networks around the present picture, and what compression did to the neurons."""
    radius, label = prove.check().radius, int(scene.split.labels[scene.image])
    x = scene.split.pixels[scene.image].flatten().double() / 255
    a, b = prove.original(scene.key), prove.compressed(scene)
    with engine.slot():
        found = {"a": neurons.look(a, x, label, radius)}
        if b is None:
            return found, None
        alike = len(a.widths) == len(b.widths)  # else no layer has a counterpart
        return found | {"b": neurons.look(b, x, label, radius)}, classify(a, b) if alike else None


def at_once(scene: Scene, found: dict[str, Look], changes: Changes | None) -> None:
    """How much the picture may change, and what bounds alone make of it."""
    radius = prove.check().radius
    pixels = scene.split.pixels[scene.image].double() / 255
    random = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = (pixels + radius * (2 * (random < 0.5) - 1)).clamp(0, 1)
    shown = [
        charts.figure(
            scene.picture(scene.image), f"Picture #{scene.image}", "", f"The picture: {_label(scene)}"
        ),
        charts.figure(
            verdicts.drawn(moved),
            "Just as near",
            "",
            f"The same picture with every pixel moved up or down by {radius:g}, at random",
        ),
    ]
    cards = "".join(_card(role, each, scene.data.classes, _label(scene)) for role, each in found.items())
    st.html(
        f'<div class="ps-around"><div class="ps-row ps-two">{"".join(shown)}</div>'
        f'<div class="ps-cards">{cards}</div></div>'
    )


def _label(scene: Scene) -> str:
    return scene.label(scene.image)


def _card(role: str, each: Look, classes, label: str) -> str:
    whole = sum(map(len, each.phases))
    said = f"says {escape(classes[each.predicted])} ({charts.percent(each.sure)})"
    if classes[each.predicted] != label:
        tone, words = "loss", "The picture itself is answered wrongly: ✗"
    elif each.excluded == each.others:
        tone, words = "kept", "✓ bounds alone prove it"
    else:
        tone, words = "grey", "? the rest needs a proof"
    return (
        f'<div class="ps-card"><div class="l">{neurons.NAMES[role]} {said}</div>'
        f'<div class="v">{each.excluded} of {each.others}</div>'
        f'<div class="n">other classes are excluded by bounds alone</div>'
        f'<div class="d ps-{tone}">{words}</div>'
        f'<div class="n">{each.undecided:,} of {whole:,} ReLUs are undecided</div></div>'
    )


def every_relu(scene: Scene, found: Certificate | None) -> None:
    """The grid of ReLUs at the present radius, with those of the chosen core marked."""
    both, changes = looks(scene)
    at_once(scene, both, changes)
    line = _chosen_core(found)
    marks = {}
    if line is not None:
        core = line.literals
        places = changes.places if changes else None
        marks = (
            {"b": neurons.marked(core)}
            if line.status == "new"
            else {
                "a": neurons.marked(core),
                "b": neurons.marked(core, places) if places else {},
            }
        )
        rival = escape(scene.data.classes[line.other])
        st.html(f'<div class="ps-status">Marked: with {verdicts.phrase(line)}, {rival} cannot win.</div>')
    st.html(neurons.grid(both, changes, marks))
    details = st.expander("As a table", on_change=states.act, key="neurons-table")
    if details.open:
        details.dataframe(neurons.table(both, changes), hide_index=True, alt=neurons.finding(both))


def _chosen_core(found: Certificate | None) -> CoreLine | None:
    """The core that is selected in the table."""
    rows = st.session_state["cores"].selection.rows if "cores" in st.session_state else []
    return found.cores[rows[0]] if found and rows and rows[0] < len(found.cores) else None


def in_detail(scene: Scene, found: Certificate) -> None:
    """Class by class, and the cores."""
    classes = scene.data.classes
    st.html(charts.heading("Class by class", "the likeliest other class first; one counterexample is enough"))
    table = verdicts.by_class(found, classes)
    digits = {name: "%.1f" if name.startswith("ms") else "%.3f" for name in table.columns[4:]}
    numbers = {name: st.column_config.NumberColumn(format=form) for name, form in digits.items()}
    st.dataframe(table, hide_index=True, alt=verdicts.headline(found), key="classes", column_config=numbers)
    st.html(charts.heading("Unsat cores", "phases of ReLUs that no counterexample has together"))
    if not found.cores:
        st.caption(
            "There are none: bounds alone were enough, or a counterexample came first. "
            "A larger radius needs some."
        )
        return
    st.html(verdicts.fates(found))
    if hidden := sum(verdicts.counted(found).values()) - len(found.cores):
        st.caption(f"Of every class the shortest stand here; {hidden:,} longer ones do not.")
    st.dataframe(
        verdicts.cores(found.cores, classes),
        hide_index=True,
        alt=f"{len(found.cores)} cores",
        key="cores",
        on_select=states.act,
        selection_mode="single-row",
    )
    st.caption(
        "Whatever the ReLUs do, one of the rows that hold rules it out: together they are the proof. "
        "Choose a row, and its ReLUs are marked in the grid above: + for on, - for off."
    )


def accuracy(scene: Scene) -> None:
    """Certified accuracy against the radius, picture by picture while it is worked out."""
    job = jobs.jobs().get(prove.many(scene))
    if job is None:
        return
    st.html(charts.heading("How far does it reach?", "certified accuracy of many pictures"))

    def draw() -> None:
        table = standing(job.history)
        if table.empty:
            st.caption("The first picture is being asked about.")
            return
        figures.show([verdicts.curve(table, job.order.asks["property"]["seconds"])], "certified")

    if jobs.over(job, "certified", "Certify many", draw):
        draw()
