"""The bridge from `core.run.Run` to a progress bar; moving any widget stops the run at its next report."""

import contextlib
import time
from collections.abc import Iterator

import streamlit as st

from core.run import Progress, Run

PATIENCE_S = 0.3  # shorter work shows no bar
REFRESH_S = 0.1


@contextlib.contextmanager
def visible_run(title: str) -> Iterator[Run]:
    """A `Run` whose progress is drawn where this is called, and gone afterwards.

    Drawing is where Streamlit stops a script that a newer request has overtaken.
    """
    place, due = st.empty(), time.monotonic() + PATIENCE_S

    def report(progress: Progress) -> None:
        nonlocal due
        if time.monotonic() > due:
            place.progress(min(progress.fraction, 1.0), f"{title}: {progress.message.lower()}")
            due = time.monotonic() + REFRESH_S

    yield Run(on_progress=report)
    place.empty()
