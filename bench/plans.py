"""Random plans, as varied as the accuracies they lead to."""

import random
from collections.abc import Sequence

from core.plan import Plan
from core.sliders import Slider


def random_plans(sliders: Sequence[Slider], count: int, question: str, seed: int = 0) -> list[Plan]:
    """Two to all of the sliders moved, up to a sparsity that is drawn for each plan; by lot.

    Small bounds come as often as large ones, so that plans that cost little are among them.
    """
    lot, plans = random.Random(seed), []
    while len(plans) < count:
        bound = 0.05 * 18 ** lot.random()  # 5 to 90 %, evenly in its logarithm
        chosen = lot.sample(sliders, lot.randint(2, len(sliders)))
        plans.append(Plan(question, None, {slider.name: lot.uniform(0.01, bound) for slider in chosen}))
    return plans
