"""What the Start page shows: one measured result, and cards that open a page in a state worth seeing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from core.plan import Plan
from core.whatif import Answer
from view import charts, engine, frame, pictures
from view.engine import Scene
from view.findings import SPARSITY, Finding, Surprise, method
from view.url import method_to_text

PRUNE, ATTRIBUTIONS, PROVE = "pages/prune.py", "pages/attributions.py", "pages/prove.py"
TAGGED = "cluttered-digits-shortcut"  # data with a coloured tag that names the class


@dataclass(frozen=True)
class Lesson:
    """A card: a sentence, and the page and state that it opens."""

    title: str
    text: str
    page: str
    plan: Plan
    nouns: tuple[tuple[str, Any], ...] = ()


def lessons(scene: Scene) -> list[Lesson]:
    """For the network of `scene`, and two about other networks: one trained with a tag, and the smallest."""
    groups, layers = scene.whatif.sliders("remove"), scene.whatif.sliders("zero")
    share = groups[0].weights / sum(group.weights for group in groups)
    found = [
        Lesson(
            "One slider is enough",
            f"{groups[0].name} and the layers that share its channels hold {share:.0%} of the weights. "
            "Half of those channels are gone here: look at the accuracy, then give some back.",
            PRUNE,
            Plan("remove", sparsities={groups[0].name: 0.5}),
        ),
        Lesson(
            "Zeroed is not removed",
            "Half of one layer's filters are set to zero, yet batch norm goes on talking. "
            "Change what a slider means, and compare.",
            PRUNE,
            Plan("zero", sparsities={layers[0].name: 0.5}),
        ),
        Lesson(
            "Same answer, same reason?",
            "The maps of both networks on one scale. Search for the pictures whose answer stayed "
            "while the reason moved.",
            ATTRIBUTIONS,
            scene.whatif.preset("global", "weights", None, SPARSITY),
        ),
    ]
    if key := next((key for key, each in engine.shelf().items() if each.dataset == TAGGED), None):
        text = (
            "In all this network saw, a coloured tag nearly always named the digit. Does it read the digit?"
        )
        found.append(Lesson("Digit, or tag?", text, ATTRIBUTIONS, Plan(), (("model", key),)))
    smallest = min(engine.shelf(), key=lambda key: engine.shelf()[key].provenance["macs"])
    text = (
        "A test tries some pictures; a proof speaks of all that lie this close. "
        "Compress a small network, and see how much of its proof still holds."
    )
    found.append(Lesson("Every picture this close", text, PROVE, Plan(), (("model", smallest),)))
    return found


def cards(scene: Scene) -> None:
    """The lessons side by side, each a link."""
    found = lessons(scene)
    for column, lesson in zip(st.columns(len(found)), found, strict=True):
        with column.container(border=True, height="stretch"):
            st.html(f'<div class="ps-lesson"><h3>{lesson.title}</h3><p>{lesson.text}</p></div>')
            plan = lesson.plan.to_text(scene.whatif.sliders) if lesson.plan.sparsities else ""
            nouns = {"model": scene.key, "plan": plan, "image": 0} | dict(lesson.nouns)
            frame.goto(lesson.page, "Open", icon=":material/arrow_forward:", **nouns)


def opening(scene: Scene, found: Finding) -> str:
    """The result that the page opens with, and what it rests on."""
    network, chance = scene.bundle.architecture.label(), charts.percent(found.answer.chance, 0)
    mean, low = f"{np.mean(found.scores):.2f}", f"{min(found.scores):.2f}"
    singly = f"{_gone(scene, found.answer)} of the weights are zero, the smallest first"
    wholly = f"{_gone(scene, found.channels)} of the weights are gone as whole channels; chance is {chance}"
    maps = f"rank correlation of the maps under the first, over {len(found.scores)} pictures; {low} at worst"
    return (
        f'<p class="ps-lede">A {network} loses about half of its weights, in two ways, and is not trained '
        f"again. Its accuracy was <b>{charts.percent(scene.whatif.original.accuracy)}</b>. Now it is:</p>"
        f'<div class="ps-bigs">{_big(charts.percent(found.answer.accuracy), singly)}'
        f"{_big(charts.percent(found.channels.accuracy), wholly)}{_big(mean, maps)}</div>"
        f'<p class="ps-status">Measured here on {found.answer.n:,} test pictures of {scene.data.name}; '
        f"95 %: {charts.span(found.answer.interval)} and {charts.span(found.channels.interval)}. "
        "The picture keeps its answer under the first.</p>"
    )


def _gone(scene: Scene, answer: Answer) -> str:
    """The share of the original's weights that an answer does without."""
    return charts.percent(
        1 - answer.cost.nonzero_parameters / scene.whatif.original.cost.nonzero_parameters, 0
    )


def _big(value: str, words: str) -> str:
    return f'<div><span class="ps-big">{value}</span>{words}</div>'


def evidence(scene: Scene, found: Finding) -> str:
    """The picture whose reason changed most, beside its maps on one scale."""
    end, picture = pictures.limit(found.a, found.b), scene.picture(found.place)
    shown = [
        charts.figure(picture, f"Picture #{found.place}", "", f"A picture of {scene.label(found.place)}")
    ]
    for name, role, values in (("before", "a", found.a), ("after", "b", found.b)):
        drawn = pictures.signed(values, end)
        shown.append(charts.figure(drawn, f"Evidence {name}", "", f"Attribution map {name} pruning", role))
    return f'<div class="ps-row ps-three">{"".join(shown)}</div>'


def trained(found: Surprise) -> str:
    """What training brings back, and what it need not."""
    before, naive, matched = found.rows
    percent = charts.percent
    gone = f"{percent(naive.sparsity, 0)} of the convolution weights are gone"
    hits = [percent(row.pointing_game, 0) for row in found.rows]
    bigs = (
        _big(
            percent(naive.accuracy), f"accuracy, trained for the labels alone; was {percent(before.accuracy)}"
        ),
        _big(percent(matched.accuracy), "accuracy, trained for the labels and the original's maps"),
        _big(
            f"{hits[1].split()[0]}, {hits[2]}",
            f"of the maps have their strongest pixel on the digit; was {hits[0]}",
        ),
    )
    notes = (
        f"On {before.n:,} test pictures; the maps are those that were matched.",
        "By integrated gradients, which neither training used, rank correlation with the original is "
        f"{naive.spearman:.2f} or {matched.spearman:.2f}.",
        f"Picture #{found.place} has the widest gap, {found.scores[0]:.2f} against {found.scores[1]:.2f}, "
        f"among {found.searched} that all three answer alike.",
    )
    return (
        f'<p class="ps-lede">{gone}, and the network was trained again, in two ways.</p>'
        f'<div class="ps-bigs">{"".join(bigs)}</div><p class="ps-status">{" ".join(notes)}</p>'
    )


def three(scene: Scene, found: Surprise) -> str:
    """The picture, and the evidence in the original, after naive and after matched training."""
    end, label = pictures.limit(*found.maps), scene.label(found.place)
    shown = [
        charts.figure(scene.picture(found.place), f"Picture #{found.place}", "", f"A picture of {label}")
    ]
    for name, role, values in zip(("Original", "Naive", "Matched"), ("a", "b", "b"), found.maps, strict=True):
        drawn = pictures.signed(values, end)
        shown.append(charts.figure(drawn, name, "", f"Attribution map: {name.lower()}", role))
    return f'<div class="ps-row ps-four">{"".join(shown)}</div>'


def nouns(scene: Scene, found: Finding) -> dict[str, Any]:
    """What the Attributions page needs to show the same picture and the same maps."""
    plan = found.plan.to_text(scene.whatif.sliders)
    return {"model": scene.key, "plan": plan, "image": found.place, "attribution": method_to_text(method())}
