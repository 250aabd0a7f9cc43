"""What compression changed inside a network, as a table."""

from collections.abc import Sequence

import pandas as pd
from torch import nn

from core.bundles import Setting
from core.figure import Figure
from core.method import Method
from core.registry import Registry
from core.run import Run


class Diagnostic(Method):
    """Compares a network with its compressed version."""

    def measure(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> pd.DataFrame:
        """One row per layer or step, one column per quantity; fractions lie in [0, 1].

        Neither network may be changed: what needs hooks works on `layers.private_copy`. Random
        numbers are torch's, already seeded. A quantity that is not defined for a row is NaN.
        """
        raise NotImplementedError

    def figures(self, table: pd.DataFrame) -> Sequence[Figure]:
        """What a table that `measure` gave shows."""
        raise NotImplementedError


DIAGNOSTICS: Registry[type[Diagnostic]] = Registry("core.diagnostics", "diagnostic")
