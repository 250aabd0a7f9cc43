"""How often the first answer's interval holds the exact accuracy: over random plans, and cell by cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from bench.plans import random_plans
from bench.subjects import Subject, start
from bench.timing import say
from core.evaluation import correct
from core.plan import Plan
from core.strata import Strata
from core.whatif import Answer, WhatIf

DROPS = (1, 5, 20)  # points of accuracy lost; a first answer is easier or harder to give between them


@dataclass(frozen=True)
class Sample:
    """One plan: what its first answer claimed, and what turned out."""

    first: Answer
    exact: Answer

    @property
    def covered(self) -> bool:
        low, high = self.first.remaining
        return low <= self.exact.accuracy <= high

    @property
    def half_width(self) -> float:
        low, high = self.first.remaining
        return (high - low) / 2


def measure(subject: Subject, plans: int, orders: int, question: str) -> dict[str, Any]:
    """Random plans in the order of pictures that the app has; cells of the atlas in many random orders."""
    engine = start(subject)
    sliders = engine.sliders(question)
    say(f"{subject.title}: {plans} random plans")
    samples = [ask(engine, plan) for plan in random_plans(sliders, plans, question)]
    cells = [Plan(question, None, {slider.name: tenth / 10}) for slider in sliders for tenth in range(1, 10)]
    say(f"{subject.title}: {len(cells)} cells in {orders} orders")
    right = torch.stack([correct(engine.exact(cell).logits, subject.split.labels) for cell in cells])
    shares = covered_in_orders(
        engine.original.logits, subject.split.labels, right, samples[0].first.n, orders
    )
    worst = int(shares.argmin())
    return {
        "subject": subject.title,
        "question": question,
        "images": len(subject.split),
        "first_images": samples[0].first.n,
        "plans": plans,
        "coverage": mean(sample.covered for sample in samples),
        "half_width_points": 100 * median(sample.half_width for sample in samples),
        "coverage_by_drop": by_drop(samples, engine.original.accuracy),
        "orders": orders,
        "cells": len(cells),
        "coverage_of_cells": shares.mean().item(),
        "worst_cell": dict(cells[worst].sparsities),
        "worst_cell_coverage": shares[worst].item(),
    }


def ask(engine: WhatIf, plan: Plan) -> Sample:
    """The first and the last answer to `plan`."""
    answers = list(engine.answer(plan))
    return Sample(answers[0], answers[-1])


def covered_in_orders(original: Tensor, labels: Tensor, right: Tensor, n: int, orders: int) -> Tensor:
    """How often (P,) the interval from the first `n` pictures holds the accuracy on all of them.

    `right` (P, N) bool says which pictures each of P plans gets right, `original` are logits (N, K).
    Every order is one that the engine could have drawn.
    """
    accuracy, covered = right.double().mean(1), torch.zeros(len(right))
    for seed in range(orders):
        strata = Strata(original, labels, seed)
        for index, seen in enumerate(right[:, strata.order[:n]]):
            low, high = strata.remaining(seen)
            covered[index] += bool(low <= accuracy[index] <= high)
    return covered / orders


def by_drop(samples: Sequence[Sample], original: float) -> dict[str, tuple[float, int]]:
    """Points of accuracy lost -> (share covered, plans)."""
    found = {}
    for low, high in zip((-100, *DROPS), (*DROPS, 100), strict=True):
        here = [s.covered for s in samples if low <= 100 * (original - s.exact.accuracy) < high]
        if here:
            found[f"{low} to {high}" if low > 0 else f"below {high}"] = (mean(here), len(here))
    return found
