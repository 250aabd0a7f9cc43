"""An atlas in the making: in a thread of its own, for all readers, while nobody waits for other work."""

import threading
from collections.abc import Callable, Iterator

from core import workers
from core.atlas import Atlas
from core.errors import UserError
from core.run import Progress, Run


class Survey:
    """The newest atlas, which grows until it is exact or somebody stops it."""

    def __init__(self, start: Callable[[Run], Iterator[Atlas]]) -> None:
        """`start` makes the atlases, such as `lambda run: whatif.atlas("remove", run=run)`."""
        self._start = start
        self._stopped = threading.Event()
        self.fraction = 0.0
        self.atlas: Atlas | None = None
        self.problem: UserError | None = None
        self._thread = threading.Thread(target=self._work, name="survey", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Give up within a chunk; what is known stays."""
        self._stopped.set()

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended, or for `seconds`."""
        self._thread.join(seconds)

    def _work(self) -> None:
        try:
            with workers.background():
                for atlas in self._start(Run(self._report)):
                    self.atlas = atlas
        except _StoppedError:
            pass
        except UserError as error:
            self.problem = error

    def _report(self, progress: Progress) -> None:
        self.fraction = progress.fraction
        if self._stopped.is_set():
            raise _StoppedError


class _StoppedError(Exception):
    """Travels through the computation, which thereby ends."""
