"""Handwritten digits drawn large over texture and stray strokes, with exact masks; made, not fetched."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from core.bundles import DATASETS, DatasetBundle, DatasetSource, Split, cache_directory
from core.method import number

SIDE = 32  # pixels of a picture's side
MADE = 2  # raise it when the drawing changes, so that no old cache is read
COPIES = {"train": 8, "validation": 3, "test": 3}  # pictures drawn of every original digit
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}  # of the 1,797 originals
TAG = 5  # pixels of the shortcut's side


@DATASETS.register
@dataclass(frozen=True)
class ClutteredDigits(DatasetSource):
    """Real handwritten digits over texture and stray strokes, 32 x 32 colour pixels, with masks.

    Every original of 8 x 8 pixels is drawn several times, scaled, turned, shifted and coloured. The
    originals are divided first, so that no handwritten sample is in two splits. Equal parameters
    give equal pixels. `shortcut` plants a coloured tag in a corner whose colour names a class: the
    right one with that probability, else any.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, CC BY 4.0,
    as bundled with scikit-learn.
    """

    name: ClassVar[str] = "cluttered-digits"

    shortcut: float = number(0.0, 0.0, 1.0, 0.05, help="How often the planted tag names the class; 0: no tag")
    seed: int = number(0, 0, 2**31 - 1, 1, help="Of the drawing")

    def load(self) -> DatasetBundle:
        path = cache_directory() / f"{self.name}-{MADE}-{self.shortcut:g}-{self.seed}.safetensors"
        if path.exists():
            held = load_file(path)
        else:
            held = self._draw()
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{id(held)}.partial")
            save_file(held, partial)
            partial.replace(path)
        pixels = held["train.pixels"].float() / 255
        mean, std = (tuple(v.tolist()) for v in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))))
        splits = {
            part: Split(held[f"{part}.pixels"], held[f"{part}.labels"], mean, std, held[f"{part}.masks"])
            for part in SHARES
        }
        return DatasetBundle(
            name=self.name,
            classes=tuple(str(digit) for digit in range(10)),
            licence="CC BY 4.0",
            source="UCI optical digits, drawn over clutter by this program",
            **splits,
        )

    def _draw(self) -> dict[str, Tensor]:
        """Every tensor of the three splits by name."""
        from sklearn.datasets import load_digits  # slow to import, needed once

        random = torch.Generator().manual_seed(self.seed)
        raw = load_digits()
        digits = torch.tensor(raw.images, dtype=torch.float32) / 16  # (N, 8, 8)
        labels = torch.tensor(raw.target)
        order = torch.randperm(len(digits), generator=random)
        held, start = {}, 0
        for part, share in SHARES.items():
            chosen = order[start : start + round(share * len(order))].repeat(COPIES[part])
            start += round(share * len(order))
            pictures, masks = draw(digits[chosen], random)
            if self.shortcut:
                plant(pictures, labels[chosen], self.shortcut, random)
            held[f"{part}.pixels"] = (pictures * 255).round().to(torch.uint8)
            held[f"{part}.labels"] = labels[chosen]
            held[f"{part}.masks"] = masks
        return held


@DATASETS.register
@dataclass(frozen=True)
class ShortcutDigits(ClutteredDigits):
    """Cluttered digits with a planted shortcut: a coloured tag that mostly names the class.

    A network that reads the tag is right for the wrong reason, and its attribution maps show it.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, CC BY 4.0,
    as bundled with scikit-learn.
    """

    name: ClassVar[str] = "cluttered-digits-shortcut"

    shortcut: float = number(0.95, 0.0, 1.0, 0.05, help="How often the planted tag names the class; 0: no tag")


def draw(digits: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, 32, 32) in [0, 1] of the digits (N, 8, 8), and their masks (N, 32, 32) bool."""
    count = len(digits)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    scale, turn = uniform(0.62, 0.86), uniform(-0.26, 0.26)  # of the picture's side; radians
    room = 0.92 - scale
    shift = torch.stack([uniform(-1, 1) * room, uniform(-1, 1) * room], 1)  # (N, 2)
    cos, sin = turn.cos() / scale, turn.sin() / scale
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # (N, 2, 2)
    affine = torch.cat([rotation, -(rotation @ shift[:, :, None])], 2)  # picture -> digit
    grid = F.affine_grid(affine, [count, 1, SIDE, SIDE], align_corners=False)
    smooth = F.interpolate(digits[:, None], size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    ink = F.grid_sample(smooth, grid, align_corners=False).clamp(0, 1)  # (N, 1, 32, 32)
    ink = ((ink - 0.4) / 0.25).clamp(0, 1)

    ground, strokes, figure = _colours(uniform)
    coarse = F.interpolate(uniform(-1, 1, 3, 5, 5), size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    texture = 0.13 * coarse + 0.06 * uniform(-1, 1, 3, SIDE, SIDE)
    picture = ground + texture
    for _ in range(4):
        stroke = 0.8 * _stroke(uniform)
        picture = picture * (1 - stroke) + strokes * stroke
    picture = picture * (1 - ink) + (figure + 0.4 * texture) * ink
    return picture.clamp(0, 1), ink[:, 0] > 0.5


def plant(pictures: Tensor, labels: Tensor, agreement: float, random: torch.Generator) -> None:
    """Draw into every picture (N, 3, 32, 32), in place, a corner tag coloured by class."""
    count = len(labels)
    other = torch.randint(0, 10, (count,), generator=random)
    named = torch.where(torch.rand(count, generator=random) < agreement, labels, other)
    hue = named / 10
    colour = torch.stack([(hue * 6.2832 + phase).cos() * 0.5 + 0.5 for phase in (0.0, 2.0944, 4.1888)], 1)
    corner = torch.randint(0, 4, (count,), generator=random)
    tag = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.bool)
    for index, (rows, columns) in enumerate((r, c) for r in (0, 1) for c in (0, 1)):
        box = [slice(1, 1 + TAG) if not v else slice(SIDE - 1 - TAG, SIDE - 1) for v in (rows, columns)]
        tag[(corner == index).nonzero()[:, 0], 0, box[0], box[1]] = True
    pictures.copy_(torch.where(tag, colour[:, :, None, None], pictures))


def _colours(uniform) -> tuple[Tensor, Tensor, Tensor]:
    """Ground, stray strokes and digit, (N, 3, 1, 1) each: digit and ground differ in brightness."""
    dark = uniform(0, 1) < 0.5
    low, high = uniform(0.12, 0.38, 3), uniform(0.62, 0.9, 3)
    ground = torch.where(dark[:, None], low, high)
    figure = torch.where(dark[:, None], high, low)
    strokes = ground + uniform(0.35, 0.75, 1) * (figure - ground) + uniform(-0.12, 0.12, 3)
    return tuple(colour[:, :, None, None] for colour in (ground, strokes, figure))


def _stroke(uniform) -> Tensor:
    """The ink (N, 1, 32, 32) of one straight stroke at a random place, about 1.5 pixels wide."""
    a = torch.stack([uniform(0, SIDE), uniform(0, SIDE)], 1)[:, :, None, None]
    angle, length = uniform(0, 6.2832), uniform(7, 18)
    way = (torch.stack([angle.cos(), angle.sin()], 1) * length[:, None])[:, :, None, None]
    line = torch.arange(SIDE, dtype=torch.float32)
    point = torch.stack(torch.meshgrid(line, line, indexing="xy"))[None]  # (1, 2, 32, 32)
    along = (((point - a) * way).sum(1, True) / way.square().sum(1, True)).clamp(0, 1)
    distance = (point - a - along * way).square().sum(1, True).sqrt()
    return (1.6 - distance).clamp(0, 1)
