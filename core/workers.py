"""The threads that heavy work runs on: one per core, each with one torch thread, shared by all readers.

Two small workers beat one large one, and leave the rest of the machine alone. Whoever has work hands
it over piece by piece, so that the pieces of several readers take turns; work that nobody waits for
goes on between the others'.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T, R = TypeVar("T"), TypeVar("R")

COUNT = os.cpu_count() or 1

_POOL = ThreadPoolExecutor(COUNT, "worker", lambda: torch.set_num_threads(1))

_awaited = 0  # calls of `each` under way that somebody waits for
_none_awaited = threading.Condition()
_thread = threading.local()


@contextlib.contextmanager
def background() -> Iterator[None]:
    """What this thread hands over inside is done while nobody waits for other work."""
    _thread.background = True
    try:
        yield
    finally:
        _thread.background = False


def each(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(function, items)` on the workers, in order.

    A few items are in work ahead of the one asked for; closing the iterator drops those that have
    not begun. Never call it from a worker: the pieces would wait for each other.
    """
    patient = getattr(_thread, "background", False)
    waiting: deque[Future[R]] = deque()
    with contextlib.nullcontext() if patient else _awaiting():
        try:
            for item in items:
                if patient:
                    _wait_until_none_awaited()
                waiting.append(_POOL.submit(function, item))
                if len(waiting) > (COUNT if patient else 2 * COUNT):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def _awaiting() -> Iterator[None]:
    global _awaited
    with _none_awaited:
        _awaited += 1
    try:
        yield
    finally:
        with _none_awaited:
            _awaited -= 1
            _none_awaited.notify_all()


def _wait_until_none_awaited() -> None:
    with _none_awaited:
        _none_awaited.wait_for(lambda: _awaited == 0)
