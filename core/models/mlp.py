"""A multi-layer perceptron."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from core.bundles import MODELS, Architecture
from core.method import number


@MODELS.register
@dataclass(frozen=True)
class MLP(Architecture):
    """Fully connected layers with ReLU between them, on the flattened picture.

    Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors",
    Nature 323, 1986.
    """

    name: ClassVar[str] = "mlp"
    title: ClassVar[str] = "MLP"

    hidden: int = number(128, 1, 4096, 1, help="Units of every hidden layer")
    depth: int = number(2, 1, 16, 1, help="Number of hidden layers")

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        inputs = shape[0] * shape[1] * shape[2]
        for index in range(1, self.depth + 1):
            layers[f"linear{index}"] = nn.Linear(inputs, self.hidden)
            layers[f"relu{index}"] = nn.ReLU()
            inputs = self.hidden
        layers["linear"] = nn.Linear(inputs, classes)
        return nn.Sequential(layers)
