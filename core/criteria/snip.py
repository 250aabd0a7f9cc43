"""SNIP: weights whose removal would, to first order, not change the loss matter least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Grain, Scores, sample
from core.layers import private_copy, require_prunable
from core.method import number
from core.run import Run

BATCH = 32  # pictures in one forward pass; the scores do not depend on it


@CRITERIA.register
@dataclass(frozen=True)
class SNIP(Criterion):
    """The absolute product of a weight and its gradient: connection sensitivity.

    The gradient is that of the mean cross-entropy over `images` pictures. The paper scores a
    network before training and divides by the sum of all scores, which changes no order; here the
    network is the one given, trained or not.

    Source: Lee, Ajanthan and Torr, "SNIP: Single-shot Network Pruning based on Connection
    Sensitivity", ICLR 2019, arXiv:1810.02340, section 4.
    """

    name: ClassVar[str] = "snip"
    title: ClassVar[str] = "SNIP"
    grain: ClassVar[Grain] = "weight"

    images: int = number(256, 1, 10000, 1, help="Training pictures on which gradients are taken")

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        private = private_copy(model, run.device)
        layers = require_prunable(private)
        weights = [layer.weight.requires_grad_(True) for layer in layers.values()]
        total = [torch.zeros_like(weight) for weight in weights]
        split = sample(setting.train, self.images)
        for start in run.track(range(0, len(split), BATCH), "Taking gradients"):
            part = split.take(slice(start, start + BATCH))
            with torch.enable_grad():
                loss = F.cross_entropy(
                    private(part.images.to(run.device)), part.labels.to(run.device), reduction="sum"
                )
            for sum_, gradient in zip(
                total, torch.autograd.grad(loss, weights, materialize_grads=True), strict=True
            ):
                sum_ += gradient / len(split)
        return {
            name: (weight.detach() * gradient).abs()
            for name, weight, gradient in zip(layers, weights, total, strict=True)
        }
