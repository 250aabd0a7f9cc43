"""Public data sets through torchvision: read from the data directory, downloaded only on request."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from core.bundles import DATASETS, DatasetBundle, DatasetSource, Split, carve, data_directory
from core.errors import DataUnavailableError

VALIDATION = 5000  # pictures carved from the training set, always the same ones


class TorchvisionSet(DatasetSource):
    """One of torchvision's data sets that hold `data` and `targets` in memory."""

    dataset: ClassVar[str]  # class in torchvision.datasets
    classes: ClassVar[tuple[str, ...]]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    licence: ClassVar[str]
    source: ClassVar[str]

    def load(self) -> DatasetBundle:
        train, test = self._read(train=True), self._read(train=False)
        kept, held_out = carve(len(train), VALIDATION)
        return DatasetBundle(
            name=self.name,
            train=train.take(kept),
            validation=train.take(held_out),
            test=test,
            classes=self.classes,
            licence=self.licence,
            source=self.source,
        )

    @classmethod
    def download(cls) -> None:
        """Fetch the files into the data directory; torchvision checks their MD5."""
        for train in (True, False):
            cls._open(train, download=True)

    @classmethod
    def _open(cls, train: bool, download: bool):
        import torchvision  # slow to import, and the embedded data need none of it

        return getattr(torchvision.datasets, cls.dataset)(data_directory(), train=train, download=download)

    def _read(self, train: bool) -> Split:
        try:
            raw = self._open(train, download=False)
        except RuntimeError:
            raise DataUnavailableError(
                f"{self.name} is not in {data_directory()}; fetch it with "
                f"`python cli.py download {self.name}`, or set PRUNESCOPE_DATA to a folder that has it"
            ) from None
        pixels = torch.as_tensor(np.asarray(raw.data))
        pixels = pixels.permute(0, 3, 1, 2) if pixels.dim() == 4 else pixels.unsqueeze(1)
        labels = torch.as_tensor(raw.targets, dtype=torch.int64)
        return Split(pixels.contiguous(), labels, self.mean, self.std)


@DATASETS.register
@dataclass(frozen=True)
class CIFAR10(TorchvisionSet):
    """60,000 colour pictures of 32 x 32 pixels in ten classes of animals and vehicles.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    name: ClassVar[str] = "cifar10"
    dataset = "CIFAR10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    mean = (0.485, 0.456, 0.406)  # ImageNet's, which the published CIFAR ResNets were trained with
    std = (0.229, 0.224, 0.225)
    licence = "none stated by the authors"
    source = "Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html"
