"""The Learn page: which experiment, with which settings, and what it shows."""

from dataclasses import replace

from core.errors import UserError
from core.lab import LABS, Lab
from view import carried, figures, forms
from view import state as states
from view.engine import Scene
from view.progress import visible_run
from view.url import method_from_text, method_to_text

FIRST = "lq-balls"  # at once on screen


def current() -> Lab:
    """The experiment of the present nouns; the default, and a notice, where they name none."""
    text = states.state().nouns.lab
    try:
        return method_from_text(text or FIRST, LABS)
    except UserError as error:
        states.state().notice = str(error)
        states.state().history.now = replace(states.state().nouns, lab="")
        return current()


def save(lab: Lab) -> None:
    states.change(lab=method_to_text(lab))


def controls() -> None:
    """The experiments by name, and the form of the chosen one."""
    forms.pick("Experiment", LABS, current, save, "lab")
    forms.about(current())
    forms.configure(current, save, "lab")


def results(scene: Scene) -> None:
    """The figures of the present experiment, made when they are first asked for."""
    lab = current()
    with visible_run(lab.label()) as run:
        found = carried.experiment(scene.key, lab, states.state().nouns.seed, run=run)
    figures.show(found, f"lab.{lab.name}")
