"""One execution: where it runs, what it reports, how it is stopped."""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from core.errors import ParameterError

T = TypeVar("T")

_RANDOM_STATE = threading.RLock()  # torch's belongs to the process, so seeded runs take turns


@dataclass(frozen=True)
class Progress:
    """What a front end needs to draw a progress bar."""

    fraction: float  # of the whole run, in [0, 1]
    message: str


@dataclass
class Run:
    """Handed to every long computation.

    To stop a computation, raise from `on_progress`: the exception travels through the method to
    whoever started it. Streamlit does so by itself when the page is rerun, a shell does so with
    Ctrl-C, a test raises what it likes.
    """

    on_progress: Callable[[Progress], None] = lambda progress: None
    device: str = "cpu"
    records: list[dict[str, float]] = field(default_factory=list)
    _span: tuple[float, float] = (0.0, 1.0)

    def report(self, fraction: float, message: str) -> None:
        """Say that `fraction` of the present step is done."""
        low, high = self._span
        self.on_progress(Progress(low + min(max(fraction, 0.0), 1.0) * (high - low), message))

    def track(self, items: Collection[T], message: str) -> Iterator[T]:
        """Yield `items`, reporting after each; loops inside one item have its share of the bar."""
        for index, item in enumerate(items):
            with self.step(index, len(items)):
                yield item
            self.report((index + 1) / len(items), message)

    def record(self, **values: float) -> None:
        """Append one row, for instance `record(epoch=3, loss=0.41)`, to the run's history."""
        self.records.append(values)

    @contextlib.contextmanager
    def step(self, index: int, count: int) -> Iterator[None]:
        """Part `index` of `count` of the present step: inside, it is the present step."""
        outer = low, high = self._span
        width = (high - low) / count
        self._span = (low + index * width, low + (index + 1) * width)
        try:
            yield
        finally:
            self._span = outer


@contextlib.contextmanager
def seeded(seed: int, run: Run | None = None) -> Iterator[None]:
    """Random numbers from `seed` inside; the caller's random state is as before afterwards.

    Torch's generator belongs to the process, so two seeded blocks take turns. Hold it for short
    work only: what trains for minutes in a server belongs into a process of its own.
    """
    while not _RANDOM_STATE.acquire(timeout=0.2):
        if run:
            run.report(0.0, "Waiting for another run to finish")
    try:
        with torch.random.fork_rng(devices=_accelerators(run)):
            torch.manual_seed(seed)
            yield
    finally:
        _RANDOM_STATE.release()


def devices() -> tuple[str, ...]:
    """Where this machine can compute: "cpu", and its accelerator where there is one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def require_device(name: str) -> str:
    """`name`, if it is one of `devices`.

    Raises:
        ParameterError: it is not.
    """
    if name not in devices():
        raise ParameterError(f"device: must be one of {', '.join(devices())} on this machine, got {name}")
    return name


def _accelerators(run: Run | None) -> list[torch.device]:
    """The devices other than the processor whose random state a run touches."""
    device = torch.device(run.device if run else "cpu")
    return [device] if device.type == "cuda" else []
