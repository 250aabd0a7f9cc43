"""Contestants take turns; what they took is told in seconds of wall time."""

import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

PAUSE = 0.05  # seconds between contestants: other libraries' threads spin for a while before they sleep

Taken = tuple[float, Any]  # seconds, and what came out
Contestants = Mapping[str, Callable[[], Taken]]


def timed(work: Callable[[], Any]) -> Taken:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def say(what: str) -> None:
    """Progress goes where no program reads."""
    print(what, file=sys.stderr, flush=True)


def turns(contestants: Contestants, first: int = 0) -> dict[str, Taken]:
    """What every contestant took; number `first`, modulo their number, begins."""
    names, taken = list(contestants), {}
    for place in range(len(names)):
        name = names[(first + place) % len(names)]
        time.sleep(PAUSE)
        taken[name] = contestants[name]()
    return taken


def medians(contestants: Contestants, rounds: int) -> dict[str, float]:
    """Median seconds over so many `turns`, after one that does not count; each time another one begins."""
    turns(contestants)
    taken = [turns(contestants, number) for number in range(rounds)]
    return {name: median(turn[name][0] for turn in taken) for name in contestants}
