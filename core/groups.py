"""Channels that live and die together, as values: which layers a group ties, and what its units are worth.

The output channels of one layer are often tied to those of others: through a residual addition, a
depthwise convolution, a concatenation. `core.coupling` finds such groups, `core.surgery` takes them away.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from core.criterion import Scores
from core.errors import ParameterError
from core.registry import unknown

Masks = Mapping[str, Tensor]  # name -> (width,) bool, True = kept
Gone = dict[tuple[str, Literal["out", "in"]], Tensor]  # (layer, side) -> the channels (M,) that go


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a group touches one layer: the layer's channel channels[i] goes with unit units[i]."""

    layer: str
    side: Literal["out", "in"]  # "in": the layer reads these channels
    channels: Tensor  # (M,) int64
    units: Tensor  # (M,) int64 in [0, width)


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, in `width` units that can go one by one.

    A unit is one output channel of every layer in `layers`; in front of and behind a grouped
    convolution it is one channel of each of its groups.
    """

    name: str  # the first of `layers`
    layers: tuple[str, ...]  # every convolution and linear layer whose outputs these are
    width: int
    slots: tuple[Slot, ...] = field(repr=False, compare=False)

    def filters(self, layer: str) -> tuple[Tensor, Tensor]:
        """(filters, units), both (M,): filter filters[i] of `layer` belongs to unit units[i]."""
        slot = next(slot for slot in self.slots if slot.layer == layer and slot.side == "out")
        return slot.channels, slot.units

    @property
    def channels(self) -> int:
        """Output channels that its first layer has in one unit."""
        return max(1, len(self.filters(self.name)[0]) // self.width)


def group_scores(found: Iterable[Group], scores: Scores) -> Scores:
    """Group name -> importance (width,) of its units, 1 on average.

    Every layer's filter scores (O,) are first divided by the layer's mean absolute score, so that
    layers with large weights do not outvote the others and groups can be compared; a unit then gets
    the mean over its filters, layer by layer.

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900,
    section 3.3; Torch-Pruning's default is the same mean, normalised after instead of before it.
    """
    relative = normalised(scores)
    return {group.name: _unit_scores(group, relative) for group in found}


def normalised(scores: Scores) -> Scores:
    """Scores (O,) of every layer divided by the layer's mean absolute score; NaN is passed on."""
    return {
        name: score / mean if (mean := score.abs().nanmean()) > 0 else score for name, score in scores.items()
    }


def _unit_scores(group: Group, scores: Scores) -> Tensor:
    total, count = torch.zeros(group.width), torch.zeros(group.width)
    for layer in group.layers:
        filters, units = group.filters(layer)
        size = torch.zeros(group.width).index_add_(0, units, torch.ones(len(units)))
        score = scores[layer].detach().float().cpu()[filters]
        total += torch.zeros(group.width).index_add_(0, units, score) / size.clamp(min=1)
        count += size > 0
    return total / count


def require_groups(found: Iterable[Group], names: Iterable[str]) -> dict[str, Group]:
    """Name -> group, of groups that must be among those `found`.

    Raises:
        ParameterError: one is not; a layer that is only a member is told the name of its group.
    """
    known = {group.name: group for group in found}
    for name in names:
        if name not in known:
            raise ParameterError(_no_group(name, known.values()))
    return {name: known[name] for name in names}


def _no_group(name: str, found: Iterable[Group]) -> str:
    """The sentence for a name that is no group's: a member is told the name of its group."""
    homes = [group.name for group in found if name in group.layers]
    if homes:
        return f"layer {name} shares its channels with {homes[0]}; the group is called {homes[0]!r}"
    return unknown("group", name, [group.name for group in found])


def gone_channels(found: Mapping[str, Group], masks: Masks) -> Gone:
    """(layer, side) -> the channels (M,) that go."""
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for name, group in found.items():
        keep = masks[name].cpu()
        if keep.shape != (group.width,) or keep.dtype != torch.bool:
            raise ParameterError(
                f"group {name}: the mask must be bool and of length {group.width}, "
                f"got {keep.dtype} of shape {tuple(keep.shape)}"
            )
        if not keep.any():
            raise ParameterError(f"group {name}: at least one of {group.width} channels must stay")
        for slot in group.slots:
            parts.setdefault((slot.layer, slot.side), []).append(slot.channels[~keep[slot.units]])
    joined = {place: torch.cat(channels).unique() for place, channels in parts.items()}
    return {place: channels for place, channels in joined.items() if len(channels)}
