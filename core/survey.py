"""An atlas in the making: in a thread of its own, for all readers, while nobody waits for other work."""

import threading
from collections.abc import Callable, Iterator

from core import workers
from core.atlas import Atlas
from core.errors import UserError
from core.run import Progress, Run


class Survey:
    """The newest complete atlas, and the newest of all, which grow until one is exact or somebody stops."""

    def __init__(self, start: Callable[[Run], Iterator[Atlas]], pause: int | None = None) -> None:
        """`start` makes the atlases, such as `lambda run: whatif.atlas("remove", run=run)`.

        Once one rests on `pause` images, the next ones are made when somebody asks to `go_on`.
        """
        self._start = start
        self._pause = pause
        self._stopped = threading.Event()
        self._wanted = threading.Event()
        self._resting = threading.Event()
        self.fraction = 0.0
        self.atlas: Atlas | None = None
        self.complete: Atlas | None = None
        self.problem: UserError | None = None
        self._thread = threading.Thread(target=self._work, name="survey", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether a finer atlas is on its way."""
        return self._thread.is_alive() and not self._resting.is_set()

    def go_on(self) -> None:
        """Pause no more."""
        self._resting.clear()
        self._wanted.set()

    def stop(self) -> None:
        """Give up within a chunk; what is known stays."""
        self._stopped.set()
        self._wanted.set()

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended, or for `seconds`."""
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            with workers.background():
                for atlas in self._start(Run(self._report)):
                    self.atlas = atlas
                    self.complete = atlas if atlas.complete else self.complete
                    self._rest(atlas)
        except _StoppedError:
            pass
        except UserError as error:
            self.problem = error

    def _rest(self, atlas: Atlas) -> None:
        enough = self._pause is not None and atlas.complete and atlas.n >= self._pause
        if enough and not atlas.exact and not self._wanted.is_set():
            self._resting.set()
            self._wanted.wait()
            self._resting.clear()

    def _report(self, progress: Progress) -> None:
        self.fraction = progress.fraction
        if self._stopped.is_set():
            raise _StoppedError


class _StoppedError(Exception):
    """Travels through the computation, which thereby ends."""
