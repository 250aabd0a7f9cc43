"""What is least important: scores of weights or filters, and the masks that are cut from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from core.bundles import Setting
from core.method import Method
from core.registry import Registry
from core.run import Run

Grain = Literal["weight", "filter"]
Scores = dict[str, Tensor]  # layer -> importance, (O, ...) like the weight or (O,); higher = keep


class Criterion(Method):
    """Scores what a pruning method may take away; higher means keep."""

    grain: ClassVar[Grain]

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        """Prunable layer -> importance scores: shaped like its weight, or (O,) for filters.

        `model` must not be changed. Random numbers are torch's, already seeded.
        """
        raise NotImplementedError


CRITERIA: Registry[type[Criterion]] = Registry("core.criteria", "criterion")


def per_filter(scores: Scores) -> Scores:
    """Scores (O,) of whole filters: those of single weights are summed over each filter."""
    return {name: s.flatten(1).sum(1) if s.dim() > 1 else s for name, s in scores.items()}


@dataclass(frozen=True, eq=False)
class Ranking:
    """Scores sorted once, from which masks of every sparsity are cut.

    The masks of one ranking are nested: what is gone at a sparsity is gone at every higher one.
    Equal scores fall in the order of their position, so that counts are exact: round(sparsity * n)
    of a layer's n entries go.
    """

    scores: Scores

    @cached_property
    def _position(self) -> dict[str, Tensor]:
        """Layer -> the place (flat) of every entry in the order of removal."""
        return {name: _places(score.flatten()) for name, score in self.scores.items()}

    @cached_property
    def _global_position(self) -> dict[str, Tensor]:
        """The same, in one order across all layers."""
        places = _places(torch.cat([score.flatten() for score in self.scores.values()]))
        parts = places.split([score.numel() for score in self.scores.values()])
        return dict(zip(self.scores, parts, strict=True))

    def masks(self, sparsities: Mapping[str, float]) -> dict[str, Tensor]:
        """Layer -> mask shaped like its scores, True = kept, for the layers in `sparsities`."""
        return {
            name: (self._position[name] >= round(sparsity * self.scores[name].numel())).view_as(self.scores[name])
            for name, sparsity in sparsities.items()
        }

    def global_masks(self, sparsity: float) -> dict[str, Tensor]:
        """Masks of all layers from one threshold: layers with low scores lose more."""
        gone = round(sparsity * sum(score.numel() for score in self.scores.values()))
        return {
            name: (self._global_position[name] >= gone).view_as(score) for name, score in self.scores.items()
        }

    def global_sparsities(self, sparsity: float) -> dict[str, float]:
        """Layer -> the sparsity that `global_masks` gives it."""
        return {name: 1 - mask.float().mean().item() for name, mask in self.global_masks(sparsity).items()}


def _places(scores: Tensor) -> Tensor:
    """Rank of every score, lowest 0; NaN counts as lowest; ties in order of position."""
    order = scores.nan_to_num(nan=-torch.inf).argsort(stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
