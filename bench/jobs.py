"""What a reader's sliders cost while a job trains beside them: paused and running in turns."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.memory import random_moves
from bench.subjects import Subject, start
from bench.timing import Taken, medians
from core.jobs import Job, Jobs, Order
from core.method import from_dict
from core.plan import Plan
from core.recipe import COMPRESSORS, Recipe
from core.weights import shipped
from core.whatif import WhatIf

START_S = 60.0  # within which a worker has begun to train


def measure(subject: Subject, rounds: int) -> dict[str, Any]:
    """Medians of the first and of the exact answer of one slider moved, with the job paused and running."""
    engine = start(subject)
    plans = iter(random_moves(engine, 40 * (rounds + 1), "zero"))
    engine.exact(next(plans))
    with tempfile.TemporaryDirectory() as folder:
        jobs = Jobs(Path(folder), most=1)
        job = jobs.submit(_order())
        worker = _worker(jobs, job)
        try:
            found = medians(
                {
                    f"{answer} {state}": _contestant(engine, plans, worker, signal_, answer)
                    for state, signal_ in (("alone", signal.SIGSTOP), ("beside a job", signal.SIGCONT))
                    for answer in ("first", "exact")
                },
                rounds,
            )
        finally:
            os.kill(worker, signal.SIGCONT)
            job.cancel()
            jobs.wait(job, 60)
    ratios = {
        f"{answer} slower by": found[f"{answer} beside a job"] / found[f"{answer} alone"]
        for answer in ("first", "exact")
    }
    return {"network": subject.title, "n": len(subject.split), **found, **ratios}


def _order() -> Order:
    """A training that outlasts the measurement."""
    each = next(iter(shipped()))
    step = from_dict(COMPRESSORS, {"method": "fine-tuning", "epochs": 500, "images": 1_000_000})
    return Order(each.model.to_dict(), {"method": each.dataset}, str(each.path), Recipe((step,)).to_json())


def _worker(jobs: Jobs, job: Job) -> int:
    """The process number of the worker, once it trains."""
    due = time.monotonic() + START_S
    while not job.status.message.startswith("Epoch"):
        if job.status.over or time.monotonic() > due:
            raise RuntimeError(f"the job must be training by now, got {job.status}")
        time.sleep(0.1)
    return jobs.process(job)


def _contestant(
    engine: WhatIf, plans: Iterable[Plan], worker: int, signal_: signal.Signals, answer: str
) -> Callable[[], Taken]:
    """Times one slider moved by a reader, with the worker told to pause or to go on before."""

    def release() -> Taken:
        os.kill(worker, signal_)
        plan, begun = next(plans), time.perf_counter()
        answers = engine.answer(plan)
        found = next(answers) if answer == "first" else list(answers)[-1]
        taken = time.perf_counter() - begun
        answers.close()
        return taken, found

    return release
