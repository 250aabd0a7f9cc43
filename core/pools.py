"""Pools of pictures of unknown kind, made from what is at hand, so that a choice can be judged."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from core.bundles import Split
from core.errors import ParameterError

INSIDE = "held back"  # the origin that is in the domain
COARSE = (2, 4, 8)  # a texture's side before it is smoothed, in cells


@dataclass(frozen=True, eq=False)
class Pool:
    """Unlabelled pictures. Where each came from is for judging only: no choice may look at it."""

    pictures: Split  # (N, C, H, W); its labels are all 0
    origin: Tensor  # (N,) int64, of `origins`
    origins: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.origin)

    @property
    def truth(self) -> Tensor:
        """(N,) bool: is it in the domain?"""
        return self.origin == self.origins.index(INSIDE)

    def names(self) -> list[str]:
        """Where each picture came from."""
        return [self.origins[index] for index in self.origin.tolist()]


def divide(train: Split, per_class: int) -> tuple[Split, Split]:
    """`per_class` pictures of every class drawn, at most half of a class, and the rest, held back.

    Raises:
        ParameterError: no class has two pictures.
    """
    kept = torch.zeros(len(train), dtype=torch.bool)
    for label in train.labels.unique():
        members = (train.labels == label).nonzero()[:, 0]
        kept[members[torch.randperm(len(members))[: min(per_class, len(members) // 2)]]] = True
    if not kept.any():
        raise ParameterError("pool: must have a class of at least two training pictures, got none")
    return train.take(kept.nonzero()[:, 0]), train.take((~kept).nonzero()[:, 0])


def mixed(inside: Split, outside: Mapping[str, Tensor], size: int, share: float) -> Pool:
    """At most `size` pictures in random order: `share` of `inside`, the rest in equal parts of `outside`.

    `outside` maps an origin to pixels (n, C, H, W). The pool is as large as the pictures allow at that
    share, with at least one picture of each kind.

    Raises:
        ParameterError: there are not enough pictures for that.
    """
    parts = {name: pixels[torch.randperm(len(pixels))] for name, pixels in outside.items()}
    room = [len(inside) / share] + [len(p) * len(parts) / (1 - share) for p in parts.values()]
    size = int(min(size, *room))
    if size < 2:
        raise ParameterError(f"pool: must have at least two pictures at a share of {share:g}, got {size}")
    many = min(max(round(share * size), 1), size - 1)
    counts = [len(part) for part in torch.arange(size - many).tensor_split(len(parts))]
    chosen = [inside.pixels[torch.randperm(len(inside))[:many]]]
    chosen += [pixels[:count] for pixels, count in zip(parts.values(), counts, strict=True)]
    origin = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(part) for part in chosen]))
    order = torch.randperm(size)
    pictures = replace(inside, pixels=torch.cat(chosen)[order], labels=torch.zeros(size).long(), masks=None)
    return Pool(pictures, origin[order], (INSIDE, *parts))


def textures(like: Split, count: int) -> Tensor:
    """(count, C, H, W) uint8: smooth colour noise of several sizes, as bright and as varied as `like`."""
    channels, height, width = like.pixels.shape[1:]
    sizes = torch.tensor(COARSE)[torch.randint(len(COARSE), (count,))]
    drawn = torch.empty(count, channels, height, width)
    for size in COARSE:
        cells = torch.randn(int((sizes == size).sum()), channels, size, size)
        smooth = F.interpolate(cells, size=(height, width), mode="bicubic", align_corners=False)
        drawn[sizes == size] = smooth
    return _coloured(drawn, like)


def noise(like: Split, count: int) -> Tensor:
    """(count, C, H, W) uint8: every pixel on its own, as bright and as varied as `like`."""
    return _coloured(torch.randn(count, *like.pixels.shape[1:]), like)


def _coloured(standard: Tensor, like: Split) -> Tensor:
    """Values of mean 0 and deviation 1 as bytes with the mean and deviation of `like`."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (like.mean, like.std))
    return ((standard * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)


def blends(held: Split, count: int) -> Tensor:
    """(count, C, H, W) uint8: two pictures of different classes over each other, half of each.

    A class with more than half of the pictures also meets itself.
    """
    drawn = held.take(torch.randint(len(held), (count,)))
    order = drawn.labels.argsort(stable=True)
    pixels = drawn.pixels[order].float()
    return ((pixels + pixels.roll(count // 2, 0)) / 2).round().to(torch.uint8)


def turned(held: Split, count: int) -> Tensor:
    """(count, C, H, W) uint8: pictures turned by a quarter, those that are not square by a half."""
    pixels = held.pixels[torch.randint(len(held), (count,))]
    return pixels.rot90(1 if pixels.shape[2] == pixels.shape[3] else 2, (2, 3))


def shared_pictures(first: Split, second: Split) -> int:
    """How many pictures of `first` are in `second`, pixel for pixel."""
    known = {picture.tobytes() for picture in second.pixels.numpy()}
    return sum(picture.tobytes() in known for picture in first.pixels.numpy())
