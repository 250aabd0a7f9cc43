"""Rank of training: what training changed is of low rank, what it left is not."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from core import spectra
from core.bundles import DATASETS, MODELS, Setting, Split
from core.evaluation import correct, logits
from core.factors import CHANGE, WEIGHTS, averaged, enough, own_accuracy, truncation_curves
from core.figure import Figure, Reference
from core.lab import LABS, Lab
from core.layers import apply_mask, bake, prunable
from core.method import choice, number
from core.run import Run
from core.training import Classification, Schedule, fit

LAYERS = {"linear1": "first layer", "linear": "last layer"}
FIRST = "linear1"
FEW = 4  # directions that the finding compares
MEASURED, CHANCE = "measured", "random matrix"
BASES = {"trained": "untrained", "tuned": "pruned"}  # network -> the one that its change counts from


@LABS.register
@dataclass(frozen=True)
class RankOfTraining(Lab):
    """Trains a small network on 8 x 8 digits and asks in how many directions its weights moved.

    The network has one hidden layer, and its initial weights W0 are kept. Then the first layer
    gets either W0 plus the best rank-r part of its change, or the best rank-r part of its final
    weights W, and the accuracy on the validation pictures tells what those directions carry. The
    curve need not rise everywhere: one direction alone can be worse than none.

    A second network is pruned from the first and trained on. Its change from the first is stored in
    r (m + n) numbers beside weights that are stored once; the mask is put back afterwards, since a
    sum of directions fills every zero. The last layer moves in at most one direction less than there
    are classes, as long as neither Adam, which scales every weight's steps by itself, nor weight
    decay, which adds a multiple of W0, takes part.

    Source: Schuessler et al., "The Interplay between Randomness and Structure during Learning in
    RNNs", NeurIPS 2020, arXiv:2006.11036 (truncated changes and weights, in recurrent networks).
    """

    name: ClassVar[str] = "rank-of-training"

    epochs: int = number(30, 2, 200, 1, help="Passes over the training pictures; a third of it after pruning")
    optimizer: str = choice(
        "sgd", "adamw", help="SGD has momentum 0.9; Adam scales the steps of every weight"
    )
    weight_decay: float = number(0.0, 0.0, 0.01, 0.0001, help="Pull of every weight towards zero")
    sparsity: float = number(
        0.9, 0.0, 0.95, 0.05, help="Fraction of the weights pruned from the second network"
    )
    width: int = number(128, 64, 512, 16, help="Hidden units")
    seeds: int = number(2, 1, 5, 1, help="Networks trained")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        data = DATASETS["digits"]().load()
        stages = []
        for _ in run.track(range(self.seeds), "Training"):
            network = MODELS["mlp"](hidden=self.width, depth=1).build(data.shape, len(data.classes))
            stages.append(self._stages(network, data.train, run))
        curves = pd.concat([_curves(each, data.validation) for each in stages])
        n, shape = len(data.validation), _weight(stages[0]["tuned"]).shape
        return [
            _spectra(stages[0]),
            _truncation(averaged(curves[curves.variant == "trained"]), n),
            _ratios(stages),
            _storage(averaged(curves[curves.variant == "tuned"]), shape, self.sparsity, n),
        ]

    def _stages(self, network: nn.Module, train: Split, run: Run) -> dict[str, nn.Module]:
        """The network untrained, trained, pruned, and trained on with its mask."""
        stages = {"untrained": copy.deepcopy(network)}
        with run.step(0, 2):
            fit(network, train, Classification(), self._schedule(self.epochs, 1.0), run)
        stages["trained"] = copy.deepcopy(network)
        for layer in prunable(network).values():
            keep = torch.ones_like(layer.weight, dtype=torch.bool)
            smallest = layer.weight.abs().flatten().argsort()[: round(self.sparsity * keep.numel())]
            keep.view(-1)[smallest] = False
            apply_mask(layer, keep)
        stages["pruned"] = bake(copy.deepcopy(network))
        with run.step(1, 2):
            schedule = self._schedule(max(1, self.epochs // 3), 0.2)
            fit(network, train, Classification(), schedule, run)
        return stages | {"tuned": bake(network)}

    def _schedule(self, epochs: int, share: float) -> Schedule:
        """The learning rate is `share` of the one that suits the optimiser."""
        return Schedule(
            epochs=epochs,
            learning_rate=share * {"sgd": 0.02, "adamw": 0.001}[self.optimizer],
            schedule="cosine",
            optimizer=self.optimizer,
            batch_size=64,
            weight_decay=self.weight_decay,
            crop=0,
            flip=False,
        )


def _weight(network: nn.Module, layer: str = FIRST) -> Tensor:
    return network.get_submodule(layer).weight.detach().double()


def _curves(stages: dict[str, nn.Module], split: Split) -> pd.DataFrame:
    """The first layer's truncation curves, of the trained and of the tuned network."""
    curves = []
    for variant, base in BASES.items():
        network = copy.deepcopy(stages[variant])

        def accuracy(weight: Tensor, network: nn.Module = network) -> float:
            network.get_submodule(FIRST).weight.copy_(weight)
            return correct(logits(network, split), split.labels).double().mean().item()

        curve = truncation_curves(_weight(stages[base]), _weight(stages[variant]), accuracy)
        curves.append(curve.assign(variant=variant))
    return pd.concat(curves)


def _truncation(table: pd.DataFrame, n: int) -> Figure:
    ranks, own = enough(table), own_accuracy(table)
    few = table[table["rank"] == FEW].set_index("what").accuracy
    return Figure(
        "Accuracy with truncated change and truncated weights",
        f"Rank {FEW} of the first layer's change gives {few[CHANGE]:.1%}, of its weights {few[WEIGHTS]:.1%} "
        f"(n = {n}); within one point of {own:.1%} from rank {ranks[CHANGE]} and {ranks[WEIGHTS]}.",
        table,
        "rank",
        "accuracy",
        colour="what",
        low="lowest",
        high="highest",
        percent=frozenset({"accuracy"}),
        labels={"rank": "rank of the first layer", "accuracy": "accuracy on validation pictures"},
        references=(Reference("y", own, "as trained"),),
    )


def _storage(table: pd.DataFrame, shape: torch.Size, sparsity: float, n: int) -> Figure:
    """The curves over the numbers that factors take, of a layer's weights of this shape."""
    table = table.assign(stored=table["rank"] * sum(shape) / shape.numel())
    rank, own = enough(table)[CHANGE], own_accuracy(table)
    stored = rank * sum(shape) / shape.numel()
    return Figure(
        "Storing a pruned and tuned network as a change",
        f"Rank {rank} of the first layer's change comes within a point of {own:.1%} (n = {n}): {stored:.0%} "
        f"of the layer's numbers, stored beside the first network; the weights left are {1 - sparsity:.0%}.",
        table,
        "stored",
        "accuracy",
        colour="what",
        low="lowest",
        high="highest",
        percent=frozenset({"accuracy", "stored"}),
        labels={
            "stored": "numbers stored, of the layer's weights",
            "accuracy": "accuracy on validation pictures",
        },
        references=(Reference("x", 1 - sparsity, "the weights left"),),
    )


def _spectra(stages: dict[str, nn.Module]) -> Figure:
    before, after = _weight(stages["untrained"]), _weight(stages["trained"])
    values = {
        name: spectra.singular_values(matrix)
        for name, matrix in (("W0, before", before), ("W, after", after), ("W - W0", after - before))
    }
    rows = [
        {"matrix": name, "number": number, "value": value}
        for name, s in values.items()
        for number, value in enumerate(s, 1)
    ]
    said = ", ".join(f"{spectra.energy_rank(s, 0.9)} ({name})" for name, s in values.items())
    return Figure(
        "Spectra of the first layer",
        f"Directions that hold 90 % of the squares, of {min(before.shape)}: {said}.",
        pd.DataFrame(rows),
        "number",
        "value",
        colour="matrix",
        labels={"number": "number of the singular value", "value": "singular value"},
    )


def _ratios(stages: Sequence[dict[str, nn.Module]]) -> Figure:
    """Participation ratios, means over the networks, beside chance."""
    rows = []
    for each in stages:
        for layer, words in LAYERS.items():
            w = {stage: _weight(network, layer) for stage, network in each.items()}
            matrices = {
                "W0": w["untrained"],
                "W": w["trained"],
                "trained - W0": w["trained"] - w["untrained"],
                "what pruning took": w["pruned"] - w["trained"],
                "tuned after pruning": w["tuned"] - w["pruned"],
            }
            for name, matrix in matrices.items():
                found = spectra.participation_ratio(spectra.singular_values(matrix))
                chance = spectra.random_participation(*matrix.shape)
                rows.append({"layer": words, "matrix": name, MEASURED: found, CHANCE: chance})
    means = pd.DataFrame(rows).groupby(["layer", "matrix"], sort=False, as_index=False).mean().dropna()
    first = means[means.layer == LAYERS[FIRST]]
    said = ", ".join(f"{name} {ratio:.1f}" for name, ratio in zip(first.matrix, first[MEASURED], strict=True))
    return Figure(
        "Participation ratio, beside chance",
        f"First layer: {said}; a random matrix of its shape {first[CHANCE].iloc[0]:.1f}.",
        means.melt(["layer", "matrix"], [MEASURED, CHANCE], "which", "ratio"),
        "matrix",
        "ratio",
        "bars",
        colour="which",
        panel="layer",
        labels={"ratio": "participation ratio"},
    )
