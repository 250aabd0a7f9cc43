"""MobileNetV2 for 32 x 32 pictures."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core.bundles import MODELS, Architecture
from core.method import number

# expansion, channels at full width, blocks, stride of the first block. The paper's strides are for
# pictures of 224 pixels; its stem and its second stage halve them too.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, HEAD = 32, 1280  # channels at full width


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter every channel by itself, narrow by 1 x 1; add the input where it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = expansion * inputs
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = _convolution(inputs, inside, 1)
        self.depthwise = _convolution(inside, inside, 3, stride, groups=inside)
        self.project = nn.Conv2d(inside, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.project(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Sequential()
    layer.add_module("conv", nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False))
    layer.add_module("bn", nn.BatchNorm2d(outputs))
    layer.add_module("relu", nn.ReLU6())
    return layer


@MODELS.register
@dataclass(frozen=True)
class MobileNetV2(Architecture):
    """Inverted residuals with depthwise convolutions; 2.2 million parameters at full width.

    Strides are adapted to 32 x 32 pixels: the stem and the second stage keep the resolution.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
    arXiv:1801.04381, table 2.
    """

    name: ClassVar[str] = "mobilenetv2"
    title: ClassVar[str] = "MobileNetV2"

    width: float = number(1.0, 0.25, 2.0, 0.25, help="Filters of every layer, relative to the paper's")

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        inputs = self._channels(STEM)
        blocks = nn.Sequential()
        for expansion, channels, count, stride in STAGES:
            for index in range(count):
                outputs = self._channels(channels)
                block = InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion)
                blocks.add_module(f"block{len(blocks) + 1}", block)
                inputs = outputs
        head = max(HEAD, self._channels(HEAD))  # the paper widens the last layer but never narrows it
        network = nn.Sequential()
        network.add_module("stem", _convolution(shape[0], self._channels(STEM), 3))
        network.add_module("blocks", blocks)
        network.add_module("head", _convolution(inputs, head, 1))
        network.add_module("pool", nn.AdaptiveAvgPool2d(1))
        network.add_module("flatten", nn.Flatten())
        network.add_module("classifier", nn.Linear(head, classes))
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        return network

    def _channels(self, count: int) -> int:
        """The multiple of 8 next to `width` x `count`, at most a tenth below it, as the authors round."""
        wanted = self.width * count
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * wanted else rounded + 8
