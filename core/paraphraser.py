"""Paraphraser and translator: another network's maps said again in fewer channels, the factors.

Maps are (N, C, H, W), factors (N, F, H, W).

Source: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
NeurIPS 2018, arXiv:1802.04977.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting, Split
from core.criterion import sample
from core.figure import Figure, Reference
from core.layers import digest
from core.memory import Memory
from core.run import Run, seeded
from core.training import Minimise, Schedule, fit
from core.transfer import BATCH, WATCHED, features, heat, strongest

SLOPE = 0.1  # of the leaky ReLUs below zero
ENOUGH = 0.6  # of the error of predicting means: a paraphraser above it is under-trained


def convolutions(*widths: int, transposed: bool = False) -> nn.Sequential:
    """3 x 3 convolutions with bias from width to width, each with a leaky ReLU behind it.

    Weights are drawn so that signals keep their size on the way; with torch's own they shrink at every
    layer, and six of them begin to learn late.
    """
    kind, inputs = (nn.ConvTranspose2d, "fan_out") if transposed else (nn.Conv2d, "fan_in")
    made = nn.Sequential()
    for i, o in pairwise(widths):
        layer = kind(i, o, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, SLOPE, inputs)
        nn.init.zeros_(layer.bias)
        made.extend((layer, nn.LeakyReLU(SLOPE)))
    return made


def factor_channels(channels: int, rate: float) -> int:
    """round(channels * rate), at least one."""
    return max(1, round(channels * rate))


class Paraphraser(nn.Module):
    """Says maps again in fewer (or more) channels, the factors, and makes maps of factors.

    `scale` is a number the maps are divided by first and multiplied with at the end: their root mean
    square, so that networks with large and with small maps train alike.
    """

    def __init__(self, channels: int, factors: int, scale: float = 1.0) -> None:
        super().__init__()
        self.encoder = convolutions(channels, channels, factors, factors)
        self.decoder = convolutions(factors, factors, channels, channels, transposed=True)
        self.scale = scale

    def factors(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, F, H, W)."""
        return self.encoder(maps / self.scale)

    def forward(self, maps: Tensor) -> Tensor:
        """The maps (N, C, H, W) as they come back."""
        return self.decoder(self.factors(maps)) * self.scale


def translator(channels: int, factors: int) -> nn.Sequential:
    """Makes factors of a student's maps."""
    return convolutions(channels, channels, factors, factors)


@dataclass(frozen=True)
class Paraphrasing:
    """How a paraphraser is made."""

    rate: float = 0.5  # factor channels for every channel of the teacher
    reconstruction: Literal["mse", "l1"] = "mse"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    epochs: int = 6
    images: int = 1024  # training pictures, whose labels are not read

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            epochs=self.epochs,
            optimizer=self.optimizer,
            learning_rate={"adamw": 0.003, "sgd": 0.05}[self.optimizer],
            batch_size=16,
            crop=0,
            flip=False,
        )


@dataclass(frozen=True, eq=False)
class Paraphrase:
    """A trained paraphraser, and how well it does.

    Errors are mean squared ones on validation pictures, divided by that of predicting every channel's
    mean, whatever was minimised: on sparse maps answering with zeros has a lower absolute error than
    the means, but never a lower squared one.
    """

    paraphraser: Paraphraser  # eval mode, frozen
    errors: tuple[float, ...]  # untrained, then after every epoch
    zeros: float  # the error of predicting zeros
    factors: int  # channels of the factors

    @property
    def error(self) -> float:
        return self.errors[-1]

    @property
    def trained(self) -> bool:
        """Do the factors hold enough of the maps?"""
        return self.error < ENOUGH

    @property
    def verdict(self) -> str:
        """Whether it learned enough, in words."""
        missed = f"what comes back misses {self.error:.0%} of what varies in the maps"
        if self.trained:
            return f"Through {self.factors} channels, {missed}"
        return f"Paraphraser under-trained: {missed}, and {ENOUGH:.0%} is too much"


def paraphrase(maps: Tensor, watched: Tensor, how: Paraphrasing, run: Run) -> Paraphrase:
    """Train a paraphraser on `maps` (N, C, H, W), and judge it by `watched`, maps of other pictures."""
    channels = maps.shape[1]
    factors = factor_channels(channels, how.rate)
    scale = maps.square().mean().sqrt().item() or 1.0
    paraphraser = Paraphraser(channels, factors, scale).to(maps.device)
    task = _Reconstruction(maps, watched, how.reconstruction)
    task.passed(paraphraser, -1)
    fit(paraphraser, _numbered(len(maps)), task, how.schedule, run)
    paraphraser.zero_grad()
    return Paraphrase(
        paraphraser, tuple(task.errors), _share(torch.zeros_like(watched), watched, maps), factors
    )


class _Reconstruction(Minimise):
    """Maps that are kept; the "labels" are their numbers."""

    def __init__(self, maps: Tensor, watched: Tensor, reconstruction: str) -> None:
        kind = {"mse": F.mse_loss, "l1": F.l1_loss}[reconstruction]

        def loss(paraphraser: Paraphraser, images: Tensor, numbers: Tensor) -> Tensor:
            target = maps[numbers]
            return kind(paraphraser(target) / paraphraser.scale, target / paraphraser.scale)

        super().__init__(loss)
        self._maps, self._watched, self.errors = maps, watched, []

    @torch.no_grad()
    def passed(self, model: nn.Module, epoch: int) -> None:
        back = torch.cat([model(part) for part in self._watched.split(BATCH)])
        self.errors.append(_share(back, self._watched, self._maps))

    def observed(self) -> dict[str, float]:
        return {"error": self.errors[-1]}


def _share(guess: Tensor, truth: Tensor, maps: Tensor) -> float:
    """Squared error of `guess`, of that of the means of the channels of `maps`; 1 where nothing varies."""
    means = maps.mean((0, 2, 3), keepdim=True)
    worst = (truth - means).double().square().mean().item()
    return (guess - truth).double().square().mean().item() / worst if worst else 1.0


def _numbered(count: int) -> Split:
    """Pictures of a single pixel whose label is their number: what they stand for is kept elsewhere."""
    return Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(count), (0.0,), (1.0,))


_PARAPHRASES: Memory[Paraphrase] = Memory(limit=16)


def paraphrase_of(
    teacher: nn.Module, layer: str, setting: Setting, how: Paraphrasing, run: Run
) -> Paraphrase:
    """The paraphraser of `layer` of `teacher`, which is in eval mode; trained when first asked for.

    It depends on the random seed in use but takes no random number of the caller's. Its progress is
    told in words, and `run` records nothing.
    """
    seed = torch.initial_seed()
    with seeded(seed, run):
        seen = sample(setting.train, how.images)
    watched = setting.validation.take(slice(0, WATCHED))
    pixels = [blake2b(split.pixels.numpy().tobytes()).digest() for split in (seen, watched)]
    key = (digest(teacher), layer, how, seed, run.device, *pixels)
    if (known := _PARAPHRASES.get(key)) is not None:
        return known
    aside = Run(lambda p: run.report(0.0, f"Paraphraser, {p.fraction:.0%}"), run.device)
    with seeded(seed, run):
        with aside.step(0, 2):
            maps, others = (features(teacher, layer, split, aside) for split in (seen, watched))
        with aside.step(1, 2):
            made = paraphrase(maps, others, how, aside)
    _PARAPHRASES.put(key, made)
    return made


@torch.no_grad()
def paraphrase_view(made: Mapping[str, Paraphrase], maps: Tensor) -> Figure:
    """The strongest of the maps (1, C, H, W) of one picture, and how they come back from paraphrasers."""
    back = {name: each.paraphraser(maps) for name, each in made.items()}
    chosen, panels = strongest(maps, 2), {}
    for channel in chosen:
        truth, again = maps[0, channel], {name: every[0, channel] for name, every in back.items()}
        if len(made) == 1:
            again["what is wrong"] = next(iter(again.values())) - truth
        panels |= {f"channel {channel}": truth}
        panels |= {f"channel {channel}, {name}": values for name, values in again.items()}
    size = maps.norm().item() or 1.0
    errors = {name: f"{(again - maps).norm() / size:.0%}" for name, again in back.items()}
    said = " and ".join(f"{e} ({name})" if len(made) > 1 else e for name, e in errors.items())
    return heat(
        "One picture's maps and how they come back",
        f"The {maps.shape[1]} maps of this picture come back with an error of {said} of their norm. "
        f"Shown: its {len(chosen)} strongest.",
        panels,
    )


@torch.no_grad()
def factors_view(made: Paraphrase, maps: Tensor) -> Figure:
    """The strongest factors of the maps (1, C, H, W) of one picture."""
    factors = made.paraphraser.factors(maps)
    shown = strongest(factors, 6)
    return heat(
        "Its factors",
        f"The {len(shown)} strongest of {made.factors} factors, made of {maps.shape[1]} maps.",
        {f"factor {channel}": factors[0, channel] for channel in shown},
    )


def reconstruction_figure(curves: Mapping[str, Paraphrase]) -> Figure:
    """How the errors of paraphrasers fell, against predicting zeros and means."""
    table = pd.concat(
        pd.DataFrame({"epoch": range(len(made.errors)), "error": made.errors, "paraphraser": name})
        for name, made in curves.items()
    )
    several = len(curves) > 1
    finding = " ".join(
        f"{name}: {made.verdict}." if several else f"{made.verdict}." for name, made in curves.items()
    )
    zeros = next(iter(curves.values())).zeros
    return Figure(
        "Reconstruction, epoch by epoch",
        finding,
        table,
        "epoch",
        "error",
        colour="paraphraser" if several else "",
        labels={"error": "squared error, of that of the means"},
        references=(
            Reference("y", 1.0, "every channel's mean"),
            Reference("y", zeros, "all zeros"),
            Reference("y", ENOUGH, "enough"),
        ),
    )
