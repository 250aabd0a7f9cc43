"""Fetching a file with progress, whole or not at all."""

import hashlib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from core.run import Run

CHUNK = 1 << 20  # bytes between two reports
PATIENCE = 30  # seconds without an answer


@dataclass(frozen=True)
class File:
    """What to fetch: the addresses to try in order, where to put it, and its checksum."""

    urls: tuple[str, ...]
    path: Path
    md5: str


def fetch(file: File, run: Run) -> None:
    """Fetch `file` unless it is there already; a broken or wrong transfer leaves nothing behind.

    Raises:
        OSError: no address works, or what came has another checksum.
    """
    if file.path.is_file() and _md5(file.path) == file.md5:
        return
    file.path.parent.mkdir(parents=True, exist_ok=True)
    partial = file.path.with_name(f"{file.path.name}.{id(run)}.partial")
    failure = OSError(f"no address is known for {file.path.name}")
    for url in file.urls:
        try:
            _copy(url, partial, run)
            if _md5(partial) != file.md5:
                raise OSError(f"{url} sent something else than expected, or not all of it")
            partial.replace(file.path)
            return
        except OSError as error:  # urllib's errors are OSErrors
            failure = error
        finally:
            partial.unlink(missing_ok=True)
    raise failure


def _copy(url: str, path: Path, run: Run) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "prunescope"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer, open(path, "wb") as target:
        total, done = int(answer.headers.get("Content-Length") or 0), 0
        while chunk := answer.read(CHUNK):
            target.write(chunk)
            done += len(chunk)
            run.report(
                min(done / total, 1.0) if total else 0.0,
                f"{path.stem.rsplit('.', 1)[0]}: {done / 1e6:.0f} MB",
            )


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
