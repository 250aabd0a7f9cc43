"""Every criterion on one trained network: seconds, accuracy after pruning, agreement with the truth.

    python -m bench criteria resnet20 --weights FILE --data cifar10 --layer layer2.1.conv1

prints one table. `seconds` is processor time of one ranking on one thread. Accuracy is top-1 on
the first test pictures without any training after the cut: "f" removes that share of every group's
filters, "w" sets that share of every layer's weights to zero. The truth of a filter is the increase
of the loss on validation pictures when it alone is silenced; agreement with it is Spearman's.
"""

import argparse
import time
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting, Split
from core.criterion import CRITERIA, Criterion, rank, sample
from core.evaluation import evaluate, logits
from core.layers import prunable
from core.methods.prune_filters import PruneFilters
from core.methods.prune_weights import PruneWeights
from core.recipe import Compressor, Recipe, compress
from core.run import seeded
from core.surgery import silence
from core.weights import load_dataset, load_model


def accuracies(model: nn.Module, setting: Setting, test: Split, steps: list[Compressor]) -> list[str]:
    models = [compress(model, setting, Recipe((step,))).model for step in steps]
    return [f"{100 * evaluate(pruned, test).accuracy:8.1f}" for pruned in models]


def truth(model: nn.Module, layer: str, split: Split) -> Tensor:
    """Increase of the mean loss (O,) when one filter of `layer` is silenced."""
    width = len(prunable(model)[layer].weight)
    losses = []
    for filter_ in range(-1, width):
        copied = compress(model, None, Recipe()).model
        if filter_ >= 0:
            silence(copied, {layer: torch.arange(width) != filter_}, split.images[:1])
        losses.append(F.cross_entropy(logits(copied, split), split.labels).item())
    return torch.tensor(losses[1:]) - losses[0]


def main(arguments: list[str] | None = None) -> None:
    description = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m bench criteria", description=description)
    parser.add_argument("model")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", default=None)
    parser.add_argument("--layer", nargs="+", default=[])
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bundle = load_model(options.model, options.data, options.weights)
    data = load_dataset(bundle.dataset)
    model, setting = bundle.module, Setting(data.train, data.validation, bundle.module)
    test = data.test.take(slice(0, options.images))
    with seeded(0):
        watched = sample(data.validation, options.images // 2)
    print(f"{options.model} on {data.name}: {100 * evaluate(model, test).accuracy:.1f} %, n = {len(test)}")
    truths = {layer: truth(model, layer, watched) for layer in options.layer}

    filters, weights = (0.1, 0.2, 0.3), (0.5, 0.7, 0.9)
    print(f"{'criterion':30}{'seconds':>8}", *(f"{f'-{100 * s:.0f}% f':>8}" for s in filters), end="")
    print("", *(f"{f'-{100 * s:.0f}% w':>8}" for s in weights), *(f"{layer:>16}" for layer in truths))
    criteria: list[Criterion] = [CRITERIA[name]() for name in CRITERIA] + [CRITERIA["taylor"](batch_size=1)]
    for criterion in criteria:
        start = time.process_time()
        scores = rank(criterion, model, setting, grain="filter").scores
        seconds = time.process_time() - start
        row = accuracies(
            model, setting, test, [PruneFilters(sparsity=s, criterion=criterion) for s in filters]
        )
        if criterion.grain == "weight":
            row += accuracies(
                model, setting, test, [PruneWeights(sparsity=s, criterion=criterion) for s in weights]
            )
        row += [" " * 8] * (len(filters) + len(weights) - len(row))
        row += [f"{spearmanr(scores[layer], truths[layer]).statistic:16.2f}" for layer in truths]
        name = criterion.name + (" (batch_size 1)" if getattr(criterion, "batch_size", 0) == 1 else "")
        print(f"{name:30}{seconds:8.2f}", *row, flush=True)
