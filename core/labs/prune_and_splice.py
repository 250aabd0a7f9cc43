"""Prune and splice: coefficients go and return while a small network trains."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import DATASETS, DatasetBundle, Setting
from core.evaluation import correct, logits, wilson
from core.figure import Figure
from core.frequency import DOMAINS, MovingMasks, kernel_layers
from core.lab import LABS, Lab
from core.method import choice, number
from core.run import Run, seeded
from core.training import Classification, Minimise, Schedule, fit

FIRST = Schedule(epochs=8, learning_rate=0.1, batch_size=64, crop=0, flip=False)  # of the dense network
POINTS = 50  # of a line
SPLICED = "pruned and spliced"


@LABS.register
@dataclass(frozen=True)
class PruneAndSplice(Lab):
    """Does it help if what was pruned may return while the network trains on?

    A small network with kernels of 5 x 5 and 3 x 3 learns the 8 x 8 digits, is pruned and trained
    on, three times from the same weights with the same pictures: with masks that only grow; with
    masks that lose and regain coefficients, by the same thresholds (see method "dynamic-frequency");
    and pruned once, every layer to the sparsity that the second has in the end. Accuracy is that on
    the validation pictures.

    Source: Guo, Yao and Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016,
    arXiv:1608.04493; Liu, Xu, Peng and Xiong, "Frequency-Domain Dynamic Pruning for Convolutional
    Neural Networks", NeurIPS 2018.
    """

    name: ClassVar[str] = "prune-and-splice"

    epochs: int = number(8, 1, 100, 1, help="Passes over the pictures after the first pruning")
    learning_rate: float = number(
        0.01, 1e-6, 1.0, 1e-6, scale="log", help="Of these passes; falls as a cosine"
    )
    sparsity: float = number(0.95, 0.0, 0.99, 0.01, help="Fraction of coefficients below the threshold")
    domain: str = choice(*DOMAINS, help="Prune cosine coefficients, or the weights themselves")
    tilt: float = number(0.5, -1.9, 1.9, 0.1, help="Above 0, high frequencies have to be larger to stay")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        data = DATASETS["digits"]().load()
        with run.step(0, 4):
            dense = _network(data.classes)
            fit(dense, data.train, Classification(), FIRST, run)
        scores, rows = [_score("dense", dense, data)], []
        seed, stop = int(torch.randint(2**31, ())), math.ceil(0.6 * self._steps(data))
        sparsities = dict.fromkeys(kernel_layers(self.name, dense), self.sparsity)
        ways = {"gone is gone": {"splice": False}, SPLICED: {}, "pruned once": {"stop": 1, "below": 1.0}}
        for part, (way, options) in enumerate(ways.items(), start=1):
            network = copy.deepcopy(dense)
            layers = kernel_layers(self.name, network)
            options = {"stop": stop, "domain": self.domain, "tilt": self.tilt} | options
            masks = MovingMasks(layers, sparsities, **options)
            with run.step(part, 4), seeded(seed):
                rows += [{"masks": way} | row for row in self._train(network, masks, data, run)]
            scores.append(_score(way, network, data))
            if way == SPLICED:
                sparsities = masks.sparsities  # for the last one, which is to have as many zeros
        return _figures(pd.DataFrame(rows), pd.DataFrame(scores), len(data.validation))

    def _steps(self, data: DatasetBundle) -> int:
        return self.epochs * math.ceil(len(data.train) / FIRST.batch_size)

    def _train(
        self, network: nn.Module, masks: MovingMasks, data: DatasetBundle, run: Run
    ) -> list[dict[str, float]]:
        """Train `network` under `masks`, and say what happened on the way."""
        schedule = replace(FIRST, epochs=self.epochs, learning_rate=self.learning_rate, schedule="cosine")
        steps, losses, rows = self._steps(data), [], []

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            masks.step()
            value = F.cross_entropy(model(images), labels)
            losses.append(value.item())
            if masks.steps % math.ceil(steps / POINTS) == 0 or masks.steps == steps:
                rows.append({"step": masks.steps, "loss": sum(losses) / len(losses)} | masks.tally())
                losses.clear()
            return value

        fit(network, data.train, Minimise(loss), schedule, run)
        return rows


def _network(classes: Sequence[str]) -> nn.Module:
    def block(inputs: int, outputs: int, side: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"),  # 16 x 16, room for kernels of 5 x 5
        *block(1, 8, 5),
        nn.MaxPool2d(2),
        *block(8, 16, 5),
        nn.MaxPool2d(2),
        *block(16, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, len(classes)),
    )


def _score(network: str, model: nn.Module, data: DatasetBundle) -> dict[str, float | str]:
    right = correct(logits(model, data.validation), data.validation.labels)
    low, high = wilson(int(right.sum()), len(right))
    return {"network": network, "accuracy": right.float().mean().item(), "low": low, "high": high}


def _figures(table: pd.DataFrame, scores: pd.DataFrame, n: int) -> Sequence[Figure]:
    moving = table[table.masks == SPLICED]
    ends = table.groupby("masks", sort=False).last()
    scores = scores.merge(ends[["sparsity"]], "left", left_on="network", right_on="masks")
    accuracies = ", ".join(
        f"{row.network} {row.accuracy:.1%}" + (f" ({row.sparsity:.1%} masked)" if row.sparsity > 0 else "")
        for row in scores.itertuples()
    )
    final = ", ".join(f"{way} {loss:.3f}" for way, loss in ends.loss.items())
    masked = ", ".join(f"{way} {sparsity:.1%}" for way, sparsity in ends.sparsity.items())
    pruned, spliced = moving.pruned.sum(), moving.spliced.sum()
    return (
        Figure(
            "Accuracy", f"Right of {n} validation pictures: {accuracies}.", scores, "network", "accuracy",
            "points", low="low", high="high", percent=frozenset({"accuracy"}),
        ),
        Figure(
            "Pruned and spliced",
            f"{pruned:,} times a number was masked, and {spliced:,} times one came back.",
            moving.melt("step", ["pruned", "spliced"], "move", "count"), "step", "count", "line", "move",
        ),
        Figure(
            "Masked so far", f"Masked in the end: {masked}.", table, "step", "sparsity", "line", "masks",
            percent=frozenset({"sparsity"}),
        ),
        Figure("Loss while training", f"In the end: {final}.", table, "step", "loss", "line", "masks"),
    )  # fmt: skip
