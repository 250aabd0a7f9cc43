"""CIFAR-style residual networks with parameter-free shortcuts."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core.bundles import MODELS, Architecture
from core.layers import ChannelShortcut


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))"""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = ChannelShortcut.padding(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A stem, three stages of `blocks` basic blocks with 16, 32 and 64 channels, a linear layer."""

    def __init__(self, blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(blocks, 16, 16, stride=1)
        self.layer2 = self._stage(blocks, 16, 32, stride=2)
        self.layer3 = self._stage(blocks, 32, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


class _Family(Architecture):
    depth: ClassVar[int]  # 6 x blocks + 2

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        network = CifarResNet((self.depth - 2) // 6, shape[0], classes)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        return network


@MODELS.register
@dataclass(frozen=True)
class ResNet20(_Family):
    """Residual network of 20 layers, 0.27 million parameters.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385, section 4.2, with shortcut option A.
    """

    name: ClassVar[str] = "resnet20"
    title: ClassVar[str] = "ResNet-20"
    depth = 20


@MODELS.register
@dataclass(frozen=True)
class ResNet32(_Family):
    """Residual network of 32 layers, 0.46 million parameters.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385, section 4.2, with shortcut option A.
    """

    name: ClassVar[str] = "resnet32"
    title: ClassVar[str] = "ResNet-32"
    depth = 32


@MODELS.register
@dataclass(frozen=True)
class ResNet56(_Family):
    """Residual network of 56 layers, 0.85 million parameters.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385, section 4.2, with shortcut option A.
    """

    name: ClassVar[str] = "resnet56"
    title: ClassVar[str] = "ResNet-56"
    depth = 56


@MODELS.register
@dataclass(frozen=True)
class ResNet110(_Family):
    """Residual network of 110 layers, 1.7 million parameters.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
    arXiv:1512.03385, section 4.2, with shortcut option A.
    """

    name: ClassVar[str] = "resnet110"
    title: ClassVar[str] = "ResNet-110"
    depth = 110
