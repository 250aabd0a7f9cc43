"""Linear neurons: what it costs to treat neurons as linear that are active most of the time."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from core.bundles import DATASETS, Setting, Split
from core.errors import UnsupportedModelError
from core.evaluation import correct, logits
from core.figure import Figure, Reference
from core.lab import LABS, Lab
from core.linearity import Activity, Chain, Rule, Sizes, decide, merge_chain, observe, require_chains
from core.method import choice, number
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run
from core.training import Classification, Schedule, fit

THRESHOLDS = [round(1 - 0.05 * step, 2) for step in range(20)]
WIDTHS = (64, 64, 128, 128, 256, 256, 10)  # of the network trained here, as in the source's code
ORDERS = {
    "merge": ("linearity",),
    "prune": ("prune-filters",),
    "prune, then merge": ("prune-filters", "linearity"),
    "merge, then prune": ("linearity", "prune-filters"),
}
SPARSITIES = (0.2, 0.4, 0.6)  # of every step of a combination


@LABS.register
@dataclass(frozen=True)
class LinearNeurons(Lab):
    """Neurons that almost never switch off are treated as linear: when does the network get smaller?

    The threshold is the share of the pictures on which a neuron must be active to count as linear. It
    falls from 100 % to 5 %. Folding linear neurons of a layer into the next one adds a shortcut, so
    with rule "any", one linear neuron is enough, the network first grows; with rule "best" a layer is
    merged where that saves numbers. Last, merging and removing neurons of small weights (prune-filters)
    are combined in either order, without any training. Neurons are watched on training pictures,
    accuracy is that on validation pictures. A network without linear layers in a row gives way to a
    multi-layer perceptron that is trained here on 8 x 8 digits.

    Source: Dobler and Lemmerich, "Linearity-based Neural Network Compression", 2025, arXiv:2506.21146.
    """

    name: ClassVar[str] = "linear-neurons"

    network: str = choice(
        "chosen",
        "digits",
        help="The network that was chosen, if it has linear layers in a row, or one for digits",
    )
    images: int = number(
        1000,
        50,
        10000,
        50,
        help="Training pictures that are watched, and validation pictures that are classified",
    )
    epochs: int = number(10, 1, 50, 1, help="Passes over the digits, where a network is trained here")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        with run.step(0, 3):
            setting = self._subject(setting, run)
        held_out = setting.validation.take(slice(0, self.images))
        # What neurons are watched on must not be what accuracy is measured on.
        setting = replace(setting, validation=setting.train.take(slice(0, self.images)))
        with run.step(1, 3):
            sweep = _sweep(setting, held_out, run)
        with run.step(2, 3):
            combined = _combine(setting, held_out, run)
        return _sizes(sweep), _accuracies(sweep), _errors(sweep), _orders(combined)

    def _subject(self, setting: Setting, run: Run) -> Setting:
        """The chosen network with its pictures, or one trained here on digits."""
        if self.network == "chosen":
            try:
                require_chains(self.name, setting.teacher)
            except UnsupportedModelError:
                pass
            else:
                return setting
        data = DATASETS["digits"]().load()
        model = nn.Sequential(nn.Flatten(), nn.Linear(*WIDTHS[:2]))
        for size in pairwise(WIDTHS[1:]):
            model.extend([nn.ReLU(), nn.Linear(*size)])
        schedule = Schedule(
            epochs=self.epochs,
            learning_rate=1e-3,
            schedule="constant",
            optimizer="adamw",
            batch_size=32,
            weight_decay=0.0,
            crop=0,
            flip=False,
        )
        fit(model, data.train, Classification(), schedule, run)
        return Setting(data.train, data.validation, model)


def _sweep(setting: Setting, held_out: Split, run: Run) -> pd.DataFrame:
    """Threshold and rule -> size of the chains, accuracy, error of the logits."""
    model = setting.teacher
    chains = require_chains(LinearNeurons.name, model)
    with run.step(0, 2):
        activities = observe(LinearNeurons.name, model, chains, setting.validation, run)
    pairs = list(zip(chains, activities, strict=True))
    before, original = sum(Sizes.of(chain.layers).stored for chain in chains), logits(model, held_out)
    rows = []
    with run.step(1, 2):
        for threshold in run.track(THRESHOLDS, "Lowering the threshold"):
            for rule in ("any", "best"):
                network, after = _merged(model, pairs, threshold, Rule(rule))
                answers = logits(network, held_out)
                row = {"threshold": threshold, "rule": rule, "size": after / before}
                row["accuracy"] = _accuracy(answers, held_out)
                row["error"] = ((answers - original).abs().mean() / original.abs().mean()).item()
                rows.append(row)
    return pd.DataFrame(rows).assign(original=_accuracy(original, held_out))


def _merged(
    model: nn.Module, pairs: Sequence[tuple[Chain, Activity]], threshold: float, rule: Rule
) -> tuple[nn.Module, int]:
    """A copy of `model` with its linear neurons merged, and the numbers that are stored for its chains."""
    network, numbers = copy.deepcopy(model), 0
    for chain, activity in pairs:
        linear = [rates >= threshold for rates in activity.rates]
        dead = [torch.zeros_like(mask) for mask in linear]
        counts = [int(mask.sum()) for mask in linear]
        sizes, decisions = decide(Sizes.of(chain.layers), counts, [0] * len(dead), rule)
        chain.put(network, merge_chain(chain.layers, linear, dead, decisions))
        numbers += sizes.stored
    return network, numbers


def _combine(setting: Setting, held_out: Split, run: Run) -> pd.DataFrame:
    """Order and sparsity of each step -> what is left of the network, and its accuracy."""
    before = sum(value.numel() for value in setting.teacher.parameters())
    rows = []
    for order in run.track(ORDERS, "Combining with pruning"):
        for sparsity in SPARSITIES:
            recipe = Recipe(tuple(COMPRESSORS[name](sparsity=sparsity) for name in ORDERS[order]))
            network = compress(setting.teacher, setting, recipe).model
            size = sum(value.numel() for value in network.parameters()) / before
            rows.append(
                {"order": order, "size": size, "accuracy": _accuracy(logits(network, held_out), held_out)}
            )
    return pd.DataFrame(rows)


def _accuracy(answers: Tensor, split: Split) -> float:
    return correct(answers, split.labels).float().mean().item()


def _sizes(sweep: pd.DataFrame) -> Figure:
    every, best = sweep[sweep.rule == "any"], sweep[sweep.rule == "best"]
    largest, smallest = every.loc[every["size"].idxmax()], best.loc[best["size"].idxmin()]
    saving = best[best["size"] < 1].threshold
    first = f"saves from a threshold of {saving.max():.0%} on" if len(saving) else "saves nothing"
    finding = (
        f"Merging every linear neuron takes the linear layers to {largest['size']:.0%} of their size at a "
        f"threshold of {largest.threshold:.0%}. With rule best, merging {first}; the smallest "
        f"size is {smallest['size']:.0%}."
    )
    return Figure(
        "First larger, then smaller",
        finding,
        sweep,
        "threshold",
        "size",
        colour="rule",
        percent=frozenset({"threshold", "size"}),
        labels=_LABELS,
        references=(Reference("y", 1.0, "original"),),
    )


def _accuracies(sweep: pd.DataFrame) -> Figure:
    original = sweep.original.iloc[0]
    best = sweep[sweep.rule == "best"]
    kept = best[best.accuracy >= original - 0.02].sort_values("size").head(1)
    enough = [
        f"{row['size']:.0%} of the numbers in linear layers are enough for {row.accuracy:.1%}, at most two "
        f"points below the original's {original:.1%}: at a threshold of {row.threshold:.0%}"
        for _, row in kept.iterrows()
    ]
    finding = (
        f"With rule best, {enough[0] if enough else 'all thresholds cost more than two points'}. "
        f"At 5 %, {best['size'].iloc[-1]:.0%} of the numbers are left, and {best.accuracy.iloc[-1]:.1%}."
    )
    return Figure(
        "Accuracy by size",
        finding,
        sweep,
        "size",
        "accuracy",
        colour="rule",
        percent=frozenset({"size", "accuracy"}),
        labels=_LABELS,
        references=(Reference("y", original, "original"),),
    )


def _errors(sweep: pd.DataFrame) -> Figure:
    best = sweep[sweep.rule == "best"]
    large = best[best.error > 0.1]
    where = f"from a threshold of {large.threshold.max():.0%} on" if len(large) else "nowhere"
    finding = (
        f"With rule best, logits are off by more than 10 % of their mean size {where}; at a threshold of 5 % "
        f"they are off by {best.error.iloc[-1]:.0%}."
    )
    return Figure(
        "Error of the logits",
        finding,
        sweep,
        "threshold",
        "error",
        colour="rule",
        percent=frozenset({"threshold", "error"}),
        labels=_LABELS,
    )


def _orders(combined: pd.DataFrame) -> Figure:
    small = combined.loc[combined.groupby("order", sort=False)["size"].idxmin()]
    ends = ", ".join(f"{row.accuracy:.1%} at {row['size']:.0%} ({row.order})" for _, row in small.iterrows())
    return Figure(
        "Merging and pruning, in either order",
        f"Without any training, at a sparsity of {max(SPARSITIES):.0%} per step: {ends} of the network.",
        combined,
        "size",
        "accuracy",
        colour="order",
        percent=frozenset({"size", "accuracy"}),
        labels={"size": "parameters of the network", "accuracy": "accuracy on validation pictures"},
    )


_LABELS = {
    "threshold": "active on at least this share of pictures",
    "size": "parameters in linear layers",
    "accuracy": "accuracy on validation pictures",
    "error": "mean change of a logit, of their mean size",
}
