"""Student: the same network, narrower, that knows nothing yet."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from core import coupling, surgery
from core.bundles import Setting
from core.layers import PRUNABLE, bake
from core.method import number
from core.recipe import COMPRESSORS, Compressor
from core.run import Run


@COMPRESSORS.register
@dataclass(frozen=True)
class Student(Compressor):
    """Start over with fresh weights in the same network with a share of its channels.

    Every group of channels that can only go together keeps the share, rounded, at least one. New
    weights are normal with variance 2 / inputs, biases zero, batch norms new; masks of earlier steps
    are forgotten, removed channels and blocks stay removed. The student answers at random until a
    step that trains teaches it: the teacher is the untouched original. For a shallower student
    remove layers first.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    arXiv:1503.02531 (students); He et al., "Delving Deep into Rectifiers", ICCV 2015,
    arXiv:1502.01852, section 2.2 (weights).
    """

    name: ClassVar[str] = "student"

    width: float = number(0.5, 0.01, 1.0, 0.01, help="Share of the channels that the student has")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        example = setting.train.take(slice(0, 1)).images
        model = bake(model)
        masks = {
            group.name: torch.arange(group.width) < max(1, math.floor(self.width * group.width + 0.5))
            for group in coupling.groups(model, example)
        }
        narrow = surgery.remove_groups(model, masks, example)
        _start_over(narrow)
        return narrow


@torch.no_grad()
def _start_over(model: nn.Module) -> None:
    """Draw all weights again, in place."""
    for layer in model.modules():
        if isinstance(layer, PRUNABLE):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()
        elif hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
