"""Trained networks: loading them, shipped or from files, and saving them, compressed ones included.

A file of ours is safetensors; its metadata say what network the weights belong to and how it differs
from the freshly built architecture, so that a compressed network loads again without any code in the file.
"""

import copy
import json
import math
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.bundles import (
    DATASETS,
    MODELS,
    Architecture,
    DatasetBundle,
    DatasetSource,
    ModelBundle,
    data_directory,
)
from core.checkpoint import KEY, UPLOAD_BYTES, Checkpoint, Head, open_checkpoint
from core.errors import CheckpointError, UserError
from core.layers import bake
from core.method import from_dict, from_text
from core.pictures import read_pictures
from core.program import load_program
from core.registry import unknown
from core.structure import describe, rebuild

FORMAT = 1
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "weights"
DEFAULT = ("resnet20", "cluttered-digits")  # what a person meets first
PREFIXES = ("module.", "_orig_mod.")  # that wrappers of torch put before every name
COUNTER = "num_batches_tracked"  # of batch norm; older files lack it, and nothing here reads it
LARGEST_PICTURE = 1024  # pixels a side that a file may ask for

_LOADING = threading.Lock()


@dataclass(frozen=True, eq=False)
class Shipped:
    """A trained network that comes with the program."""

    model: Architecture
    dataset: str
    path: Path
    provenance: dict[str, Any]


def load_dataset(source: str | Path | DatasetSource) -> DatasetBundle:
    """The data set of that name (parameters may follow a colon), read once per process.

    A `Path` is a folder or zip file of a person's own pictures. Text from a browser is a `str`, so it
    cannot name a file.
    """
    with _LOADING:
        if isinstance(source, Path):
            return read_pictures(source)
        return _dataset(from_text(DATASETS, source) if isinstance(source, str) else source, data_directory())


@lru_cache(maxsize=4)
def _dataset(source: DatasetSource, directory: Path) -> DatasetBundle:
    return source.load()


def shipped() -> tuple[Shipped, ...]:
    """The networks in `assets/weights`, the default one first."""
    found = []
    for path in sorted(SHIPPED.glob("*.safetensors")):
        about = _about(open_checkpoint(path))
        found.append(Shipped(about.architecture, about.dataset, path, about.provenance))
    return tuple(sorted(found, key=lambda item: (item.model.name, item.dataset) != DEFAULT))


def load_model(
    model: str | Architecture, data: str | DatasetBundle | None = None, weights: Path | None = None
) -> ModelBundle:
    """A trained network, ready to use: the shipped one, or `model` with the weights of a file.

    Files saved by `save_model` know their architecture and data; of other files (state dicts as
    .safetensors, .pt, .pth, .th or .npz) `data` says which data set the weights are for. A .pt2 file,
    which torch.export wrote, is a network of its own, and `model` is not looked at.

    Raises:
        CheckpointError: nothing is shipped for this pair; or the file is damaged, holds code, does not
            fit or has weights that are not finite numbers.
    """
    if weights is None:
        weights = _find_shipped(model, data.name if isinstance(data, DatasetBundle) else data).path
    if weights.suffix.lower() == ".pt2":
        if data is None:
            raise CheckpointError(f"{weights.name}: does not say which data set it is for; name one")
        return load_program(weights, _bundle(data))
    return _load(open_checkpoint(weights), model, data)


def load_upload(
    model: str | Architecture, data: str | DatasetBundle | None, name: str, content: bytes
) -> ModelBundle:
    """`load_model` of a file that came through a browser, of at most `UPLOAD_BYTES`; `name` is its name."""
    if len(content) > UPLOAD_BYTES:
        most, got = f"{UPLOAD_BYTES / 1e6:.0f} MB", f"{len(content) / 1e6:.1f} MB"
        raise CheckpointError(f"{Path(name).name}: must have at most {most}, got {got}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(name.replace("\\", "/")).name or "upload")
        path.write_bytes(content)
        return _load(open_checkpoint(path, UPLOAD_BYTES), model, data)


def read_model(path: Path) -> ModelBundle:
    """A network that `save_model` wrote, whatever it is."""
    checkpoint = open_checkpoint(path)
    return _load(checkpoint, _about(checkpoint).architecture, None)


def save_model(
    model: nn.Module,
    path: Path,
    architecture: Architecture,
    dataset: str | DatasetSource | DatasetBundle,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` to `path` (.safetensors), and `provenance` beside it as JSON for people.

    The file is read back and must give the same logits, so what was written can be loaded. Equal
    networks give equal bytes.

    Raises:
        CheckpointError: `model` holds something that a file cannot say, or numbers that are not finite.
    """
    from safetensors.torch import save_file

    data = _bundle(dataset)
    plain = bake(copy.deepcopy(model).to("cpu")).eval().requires_grad_(False)
    about = {
        "format": FORMAT,
        "architecture": architecture.to_dict(),
        "dataset": data.name,
        "shape": list(data.shape),
        "classes": list(data.classes),
        "mean": list(data.train.mean),
        "std": list(data.train.std),
        "structure": describe(architecture.outline(data.shape, len(data.classes)), plain),
        "provenance": dict(provenance or {}),
    }
    state = {name: tensor.contiguous().clone() for name, tensor in plain.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial-{path.stem}.safetensors")
    try:
        save_file(state, partial, metadata={KEY: json.dumps(about)})
        _check_equal(plain, read_model(partial).module, data.shape)
        partial.chmod(0o644)  # safetensors writes for its owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    path.with_suffix(".json").write_text(json.dumps(about["provenance"], indent=2) + "\n")


def _check_equal(model: nn.Module, again: nn.Module, shape: tuple[int, int, int]) -> None:
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not torch.allclose(model(example), again(example), atol=1e-5, rtol=1e-4):
            raise CheckpointError("checkpoint: read back, the network gives other logits; it cannot be saved")


@dataclass(frozen=True, eq=False)
class _About:
    """What a file of ours says about its network."""

    architecture: Architecture
    dataset: str
    shape: tuple[int, int, int]
    classes: int
    structure: dict[str, Any]
    provenance: dict[str, Any]


def _about(checkpoint: Checkpoint) -> _About:
    name, about = checkpoint.path.name, checkpoint.about
    if about is None:
        raise CheckpointError(f"{name}: does not say which network it is for; name a model and a data set")
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{name}: format must be {FORMAT}, got {about.get('format')!r}")
    try:
        shape = tuple(int(size) for size in about["shape"])
        if len(shape) != 3 or not all(1 <= size <= LARGEST_PICTURE for size in shape):
            raise ValueError(f"pictures of {shape}")
        return _About(
            architecture=from_dict(MODELS, about["architecture"]),
            dataset=str(about["dataset"]),
            shape=shape,
            classes=len(about["classes"]),
            structure=dict(about["structure"]),
            provenance=dict(about["provenance"]),
        )
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: the description of the network cannot be read ({error})") from error


def _find_shipped(model: str | Architecture, data: str | None) -> Shipped:
    """The shipped weights of exactly this member of the family, else of any where none was singled out."""
    wanted = from_text(MODELS, model) if isinstance(model, str) else model
    everything = shipped()
    fitting = [item for item in everything if data in (None, item.dataset)]
    exact = [item for item in fitting if item.model == wanted]
    related = [item for item in fitting if item.model.name == wanted.name and wanted == type(wanted)()]
    if exact or related:
        return (exact or related)[0]
    if data is not None and data not in DATASETS:
        raise CheckpointError(unknown("data set", data, DATASETS))
    known = ", ".join(f"{item.model.name} on {item.dataset}" for item in everything) or "none yet"
    raise CheckpointError(
        f"{wanted.name}: no weights are shipped{f' for {data}' if data else ''} (there are: {known}); "
        "train it with `python cli.py train`, or name a file of weights"
    )


def _load(checkpoint: Checkpoint, model: str | Architecture, data: str | DatasetBundle | None) -> ModelBundle:
    name = checkpoint.path.name
    wanted = from_text(MODELS, model) if isinstance(model, str) else model
    if checkpoint.about is not None:
        about = _about(checkpoint)
        if about.architecture.name != wanted.name:
            raise CheckpointError(f"{name}: is a {about.architecture.name}, not a {wanted.name}")
        if data not in (None, about.dataset):
            _check_alike(name, about, seen := _bundle(data))
            data = seen.name
        wanted, structure, provenance = about.architecture, about.structure, about.provenance
        shape, classes, dataset = about.shape, about.classes, data or about.dataset
    else:
        if data is None:
            raise CheckpointError(f"{name}: does not say which data set it is for; name one")
        seen = _bundle(data)
        shape, classes, dataset = seen.shape, len(seen.classes), seen.name
        structure, provenance = {}, {"file": name}
    network = rebuild(wanted.outline(shape, classes), structure)
    names = _match(checkpoint, network, wanted)
    network = _fill(network, checkpoint, names)
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise CheckpointError(f"{name}: {wanted.name} needs numbers that a file of weights does not hold")
    return ModelBundle(network.eval().requires_grad_(False), wanted, dataset, provenance)


def _bundle(data: str | DatasetSource | DatasetBundle) -> DatasetBundle:
    return data if isinstance(data, DatasetBundle) else load_dataset(data)


def _check_alike(name: str, about: _About, data: DatasetBundle) -> None:
    """A network may look at other data than it was trained on if they have its form."""
    if (about.shape, about.classes) != (data.shape, len(data.classes)):
        raise CheckpointError(
            f"{name}: was trained on {about.dataset}, pictures of {about.shape} in {about.classes} classes; "
            f"{data.name} has pictures of {data.shape} in {len(data.classes)} classes"
        )


def _match(checkpoint: Checkpoint, network: nn.Module, wanted: Architecture) -> dict[str, str]:
    """Tensor of the network -> its name in the file, if the two have the same tensors.

    Raises:
        CheckpointError: they differ; the first difference is named.
    """
    file, expected = checkpoint.path.name, network.state_dict()
    names = {}
    for name in checkpoint.heads:
        plain = wanted.tensor_name(_without_prefix(name, checkpoint.heads))
        if plain is not None:
            names[plain] = name
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        if name not in names:
            if name.endswith(COUNTER):
                continue
            held = ", ".join(list(names)[:3]) or "none"
            raise CheckpointError(
                f"{file}: {wanted.name} needs a tensor {name} of shape {shape}; the file has "
                f"{len(names)} tensors ({held} ...), but not this one"
            )
        head = checkpoint.heads[names[name]]
        if head.shape != shape and not (math.prod(shape) == math.prod(head.shape) == 1):
            raise CheckpointError(f"{file}: {name} must have shape {shape}, got {head.shape}")
        if tensor.is_floating_point() and not head.dtype.is_floating_point:
            raise CheckpointError(f"{file}: {name} must hold floating-point numbers, got {_dtype(head)}")
        if not tensor.is_floating_point() and head.dtype.is_floating_point:
            raise CheckpointError(f"{file}: {name} must hold whole numbers, got {_dtype(head)}")
    for name in names:
        if name not in expected and not name.endswith(COUNTER):
            shape = checkpoint.heads[names[name]].shape
            raise CheckpointError(f"{file}: has a tensor {name} of shape {shape}, which {wanted.name} lacks")
    return {name: names[name] for name in expected if name in names}


def _dtype(head: Head) -> str:
    return str(head.dtype).removeprefix("torch.")


def _without_prefix(name: str, names: Mapping[str, Any]) -> str:
    for prefix in PREFIXES:
        if all(other.startswith(prefix) for other in names):
            name = name.removeprefix(prefix)
    return name


def _fill(network: nn.Module, checkpoint: Checkpoint, names: dict[str, str]) -> nn.Module:
    """Give the outline `network` the numbers of the file, which are known to fit."""
    held = checkpoint.read()
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if name not in names:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
            continue
        value = held[names[name]].to(tensor.dtype).reshape(tensor.shape).contiguous().clone()
        if value.is_floating_point() and not (finite := value.isfinite()).all():
            broken = f"{int((~finite).sum())} of {value.numel()} that are not"
            raise CheckpointError(f"{checkpoint.path.name}: {name} must hold finite numbers, got {broken}")
        state[name] = value
    network.load_state_dict(state, assign=True)
    return network
