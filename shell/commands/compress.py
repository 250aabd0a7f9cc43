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
    Device,
    Figures,
    Indices,
    Json,
    Model,
    OutFolder,
    Preset,
    Seed,
    SplitOption,
    Threads,
    Weights,
)


def compress(
    model: Model,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Name of a method; its options follow")],
    preset: Preset = None,
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    seed: Seed = 0,
    out: OutFolder = None,
    attribution: Attributions = None,
    indices: Indices = None,
    count: Count = 16,
    figures: Figures = False,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Apply one method; compare before and after."""
    from core.recipe import COMPRESSORS, Recipe

    use_threads(threads)
    step = read_method(COMPRESSORS, method, settings, preset)
    recipe = Recipe((step,), seed)
    loaded = load(model, data, weights)
    carry_out(loaded, recipe, split, out, attribution, indices, count, figures, device, as_json)
