"""Attention transfer: be active where the original is active."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from core.bundles import Setting
from core.figure import Figure
from core.layers import private_copy
from core.method import number
from core.objective import OBJECTIVES, Objective
from core.run import Run
from core.training import Schedule, Task
from core.transfer import (
    WATCHED,
    Pair,
    Taught,
    attention,
    features,
    heat,
    share_field,
    shared_layers,
    temperature_field,
)

SHOWN = 2  # pictures whose attention is drawn


@OBJECTIVES.register
@dataclass(frozen=True)
class AttentionTransfer(Objective):
    """The labels, and where in the picture the original's layers are active.

    A layer's attention is the mean over its channels of |activation|^power, scaled to length 1. The
    loss adds `weight` times the mean squared difference from the original's attention, summed over
    the last layers of every size of feature map. Which channel is active does not matter, so
    networks of any widths can be compared.

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer", ICLR 2017, arXiv:1612.03928, section 3.1.
    """

    name: ClassVar[str] = "attention-transfer"
    paper: ClassVar[Mapping[str, Any]] = {
        "epochs": 200,
        "learning_rate": 0.1,
        "batch_size": 128,
        "weight_decay": 5e-4,
        "crop": 4,
        "flip": True,
    }

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"weight": 1000.0, "power": 2.0}}

    weight: float = number(100.0, 0.0, 10000.0, 10.0, help="Weight of the difference between attention maps")
    power: float = number(
        2.0, 1.0, 8.0, 0.5, help="Exponent of activations: large ones count the strongest only"
    )
    share: float = share_field(0.0)
    temperature: float = temperature_field()

    def bind(self, model: nn.Module, setting: Setting, schedule: Schedule, run: Run) -> Task:
        teacher = private_copy(setting.teacher, run.device)
        return _Attention(
            self.power,
            teacher,
            share=self.share,
            temperature=self.temperature,
            smoothing=schedule.label_smoothing,
            pairs=self._pairs(teacher, model, setting, run),
            weight=self.weight,
        )

    def _pairs(self, teacher: nn.Module, model: nn.Module, setting: Setting, run: Run) -> list[Pair]:
        return shared_layers(self.name, teacher, model, setting.train.take(slice(0, 2)).images.to(run.device))

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        teacher, split = private_copy(setting.teacher, run.device), setting.validation.take(slice(0, WATCHED))
        pairs = self._pairs(teacher, after, setting, run)
        rows = []
        for theirs, ours in run.track(pairs, "Comparing attention"):
            layers = {"original": (teacher, theirs), "before": (before, ours), "after": (after, ours)}
            maps = {
                name: features(network, layer, split, run)
                for name, (network, layer) in run.track(layers.items(), "Comparing attention")
            }
            seen = {name: attention(each, self.power) for name, each in maps.items()}
            rows += [
                {
                    "layer": ours,
                    "network": name,
                    "cosine": (seen[name] * seen["original"]).sum(1).mean().item(),
                }
                for name in ("before", "after")
            ]
        return _match(pd.DataFrame(rows), len(split)), _pictures(seen, maps["after"].shape, ours)


class _Attention(Taught):
    def __init__(self, power: float, teacher: nn.Module, **rest: Any) -> None:
        super().__init__(teacher, **rest)
        self.power = power

    def distance(self, taught: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        gaps = [attention(t, self.power) - attention(o, self.power) for t, o in zip(taught, own, strict=True)]
        return torch.stack([gap.square().mean() for gap in gaps]).sum()


def _match(table: pd.DataFrame, n: int) -> Figure:
    mean = table.groupby("network").cosine.mean()
    return Figure(
        "How alike attention is, layer by layer",
        f"Mean cosine with the original's attention over {table.layer.nunique()} layers and {n} pictures: "
        f"{mean['before']:.3f} before, {mean['after']:.3f} after.",
        table,
        "layer",
        "cosine",
        "bars",
        colour="network",
        labels={"cosine": "cosine with the original's attention"},
    )


def _pictures(seen: Mapping[str, Tensor], shape: torch.Size, layer: str) -> Figure:
    """Attention (N, H W) of the first pictures, for three networks whose maps have this shape."""
    count = min(SHOWN, shape[0])
    panels = {
        f"picture {index + 1}, {name}": values[index].view(shape[2:])
        for index in range(count)
        for name, values in seen.items()
    }
    alike = {name: (seen[name] * seen["original"]).sum(1)[:count].mean() for name in ("before", "after")}
    return heat(
        "Attention of the last layer",
        f"{layer}, the first {count} validation pictures: the mean cosine with the original's attention is "
        f"{alike['before']:.3f} before and {alike['after']:.3f} after.",
        panels,
    )
