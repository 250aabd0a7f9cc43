"""Files of weights, looked through before they are trusted: nothing in them is executed.

The names, shapes, types and sizes of all tensors are read first, from the file's head; only what fits
is then read whole.
"""

import contextlib
import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import CheckpointError

UPLOAD_BYTES = 64_000_000
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which people keep a state dict
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first number in what torch.save wrote before version 1.6
KEY = "prunescope"  # of our own entry in a safetensors file


@dataclass(frozen=True)
class Head:
    """What a file says about one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file of weights whose head has been read."""

    path: Path
    heads: dict[str, Head]
    about: dict[str, Any] | None  # what `core.weights.save_model` wrote; None for files of others
    reader: Callable[[], dict[str, Tensor]]

    def read(self) -> dict[str, Tensor]:
        """The tensors themselves. Compare `heads` with what is expected first."""
        with _damage(self.path):
            return self.reader()


def open_checkpoint(path: Path, most_bytes: int | None = None) -> Checkpoint:
    """Read the head of a .safetensors, .npz, .pt, .pth or .th file.

    Raises:
        CheckpointError: it is not there, too large, damaged, holds code or no tensors.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise CheckpointError(f"{path.name}: the file is not there") from None
    if most_bytes is not None and size > most_bytes:
        raise CheckpointError(
            f"{path.name}: must have at most {most_bytes / 1e6:.0f} MB, got {size / 1e6:.1f} MB"
        )
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pt": _torch, ".pth": _torch, ".th": _torch}
    if path.suffix.lower() not in readers:
        raise CheckpointError(
            f"{path.name}: must end in {', '.join(readers)}, got {path.suffix or 'no ending'!r}"
        )
    with _damage(path):
        return readers[path.suffix.lower()](path, size)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Make one sentence of whatever goes wrong: a broken file can fail anywhere in four parsers."""
    try:
        yield
    except CheckpointError:
        raise
    except (MemoryError, RecursionError):
        raise CheckpointError(f"{path.name}: the file asks for more memory than there is") from None
    except Exception as error:
        raise CheckpointError(f"{path.name}: the file is damaged ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160].rstrip(".")


def _safetensors(path: Path, size: int) -> Checkpoint:
    from safetensors import safe_open
    from safetensors.torch import load_file

    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    dtypes |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
    dtypes |= {"U8": torch.uint8, "BOOL": torch.bool}
    with safe_open(
        path, framework="pt"
    ) as file:  # checks that offsets lie inside the file, one after another
        about = (file.metadata() or {}).get(KEY)
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        heads = {
            name: Head(tuple(part.get_shape()), _dtype(dtypes, part.get_dtype(), path, name))
            for name, part in slices.items()
        }
    about = json.loads(about) if about is not None else None
    if about is not None and not isinstance(about, dict):
        raise CheckpointError(
            f"{path.name}: the description of the network must be an object, got {about!r:.80}"
        )
    return Checkpoint(path, heads, about, lambda: load_file(path))


def _dtype(known: Mapping[str, torch.dtype], name: str, path: Path, tensor: str) -> torch.dtype:
    if name not in known:
        raise CheckpointError(f"{path.name}: {tensor} must have a type of {', '.join(known)}, got {name}")
    return known[name]


def _npz(path: Path, size: int) -> Checkpoint:
    heads = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            name = entry.removesuffix(".npy")
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                readers = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }
                shape, _, dtype = readers[version](file)
            if dtype.hasobject:
                raise CheckpointError(f"{path.name}: {name} holds pickled objects, not numbers")
            heads[name] = Head(shape, torch.from_numpy(np.empty(0, dtype)).dtype)

    def read() -> dict[str, Tensor]:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in heads}

    return Checkpoint(path, heads, None, read)


def _torch(path: Path, size: int) -> Checkpoint:
    """What torch.save wrote: a zip archive or, before version 1.6, pickles one after another."""
    if zipfile.is_zipfile(path):
        content = _Scanner(io.BytesIO(_pickle_of(path, size)), path).load()
    else:
        with open(path, "rb") as file:
            if _Scanner(file, path).load() != LEGACY_MAGIC:
                raise CheckpointError(
                    f"{path.name}: must be a file that torch.save wrote, got something else"
                )
            _protocol, _system, content = (_Scanner(file, path).load() for _ in range(3))
    key, found = _state(content, path)
    held = sum({tensor.storage: tensor.size_bytes for tensor in found.values()}.values())
    if held > size:
        raise CheckpointError(
            f"{path.name}: the file is damaged (it has {size:,} bytes and names tensors of {held:,})"
        )

    def read() -> dict[str, Tensor]:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        state = loaded if key is None else loaded[key]
        return {name: state[name].detach() for name in found}

    return Checkpoint(path, {name: tensor.head for name, tensor in found.items()}, None, read)


def _pickle_of(path: Path, size: int) -> bytes:
    """The pickle inside torch.save's archive, which never compresses anything."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if any(name.endswith("constants.pkl") or "/code/" in name or "/models/" in name for name in names):
            raise CheckpointError(
                f"{path.name}: holds a program, not only tensors; save model.state_dict() instead"
            )
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > size:
            raise CheckpointError(f"{path.name}: must be a file that torch.save wrote, got another archive")
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path.name}: must be a file that torch.save wrote, got another archive")
        return archive.read(pickles[0])


@dataclass(frozen=True)
class _Tensor:
    """Stands for a tensor while a pickle is looked through."""

    head: Head
    storage: str
    size_bytes: int  # of the storage


class _StorageType:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _rebuild_tensor(
    storage: tuple[str, torch.dtype, int], offset: int, size: tuple, stride: tuple, *rest: Any
) -> _Tensor:
    key, dtype, count = storage
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if min((offset, *size, *stride)) < 0 or len(size) != len(stride):
        raise CheckpointError(f"a tensor must have a size, got {size}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= count:
        raise CheckpointError(f"a tensor of {size} reaches beyond its {count} stored numbers")
    return _Tensor(Head(size, dtype), key, count * dtype.itemsize)


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_HARMLESS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
} | {("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()}


class _Scanner(pickle.Unpickler):
    """Reads a pickle of tensors without making any: what it may call is in `_HARMLESS`, and no more."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        raise CheckpointError(
            f"{self.path.name}: holds pickled code ({module}.{name}), not only tensors, and is not opened; "
            "save model.state_dict() instead"
        )

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype, int]:
        kind, storage_type, key, _location, count = pid[:5]
        if (
            kind != "storage"
            or not isinstance(storage_type, _StorageType)
            or not isinstance(count, int)
            or count < 0
        ):
            raise CheckpointError(f"{self.path.name}: the file is damaged (a storage is described wrongly)")
        return str(key), storage_type.dtype, count


def _state(content: Any, path: Path) -> tuple[str | None, dict[str, _Tensor]]:
    """The state dict in what was saved, and the key it lies under; None: it is all there is."""
    if isinstance(content, Mapping):
        for key in (*WRAPPERS, None):
            state = content if key is None else content.get(key)
            if isinstance(state, Mapping):
                found = {name: value for name, value in state.items() if isinstance(value, _Tensor)}
                if found and all(isinstance(name, str) for name in found):
                    return key, found
    raise CheckpointError(
        f"{path.name}: must hold a state dict, names with tensors, got {type(content).__name__}"
    )
