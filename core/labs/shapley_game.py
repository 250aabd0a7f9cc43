"""Shapley game: two filters that can stand in for each other, one that matters, one that does nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from core import shapley
from core.bundles import Setting
from core.figure import Figure
from core.lab import LABS, Lab
from core.method import flag, number
from core.run import Run

PLAYERS = ("filter 0 (twin)", "filter 1 (twin)", "filter 2 (single)", "filter 3 (idle)")
POINTS = "worth, in points"


@LABS.register
@dataclass(frozen=True)
class ShapleyGame(Lab):
    """A game of four filters whose values are known: why leaving out one at a time misjudges twins.

    The payoff is `shared` points if filter 0 or filter 1 is present, plus `single` points if filter 2
    is, and filter 3 does nothing. Leaving out one twin costs nothing while the other is there, so
    leave-one-out calls both worthless; the Shapley value gives each half. All estimators run on the
    same sixteen coalitions. Tick filters off to see what each is worth to those that are left.

    Source: Shapley, "A Value for n-Person Games", Contributions to the Theory of Games II, 1953;
    Adamczewski, Li and Van Gool, "Shapley Pruning for Neural Network Compression", 2024,
    arXiv:2407.15875 (its estimators).
    """

    name: ClassVar[str] = "shapley-game"

    shared: float = number(
        10.0, 0.0, 50.0, 0.5, unit="points", help="Payoff of the twins: one of them is enough"
    )
    single: float = number(4.0, 0.0, 50.0, 0.5, unit="points", help="Payoff that filter 2 adds by itself")
    filter0: bool = flag(True, help="Filter 0, a twin, is in the coalition that is inspected")
    filter1: bool = flag(True, help="Filter 1, a twin, is in the coalition that is inspected")
    filter2: bool = flag(True, help="Filter 2, the single one, is in the coalition that is inspected")
    filter3: bool = flag(True, help="Filter 3, the idle one, is in the coalition that is inspected")
    permutations: int = number(4, 2, 200, 2, help="Orders of the permutation estimate, half of them reversed")
    samples: int = number(40, 30, 1000, 2, help="Coalitions drawn for the two regressions")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        run.report(0.0, "Playing all coalitions")
        exact = shapley.exact(self._game())
        shown = [self._estimates(exact), self._by_size(), self._inspector()]
        run.report(1.0, "Played all coalitions")
        return shown

    def _game(self) -> shapley.Game:
        return shapley.Game(self._payoff, len(PLAYERS))

    def _payoff(self, present: Tensor) -> Tensor:
        """Coalitions (M, 4) bool -> points (M,)."""
        twins, third = present[:, :2].any(1).double(), present[:, 2].double()
        return self.shared * twins + self.single * third

    def _estimates(self, exact: Tensor) -> Figure:
        estimators = {
            "exact": shapley.exact,
            "leave one out": lambda game: shapley.leave_up_to(game, 1, scaled=True),
            "leave up to 2 out": lambda game: shapley.leave_up_to(game, 2, scaled=True),
            "permutation": lambda game: shapley.permutation(game, -(-self.permutations // 2))[0],
            "kernel": lambda game: shapley.kernel(game, self.samples),
            "uniform regression": lambda game: shapley.uniform_regression(game, self.samples),
        }
        rows = []
        for name, estimate in estimators.items():
            game = self._game()
            values = estimate(game).tolist()
            rows += [
                {"filter": player, "estimator": name, "value": value, "coalitions": game.evaluations}
                for player, value in zip(PLAYERS, values, strict=True)
            ]
        table = pd.DataFrame(rows)
        alone = table[table.estimator == "leave one out"].value.tolist()
        finding = (
            f"Exactly, filters 0 to 3 are worth {_listed(exact.tolist())} points, together "
            f"{exact.sum():.3g}, which is all that the four earn. Leaving one out at a time finds "
            f"{_listed(alone)}, together {sum(alone):.3g}: no loss where a twin stands in."
        )
        labels = {"value": POINTS}
        return Figure(
            "What each filter is worth", finding, table, "filter", "value", "bars", "estimator", labels=labels
        )

    def _by_size(self) -> Figure:
        """The mean gain of every filter, by how many others are there already."""
        worth, coalitions = self._payoff(shapley.every(4)), shapley.every(4)
        rows = []
        for player, name in enumerate(PLAYERS):
            without = (~coalitions[:, player]).nonzero()[:, 0]
            gain = worth[without + 2**player] - worth[without]
            sizes = coalitions[without].sum(1)
            rows += [
                {"filter": name, "others": size, "gain": gain[sizes == size].mean().item()}
                for size in range(4)
            ]
        table = pd.DataFrame(rows)
        twin = table[table["filter"] == PLAYERS[0]].gain.tolist()
        finding = (
            f"Filter 0, a twin, adds {_listed(twin)} points where 0, 1, 2 and 3 others are there already. "
            f"Its Shapley value is the mean of these four, {sum(twin) / 4:.3g}; "
            "leave-one-out is the last of them."
        )
        labels = {"gain": "points that the filter adds", "others": "other filters that are there already"}
        return Figure(
            "What a filter adds, by who is there",
            finding,
            table,
            "others",
            "filter",
            "heat",
            value="gain",
            labels=labels,
        )

    def _inspector(self) -> Figure:
        present = torch.tensor([self.filter0, self.filter1, self.filter2, self.filter3])
        flips = present ^ torch.eye(4, dtype=torch.bool)  # row i: the coalition with filter i changed over
        here, flipped = self._payoff(present[None])[0].item(), self._payoff(flips)
        gains = torch.where(present, here - flipped, flipped - here).tolist()
        states = ["present" if there else "absent" for there in present.tolist()]
        table = pd.DataFrame({"filter": PLAYERS, "gain": gains, "state": states})
        inside = [str(player) for player in range(4) if present[player]]
        finding = (
            f"The coalition {{{', '.join(inside)}}} earns {here:.3g} points. There, filters 0 to 3 make a "
            f"difference of {_listed(gains)} points: what goes with one that is present and leaves, "
            "what comes with one that is absent and joins."
        )
        labels = {"gain": POINTS}
        return Figure("One coalition", finding, table, "filter", "gain", "bars", "state", labels=labels)


def _listed(values: list[float]) -> str:
    *most, last = [f"{value + 0.0:.3g}" for value in values]
    return f"{', '.join(most)} and {last}"
