"""Measuring one network."""

from shell.loading import load, use_threads
from shell.output import print_json, print_table, run_with_progress
from shell.parameters import Data, Json, Model, SplitOption, Threads, Weights


def evaluate(
    model: Model,
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a network: accuracy, costs, size."""
    from core.evaluation import evaluate as measure

    use_threads(threads)
    bundle, dataset = load(model, data, weights)
    result = measure(bundle.module, dataset.split(split), run_with_progress())
    if as_json:
        named = {"model": bundle.architecture.name, "data": dataset.name, "split": split}
        return print_json(named | result.to_dict())
    print(f"{bundle.architecture.name} on {dataset.name}, {split}")
    return print_table([result])
