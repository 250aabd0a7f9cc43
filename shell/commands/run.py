"""A saved recipe, before and after."""

from pathlib import Path
from typing import Annotated

import typer

from shell.carrying import carry_out
from shell.loading import load, use_threads
from shell.options import read_recipe
from shell.parameters import (
    Attributions,
    Count,
    Data,
    Device,
    Figures,
    Indices,
    Json,
    Model,
    OutFolder,
    SplitOption,
    Threads,
    Weights,
)


def run(
    model: Model,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="JSON file with steps and seed")],
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    out: OutFolder = None,
    attribution: Attributions = None,
    indices: Indices = None,
    count: Count = 16,
    figures: Figures = False,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Carry out a saved recipe; compare before and after."""
    use_threads(threads)
    steps = read_recipe(recipe)
    loaded = load(model, data, weights)
    carry_out(loaded, steps, split, out, attribution, indices, count, figures, device, as_json)
