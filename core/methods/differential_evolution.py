"""Differential evolution: how sparse every layer should be, found by trying."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting, Split
from core.cost import layer_macs
from core.criterion import Ranking, sample
from core.engine import Engine
from core.figure import Figure, Reference
from core.layers import apply_mask, private_copy, prunable, require_prunable
from core.method import number
from core.recipe import COMPRESSORS, Compressor
from core.run import Run

CHUNK, CHUNK_MACS = 64, 2.5e9  # pictures of one forward pass, and work, at most
CAP = 0.95  # the sparsity that a layer may ask for, before all are brought to the target
SPREAD = 0.05  # standard deviation of the first individuals around one threshold's
MUTATION, CROSSOVER = 0.5, 0.9  # F and CR


@COMPRESSORS.register
@dataclass(frozen=True)
class DifferentialEvolution(Compressor):
    """Prune small weights, with the sparsity of every layer found by differential evolution.

    An individual asks for a sparsity in [0, 0.95] of every layer; the shares that stay are scaled
    together until exactly `sparsity` of all weights goes, and each layer loses its smallest weights.
    What is minimised is the loss on validation pictures. The first individual is uniform, so on
    these pictures the answer is no worse than the same sparsity everywhere; the second is what one
    threshold for all layers takes, and the others lie around that one. DE/rand/1/bin with F = 0.5
    and CR = 0.9. Weights that are zero already are counted, and go first.

    Source: Storn and Price, "Differential Evolution", Journal of Global Optimization 11, 1997;
    its use for pruning: Mozafari-Nia and Yasaei Sekeh, "Towards Explaining Deep Neural Network
    Compression Through a Probabilistic Latent Space", 2024, arXiv:2403.00155.
    """

    name: ClassVar[str] = "differential-evolution"

    sparsity: float = number(0.5, 0.0, 1.0, 0.01, help="Fraction of weights set to zero")
    images: int = number(512, 10, 10_000, 1, help="Validation pictures on which a try is judged")
    steps: int = number(10, 1, 100, 1, help="Generations, each of as many tries as there are individuals")
    population: int = number(12, 5, 50, 1, help="Individuals of a generation")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        layers = require_prunable(model)
        trials = Trials(model, sample(setting.validation, self.images), self.sparsity)
        for name, keep in trials.masks(self._best(trials, run)).items():
            apply_mask(layers[name], keep)
        return model

    def _best(self, trials: "Trials", run: Run) -> np.ndarray:
        """The genes (L,) of the best individual; the best loss of every generation is recorded."""
        from scipy.optimize import differential_evolution  # slow to load

        draw = np.random.default_rng(int(torch.randint(2**31, ())))
        uniform, threshold = trials.known
        first = draw.normal(threshold, SPREAD, (self.population, len(threshold))).clip(0, CAP)
        first[:2] = uniform, threshold
        tries, losses = self.population * (self.steps + 1), []

        def loss(genes: np.ndarray) -> float:
            losses.append(trials.loss(genes))
            generation, rest = divmod(len(losses), self.population)
            if not rest:
                run.record(generation=generation - 1, best_loss=min(losses), uniform_loss=losses[0])
            run.report(len(losses) / tries, f"Try {len(losses)} of {tries}")
            return losses[-1]

        return differential_evolution(
            loss,
            [(0.0, CAP)] * len(trials.sizes),
            strategy="rand1bin",
            mutation=MUTATION,
            recombination=CROSSOVER,
            init=first,
            maxiter=self.steps,
            tol=0,
            polish=False,
            rng=draw,
        ).x

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        return (_sparsities(before, after), *_progress(run))


class Trials:
    """A network pruned in many ways to one sparsity, and its loss on the same pictures."""

    def __init__(self, model: nn.Module, split: Split, sparsity: float) -> None:
        network, example = private_copy(model), split.take(slice(0, 1)).images
        scores = {name: layer.weight.abs() for name, layer in prunable(network).items()}
        self._ranking = Ranking(scores)
        self.sizes = np.array([score.numel() for score in scores.values()])  # (L,)
        self._stay = int(self.sizes.sum()) - round(sparsity * int(self.sizes.sum()))
        kept = 1 - np.array(list(self._ranking.global_sparsities(sparsity).values()))
        threshold = 1 - kept / max(kept.max(), 1e-9)
        self.known = np.stack([0 * kept, threshold.clip(0, CAP)])  # (2, L): uniform, and one threshold
        work = sum(layer_macs(network, example).values())
        chunk = int(min(max(CHUNK_MACS // max(work, 1), 1), CHUNK))
        with torch.inference_mode():
            classes = network(example).shape[1]
        self._engine = Engine(network, split, classes, chunk, Run(), (torch.float32,))

    def masks(self, genes: np.ndarray) -> dict[str, Tensor]:
        """Layer -> mask of its weight, True = kept, where layers ask for the sparsities `genes` (L,)."""
        shares = 1 - apportion(genes, self.sizes, self._stay) / self.sizes
        return self._ranking.masks(dict(zip(self._ranking.scores, shares, strict=True)))

    def loss(self, genes: np.ndarray) -> float:
        """Mean cross-entropy; infinite where it is not a number."""
        masks = {(name, "weight"): keep for name, keep in self.masks(genes).items()}
        labels = self._engine.labels
        logits = torch.cat(list(self._engine.forward(self._engine.route(masks), 0, len(labels))))
        value = F.cross_entropy(logits, labels).item()
        return value if math.isfinite(value) else math.inf


def apportion(genes: np.ndarray, sizes: np.ndarray, stay: int) -> np.ndarray:
    """How many of every layer's `sizes` (L,) weights stay, (L,) whole numbers with the sum `stay`.

    The shares 1 - `genes` are multiplied by one factor, and no layer keeps more than it has: those
    with the largest shares fill up first. What is lost in rounding down goes to the largest fractions.
    """
    order = np.argsort(genes)
    size, share = sizes[order], 1 - genes[order]
    full = np.concatenate([[0], np.cumsum(size)[:-1]])  # weights of the layers before, had they all theirs
    factor = (stay - full) / np.cumsum((size * share)[::-1])[::-1]  # had exactly the layers before filled up
    fits = np.flatnonzero(factor * share <= 1)
    wanted = sizes * np.minimum((1 - genes) * factor[fits[0]], 1.0) if len(fits) else sizes.astype(float)
    counts = np.floor(wanted + 1e-9).astype(int)
    counts[np.argsort(counts - wanted)[: stay - counts.sum()]] += 1
    return counts


def _sparsities(before: nn.Module, after: nn.Module) -> Figure:
    """What every layer lost, beside what one threshold for all layers takes."""
    weights = {name: layer.weight for name, layer in prunable(after).items()}
    found = {name: (weight == 0).double().mean().item() for name, weight in weights.items()}
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    total = zeros / sum(weight.numel() for weight in weights.values())
    scores = {name: layer.weight.abs() for name, layer in prunable(before).items()}
    ways = {"found": found, "one threshold": Ranking(scores).global_sparsities(total)}
    rows = [(way, name, share) for way, shares in ways.items() for name, share in shares.items()]
    least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    return Figure(
        "Sparsity by layer",
        f"With {total:.1%} of all weights gone, layers lost from {found[least]:.1%} ({least}) "
        f"to {found[most]:.1%} ({most}).",
        pd.DataFrame(rows, columns=["way", "layer", "sparsity"]),
        "layer",
        "sparsity",
        "bars",
        colour="way",
        percent=frozenset({"sparsity"}),
        references=(Reference("y", total, "the same everywhere"),),
    )


def _progress(run: Run) -> tuple[Figure, ...]:
    """The best loss of every generation, where the run that searched is at hand."""
    rows = [row for row in run.records if "best_loss" in row]
    starts = [number for number, row in enumerate(rows) if row["generation"] == 0]
    if not starts:
        return ()
    table = pd.DataFrame(rows[starts[-1] :])
    start, best = table.uniform_loss.iloc[0], table.best_loss.iloc[-1]
    return (
        Figure(
            "Best loss by generation",
            f"The best try of {len(table)} generations has loss {best:.4f} on the pictures it was judged on; "
            f"the same sparsity everywhere has {start:.4f}.",
            table,
            "generation",
            "best_loss",
            labels={"best_loss": "loss, nats per image"},
            references=(Reference("y", start, "the same everywhere"),),
        ),
    )
