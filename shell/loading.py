"""What a command works on, from what was typed: networks, data, pictures, attribution methods."""

from pathlib import Path
from typing import TYPE_CHECKING

from shell.options import read_data, read_method

if TYPE_CHECKING:  # torch takes seconds to load, and `--help` needs none of it
    from core.attribution import AttributionMethod
    from core.bundles import DatasetBundle, ModelBundle, Setting, Split


def load(model: str, data: str | None, weights: Path | None) -> "tuple[ModelBundle, DatasetBundle]":
    """The network, and the data it is to be measured on."""
    from core.bundles import MODELS
    from core.weights import load_dataset, load_model

    dataset = None if data is None else read_data(data)
    bundle = load_model(read_method(MODELS, model), dataset, weights)
    return bundle, dataset or load_dataset(bundle.dataset)


def setting(bundle: "ModelBundle", dataset: "DatasetBundle") -> "Setting":
    from core.bundles import Setting

    return Setting(dataset.train, dataset.validation, bundle.module)


def choose(indices: str | None, count: int, pictures: "Split") -> list[int]:
    """Which pictures are meant: those named, as in "0,4,10:20" (without 20), else the first `count`."""
    from core.errors import ParameterError

    if indices is None:
        return list(range(min(count, len(pictures))))
    chosen = []
    for part in indices.split(","):
        low, colon, high = part.partition(":")
        try:
            first = int(low)
            end = int(high) if colon else first + 1
        except ValueError:
            raise ParameterError(
                f"indices: must be whole numbers or ranges a:b with commas between, got {indices!r}"
            ) from None
        if not 0 <= first < end <= len(pictures):
            raise ParameterError(f"indices: must lie in [0, {len(pictures) - 1}], got {part}")
        chosen += range(first, end)
    return chosen


def attributions(named: list[str] | None) -> "dict[str, AttributionMethod]":
    """Name -> attribution method, integrated gradients unless others are named."""
    from core.attribution import ATTRIBUTIONS

    methods = [read_method(ATTRIBUTIONS, text) for text in named or ["integrated-gradients"]]
    return {method.name: method for method in methods}


def make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def use_threads(count: int | None) -> None:
    import torch

    if count is not None:
        torch.set_num_threads(count)
