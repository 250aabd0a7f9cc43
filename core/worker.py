"""Carries one job out: `python -m core.worker FOLDER`. See `jobs.py` for what lies in the folder."""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from core.as_json import plain
from core.bundles import Setting, Split
from core.certificate import certify
from core.certified import certify_many, drawn
from core.errors import Stopped, UserError
from core.jobs import Job, Status
from core.method import from_dict
from core.outcome import carry_out
from core.recipe import compress
from core.run import Progress, Run
from core.verification import PROPERTIES

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
            words = "Stopped; keeping what there is"
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
        finished = TASKS[job.order.task](job, reporter.run)
        ended = replace(reporter.status, state="done" if finished else "cancelled", fraction=1.0)
    except UserError as error:
        ended = replace(reporter.status, state="failed", problem=str(error))
    except Exception as error:
        traceback.print_exc()
        problem = f"the worker failed: {type(error).__name__}: {error}"
        ended = replace(reporter.status, state="failed", problem=problem[:300])
    job.write(replace(ended, ended=time.time()))


def _recipe(job: Job, run: Run) -> bool:
    """Carry its recipe out, and measure what comes of it."""
    bundle, data = job.order.load()
    outcome = carry_out(bundle, data, job.order.read_recipe(), run=run, figures=True)
    outcome.save(job.folder, bundle, data)
    return outcome.finished


def _proof(job: Job, run: Run) -> bool:
    """Ask whether one picture's answer is robust, before and after compression."""
    asks = job.order.asks
    loaded = _networks(job, run)
    if loaded is None:
        return False
    networks, test = loaded
    picture = test.take(slice(asks["image"], asks["image"] + 1))
    check = from_dict(PROPERTIES, asks["property"])
    found = certify(check, networks, picture, run, asks["reuse"], asks["scratch"])
    found.save(job.folder)
    return found.finished


def _certified(job: Job, run: Run) -> bool:
    """Ask the same about many pictures and radii; the history tells of every picture."""
    asks = job.order.asks
    loaded = _networks(job, run)
    if loaded is None:
        return False
    networks, test = loaded
    pictures = test.take(torch.tensor(drawn(len(test), asks["images"])))
    try:
        certify_many(from_dict(PROPERTIES, asks["property"]), networks, pictures, asks["radii"], run)
    except Stopped:
        return False
    run.report(1.0, "Certified")
    return True


def _networks(job: Job, run: Run) -> tuple[list[nn.Module], Split] | None:
    """(original and compressed network, test pictures); None where the recipe was stopped."""
    bundle, data = job.order.load()
    setting = Setting(data.train, data.validation, bundle.module)
    still = replace(run, on_progress=lambda p: run.on_progress(replace(p, fraction=0.0)))  # the proof counts
    made = compress(bundle.module, setting, job.order.read_recipe(), still)
    return ([bundle.module, made.model], data.test) if made.finished else None


TASKS: dict[str, Callable[[Job, Run], bool]] = {"recipe": _recipe, "proof": _proof, "certified": _certified}


def _beat(path: Path) -> None:
    while True:
        path.touch()
        time.sleep(BEAT_S)


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(NICE)
    work(Path(sys.argv[1]))
