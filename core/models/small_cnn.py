"""A small plain convolutional network: the first one to take apart."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from core.bundles import MODELS, Architecture
from core.method import number


@MODELS.register
@dataclass(frozen=True)
class SmallCNN(Architecture):
    """Four 3 x 3 convolutions with batch norm, two poolings, one linear layer.

    Source: the pattern of Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015,
    arXiv:1409.1556, in small.
    """

    name: ClassVar[str] = "small-cnn"
    title: ClassVar[str] = "Small CNN"

    width: int = number(16, 1, 256, 1, help="Filters of the first layer; the last has four times as many")

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        widths = [self.width, 2 * self.width, 2 * self.width, 4 * self.width]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = shape[0]
        for index, outputs in enumerate(widths, start=1):
            layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers[f"bn{index}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{index}"] = nn.ReLU()
            if index in (1, 3):
                layers[f"pool{index}"] = nn.MaxPool2d(2)
            inputs = outputs
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(inputs, classes)
        return nn.Sequential(layers)
