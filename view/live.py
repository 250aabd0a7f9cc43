"""The live bars: the network as bars that a reader drags, drawn and reckoned in the browser.

The component is mounted once in a run, with what the sliders are and where they stand. What becomes
known later in the same run, the measured accuracy and what predictions rest on, is written into a hidden
element beside it. What the reader sets comes back as commits, numbered so that the browser knows which of its
wishes the levels it is sent have already answered.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Self

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.errors import RecipeError, UserError
from core.plan import Plan
from core.prediction import Anchor, Prediction
from core.whatif import Answer
from view import controls, engine, nouns, surveys
from view import state as states
from view.engine import Scene
from view.shared import shared

KEY = "live.bars"
FOLDER = Path(__file__).parent.parent / "assets" / "live"


def source(*names: str) -> str:
    """The files of the component, one after the other."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


SCRIPT = source("numbers.js", "drawing.js", "live.js")

_mount = st.components.v2.component(
    "prunescope_live_bars",
    html=source("live.html"),
    css=source("live.css"),
    js=SCRIPT,
)


def bars(scene: Scene, by: str) -> DeltaGenerator:
    """Mount the bars, as wide as their share of the "weights" or "MACs"; returns where their `facts` go."""
    with st.container(key="live"):
        _mount(key=KEY, data=description(scene, by), on_commit_change=lambda: _commit(scene))
        return st.empty()


def description(scene: Scene, by: str) -> dict[str, Any]:
    """What the browser needs to draw the sliders and to reckon what they keep."""
    asked, held = scene.plan.question, states.state()
    return {
        "scene": token(scene),
        "commit": held.kept.get("commit", 0),  # the newest one that the levels below have answered
        "by": by,
        "unit": "weights" if asked == "weights" else "channels",
        "least": scene.sliders[0].kept(asked, 1.0) if scene.sliders else 0,
        "labels": _labels(asked),
        "levels": _levels(scene, scene.plan),
        "locked": [slider.name in held.locked for slider in scene.sliders],
        **_lasting(scene.key, asked),
    }


@shared(16)
def _lasting(key: str, asked: str) -> dict[str, Any]:
    """The part of the description that no plan changes."""
    found = engine.whatif(key)
    sliders = [
        {
            "name": slider.name,
            "layers": slider.layers,
            "entries": slider.entries(asked),
            "weights": slider.weights,
            "macs": slider.macs,
        }
        for slider in found.sliders(asked)
    ]
    terms = [[term.weights, term.macs, term.sliders] for term in found.cost_terms(asked)]
    return {"sliders": sliders, "terms": terms}


def facts(scene: Scene, answer: Answer) -> str:
    """A hidden element that says what was measured last, and what predictions rest on."""
    plan = answer.plan
    comparable = not plan.sparsities or _empty(plan) == _empty(scene.plan)
    about = replace(scene, plan=plan, sliders=scene.whatif.sliders(plan.question))
    low, high = answer.interval
    said = {
        "scene": token(scene),
        "original": scene.whatif.original.accuracy,
        "measured": {
            "levels": _levels(scene, plan) if comparable else None,
            "value": answer.accuracy,
            "low": low,
            "high": high,
            "n": answer.n,
            "exact": answer.exact,
            "plan": nouns.words(about),
        },
        "prediction": _prediction(scene, answer if comparable else scene.whatif.original),
    }
    return f'<div hidden data-facts="{escape(json.dumps(said, separators=(",", ":")))}"></div>'


def predict(scene: Scene, answer: Answer, told: DeltaGenerator) -> None:
    """Tell the bars all that predictions rest on, again while it grows."""
    survey = surveys.survey(scene.key, scene.plan)

    @surveys.watching(survey)
    def tell() -> None:
        told.html(facts(scene, answer))

    tell()


def token(scene: Scene) -> str:
    """What the sliders are about: levels of one token mean nothing under another."""
    return f"{scene.key} {_empty(scene.plan).to_text(scene.sliders)}"


@dataclass(frozen=True)
class Commit:
    """What a reader set since the last commit that was answered: a browser's words, checked."""

    number: int
    scene: str  # the token of the sliders that were set
    levels: Mapping[str, int]  # slider -> sparsity in whole per cent
    locks: Mapping[str, bool]  # slider -> whether presets leave it alone

    @classmethod
    def read(cls, message: Any) -> Self:
        """The commit in a message of the component.

        Raises:
            RecipeError: the message is not one of the component.
        """
        match message:
            case {"commit": int(number), "scene": str(scene), "levels": dict(levels), "locks": dict(locks)}:
                whole = all(type(level) is int and 0 <= level <= 100 for level in levels.values())
                if whole and all(type(lock) is bool for lock in locks.values()):
                    return cls(number, scene, levels, locks)
        raise RecipeError("live bars: a commit must hold levels from 0 to 100 and locks, got something else")

    def moved(self, plan: Plan) -> Plan:
        """`plan` with the sliders where they were set."""
        set_ = {name: level / 100 for name, level in self.levels.items()}
        return replace(plan, sparsities=tuple((dict(plan.sparsities) | set_).items()))

    def locked(self, names: frozenset[str]) -> frozenset[str]:
        """The locked sliders `names`, with the locks that were set or lifted."""
        lifted = {name for name, lock in self.locks.items() if not lock}
        return (names | self.locks.keys()) - lifted


def _commit(scene: Scene) -> None:
    """Take over what the reader set; what was meant for other sliders has been overtaken and is left."""
    states.act()
    held = states.state()
    try:
        commit = Commit.read(st.session_state[KEY]["commit"])
        held.kept["commit"] = commit.number
        if engine.chosen() != scene.key:
            return
        plan = controls.current(scene)
        if commit.scene == token(replace(scene, plan=plan)):
            controls.save(scene, commit.moved(plan))
            held.locked = commit.locked(held.locked)
    except UserError as error:
        held.notice = str(error)


def _prediction(scene: Scene, answer: Answer) -> dict[str, Any] | None:
    """What the browser predicts with, from `answer` on; None until there is an atlas."""
    atlas = surveys.survey(scene.key, scene.plan).complete
    return atlas and Prediction.of(atlas).to_dict(Anchor(answer.plan, answer.accuracy))


def _empty(plan: Plan) -> Plan:
    """The same question and criterion, with nothing removed."""
    return replace(plan, sparsities=())


def _levels(scene: Scene, plan: Plan) -> list[int]:
    """Sparsities of the sliders in whole per cent."""
    levels = dict(plan.sparsities)
    return [round(100 * levels.get(slider.name, 0.0)) for slider in scene.sliders]


def _labels(question: str) -> dict[str, str]:
    """Which of the costs the browser reckons: removed channels are gone, zeros are only counted out."""
    if question == "remove":
        return {"weights": "Weights", "macs": "MACs per picture"}
    return {"weights": "Nonzero weights, biases aside", "macs": "MACs, zeros skipped in theory"}
