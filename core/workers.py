"""The threads that heavy work runs on: one per core, each with one torch thread, shared by all readers.

Two small workers beat one large one, and leave the rest of the machine alone. Whoever has work hands
it over piece by piece, so that the pieces of several readers take turns.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T, R = TypeVar("T"), TypeVar("R")

COUNT = os.cpu_count() or 1

_POOL = ThreadPoolExecutor(COUNT, "worker", lambda: torch.set_num_threads(1))


def each(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(function, items)` on the workers, in order.

    A few items are in work ahead of the one asked for; closing the iterator drops those that have
    not begun. Never call it from a worker: the pieces would wait for each other.
    """
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(_POOL.submit(function, item))
            if len(waiting) > 2 * COUNT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
