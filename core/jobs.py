"""Recipes and proofs carried out by processes of their own: they outlive page, browser and server.

A job is a folder. Who asks writes `order.json`; the worker (`worker.py`) writes `state.json` when
something changes, a line of `history.jsonl` for every record, and an outcome or a certificate at the
end, and touches `alive` meanwhile. Whoever wants to know reads. The file `cancel` asks the worker to stop.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from core.bundles import DATASETS, MODELS, ModelBundle, cache_directory
from core.method import from_dict
from core.outcome import Outcome
from core.recipe import Recipe
from core.weights import load_dataset, load_model

ROOT = Path(__file__).resolve().parent.parent
ENDED = ("done", "cancelled", "failed", "lost")
LOOK_S = 0.3  # between two looks at what runs and what waits
SILENT_S = 15.0  # without a sign of life, after which a worker counts as lost
STUBBORN_S = 10.0  # after which a worker that does not hear a cancel is ended
CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Order:
    """What a worker is to carry out. Equal orders are one job: equal recipes give equal bits."""

    model: Mapping[str, Any]  # the architecture, see `Method.to_dict`
    data: Mapping[str, Any]  # the data set, likewise
    weights: str  # a file of weights
    recipe: str  # JSON
    device: str = "cpu"
    threads: int = max(1, CORES // 2)
    task: str = "recipe"  # what is done with it: a function of `worker.py`
    asks: Mapping[str, Any] = field(default_factory=dict)  # what else the task wants to know

    @cached_property
    def id(self) -> str:
        """The same for equal orders on equal weights; what a file holds counts, not only its name."""
        values = asdict(self)
        if self.task == "recipe":
            del values["task"], values["asks"]  # jobs that are older than other tasks keep their folders
        found = blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8)
        with contextlib.suppress(OSError):
            found.update(Path(self.weights).read_bytes())
        return found.hexdigest()

    def read_recipe(self) -> Recipe:
        return Recipe.from_json(self.recipe)

    def load(self) -> tuple[ModelBundle, Any]:
        """The network to begin with, and its data set."""
        data = load_dataset(from_dict(DATASETS, self.data))
        return load_model(from_dict(MODELS, self.model), data, Path(self.weights)), data


@dataclass(frozen=True)
class Status:
    """How far a job is."""

    state: Literal["waiting", "running", "stopping", "done", "cancelled", "failed", "lost"] = "waiting"
    fraction: float = 0.0
    message: str = "Waiting for a free core"
    problem: str = ""  # why it failed, in a sentence
    asked: float = 0.0  # seconds since the epoch
    began: float = 0.0
    ended: float = 0.0

    @property
    def over(self) -> bool:
        return self.state in ENDED

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return (self.ended or time.time()) - self.began if self.began else 0.0

    @property
    def remaining_s(self) -> float | None:
        """How long it will take still, if it goes on as fast; None while that would be a guess."""
        known = self.state == "running" and self.fraction > 0.02 and self.seconds > 2
        return self.seconds * (1 / self.fraction - 1) if known else None


@dataclass(frozen=True)
class Job:
    """One folder."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def order(self) -> Order:
        return Order(**json.loads((self.folder / "order.json").read_text(encoding="utf-8")))

    @property
    def status(self) -> Status:
        return Status(**json.loads((self.folder / "state.json").read_text(encoding="utf-8")))

    @property
    def history(self) -> list[dict[str, float]]:
        """What methods recorded so far."""
        path = self.folder / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def outcome(self) -> Outcome:
        """What came of it; of a cancelled job, what there was by then.

        Raises:
            CheckpointError: nothing did, or the folder is damaged.
        """
        return Outcome.read(self.folder)

    def cancel(self) -> None:
        """Ask the worker to stop; it answers within a second."""
        if not self.status.over:
            (self.folder / "cancel").touch()

    def write(self, status: Status) -> None:
        """Replace the state in one go, so that nobody reads half of it."""
        partial = self.folder / f"state-{os.getpid()}-{threading.get_ident()}.partial"
        partial.write_text(json.dumps(asdict(status)), encoding="utf-8")
        partial.replace(self.folder / "state.json")


@dataclass(eq=False)
class Jobs:
    """The jobs in a directory; at most `most` of them run at a time."""

    directory: Path = field(default_factory=lambda: cache_directory() / "jobs")
    most: int = max(1, CORES // 2)

    def __post_init__(self) -> None:
        self._workers: dict[str, subprocess.Popen] = {}
        self._lock = threading.Lock()
        self._tending: threading.Thread | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        self._tend_on()

    def __iter__(self):
        """Newest first; what is no job is left out. None where the directory has been taken away."""
        found = []
        for folder in self.directory.iterdir() if self.directory.is_dir() else ():
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append((Job(folder).status.asked, Job(folder)))
        return iter([job for _, job in sorted(found, key=lambda pair: -pair[0])])

    def get(self, order: Order) -> Job | None:
        """The job of that order, if there is one."""
        job = Job(self.directory / order.id)
        return job if (job.folder / "state.json").exists() else None

    def submit(self, order: Order) -> Job:
        """Have `order` carried out; what is running or done already is not begun again."""
        with self._lock:
            job = self.get(order)
            if job is None or job.status.state in ("cancelled", "failed", "lost"):
                job = self._begin(order)
        self._tend_on()
        return job

    def remove(self, job: Job) -> None:
        """Forget a job that is over."""
        if job.status.over:
            shutil.rmtree(job.folder, ignore_errors=True)

    def wait(self, job: Job, seconds: float = 600.0) -> Status:
        """Its status once it is over, or after `seconds`."""
        due = time.monotonic() + seconds
        while not (status := job.status).over and time.monotonic() < due:
            time.sleep(LOOK_S / 3)
        return status

    def process(self, job: Job) -> int | None:
        """The number of the worker's process, where this server started it."""
        worker = self._workers.get(job.id)
        return worker.pid if worker else None

    def _begin(self, order: Order) -> Job:
        job = Job(self.directory / order.id)
        self._workers.pop(job.id, None)  # of an earlier attempt: its end is not the end of this one
        shutil.rmtree(job.folder, ignore_errors=True)
        job.folder.mkdir(parents=True)
        (job.folder / "order.json").write_text(json.dumps(asdict(order)), encoding="utf-8")
        job.write(Status(asked=time.time()))
        return job

    def _tend_on(self) -> None:
        """See to it that somebody looks after the jobs while any is not over."""
        with self._lock:
            idle = self._tending is None or not self._tending.is_alive()
            if idle and any(not job.status.over for job in self):
                self._tending = threading.Thread(target=self._tend, daemon=True, name="jobs")
                self._tending.start()

    def _tend(self) -> None:
        while open_jobs := [job for job in self if not job.status.over]:
            with contextlib.suppress(OSError, ValueError):  # a folder may go while it is looked at
                running = [job for job in open_jobs if self._runs(job)]
                waiting = [job for job in reversed(open_jobs) if job.status.state == "waiting"]
                for job in waiting[: max(0, self.most - len(running))]:
                    self._start(job)
            time.sleep(LOOK_S)

    def _runs(self, job: Job) -> bool:
        """Is its worker at work? One that ended without a word is lost, one that will not stop is ended."""
        worker, status = self._workers.get(job.id), job.status
        if status.state == "waiting" and worker is None:
            if (job.folder / "cancel").exists():
                job.write(replace(status, state="cancelled", ended=time.time()))
            return (job.folder / "claimed").exists()
        cancel = job.folder / "cancel"
        deaf = status.state == "running" and cancel.exists()
        if worker and deaf and time.time() - cancel.stat().st_mtime > STUBBORN_S:
            worker.kill()
            worker.wait()
            job.write(replace(status, state="cancelled", ended=time.time()))
            return False
        code = worker.poll() if worker else None
        alive = job.folder / "alive"
        silent = alive.exists() and time.time() - alive.stat().st_mtime > SILENT_S
        if (code is not None or (worker is None and silent)) and not job.status.over:
            how = f"exit status {code}" if code is not None else "no sign of life"
            problem = f"the worker ended without a word ({how})"
            job.write(replace(job.status, state="lost", problem=problem, ended=time.time()))
        return not job.status.over

    def _start(self, job: Job) -> None:
        """Start its worker, unless another server was quicker."""
        try:
            (job.folder / "claimed").touch(exist_ok=False)
        except FileExistsError:
            return
        with (job.folder / "log").open("ab") as log:
            self._workers[job.id] = subprocess.Popen(
                [sys.executable, "-m", "core.worker", str(job.folder)],
                cwd=ROOT,
                env=os.environ | {"OMP_WAIT_POLICY": "passive"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a server that is stopped does not take its workers along
            )
