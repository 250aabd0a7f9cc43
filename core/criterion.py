"""What is least important: scores of weights or filters, and the masks that are cut from them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from core.bundles import Setting, Split
from core.errors import ParameterError
from core.layers import require_finite, require_prunable
from core.method import Method
from core.registry import Registry, unknown
from core.run import Run, seeded

Grain = Literal["weight", "filter"]
Scores = dict[str, Tensor]  # layer -> importance, (O, ...) like the weight or (O,); higher = keep


class Criterion(Method):
    """Scores what a pruning method may take away; higher means keep."""

    grain: ClassVar[Grain]

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        """Prunable layer -> importance scores: shaped like its weight, or (O,) for filters.

        `model` must not be changed: what needs hooks or gradients works on `layers.private_copy`.
        Random numbers are torch's, already seeded.
        """
        raise NotImplementedError

    def filter_scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        """Prunable layer -> scores (O,) of whole filters: by default, sums of those of their weights."""
        return per_filter(self.scores(model, setting, run))


CRITERIA: Registry[type[Criterion]] = Registry("core.criteria", "criterion")


def per_filter(scores: Scores) -> Scores:
    """Scores (O,) of whole filters: those of single weights are summed over each filter."""
    return {name: s.flatten(1).sum(1) if s.dim() > 1 else s for name, s in scores.items()}


def require_weight_scores(who: str, criterion: Criterion) -> None:
    """Check that `criterion` scores single weights, as `who` needs.

    Raises:
        ParameterError: it scores whole filters.
    """
    if criterion.grain != "weight":
        raise ParameterError(
            f"{who}: criterion must score single weights, got {criterion.name}, which scores filters"
        )


def sample(split: Split, count: int) -> Split:
    """`count` pictures of `split` drawn without replacement, all of them where it has fewer."""
    return split.take(torch.randperm(len(split))[:count])


def rank(
    criterion: Criterion,
    model: nn.Module,
    setting: Setting,
    run: Run | None = None,
    *,
    grain: Grain | None = None,
    seed: int = 0,
) -> "Ranking":
    """The scores of `criterion`, computed once and sorted: of filters, or in its own grain by default.

    The caller's random state is left alone and equal seeds give equal bits.

    Raises:
        ParameterError: single weights are asked for, and the criterion scores filters.
        UnsupportedModelError: the model has no prunable layer, or weights that are not finite.
    """
    run = run or Run()
    require_prunable(model)
    require_finite(model)
    if grain == "weight":
        require_weight_scores("ranking", criterion)
    with seeded(seed, run):
        scores = criterion.filter_scores if grain == "filter" else criterion.scores
        return Ranking(scores(model, setting, run))


@dataclass(eq=False)
class ScoreMemory:
    """The scores that one criterion gives one network under one seed: computed when first asked for."""

    found: dict[str, Scores] = field(default_factory=dict)  # "scores" of single entries, "filter_scores"
    seconds: float = 0.0  # that computing them took

    def behind(self, criterion: Criterion) -> Criterion:
        """The same criterion, equal to it in all but that it asks here first."""
        memory = self

        class Remembering(type(criterion)):
            def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
                return memory._get("scores", super().scores, model, setting, run)

            def filter_scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
                return memory._get("filter_scores", super().filter_scores, model, setting, run)

        made = object.__new__(Remembering)
        vars(made).update(vars(criterion))
        return made

    def _get(self, kind: str, compute: Callable[..., Scores], *given: Any) -> Scores:
        if kind not in self.found:
            start, before = time.perf_counter(), self.seconds
            self.found[kind] = compute(*given)
            self.seconds = before + time.perf_counter() - start  # one kind may have asked for the other
        return dict(self.found[kind])


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
        masks = {}
        for name, sparsity in sparsities.items():
            if name not in self.scores:
                raise ParameterError(unknown("layer", name, self.scores))
            gone = round(sparsity * self.scores[name].numel())
            masks[name] = (self._position[name] >= gone).view_as(self.scores[name])
        return masks

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
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
