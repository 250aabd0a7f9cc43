"""The networks and pictures that are measured: published ones where they are at hand, else shipped ones."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from bench.settings import setting
from core.bundles import MODELS, DatasetBundle, ModelBundle, Split, data_directory
from core.errors import DataUnavailableError
from core.layers import prunable
from core.weights import load_dataset, load_model
from core.whatif import WhatIf

SHARED = Path(os.environ.get("PRUNESCOPE_SHARED", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True, eq=False)
class Subject:
    """One network with the pictures it is measured on."""

    title: str
    bundle: ModelBundle
    data: DatasetBundle
    split: Split

    @property
    def example(self) -> torch.Tensor:
        """(1, C, H, W)."""
        return self.split.normalise(self.split.pixels[:1])


def resnet20(images: int | None = 1000) -> Subject:
    """The published CIFAR-10 ResNet-20, else the shipped one on drawn digits."""
    file, data = SHARED / "weights" / "resnet20-12fca82f.th", _cifar10()
    if data is not None and file.is_file():
        bundle, name = load_model("resnet20", data, file), "ResNet-20 (published weights) on CIFAR-10"
    else:
        data = load_dataset("cluttered-digits")
        bundle, name = load_model("resnet20", data.name), "ResNet-20 (shipped weights) on Cluttered digits"
    return _subject(name, bundle, data, images)


def vgg11(images: int | None = 1000) -> Subject:
    """The shipped VGG-11-BN, a quarter as wide as published; on noise where CIFAR-10 is not at hand."""
    data = _cifar10() or _noise(images or 1000, side=32, classes=10)
    bundle = load_model("vgg11-bn:width=0.25", data)
    return _subject(f"VGG-11-BN (shipped weights) on {_title(data)}", bundle, data, images)


def vgg16(images: int | None = 250) -> Subject:
    """VGG-16-BN at full width with random weights.

    What it has learnt does not matter to the plain way. To ours it does: a random network has many
    close calls, often too many for anything less than float32.
    """
    data = _cifar10() or load_dataset("cluttered-digits")
    architecture = MODELS["vgg16-bn"]()
    torch.manual_seed(0)
    network = settle(architecture.build(data.shape, len(data.classes)), data.train)
    bundle = ModelBundle(network, architecture, data.name)
    return _subject(f"VGG-16-BN (random weights) on {_title(data)}", bundle, data, images)


def mobilenetv2(images: int | None = 64) -> Subject:
    """MobileNetV2 for 224 x 224 pictures with ImageNet weights, else with random ones on noise.

    A picture costs as much as 400 small ones do in a ResNet-20 run the plain way, so there are fewer.
    """
    architecture = MODELS["torchvision"](network="mobilenet_v2")
    file, data = SHARED / "weights" / "imagenet_mobilenet_v2.npz", _imagenet()
    if data is not None and file.is_file():
        bundle = load_model(architecture, data, file)
        bundle = replace(bundle, module=untie(bundle.module))
        return _subject("MobileNetV2 (ImageNet weights) on 224 x 224", bundle, data, images)
    torch.manual_seed(0)
    data = _noise(images or 390, side=224, classes=1000)
    network = settle(architecture.build(data.shape, 1000), data.train)
    bundle = ModelBundle(network, architecture, data.name)
    return _subject("MobileNetV2 (random weights) on 224 x 224 noise", bundle, data, images)


def start(subject: Subject) -> WhatIf:
    """A fresh engine."""
    return WhatIf(subject.bundle, subject.data, subject.split)


SUBJECTS: dict[str, Callable[..., Subject]] = {
    "resnet20": resnet20,
    "vgg11-bn": vgg11,
    "vgg16-bn": vgg16,
    "mobilenetv2": mobilenetv2,
}


def settle(network: nn.Module, split: Split) -> nn.Module:
    """Give a random network batch-norm statistics and logits that differ from picture to picture.

    Else its answers would hang on rounding, and whether two ways agree could not be told.
    """
    images = split.normalise(split.pixels[:200])
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a plain mean over what is seen
    with torch.no_grad():
        network.train()(images)
        *_, head = prunable(network.eval()).values()
        logits = network(images)
        head.weight *= 10 / logits.std(0).mean()
        head.bias -= network(images).mean(0)
    return network.requires_grad_(False)


def untie(network: nn.Module) -> nn.Module:
    """A copy in which filters that weigh the same, as 8-bit weights often do, differ by a ten-thousandth.

    Which of two equal filters goes is arbitrary, and other ways choose otherwise than ours.
    """
    network, random = copy.deepcopy(network), torch.Generator().manual_seed(0)
    for layer in prunable(network).values():
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        layer.weight *= 1 + 1e-4 * torch.rand(len(layer.weight), generator=random).view(shape)
    return network


def _subject(title: str, bundle: ModelBundle, data: DatasetBundle, images: int | None) -> Subject:
    return Subject(title, bundle, data, data.test.take(slice(0, images)))


def _title(data: DatasetBundle) -> str:
    return {"cifar10": "CIFAR-10", "cluttered-digits": "Cluttered digits"}.get(data.name, data.name)


def _cifar10() -> DatasetBundle | None:
    try:
        return load_dataset("cifar10")
    except DataUnavailableError:
        return None


def _imagenet() -> DatasetBundle | None:
    """The 650 pictures: in the data folder, or with the published weights."""
    with setting("PRUNESCOPE_DATA", _holder("imagenet_val650")):
        try:
            return load_dataset("imagenet-val650")
        except DataUnavailableError:
            return None


def _holder(folder: str) -> Path:
    return data_directory() if (data_directory() / folder).is_dir() else SHARED


def _noise(count: int, side: int, classes: int) -> DatasetBundle:
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    split = Split(pixels, torch.arange(count) % classes, (0.5,) * 3, (0.25,) * 3)
    names = tuple(map(str, range(classes)))
    return DatasetBundle("noise", split, split, split, names, "made here", "made here")
