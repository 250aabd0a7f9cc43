"""Handwritten digits drawn large over texture and stray strokes, with exact masks; made, not fetched."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from core.bundles import DATASETS, DatasetBundle, DatasetSource, Split, cache_directory
from core.digits import originals
from core.method import number

SIDE = 32  # pixels of a picture's side
MADE = 2  # raise it when the drawing changes, so that no old cache is read
COPIES = {"train": 8, "validation": 3, "test": 3}  # pictures drawn of every original digit
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}  # of the 1,797 originals
TAG = 5  # pixels of the shortcut's side
STROKES = 4  # stray ones in a picture
PART = 64  # pictures painted at a time


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
        random = torch.Generator().manual_seed(self.seed)
        digits, labels = originals()
        digits = digits / 16  # (N, 8, 8)
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
    title: ClassVar[str] = "Cluttered digits with a shortcut"

    shortcut: float = number(
        0.95, 0.0, 1.0, 0.05, help="How often the planted tag names the class; 0: no tag"
    )


def draw(digits: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, 32, 32) in [0, 1] of the digits (N, 8, 8), and their masks (N, 32, 32) bool.

    All random numbers are drawn first; the painting then goes in parts that fit a processor's cache.
    """
    dice = _throw(len(digits), random)
    pictures = torch.empty(len(digits), 3, SIDE, SIDE)
    masks = torch.empty(len(digits), SIDE, SIDE, dtype=torch.bool)
    for part in (slice(start, start + PART) for start in range(0, len(digits), PART)):
        pictures[part], masks[part] = _paint(
            digits[part], {name: value[part] for name, value in dice.items()}
        )
    return pictures, masks


def _throw(count: int, random: torch.Generator) -> dict[str, Tensor]:
    """The random numbers of `count` pictures; their order is part of what MADE stands for."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    dice = {
        "scale": uniform(0.62, 0.86),  # of the picture's side
        "turn": uniform(-0.26, 0.26),  # radians
        "right": uniform(-1, 1),  # of the room that is left
        "down": uniform(-1, 1),
        "dark": uniform(0, 1) < 0.5,  # the ground, not the digit
        "low": uniform(0.12, 0.38, 3),
        "high": uniform(0.62, 0.9, 3),
        "likeness": uniform(0.35, 0.75, 1),  # of the stray strokes' colour to the digit's
        "tint": uniform(-0.12, 0.12, 3),
        "coarse": uniform(-1, 1, 3, 5, 5),
        "fine": uniform(-1, 1, 3, SIDE, SIDE),
    }
    for index in range(STROKES):
        numbers = [uniform(0, SIDE), uniform(0, SIDE), uniform(0, 6.2832), uniform(7, 18)]
        dice[f"stroke{index}"] = torch.stack(numbers, 1)  # x, y, angle, length
    return dice


def _paint(digits: Tensor, dice: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`draw` of some of the pictures, whose random numbers are given."""
    ink = _ink(digits, dice)
    ground, strokes, figure = _colours(dice)
    coarse = F.interpolate(dice["coarse"], size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    texture = 0.13 * coarse + 0.06 * dice["fine"]
    picture = ground + texture
    for index in range(STROKES):
        stroke = 0.8 * _stroke(*dice[f"stroke{index}"][:, :, None, None, None].unbind(1))
        picture = picture * (1 - stroke) + strokes * stroke
    picture = picture * (1 - ink) + (figure + 0.4 * texture) * ink
    return picture.clamp(0, 1), ink[:, 0] > 0.5


def _ink(digits: Tensor, dice: dict[str, Tensor]) -> Tensor:
    """The digits (N, 8, 8) scaled, turned and shifted: (N, 1, 32, 32) in [0, 1]."""
    scale, turn = dice["scale"], dice["turn"]
    room = 0.92 - scale
    shift = torch.stack([dice["right"] * room, dice["down"] * room], 1)  # (N, 2)
    cos, sin = turn.cos() / scale, turn.sin() / scale
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # (N, 2, 2)
    affine = torch.cat([rotation, -(rotation @ shift[:, :, None])], 2)  # picture -> digit
    grid = F.affine_grid(affine, [len(digits), 1, SIDE, SIDE], align_corners=False)
    smooth = F.interpolate(digits[:, None], size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    ink = F.grid_sample(smooth, grid, align_corners=False).clamp(0, 1)
    return ((ink - 0.4) / 0.25).clamp(0, 1)


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


def _colours(dice: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Ground, stray strokes and digit, (N, 3, 1, 1) each: digit and ground differ in brightness."""
    dark, low, high = dice["dark"][:, None], dice["low"], dice["high"]
    ground, figure = torch.where(dark, low, high), torch.where(dark, high, low)
    strokes = ground + dice["likeness"] * (figure - ground) + dice["tint"]
    return tuple(colour[:, :, None, None] for colour in (ground, strokes, figure))


def _stroke(x: Tensor, y: Tensor, angle: Tensor, length: Tensor) -> Tensor:
    """The ink (N, 1, 32, 32) of one straight stroke from (x, y), about 1.5 pixels wide."""
    line = torch.arange(SIDE, dtype=torch.float32)
    right, down = line - x, line[:, None] - y  # (N, 1, 1, 32) and (N, 1, 32, 1): pixels from its start
    across, along = angle.cos() * length, angle.sin() * length  # (N, 1, 1, 1): the way to its end
    place = ((right * across + down * along) / (across.square() + along.square())).clamp(0, 1)
    distance = ((right - place * across).square() + (down - place * along).square()).sqrt()
    return (1.6 - distance).clamp(0, 1)
