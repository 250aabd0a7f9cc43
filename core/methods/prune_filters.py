"""Prune filters: whole output channels go, with everything that belongs to them or without."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core import coupling, surgery
from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Ranking, Scores
from core.cutting import TensorMasks
from core.errors import ParameterError, UnsupportedModelError
from core.groups import Group, group_scores, normalised, require_groups
from core.layers import prunable, require_layers
from core.method import choice, nested, number, per_layer
from core.recipe import COMPRESSORS, Compressor
from core.run import Run


@COMPRESSORS.register
@dataclass(frozen=True)
class PruneFilters(Compressor):
    """Take away whole filters: remove them, silence them, or only set their weights to zero.

    Three questions that differ by tens of points, so each has its name. "remove": a channel leaves
    the network with everything that is tied to it (residual partners, biases, batch norms, the
    inputs that read it); the network is smaller and faster. "silence": a layer's filter, its bias
    and the batch norm behind it become zero; partners go on filling the channel. "zero": the
    filter's weights become zero, biases and batch norms go on, as in `torch.nn.utils.prune`.

    With scope "layer" every layer (for "remove": every group of coupled layers) loses `sparsity` of
    its filters, or what `layers` names for it; with "global" one threshold serves the network. A
    group's score is the mean of its layers' filter scores, each layer's divided by its mean; layers
    are compared globally on the same scale. At least one filter, the best, stays at any sparsity,
    and the classifier keeps its outputs. Silent and zero filters stay so when a later step trains.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710
    (filters with their batch norm and inputs); Fang et al., "DepGraph: Towards Any Structural
    Pruning", CVPR 2023, arXiv:2301.12900 (groups and their scores).
    """

    name: ClassVar[str] = "prune-filters"
    variants = ("criterion",)

    sparsity: float = number(0.5, 0.0, 1.0, 0.01, help="Fraction of filters taken away")
    effect: str = choice("remove", "silence", "zero", help="What happens to a filter that is taken away")
    scope: str = choice("layer", "global", help="Compare filters within a layer or across all")
    criterion: Criterion = nested(CRITERIA, "filter-l1", help="What makes a filter important")
    round_to: int = number(1, 1, 64, 1, help="Keep a multiple of this many channels (remove only)")
    layers: tuple[tuple[str, float], ...] = per_layer(
        0.0, 1.0, 0.01, help="Sparsity of single layers; of groups, by name, where filters are removed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers and self.scope == "global":
            raise ParameterError(f'{self.name}: scope must be "layer" where single layers have a sparsity')
        if self.round_to > 1 and self.effect != "remove":
            raise ParameterError(
                f'{self.name}: round_to must be 1 where effect is "{self.effect}", which keeps the shapes, '
                f"got {self.round_to}"
            )

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        masks = self.masks(model, setting, run)
        example = setting.train.take(slice(0, 1)).images
        match self.effect:
            case "remove":
                return surgery.remove_groups(model, masks, example)
            case "silence":
                surgery.silence(model, masks, example)
            case "zero":
                surgery.zero_filters(model, masks)
        return model

    def masks(self, model: nn.Module, setting: Setting, run: Run) -> dict[str, Tensor]:
        """Layer name -> mask (O,), or for "remove" group name -> (width,); True = kept."""
        example = setting.train.take(slice(0, 1)).images
        if self.effect == "remove":
            groups = {group.name: group for group in coupling.groups(model, example)}
            require_groups(groups.values(), dict(self.layers))
            steps = {name: _step(self.round_to, group.channels) for name, group in groups.items()}
        else:
            groups, steps = {}, dict.fromkeys(self._free_layers(model, example), 1)
        if not steps:
            raise UnsupportedModelError(
                f"{self.name}: the model must have filters that can go, got none besides the classifier's"
            )
        with run.step(0, 2):
            scores = normalised(self.criterion.filter_scores(model, setting, run))
        if groups:
            scores = group_scores(groups.values(), scores)
        with run.step(1, 2):
            masks = self._cut({name: scores[name] for name in steps}, steps, run)
        for name, group in groups.items():
            _keep_one(group, scores[name], masks[name])
        return masks

    def tensor_masks(self, model: nn.Module, setting: Setting, run: Run) -> TensorMasks:
        """The same in the old shapes: (layer, tensor) -> what stays, of every tensor that loses something."""
        masks, example = self.masks(model, setting, run), setting.train.take(slice(0, 1)).images
        match self.effect:
            case "remove":
                return surgery.tensor_masks(model, masks, example)
            case "silence":
                return surgery.silence_masks(model, masks, example)
        return surgery.zero_masks(model, masks)

    def _free_layers(self, model: nn.Module, example: Tensor) -> list[str]:
        """The layers whose filters may go: all but those that make the logits."""
        require_layers(model, dict(self.layers))
        logits = coupling.output_layers(model, example)
        for name, _ in self.layers:
            if name in logits:
                raise ParameterError(f"{self.name}: layer {name} makes the logits and keeps its outputs")
        return [name for name in prunable(model) if name not in logits]

    def _cut(self, scores: Scores, steps: Mapping[str, int], run: Run) -> dict[str, Tensor]:
        """Masks from scores: at least one stays, and the number kept is a multiple of `steps`."""
        ranking = Ranking(scores)
        if self.scope == "global":
            sparsities = ranking.global_sparsities(self.sparsity)
        else:
            sparsities = dict.fromkeys(scores, self.sparsity) | dict(self.layers)
        masks = {}
        for name, step in run.track(steps.items(), "Choosing filters"):
            width = len(scores[name])
            kept = max(1, width - round(sparsities[name] * width))
            kept = min(width, math.ceil(kept / step) * step)
            masks |= ranking.masks({name: 1 - kept / width})
        return masks


def _keep_one(group: Group, scores: Tensor, mask: Tensor) -> None:
    """Where layers have part of a group only, keep the best filter of each, too."""
    for layer in group.layers:
        units = group.filters(layer)[1]
        if not mask[units].any():
            mask[units[scores[units].argmax()]] = True


def _step(multiple: int, channels: int) -> int:
    """Units, of `channels` channels each, that make up a whole multiple of `multiple` channels."""
    return multiple // math.gcd(multiple, channels)
