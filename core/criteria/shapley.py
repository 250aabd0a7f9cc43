"""Shapley: filters that add least to the network, averaged over who else is still there, matter least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from core.bundles import Setting
from core.coalitions import Coalitions
from core.criterion import CRITERIA, Criterion, Grain, Scores, sample
from core.layers import require_prunable
from core.method import choice, number
from core.run import Run

OPENING = 0.05  # share of the progress for running the whole network once


@CRITERIA.register
@dataclass(frozen=True)
class Shapley(Criterion):
    """What a filter adds to the network, averaged over all orders in which its layer could lose its filters.

    Every layer is a game of its own: its filters are silenced one after the other, in a random order and in
    the reverse of it, and a filter's score is the mean drop of the payoff when its turn comes. Two
    filters that can stand in for each other share what they are worth, where leaving out one of them
    shows no loss at all. `permutations` orders are drawn; each and its reverse are played by `group`
    validation pictures, the next two by the next pictures, until all of `images` had a turn and the first
    come again: the work is permutations x group pictures for every filter. That has no bias for the
    payoff on all `images`, since the Shapley value of a mean is the mean of the Shapley values.

    "kernel" fits the nearest additive game to random coalitions, for the same work; "leave-one-out"
    asks once for every filter what is lost without it, on all `images`. A layer that takes no part
    scores zero. Float32 on the processor, whatever the device.

    Source: Adamczewski, Li and Van Gool, "Shapley Pruning for Neural Network Compression", 2024,
    arXiv:2407.15875; Ancona, Oztireli and Gross, "Shapley Value as Principled Metric for Structured
    Network Pruning", 2020, arXiv:2006.01795.
    """

    name: ClassVar[str] = "shapley"
    grain: ClassVar[Grain] = "filter"

    estimator: str = choice(
        "permutation", "kernel", "leave-one-out", help="Random orders, a regression, or one filter at a time"
    )
    permutations: int = number(
        50, 2, 100, 2, help="Orders in which filters leave, half of them reversed; not for leave-one-out"
    )
    group: int = number(
        4, 1, 1000, 1, help="Pictures that play an order; the next order is for the next ones"
    )
    images: int = number(1000, 1, 10000, 1, help="Validation pictures of the payoff, which take turns")
    payoff: str = choice("accuracy", "loss", help="What is lost with a filter: right answers, or a low loss")

    def scores(self, model: nn.Module, setting: Setting, run: Run) -> Scores:
        require_prunable(model)

        def share(begin: float, end: float) -> Run:
            return Run(lambda p: run.report(begin + (end - begin) * p.fraction, p.message))

        pictures = sample(setting.validation, self.images)
        game = Coalitions(model, pictures, self.payoff, share(0.0, OPENING))
        work = torch.tensor([game.work(layer) for layer in game.widths], dtype=torch.float64)
        ends = (OPENING + (1 - OPENING) * work.cumsum(0) / work.sum()).tolist()
        found = {}
        for layer, begin, end in zip(game.widths, [OPENING, *ends], ends, strict=False):
            found[layer] = self._values(game, layer, share(begin, end)).float()
        run.report(1.0, "Playing coalitions")
        return found

    def _values(self, game: Coalitions, layer: str, run: Run) -> Tensor:
        pairs = -(-self.permutations // 2)
        match self.estimator:
            case "permutation":
                return game.permutation(layer, pairs, self.group, run)[0]
            case "kernel":
                return game.kernel(layer, pairs * self.group, run)
        return game.leave_one_out(layer, run)
