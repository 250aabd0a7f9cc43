"""Iterative pruning: a little goes, the rest trains on, and again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import nn

from core.bundles import Setting
from core.errors import UnsupportedModelError
from core.figure import Figure, Reference
from core.layers import apply_mask, prunable
from core.method import choice, nested, number
from core.objective import OBJECTIVES, Objective
from core.recipe import COMPRESSORS
from core.run import Run
from core.tuning import Tuning


@COMPRESSORS.register
@dataclass(frozen=True)
class IterativePruning(Tuning):
    """Take the smallest weights in rounds, and train after each; for labels, or for the original's maps.

    After round t of R the fraction 1 - (1 - sparsity)^(t / R) of the weights is zero: every round takes
    the same share of what is left. One threshold serves all convolutions together; linear layers are
    left alone, or compared with them. What is gone stays gone, and weights that are zero already count.
    Every round has an optimiser and a learning rate of its own and goes on from the weights of the last;
    the objective's teacher is always the untouched original. Biases and batch norms stay. A layer may
    lose its last weight; records and figure say so.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015, arXiv:1506.02626, section 3; the preset "paper" is the schedule of Park, Yang, Hwang
    and Yang, "Attribution Preservation in Network Compression for Reliable Network Interpretation",
    NeurIPS 2020, arXiv:2010.15054.
    """

    name: ClassVar[str] = "iterative-pruning"
    variants: ClassVar[tuple[str, ...]] = ("objective",)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "sparsity": 1 - 0.8**16,
            "rounds": 16,
            "epochs": 30,
            "learning_rate": 0.001,
            "schedule": "constant",
            "weight_decay": 1e-4,
            "images": 1_000_000,
        }
    }

    sparsity: float = number(0.9, 0.0, 0.999, 0.001, help="Fraction of the weights that is zero in the end")
    rounds: int = number(4, 1, 20, 1, help="Prunings; each is followed by a training")
    epochs: int = number(2, 1, 50, 1, help="Passes over the pictures after every pruning")
    scope: str = choice("convolutions", "everything", help="Which weights are compared, with one threshold")
    objective: Objective = nested(
        OBJECTIVES, "labels", help="What the network learns from after each pruning"
    )

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        layers = self._layers(model)
        for layer in layers.values():
            apply_mask(layer, torch.ones_like(layer.weight, dtype=torch.bool))
        for index in run.track(range(self.rounds), "Pruning and training"):
            sparsity = 1 - (1 - self.sparsity) ** ((index + 1) / self.rounds)
            empty = _prune(list(layers.values()), sparsity)
            inner = replace(run, records=[])
            try:
                self.tune(model, self.objective.bind(model, setting, self, inner), setting, inner)
            finally:
                for row in inner.records:
                    run.record(round=index + 1, sparsity=sparsity, empty_layers=empty, **row)
        return model

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """What is pruned.

        Raises:
            UnsupportedModelError: there is nothing of the kind.
        """
        kept = (nn.Module,) if self.scope == "everything" else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        if not (found := {name: layer for name, layer in prunable(model).items() if isinstance(layer, kept)}):
            what = "no convolution or linear layer" if self.scope == "everything" else "no convolution"
            raise UnsupportedModelError(f"{self.name}: the model must have {self.scope} to prune, got {what}")
        return found

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        shown = [_by_layer(self._layers(before), prunable(after))]
        table = pd.DataFrame(run.records[-self.rounds * self.epochs :])
        if {"round", "validation_accuracy"} <= set(table):
            shown.append(_by_round(table.dropna(subset="round")))
        return (*shown, *self.objective.figures(before, after, setting, run))


@torch.no_grad()
def _prune(layers: Sequence[nn.Module], sparsity: float) -> int:
    """Narrow the last mask of each of `layers`; returns how many of them have no weight left.

    round(sparsity n) of the n weights are gone, those that were gone first, then the smallest.
    """
    masks = [layer.parametrizations.weight[-1] for layer in layers]
    sizes = torch.cat(
        [
            torch.where(mask.keep, layer.weight.abs(), -1.0).flatten()
            for layer, mask in zip(layers, masks, strict=True)
        ]
    )
    kept = torch.ones_like(sizes, dtype=torch.bool)
    kept[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = False
    for mask, part in zip(masks, kept.split([mask.keep.numel() for mask in masks]), strict=True):
        mask.keep.copy_(part.view_as(mask.keep) & mask.keep)
    return sum(not layer.weight.any() for layer in layers)


def _by_layer(before: Mapping[str, nn.Module], after: Mapping[str, nn.Module]) -> Figure:
    rows, left, total = [], 0, 0
    for name, layer in before.items():
        stays = int(after[name].weight.count_nonzero())
        left, total = left + stays, total + layer.weight.numel()
        rows.append({"layer": name, "weights": stays, "remaining": stays / layer.weight.numel()})
    table = pd.DataFrame(rows)
    empty = table.layer[table.weights == 0].to_list()
    least, most = (table.loc[at] for at in (table.remaining.idxmin(), table.remaining.idxmax()))
    words = f"{len(empty)} layers have no weight left, {empty[0]} first" if empty else "no layer is empty"
    return Figure(
        "What remains of each layer",
        f"{left / total:.1%} of the weights remain: {most.remaining:.1%} of {most.layer}, "
        f"{least.remaining:.1%} of {least.layer}; {words}.",
        table,
        "layer",
        "remaining",
        "bars",
        percent=frozenset({"remaining"}),
        labels={"remaining": "weights that remain"},
        references=(Reference("y", left / total, "all of them"),),
    )


def _by_round(table: pd.DataFrame) -> Figure:
    last = table.groupby("round", sort=True).last().reset_index()
    best, end = last.loc[last.validation_accuracy.idxmax()], last.iloc[-1]
    return Figure(
        "Accuracy round by round",
        f"After the last round, {end.sparsity:.1%} gone, the accuracy on validation pictures is "
        f"{end.validation_accuracy:.1%}; the best round was number {best['round']:.0f}, "
        f"{best.sparsity:.1%} gone, with {best.validation_accuracy:.1%}.",
        last,
        "sparsity",
        "validation_accuracy",
        percent=frozenset({"sparsity", "validation_accuracy"}),
        labels={"sparsity": "weights that are gone", "validation_accuracy": "accuracy"},
    )
