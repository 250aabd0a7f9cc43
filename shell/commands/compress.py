"""One method, before and after."""

from typing import Annotated, Any

import typer

from shell.carrying import carry_out
from shell.loading import load, use_threads
from shell.options import read_method
from shell.parameters import (
    Attributions,
    Count,
    Data,
    Figures,
    Indices,
    Json,
    Model,
    OutFolder,
    Seed,
    SplitOption,
    Threads,
    Weights,
)


def compress(
    model: Model,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Name of a method; its options follow")],
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    seed: Seed = 0,
    out: OutFolder = None,
    attribution: Attributions = None,
    indices: Indices = None,
    count: Count = 16,
    figures: Figures = False,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Apply one method; compare before and after."""
    from core.recipe import COMPRESSORS, Recipe

    use_threads(threads)
    step = read_method(COMPRESSORS, method, settings)
    recipe = Recipe((step,), seed)
    carry_out(load(model, data, weights), recipe, split, out, attribution, indices, count, figures, as_json)
