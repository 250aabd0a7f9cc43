"""Batch-norm scale: filters whose batch norm turned them down matter least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Grain, Scores, sample
from core.errors import UnsupportedModelError
from core.layers import following_batch_norms, private_copy, require_prunable
from core.method import number
from core.run import Run


@CRITERIA.register
@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """The absolute scale of the batch norm that follows the filter.

    A layer without a batch norm is scored by the standard deviation of its outputs, over pictures
    and positions: the scale that a batch norm inserted there would need to leave the network as it
    is, so that all layers share one unit. A batch norm without a scale of its own counts as 1. The
    paper trains with an L1 penalty on the scales first; without one they separate filters less.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming",
    ICCV 2017, arXiv:1708.06519, section 3.
    """

    name: ClassVar[str] = "batch-norm-scale"
    title: ClassVar[str] = "Batch-norm scale"
    grain: ClassVar[Grain] = "filter"

    images: int = number(128, 2, 4096, 1, help="Training pictures, for layers without batch norm")

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        private = private_copy(model, run.device)
        images = sample(setting.train, self.images).images.to(run.device)
        layers = require_prunable(private)
        norms = following_batch_norms(private, images[:1])
        if not norms:
            raise UnsupportedModelError(
                f"{self.name}: a convolution or linear layer must be followed by batch norm, got none that is"
            )
        spreads = _spreads(private, {name: layers[name] for name in layers if name not in norms}, images)
        run.report(1.0, "Reading batch norms")
        scales = {name: _scale(norm).to(run.device) for name, norm in norms.items()}
        return {name: (scales | spreads)[name] for name in layers}


def _scale(norm: nn.Module) -> Tensor:
    """Absolute scale (O,) of a batch norm; ones where it has no parameters."""
    return torch.ones(norm.num_features) if norm.weight is None else norm.weight.detach().abs()


def _spreads(model: nn.Module, layers: dict[str, nn.Module], images: Tensor) -> Scores:
    """Layer -> standard deviation (O,) of its outputs over `images` (N, C, H, W) and positions."""
    found: Scores = {}

    def watch(name: str):
        def hook(layer, inputs, output):
            channel = -1 if isinstance(layer, nn.Linear) else 1
            found[name] = output.movedim(channel, 0).flatten(1).std(1, correction=0)

        return hook

    for name, layer in layers.items():
        layer.register_forward_hook(watch(name))
    with torch.no_grad():
        model(images)
    return found
