"""A network as a proof sees it: affine layers with a ReLU between every two, in double precision."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from core.layers import private_copy
from core.preparation import rewrite
from core.proving.unrolling import Affine, Step, assemble, unsupported

WANTED = "linear, convolution, batch norm, pooling, flattening, addition or ReLU"
_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, _BatchNorm, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_SILENT = (nn.Identity, _DropoutNd)  # do nothing in eval mode
_SHAPING = (torch.flatten, torch.reshape, "flatten", "view", "reshape", "contiguous")
_ADDITIONS = (operator.add, torch.add, "add")


@dataclass(frozen=True, eq=False)
class ReluNetwork:
    """Layer k of L is weights[k] (O, I) and biases[k] (O,), float64; a ReLU follows all but the last."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @classmethod
    def of(cls, layers: Iterable[Affine]) -> "ReluNetwork":
        return cls(*(tuple(part) for part in zip(*layers, strict=True)))

    @property
    def inputs(self) -> int:
        return self.weights[0].shape[1]

    @property
    def outputs(self) -> int:
        return len(self.biases[-1])

    @property
    def widths(self) -> tuple[int, ...]:
        """ReLUs of every hidden layer."""
        return tuple(len(bias) for bias in self.biases[:-1])

    def __call__(self, x: Tensor) -> Tensor:
        """(N, I) -> (N, K), in double precision."""
        return self.preactivations(x)[-1]

    def preactivations(self, x: Tensor) -> list[Tensor]:
        """What enters the ReLUs of every hidden layer, (N, d_k) each, and the outputs (N, K)."""
        found = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            found.append((found[-1].relu() if found else x.double()) @ weight.T + bias)
        return found

    def behind(self, mean: Sequence[float], std: Sequence[float]) -> "ReluNetwork":
        """The same network for pixels in [0, 1], (C, H, W) laid out in a row, normalised inside."""
        pixels = self.inputs // len(mean)
        scale = 1 / torch.tensor(std, dtype=torch.float64).repeat_interleave(pixels)
        shift = torch.tensor(mean, dtype=torch.float64).repeat_interleave(pixels)
        first = self.weights[0] * scale
        return ReluNetwork((first, *self.weights[1:]), (self.biases[0] - first @ shift, *self.biases[1:]))

    def then(self, rows: Tensor, offsets: Tensor) -> "ReluNetwork":
        """The network whose outputs are rows (R, K) @ outputs - offsets (R,)."""
        *weights, last = self.weights
        *biases, shift = self.biases
        rows = rows.double()
        return ReluNetwork((*weights, rows @ last), (*biases, rows @ shift - offsets.double()))

    def margins(self, label: int, others: Sequence[int]) -> "ReluNetwork":
        """The network whose outputs are the logit of `label` less those of `others`."""
        rows = torch.zeros(len(others), self.outputs, dtype=torch.float64)
        rows[:, label] = 1.0
        rows[torch.arange(len(others)), torch.tensor(others)] = -1.0
        return self.then(rows, torch.zeros(len(others)))

    @cached_property
    def digest(self) -> str:
        """The same for the same numbers."""
        found = blake2b(digest_size=12)
        for value in (*self.weights, *self.biases):
            found.update(str(tuple(value.shape)).encode() + value.contiguous().numpy().tobytes())
        return found.hexdigest()


def unroll(model: nn.Module, shape: tuple[int, ...]) -> ReluNetwork:
    """`model`, whose inputs are (N, *shape), as affine layers and ReLUs.

    Convolutions become matrices, (outputs, inputs) of a whole picture; affine layers without a ReLU
    between them become one. Max pooling is ReLUs, max(a, b) = b + relu(a - b), and whatever is read
    behind a ReLU that it did not enter, as in a residual block, goes through ReLUs of its own.

    Raises:
        UnsupportedModelError: `model` is not made of such layers, or too large once unrolled.
    """
    exact = private_copy(model).double()
    several = any(True for _ in exact.children())
    network = rewrite(exact if several else nn.Sequential(exact)).to(memory_format=torch.contiguous_format)
    if not isinstance(network, fx.GraphModule):
        raise unsupported("the network", "code that can be followed call by call", type(model).__name__)
    random = torch.Generator().manual_seed(0)
    example = torch.rand(1, *shape, dtype=torch.float64, generator=random)
    with torch.no_grad():
        _Shapes(network).run(example)
        found = ReluNetwork.of(assemble(*_steps(network), torch.Size(shape)))
        if not torch.allclose(found(example.flatten(1)), exact(example).flatten(1), rtol=1e-8, atol=1e-8):
            raise unsupported("the network", "the same once unrolled", "one that answers differently")
    return found


class _Shapes(fx.Interpreter):
    """Notes the shape of every tensor on the way."""

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor):
            node.meta["shape"] = value.shape
        return value


def _steps(network: fx.GraphModule) -> tuple[str, list[Step], str]:
    """The name of the input, the steps, and the name of the output."""
    *nodes, output = network.graph.nodes
    given = [node for node in nodes if node.op == "placeholder" and "shape" in node.meta]
    calls = [node for node in nodes if node.op.startswith("call_") and "shape" in node.meta]
    if len(given) != 1 or not isinstance(output.args[0], fx.Node):
        raise unsupported("the network", "a function of one picture with one output", "another")
    return given[0].name, [_step(network, node) for node in calls], output.args[0].name


def _step(network: fx.GraphModule, node: fx.Node) -> Step:
    reads = tuple(read.name for read in node.all_input_nodes if "shape" in read.meta)
    if node.op == "call_module":
        layer = network.get_submodule(node.target)
        if isinstance(layer, nn.ReLU):
            return Step(node.name, reads, "relu")
        if isinstance(layer, nn.MaxPool2d) and not layer.return_indices:
            return Step(node.name, reads, layer)
        if isinstance(layer, nn.Flatten):
            return _shaping(node, reads)
        if isinstance(layer, _SILENT):
            return Step(node.name, reads, lambda x: x, keeps_sign=True)
        if isinstance(layer, _AFFINE) and getattr(layer, "track_running_stats", True):
            return Step(node.name, reads, layer, keeps_sign=isinstance(layer, _AVERAGES))
        raise unsupported(node.target, WANTED, type(layer).__name__)
    if node.target in _SHAPING:
        return _shaping(node, reads)
    if node.target in _ADDITIONS and len(reads) == len(node.args) == 2 and not node.kwargs:
        return Step(node.name, reads, torch.add, keeps_sign=True)
    inside = list(node.meta.get("nn_module_stack", {}))  # the modules in whose code the call stands
    got = getattr(node.target, "__name__", node.target)
    raise unsupported(inside[-1] if inside else node.name, WANTED, f"a call of {got}")


def _shaping(node: fx.Node, reads: tuple[str, ...]) -> Step:
    batch, *shape = node.meta["shape"]
    if batch != 1 or len(reads) != 1:
        raise unsupported(node.name, "a change of shape picture by picture", "one across pictures")
    return Step(node.name, reads, lambda x: x.reshape(len(x), *shape), keeps_sign=True)
