"""Handwritten digits of 8 x 8 pixels, for the smallest labs."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from core.bundles import DATASETS, DatasetBundle, DatasetSource, Split
from core.digits import originals

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@DATASETS.register
@dataclass(frozen=True)
class Digits(DatasetSource):
    """1,797 handwritten digits of 8 x 8 grey pixels; a network for them trains in seconds.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, CC BY 4.0,
    as bundled with scikit-learn.
    """

    name: ClassVar[str] = "digits"
    title: ClassVar[str] = "Digits, 8 x 8"

    def load(self) -> DatasetBundle:
        digits, labels = originals()
        pixels = (digits * (255 / 16)).round().to(torch.uint8).unsqueeze(1)  # (N, 1, 8, 8)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        counts = [round(share * len(order)) for share in SHARES.values()][:-1]
        parts = dict(zip(SHARES, order.split([*counts, len(order) - sum(counts)]), strict=True))
        train = pixels[parts["train"]].float() / 255
        mean, std = (train.mean().item(),), (train.std().item(),)
        return DatasetBundle(
            name=self.name,
            classes=tuple(str(digit) for digit in range(10)),
            licence="CC BY 4.0",
            source="UCI optical digits, as bundled with scikit-learn",
            **{part: Split(pixels[index], labels[index], mean, std) for part, index in parts.items()},
        )
