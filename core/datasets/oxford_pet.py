"""Oxford-IIIT Pet: cats and dogs with pixel masks, resized to one size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from core.bundles import DATASETS, Split, cache_directory, data_directory
from core.datasets.torchvision_sets import IMAGENET, TorchvisionSet
from core.download import File
from core.method import number
from core.run import Run

PET = 1  # value of the trimap; 2 is background, 3 the seam that belongs to neither


@DATASETS.register
@dataclass(frozen=True)
class OxfordPet(TorchvisionSet):
    """7,349 photographs of cats and dogs of 37 breeds, with masks of the animal.

    Every picture is squeezed to a square. The mask is the part that the annotators were sure of.

    Source: Parkhi et al., "Cats and Dogs", CVPR 2012.
    """

    name: ClassVar[str] = "oxford-pet"
    title: ClassVar[str] = "Oxford-IIIT Pet"
    dataset = "OxfordIIITPet"
    mean, std = IMAGENET
    licence = "CC BY-SA 4.0"
    source = "Parkhi et al. 2012, https://www.robots.ox.ac.uk/~vgg/data/pets"

    side: int = number(64, 16, 256, 1, unit="pixels", help="Width and height that pictures are resized to")

    def download(self, run: Run) -> None:
        super().download(run)
        self.load()  # resizing takes longer than a person waits at a page

    def _files(self, dataset: Any) -> Iterator[File]:
        for url, md5 in dataset._RESOURCES:
            yield File((url,), data_directory() / "oxford-iiit-pet" / url.rsplit("/", 1)[-1], md5)

    def _open(self, train: bool, download: bool) -> Any:
        types = ("category", "segmentation")
        part = "trainval" if train else "test"
        return self._torchvision()(data_directory(), split=part, target_types=types, download=download)

    def _read(self, raw: Any) -> Split:
        """Pixels, labels and masks, resized once and then read from the cache."""
        stamp = f"{raw._split}-{len(raw)}-{int(Path(raw._base_folder).stat().st_mtime)}"
        path = cache_directory() / f"{self.name}-{self.side}-{stamp}.safetensors"
        if path.exists():
            return self._split(**load_file(path))
        pixels = torch.empty(len(raw), 3, self.side, self.side, dtype=torch.uint8)
        masks = torch.empty(len(raw), self.side, self.side, dtype=torch.bool)
        labels = torch.empty(len(raw), dtype=torch.int64)
        for index, (picture, (label, trimap)) in enumerate(raw):
            pixels[index] = torch.from_numpy(np.array(picture.resize((self.side, self.side)))).permute(
                2, 0, 1
            )
            masks[index] = torch.from_numpy(np.array(trimap.resize((self.side, self.side), 0)) == PET)
            labels[index] = label
        held = {"pixels": pixels, "labels": labels, "masks": masks}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(held, partial := path.with_suffix(f".{id(held)}.partial"))
        partial.replace(path)
        return self._split(**held)

    def _split(self, pixels: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor) -> Split:
        return Split(pixels, labels, self.mean, self.std, masks)
