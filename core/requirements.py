"""What an attribution method may ask of the network that it works through."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from core.errors import ParameterError, UnsupportedModelError

# Rectifiers for which guided backpropagation and deconvolution state no rule. Gates (sigmoid, tanh,
# softmax) are not among them: their gradient passes as it is.
_OTHER_RECTIFIERS = (
    nn.Hardswish, nn.SiLU, nn.GELU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU, nn.Softplus,
)  # fmt: skip


class _CountReLUs(TorchDispatchMode):
    """Counts every ReLU that torch computes, wherever it was called from."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
        return function(*args, **(kwargs or {}))


def require_own_relus(who: str, network: nn.Module, image: Tensor) -> None:
    """Check, by running `image` (1, C, H, W), that every ReLU is a module used once.

    Raises:
        UnsupportedModelError: a ReLU is called as a function, or a ReLU module is used twice.
    """
    calls: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    relus = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.ReLU)]
    with contextlib.ExitStack() as stack, torch.no_grad(), _CountReLUs() as seen:
        for name, module in relus:
            stack.callback(module.register_forward_hook(count(name)).remove)
        network(image)
    functional = seen.count - sum(calls.values())
    reused = [name for name, times in calls.items() if times > 1]
    if functional or reused:
        found = (
            f"module {reused[0]} is used {calls[reused[0]]} times"
            if reused
            else f"{functional} are functions"
        )
        raise UnsupportedModelError(
            f"{who}: every ReLU must be a module of its own, but {found} and the network cannot be traced"
        )


def require_relu_rules(who: str, network: nn.Module) -> None:
    """Check that a rule stated for ReLU alone covers the activations of `network`.

    Raises:
        UnsupportedModelError: it has no ReLU, or another rectifier beside it.
    """
    others = sorted({type(m).__name__ for m in network.modules() if isinstance(m, _OTHER_RECTIFIERS)})
    if others:
        raise UnsupportedModelError(
            f"{who}: the rule is stated for ReLU, and this network has {', '.join(others)} as well"
        )
    if not any(isinstance(m, nn.ReLU) for m in network.modules()):
        raise UnsupportedModelError(f"{who}: the rule changes gradients at ReLUs, and this network has none")


def convolution_from_output(who: str, network: nn.Module, place: int) -> nn.Module:
    """The convolution number `place` of `network`, counted from the output: 1 is the last.

    Raises:
        UnsupportedModelError: it has no convolution.
        ParameterError: it has fewer of them.
    """
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if not found:
        raise UnsupportedModelError(f"{who}: needs a convolution, and this network has none")
    if place > len(found):
        raise ParameterError(f"{who}: layer must lie in [1, {len(found)}] for this network, got {place}")
    return found[-place]
