"""Recipes that train, and proofs, in processes of their own: begun, watched, cancelled, found again."""

from collections.abc import Callable
from html import escape
from typing import Any

import streamlit as st

from core.bundles import DATASETS
from core.jobs import Job, Jobs, Order, Status
from core.outcome import Outcome
from core.recipe import Recipe
from core.run import devices
from view import engine, figures
from view import state as states
from view.charts import percent
from view.engine import Scene
from view.forms import held
from view.history import curves
from view.shared import shared
from view.url import steps_to_text

POLL_S = 1.0
LISTED = 12
STATES = {
    "waiting": "waiting",
    "running": "running",
    "stopping": "stopping",
    "done": "done",
    "cancelled": "cancelled; what there was by then is kept",
    "failed": "failed",
    "lost": "lost",
}


@shared()
def jobs() -> Jobs:
    return Jobs()


def order(scene: Scene, recipe: Recipe, task: str = "recipe", **asks: Any) -> Order:
    """What a worker needs to know to carry `recipe` out on the network of `scene`, or to prove of it."""
    found = engine.shelf()[scene.key]
    data = DATASETS[found.dataset]().to_dict()
    device = states.state().kept.get("device", "cpu") if task == "recipe" else "cpu"
    return Order(found.model.to_dict(), data, str(found.path), recipe.to_json(), device, task=task, asks=asks)


def device() -> None:
    """Where to train, for those who have a choice."""
    if len(devices()) == 1:
        return
    kept = states.state().kept
    held("device", kept.get("device", "cpu"))

    def choose() -> None:
        states.act()
        kept["device"] = st.session_state["device"]

    st.selectbox("Train on", devices(), key="device", on_change=choose)


def begin(order: Order) -> None:
    """Callback: have it carried out; page and browser may be left meanwhile."""
    states.act()
    jobs().submit(order)


def outcome(scene: Scene, recipe: Recipe) -> Outcome | None:
    """What came of `recipe`; until then, how far it is, or a word on how to begin."""
    job = jobs().get(order(scene, recipe))
    if job is None:
        st.info("A recipe that trains takes its time: press Carry out. The page may be left meanwhile.")
        return None
    if not over(job, "job", "Carry out", lambda: figures.show(curves(job.history), "watched")):
        return None
    return _finished(job.id, job.status.ended) if (job.folder / "report.json").exists() else None


def finished(scene: Scene, recipe: Recipe) -> Outcome | None:
    """What came of `recipe`, if it was carried out to its end."""
    job = jobs().get(order(scene, recipe))
    done = job is not None and job.status.state == "done"
    return _finished(job.id, job.status.ended) if done else None


def over(job: Job, key: str, button: str, draw: Callable[[], None]) -> bool:
    """Has it ended in a way that leaves something? Else how far it is, or why it failed, with `draw` below.

    `button` is the one that begins it anew.
    """
    status = job.status
    if not status.over:
        _watch(job, key, draw)
        return False
    if status.state in ("failed", "lost"):
        st.error(f"{status.problem}.".replace("..", "."), icon=":material/error:")
        _progress(status)
        draw()
        return False
    if status.state == "cancelled":
        words = f"Cancelled. What there was by then is shown; {button} begins anew."
        st.warning(words, icon=":material/stop:")
    return True


@shared(6)
def _finished(job: str, ended: float) -> Outcome:
    """What came of a job that ended at that time: begun again, it is another."""
    return Job(jobs().directory / job).outcome()


def _watch(job: Job, key: str, draw: Callable[[], None]) -> None:
    """Progress, time left and what `draw` makes of it, anew while it runs."""

    @st.fragment(run_every=POLL_S)
    def watch() -> None:
        status = job.status
        if status.over:
            st.rerun(scope="app")
        _progress(status)
        stopping = status.state == "stopping"
        st.button(
            "Cancel", icon=":material/stop:", on_click=job.cancel, key=f"{key}.cancel", disabled=stopping
        )
        draw()

    watch()


def _progress(status: Status) -> None:
    left = f" · about {_duration(status.remaining_s)} left" if status.remaining_s is not None else ""
    spent = f" · {_duration(status.seconds)} so far" if status.began and not status.over else ""
    st.progress(status.fraction, f"{status.message}{spent}{left}")


def earlier(
    scene: Scene,
    title: str,
    tasks: tuple[str, ...],
    line: Callable[[Job], str],
    show: Callable[[Order], None],
) -> None:
    """Jobs of this network, newest first, each with its `line`; `show` brings an order's settings back."""
    mine = str(engine.shelf()[scene.key].path)
    found = [job for job in jobs() if job.order.weights == mine and job.order.task in tasks][:LISTED]
    if not found:
        return
    with st.expander(f"{title} of this network ({len(found)})", on_change=states.act, key=f"{tasks[0]}.runs"):
        for job in found:
            status = job.status
            with st.container(horizontal=True, vertical_alignment="center"):
                st.button("Show", key=f"run.{job.id}", on_click=show, args=(job.order,))
                words = {"help": "Forget this run and its files", "disabled": not status.over}
                st.button("Forget", key=f"forget.{job.id}", on_click=_forget, args=(job,), **words)
                how = percent(status.fraction, 0) if status.state == "running" else STATES[status.state]
                st.html(f'<div class="ps-status">{line(job)} · {escape(how)}</div>')


def recipes(scene: Scene) -> None:
    """Recipes that were carried out; each comes back, and with it its result."""
    earlier(scene, "Runs", ("recipe",), _line, _show)


def _line(job: Job) -> str:
    recipe = job.order.read_recipe()
    return f"<b>{steps(recipe)}</b> · seed {recipe.seed}"


def steps(recipe: Recipe) -> str:
    """ "Prune weights -> Fine-tuning", for HTML."""
    return escape(" → ".join(step.label() for step in recipe.steps))


def _show(order: Order) -> None:
    recipe = order.read_recipe()
    states.change(steps=steps_to_text(recipe.steps), seed=recipe.seed)


def _forget(job: Job) -> None:
    states.act()
    jobs().remove(job)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
