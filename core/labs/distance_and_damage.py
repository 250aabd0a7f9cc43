"""Distance and damage: does how far a layer moved say how much is lost?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from core.factors import truncated
from core.figure import Figure
from core.lab import LABS, Lab
from core.latent import (
    GROUPS,
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
        shown = _accuracy_figure(table), _loss_figure(table, curvature), _student_figure(table)
        return tuple(figure for figure in shown if len(figure.table))  # a dead layer changes no loss

    def grid(self, setting: Setting, run: Run) -> tuple[pd.DataFrame, float]:
        """One row per change of the layer, and the largest curvature of the loss in its weights."""
        require_finite(setting.teacher)
        network = private_copy(setting.teacher)
        name = self._layer(network)
        weight = network.get_submodule(name).weight
        if not weight.any():
            raise UnsupportedModelError(
                f"{self.name}: the model must have a weight in {name}, got zeros only"
            )
        pictures = setting.validation.take(slice(0, self.images))
        answers, is_last = answers_of(network, name, pictures)
        accuracy, loss = _score(answers, weight, pictures.labels)
        rows = []
        for way, amount, changed in run.track(_changes(weight, self.seeds), "Changing the layer"):
            after = changed()
            score = _score(answers, after, pictures.labels)
            rows.append(
                {
                    "layer": name,
                    "way": way,
                    "amount": amount,
                    "ap2": ap2(weight, after),
                    "ap2_relative": ap2_relative(weight, after),
                    "ap3_student": ap3_student(weight, after, groups=min(GROUPS, weight.numel())).value,
                    "accuracy_difference": abs(score[0] - accuracy),
                    "loss_difference": abs(score[1] - loss),
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
    layer, calls, entered = network.get_submodule(name), [], []
    handle = layer.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    parts = [images for images, _ in split.batches(BATCH)]
    for images in parts:
        calls.clear()
        with torch.no_grad():
            logits = network(images)
        if [output is logits for _, output in calls] == [True]:
            entered.append(calls[0][0])
    handle.remove()
    if not calls:
        raise UnsupportedModelError(f"distance-and-damage: the model must use {name}, got one that does not")
    if len(entered) == len(parts):
        inputs = torch.cat(entered)
        return lambda weight: functional_call(layer, {"weight": weight}, (inputs,)), True
    key = f"{name}.weight"
    return lambda weight: torch.cat([functional_call(network, {key: weight}, (p,)) for p in parts]), False


@torch.no_grad()
def _score(answers: Callable[[Tensor], Tensor], weight: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and mean cross-entropy with this weight in the layer."""
    logits = answers(weight)
    return correct(logits, labels).float().mean().item(), F.cross_entropy(logits, labels).item()


def _changes(weight: Tensor, seeds: int) -> list[tuple[str, str, Callable[[], Tensor]]]:
    """(way, how much, what makes the weight after it) of every change."""
    outputs, inputs = weight.flatten(1).shape
    changes = []
    for sparsity in SPARSITIES:
        for rule in RULES:
            times = seeds if rule == "random" else 1
            changes += [(rule, f"{sparsity:.0%}", partial(_pruned, weight, rule, sparsity))] * times
        rank = max(1, round((1 - sparsity) * weight.numel() / (outputs + inputs)))
        changes.append(("low rank", f"rank {rank}", partial(_of_rank, weight, rank)))
    return changes + [("quantised", f"{bits} bits", partial(_rounded, weight, bits)) for bits in BITS]


def _pruned(weight: Tensor, rule: str, sparsity: float) -> Tensor:
    return weight * rule_mask(weight, rule, sparsity)


def _of_rank(weight: Tensor, rank: int) -> Tensor:
    return truncated(weight.flatten(1), rank).to(weight).view_as(weight)


def _rounded(weight: Tensor, bits: int) -> Tensor:
    """To the nearest of 2^bits - 1 equally spaced numbers from -max to max."""
    step = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / step).round() * step if step else weight


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
    return Figure(
        "Loss and distance",
        f"AP2 and the change of the loss have rank correlation {_both(table, 'ap2_relative')}. "
        f"{above} of {len(table)} changes lie above the line, half the largest curvature "
        f"({curvature:.3g}) times AP2, which holds to second order around a minimum.",
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
    return Figure(
        "Loss and divergence",
        f"The Student-t AP3, which sees only means of neighbouring weights, and the change of the loss "
        f"have rank correlation {_both(table, 'ap3_student')}. The Gaussian AP3 is AP2 / (2 lambda) and "
        "ranks as AP2 does.",
        table[(table.ap3_student > 0) & (table.loss_difference > 0)],
        "ap3_student",
        "loss_difference",
        "points",
        colour="way",
        log=frozenset({"ap3_student", "loss_difference"}),
        labels={"ap3_student": "Student-t AP3, nats", "loss_difference": "change of the loss, nats"},
    )


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the random choices, for every rule of the paper and every sparsity: twelve rows."""
    single = table[table.way.isin(MAGNITUDE_RULES)]
    return single.groupby(["way", "amount"]).mean(numeric_only=True)


def _both(table: pd.DataFrame, distance: str) -> str:
    """Rank correlation with the change of the loss, of all changes and of the paper's cells."""
    found, papers = (rank_correlation(t[distance], t.loss_difference) for t in (table, cells(table)))
    return f"{_words(found)}, and {_words(papers)} over the {len(cells(table))} cells of the paper's rules"


def _words(correlation: float) -> str:
    return "undefined (all equal)" if math.isnan(correlation) else f"{correlation:.2f}"
