"""Networks of random layers with a trained readout: dense, or ternary with activations of a few values.

Source: Gu et al., "'Lossless' Compression of Deep Neural Networks: A High-dimensional Neural Tangent Kernel
Approach", NeurIPS 2022, arXiv:2403.00258; Rahimi and Recht, "Random Features for Large-Scale Kernel
Machines", NIPS 2007 (random features with a trained readout).
"""

import lzma
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from core.bundles import Split
from core.errors import UnsupportedModelError
from core.layers import PRUNABLE, private_copy
from core.moments import Activation, Steps, five_steps, moments, propagate, quantised, three_steps
from core.run import Run
from core.tracing import trace

BATCH = 250  # pictures in one forward pass

Mode = Literal["share", "weights-only", "paper", "released"]
Draw = Callable[[int, int], Tensor]  # outputs, inputs -> weights (O, I) of mean 0 and variance 1


# ---------------------------------------------------------------------------------------- modules


class StepActivation(nn.Module):
    """A function of `steps` + 1 values, `core.moments.Steps`, which keeps its shape (N, ...).

    Its own gradient is zero. In its place a constant is passed back, E[s'] at the spread that the
    inputs should have, so that a trunk below can still be trained.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.register_buffer("thresholds", torch.zeros(steps))  # (T,)
        self.register_buffer("levels", torch.zeros(steps + 1))  # (T + 1,)
        self.register_buffer("slope", torch.zeros(()))

    @classmethod
    def of(cls, steps: Steps, tau: float) -> "StepActivation":
        """The module that carries out `steps` on inputs of standard deviation `tau`."""
        module = cls(len(steps.thresholds))
        module.thresholds.copy_(torch.tensor(steps.thresholds))
        module.levels.copy_(torch.tensor(steps.levels))
        module.slope.fill_(moments(steps, tau).a1)
        return module

    def forward(self, x: Tensor) -> Tensor:
        index = torch.bucketize(x.detach(), self.thresholds.to(x.dtype))
        return self.levels.to(x.dtype)[index] + self.slope.to(x.dtype) * (x - x.detach())


class Fixed(nn.Module):
    """Parametrization w -> w without a gradient: later steps of a recipe train everything else."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.detach()


# ---------------------------------------------------------------------------------------- weights


def gaussian(outputs: int, inputs: int) -> Tensor:
    """Weights (O, I) of mean 0 and variance 1."""
    return torch.randn(outputs, inputs)


def ternary(outputs: int, inputs: int, zeros: float) -> Tensor:
    """Weights (O, I) in {-c, 0, c}, c = (1 - zeros)^(-1/2), with equally many of both signs, shuffled.

    Raises:
        ValueError: `zeros` lies outside [0, 1), or leaves less than one weight per row on average.
    """
    if not 0 <= zeros < 1:
        raise ValueError(f"ternary weights: zeros must lie in [0, 1), got {zeros}")
    if (1 - zeros) * inputs < 1 - 1e-9:
        raise ValueError(
            f"ternary weights: zeros must leave one weight per row on average, got {zeros} of {inputs} inputs"
        )
    each = round((1 - zeros) / 2 * outputs * inputs)
    weights = torch.zeros(outputs * inputs)
    weights[:each] = 1
    weights[outputs * inputs - each :] = -1  # of an odd number without zeros one sign has one more
    return weights[torch.randperm(len(weights))].view(outputs, inputs) / math.sqrt(1 - zeros)


def most_zeros(inputs: int) -> float:
    """The largest share of zeros that leaves every unit one of its `inputs`, on average."""
    return 1 - 1 / inputs


def pruned(weights: Tensor, sparsity: float) -> Tensor:
    """`weights` (O, I) without the smallest ones, at variance 1 again."""
    gone = round(sparsity * weights.numel())
    kept = weights.flatten().clone()
    kept[weights.abs().flatten().argsort()[:gone]] = 0
    return (kept / kept.square().mean().sqrt()).view_as(weights)


def pruned_gaussian(outputs: int, inputs: int, sparsity: float) -> Tensor:
    """Gaussian weights (O, I), pruned by magnitude."""
    return pruned(gaussian(outputs, inputs), sparsity)


# --------------------------------------------------------------------------------------- networks


def twin_activations(
    mode: Mode, depth: int, levels: int = 4, original: Activation = F.relu
) -> tuple[Activation, ...]:
    """What stands in the place of `original` in a twin of `depth` layers.

    "share": the quantiser of so many levels that is closest to it. "weights-only": the original itself.
    "paper": three steps with its a1, a2 and a4 in every layer. "released": the same, and in the last
    layer the five steps of the authors' program.
    """
    if mode == "weights-only":
        return (original,) * depth
    if mode == "share":
        return (quantised(original, levels),) * depth
    found: list[Steps] = []
    tau = 1.0
    for number, target in enumerate(propagate((original,) * depth), 1):
        if mode == "released" and number == depth:
            found.append(five_steps(target.a1, target.a2, target.a4, target.tau, tau)[0])
        else:
            found.append(three_steps(target.a1, target.a2, target.a4, tau))
        tau = moments(found[-1], tau).tau
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Standard:
    """Centre and scale of training inputs: less `mean`, by `scale`, their mean squared norm is 1."""

    mean: Tensor  # (I,)
    scale: float

    @classmethod
    def of(cls, inputs: Tensor) -> "Standard":
        """Of inputs (N, I).

        Raises:
            ValueError: they are not finite, or all the same.
        """
        exact = inputs.double()
        mean = exact.mean(0)
        scale = (exact - mean).square().sum(1).mean().sqrt().item()
        if not math.isfinite(scale) or scale <= 1e-6 * max(1.0, mean.abs().max().item()):
            raise ValueError(
                f"standardisation: inputs must be finite and differ, got a spread of {scale:.3g}"
            )
        return cls(mean.float(), scale)


def random_layers(
    draw: Draw, activations: Sequence[Activation], width: int, standard: Standard
) -> nn.Sequential:
    """Layers of `width` random units: inputs (N, I) -> features (N, width), not centred.

    A layer is sigma(W h), h the layer before it, centred and divided by the root of its width. Centre
    and scale go into weight and bias of the Linear layer that reads h, so every hidden weight is one
    of three numbers where those of W are.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    shift, factor = standard.mean, 1 / standard.scale
    for number, (activation, layer) in enumerate(zip(activations, propagate(activations), strict=True), 1):
        weight = draw(width, len(shift)) * factor
        linear = nn.Linear(len(shift), width)
        linear.weight.data, linear.bias.data = weight, -(weight.double() @ shift.double()).float()
        layers[f"linear{number}"] = linear
        if isinstance(activation, Steps):
            layers[f"steps{number}"] = StepActivation.of(activation, layer.tau_in)
        elif activation is F.relu:
            layers[f"relu{number}"] = nn.ReLU()
        else:
            raise ValueError(f"random layers: activations must be steps or ReLU, got {activation}")
        shift, factor = torch.full((width,), layer.mean), 1 / math.sqrt(width)
    return nn.Sequential(layers)


def fix_weights(layers: nn.Sequential) -> None:
    """Keep the weights of all Linear layers as they are while others are trained; `bake` ends it."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            parametrize.register_parametrization(layer, "weight", Fixed())


def ridge_readout(features: Tensor, labels: Tensor, classes: int, strength: float) -> nn.Linear:
    """The Linear layer whose outputs are closest to the one-hot labels (N,), by ridge regression.

    `strength` is in units of the mean variance of the features (N, I); the bias is not shrunk.
    """
    exact, wanted = features.double(), F.one_hot(labels, classes).double()
    mean, rate = exact.mean(0), wanted.mean(0)
    centred, wanted = exact - mean, wanted - rate
    count, width = centred.shape
    shrink = max(strength * centred.square().sum().item() / width, 1e-12)  # n times strength times variance
    if count < width:
        kernel = centred @ centred.T
        kernel.diagonal().add_(shrink)
        weight = torch.linalg.solve(kernel, wanted).T @ centred
    else:
        gram = centred.T @ centred
        gram.diagonal().add_(shrink)
        weight = torch.linalg.solve(gram, centred.T @ wanted).T
    readout = nn.Linear(width, classes)
    readout.weight.data, readout.bias.data = weight.float(), (rate - weight @ mean).float()
    return readout.requires_grad_(False)


def random_head(
    draw: Draw,
    activations: Sequence[Activation],
    width: int,
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
) -> nn.Sequential:
    """Random layers and the readout that ridge regression finds on inputs (N, I) with labels (N,)."""
    head = random_layers(draw, activations, width, Standard.of(inputs))
    with torch.no_grad():
        features = head(inputs)
    head.append(ridge_readout(features, labels, classes, strength))
    return head.requires_grad_(False)


def sharpness(scores: Tensor, labels: Tensor) -> float:
    """The factor that makes `scores` (N, K) the logits with the lowest cross-entropy, in [0.01, 100]."""
    scores = scores.double()
    right = scores.gather(1, labels[:, None]).mean()
    low, high = math.log(0.01), math.log(100.0)
    for _ in range(40):  # the loss is convex in the factor: halve where its slope changes sign
        middle = (low + high) / 2
        slope = ((math.exp(middle) * scores).softmax(1) * scores).sum(1).mean() - right
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp((low + high) / 2)


# --------------------------------------------------------------------------------- inside a network


_RUN = (nn.Linear, nn.ReLU, nn.Dropout, nn.Identity, StepActivation)


def final_run(who: str, model: nn.Module) -> list[str]:
    """The last Linear layers of `model` and what stands between them, in order of execution.

    From the first Linear layer from which only Linear, ReLU, Dropout, Identity and step modules, each
    used once and read by the next alone, lead to the logits. Functions end the run.

    Raises:
        UnsupportedModelError: the code cannot be followed, or does not end in a Linear layer.
    """
    try:
        graph = trace(model, (*PRUNABLE, StepActivation)).graph
    except Exception as error:  # whatever a network's code makes of symbols in place of tensors
        raise UnsupportedModelError(
            f"{who}: the model must have code that can be followed, got {type(error).__name__}"
        ) from error
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    node = next(node for node in graph.nodes if node.op == "output").args[0]
    names: list[str] = []
    while (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and isinstance(model.get_submodule(node.target), _RUN)
        and calls.count(node.target) == len(node.users) == 1
    ):
        names.insert(0, node.target)
        node = node.args[0] if node.args else None
    linear = [isinstance(model.get_submodule(name), nn.Linear) for name in names]
    if not any(linear):
        raise UnsupportedModelError(f"{who}: the model must end in a Linear layer, got another end")
    return names[linear.index(True) :]


def inputs_of(model: nn.Module, name: str, split: Split, run: Run) -> Tensor:
    """What enters the module `name` of `model` for every picture of `split`: (N, ...), on the CPU."""
    network = private_copy(model, run.device)
    seen: list[Tensor] = []
    network.get_submodule(name).register_forward_pre_hook(lambda layer, args: seen.append(args[0].cpu()))
    parts = []
    for start in run.track(range(0, len(split), BATCH), "Reading features"):
        with torch.no_grad():
            network(split.take(slice(start, start + BATCH)).images.to(run.device))
        parts.append(seen.pop())
    return torch.cat(parts)


# ----------------------------------------------------------------------------------------- memory


def entropy(zeros: float) -> float:
    """Bits per weight that is 0 with probability `zeros`, and else one of two values, equally often."""
    return _binary(zeros) + (1 - zeros)


def _binary(share: float) -> float:
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


@dataclass(frozen=True)
class Memory:
    """Bits that a network of random layers with a readout takes, counted in three ways."""

    paper: float  # 1 bit per nonzero weight, the readout's too, and per unit; nothing for positions
    entropy: float  # the shortest code of the hidden weights; biases and readout at 32 bits
    packed: float  # bytes really made, times 8: 2 bits per weight, then lzma


def paper_bits(widths: Sequence[int], zeros: float | None = None) -> float:
    """The paper's count for layers of `widths`, inputs first, classes last; dense where `zeros` is None."""
    weights = sum(a * b for a, b in pairwise(widths))
    units = sum(widths[1:])
    return 32.0 * (weights + units) if zeros is None else (1 - zeros) * weights + units


def memory(layers: Sequence[nn.Module]) -> Memory:
    """What hidden layers and a readout, the last of the Linear layers among `layers`, take.

    A hidden layer is ternary, pruned (some zeros, any values) or dense. A pruned one costs 32 bits
    per weight that is left; the entropy adds where these are.
    """
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    hidden, readout = [layer.weight.detach() for layer in linear[:-1]], linear[-1].weight
    widths = [linear[0].in_features, *(layer.out_features for layer in linear)]
    count = sum(weight.numel() for weight in hidden)
    zeros = sum(int((weight == 0).sum()) for weight in hidden) / count if count else 0.0
    if hidden and all(_is_ternary(weight) for weight in hidden):
        paper = paper_bits(widths, zeros)
    else:
        paper = paper_bits(widths) - 32 * zeros * count
    plain = 32 * (readout.numel() + sum(widths[1:]))
    biases = [layer.bias for layer in linear if layer.bias is not None]
    rest = b"".join(value.detach().float().numpy().tobytes() for value in (readout, *biases))
    return Memory(
        paper=paper,
        entropy=plain + sum(_coded_bits(weight) for weight in hidden),
        packed=8.0 * len(lzma.compress(b"".join([*map(_packed, hidden), rest]))),
    )


def _is_ternary(weight: Tensor) -> bool:
    return len(weight[weight != 0].abs().unique()) <= 1


def _coded_bits(weight: Tensor) -> float:
    zeros = (weight == 0).double().mean().item()
    if _is_ternary(weight):
        return weight.numel() * entropy(zeros)
    return weight.numel() * ((1 - zeros) * 32 + _binary(zeros))


def _packed(weight: Tensor) -> bytes:
    """Ternary: 2 bits per weight. Else the weights that are not zero and, if any is, a bit for each."""
    values = weight.numpy().ravel()
    if _is_ternary(weight):
        codes = np.sign(values).astype(np.int8) % 3  # 0, 1, 2 for 0, plus, minus
        bits = np.stack([codes >> 1, codes & 1], 1)
        return np.packbits(bits.astype(bool)).tobytes() + np.float32(np.abs(values).max()).tobytes()
    kept = values != 0
    return (b"" if kept.all() else np.packbits(kept).tobytes()) + values[kept].tobytes()
