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
from core.layers import require_prunable
from core.method import choice, number
from core.moments import Activation, Moments, Steps, coefficients, moments, propagate
from core.random_features import (
    Draw,
    Memory,
    StepActivation,
    final_run,
    fix_weights,
    gaussian,
    inputs_of,
    memory,
    most_zeros,
    pruned,
    random_head,
    sharpness,
    ternary,
    twin_activations,
)
from core.recipe import COMPRESSORS, Compressor
from core.run import Run

SHOWN = 500  # validation pictures in the kernels of the figures
SPARSITIES = (0.5, 0.8, 0.9, 0.95)  # of the networks that memory is compared with
DENSE, TERNARY = "dense twin, ReLU", "ternary twin"


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

    Activations take few values. "share": the quantiser of ReLU that keeps most of the variance as
    signal. "paper": three steps with ReLU's moments a1, a2, a4 in every layer; their variance cannot
    be ReLU's, and the surplus acts as noise. "released": the same, with the last layer of the
    authors' program, which fits the moments as well as it can. "weights-only": ReLU itself. Later steps
    of a recipe keep the ternary weights and pass a constant slope back through the steps.

    Source: Gu et al., "'Lossless' Compression of Deep Neural Networks: A High-dimensional Neural
    Tangent Kernel Approach", NeurIPS 2022, arXiv:2403.00258, theorems 1 and 2 and section 3.
    """

    name: ClassVar[str] = "ntk-lossless"
    title: ClassVar[str] = 'NTK "lossless"'

    mode: str = choice(
        "share", "weights-only", "paper", "released", help="Which activations the new layers get"
    )
    depth: int = number(1, 1, 4, 1, help="Random hidden layers before the readout")
    width: int = number(512, 16, 4096, 16, unit="units", help="Units of every hidden layer")
    zeros: float = number(0.9, 0.0, 0.99, 0.01, help="Fraction of the random weights that are zero")
    levels: int = number(4, 2, 16, 1, help="Values that an activation can take, in mode share")
    ridge: float = number(0.1, 1e-6, 100.0, 1e-6, scale="log", help="Pull of the readout's weights to zero")
    images: int = number(4000, 1, 1_000_000, 1, help="Training pictures for the readout, drawn once")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        require_prunable(model)
        names = final_run(self.name, model)
        last = [name for name in names if isinstance(model.get_submodule(name), nn.Linear)][-1]
        classes = model.get_submodule(last).out_features
        train, watched = sample(setting.train, self.images), setting.validation.take(slice(0, self.images))
        with run.step(0, 2):
            inputs = self._inputs(model, names[0], train, run)
        head = self._head(self._ternary, self._activations(), inputs, train.labels, classes)
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

    def _activations(self) -> tuple[Activation, ...]:
        return twin_activations(self.mode, self.depth, self.levels)

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
        relu = (F.relu,) * self.depth
        dense = self._head(gaussian, relu, inputs, train.labels, new[-1].out_features)
        twins = {DENSE: propagate(relu), TERNARY: propagate(_activations_of(new))}
        features = {DENSE: dense[:-1](watched[:SHOWN]), TERNARY: new[:-1](watched[:SHOWN])}

        def accuracy(head: nn.Module) -> float:
            return correct(head(watched), setting.validation.labels).double().mean().item()

        with run.step(2, 3):
            rivals = [("the network before", old), (DENSE, dense), (TERNARY, new)]
            for sparsity in run.track(SPARSITIES, "Fitting twins"):
                for name, draw, activations in (
                    ("dense twin, pruned", lambda o, i, s=sparsity: pruned(gaussian(o, i), s), relu),
                    (TERNARY, partial(self._ternary, zeros=sparsity), self._activations()),
                ):
                    head = self._head(draw, activations, inputs, train.labels, new[-1].out_features)
                    rivals.append((name, head))
            points = [(name, memory(head), accuracy(head)) for name, head in rivals]
        shapes = [_shape_figure(new)] if self.mode != "weights-only" else []
        return [
            _memory_figure(points),
            *shapes,
            _moments_figure(twins),
            _share_figure(twins),
            _spectrum_figure(twins, features, new[-1].out_features),
        ]


def _plain_layers(model: nn.Module, names: Sequence[str]) -> nn.Sequential:
    """The modules `names` of `model` in a row, without those that do nothing."""
    modules = [model.get_submodule(name) for name in names]
    return nn.Sequential(*(m for m in modules if not isinstance(m, nn.Identity | nn.Dropout)))


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


def _shape_figure(head: nn.Sequential) -> Figure:
    """The activations beside ReLU, each with its inputs in units of their standard deviation."""
    rows = []
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    layers = propagate(_activations_of(head))
    for depth, (steps, layer) in enumerate(zip(_activations_of(head), layers, strict=True), 1):
        fitted = layer.a1 / 0.5 * (F.relu(layer.tau_in * x) - moments(F.relu, layer.tau_in).mean) + layer.mean
        for name, values in (("ReLU, scaled", fitted), ("steps", steps(layer.tau_in * x))):
            rows += [
                {"layer": f"layer {depth}", "function": name, "input": a, "output": b}
                for a, b in zip(x.tolist(), values.tolist(), strict=True)
            ]
    cuts = ", ".join(f"{t / layers[0].tau_in:.2f}" for t in _activations_of(head)[0].thresholds)
    finding = (
        f"The first layer's activation takes {len(set(head[1].levels.tolist()))} values and steps at {cuts} "
        "standard deviations; ReLU is drawn with the same mean and mean slope."
    )
    return Figure(
        "The activations",
        finding,
        pd.DataFrame(rows),
        "input",
        "output",
        colour="function",
        panel="layer",
        labels={"input": "input, standard deviations"},
    )


def _moments_figure(twins: Mapping[str, Sequence[Moments]]) -> Figure:
    rows = [
        {"layer": f"layer {depth}", "network": name, "moment": moment, "value": abs(getattr(layer, moment))}
        for name, layers in twins.items()
        for depth, layer in enumerate(layers, 1)
        for moment in ("a1", "a2", "a4", "tau")
    ]
    dense, new = twins[DENSE][-1], twins[TERNARY][-1]
    finding = (
        f"In the last random layer the ternary twin has a1 {new.a1:.3f}, a2 {new.a2:.3f}, a4 {new.a4:.3f} "
        f"and spread tau {new.tau:.3f}; ReLU's are {dense.a1:.3f}, {dense.a2:.3f}, {dense.a4:.3f} and "
        f"{dense.tau:.3f}. "
        "Equal a1, a2, a4 in every layer give the same kernel up to a multiple of the identity."
    )
    return Figure(
        "Moments of the activations",
        finding,
        pd.DataFrame(rows),
        "moment",
        "value",
        "bars",
        colour="network",
        panel="layer",
    )


def _share_figure(twins: Mapping[str, Sequence[Moments]]) -> Figure:
    rows = [
        {"layer": f"layer {depth}", "network": name, "share": layer.share}
        for name, layers in twins.items()
        for depth, layer in enumerate(layers, 1)
    ]
    worst = min(layer.share for layer in twins[TERNARY])
    finding = (
        f"Of the variance of a layer's outputs at least {worst:.0%} is signal in the ternary twin and "
        f"{twins[DENSE][0].share:.0%} with ReLU; the rest acts like noise, and adds up with depth."
    )
    return Figure(
        "Signal in the variance",
        finding,
        pd.DataFrame(rows),
        "layer",
        "share",
        "bars",
        colour="network",
        percent=frozenset({"share"}),
        labels={"share": "part of the variance that is signal"},
    )


def _spectrum_figure(
    twins: Mapping[str, Sequence[Moments]], features: Mapping[str, Tensor], classes: int
) -> Figure:
    """Eigenvalues of both kernels, each by its linear coefficient, and less the known multiple of I."""
    kernels, shift = {}, {}
    for name, layers in twins.items():
        linear, _, quadratic, _ = coefficients(layers)[-1].alpha
        kernels[name] = conjugate_kernel(features[name], layers[-1].mean) / linear
        shift[name] = (layers[-1].tau ** 2 - linear - quadratic) / linear
    delta = shift[TERNARY] - shift[DENSE]
    eye = torch.eye(len(kernels[TERNARY]), dtype=torch.float64)
    kernels[f"{TERNARY}, less {delta:.2f} I"] = cleared = kernels[TERNARY] - delta * eye
    rows = [
        {"kernel": name, "index": index, "eigenvalue": value}
        for name, kernel in kernels.items()
        for index, value in enumerate(torch.linalg.eigvalsh(kernel).flip(0).tolist(), 1)
        if value > 1e-9
    ]
    most = min(classes, len(eye))
    apart = [relative_distance(kernels[DENSE], kernel) for kernel in (kernels[TERNARY], cleared)]
    overlap = overlaps(kernels[DENSE], kernels[TERNARY], most)[-1].item()
    finding = (
        f"On {len(eye)} validation pictures the ternary twin's kernel differs from the dense twin's by "
        f"{apart[0]:.0%} in operator norm, and by {apart[1]:.0%} once the {delta:.2f} I that the moments "
        f"predict is taken off; the spaces of their top {most} eigenvectors overlap by {overlap:.0%}."
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
