"""A network as a proof sees it: affine layers with a ReLU between every two, in double precision."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import UnsupportedModelError
from core.layers import private_copy

Affine = tuple[Tensor, Tensor]  # matrix (O, I), offset (O,)

LARGEST = 40_000_000  # numbers in one unrolled layer: 320 MB
WANTED = "one of linear layer, convolution, batch norm, average pooling, flattening, ReLU"
SILENT = (nn.Identity, nn.Dropout, nn.Dropout2d)  # layers that do nothing in eval mode


@dataclass(frozen=True, eq=False)
class ReluNetwork:
    """Layer k of L is weights[k] (O, I) and biases[k] (O,), float64; a ReLU follows all but the last."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

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

    @cached_property
    def digest(self) -> str:
        """The same for the same numbers."""
        found = blake2b(digest_size=12)
        for value in (*self.weights, *self.biases):
            found.update(str(tuple(value.shape)).encode() + value.contiguous().numpy().tobytes())
        return found.hexdigest()


def unroll(model: nn.Module, shape: tuple[int, ...]) -> ReluNetwork:
    """`model`, whose inputs are (N, *shape), as affine layers and ReLUs.

    Batch norm and average pooling are affine; convolutions become matrices, (outputs, inputs) of a whole
    picture; affine layers without a ReLU between them become one.

    Raises:
        UnsupportedModelError: `model` is no chain of such layers, or too large once unrolled.
    """
    network = private_copy(model).double()
    weights, biases, shape = [], [], torch.Size(shape)
    affine: Affine | None = None  # not yet followed by a ReLU
    for name, layer in _chain(network, shape):
        if isinstance(layer, nn.ReLU):
            if affine is None and not weights:
                affine = _identity(shape.numel())
            if affine is not None:  # a ReLU behind a ReLU changes nothing
                weights.append(affine[0])
                biases.append(affine[1])
                affine = None
            continue
        step, shape = _affine(name, layer, shape)
        if step is not None:
            affine = step if affine is None else (step[0] @ affine[0], step[0] @ affine[1] + step[1])
    last = affine or _identity(shape.numel())
    return ReluNetwork((*weights, last[0]), (*biases, last[1]))


def _chain(network: nn.Module, shape: torch.Size) -> Iterator[tuple[str, nn.Module]]:
    """The layers of `network` in the order in which they are applied, each to what the one before gave."""
    leaves = {m: name for name, m in network.named_modules() if not any(True for _ in m.children())}
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    handles = [
        leaf.register_forward_hook(lambda m, args, output: seen.append((m, args[0], output)))
        for leaf in leaves
    ]
    example = torch.rand(1, *shape, dtype=torch.float64)
    with torch.no_grad():
        answer = network(example)
    for handle in handles:
        handle.remove()
    before = example
    for module, given, made in seen:
        if given is not before and not (
            given.numel() == before.numel() and given.data_ptr() == before.data_ptr()
        ):
            raise _unsupported(
                leaves[module], "a layer that takes what the one before it gives", "another input"
            )
        yield leaves[module], module
        before = made
    if answer.data_ptr() != before.data_ptr():
        raise _unsupported("model", "a chain of modules", "arithmetic behind the last of them")


def _affine(
    name: str, layer: nn.Module, shape: torch.Size
) -> tuple[tuple[Tensor, Tensor] | None, torch.Size]:
    """(matrix, offset) of a layer, None where it changes the shape only, and the shape of its output."""
    if isinstance(layer, nn.Flatten):
        return None, torch.Size([shape.numel()])
    if isinstance(layer, SILENT):
        return None, shape
    if isinstance(layer, nn.Linear) and len(shape) == 1:
        bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(len(layer.weight))
        return (layer.weight.detach(), bias.detach()), torch.Size([len(bias)])
    if isinstance(layer, nn.Conv2d | _BatchNorm | nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        return _by_columns(name, layer, shape)
    raise _unsupported(
        name,
        "linear layers, convolutions, batch norms, average pooling, flattening and ReLUs",
        type(layer).__name__,
    )


@torch.no_grad()
def _by_columns(name: str, layer: nn.Module, shape: torch.Size) -> tuple[Affine, torch.Size]:
    """An affine layer's matrix, a column for every input: what it makes of it alone, less what of nothing."""
    nothing = torch.zeros(1, *shape, dtype=torch.float64)
    offset = layer(nothing)
    size = shape.numel() * offset.numel()
    if size > LARGEST:
        raise _unsupported(name, f"at most {LARGEST:,} numbers once unrolled", f"{size:,}")
    columns = [
        layer(part.view(-1, *shape)) - offset
        for part in torch.eye(shape.numel(), dtype=torch.float64).split(256)
    ]
    matrix = torch.cat(columns).flatten(1).T.contiguous()
    return (matrix, offset.flatten()), offset.shape[1:]


def _identity(size: int) -> Affine:
    return torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)


def _unsupported(name: str, wanted: str, got: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"proof: {name} must be {wanted}, got {got}")
