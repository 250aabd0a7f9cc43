"""Dynamic frequency: coefficients of kernels are pruned and spliced while the network trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting
from core.criterion import sample
from core.figure import Figure
from core.frequency import (
    DOMAINS,
    MovingMasks,
    band_table,
    cost_figure,
    energy_figure,
    kept_figure,
    kernel_layers,
)
from core.method import choice, flag, number
from core.recipe import COMPRESSORS, Compressor
from core.run import Run
from core.training import Minimise, Schedule, fit

WATCHED = 1000  # validation pictures on which accuracy is recorded after every epoch
ROWS = 20  # of records on pruning and splicing, in a whole training


@COMPRESSORS.register
@dataclass(frozen=True)
class DynamicFrequency(Compressor):
    """Prune cosine coefficients while training goes on, and let those that grow again return.

    Each layer's threshold T is set once: `sparsity` of its coefficients lie below it, tilted over the
    bands as in method "frequency". At a step t of the training, with a chance of 1 / (1 + decay t),
    every coefficient of at most `below` T is masked and every masked one above `above` T returns;
    after `stop` of all steps the mask is final. Masked coefficients are trained as if they were
    there, otherwise none could return. What lies between the two marks stays, so that a little less
    than `sparsity` goes. Domain "spatial" does the same to single weights, without tilt: Dynamic
    Network Surgery. Coefficients or weights that an earlier step took away stay away. 1 x 1
    convolutions and linear layers stay as they are unless `pointwise` is set.

    Source: Liu, Xu, Peng and Xiong, "Frequency-Domain Dynamic Pruning for Convolutional Neural
    Networks", NeurIPS 2018; Guo, Yao and Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS
    2016, arXiv:1608.04493 (rule, chance and both marks, as in its published code).
    """

    name: ClassVar[str] = "dynamic-frequency"

    epochs: int = number(2, 1, 500, 1, help="Passes over the pictures")
    learning_rate: float = number(0.01, 1e-6, 10.0, 1e-6, scale="log", help="At the start; falls as a cosine")
    batch_size: int = number(64, 1, 4096, 1, help="Pictures per step")
    images: int = number(2048, 1, 1_000_000, 1, help="Training pictures, drawn once; all if there are fewer")
    sparsity: float = number(
        0.8, 0.0, 1.0, 0.01, help="Fraction of coefficients below the threshold at first"
    )
    domain: str = choice(*DOMAINS, help="Prune cosine coefficients, or the weights themselves")
    tilt: float = number(0.5, -1.9, 1.9, 0.1, help="Above 0, high frequencies have to be larger to stay")
    below: float = number(0.9, 0.0, 1.0, 0.01, help="A coefficient goes at this many thresholds or fewer")
    above: float = number(
        1.1, 1.0, 10.0, 0.01, help="A masked coefficient returns above this many thresholds"
    )
    splice: bool = flag(True, help="Let masked coefficients return; otherwise gone is gone")
    decay: float = number(0.01, 0.0, 1.0, 0.001, help="How fast updates of the mask become rare")
    stop: float = number(0.6, 0.01, 1.0, 0.01, help="Share of the training after which the mask is final")
    pointwise: bool = flag(False, help="Prune 1 x 1 convolutions and linear layers, too: by their weights")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        layers = kernel_layers(self.name, model, self.pointwise)
        train, watched = sample(setting.train, self.images), sample(setting.validation, WATCHED)
        steps = self._steps(len(train))
        masks = MovingMasks(
            layers,
            dict.fromkeys(layers, self.sparsity),
            stop=math.ceil(self.stop * steps),
            domain=self.domain,
            tilt=self.tilt,
            below=self.below,
            above=self.above,
            decay=self.decay,
            splice=self.splice,
        )
        every = math.ceil(steps / ROWS)

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            masks.step()
            if masks.steps % every == 0 or masks.steps == steps:
                run.record(step=masks.steps, **masks.tally())
            return F.cross_entropy(model(images), labels)

        fit(model, train, Minimise(loss), self._schedule(), run, validation=watched)
        return model

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        layers = list(kernel_layers(self.name, before, self.pointwise))
        example = setting.train.take(slice(0, 1)).images
        energy = energy_figure(band_table(before, after, layers)) if self.domain == "frequency" else ()
        return (
            *self._over_time(setting, run),
            *energy,
            *kept_figure(after, layers, self.domain),
            cost_figure(before, after, example, self.domain),
        )

    def _over_time(self, setting: Setting, run: Run) -> Sequence[Figure]:
        """What `apply` has just recorded, where this is the run that it was carried out in."""
        steps = self._steps(min(self.images, len(setting.train)))
        count = math.ceil(steps / math.ceil(steps / ROWS))
        rows = [row for row in run.records if "spliced" in row][-count:]
        if not rows:
            return ()
        table = pd.DataFrame(rows)
        moves = table.melt("step", ["pruned", "spliced"], "move", "count")
        finding = (
            f"{table.pruned.sum():,} times one was pruned and {table.spliced.sum():,} times one came back; "
            f"after {steps:,} steps {table.sparsity.iloc[-1]:.1%} are masked; aimed at: {self.sparsity:.0%}."
        )
        return (
            Figure("Pruned and spliced", finding, moves, "step", "count", "line", "move"),
            Figure(
                "Masked so far",
                finding,
                table[["step", "sparsity"]],
                "step",
                "sparsity",
                percent=frozenset({"sparsity"}),
            ),
        )

    def _steps(self, pictures: int) -> int:
        return self.epochs * math.ceil(pictures / self.batch_size)

    def _schedule(self) -> Schedule:
        return Schedule(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            schedule="cosine",
            batch_size=self.batch_size,
            crop=2,
            flip=False,
        )
