"""Published networks, loaded as they are, answer as their authors and the collection's notes say."""

from pathlib import Path

import pytest
import torch

from core.bundles import MODELS, ModelBundle, Split
from core.weights import load_dataset, load_model

FILES = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet32": "resnet32-d509ac18.th",
    "resnet56": "resnet56-4bfd9763.th",
}

pytestmark = pytest.mark.slow


def right(bundle: ModelBundle, split: Split) -> int:
    """How many pictures the network names rightly."""
    with torch.inference_mode():
        answers = [bundle.module(images).argmax(1) == labels for images, labels in split.batches(250)]
    return int(torch.cat(answers).sum())


def test_resnet20_is_right_on_9173_of_10000_test_pictures(data_dir, shared_dir):
    """91.73 %: to the image what https://github.com/akamaster/pytorch_resnet_cifar10 publishes."""
    bundle = load_model("resnet20", "cifar10", shared_dir / "weights" / FILES["resnet20"])
    assert right(bundle, load_dataset("cifar10").test) == 9173


@pytest.mark.parametrize(("name", "expected"), [("resnet32", 9263), ("resnet56", 9339)])
def test_deeper_networks_reach_what_is_published(data_dir, shared_dir, name, expected):
    """On the first 2,000 test pictures; on all 10,000 they are right on `expected`, as published."""
    bundle = load_model(name, "cifar10", shared_dir / "weights" / FILES[name])
    first = load_dataset("cifar10").test.take(slice(0, 2000))
    assert right(bundle, first) == {9263: 1854, 9339: 1859}[expected]


@pytest.mark.parametrize(
    ("network", "file", "expected"),
    [
        ("squeezenet1_1", "imagenet_squeezenet1_1.npz", 476),
        ("mobilenet_v2", "imagenet_mobilenet_v2.npz", 500),
        ("squeezenet1_0", "imagenet_squeezenet1_0_deepcompressed.npz", 469),
    ],
)
def test_imagenet_networks_answer_as_noted_on_650_pictures(shared_dir, monkeypatch, network, file, expected):
    monkeypatch.setenv("PRUNESCOPE_DATA", str(shared_dir))
    architecture = MODELS["torchvision"](network=network)
    bundle = load_model(architecture, "imagenet-val650", Path(shared_dir) / "weights" / file)
    data = load_dataset("imagenet-val650")
    assert sum(right(bundle, data.split(part)) for part in ("train", "validation", "test")) == expected
