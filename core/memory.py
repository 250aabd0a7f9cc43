"""What is remembered, up to a limit: values by key, and half-way results by the path that led there."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
Path = tuple[tuple[int, bytes], ...]  # (step, digest of its masks), for all steps that are changed


class Memory(Generic[T]):
    """The values used last, up to a limit on their weights together; safe to share between threads."""

    def __init__(self, limit: float, weigh: Callable[[T], float] = lambda value: 1) -> None:
        self._limit = limit
        self._weigh = weigh
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._weight = 0.0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Hashable, value: T) -> None:
        with self._lock:
            if key in self._held:
                self._weight -= self._weigh(self._held.pop(key))
            self._held[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._limit and len(self._held) > 1:
                self._weight -= self._weigh(self._held.popitem(last=False)[1])


class PrefixMemory:
    """What is alive before a step, chunk by chunk, for the paths walked last; safe to share.

    All chunks of one path and step stay or go together: were single chunks thrown out, a walk over
    more chunks than there is room for would throw out each just before it is needed again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[tuple[int, Path], dict[int, Any]] = OrderedDict()
        self._sizes: dict[tuple[int, Path], int] = {}
        self._lock = threading.Lock()

    def nearest(self, chunk: int, step: int, path: Path) -> tuple[int, Any] | None:
        """The last step up to `step` before which `path` has been, and what was alive there."""
        with self._lock:
            places = [
                place
                for place, chunks in self._held.items()
                if chunk in chunks and place[0] <= step and place[1] == before(path, place[0])
            ]
            if not places:
                return None
            place = max(places, key=lambda place: place[0])
            self._held.move_to_end(place)
            return place[0], self._held[place][chunk]

    def put(self, chunk: int, step: int, path: Path, values: Any) -> None:
        """Keep `values` if there is room for them beside the rest of their own kind."""
        place, size = (step, before(path, step)), _size(values)
        with self._lock:
            if chunk in self._held.get(place, ()):
                return
            while sum(self._sizes.values()) + size > self._limit:
                oldest = next((other for other in self._held if other != place), None)
                if oldest is None:
                    return
                del self._held[oldest], self._sizes[oldest]
            self._held.setdefault(place, {})[chunk] = values
            self._held.move_to_end(place)
            self._sizes[place] = self._sizes.get(place, 0) + size

    @property
    def size_bytes(self) -> int:
        with self._lock:
            return sum(self._sizes.values())


def before(path: Path, step: int) -> Path:
    """The part of `path` that lies before `step`."""
    return tuple(part for part in path if part[0] < step)


def fork(path: Path, other: Path) -> int | None:
    """The first step at which the two differ; None where they are equal."""
    return min((step for step, _ in set(path) ^ set(other)), default=None)


def _size(values: Any) -> int:
    if isinstance(values, Tensor):
        return values.nbytes
    if isinstance(values, dict):
        values = values.values()
    return sum(map(_size, values)) if isinstance(values, list | tuple | type({}.values())) else 0
