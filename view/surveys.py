"""Atlases made in the background: one for each network, question and criterion, for all readers."""

from collections.abc import Callable
from dataclasses import replace

import streamlit as st

from core.plan import Plan
from core.survey import Survey
from view import engine
from view import state as states
from view.charts import percent
from view.shared import shared

ENOUGH = 400  # images for predictions: adding up sliders errs by more than so few images do
POLL_S = 1.5  # between two looks at a survey that runs


def survey(key: str, plan: Plan) -> Survey:
    """The survey of a network for the question and criterion of `plan`; begun when first asked for."""
    return _holder(key, replace(plan, sparsities=()))[0]


def again(key: str, plan: Plan) -> None:
    """Begin anew where it was stopped."""
    states.act()
    about = replace(plan, sparsities=())
    _holder(key, about)[0] = _begin(key, about)


def watching(survey: Survey) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Decorator of a part of a page that is drawn again now and then while `survey` runs."""
    running = survey.running

    def decorate(draw: Callable[[], None]) -> Callable[[], None]:
        @st.fragment(run_every=POLL_S if running else None)
        def drawn() -> None:
            over = running and not survey.running
            draw()
            if over:
                st.rerun()  # without the clock

        return drawn

    return decorate


def status(survey: Survey, whole: int) -> str:
    """How far it is, as HTML."""
    if survey.problem:
        words = str(survey.problem)
    elif survey.atlas is None:
        words = "Measuring the first pictures" if survey.running else "stopped before the first was measured"
    elif survey.atlas.exact:
        words = f"exact on all {whole:,} test pictures"
    else:
        words = f"on {survey.atlas.n:,} of {whole:,} test pictures"
        words += f", {percent(survey.fraction, 0)} done" if survey.running else ", stopped"
    return f'<div class="ps-status" role="status">{words}</div>'


@shared(32)
def _holder(key: str, about: Plan) -> list[Survey]:
    return [_begin(key, about)]


def _begin(key: str, about: Plan) -> Survey:
    found = engine.whatif(key)
    return Survey(lambda run: found.atlas(about.question, about.criterion, run), pause=ENOUGH)
