"""Paraphraser: feature maps said again in fewer channels, and one that never learned to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from core.bundles import Setting
from core.errors import UnsupportedModelError
from core.figure import Figure, Reference
from core.lab import LABS, Lab
from core.layers import private_copy
from core.method import choice, number
from core.paraphraser import (
    ENOUGH,
    Paraphrase,
    Paraphrasing,
    factors_view,
    paraphrase,
    paraphrase_view,
    reconstruction_figure,
)
from core.run import Run
from core.taps import feature_layers
from core.transfer import features

YOURS, COLLAPSED = "yours", "L1 with SGD"
LINEAR = "best linear code"


@LABS.register
@dataclass(frozen=True)
class Paraphraser(Lab):
    """Brings a network's last feature maps through fewer channels and back: what gets lost on the way?

    An autoencoder of three 3 x 3 convolutions and three transposed ones learns it without labels.
    Move the rate to tighten or widen the bottleneck. Beside it another one is trained as long with
    the absolute error and SGD: maps are mostly zeros, and answering with zeros is where it stays at
    first. What its factors say of the maps is left to chance.

    The best linear code of as many channels, place by place (principal components), is what a
    paraphraser has to compete with; it also looks at a place's neighbours.

    Source: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
    NeurIPS 2018, arXiv:1802.04977, section 3.1.
    """

    name: ClassVar[str] = "paraphraser"

    rate: float = number(
        0.5, 0.05, 2.0, 0.05, help="Channels in the bottleneck, for every channel of the maps"
    )
    reconstruction: str = choice("mse", "l1", help="What yours minimises: squared or absolute errors")
    optimizer: str = choice("adamw", "sgd", help="What trains yours")
    epochs: int = number(8, 1, 100, 1, help="Passes over the pictures")
    images: int = number(256, 16, 2048, 16, help="Training pictures, without labels")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        network = private_copy(setting.teacher, run.device)
        layers = feature_layers(network, setting.train.take(slice(0, 1)).images.to(run.device))
        if not layers:
            raise UnsupportedModelError(f"{self.name}: the model must have feature maps, got none")
        parts = [part.take(slice(0, self.images)) for part in (setting.train, setting.validation)]
        ways = {
            YOURS: Paraphrasing(self.rate, self.reconstruction, self.optimizer, self.epochs),
            COLLAPSED: Paraphrasing(self.rate, "l1", "sgd", self.epochs),
        }
        with run.step(0, 2):
            maps, watched = (features(network, layers[-1], part, run) for part in run.track(parts, "Looking"))
        with run.step(1, 2):
            made = {
                name: paraphrase(maps, watched, how, run)
                for name, how in run.track(ways.items(), "Paraphrasing")
            }
        return (
            _bottleneck(maps, watched, made),
            reconstruction_figure(made),
            paraphrase_view(made, watched[:1]),
            factors_view(made[YOURS], watched[:1]),
        )


def linear_codes(maps: Tensor, watched: Tensor) -> Tensor:
    """What the best linear code of 0, 1 ... C channels misses of `watched`, (C + 1,), of the variance.

    Principal components of the channels of `maps`, both (N, C, H, W), place by place; errors are
    relative to predicting the channels' means of `maps`.
    """
    x, y = (each.movedim(1, -1).flatten(0, 2).double() for each in (maps, watched))
    _, axes = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0)))
    power = ((y - x.mean(0)) @ axes.flip(1)).square().sum(0)
    caught = torch.cat([power.new_zeros(1), power.cumsum(0)])
    return (1 - caught / power.sum().clamp(min=1e-12)).clamp(min=0)


def _bottleneck(maps: Tensor, watched: Tensor, made: dict[str, Paraphrase]) -> Figure:
    line = linear_codes(maps, watched).tolist()
    rows = [{"channels": count, "error": error, "code": LINEAR} for count, error in enumerate(line)]
    rows += [{"channels": each.factors, "error": each.error, "code": name} for name, each in made.items()]
    count, channels = made[YOURS].factors, maps.shape[1]
    linear = (
        f"the best linear code of as many {line[count]:.0%}" if count < channels else "a linear one nothing"
    )
    return Figure(
        "What fits through the bottleneck",
        f"Through {count} of {channels} channels yours misses {made[YOURS].error:.0%} of what varies, "
        f"{linear}, and the one of {COLLAPSED} {made[COLLAPSED].error:.0%}.",
        pd.DataFrame(rows),
        "channels",
        "error",
        colour="code",
        percent=frozenset({"error"}),
        labels={"channels": "channels in the bottleneck", "error": "missed, of what varies"},
        references=(Reference("y", ENOUGH, "enough"),),
    )
