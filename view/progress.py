"""The bridge from `core.run.Run` to the screen; moving any widget stops the run at its next report."""

import contextlib
import time
from collections.abc import Callable, Iterator

import streamlit as st

from core.run import Progress, Run

PATIENCE_S = 0.3  # shorter work shows no progress
REFRESH_S = 0.1


def watched(draw: Callable[[Progress], None]) -> Run:
    """A `Run` that calls `draw` now and then.

    Looking at the session is where Streamlit stops a script that a newer request has overtaken: the
    exception travels through the computation, which thereby ends.
    """
    due = time.monotonic() + PATIENCE_S

    def report(progress: Progress) -> None:
        nonlocal due
        _ = "state" in st.session_state
        if time.monotonic() > due:
            draw(progress)
            due = time.monotonic() + REFRESH_S

    return Run(on_progress=report)


@contextlib.contextmanager
def visible_run(title: str) -> Iterator[Run]:
    """A `Run` with a progress bar where this is called, gone afterwards."""
    place = st.empty()
    yield watched(lambda p: place.progress(min(p.fraction, 1.0), f"{title}: {p.message.lower()}"))
    place.empty()
