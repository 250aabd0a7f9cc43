"""A small experiment that shows one idea: it measures, and gives figures."""

from collections.abc import Sequence

from core.bundles import Setting
from core.figure import Figure
from core.method import Method
from core.registry import Registry
from core.run import Run


class Lab(Method):
    """An experiment a person repeats with other settings until the idea is clear.

    It takes seconds at its defaults on two cores. Everything it shows is computed when it is asked.
    """

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        """At least one figure. The network it looks at, if any, is `setting.teacher`, never changed.

        Random numbers are torch's, already seeded. Loops that take longer than a blink go through
        `run.track`.

        Raises:
            UnsupportedModelError: the network is not of the kind that the idea is about.
        """
        raise NotImplementedError


LABS: Registry[type[Lab]] = Registry("core.labs", "lab")
