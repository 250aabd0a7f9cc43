"""The three nouns above every page: which network, which plan, which picture; and the way back."""

from html import escape

import streamlit as st

from core.plan import QUESTIONS
from view import engine
from view import state as states
from view.charts import percent
from view.copy_link import copy_link
from view.engine import Scene
from view.forms import held


def draw() -> None:
    """Model, plan and picture, then Undo, Redo, Reset and Copy link."""
    scene = engine.scene()
    with st.container(horizontal=True, vertical_alignment="bottom", key="nouns"):
        _model(scene)
        st.html(_plan(scene), width="content")
        _picture(scene)
        _ways_back()


def _model(scene: Scene) -> None:
    held("noun.model", scene.key)
    st.selectbox(
        "Network",
        list(engine.shelf()),
        format_func=engine.title,
        key="noun.model",
        width=330,
        on_change=lambda: states.change(model=st.session_state["noun.model"], plan="", image=0),
        help="A trained network and the pictures it was trained on",
    )


def _plan(scene: Scene) -> str:
    return f'<div class="ps-noun"><small>Plan</small><b>{escape(words(scene))}</b></div>'


def words(scene: Scene) -> str:
    """The plan in a few words: "Remove channels · Filter L2 · uniform 50 %"."""
    plan, levels = scene.plan, {scene.plan.sparsity(slider.name) for slider in scene.sliders}
    if scene.untouched:
        return "nothing removed"
    if len(levels) == 1:
        amount = f"uniform {percent(levels.pop(), 0)}"
    elif len(plan.sparsities) == 1:
        name, level = plan.sparsities[0]
        amount = f"{name} {percent(level, 0)}"
    else:
        amount = f"{len(plan.sparsities)} of {len(scene.sliders)} sliders, up to {percent(max(levels), 0)}"
    return f"{QUESTIONS[plan.question].label} · {plan.criterion.label()} · {amount}"


def _picture(scene: Scene) -> None:
    held("noun.image", scene.image)
    st.number_input(
        f"Picture, class {scene.label(scene.image)}",
        0,
        len(scene.split) - 1,
        step=1,
        key="noun.image",
        width=170,
        on_change=lambda: states.change(image=st.session_state["noun.image"]),
        help=f"Position among the {len(scene.split):,} test pictures; its true class stands above",
    )


def _ways_back() -> None:
    history = states.state().history
    st.button("Undo", icon=":material/undo:", on_click=states.undo, disabled=not history.past, key="undo")
    st.button("Redo", icon=":material/redo:", on_click=states.redo, disabled=not history.future, key="redo")
    st.button(
        "Reset",
        icon=":material/restart_alt:",
        on_click=states.reset,
        disabled=not states.state().nouns.plan,
        key="reset",
        help="Back to the untouched network; Undo comes back here",
    )
    with st.container(width="content"):
        copy_link(key="copy_link")
