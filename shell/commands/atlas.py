"""Every slider alone."""

from typing import Annotated

import typer

from shell.loading import load
from shell.output import print_atlas, print_json, run_with_progress
from shell.parameters import Data, Json, Model, SplitOption, Weights


def atlas(
    model: Model,
    question: Annotated[str, typer.Option(help="What a slider takes away, as on the Prune page")] = "remove",
    criterion: Annotated[
        str | None, typer.Option(metavar="NAME", help="What goes first; else the question's own")
    ] = None,
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    as_json: Json = False,
) -> None:
    """Move every slider alone through nine sparsities; see what each costs."""
    from core.whatif import WhatIf

    bundle, dataset = load(model, data, weights)
    progress = run_with_progress()
    with progress.step(0, 2):
        whatif = WhatIf(bundle, dataset, dataset.split(split), progress)
    with progress.step(1, 2):
        *_, found = whatif.atlas(question, criterion, progress)
    if as_json:
        named = {"model": bundle.architecture.name, "data": dataset.name, "split": split}
        return print_json(named | found.to_dict())
    print(f"{bundle.architecture.name} on {dataset.name}, {split}, n = {found.n:,}; {whatif.words}")
    return print_atlas(found)
