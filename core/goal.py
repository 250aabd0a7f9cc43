"""A goal instead of sliders: the most that can go at a given loss, or the least that saves enough."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from core.method import Method, choice, number
from core.plan import Plan
from core.run import Run
from core.whatif import WhatIf

LEVELS = 100  # a plan's strength is sought in whole percents


@dataclass(frozen=True)
class Goal(Method):
    """What a plan must reach, found by moving all its sliders together.

    "accuracy" asks for the strongest plan that loses at most `limit` points, "macs" for the weakest
    that leaves at most `limit` per cent of the multiply-adds: realised ones where channels are
    removed, else theoretical ones. Both are found by halving, so a plan beyond a dip in the accuracy
    is not seen.

    Source: the resource targets of Yang et al., "NetAdapt", ECCV 2018, arXiv:1804.03230, with one
    number for all layers.
    """

    name: ClassVar[str] = "goal"

    keep: str = choice("accuracy", "macs", help="Lose at most so many points, or keep at most so many MACs")
    limit: float = number(1.0, 0.0, 100.0, 0.01, help="Points of accuracy, or per cent of the MACs")

    def met(self, whatif: WhatIf, plan: Plan, run: Run | None = None) -> bool:
        """Whether `plan` reaches the goal on the images of `whatif`."""
        if self.keep == "accuracy":
            *_, answer = whatif.answer(plan, run)
            return -100 * answer.change.difference <= self.limit + 1e-9
        return 100 * _macs(whatif, plan) <= self.limit * _macs(whatif, Plan(plan.question))

    def seek(self, plan_at: Callable[[float], Plan], whatif: WhatIf, run: Run | None = None) -> Plan:
        """The plan that reaches the goal; `plan_at` makes the plan of a strength in [0, 1].

        `whatif` should hold validation images: a choice made on test images spoils what they report.
        Where no plan reaches the goal, the strongest (for MACs) or the empty one (for accuracy).
        """
        run, low, high = run or Run(), -1, LEVELS + 1  # the goal is met up to `low`, or from `high` on
        steps = LEVELS.bit_length()
        for step in range(steps):
            if high - low > 1:
                middle = (low + high) // 2
                with run.step(step, steps):
                    met = self.met(whatif, plan_at(middle / LEVELS), run)
                low, high = (middle, high) if met == (self.keep == "accuracy") else (low, middle)
        run.report(1.0, "Goal found")
        return plan_at((max(low, 0) if self.keep == "accuracy" else min(high, LEVELS)) / LEVELS)


def _macs(whatif: WhatIf, plan: Plan) -> float:
    cost = whatif.cost(plan)
    return cost.macs if plan.question == "remove" else cost.theoretical_macs
