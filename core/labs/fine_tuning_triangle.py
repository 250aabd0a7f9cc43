"""Fine-tuning triangle: original, pruned and fine-tuned, and how far they lie apart."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import DATASETS, MODELS, DatasetBundle, Setting, Split
from core.evaluation import correct, forward
from core.figure import Figure, histogram
from core.lab import LABS, Lab
from core.latent import GROUPS, RULES, ap2, ap2_relative, ap3_student, rank_correlation, rule_mask
from core.layers import apply_mask
from core.method import choice, flag, number
from core.run import Run
from core.training import Classification, Minimise, Schedule, fit

SPARSITIES = (0.1, 0.3, 0.5, 0.8)  # the paper's
BASE = Schedule(epochs=30, learning_rate=0.05, batch_size=64, crop=0, flip=False)
TUNING = Schedule(epochs=1, learning_rate=0.025, schedule="constant", batch_size=64, crop=0, flip=False)
BINS = 40


class Story(NamedTuple):
    """A layer pruned to one sparsity and fine-tuned."""

    epochs: pd.DataFrame  # one row per epoch, from 0: before fine-tuning
    keep: Tensor  # (O, I) bool
    corners: dict[str, Tensor]  # original, pruned and fine-tuned weights (O, I)


@LABS.register
@dataclass(frozen=True)
class FineTuningTriangle(Lab):
    """Does fine-tuning bring a pruned layer's weights back to where they were, as it does the accuracy?

    A perceptron of 64, 128 and 10 units learns the digits of 8 x 8 pixels; its last layer is pruned
    to four sparsities and fine-tuned with the mask held, alone (weights only) or with all others.
    Pruning moves the removed weights only and fine-tuning the others only: the two moves are at
    right angles, so AP2 from the original is the sum of both and cannot fall below what pruning
    made it. Changes of accuracy and loss are absolute, on digits that were not learned from.

    Source: Mozafari-Nia and Yasaei Sekeh, "Towards Explaining Deep Neural Network Compression
    Through a Probabilistic Latent Space", 2024, arXiv:2403.00155.
    """

    name: ClassVar[str] = "fine-tuning-triangle"

    rule: str = choice(*RULES, default="random", help="Which weights of the last layer go")
    epochs: int = number(10, 1, 50, 1, help="Passes over the digits after pruning")
    everything: bool = flag(False, help="Fine-tune all layers, not only the weights of the pruned one")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        stories = self.stories(run)
        return (
            self._epochs_figure(stories),
            *_sides_figures(stories),
            self._weights_figure(stories),
        )

    def stories(self, run: Run) -> dict[float, Story]:
        """Sparsity -> what became of a freshly trained network's last layer."""
        data = DATASETS["digits"]().load()
        network = MODELS["mlp"](depth=1).build(data.shape, len(data.classes))
        fit(network, data.train, Classification(), BASE, Run())
        return {
            sparsity: self._story(network, data, sparsity, run)
            for sparsity in run.track(SPARSITIES, "Pruning and fine-tuning")
        }

    def _story(self, network: nn.Sequential, data: DatasetBundle, sparsity: float, run: Run) -> Story:
        original, before = network[-1].weight, _score(network, data.validation)
        pruned = copy.deepcopy(network)
        keep = rule_mask(original, self.rule, sparsity)
        apply_mask(pruned[-1], keep)
        start = pruned[-1].weight.detach().clone()
        task = Classification() if self.everything else Minimise(_last_weight_loss)
        rows = [_row(0, original, pruned, data.validation, before)]
        for epoch in run.track(range(1, self.epochs + 1), "Fine-tuning"):
            fit(pruned, data.train, task, TUNING, Run())
            rows.append(_row(epoch, original, pruned, data.validation, before))
        corners = {"original": original, "pruned": start, "fine-tuned": pruned[-1].weight.detach().clone()}
        return Story(pd.DataFrame(rows), keep, corners)

    def _epochs_figure(self, stories: dict[float, Story]) -> Figure:
        quantities = {
            "ap2_relative": "AP2, of the squared norm",
            "accuracy_difference": "change of accuracy, fraction",
            "loss_difference": "change of the loss, nats",
        }
        parts = [
            story.epochs.rename(columns=quantities)
            .melt("epoch", list(quantities.values()), "quantity")
            .assign(sparsity=f"{sparsity:.0%}")
            for sparsity, story in stories.items()
        ]
        sparsity, last = list(stories.items())[-1]
        first, end = last.epochs.iloc[0], last.epochs.iloc[-1]
        along = {
            s: rank_correlation(t.epochs.ap2_relative, t.epochs.loss_difference) for s, t in stories.items()
        }
        signs = ", ".join(
            f"{value:.2f} at {sparsity:.0%}" for sparsity, value in along.items() if value == value
        )
        return Figure(
            "Distance and damage by epoch",
            f"Rule {self.rule}, {sparsity:.0%} gone: {end.epoch:.0f} epochs took the change of accuracy "
            f"from {100 * first.accuracy_difference:.1f} to {100 * end.accuracy_difference:.1f} points and "
            f"AP2 from {first.ap2_relative:.2f} to {end.ap2_relative:.2f} of the squared norm. Rank "
            f"correlation of AP2 and the change of the loss along the epochs: {signs or 'undefined'}.",
            pd.concat(parts, ignore_index=True),
            "epoch",
            "value",
            colour="sparsity",
            panel="quantity",
        )

    def _weights_figure(self, stories: dict[float, Story]) -> Figure:
        sparsity, (_, keep, corners) = list(stories.items())[-1]
        original = corners["original"]
        shown = {
            "removed": original[~keep],
            "kept": original[keep],
            "kept, fine-tuned": corners["fine-tuned"][keep],
        }
        energy = ap2_relative(original, corners["pruned"])
        spread = {name: values.std().item() for name, values in shown.items()}
        return Figure(
            "Weights",
            f"The {sparsity:.0%} of the weights that rule {self.rule} removed hold {energy:.1%} of the "
            f"squared norm. Fine-tuning took the standard deviation of the kept ones from "
            f"{spread['kept']:.3f} to {spread['kept, fine-tuned']:.3f}.",
            histogram(shown, BINS, "weights", "weight"),
            "weight",
            "share",
            colour="weights",
            percent=frozenset({"share"}),
            labels={"share": "share of these weights"},
        )


def _last_weight_loss(model: nn.Sequential, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of which only the last layer's weight has a gradient, so that nothing else moves."""
    with torch.no_grad():
        features = model[:-1](images)
    return F.cross_entropy(F.linear(features, model[-1].weight, model[-1].bias.detach()), labels)


def _score(network: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    logits = forward(network, split.images)
    return correct(logits, split.labels).float().mean().item(), F.cross_entropy(logits, split.labels).item()


def _row(
    epoch: int, original: Tensor, network: nn.Sequential, split: Split, before: tuple[float, float]
) -> dict:
    accuracy, loss = _score(network, split)
    return {
        "epoch": epoch,
        "ap2_relative": ap2_relative(original, network[-1].weight),
        "accuracy_difference": abs(accuracy - before[0]),
        "loss_difference": abs(loss - before[1]),
    }


def _sides(stories: dict[float, Story]) -> pd.DataFrame:
    """The three distances at every sparsity; AP2 is of the original's squared norm."""
    rows = []
    for sparsity, (_, _, corners) in stories.items():
        norm = corners["original"].double().square().sum().item()
        for a, b in (("original", "pruned"), ("pruned", "fine-tuned"), ("original", "fine-tuned")):
            ends = corners[a], corners[b]
            student = ap3_student(*ends, groups=GROUPS).value
            rows.append((f"{sparsity:.0%}", f"{a} to {b}", ap2(*ends) / norm, student))
    return pd.DataFrame(rows, columns=["sparsity", "side", "ap2_relative", "ap3_student"])


def _sides_figures(stories: dict[float, Story]) -> tuple[Figure, Figure]:
    table = _sides(stories)
    pruning, tuning, both = table.ap2_relative.iloc[-3:]
    student, _, after = table.ap3_student.iloc[-3:]
    squared = Figure(
        "Triangle of squared distances",
        f"At {table.sparsity.iloc[-1]}, pruning moved the layer by AP2 {pruning:.3f} of its squared norm "
        f"and fine-tuning by {tuning:.3f}; from the original to the fine-tuned it is {both:.3f}, their "
        "sum. The two moves are at right angles, so fine-tuning under a mask can only add to AP2.",
        table,
        "side",
        "ap2_relative",
        "bars",
        colour="sparsity",
        labels={"ap2_relative": "AP2, of the original's squared norm"},
    )
    divergences = Figure(
        "Triangle of divergences",
        f"At {table.sparsity.iloc[-1]}, the Student-t AP3 from the original is {student:.3g} nats to the "
        f"pruned layer and {after:.3g} to the fine-tuned one. It sees means of neighbouring weights, in "
        "which kept weights can make up for removed ones: no right angle there, and it may fall.",
        table,
        "side",
        "ap3_student",
        "bars",
        colour="sparsity",
        labels={"ap3_student": "Student-t AP3, nats"},
    )
    return squared, divergences
