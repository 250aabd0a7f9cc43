"""One convolution with all that follows it: batch norm folded in, an addition, an activation.

`Fused` calls oneDNN's fused operators, which torch has for its own compiler and does not promise to
keep; `Plain` computes the same with what it does promise. Both take channels-last activations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = tuple[str, tuple[float, ...]]  # oneDNN's name and its numbers; ("none", ()) is none


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input (N, I, H, W)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    shape: tuple[int, ...]  # of an input; other N work as well

    @classmethod
    def of(cls, layer: nn.Conv2d, shape: tuple[int, ...]) -> "Geometry":
        return cls(layer.stride, layer.padding, layer.dilation, layer.groups, shape)


class Plain:
    """activation(conv(x) + other), step by step."""

    def __init__(
        self, weight: Tensor, bias: Tensor, geometry: Geometry, activation: Activation, dtype: torch.dtype
    ) -> None:
        self._weight = weight.to(dtype, memory_format=torch.channels_last)
        self._bias = bias.to(dtype)
        self._geometry = geometry
        self._activate = function_of(activation)

    def __call__(self, x: Tensor, other: Tensor | None = None, overwrite: bool = False) -> Tensor:
        """(N, I, H, W) -> (N, O, H', W'); `other`, of the result's shape, may be overwritten."""
        g = self._geometry
        y = F.conv2d(x, self._weight, self._bias, g.stride, g.padding, g.dilation, g.groups)
        return self._activate(y if other is None else y.add_(other))


class Fused:
    """The same in one call, with weights laid out once as oneDNN likes them."""

    def __init__(
        self, weight: Tensor, bias: Tensor, geometry: Geometry, activation: Activation, dtype: torch.dtype
    ) -> None:
        g = geometry
        self._places = [list(g.padding), list(g.stride), list(g.dilation), g.groups]
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.to(dtype, memory_format=torch.channels_last), *self._places, list(g.shape)
        )
        self._bias = bias.to(dtype)
        self._activation = [activation[0], list(activation[1]), ""]
        self._after_sum = self._activation if activation[0] != "none" else [None, [], None]

    def __call__(self, x: Tensor, other: Tensor | None = None, overwrite: bool = False) -> Tensor:
        convolution = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return convolution(x, self._weight, self._bias, *self._places, *self._activation)
        summed = ["add", 1.0, *self._after_sum]
        if overwrite:
            in_place = torch.ops.mkldnn._convolution_pointwise_.binary
            return in_place(other, x, self._weight, self._bias, *self._places, *summed)
        return convolution.binary(x, other, self._weight, self._bias, *self._places, *summed)


Kernel = type[Plain] | type[Fused]

_PLAIN: dict[str, Callable[..., Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "hardtanh": F.hardtanh,
    "swish": F.silu,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
_AFTER_SUM = ("none", "relu")  # what oneDNN can do behind an addition


def function_of(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The activation as torch computes it, out of place."""
    name, numbers = activation
    return lambda x: _PLAIN[name](x, *numbers)


def activation_of(target: nn.Module | Callable[..., Tensor] | str, added: bool) -> Activation | None:
    """How a convolution's kernel calls this module, function or method; None if it cannot do it."""
    match target:
        case nn.ReLU() | F.relu | torch.relu | "relu" | "relu_":
            found = "relu", ()
        case nn.ReLU6() | F.relu6:
            found = "hardtanh", (0.0, 6.0)
        case nn.Hardtanh():
            found = "hardtanh", (target.min_val, target.max_val)
        case nn.SiLU() | F.silu:
            found = "swish", ()
        case nn.Hardswish() | F.hardswish:
            found = "hardswish", ()
        case nn.LeakyReLU():
            found = "leaky_relu", (target.negative_slope,)
        case nn.Sigmoid() | torch.sigmoid:
            found = "sigmoid", ()
        case nn.Tanh() | torch.tanh:
            found = "tanh", ()
        case _:
            return None
    return found if not added or found[0] in _AFTER_SUM else None


def fused_works(dtype: torch.dtype) -> bool:
    """Whether this machine has the fused operators for `dtype`, and they say what the plain ones say."""
    random = torch.Generator().manual_seed(0)
    x, other = (torch.randn(2, 16, 8, 8, generator=random) for _ in range(2))
    weight, bias = torch.randn(16, 16, 3, 3, generator=random) / 12, torch.randn(16, generator=random)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1, x.shape)
    x, other = (value.to(dtype, memory_format=torch.channels_last) for value in (x, other))
    try:
        kernels = [kind(weight, bias, geometry, ("relu", ()), dtype) for kind in (Plain, Fused)]
        for addend in (None, other):
            plain, fused = (kernel(x, addend) for kernel in kernels)
            if not torch.allclose(
                plain.float(), fused.float(), atol=0.05 if dtype != torch.float32 else 1e-4
            ):
                return False
    except (RuntimeError, AttributeError):  # no such operator, or none for this precision
        return False
    return True
