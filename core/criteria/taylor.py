"""Taylor: filters whose removal would, to first order, not change the loss matter least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Grain, Scores, sample
from core.layers import following_batch_norms, private_copy, require_prunable
from core.method import number
from core.run import Run

BATCH = 32  # pictures in one forward pass; the scores do not depend on it


@CRITERIA.register
@dataclass(frozen=True)
class Taylor(Criterion):
    """The squared first-order change of the loss when the filter is switched off.

    Every filter's output is multiplied by a gate of 1, after its batch norm where one follows; the
    score is the mean over minibatches of (dE/dgate)^2, E the mean cross-entropy. By the chain rule dE/dgate
    is the sum of gradient x weight over the parameters that the gate scales: scale and shift of the
    batch norm, else the filter and its bias. This is the group form of the 2019 paper, not the mean
    activation x gradient of 2017 (arXiv:1611.06440).

    As in the paper the gradient is the mean over a minibatch, squared, and averaged over minibatches.
    Gradients of single pictures partly cancel in that mean; `batch_size` 1 squares each on its own.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019,
    arXiv:1906.10771, sections 3.1 and 3.2.
    """

    name: ClassVar[str] = "taylor"
    grain: ClassVar[Grain] = "filter"

    images: int = number(256, 1, 10000, 1, help="Training pictures on which gradients are taken")
    batch_size: int = number(32, 1, 256, 1, help="Pictures whose gradients are averaged before squaring")

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        private = private_copy(model, run.device)
        layers = require_prunable(private)
        split = sample(setting.train, self.images)
        norms = following_batch_norms(private, split.take(slice(0, 1)).images.to(run.device))
        gates = {name: _Gate(layer) for name, layer in layers.items()}
        for name, gate in gates.items():
            norms.get(name, layers[name]).register_forward_hook(gate.multiply)
        slopes: dict[str, list[Tensor]] = {name: [] for name in layers}  # dE/dgate, (N, O) in parts
        for start in run.track(range(0, len(split), BATCH), "Taking gradients"):
            part = split.take(slice(start, start + BATCH))
            for gate in gates.values():
                gate.open(len(part), run.device)
            with torch.enable_grad():
                loss = F.cross_entropy(
                    private(part.images.to(run.device)), part.labels.to(run.device), reduction="sum"
                )
            values = [gate.value for gate in gates.values()]
            found = torch.autograd.grad(loss, values, materialize_grads=True)
            for name, slope in zip(layers, found, strict=True):
                slopes[name].append(slope)
        return {name: self._square(torch.cat(parts)) for name, parts in slopes.items()}

    def _square(self, slopes: Tensor) -> Tensor:
        """(N, O) -> (O,): mean over batches of the square of the batch's mean."""
        return torch.stack([part.mean(0) for part in slopes.split(self.batch_size)]).square().mean(0)


class _Gate:
    """A factor of 1 for every picture and filter of `layer`."""

    def __init__(self, layer: nn.Module) -> None:
        self.width = len(layer.weight)
        self.channel = -1 if isinstance(layer, nn.Linear) else 1

    def open(self, count: int, device: str) -> None:
        self.value = torch.ones(count, self.width, device=device, requires_grad=True)  # (N, O)

    def multiply(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        """Forward hook; a layer that splits pictures into windows sees them N at a time."""
        gate = self.value.repeat_interleave(len(output) // len(self.value), 0)
        gate = gate.reshape(len(output), self.width, *[1] * (output.dim() - 2))
        return output * (gate.movedim(1, -1) if self.channel == -1 else gate)
