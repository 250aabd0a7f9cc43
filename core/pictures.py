"""A person's own pictures: checked before they are decoded, brought to the form that networks read."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from core.bundles import DatasetBundle, Split
from core.errors import PictureError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
MOST_BYTES = 5_000_000  # of one picture
MOST_PIXELS = 25_000_000  # of one picture, decoded
LONGEST_SIDE, SHORTEST_SIDE = 10_000, 8  # pixels
MOST_PICTURES = 20_000
SHARES = (0.2, 0.2)  # of every class, for test and validation; the rest is for training


def read_picture(content: bytes, shape: tuple[int, int, int] = (3, 32, 32), name: str = "picture") -> Tensor:
    """Pixels (C, H, W) uint8 of one picture file, squeezed to `shape`.

    Turned as its EXIF data say; transparency becomes white; of an animation, the first frame; CMYK,
    palettes and grey become what `shape` asks for, C = 3 colours or C = 1 grey.

    Raises:
        PictureError: it is too large, too small, damaged or no picture. Sizes are read from the
            file's head and checked before anything is decoded.
    """
    from PIL import Image, ImageOps  # not needed by who brings no pictures

    if len(content) > MOST_BYTES:
        raise PictureError(
            f"{name}: must have at most {MOST_BYTES / 1e6:.0f} MB, got {len(content) / 1e6:.1f} MB"
        )
    channels, height, width = shape
    if channels not in (1, 3):
        raise PictureError(f"{name}: the network must read 1 or 3 channels, got {channels}")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _check_size(picture.size, name)
            picture.draft("RGB" if channels == 3 else "L", (2 * width, 2 * height))  # decodes less of a JPEG
            plain = _plain(ImageOps.exif_transpose(picture)).convert("RGB" if channels == 3 else "L")
            pixels = np.array(plain.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0))
    except Image.DecompressionBombError:
        raise PictureError(f"{name}: must have at most {MOST_PIXELS / 1e6:.0f} million pixels") from None
    except Image.UnidentifiedImageError:
        raise PictureError(
            f"{name}: must be a picture ({', '.join(FORMATS)}), got another kind of file"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"{name}: the picture is damaged ({error})") from error
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1).contiguous()


def read_pictures(
    source: Path | bytes, like: DatasetBundle | None = None, side: int = 32, most_bytes: int = 500_000_000
) -> DatasetBundle:
    """A data set from a folder, or from a zip file, of pictures in one subfolder per class.

    With `like`, the pictures get its size and normalisation and their classes must be among its
    classes: so a trained network can be tried on them. Without, they become `side` x `side` colour
    pixels. Every class is divided at random, but always alike: a fifth for test, a fifth for validation.

    Raises:
        PictureError: there is no picture, a class is empty or unknown, a picture cannot be read, or
            there is more than `most_bytes` of them.
    """
    found: dict[str, list[Tensor]] = {}
    shape = like.shape if like else (3, side, side)
    for label, name, content in _files(source, most_bytes):
        pictures = found.setdefault(label, [])
        if content is not None:
            pictures.append(read_picture(content, shape, name))
    if not any(found.values()):
        raise PictureError(
            f"pictures: one subfolder per class with {', '.join(SUFFIXES)} files is needed, got none"
        )
    for label, pictures in found.items():
        if not pictures:
            raise PictureError(f"pictures: class {label!r} must have at least one picture, got none")
    classes = like.classes if like else tuple(sorted(found))
    for label in found:
        if label not in classes:
            raise PictureError(
                f"pictures: folders must be named after classes of {like.name if like else ''}, "
                f"such as {', '.join(classes[:5])}, got {label!r}"
            )
    if len(classes) < 2:
        raise PictureError(f"pictures: there must be at least two classes, got one: {classes[0]!r}")
    return _bundle(found, classes, like)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if max(size) > LONGEST_SIDE or width * height > MOST_PIXELS:
        raise PictureError(
            f"{name}: must be at most {LONGEST_SIDE} pixels a side and {MOST_PIXELS / 1e6:.0f} million "
            f"in all, got {width} x {height}"
        )
    if min(size) < SHORTEST_SIDE:
        raise PictureError(f"{name}: must be at least {SHORTEST_SIDE} pixels a side, got {width} x {height}")


def _plain(picture):
    """Without transparency, and with eight bits per channel."""
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":  # 16-bit grey
        values = np.array(picture).astype(np.float64)
        return Image.fromarray((values / (257 if values.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture


def _files(source: Path | bytes, most_bytes: int) -> Iterator[tuple[str, str, bytes | None]]:
    """(class, name, content) of every picture; content is None where a class folder is met."""
    entries = _folder(source) if isinstance(source, Path) and source.is_dir() else _archive(source)
    count = total = 0
    for label, name, content in entries:
        count, total = count + 1, total + len(content or b"")
        if count > MOST_PICTURES or total > most_bytes:
            raise PictureError(
                f"pictures: at most {MOST_PICTURES} files and {most_bytes / 1e6:.0f} MB are taken, got more"
            )
        yield label, name, content


def _folder(root: Path) -> Iterator[tuple[str, str, bytes | None]]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield folder.name, folder.name, None
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                with open(path, "rb") as file:
                    yield folder.name, f"{folder.name}/{path.name}", file.read(MOST_BYTES + 1)


def _archive(source: Path | bytes) -> Iterator[tuple[str, str, bytes | None]]:
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            folders = [PurePosixPath(entry.filename) for entry in archive.infolist() if entry.is_dir()]
            wrappings = {folder.parent for folder in folders}  # what holds folders is no class
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
                path = PurePosixPath(entry.filename)
                if any(part.startswith((".", "__MACOSX")) for part in path.parts):
                    continue
                if entry.is_dir() and path not in wrappings:
                    yield path.name, entry.filename, None
                elif path.suffix.lower() in SUFFIXES and path.parent.name and not entry.is_dir():
                    with archive.open(entry) as file:  # never more than the limit, whatever the head claims
                        yield path.parent.name, entry.filename, file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise PictureError(
            f"pictures: must be a folder or a zip file, got {source}, which is not there"
        ) from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        raise PictureError(f"pictures: must be a folder or a readable zip file ({error})") from error


def _bundle(
    found: dict[str, list[Tensor]], classes: tuple[str, ...], like: DatasetBundle | None
) -> DatasetBundle:
    random = torch.Generator().manual_seed(0)
    parts: dict[str, list[tuple[Tensor, int]]] = {"train": [], "validation": [], "test": []}
    for label in sorted(found):
        pictures = [found[label][index] for index in torch.randperm(len(found[label]), generator=random)]
        test, validation = max(1, round(SHARES[0] * len(pictures))), round(SHARES[1] * len(pictures))
        cuts = {
            "test": slice(0, test),
            "validation": slice(test, test + validation),
            "train": slice(test + validation, None),
        }
        for part, cut in cuts.items():
            parts[part] += [(picture, classes.index(label)) for picture in pictures[cut]]
    shape = next(iter(p for p in found.values() if p))[0].shape
    tensors = {
        part: (
            torch.stack([picture for picture, _ in pairs])
            if pairs
            else torch.empty(0, *shape, dtype=torch.uint8),
            torch.tensor([label for _, label in pairs], dtype=torch.int64),
        )
        for part, pairs in parts.items()
    }
    mean, std = (like.train.mean, like.train.std) if like else _normalisation(tensors)
    return DatasetBundle(
        name="pictures",
        classes=classes,
        licence="yours",
        source="your own pictures",
        **{part: Split(pixels, labels, mean, std) for part, (pixels, labels) in tensors.items()},
    )


def _normalisation(tensors: dict[str, tuple[Tensor, Tensor]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of the training pictures where there are any."""
    pixels = tensors["train"][0] if len(tensors["train"][0]) else tensors["test"][0]
    values = pixels.float() / 255
    return tuple(values.mean((0, 2, 3)).tolist()), tuple(values.std((0, 2, 3)).clamp(min=1e-3).tolist())
