"""Carries one job out: `python -m core.worker FOLDER`. See `jobs.py` for what lies in the folder."""

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch

from core.as_json import plain
from core.errors import Stopped, UserError
from core.jobs import Job, Status
from core.outcome import carry_out
from core.run import Progress, Run

WRITE_S = 0.25  # between two writes of the state
BEAT_S = 1.0  # between two signs of life
NICE = 10  # readers' sliders go first


class Reporter:
    """Writes what a run reports into the job's folder, and stops the run when it is asked to."""

    def __init__(self, job: Job, status: Status) -> None:
        self._job, self._due, self._written = job, 0.0, 0
        self._cancel, self._history = job.folder / "cancel", job.folder / "history.jsonl"
        self._stopped = False
        self.status = status
        self.run = Run(self._report, job.order.device)

    def _report(self, progress: Progress) -> None:
        now = time.monotonic()
        if len(self.run.records) > self._written or now > self._due:
            self._due = now + WRITE_S
            words = self.status.message if self._stopped else progress.message
            self.status = replace(self.status, fraction=progress.fraction, message=words)
            self._job.write(self.status)
            with self._history.open("a", encoding="utf-8") as file:
                for row in self.run.records[self._written :]:
                    file.write(json.dumps(plain(row)) + "\n")
            self._written = len(self.run.records)
        if not self._stopped and self._cancel.exists():
            self._stopped = True
            words = "Stopped; measuring what there is"
            self.status = replace(self.status, state="stopping", message=words)
            self._job.write(self.status)
            raise Stopped


def work(folder: Path) -> None:
    """Carry out the order in `folder`; whatever comes of it is in the folder afterwards."""
    job = Job(folder)
    threading.Thread(target=_beat, args=(folder / "alive",), daemon=True).start()
    torch.set_num_threads(job.order.threads)
    reporter = Reporter(job, replace(job.status, state="running", message="Loading", began=time.time()))
    job.write(reporter.status)
    try:
        bundle, data = job.order.load()
        outcome = carry_out(bundle, data, job.order.read_recipe(), run=reporter.run, figures=True)
        outcome.save(folder, bundle, data)
        ended = replace(reporter.status, state="done" if outcome.finished else "cancelled", fraction=1.0)
    except UserError as error:
        ended = replace(reporter.status, state="failed", problem=str(error))
    except Exception as error:
        traceback.print_exc()
        problem = f"the worker failed: {type(error).__name__}: {error}"
        ended = replace(reporter.status, state="failed", problem=problem[:300])
    job.write(replace(ended, ended=time.time()))


def _beat(path: Path) -> None:
    while True:
        path.touch()
        time.sleep(BEAT_S)


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(NICE)
    work(Path(sys.argv[1]))
