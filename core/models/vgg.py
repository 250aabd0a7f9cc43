"""VGG networks with batch norm for 32 x 32 pictures."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from core.bundles import MODELS, Architecture
from core.method import number

Plan = tuple[int | None, ...]  # widths of the convolutions at full width; None pools by two


class _Family(Architecture):
    plan: ClassVar[Plan]
    width: float

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        layers: list[nn.Module] = []
        inputs = shape[0]
        for width in self.plan:
            if width is None:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                continue
            outputs = max(1, round(self.width * width))
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        network = nn.Sequential()
        network.add_module("features", nn.Sequential(*layers))
        network.add_module("pool", nn.AdaptiveAvgPool2d(1))
        network.add_module("flatten", nn.Flatten())
        network.add_module("classifier", nn.Linear(inputs, classes))
        return network


@MODELS.register
@dataclass(frozen=True)
class VGG11(_Family):
    """Eight plain convolutions with batch norm, and one linear layer instead of VGG's three.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, arXiv:1409.1556,
    configuration A.
    """

    name: ClassVar[str] = "vgg11-bn"
    title: ClassVar[str] = "VGG-11-BN"
    plan = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512)

    width: float = number(1.0, 0.0625, 2.0, 0.0625, help="Filters of every layer, relative to the paper's")


@MODELS.register
@dataclass(frozen=True)
class VGG16(_Family):
    """Thirteen plain convolutions with batch norm, and one linear layer instead of VGG's three.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015, arXiv:1409.1556,
    configuration D.
    """

    name: ClassVar[str] = "vgg16-bn"
    title: ClassVar[str] = "VGG-16-BN"
    plan = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512)

    width: float = number(1.0, 0.0625, 2.0, 0.0625, help="Filters of every layer, relative to the paper's")
