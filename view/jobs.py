"""Recipes that train, carried out by processes of their own: begun, watched, cancelled, found again."""

from html import escape

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


def order(scene: Scene, recipe: Recipe) -> Order:
    """What a worker needs to know to carry `recipe` out on the network of `scene`."""
    found = engine.shelf()[scene.key]
    data = DATASETS[found.dataset]().to_dict()
    device = states.state().kept.get("device", "cpu")
    return Order(found.model.to_dict(), data, str(found.path), recipe.to_json(), device)


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


def begin(scene: Scene, recipe: Recipe) -> None:
    """Callback: have it carried out; page and browser may be left meanwhile."""
    states.act()
    jobs().submit(order(scene, recipe))


def outcome(scene: Scene, recipe: Recipe) -> Outcome | None:
    """What came of `recipe`; until then, how far it is, or a word on how to begin."""
    job = jobs().get(order(scene, recipe))
    if job is None:
        st.info("A recipe that trains takes its time: press Carry out. The page may be left meanwhile.")
        return None
    status = job.status
    if not status.over:
        _watch(job)
        return None
    if status.state in ("failed", "lost"):
        st.error(f"{status.problem}.".replace("..", "."), icon=":material/error:")
        _progress(status)
        figures.show(curves(job.history), "watched")
        return None
    if status.state == "cancelled":
        st.warning(
            "Cancelled. What there was by then is shown; Carry out begins anew.", icon=":material/stop:"
        )
        if not (job.folder / "report.json").exists():
            return None
    return _finished(job.id, status.ended)


@shared(6)
def _finished(job: str, ended: float) -> Outcome:
    """What came of a job that ended at that time: begun again, it is another."""
    return Job(jobs().directory / job).outcome()


def _watch(job: Job) -> None:
    """Progress, time left and curves, drawn anew while it runs."""

    @st.fragment(run_every=POLL_S)
    def watch() -> None:
        status = job.status
        if status.over:
            st.rerun(scope="app")
        _progress(status)
        stopping = status.state == "stopping"
        st.button("Cancel", icon=":material/stop:", on_click=job.cancel, key="job.cancel", disabled=stopping)
        figures.show(curves(job.history), "watched")

    watch()


def _progress(status: Status) -> None:
    left = f" · about {_duration(status.remaining_s)} left" if status.remaining_s is not None else ""
    spent = f" · {_duration(status.seconds)} so far" if status.began and not status.over else ""
    st.progress(status.fraction, f"{status.message}{spent}{left}")


def earlier(scene: Scene) -> None:
    """Runs of this network, newest first; each brings its recipe back, and with it its result."""
    mine = str(engine.shelf()[scene.key].path)
    found = [job for job in jobs() if job.order.weights == mine][:LISTED]
    if not found:
        return
    with st.expander(f"Runs of this network ({len(found)})", on_change=states.act, key="runs"):
        for job in found:
            recipe, status = job.order.read_recipe(), job.status
            with st.container(horizontal=True, vertical_alignment="center"):
                st.button("Show", key=f"run.{job.id}", on_click=_show, args=(recipe,))
                words = {"help": "Forget this run and its files", "disabled": not status.over}
                st.button("Forget", key=f"forget.{job.id}", on_click=_forget, args=(job,), **words)
                st.html(_line(recipe, status))


def _line(recipe: Recipe, status: Status) -> str:
    steps = escape(" → ".join(step.label() for step in recipe.steps))
    how = percent(status.fraction, 0) if status.state == "running" else STATES[status.state]
    return f'<div class="ps-status"><b>{steps}</b> · seed {recipe.seed} · {escape(how)}</div>'


def _show(recipe: Recipe) -> None:
    states.change(steps=steps_to_text(recipe.steps), seed=recipe.seed)


def _forget(job: Job) -> None:
    states.act()
    jobs().remove(job)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
