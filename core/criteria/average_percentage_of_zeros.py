"""Average percentage of zeros: filters that the ReLU silences most matter least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Grain, Scores, sample
from core.errors import UnsupportedModelError
from core.layers import private_copy, require_prunable
from core.method import number
from core.run import Run

BATCH = 64  # pictures in one forward pass; the scores do not depend on it
RELU = {"relu", "relu_", "relu6", "hardtanh", "hardtanh_", "threshold", "threshold_"}
KEEPS_CHANNELS = {
    *("batch_norm", "group_norm", "instance_norm", "dropout", "dropout_", "dropout2d", "feature_dropout"),
    *("add", "add_", "__add__", "__radd__", "__iadd__", "contiguous", "clone"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d"),
}


@CRITERIA.register
@dataclass(frozen=True)
class AveragePercentageOfZeros(Criterion):
    """The share of a filter's outputs, over pictures and positions, that the next ReLU lets through.

    The paper's APoZ is the share of zeros; the score is 1 - APoZ, so that higher means keep. The
    output is followed through batch norm, pooling, dropout and additions to the ReLU it enters: at
    the end of a residual block that is the ReLU after the addition. Layers whose output meets no
    ReLU that way, such as the classifier, are never silenced: all their filters score 1.

    Source: Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient
    Deep Architectures", 2016, arXiv:1607.03250, section 3.1.
    """

    name: ClassVar[str] = "average-percentage-of-zeros"
    grain: ClassVar[Grain] = "filter"

    images: int = number(256, 1, 10000, 1, help="Validation pictures on which zeros are counted")

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        private = private_copy(model, run.device)
        layers = require_prunable(private)
        counter = _Counter(layers)
        split = sample(setting.validation, self.images)
        for start in run.track(range(0, len(split), BATCH), "Counting zeros"):
            images = split.take(slice(start, start + BATCH)).images.to(run.device)
            with torch.no_grad(), counter:
                private(images)
        if not counter.seen:
            raise UnsupportedModelError(f"{self.name}: a layer must be followed by ReLU, got none that is")
        return {
            name: (1 - counter.zeros[name] / counter.seen[name]).float()
            if name in counter.seen
            else torch.ones(len(layer.weight), device=run.device)
            for name, layer in layers.items()
        }


class _Counter(TorchFunctionMode):
    """Follows the outputs of `layers` through a forward pass and counts zeros behind the ReLU."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers = layers
        self.zeros: dict[str, Tensor] = {}  # layer -> number of zeros (O,)
        self.seen: dict[str, int] = {}  # layer -> number of outputs of one filter
        self.origin = WeakIdKeyDictionary()  # tensor -> the layers whose filters are its channels
        for name, layer in layers.items():
            layer.register_forward_hook(self._leaves(name))

    def _leaves(self, name: str):
        def hook(layer, inputs, output):
            self.origin[output] = frozenset([name])

        return hook

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        origin = frozenset().union(*(self.origin.get(value, ()) for value in inputs))
        output = func(*args, **kwargs)
        if origin and isinstance(output, Tensor):
            if func.__name__ in RELU:
                self._count(origin, output)
                origin = frozenset()
            self.origin[output] = origin if func.__name__ in RELU | KEEPS_CHANNELS else frozenset()
        return output

    def _count(self, origin: frozenset[str], output: Tensor) -> None:
        for name in origin:
            channel = -1 if isinstance(self.layers[name], nn.Linear) else 1
            zeros = (output == 0).movedim(channel, 0).flatten(1).sum(1, dtype=torch.float64)  # (O,)
            self.zeros[name] = self.zeros.get(name, 0) + zeros
            self.seen[name] = self.seen.get(name, 0) + output.numel() // len(zeros)
