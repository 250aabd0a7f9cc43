"""A small experiment, and what it shows."""

from typing import Annotated, Any

import typer

from shell.loading import load, setting, use_threads
from shell.options import read_method
from shell.output import print_figures, print_json, run_with_progress
from shell.parameters import Data, Json, Seed, Threads, Weights


def lab(
    name: Annotated[str, typer.Argument(metavar="LAB", help="Name of an experiment; its options follow")],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Network it looks at; default: the first shipped one")
    ] = None,
    data: Data = None,
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Make a small experiment that shows one idea."""
    from core.lab import LABS
    from core.run import seeded
    from core.weights import DEFAULT

    use_threads(threads)
    experiment = read_method(LABS, name, settings)
    network, shipped_for = DEFAULT if model is None else (model, None)
    bundle, dataset = load(network, data or shipped_for, weights)
    run = run_with_progress()
    with seeded(seed, run):
        figures = experiment.figures(setting(bundle, dataset), run)
    if as_json:
        named = {"lab": experiment.to_dict(), "model": bundle.architecture.name, "data": dataset.name}
        return print_json(named | {"figures": [figure.to_dict() for figure in figures]})
    print(experiment.summary())
    return print_figures(figures)
