"""Every method side by side."""

from pathlib import Path
from typing import Annotated

import typer

from shell.loading import load, use_threads
from shell.output import print_json, print_standings, run_with_progress, say
from shell.parameters import Data, Json, Model, Threads, Weights


def leaderboard(
    model: Model,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Results, .jsonl; what is in it is not measured again")
    ] = None,
    data: Data = None,
    weights: Weights = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help="Only those with this in their label; may be repeated"),
    ] = None,
    trained: Annotated[
        bool, typer.Option("--trained", help="Methods that train, behind pruning alone or while they prune")
    ] = False,
    sparsity: Annotated[list[float] | None, typer.Option(min=0, max=1, help="May be repeated")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=99, help="How many, from 0 on")] = 3,
    images: Annotated[int, typer.Option(min=1, help="Test pictures for the accuracy, the first")] = 2000,
    explained: Annotated[int, typer.Option(min=1, help="Of these, explained pictures")] = 48,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare all methods over sparsities and seeds."""
    from core.bundles import cache_directory
    from core.figure import rows
    from core.leaderboard import SPARSITIES, Race, contestants

    use_threads(threads)
    bundle, dataset = load(model, data, weights)
    name = f"{bundle.architecture.name}--{dataset.name}{'--trained' * trained}.jsonl"
    path = out or cache_directory() / "leaderboards" / name
    words = [word.lower() for word in only or [""]]
    entries = [entry for entry in contestants(trained) if any(word in entry.label.lower() for word in words)]
    race = Race(bundle, dataset, path, images, explained)
    try:
        race.go(entries, sorted(set(sparsity or SPARSITIES)), range(seeds), run_with_progress())
    except KeyboardInterrupt:
        say(f"\nStopped; the same command goes on from {path}")
        raise
    if as_json:
        return print_json(race.board.about | {"file": str(path), "rows": rows(race.board.table)})
    print(
        f"{bundle.architecture.name} on {dataset.name}, test, n = {race.board.about['n']:,}; kept in {path}"
    )
    return print_standings(race.board)
