"""Layer removal: whole residual blocks become the identity."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from core.blocks import residual_blocks
from core.bundles import Setting, Split
from core.criterion import CRITERIA, Criterion, Scores
from core.cutting import replace_layer
from core.errors import ParameterError, UnsupportedModelError
from core.layers import private_copy, require_prunable
from core.method import choice, nested, number, per_layer
from core.recipe import COMPRESSORS, Compressor
from core.registry import unknown
from core.run import Run

BATCH = 250  # pictures in one forward pass


@COMPRESSORS.register
@dataclass(frozen=True)
class LayerRemoval(Compressor):
    """Replace the residual blocks that matter least by the identity.

    A block can go where its output has the shape of its input and is the input again once the
    block's branch gives zero; blocks that change the width or the resolution stay. With importance
    "sensitivity" a block is worth the rise of the validation loss when it alone is skipped; with
    "criterion" it is worth the mean score of its filters. `sparsity` is the share of the removable
    blocks that go, up to all of them; `blocks` settles some by hand, and the share is then that of
    the others. Depth falls, and with it weights, MACs and latency.

    Source: Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow Networks",
    NeurIPS 2016, arXiv:1605.06431, section 4.1 (deleting single blocks); Elkerdawy et al., "To
    Filter Prune, or to Layer Prune, That Is the Question", ACCV 2020, arXiv:2007.05667, section 3
    (blocks ranked by filter criteria).
    """

    name: ClassVar[str] = "layer-removal"

    sparsity: float = number(0.3, 0.0, 1.0, 0.01, help="Fraction of the removable blocks that go")
    importance: str = choice(
        "sensitivity", "criterion", help="Measure every block's effect on the loss, or score its filters"
    )
    images: int = number(500, 10, 10000, 10, help="Validation pictures for the sensitivity")
    criterion: Criterion = nested(CRITERIA, "filter-l1", help="Score of filters, for importance criterion")
    blocks: tuple[tuple[str, float], ...] = per_layer(
        0.0,
        1.0,
        1.0,
        help="Blocks settled by hand, named or by a layer of theirs: 1 goes, 0 stays",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for block, decision in self.blocks:
            if decision not in (0.0, 1.0):
                raise ParameterError(
                    f"{self.name}: blocks: {block} must be 0 (stays) or 1 (goes), got {decision:g}"
                )

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        require_prunable(model)
        names = residual_blocks(model, setting.train.take(slice(0, 1)).images)
        if not names:
            raise UnsupportedModelError(
                f"{self.name}: the model must have a residual block that keeps its input's shape, got none"
            )
        settled = self._settled(names)
        others = [name for name in names if name not in settled]
        gone = [name for name, goes in settled.items() if goes]
        count = round(self.sparsity * len(others))
        if count:
            worth = self._worth(model, others, setting, run)
            gone += sorted(others, key=worth.__getitem__)[:count]
        remove_blocks(model, gone)
        return model

    def _settled(self, names: list[str]) -> dict[str, bool]:
        """Block -> does it go?, of the blocks in `blocks`, which may name a layer inside instead."""
        settled = {}
        for given, decision in self.blocks:
            homes = [name for name in names if f"{given}.".startswith(f"{name}.")]
            if not homes:
                raise ParameterError(f"{self.name}: {unknown('removable block', given, names)}")
            if settled.setdefault(homes[0], bool(decision)) != bool(decision):
                raise ParameterError(f"{self.name}: blocks: {homes[0]} must be settled once, got 0 and 1")
        return settled

    def _worth(self, model: nn.Module, names: list[str], setting: Setting, run: Run) -> dict[str, float]:
        """Block -> importance; higher = keep."""
        if self.importance == "sensitivity":
            return sensitivities(model, names, setting.validation.take(slice(0, self.images)), run)
        scores = self.criterion.filter_scores(model, setting, run)
        return {name: _mean_score(name, scores) for name in names}


def remove_blocks(model: nn.Module, names: Iterable[str]) -> None:
    """Put the identity in the place of the modules in `names`."""
    for name in names:
        replace_layer(model, name, nn.Identity())


@torch.no_grad()
def sensitivities(model: nn.Module, names: Collection[str], split: Split, run: Run) -> dict[str, float]:
    """Block -> mean cross-entropy on `split` when it alone is the identity, above that of `model`."""
    network = private_copy(model, run.device)
    before = _loss(network, split, run)
    rises = {}
    for name in run.track(names, "Skipping blocks one at a time"):
        block = network.get_submodule(name)
        replace_layer(network, name, nn.Identity())
        rise = _loss(network, split, run) - before
        rises[name] = rise if math.isfinite(rise) else math.inf
        replace_layer(network, name, block)
    return rises


def _loss(network: nn.Module, split: Split, run: Run) -> float:
    """Mean cross-entropy on `split`."""
    total = 0.0
    for images, labels in split.batches(BATCH):
        logits = network(images.to(run.device))
        total += F.cross_entropy(logits, labels.to(run.device), reduction="sum").item()
    return total / len(split)


def _mean_score(block: str, scores: Scores) -> float:
    """Mean over the filters of all layers in `block`."""
    inside = [score.flatten() for name, score in scores.items() if name.startswith(f"{block}.")]
    return torch.cat(inside).float().mean().item()
