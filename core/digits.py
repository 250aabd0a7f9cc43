"""The 1,797 handwritten digits that come with scikit-learn."""

import gzip
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@cache
def originals() -> tuple[Tensor, Tensor]:
    """Pictures (N, 8, 8) float32 of whole numbers 0..16, 0 = paper, and labels (N,) int64.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, CC BY 4.0.
    """
    table = torch.from_numpy(_table())  # (N, 65)
    return table[:, :64].float().view(-1, 8, 8), table[:, 64].long()


def _table() -> np.ndarray:
    """64 pixels and the label per row, from the file itself: importing scikit-learn takes seconds."""
    spec = importlib.util.find_spec("sklearn")
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / "datasets" / "data" / "digits.csv.gz" if folders else Path()
    if path.is_file():
        with gzip.open(path, "rt") as file:
            return np.loadtxt(file, delimiter=",", dtype=np.float32)
    from sklearn.datasets import load_digits

    raw = load_digits()
    return np.concatenate([raw.data, raw.target[:, None]], 1).astype(np.float32)
