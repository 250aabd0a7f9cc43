"""Data and models as values: what they are, where they come from, how to show them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from core.method import Method
from core.registry import Registry
from core.run import Run


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled pictures held in memory as bytes and normalised when asked for.

    `pixels` is (N, C, H, W) uint8; `labels` is (N,) int64 in [0, K); `masks`, where the data have
    them, is (N, H, W) bool: True on the object. `mean` and `std` hold C values, of pixels in [0, 1].
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All pictures, (N, C, H, W) float32, normalised. Large splits: use `batches`."""
        return self.normalise(self.pixels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> float32, (pixel / 255 - mean) / std."""
        mean, std = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def take(self, index: Tensor | slice) -> "Split":
        """The pictures at `index`, in that order."""
        masks = None if self.masks is None else self.masks[index]
        return replace(self, pixels=self.pixels[index], labels=self.labels[index], masks=masks)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) pairs in order; the last one may be shorter than `size`."""
        for pixels, labels in zip(self.pixels.split(size), self.labels.split(size), strict=True):
            yield self.normalise(pixels), labels


@dataclass(frozen=True, eq=False)
class DatasetBundle:
    """A data set in three parts. `test` is for reporting only: no choice may look at it."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]  # K names
    licence: str
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one picture."""
        return tuple(self.train.pixels.shape[1:])  # type: ignore[return-value]

    def split(self, name: str) -> Split:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


@dataclass(frozen=True, eq=False)
class ModelBundle:
    """A trained network and where it comes from. The module is shared: never change it."""

    module: nn.Module  # eval mode, frozen
    architecture: "Architecture"
    dataset: str
    provenance: dict[str, Any] = field(default_factory=dict)  # who trained it, on what, seed, accuracy, n


@dataclass(frozen=True, eq=False)
class Setting:
    """All a compressor or criterion may look at. There is no test split in it, on purpose."""

    train: Split
    validation: Split
    teacher: nn.Module  # the untouched original: eval mode, frozen


class DatasetSource(Method):
    """Loads a data set. Its docstring says where the data come from and under which licence."""

    def load(self) -> DatasetBundle:
        """Read the data from this machine; never from the network.

        Raises:
            DataUnavailableError: they are not here, or cannot be read; the message says what to do.
        """
        raise NotImplementedError

    def download(self, run: Run) -> None:
        """Fetch what `load` needs; nothing, for data that come with the program.

        Raises:
            DataUnavailableError: they cannot be fetched.
        """


class _Hollow(TorchFunctionMode):
    """Inside, `torch.empty` makes tensors without numbers: so layers make their parameters.

    `torch.device("meta")` would do it for all tensors; some networks compute their widths with those.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}) | ({"device": "meta"} if function is torch.empty else {}))


class Architecture(Method):
    """A family of networks; its hyper-parameters fix one member."""

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """A fresh network for pictures of `shape` (C, H, W) and `classes` logits."""
        raise NotImplementedError

    def outline(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The network of `build` with weights that have shapes but no numbers; it costs next to nothing."""
        with _Hollow():
            return self.build(shape, classes)

    def tensor_name(self, name: str) -> str | None:
        """What this network calls the tensor that a published file calls `name`; None: not needed."""
        return name


DATASETS: Registry[type[DatasetSource]] = Registry("core.datasets", "data set")
MODELS: Registry[type[Architecture]] = Registry("core.models", "model")


def data_directory() -> Path:
    """Where data sets live: `PRUNESCOPE_DATA`, else the user's cache directory."""
    if named := os.environ.get("PRUNESCOPE_DATA"):
        return Path(named).expanduser()
    return cache_directory() / "data"


def cache_directory() -> Path:
    """`PRUNESCOPE_CACHE`, else a folder of ours in the user's cache directory."""
    if named := os.environ.get("PRUNESCOPE_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "prunescope"


def carve(count: int, validation: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of (train, validation) out of `count` training pictures, always the same ones."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[validation:].sort().values, order[:validation].sort().values
