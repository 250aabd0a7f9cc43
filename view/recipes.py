"""A recipe put together step by step on the Methods page, and carried out when it is asked for."""

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from core.errors import UserError
from core.layers import prunable
from core.outcome import Outcome
from core.recipe import COMPRESSORS, Compressor, Recipe
from view import carried, forms, jobs
from view import state as states
from view.engine import Scene
from view.progress import visible_run
from view.url import HIGHEST, steps_from_text, steps_to_text

FIRST = "low-rank"  # what a newcomer meets: the network gets smaller, and no channel is lost
MOST = 6  # steps


def current() -> Recipe:
    """The recipe of the present nouns; the default, and a notice, where they name none."""
    nouns = states.state().nouns
    try:
        steps = steps_from_text(nouns.steps, COMPRESSORS)
    except UserError as error:
        states.state().notice = str(error)
        states.state().history.now = replace(nouns, steps="")
        steps = ()
    return Recipe(steps or (COMPRESSORS[FIRST](),), nouns.seed)


def editor(scene: Scene) -> None:
    """The steps as tabs, and the form of the one that is looked at."""
    steps = current().steps
    index = min(st.session_state.get("step") or 0, len(steps) - 1)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        if len(steps) > 1:
            forms.held("step", index)
            st.segmented_control(
                "Steps, in order",
                range(len(steps)),
                format_func=lambda each: f"{each + 1} · {steps[each].label()}",
                key="step",
                required=True,
                on_change=states.act,
            )
            st.button("Remove this step", icon=":material/remove:", on_click=_remove, args=(index,))
        st.button(
            "Add a step",
            icon=":material/add:",
            on_click=_add,
            disabled=len(steps) >= MOST,
            help="Steps follow one another: prune, then train, then prune again",
        )

    def save(step: Compressor) -> None:
        _save((*steps[:index], step, *steps[index + 1 :]))

    def get() -> Compressor:
        return current().steps[min(index, len(current().steps) - 1)]

    forms.pick("Method", COMPRESSORS, get, save, "recipe.method")
    forms.about(steps[index])
    forms.configure(get, save, f"recipe.{index}", list(prunable(scene.bundle.module)))


def _save(steps: Sequence[Compressor]) -> None:
    states.change(steps=steps_to_text(steps))


def _add() -> None:
    steps = current().steps
    st.session_state["step"] = len(steps)
    _save((*steps, COMPRESSORS["fine-tuning"]()))


def _remove(index: int) -> None:
    steps = current().steps
    st.session_state["step"] = max(0, index - 1)
    _save((*steps[:index], *steps[index + 1 :]))


def seed() -> None:
    """Of all random numbers of the recipe."""
    forms.held("recipe.seed", states.state().nouns.seed)
    st.number_input(
        "Seed",
        0,
        HIGHEST,
        step=1,
        key="recipe.seed",
        on_change=lambda: states.change(seed=st.session_state["recipe.seed"]),
        help="Where random numbers start: equal recipes with equal seeds give equal networks",
    )


def begin(scene: Scene) -> None:
    """Callback: carry out the present recipe, here or, if it trains, in a process of its own."""
    states.act()
    if (recipe := current()).trains():
        jobs.begin(jobs.order(scene, recipe))
    else:
        states.state().kept["recipe"] = (scene.key, recipe)
        states.state().kept.pop("carrying", None)


def outcome(scene: Scene) -> Outcome | None:
    """What came of the recipe; until there is something, what to do or how far it is."""
    if (recipe := current()).trains():
        return jobs.outcome(scene, recipe)
    asked = _asked(scene)
    if asked is None:
        st.info("Choose a method and its settings, then press Carry out. Anything you do meanwhile stops it.")
        return None
    return _carry_out(scene, asked)


def _asked(scene: Scene) -> Recipe | None:
    """The recipe to show: the one asked for last, or the one that a link brought."""
    kept = states.state().kept
    if kept.pop("carrying", None):  # the last run was interrupted while it worked: that is how to stop it
        kept.pop("recipe", None)
    if "recipe" not in kept and states.state().nouns.steps and not kept.get("visited"):
        kept["recipe"] = (scene.key, current())
    kept["visited"] = True
    key, recipe = kept.get("recipe") or (None, None)
    return recipe if key == scene.key else None


def _carry_out(scene: Scene, recipe: Recipe) -> Outcome:
    """`carried.carry_out` with a bar; whatever the reader does meanwhile stops it."""
    kept = states.state().kept
    kept["carrying"] = True
    try:
        with visible_run("Carrying out") as run:
            found = carried.carry_out(scene.key, recipe, run=run)
    except UserError:
        kept.pop("recipe", None)
        kept.pop("carrying")
        raise
    kept.pop("carrying")
    return found
