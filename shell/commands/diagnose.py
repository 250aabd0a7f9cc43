"""What a method changed inside a network."""

import json
from typing import Annotated, Any

import typer

from shell.loading import load, setting, use_threads
from shell.options import read_method
from shell.output import print_json, run_with_progress
from shell.parameters import Data, Json, Model, Seed, Threads, Weights


def diagnose(
    model: Model,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Name of a method; its options follow")],
    diagnostic: Annotated[
        str, typer.Option(metavar="NAME|JSON", help="What is looked at inside: see list diagnostics")
    ] = "weight-change",
    data: Data = None,
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Apply one method; compare the insides before and after."""
    from core.diagnosis import DIAGNOSTICS
    from core.figure import rows
    from core.recipe import COMPRESSORS, Recipe
    from core.recipe import compress as carry_out
    from core.run import seeded

    use_threads(threads)
    recipe = Recipe((read_method(COMPRESSORS, method, settings),), seed)
    looks = read_method(DIAGNOSTICS, diagnostic)
    bundle, dataset = load(model, data, weights)
    seen, run = setting(bundle, dataset), run_with_progress()
    with run.step(0, 2):
        compressed = carry_out(bundle.module, seen, recipe, run).model
    with run.step(1, 2), seeded(seed, run):
        table = looks.measure(bundle.module, compressed, seen, run)
    if as_json:
        named = {"model": bundle.architecture.name, "data": dataset.name, "diagnostic": looks.to_dict()}
        named["recipe"] = json.loads(recipe.to_json())
        return print_json(named | {"rows": rows(table)})
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for figure in looks.figures(table):
        print(f"{figure.title}: {figure.finding}")
    return None
