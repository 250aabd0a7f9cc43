"""Superpixels: the squares of a regular grid, the same for every picture and network."""

import torch
from torch import Tensor

from core.method import number


def grid_field(side: int = 8) -> int:
    """The field of methods that work on superpixels."""
    return number(side, 2, 32, 1, help="Superpixels along each side of the grid: 8 makes 64")


def grid(images: Tensor, side: int) -> Tensor:
    """Number of the superpixel of every pixel, (1, 1, H, W) int64; at most one per pixel."""
    rows, columns = (torch.arange(length) * min(side, length) // length for length in images.shape[2:])
    numbers = rows[:, None] * min(side, images.shape[3]) + columns[None, :]
    return numbers[None, None].to(images.device)


def sum_over_superpixels(maps: Tensor, side: int) -> Tensor:
    """The sum (N,) over superpixels, of maps (N, C, H, W) in which every pixel has its superpixel's value."""
    numbers = grid(maps, side).flatten()
    values = maps.double().mean(dim=1).flatten(1)  # (N, H W)
    return (values / numbers.bincount()[numbers]).sum(dim=1)
