"""Distance and damage: does how far a layer moved say how much is lost?"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from core.bundles import Setting, Split
from core.errors import ParameterError, UnsupportedModelError
from core.evaluation import correct
from core.figure import Figure
from core.lab import LABS, Lab
from core.latent import (
    RULES,
    ap2,
    ap2_relative,
    ap3_student,
    curvature_bound,
    largest_curvature,
    rank_correlation,
    rule_mask,
)
from core.layers import private_copy, require_finite, require_prunable
from core.method import number
from core.run import Run

SPARSITIES = (0.1, 0.3, 0.5, 0.8)  # the paper's
BITS = (8, 4, 3, 2)
BATCH = 100  # pictures in one forward pass
CURVED = 100  # pictures whose loss is differentiated twice, where that takes more than the last layer
MAGNITUDE_RULES = RULES[:3]  # the paper's: single weights go
BOUND = "half curvature x AP2"  # what the line is called


@LABS.register
@dataclass(frozen=True)
class DistanceAndDamage(Lab):
    """Does the distance that a layer's weights moved predict how much accuracy and loss change?

    One layer is changed in six ways, at four strengths: its smallest, largest, random weights or its
    weakest rows go, its rank falls to what saves the same number of weights, or its weights are
    rounded to 8, 4, 3 or 2 bits. Nothing is trained afterwards. Distances are AP2 and the Student-t
    AP3; damage is the absolute difference of accuracy and loss on validation pictures. The line is
    what the loss can rise by to second order, half the largest eigenvalue of its Hessian times AP2:
    an approximation near a minimum, no guarantee.

    Source: Mozafari-Nia and Yasaei Sekeh, "Towards Explaining Deep Neural Network Compression
    Through a Probabilistic Latent Space", 2024, arXiv:2403.00155.
    """

    name: ClassVar[str] = "distance-and-damage"

    layer: int = number(0, 0, 500, 1, help="The layer that is changed, counted from the last one")
    images: int = number(500, 10, 10_000, 10, help="Validation pictures on which the damage is measured")
    seeds: int = number(3, 1, 10, 1, help="Random choices of weights at every sparsity")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        table, curvature = self.grid(setting, run)
        return _accuracy_figure(table), _loss_figure(table, curvature), _student_figure(table)

    def grid(self, setting: Setting, run: Run) -> tuple[pd.DataFrame, float]:
        """One row per change of the layer, and the largest curvature of the loss in its weights."""
        require_finite(setting.teacher)
        network = private_copy(setting.teacher)
        name = self._layer(network)
        weight = network.get_submodule(name).weight
        pictures = setting.validation.take(slice(0, self.images))
        answers, is_last = answers_of(network, name, pictures)
        before = _score(answers, weight, pictures.labels)
        rows = []
        changes = list(_changes(weight, self.seeds))
        for way, amount, changed in run.track(changes, "Changing the layer"):
            accuracy, loss = _score(answers, changed, pictures.labels)
            rows.append(
                {
                    "layer": name,
                    "way": way,
                    "amount": amount,
                    "ap2": ap2(weight, changed),
                    "ap2_relative": ap2_relative(weight, changed),
                    "ap3_student": ap3_student(weight, changed, groups=min(100, weight.numel())).value,
                    "accuracy_difference": abs(accuracy - before[0]),
                    "loss_difference": abs(loss - before[1]),
                }
            )
        if not is_last:
            pictures = pictures.take(slice(0, CURVED))
            answers, _ = answers_of(network, name, pictures)
        curvature = largest_curvature(lambda w: F.cross_entropy(answers(w), pictures.labels), weight)
        return pd.DataFrame(rows), curvature

    def _layer(self, network: nn.Module) -> str:
        names = list(require_prunable(network))
        if self.layer >= len(names):
            raise ParameterError(
                f"{self.name}: layer must lie in [0, {len(names) - 1}] for this network, got {self.layer}"
            )
        return names[-1 - self.layer]


def answers_of(network: nn.Module, name: str, split: Split) -> tuple[Callable[[Tensor], Tensor], bool]:
    """Weight of layer `name` -> logits (N, K) of `network`, and whether that layer is what gives them.

    If so, what enters it is computed once. Weights may carry gradients.

    Raises:
        UnsupportedModelError: the network does not use the layer.
    """
    layer, entered = network.get_submodule(name), []
    handle = layer.register_forward_hook(lambda _, inputs, output: entered.append((inputs[0], output)))
    with torch.no_grad():
        parts = [images for images, _ in split.batches(BATCH)]
        logits = [network(images) for images in parts]
    handle.remove()
    if not entered:
        raise UnsupportedModelError(f"distance-and-damage: the model must use {name}, got one that does not")
    if [id(output) for _, output in entered] == [id(output) for output in logits]:
        inputs = torch.cat([inputs for inputs, _ in entered])
        return lambda weight: functional_call(layer, {"weight": weight}, (inputs,)), True
    key = f"{name}.weight"
    return lambda weight: torch.cat([functional_call(network, {key: weight}, (p,)) for p in parts]), False


@torch.no_grad()
def _score(answers: Callable[[Tensor], Tensor], weight: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and mean cross-entropy with this weight in the layer."""
    logits = answers(weight)
    return correct(logits, labels).float().mean().item(), F.cross_entropy(logits, labels).item()


def _changes(weight: Tensor, seeds: int) -> Iterator[tuple[str, str, Tensor]]:
    """(way, how much, the weight after) of every change."""
    for sparsity in SPARSITIES:
        for rule in RULES:
            for _ in range(seeds if rule == "random" else 1):
                yield rule, f"{sparsity:.0%}", weight * rule_mask(weight, rule, sparsity)
        outputs, inputs = weight.flatten(1).shape
        rank = max(1, round((1 - sparsity) * weight.numel() / (outputs + inputs)))
        yield "low rank", f"rank {rank}", _of_rank(weight, rank)
    for bits in BITS:
        step = (weight.abs().max() / (2 ** (bits - 1) - 1)).clamp(min=torch.finfo(weight.dtype).tiny)
        yield "quantised", f"{bits} bits", (weight / step).round() * step


def _of_rank(weight: Tensor, rank: int) -> Tensor:
    """The nearest weight whose matrix (O, rest) has that rank."""
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).view_as(weight)


def _accuracy_figure(table: pd.DataFrame) -> Figure:
    found = rank_correlation(table.ap2_relative, table.accuracy_difference)
    half = table[table.amount == "50%"].groupby("way").accuracy_difference.mean()
    return Figure(
        "Accuracy and distance",
        f"AP2 and the change of accuracy have rank correlation {_words(found)} over {len(table)} changes "
        f"of {table.layer[0]}. With half of its weights gone, accuracy moves by "
        f"{100 * half['lowest']:.1f} points (the smallest), {100 * half['random']:.1f} (random) or "
        f"{100 * half['highest']:.1f} (the largest).",
        table[table.ap2_relative > 0],
        "ap2_relative",
        "accuracy_difference",
        "points",
        colour="way",
        log=frozenset({"ap2_relative"}),
        percent=frozenset({"accuracy_difference"}),
        labels={"ap2_relative": "AP2, of the squared norm", "accuracy_difference": "change of accuracy"},
    )


def _loss_figure(table: pd.DataFrame, curvature: float) -> Figure:
    shown = table[(table.ap2_relative > 0) & (table.loss_difference > 0)]
    bound = table.ap2.map(lambda distance: curvature_bound(curvature, distance))
    above = int((table.loss_difference > bound).sum())
    found, alike = (
        rank_correlation(rows.ap2_relative, rows.loss_difference)
        for rows in (table, table[table.way.isin(MAGNITUDE_RULES)])
    )
    return Figure(
        "Loss and distance",
        f"AP2 and the change of the loss have rank correlation {_words(found)}, and {_words(alike)} where "
        f"single weights go. {above} of {len(table)} changes lie above the line, half the largest "
        f"curvature ({curvature:.3g}) times AP2, which holds to second order around a minimum.",
        pd.concat([shown, _line(shown, curvature)], ignore_index=True),
        "ap2_relative",
        "loss_difference",
        "points",
        colour="way",
        log=frozenset({"ap2_relative", "loss_difference"}),
        labels={"ap2_relative": "AP2, of the squared norm", "loss_difference": "change of the loss, nats"},
    )


def _line(shown: pd.DataFrame, curvature: float) -> pd.DataFrame:
    """The bound at distances from the least to the largest of the table; nothing where it is zero."""
    if shown.empty or curvature <= 0:
        return shown.iloc[:0]
    relative = np.geomspace(shown.ap2_relative.min(), shown.ap2_relative.max(), 40)
    rise = curvature_bound(curvature, 1.0) * relative * (shown.ap2 / shown.ap2_relative).iloc[0]
    return pd.DataFrame({"way": BOUND, "ap2_relative": relative, "loss_difference": rise})


def _student_figure(table: pd.DataFrame) -> Figure:
    found, plain = (
        rank_correlation(table[distance], table.loss_difference)
        for distance in ("ap3_student", "ap2_relative")
    )
    return Figure(
        "Loss and divergence",
        f"The Student-t AP3, which sees only means of neighbouring weights, has rank correlation "
        f"{_words(found)} with the change of the loss; AP2 has {_words(plain)}. The Gaussian AP3 is "
        "AP2 / (2 lambda) and ranks as AP2 does.",
        table[(table.ap3_student > 0) & (table.loss_difference > 0)],
        "ap3_student",
        "loss_difference",
        "points",
        colour="way",
        log=frozenset({"ap3_student", "loss_difference"}),
        labels={"ap3_student": "Student-t AP3, nats", "loss_difference": "change of the loss, nats"},
    )


def _words(correlation: float) -> str:
    return "undefined (all equal)" if math.isnan(correlation) else f"{correlation:.2f}"
