"""Small networks, and data that they can learn in seconds."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from core.bundles import Split
from core.models.cifar_resnet import BasicBlock

ROOT = Path(__file__).parents[1]
CLASSES = 4
SIDE = 16  # pixels


class TinyResNet(nn.Module):
    """Stem, a residual block, one that halves the picture and widens, a linear layer; 16 x 16 pictures."""

    def __init__(self, width: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.linear(self.pool(self.layer2(self.layer1(x))).flatten(1))


def plain_network(classes: int = CLASSES) -> nn.Sequential:
    """Two convolutions with bias, one of them with batch norm, and two linear layers."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 3, stride=2, padding=1),
            bn1=nn.BatchNorm2d(6),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(6, 5, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            linear1=nn.Linear(80, 7),
            relu3=nn.ReLU(),
            linear2=nn.Linear(7, classes),
        )
    )


def vary(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as after a training: scales, shifts and statistics that differ by channel."""
    random = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            size = layer.running_mean.shape
            layer.weight.data = 0.2 + torch.rand(size, generator=random)
            layer.bias.data = 0.3 * torch.randn(size, generator=random)
            layer.running_mean.copy_(0.3 * torch.randn(size, generator=random))
            layer.running_var.copy_(0.5 + torch.rand(size, generator=random))
    return model


def quadrants(count: int, seed: int) -> Split:
    """Noise (count, 3, 16, 16) with one bright quadrant, which is the class; masks say where."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    half = SIDE // 2
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        masks[index, row * half : (row + 1) * half, column * half : (column + 1) * half] = True
    noise = torch.randint(0, 120, (count, 3, SIDE, SIDE), generator=random)
    pixels = (noise + 80 * masks[:, None]).to(torch.uint8)
    return Split(pixels, labels, (0.3, 0.3, 0.3), (0.2, 0.2, 0.2), masks)
