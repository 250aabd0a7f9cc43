"""What the Attributions page draws: the pair and its difference, scores, film strip, gallery."""

from html import escape

import numpy as np
import streamlit as st
import torch

from core.agreement import Agreement, is_dead
from core.agreement import state as state_of
from core.attribution import ATTRIBUTIONS, AttributionMethod, channel_sum
from core.localisation import Localisation, localisation
from core.plan import Plan
from core.run import Run
from view import charts, forms, gallery, maps, pictures
from view import state as states
from view.charts import Between
from view.engine import Scene
from view.maps import Pair
from view.url import HIGHEST

STRIP = (0.0, 0.3, 0.5, 0.7, 0.9)
STYLES = ("map", "overlay", "magnitude")


def controls(scene: Scene, chosen: AttributionMethod) -> tuple[str, str]:
    """Method, its settings, the explained class; returns how to scale and how to draw."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="reason-controls"):
        with st.container(width=230):
            forms.pick("Method", ATTRIBUTIONS, maps.method, maps.save_method, "attribution")
        with st.popover("Settings", icon=":material/tune:"):
            st.caption(chosen.summary())
            forms.configure(maps.method, maps.save_method, "attribution", [s.name for s in scene.sliders])
            _seed(chosen)
        _target(scene)
        scale = st.segmented_control(
            "Scale",
            ["shared", "own"],
            default="shared",
            required=True,
            key="scale",
            on_change=states.act,
            help="Shared: a weak map looks weak. Own: each map fills its scale, and the factor is said",
        )
        style = st.segmented_control(
            "Draw",
            STYLES,
            default="map",
            required=True,
            key="style",
            on_change=states.act,
            help="The signed map, the map over the grey picture, or its magnitude",
        )
    return scale, style


def _seed(chosen: AttributionMethod) -> None:
    """Where random numbers start, for methods that draw some."""
    forms.held("seed", states.state().nouns.seed)
    st.number_input(
        "Seed",
        0,
        HIGHEST,
        states.state().nouns.seed,
        step=1,
        key="seed",
        disabled=not chosen.random,
        help="Of random methods: equal seeds give equal maps. The others do not draw",
        on_change=lambda: states.change(seed=st.session_state["seed"]),
    )


def _target(scene: Scene) -> None:
    options = [*maps.TARGETS, *map(str, range(len(scene.data.classes)))]
    now = states.state().nouns.target
    forms.held("target", now if now in options else "")
    st.selectbox(
        "Explained class",
        options,
        format_func=lambda o: maps.TARGETS.get(o) or f"class {scene.data.classes[int(o)]}",
        key="target",
        width=210,
        on_change=lambda: states.change(target=st.session_state["target"]),
    )


def target(scene: Scene) -> str:
    """The explained class that the nouns name, if the data have it."""
    now = states.state().nouns.target
    return now if now in maps.TARGETS or (now.isdigit() and int(now) < len(scene.data.classes)) else ""


def comparison(scene: Scene, found: Pair, scale: str, style: str) -> str:
    """Picture | A | B | B - A, in the same order and size everywhere."""
    a, b = found.drawn
    shared = pictures.limit(a, b)
    ends = (shared, shared) if scale == "shared" else (pictures.limit(a), pictures.limit(b))
    shown = [own(scene)]
    for index, (name, values) in enumerate((("A original", a), ("B compressed", b))):
        shown.append(one(scene, found, index, name, values, ends, style))
    shown.append(_difference(a, b, found))
    return f'<div class="ps-row">{"".join(shown)}</div>'


def own(scene: Scene) -> str:
    """The present picture itself."""
    label = scene.label(scene.image)
    title, note = f"Picture #{scene.image}: {label}", f"from {scene.data.name}, test part"
    alt = f"Test picture {scene.image}, labelled {label}"
    return charts.figure(scene.picture(scene.image), title, note, alt)


def one(scene: Scene, found: Pair, index: int, name: str, values: np.ndarray, ends, style: str) -> str:
    """The map of one network of a pair, under what it answers; `ends` are the ends of both scales."""
    classes, said = scene.data.classes, scene.data.classes[found.said[index]]
    right = said == scene.label(scene.image)
    title = f"{name} says {said} ({charts.percent(found.sure[index], 0)})" + (
        "" if right else " \u2717 wrong"
    )
    note = f"evidence for {classes[found.targets[index]]}"
    role = "ab"[index]
    state = state_of(torch.from_numpy(values))
    if is_dead(state):
        return charts.figure(
            None, title, note, f"{name}: {state}", role, charts.panel(state, f"Network {name[0]}")
        )
    if state == "no positive evidence":
        note += "; all of it speaks against"
    if index and ends[0] != ends[1] and ends[1]:
        ratio = ends[0] / ends[1]
        word = "stronger" if ratio >= 1 else "weaker"
        note += f"; B drawn x{max(ratio, 1 / ratio):.2g} {word}" if ratio else ""
    end = ends[index]
    if style == "magnitude":
        return charts.figure(
            pictures.magnitude(values, end),
            title,
            note,
            _alt(name, values),
            role,
            charts.scale(end, "Cividis", "0", f"{end:.2g}"),
        )
    if style == "map":
        drawn = pictures.signed(values, end)
    else:
        drawn = pictures.overlay(values, end, scene.picture(scene.image))
    return charts.figure(drawn, title, note, _alt(name, values), role, charts.scale(end, "RdBu_r"))


def _alt(name: str, values: np.ndarray) -> str:
    """Where the strongest evidence lies, in words."""
    row, column = np.unravel_index(np.abs(values).argmax(), values.shape)
    down = ("top", "middle", "bottom")[min(3 * row // values.shape[0], 2)]
    across = ("left", "centre", "right")[min(3 * column // values.shape[1], 2)]
    sign = "for" if values[row, column] > 0 else "against"
    return f"{name}: the strongest evidence is at the {down} {across} and speaks {sign} the class"


def _difference(a: np.ndarray, b: np.ndarray, found: Pair) -> str:
    title, note = "B - A", "purple: more evidence in B, orange: less; own scale"
    difference = b - a
    if not np.isfinite(difference).all():
        return charts.figure(
            None, title, note, "no difference", "", charts.panel("not finite", "One network")
        )
    end = pictures.limit(difference)
    if not end:
        note = "both maps are equal, pixel by pixel"
    alt = "Difference of the maps: " + (
        f"rank correlation {found.agreement.spearman.item():.3f}" if end else "none"
    )
    below = charts.scale(end, "PuOr") if end else ""
    return charts.figure(pictures.signed(difference, end, "PuOr"), title, note, alt, "", below)


def scores(found: Agreement, floor: Agreement | None, ceiling: Agreement | None, diagonal: float) -> str:
    """Each measure between the random network (left) and the same network under noise (right)."""
    rows = []
    for name, metric in Agreement.metrics().items():
        value, low, high = (
            None if each is None else getattr(each, name).item() for each in (found, floor, ceiling)
        )
        ends = (diagonal, 0.0) if metric.better == "lower" else (0.0, 1.0)
        rows.append(Between(metric.label, value, low, high, *ends, metric.help, metric.format, metric.unit))
    return charts.between(rows) + (charts.between_legend() if floor else "")


def class_of(found: Pair) -> torch.Tensor:
    """The class explained in A, (1,)."""
    return torch.tensor([found.targets[0]])


def on_object(scene: Scene, found: Pair) -> str:
    """How much of both maps lies on the object, where the data say where it is; else a sentence."""
    if scene.split.masks is None:
        return '<div class="ps-status">These data have no masks, so where the object lies is unknown.</div>'
    mask = scene.split.masks[[scene.image]]
    both = localisation(found.a, mask), localisation(found.b, mask)
    rows = []
    for name, metric in Localisation.metrics().items():
        a, b = (getattr(each, name).item() for each in both)
        if np.isnan(a) and np.isnan(b):
            continue
        cells = "".join(f"<td>{'none' if np.isnan(v) else format(v, metric.format)}</td>" for v in (a, b))
        rows.append(f'<tr title="{escape(metric.help)}"><th>{escape(metric.label)}</th>{cells}</tr>')
    return f'<table class="ps-table"><tr><th></th><th>A</th><th>B</th></tr>{"".join(rows)}</table>'


def strip(scene: Scene, chosen: AttributionMethod, found: Pair, run: Run) -> None:
    """The map while more and more is removed; every picture on A's scale."""
    place, end, cells = st.empty(), pictures.limit(found.drawn[0]), []
    for level in STRIP:
        plan = maps.scaled(scene, level) if level else Plan()
        said = int(maps.logits(scene, plan, [scene.image]).nan_to_num().argmax())
        values = channel_sum(
            maps.maps(scene, plan, chosen, [scene.image], torch.tensor([found.targets[0]]), run)
        )[0]
        cells.append(_cell(scene, level, said, values.numpy(), end))
        waiting = "<div>...</div>" * (len(STRIP) - len(cells))
        place.html(f'<div class="ps-strip">{"".join(cells)}{waiting}</div>')


def _cell(scene: Scene, level: float, said: int, values: np.ndarray, end: float) -> str:
    answer, label = scene.data.classes[said], scene.label(scene.image)
    words = f"<b>{charts.percent(level, 0)}</b> says {gallery.mark(answer, label)}"
    drawn = pictures.source(pictures.signed(values, end), 128)
    alt = f"at {charts.percent(level, 0)} the network says {answer}"
    return f'<div><img src="{drawn}" alt="{escape(alt)}"><p>{words}</p></div>'


def most_different(scene: Scene, chosen: AttributionMethod, count: int, run: Run, shown: int = 8) -> None:
    """Pictures with the same answer whose maps differ most, A beside B on one scale."""
    rows = maps.gallery(scene, scene.plan, chosen, count, run)[:shown]
    if not rows:
        st.caption("The two networks agree on no picture.")
    with st.container(horizontal=True, gap="medium", key="thumbs-different"):
        for place, a, b, score in rows:
            end = pictures.limit(a, b)
            drawn = [pictures.signed(a, end), pictures.signed(b, end)]
            with st.container(width=196, gap=None):
                answer = int(scene.whatif.original.logits[place].argmax())
                text = f"both say {escape(scene.data.classes[answer])}; "
                st.html(
                    gallery.thumb(
                        drawn, f"maps of picture {place} in A and B", f"{text}rank correlation {score:.2f}"
                    )
                )
                st.button(
                    f"Show #{place}",
                    key=f"show.{place}",
                    type="tertiary",
                    on_click=states.change,
                    kwargs={"image": place},
                )
