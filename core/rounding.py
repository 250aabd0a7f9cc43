"""Weights on a grid of few values: integers of so many bits, times one step."""

import torch
from torch import Tensor, nn


class Rounding(nn.Module):
    """Parametrization w -> the nearest point of the grid; gradients pass as if it were w."""

    def __init__(self, bits: int, each: bool) -> None:
        super().__init__()
        self.bits, self.each = bits, each

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (rounded(weight.detach(), self.bits, self.each) - weight.detach())


def rounded(weight: Tensor, bits: int, each: bool = False) -> Tensor:
    """The nearest points of the grid of `weight` (O, ...); `each`: of every filter's own grid."""
    levels = 2 ** (bits - 1) - 1
    largest = weight.abs().amax(tuple(range(1, weight.dim())) if each else None, keepdim=True)
    step = largest / levels
    return torch.where(step > 0, (weight / step.where(step > 0, 1)).round() * step, weight)
