"""FitNet: a hint from the middle of the original network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting
from core.figure import Figure
from core.layers import private_copy
from core.method import choice, number
from core.objective import OBJECTIVES, Objective
from core.run import Run
from core.training import Schedule, Task
from core.transfer import (
    WATCHED,
    Pair,
    Taught,
    features,
    maps_of,
    share_field,
    shared_layers,
    temperature_field,
)

POSITIONS = 20000  # places in maps that a regression is fitted on, and as many that judge it


@OBJECTIVES.register
@dataclass(frozen=True)
class FitNet(Objective):
    """The labels, and feature maps from which the original's can be told by a regressor.

    The regressor, a 1 x 1 convolution (with a ReLU behind it where the original's maps are never
    negative), makes maps with the original's channels of the network's; it learns along and is
    thrown away. Its mean squared error, of the mean square of the original's maps, is added to the
    loss `weight` times. The hint comes from the last layer of the middle one of all sizes of feature
    map, or of the last.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550, section 2
    (which trains on the hint first and on answers later; here both are learned at once).
    """

    name: ClassVar[str] = "fitnet"
    title: ClassVar[str] = "FitNet hints"

    weight: float = number(0.1, 0.0, 100.0, 0.1, help="Weight of the regressor's error")
    hint: str = choice("middle", "last", help="Which of the original's layers gives the hint")
    share: float = share_field(0.0)
    temperature: float = temperature_field()

    def bind(self, model: nn.Module, setting: Setting, schedule: Schedule, run: Run) -> Task:
        teacher, examples = private_copy(setting.teacher, run.device), setting.train.take(slice(0, 32)).images
        pair = self._pair(teacher, model, setting, run)
        networks = (teacher, private_copy(model, run.device))
        taught, own = (
            maps_of(network, [layer], examples.to(run.device))[0]
            for network, layer in zip(networks, pair, strict=True)
        )
        return _Hints(
            regressor(own.shape[1], taught),
            taught.square().mean().item(),
            teacher,
            share=self.share,
            temperature=self.temperature,
            smoothing=schedule.label_smoothing,
            pairs=[pair],
            weight=self.weight,
        )

    def _pair(self, teacher: nn.Module, model: nn.Module, setting: Setting, run: Run) -> Pair:
        examples = setting.train.take(slice(0, 2)).images.to(run.device)
        pairs = shared_layers(self.name, teacher, model, examples)
        return pairs[(len(pairs) - 1) // 2 if self.hint == "middle" else -1]

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        teacher, split = private_copy(setting.teacher, run.device), setting.validation.take(slice(0, WATCHED))
        theirs, ours = self._pair(teacher, after, setting, run)
        layers = {"original": (teacher, theirs), "before": (before, ours), "after": (after, ours)}
        maps = {
            name: features(network, layer, split, run)
            for name, (network, layer) in run.track(layers.items(), "Reading the hint")
        }
        taught = maps.pop("original")
        shares = {name: explained(own, taught) for name, own in maps.items()}
        table = pd.DataFrame(
            {"channel": index, "network": name, "explained": share}
            for name, each in shares.items()
            for index, share in enumerate(each.sort(descending=True).values.tolist(), 1)
        )
        middle = {name: each.median().item() for name, each in shares.items()}
        return (
            Figure(
                "How much of the hint can be read from the network",
                f"The middle one of {taught.shape[1]} channels of the original's {theirs}: of what varies in "
                f"it, a linear reading of {ours} explains {middle['before']:.1%} before and "
                f"{middle['after']:.1%} after ({len(split)} pictures).",
                table,
                "channel",
                "explained",
                colour="network",
                percent=frozenset({"explained"}),
                labels={
                    "channel": "channels of the original, best explained first",
                    "explained": "share explained, of other pictures",
                },
            ),
        )


class _Hints(Taught):
    def __init__(self, regressor: nn.Module, power: float, teacher: nn.Module, **rest: Any) -> None:
        super().__init__(teacher, **rest)
        self.partners.append(regressor)
        self.power = power or 1.0

    def distance(self, taught: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        return (self.partners[0](own[0]) - taught[0]).square().mean() / self.power


def regressor(channels: int, taught: Tensor) -> nn.Sequential:
    """1 x 1 convolution to the channels of the maps `taught`, never negative where they never are.

    Its weights take none of the caller's random numbers, so that the network meets the same data.
    """
    with torch.random.fork_rng(devices=[]):
        made = nn.Sequential(nn.Conv2d(channels, taught.shape[1], 1))
    return made.append(nn.ReLU()) if (taught >= 0).all() else made


def explained(own: Tensor, taught: Tensor) -> Tensor:
    """Share of the variance of every channel of `taught` (C,) that a linear map of `own` explains.

    Both are maps (N, _, H, W) of the same pictures. The map, with an offset, is fitted by least squares
    on the first half of the pictures and judged on the other; at least 0, and 0 for constant channels.
    """
    halves = []
    for half in (slice(0, (len(own) + 1) // 2), slice(len(own) // 2, None)):
        x, y = (maps[half].movedim(1, -1).flatten(0, 2).double().cpu() for maps in (own, taught))
        step = -(-len(x) // POSITIONS)
        halves.append((F.pad(x[::step], (0, 1), value=1.0), y[::step]))
    (x, y), (others, truth) = halves
    solution = torch.linalg.lstsq(x, y, driver="gelsd").solution
    left = (truth - others @ solution).square().sum(0)
    spread = (truth - truth.mean(0)).square().sum(0)
    return torch.where(spread > 0, 1 - left / spread, 0.0).clamp(min=0)
