"""What masks hold at zero, through the cuts that a network takes."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.cutting import skeleton
from core.layers import Mask, apply_mask, bake


class Held:
    """The masks of a network, on their way into a smaller one.

    Cuts work on plain weights, so the masks are carried as if they were the weights of a second
    network of the same structure: what is cut from one is cut from the other.
    """

    def __init__(self, model: nn.Module) -> None:
        masks = _masks(model)
        self._places = list(masks)
        self._pattern = bake(skeleton(model)) if masks else None
        for (layer, tensor), keep in masks.items():
            value = getattr(self._pattern.get_submodule(layer), tensor)
            value.data = keep.to(value.dtype)

    def cut(self, take: Callable[[nn.Module], None]) -> None:
        """Let `take`, which cuts in place, take the same from the masks."""
        if self._pattern is not None:
            take(self._pattern)

    @torch.no_grad()
    def zero(self, network: nn.Module) -> None:
        """Set to zero, in place, what is held; `network`, in plain weights, has taken the same cuts."""
        for layer, tensor, keep in self._left(network):
            getattr(layer, tensor).mul_(keep.to(getattr(layer, tensor).device))

    def hold(self, network: nn.Module) -> None:
        """Mask `network`, in plain weights, where it has taken the same cuts."""
        for layer, tensor, keep in self._left(network):
            apply_mask(layer, keep, tensor)

    def _left(self, network: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Layer, tensor and mask, of layers that are still there."""
        there = dict(network.named_modules()) if self._places else {}
        for name, tensor in self._places:
            if name in there:
                keep = getattr(self._pattern.get_submodule(name), tensor).detach() != 0
                yield there[name], tensor, keep


def _masks(model: nn.Module) -> dict[tuple[str, str], Tensor]:
    """(layer, tensor) -> mask, of every tensor that masks hold at zero."""
    found: dict[tuple[str, str], Tensor] = {}
    for name, layer in model.named_modules():
        if not parametrize.is_parametrized(layer):
            continue
        for tensor, steps in layer.parametrizations.items():
            for step in steps:
                if isinstance(step, Mask):
                    keep = step.keep.expand(getattr(layer, tensor).shape)
                    found[name, tensor] = found[name, tensor] & keep if (name, tensor) in found else keep
    return found
