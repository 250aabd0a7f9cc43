"""Ternary twin: what random networks lose when weights become -1, 0, +1 and activations a few values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from core.bundles import Setting
from core.conjugate import conjugate_kernel, overlaps
from core.digits import originals
from core.evaluation import correct
from core.figure import Figure
from core.lab import LABS, Lab
from core.method import number
from core.moments import SIGN, Activation, propagate
from core.random_features import Draw, gaussian, pruned_gaussian, random_head, ternary, twin_activations
from core.run import Run

CLASSES = 10
TRAIN = 1200  # of the 1,797 digits; accuracy is measured on the others
PICTURES = 300  # in the kernels
EIGENVALUES = 100  # that are shown of them
DEPTHS = (1, 2, 3)
DENSE = "dense, ReLU"
WATCHED = (DENSE, "ternary, ReLU", "ternary, levels", "ternary, paper")  # whose spectra are shown


@LABS.register
@dataclass(frozen=True)
class TernaryTwin(Lab):
    """Random networks on digits, with fewer and fewer values in weights and activations.

    Networks of one to three random layers get a readout by ridge regression on 1,200 of the 1,797
    digits and are measured on the other 597; every seed draws split and weights anew. Ternary
    weights cost next to nothing; what costs is an activation that follows its input with too small
    a share of its variance, and it costs more with every layer. "paper" are three steps with ReLU's
    moments in every layer, "released" the same with the last layer of the authors' program, "levels"
    the quantiser closest to ReLU, "one step" that of two values. The network on the screen is not looked at.

    Source: Gu et al., "'Lossless' Compression of Deep Neural Networks: A High-dimensional Neural
    Tangent Kernel Approach", NeurIPS 2022, arXiv:2403.00258.
    """

    name: ClassVar[str] = "ternary-twin"

    width: int = number(512, 16, 2048, 16, unit="units", help="Units of every random layer")
    zeros: float = number(0.9, 0.0, 0.98, 0.01, help="Fraction of the weights that are zero")
    levels: int = number(4, 2, 16, 1, help="Values of the quantised activation")
    ridge: float = number(0.1, 1e-6, 100.0, 1e-6, scale="log", help="Pull of the readout's weights to zero")
    seeds: int = number(2, 1, 10, 1, help="Splits and draws that are averaged")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        pictures, labels = originals()
        inputs = pictures.flatten(1)
        rows, kernels = [], {}
        twins = self._twins()
        for seed in run.track(range(self.seeds), "Drawing networks"):
            order = torch.randperm(len(labels))
            train, rest = order[:TRAIN], order[TRAIN:]
            for name, (draw, activations) in run.track(twins.items(), "Drawing networks"):
                for depth in DEPTHS:
                    found = activations(depth)
                    head = random_head(
                        draw, found, self.width, inputs[train], labels[train], CLASSES, self.ridge
                    )
                    right = correct(head(inputs[rest]), labels[rest]).double().mean().item()
                    layers = propagate(found)
                    signal = torch.tensor([layer.share for layer in layers]).prod().item()
                    rows.append(
                        {"network": name, "layers": depth, "accuracy": right, "signal": signal, "seed": seed}
                    )
                    if seed == 0 and depth == DEPTHS[-1] and name in WATCHED:
                        kernels[name] = _kernel(head[:-1](inputs[rest[:PICTURES]]), found)
        table = pd.DataFrame(rows)
        mean = table.groupby(["network", "layers"], sort=False).accuracy.agg(["mean", "min", "max"])
        accuracy = mean.reset_index().rename(columns={"mean": "accuracy"})
        signal = table.groupby(["network", "layers"], sort=False)[["signal", "accuracy"]].mean().reset_index()
        return (self._accuracy(accuracy), self._signal(signal), _spectra(kernels))

    def _twins(self) -> dict[str, tuple[Draw, Callable[[int], Sequence[Activation]]]]:
        """Name -> how its weights are drawn, and its activations for a number of layers."""
        few = partial(ternary, zeros=self.zeros)
        relu = partial(twin_activations, "weights-only")
        return {
            DENSE: (gaussian, relu),
            "dense, pruned": (partial(pruned_gaussian, sparsity=self.zeros), relu),
            "ternary, ReLU": (few, relu),
            "ternary, levels": (few, partial(twin_activations, "share", levels=self.levels)),
            "ternary, one step": (few, partial(twin_activations, "share", levels=2)),
            "ternary, sign": (few, lambda depth: (SIGN,) * depth),
            "ternary, paper": (few, partial(twin_activations, "paper")),
            "ternary, released": (few, partial(twin_activations, "released")),
        }

    def _accuracy(self, table: pd.DataFrame) -> Figure:
        last = table[table.layers == DEPTHS[-1]].set_index("network").accuracy
        finding = (
            f"With {DEPTHS[-1]} layers of {self.width}: dense {last[DENSE]:.1%}, ternary weights with "
            f"{self.zeros:.0%} zeros {last['ternary, ReLU']:.1%}, with {self.levels} activation levels too "
            f"{last['ternary, levels']:.1%}, with the paper's three steps {last['ternary, paper']:.1%}, and "
            f"with the authors' last layer {last['ternary, released']:.1%}."
        )
        return Figure(
            "Accuracy of random networks",
            finding,
            table,
            "layers",
            "accuracy",
            colour="network",
            low="min",
            high="max",
            percent=frozenset({"accuracy", "min", "max"}),
            labels={"layers": "random layers"},
        )

    def _signal(self, table: pd.DataFrame) -> Figure:
        from scipy.stats import spearmanr

        rank = spearmanr(table.signal, table.accuracy).statistic
        lowest = table.loc[table.signal.idxmin()]
        finding = (
            "Part of the variance that is signal, multiplied over the layers, against accuracy: rank "
            f"correlation {rank:.2f} over {len(table)} networks. The smallest, {lowest.signal:.0%}, is of "
            f"{lowest.network} with {lowest.layers:.0f} layers, which reaches {lowest.accuracy:.1%}."
        )
        return Figure(
            "Signal and accuracy",
            finding,
            table,
            "signal",
            "accuracy",
            "points",
            colour="network",
            percent=frozenset({"signal", "accuracy"}),
            labels={"signal": "share of signal, product over the layers"},
        )


def _kernel(features: Tensor, activations: Sequence[Activation]) -> Tensor:
    """The conjugate kernel (N, N) of the features, its diagonal about 1."""
    last = propagate(activations)[-1]
    return conjugate_kernel(features, last.mean) / last.tau**2


def _spectra(kernels: dict[str, Tensor]) -> Figure:
    rows = [
        {"network": name, "index": index, "eigenvalue": value}
        for name, kernel in kernels.items()
        for index, value in enumerate(torch.linalg.eigvalsh(kernel).flip(0)[:EIGENVALUES].tolist(), 1)
        if value > 1e-9
    ]
    agree = {name: overlaps(kernels[DENSE], kernel, CLASSES)[-1].item() for name, kernel in kernels.items()}
    words = ", ".join(f"{name} {agree[name]:.0%}" for name in WATCHED[1:])
    finding = (
        f"Conjugate kernels of {DEPTHS[-1]} layers, each by its own variance: the space of the top {CLASSES} "
        f"eigenvectors overlaps with the dense network's by: {words}."
    )
    return Figure(
        "Spectra of the kernels",
        finding,
        pd.DataFrame(rows),
        "index",
        "eigenvalue",
        colour="network",
        log=frozenset({"index", "eigenvalue"}),
    )
