"""A plan's time in fact."""

from typing import Annotated

import typer

from shell.loading import load, use_threads
from shell.output import print_json, print_latency
from shell.parameters import Data, Json, Model, Threads, Weights


def latency(
    model: Model,
    sparsity: Annotated[float, typer.Option(min=0, max=1, help="Of every slider")] = 0.5,
    question: Annotated[
        str, typer.Option(help="What the sliders take away, as on the Prune page")
    ] = "remove",
    plan: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instead of both: a plan, as the app's links carry it")
    ] = None,
    data: Data = None,
    weights: Weights = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each network has")] = 7,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time a plan in fact: original, zeros only, removed."""
    from core.plan import Plan
    from core.realised import realised
    from core.sliders import Sliders

    use_threads(threads)
    bundle, dataset = load(model, data, weights)
    sliders = Sliders(bundle, dataset)
    if plan is None:
        chosen = sliders.preset("uniform", question, None, sparsity)
    else:
        chosen = Plan.from_text(plan, sliders.sliders)
    found = realised(sliders, chosen, dataset.test.take(slice(batch)).images, rounds)
    if as_json:
        named = {"model": bundle.architecture.name, "data": dataset.name}
        text = chosen.to_text(sliders.sliders)
        rows = found.table.to_dict("records")
        return print_json({**named, "plan": text, "forms": rows, "no_removed_form": found.why})
    return print_latency(found)
