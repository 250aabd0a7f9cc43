"""NTK "lossless": a random network of ternary weights and few activation values takes the head's place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting, Split
from core.conjugate import conjugate_kernel, overlaps, relative_distance
from core.criterion import sample
from core.cutting import replace_layer
from core.errors import UnsupportedModelError
from core.evaluation import correct
from core.figure import Figure
from core.layers import private_copy, require_prunable
from core.method import choice, number
from core.moments import Activation, Moments, Steps, coefficients, propagate
from core.random_features import (
    Draw,
    Memory,
    Mode,
    StepActivation,
    final_run,
    fix_weights,
    gaussian,
    inputs_of,
    memory,
    most_zeros,
    pruned_gaussian,
    random_head,
    sharpness,
    ternary,
    twin_activations,
)
from core.recipe import COMPRESSORS, Compressor
from core.run import Run

SHOWN = 500  # validation pictures in the kernels of the figures
SPARSITIES = (0.5, 0.8, 0.9, 0.95)  # of the networks that memory is compared with
COMPARED: tuple[Mode, ...] = ("weights-only", "share", "paper")  # in every figure, beside the network's own
DENSE, TERNARY, RELU = "dense twin, ReLU", "ternary twin", "ReLU"


@COMPRESSORS.register
@dataclass(frozen=True)
class NtkLossless(Compressor):
    """Put a random network with weights -1, 0, +1 in the place of the fully connected layers.

    This does not compress trained hidden weights: it throws them away. The final run of Linear layers,
    with the ReLU and Dropout modules between them (all of an MLP, the classifier of a network with
    convolutions), is replaced by `depth` random ternary layers, and only the readout behind them is
    found, by ridge regression on training pictures. What comes before stays as it is. The new head may
    be larger than the old one, so the share of zeros is `zeros`, not a sparsity to be swept; it is
    lower where a layer has so few inputs that a unit would be left without any.

    "weights-only" keeps ReLU. In the other modes activations take few values, which makes no file
    smaller. "share": the quantiser closest to ReLU, which leaves a large share of the variance to the
    signal. "paper": three steps with ReLU's moments a1, a2, a4 in every layer; their variance cannot
    be ReLU's, and the surplus acts as noise. "released": the same, with the last layer of the authors'
    program, which fits the moments as well as it can. Later steps of a recipe keep the ternary
    weights, and pass a constant slope back through activations that jump.

    Source: Gu et al., "'Lossless' Compression of Deep Neural Networks: A High-dimensional Neural
    Tangent Kernel Approach", NeurIPS 2022, arXiv:2403.00258.
    """

    name: ClassVar[str] = "ntk-lossless"
    title: ClassVar[str] = 'NTK "lossless"'

    mode: str = choice(
        "weights-only", "share", "paper", "released", help="Which activations the new layers get"
    )
    depth: int = number(1, 1, 4, 1, help="Random hidden layers before the readout")
    width: int = number(512, 16, 4096, 16, unit="units", help="Units of every hidden layer")
    zeros: float = number(0.9, 0.0, 0.99, 0.01, help="Fraction of the random weights that are zero")
    levels: int = number(4, 2, 16, 1, help="Values that an activation can take, in mode share")
    ridge: float = number(0.1, 1e-6, 100.0, 1e-6, scale="log", help="Pull of the readout's weights to zero")
    images: int = number(4000, 10, 1_000_000, 1, help="Training pictures for the readout, drawn once")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        require_prunable(model)
        names = final_run(self.name, model)
        last = [name for name in names if isinstance(model.get_submodule(name), nn.Linear)][-1]
        classes = model.get_submodule(last).out_features
        train, watched = sample(setting.train, self.images), setting.validation.take(slice(0, self.images))
        with run.step(0, 2):
            inputs = self._inputs(model, names[0], train, run)
        head = self._head(self._ternary, self._activations(self.mode), inputs, train.labels, classes)
        with run.step(1, 2):
            scores = head(self._inputs(model, names[0], watched, run))
        sharp = sharpness(scores, watched.labels)
        head[-1].weight.mul_(sharp)
        head[-1].bias.mul_(sharp)
        fix_weights(head[:-1])
        for name in names:
            replace_layer(model, name, nn.Identity())
        replace_layer(model, last, head.to(run.device))
        return model

    def _inputs(self, model: nn.Module, first: str, split: Split, run: Run) -> Tensor:
        """What enters the final run, for every picture: (N, I)."""
        inputs = inputs_of(model, first, split, run)
        if inputs.dim() != 2:
            raise UnsupportedModelError(
                f"{self.name}: the model must end in layers that read one vector per picture, "
                f"got inputs of shape {tuple(inputs.shape[1:])}"
            )
        return inputs

    def _activations(self, mode: Mode) -> tuple[Activation, ...]:
        return twin_activations(mode, self.depth, self.levels)

    def _kind(self, mode: Mode) -> str:
        """What the activations of `mode` are called in a figure."""
        return {
            "weights-only": RELU,
            "share": f"{self.levels} levels",
            "paper": "three steps",
            "released": "three steps, then five",
        }[mode]

    def _ternary(self, outputs: int, inputs: int, zeros: float | None = None) -> Tensor:
        zeros = self.zeros if zeros is None else zeros
        return ternary(outputs, inputs, min(zeros, most_zeros(inputs)))

    def _head(
        self, draw: Draw, activations: Sequence[Activation], inputs: Tensor, labels: Tensor, classes: int
    ) -> nn.Sequential:
        try:
            return random_head(draw, activations, self.width, inputs, labels, classes, self.ridge)
        except ValueError as error:
            raise UnsupportedModelError(
                f"{self.name}: what the last layers read must differ between pictures, got {error}"
            ) from error

    # --------------------------------------------------------------------------------- figures

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        names = final_run(self.name, before)
        old, new = (_plain_layers(model, final_run(self.name, model)) for model in (before, after))
        train = sample(setting.train, self.images)
        with run.step(0, 3):
            inputs = inputs_of(before, names[0], train, run)
        with run.step(1, 3):
            watched = inputs_of(before, names[0], setting.validation, run)
        fit = partial(self._head, inputs=inputs, labels=train.labels, classes=new[-1].out_features)
        own, kinds = self._kind(self.mode), {self._kind(mode): self._activations(mode) for mode in COMPARED}
        relu, kinds[own] = kinds[RELU], _activations_of(new)
        dense = fit(gaussian, relu)
        heads = [("the network before", old), (DENSE, dense), (TERNARY, new)]
        heads += [(f"ternary, {name}", fit(self._ternary, kinds[name])) for name in kinds if name != own]
        with run.step(2, 3):
            for sparsity in run.track(SPARSITIES, "Fitting twins"):
                heads.append(("dense twin, pruned", fit(partial(pruned_gaussian, sparsity=sparsity), relu)))
                heads.append((TERNARY, fit(partial(self._ternary, zeros=sparsity), kinds[own])))
        labels = setting.validation.labels
        points = [
            (name, memory(head), correct(head(watched), labels).double().mean().item())
            for name, head in heads
        ]
        layers = {name: propagate(activations) for name, activations in kinds.items()}
        return (
            _memory_figure(points),
            _shape_figure(kinds, own),
            _moments_figure(layers, own),
            _share_figure(layers, own),
            _spectrum_figure(
                {DENSE: layers[RELU], TERNARY: layers[own]},
                {DENSE: dense[:-1](watched[:SHOWN]), TERNARY: new[:-1](watched[:SHOWN])},
                fit(gaussian, relu)[:-1](watched[:SHOWN]),
                new[-1].out_features,
            ),
        )


def _plain_layers(model: nn.Module, names: Sequence[str]) -> nn.Sequential:
    """A copy of the modules `names` of `model` in a row, without those that do nothing."""
    modules = [model.get_submodule(name) for name in names]
    return private_copy(nn.Sequential(*(m for m in modules if not isinstance(m, nn.Identity | nn.Dropout))))


def _activations_of(head: nn.Sequential) -> list[Activation]:
    """What the hidden layers of a head carry out, as its modules say."""
    found: list[Activation] = []
    for module in head[1:-1:2]:
        steps = isinstance(module, StepActivation)
        found.append(
            Steps(tuple(module.thresholds.tolist()), tuple(module.levels.tolist())) if steps else F.relu
        )
    return found


def _memory_figure(points: Sequence[tuple[str, Memory, float]]) -> Figure:
    kinds = {
        "paper": "as the paper counts",
        "entropy": "entropy code, readout at 32 bits",
        "packed": "really packed (lzma)",
    }
    rows = [
        {"network": name, "count": words, "bytes": getattr(bits, kind) / 8, "accuracy": accuracy}
        for name, bits, accuracy in points
        for kind, words in kinds.items()
    ]
    (_, old, first), (_, dense, second), (_, new, third) = points[:3]
    finding = (
        f"Validation accuracy: {first:.1%} before, {second:.1%} with a dense random twin, {third:.1%} with "
        f"the ternary one, which takes {dense.paper / new.paper:.0f} times less memory than the dense twin "
        f"as the paper counts, and {dense.packed / new.packed:.1f} times less when really packed; against "
        f"the layers that it replaces, {_times(old.packed / new.packed)}."
    )
    return Figure(
        "Accuracy and memory of the last layers",
        finding,
        pd.DataFrame(rows),
        "bytes",
        "accuracy",
        "points",
        colour="network",
        panel="count",
        log=frozenset({"bytes"}),
        percent=frozenset({"accuracy"}),
        labels={"bytes": "memory, bytes", "accuracy": "accuracy (validation)"},
    )


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times less" if ratio >= 1 else f"{1 / ratio:.1f} times more"


def _shape_figure(kinds: Mapping[str, Sequence[Activation]], own: str) -> Figure:
    """The activations, centred; inputs and outputs in their standard deviations."""
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    rows, cuts = [], []
    for name, activations in kinds.items():
        for depth, (activation, layer) in enumerate(zip(activations, propagate(activations), strict=True), 1):
            values = (activation(layer.tau_in * x) - layer.mean) / layer.tau
            rows += [
                {"layer": f"layer {depth}", "activation": name, "input": a, "output": b}
                for a, b in zip(x.tolist(), values.tolist(), strict=True)
            ]
            if name == own and isinstance(activation, Steps):
                steps = ", ".join(f"{t / layer.tau_in:.2f}" for t in activation.thresholds[:4])
                cuts.append(f"layer {depth}: {steps}{' ...' if len(activation.thresholds) > 4 else ''}")
    where = f", which jumps, in standard deviations of its input, at: {'; '.join(cuts)}" if cuts else ""
    return Figure(
        "The activations",
        f"This network's activation: {own}{where}. All are drawn centred and with the same variance.",
        pd.DataFrame(rows),
        "input",
        "output",
        colour="activation",
        panel="layer",
        labels={"input": "input, standard deviations", "output": "output, standard deviations"},
    )


def _moments_figure(layers: Mapping[str, Sequence[Moments]], own: str) -> Figure:
    rows = [
        {"layer": f"layer {depth}", "activation": name, "moment": moment, "size": abs(getattr(layer, moment))}
        for name, chain in layers.items()
        for depth, layer in enumerate(chain, 1)
        for moment in ("a1", "a2", "a4", "tau")
    ]
    relu, new = layers[RELU][-1], layers[own][-1]
    finding = (
        f"In the last random layer this network ({own}) has a1 {new.a1:.3f}, a2 {new.a2:.3f}, "
        f"a4 {new.a4:.3f} and spread tau {new.tau:.3f}; ReLU has {relu.a1:.3f}, {relu.a2:.3f}, {relu.a4:.3f} "
        f"and {relu.tau:.3f}. Where a1, a2 and a4 are equal in every layer, so are the kernels of wide "
        "layers, up to a multiple of the identity."
    )
    return Figure(
        "Moments of the activations",
        finding,
        pd.DataFrame(rows),
        "moment",
        "size",
        "bars",
        colour="activation",
        panel="layer",
    )


def _share_figure(layers: Mapping[str, Sequence[Moments]], own: str) -> Figure:
    rows = [
        {"layer": f"layer {depth}", "activation": name, "share": layer.share}
        for name, chain in layers.items()
        for depth, layer in enumerate(chain, 1)
    ]
    worst = ", ".join(f"{name} {min(layer.share for layer in chain):.0%}" for name, chain in layers.items())
    finding = (
        f"Part of the variance of a layer's outputs that is signal, in the worst layer: {worst}. The rest "
        f"acts like noise, and adds up with depth. This network has: {own}."
    )
    return Figure(
        "Signal in the variance",
        finding,
        pd.DataFrame(rows),
        "layer",
        "share",
        "bars",
        colour="activation",
        percent=frozenset({"share"}),
        labels={"share": "part of the variance that is signal"},
    )


def _spectrum_figure(
    twins: Mapping[str, Sequence[Moments]], features: Mapping[str, Tensor], again: Tensor, classes: int
) -> Figure:
    """Eigenvalues of both kernels, and of the ternary one less the multiple of I that moments predict.

    The ternary kernel is scaled to the dense one's signal; where moments are matched, that is no change.
    `again` are the features of another draw of the dense twin, for comparison.
    """
    dense, few = (coefficients(twins[name])[-1] for name in (DENSE, TERNARY))
    scale = (dense.alpha[0] + dense.alpha[2]) / (few.alpha[0] + few.alpha[2])
    kernels = {name: conjugate_kernel(features[name], twins[name][-1].mean) for name in twins}
    kernels[TERNARY] *= scale
    delta = scale * few.tau**2 - dense.tau**2
    one, other = kernels[DENSE], kernels[TERNARY]
    most, apart = min(classes, len(one)), relative_distance(one, other)
    noise = relative_distance(one, conjugate_kernel(again, twins[DENSE][-1].mean))
    words = f"differs from the dense twin's by {apart:.0%} in operator norm"
    if abs(delta) > 1e-9:
        cleared = other - delta * torch.eye(len(other), dtype=other.dtype)
        kernels[f"{TERNARY}, less {delta:.2f} I"] = cleared
        apart = relative_distance(one, cleared)
        words += f", and by {apart:.0%} once the {delta:.2f} I that the moments predict is taken off"
    rows = [
        {"kernel": name, "index": index, "eigenvalue": value}
        for name, kernel in kernels.items()
        for index, value in enumerate(torch.linalg.eigvalsh(kernel).flip(0).tolist(), 1)
        if value > 1e-9
    ]
    finding = (
        f"On {len(one)} validation pictures the ternary twin's kernel {words}; another draw of the dense "
        f"twin by {noise:.0%}. The spaces of the two kernels' top {most} eigenvectors overlap by "
        f"{overlaps(one, other, most)[-1].item():.0%}."
    )
    return Figure(
        "Spectra of the kernels",
        finding,
        pd.DataFrame(rows),
        "index",
        "eigenvalue",
        colour="kernel",
        log=frozenset({"index", "eigenvalue"}),
    )
