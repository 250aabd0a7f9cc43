"""Where a network looks, before and after."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from shell.loading import attributions, choose, load, make_folder, setting, use_threads
from shell.looking import look
from shell.options import read_method, read_recipe
from shell.output import print_agreement, print_json, run_with_progress
from shell.parameters import (
    Attributions,
    Count,
    Data,
    Indices,
    Json,
    Model,
    Seed,
    SplitOption,
    Threads,
    Weights,
)


def explain(
    model: Model,
    method: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", help="Method that compresses; its options follow")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A saved recipe instead of METHOD")
    ] = None,
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    attribution: Attributions = None,
    indices: Indices = None,
    count: Count = 16,
    bounds: Annotated[bool, typer.Option(help="Also the noise ceiling and the random floor")] = True,
    target: Annotated[
        Literal["predicted", "label"],
        typer.Option(help="Class explained: the original's answer, or the true one"),
    ] = "predicted",
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the maps into this .npz file")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Compare where the network looks, before and after."""
    import numpy as np

    from core.errors import ParameterError
    from core.recipe import COMPRESSORS, Recipe
    from core.recipe import compress as carry_out

    use_threads(threads)
    if (method is None) == (recipe is None):
        raise ParameterError("explain: name either a METHOD or a --recipe, to have a network to compare with")
    if method is not None:
        steps = Recipe((read_method(COMPRESSORS, method, settings),), seed)
    else:
        steps = read_recipe(recipe)
    bundle, dataset = load(model, data, weights)
    pictures = dataset.split(split)
    chosen = choose(indices, count, pictures)
    methods = attributions(attribution)
    progress = run_with_progress()
    compressed = carry_out(bundle.module, setting(bundle, dataset), steps, progress).model
    looked = look(bundle.module, compressed, pictures, chosen, methods, target, steps.seed, progress, bounds)
    if out is not None:
        path = out if out.suffix == ".npz" else out / "maps.npz"
        make_folder(path.parent)
        np.savez_compressed(path, **looked.maps)
    report = {
        "model": bundle.architecture.name,
        "data": dataset.name,
        "split": split,
        "n": len(chosen),
        "images": chosen,
        "target": target,
        "recipe": json.loads(steps.to_json()),
        "agreement": looked.agreement,
    }
    if as_json:
        return print_json(report)
    print(
        f"{bundle.architecture.name} on {dataset.name}, {split}, n = {len(chosen)} pictures; target: {target}"
    )
    return print_agreement(looked.agreement)
