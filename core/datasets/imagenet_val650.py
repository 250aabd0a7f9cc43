"""650 pictures of ImageNet's validation set with the boxes of their objects."""

import csv
import io
import json
import zipfile
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from core.bundles import DATASETS, DatasetBundle, DatasetSource, Split, data_directory
from core.errors import DataUnavailableError

SIDE = 224  # the central pixels that networks for ImageNet look at
PARTS = {"train": 130, "validation": 130, "test": 390}


@DATASETS.register
@dataclass(frozen=True)
class ImageNetVal650(DatasetSource):
    """650 validation pictures of ImageNet, 1,000 classes, with boxes as masks.

    No network should be trained on so few: "train" and "validation" are there so that criteria and
    calibration have pictures that are not reported on. The sample is not random, networks score 6 to
    15 points above their published accuracy on it: use it for comparisons only. The mask is the union
    of the boxes around objects of the labelled class.

    Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015,
    arXiv:1409.0575; boxes: Choe et al., "Evaluating Weakly Supervised Object Localization Methods
    Right", CVPR 2020, arXiv:2001.07437.
    """

    name: ClassVar[str] = "imagenet-val650"
    title: ClassVar[str] = "ImageNet, 650 pictures"

    def load(self) -> DatasetBundle:
        folder = data_directory() / "imagenet_val650"
        try:
            with open(folder / "annotations.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            with open(folder.parent / "imagenet_classes.csv", newline="") as file:
                classes = tuple(row["name"] for row in csv.DictReader(file))
            with zipfile.ZipFile(folder / "images.zip") as archive:
                pixels, masks = zip(*(_read(archive, row) for row in rows), strict=True)
            labels = torch.tensor([int(row["label"]) for row in rows])
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DataUnavailableError(
                f"{self.name}: {folder} must hold images.zip and annotations.csv, and imagenet_classes.csv "
                f"must lie beside it ({error}); ImageNet may not be passed on, so nothing can be downloaded"
            ) from error
        everything = Split(
            torch.stack(pixels), labels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), torch.stack(masks)
        )
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        parts = dict(zip(PARTS, order.split(list(PARTS.values())), strict=True))
        return DatasetBundle(
            name=self.name,
            classes=classes,
            licence="pictures: ImageNet's terms (research and education); boxes: MIT",
            source="ILSVRC 2012 validation set; boxes from clovaai/wsolevaluation",
            **{part: everything.take(index.sort().values) for part, index in parts.items()},
        )


def _read(archive: zipfile.ZipFile, row: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (3, 224, 224) and mask (224, 224) of one picture; boxes are half-open pixel ranges."""
    from PIL import Image

    picture = np.array(Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB"))
    top = left = (len(picture) - SIDE) // 2
    mask = torch.zeros(picture.shape[:2], dtype=torch.bool)
    for x0, y0, x1, y1 in json.loads(row["boxes227"]):
        mask[int(y0) : round(y1), int(x0) : round(x1)] = True
    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    centre = (slice(top, top + SIDE), slice(left, left + SIDE))
    return pixels[:, *centre], mask[centre]
