"""Semi-structured: N of every M neighbouring weights stay."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, require_weight_scores
from core.layers import apply_mask, require_prunable
from core.method import choice, nested
from core.recipe import COMPRESSORS, Compressor
from core.run import Run


@COMPRESSORS.register
@dataclass(frozen=True)
class SemiStructured(Compressor):
    """Keep the N most important of every M weights: the pattern that sparse tensor cores run.

    Blocks of M lie along a layer's inputs: input channels of one filter at one kernel position,
    which are neighbours in the flattened weight when channels come last. Where the number of inputs
    is no multiple of M, the last block is shorter and keeps at most N: it is the pattern of the
    weight padded with zeros. A layer with at most N inputs, such as a depthwise convolution, is
    therefore not changed. Zeros stay zero when a later step trains.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378 (2:4);
    Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
    ICLR 2021, arXiv:2102.04010 (N:M).
    """

    name: ClassVar[str] = "semi-structured"
    title: ClassVar[str] = "N:M semi-structured"

    pattern: str = choice(
        *("2:4", "1:2", "1:4", "2:8", "4:8", "6:8", "1:16", "4:16", "8:16"), help="N of every M weights stay"
    )
    criterion: Criterion = nested(CRITERIA, "magnitude", help="What makes a weight important")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weight_scores(self.name, self.criterion)

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        layers = require_prunable(model)
        kept, block = (int(part) for part in self.pattern.split(":"))
        with run.step(0, 2):
            scores = self.criterion.scores(model, setting, run)
        with run.step(1, 2):
            for name, layer in run.track(layers.items(), "Masking layers"):
                apply_mask(layer, block_mask(scores[name], kept, block))
        return model


def block_mask(scores: Tensor, kept: int, block: int) -> Tensor:
    """Mask like `scores` (O, I, ...), True for the `kept` highest of every `block` along I.

    Of equal scores the later ones stay, as in `criterion.Ranking`.
    """
    inputs = scores.shape[1]
    last = scores.nan_to_num(nan=torch.finfo(scores.dtype).min).movedim(1, -1)  # (O, ..., I)
    blocks = F.pad(last, (0, -inputs % block), value=-torch.inf).unflatten(-1, (-1, block))
    order = blocks.argsort(dim=-1, stable=True)  # (O, ..., B, M), lowest first
    keep = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order[..., -kept:], True)
    return keep.flatten(-2)[..., :inputs].movedim(-1, 1)
