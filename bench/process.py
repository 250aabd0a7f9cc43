"""A peer in a process of its own: its threads and its settings stay there, and it waits for its turn."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np

from bench.subjects import Subject

ROOT = Path(__file__).parents[1]
TUNING = ("OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_")  # settings that torch reads


class PeerProcess:
    """Answers `ask` with the seconds that one way of `Peers` took, and its classes."""

    def __init__(self, subject: Subject, threads: int | None = None) -> None:
        """Starts it; without `threads` it runs on as many as torch chooses by itself."""
        settings = {name: value for name, value in os.environ.items() if not name.startswith(TUNING)}
        settings["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        if threads is not None:
            settings["OMP_NUM_THREADS"] = str(threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.process"],
            env=settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.threads = self._exchange((subject.bundle.module, subject.split))

    def ask(self, way: str, *arguments: Any) -> tuple[float, np.ndarray]:
        """Carry out `way`, a function of `Peers`: seconds of wall time, measured there, and classes (N,)."""
        return self._exchange((way, arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _exchange(self, message: Any) -> Any:
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            raise RuntimeError("the peer's process has ended; its last words are above") from None


def serve() -> None:
    """Read a network and its pictures, then one question after the other, until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the answers

    def say(answer: Any) -> None:
        pickle.dump(answer, answers)
        answers.flush()

    import torch

    from bench.peers import Peers

    peers = Peers(*pickle.load(sys.stdin.buffer))
    say(torch.get_num_threads())
    while True:
        try:
            way, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        start = perf_counter()
        classes = getattr(peers, way)(*arguments)
        say((perf_counter() - start, classes))


if __name__ == "__main__":
    serve()
