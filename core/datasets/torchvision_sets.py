"""Public data sets through torchvision: read from the data directory, downloaded only on request."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from core.bundles import DATASETS, DatasetBundle, DatasetSource, Split, carve, data_directory
from core.download import File, fetch
from core.errors import DataUnavailableError
from core.run import Run

VALIDATION = 0.1  # of the training pictures, always the same ones
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std


class TorchvisionSet(DatasetSource):
    """One of torchvision's data sets, with a training part and a test part."""

    dataset: ClassVar[str]  # class in torchvision.datasets
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    licence: ClassVar[str]
    source: ClassVar[str]

    def load(self) -> DatasetBundle:
        fetching = f"fetch it with `python cli.py download {self.name}`"
        remedy = f"{fetching}, or set PRUNESCOPE_DATA to a folder that has it"
        try:
            train, test = self._unpacked()
            train_split, test_split = self._read(train), self._read(test)
        except RuntimeError:  # torchvision found nothing, or not what its checksums say
            raise DataUnavailableError(f"{self.name} is not in {data_directory()}; {remedy}") from None
        except (OSError, ValueError, AssertionError, EOFError) as error:
            raise DataUnavailableError(
                f"{self.name} in {data_directory()} is damaged ({first_line(error)}); {remedy}"
            ) from error
        kept, held_out = carve(len(train_split), round(VALIDATION * len(train_split)))
        return DatasetBundle(
            name=self.name,
            train=train_split.take(kept),
            validation=train_split.take(held_out),
            test=test_split,
            classes=self._classes(train),
            licence=self.licence,
            source=self.source,
        )

    def _unpacked(self) -> list[Any]:
        """torchvision's training and test part; archives that lie in their place are unpacked first."""
        try:
            return [self._open(train, download=False) for train in (True, False)]
        except RuntimeError:
            if not all(file.path.is_file() for file in self._files(self._torchvision())):
                raise
            return [self._open(train, download=True) for train in (True, False)]

    def download(self, run: Run) -> None:
        """Fetch the files into the data directory, where they are missing, and unpack them."""
        try:
            if self._present():
                return
            for file in run.track(list(self._files(self._torchvision())), f"Fetching {self.name}"):
                fetch(file, run)
            for train in (True, False):
                self._open(train, download=True)
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            raise DataUnavailableError(
                f"{self.name}: cannot be fetched ({first_line(error)}); "
                f"try again, or copy it to {data_directory()}"
            ) from error

    def _present(self) -> bool:
        try:
            return all(self._open(train, download=False) is not None for train in (True, False))
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError):
            return False

    def _torchvision(self) -> Any:
        import torchvision  # slow to import, and the embedded data need none of it

        return getattr(torchvision.datasets, self.dataset)

    def _open(self, train: bool, download: bool) -> Any:
        return self._torchvision()(data_directory(), train=train, download=download)

    def _files(self, dataset: Any) -> Iterator[File]:
        """What to fetch, and where torchvision's class looks for it."""
        yield File((dataset.url,), data_directory() / dataset.filename, dataset.tgz_md5)

    def _classes(self, raw: Any) -> tuple[str, ...]:
        return tuple(raw.classes)

    def _read(self, raw: Any) -> Split:
        pixels = torch.as_tensor(np.asarray(raw.data))
        pixels = pixels.permute(0, 3, 1, 2) if pixels.dim() == 4 else pixels.unsqueeze(1)
        labels = torch.as_tensor(raw.targets, dtype=torch.int64)
        return Split(pixels.contiguous(), labels, self.mean, self.std)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@DATASETS.register
@dataclass(frozen=True)
class CIFAR10(TorchvisionSet):
    """60,000 colour pictures of 32 x 32 pixels in ten classes of animals and vehicles.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    name: ClassVar[str] = "cifar10"
    title: ClassVar[str] = "CIFAR-10"
    dataset = "CIFAR10"
    mean, std = IMAGENET  # which the published CIFAR ResNets were trained with
    licence = "none stated by the authors"
    source = "Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html"


@DATASETS.register
@dataclass(frozen=True)
class CIFAR100(TorchvisionSet):
    """60,000 colour pictures of 32 x 32 pixels in a hundred classes.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """

    name: ClassVar[str] = "cifar100"
    title: ClassVar[str] = "CIFAR-100"
    dataset = "CIFAR100"
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    licence = "none stated by the authors"
    source = "Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html"


class _MNISTLike(TorchvisionSet):
    """The four gzipped files of MNIST and of the sets that follow its form."""

    def _files(self, dataset: Any) -> Iterator[File]:
        folder = data_directory() / dataset.__name__ / "raw"
        for filename, md5 in dataset.resources:
            if not (folder / filename).with_suffix("").exists():  # which is all that torchvision reads
                yield File(tuple(mirror + filename for mirror in dataset.mirrors), folder / filename, md5)


@DATASETS.register
@dataclass(frozen=True)
class FashionMNIST(_MNISTLike):
    """70,000 grey pictures of 28 x 28 pixels in ten classes of clothing.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747.
    """

    name: ClassVar[str] = "fashion-mnist"
    title: ClassVar[str] = "Fashion-MNIST"
    dataset = "FashionMNIST"
    mean, std = (0.2860,), (0.3530,)
    licence = "MIT"
    source = "Zalando SE, https://github.com/zalandoresearch/fashion-mnist"


@DATASETS.register
@dataclass(frozen=True)
class MNIST(_MNISTLike):
    """70,000 grey pictures of 28 x 28 pixels of handwritten digits.

    Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of
    the IEEE 86, 1998.
    """

    name: ClassVar[str] = "mnist"
    title: ClassVar[str] = "MNIST"
    dataset = "MNIST"
    mean, std = (0.1307,), (0.3081,)
    licence = "commonly given as CC BY-SA 3.0"
    source = "LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist"

    def _classes(self, raw: Any) -> tuple[str, ...]:
        return tuple(name.split(" ")[0] for name in raw.classes)  # "0 - zero" -> "0"
