"""Gate prices: what every channel and block of a network costs, and why the best gate is open or closed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting, Split
from core.criterion import sample
from core.figure import Figure
from core.gates import Costs, Gates, Sites, Tariff, find_sites
from core.lab import LABS, Lab
from core.layers import private_copy
from core.method import number
from core.run import Run

GRID = 11  # probabilities of a gate that are tried
PRIORS = 99
BATCH = 100  # pictures in one forward pass
COUNTED = {"multiply-adds": 1.0, "half of each": 0.5, "parameters": 0.0}


@LABS.register
@dataclass(frozen=True)
class GatePrices(Lab):
    """What channels and blocks cost in a network, and two of its blocks behind gates of any probability.

    The price of a gate is what opening it adds to the network's complexity: 1 for all that has gates,
    by multiply-adds, by parameters, or half by each. The mean loss over two gates is linear in the
    probability of each, and so is the price: the least of both lies at a corner, where every gate is
    open or closed. A constant price is what a Bayesian pays whose prior has a density proportional to
    1 / (1 + (gamma - 1) prior): log gamma. Of a network without blocks, two layers stand behind gates.

    Source: Guenter and Sideris, "Complexity-Aware Training of Deep Neural Networks for Optimal
    Structure Discovery", 2024, arXiv:2411.09127; prices as derivatives of the cost are ours.
    """

    name: ClassVar[str] = "gate-prices"

    strength: float = number(1.0, 0.01, 5.0, 0.01, help="Price of all that has gates, in nats of the loss")
    gamma: float = number(3.0, 1.1, 20.0, 0.1, help="Of the hyper-prior; its logarithm is the price")
    images: int = number(100, 10, 2000, 10, help="Validation pictures on which the loss is measured")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        model = private_copy(setting.teacher, run.device)
        example = setting.train.take(slice(0, 1)).images
        sites = find_sites(model, example)
        costs = Costs(model, example, sites)
        judged = sample(setting.validation, self.images)
        return (_prices(sites, costs), self._corner(model, sites, costs, judged, run), self._prior())

    def _corner(self, model: nn.Module, sites: Sites, costs: Costs, judged: Split, run: Run) -> Figure:
        """Mean loss and price over the two gates whose closing costs least."""
        parts = {block.name: [sites.gate(block)] for block in sites.blocks} or {
            name: list(range(part.start, part.stop)) for name, part in sites.groups.items()
        }
        gates = Gates(sites, costs, Tariff(self.strength, 0.5, 0.5, 1.0, 1), run.device)

        def objective(*closed: str) -> float:
            """Mean cross-entropy and price with these parts closed."""
            values = torch.ones(sites.count)
            values[[gate for name in closed for gate in parts[name]]] = 0.0
            gates.values.data = values.to(gates.values)
            price = self.strength * costs.complexity(values, 0.5).item()
            with torch.no_grad():
                losses = [
                    F.cross_entropy(model(images.to(run.device)), labels.to(run.device), reduction="sum")
                    for images, labels in judged.batches(BATCH)
                ]
            return torch.stack(losses).sum().item() / len(judged) + price

        with gates.attached(model):
            alone = {name: objective(name) for name in run.track(parts, "Closing one at a time")}
            first, second = (sorted(alone, key=alone.get) * 2)[:2]
            table = torch.tensor([[objective(first, second), alone[first]], [alone[second], objective()]])
        odds = torch.linspace(0, 1, GRID)
        rows = [
            (x.item(), y.item(), expectation(table, torch.stack([x, y])).item()) for x in odds for y in odds
        ]
        found = pd.DataFrame(rows, columns=["first", "second", "objective"]).round({"first": 2, "second": 2})
        least = found.loc[found.objective.idxmin()]
        states = ["closed", "open"]
        corner = f"{first} {states[round(least['first'])]}, {second} {states[round(least['second'])]}"
        return Figure(
            "Loss and price over two gates",
            f"Of {len(found)} pairs of probabilities the least loss and price, {least.objective:.3f}, is at "
            f"a corner: {corner}. All open it is {table[1, 1]:.3f}, with both closed {table[0, 0]:.3f}, at a "
            f"strength of {self.strength:g} and on {len(judged)} validation pictures.",
            found,
            "first",
            "second",
            "heat",
            value="objective",
            labels={
                "first": f"gate of {first}",
                "second": f"gate of {second}",
                "objective": "loss and price",
            },
        )

    def _prior(self) -> Figure:
        """Divergence and hyper-prior over the prior, for three probabilities of a gate."""
        priors = torch.linspace(0.01, 0.99, PRIORS, dtype=torch.float64)
        price = math.log(self.gamma)
        parts, said = [], []
        for odds in torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64):
            costs, name = prior_cost(odds, priors, self.gamma), f"gate {odds:.1f}"
            parts.append(pd.DataFrame({"prior": priors, "cost": costs, "what": name}))
            least = prior_cost(odds, best_prior(odds, self.gamma), self.gamma)
            said.append(f"{least:.3f} for {name}, which is {least / odds:.3f} per unit of it")
        return Figure(
            "A prior that makes the price constant",
            f"At its best prior a gate costs {'; '.join(said)}: always log {self.gamma:g} = {price:.3f}.",
            pd.concat(parts, ignore_index=True),
            "prior",
            "cost",
            colour="what",
            labels={"prior": "prior probability of being open", "cost": "divergence and hyper-prior (nats)"},
        )


def _prices(sites: Sites, costs: Costs) -> Figure:
    """One channel of every layer; of a network without such layers, every block."""
    everything = torch.ones(sites.count)
    gates = {name: part.start for name, part in sites.groups.items()} or {
        block.name: sites.gate(block) for block in sites.blocks
    }
    rows = [
        {"layer": name, "counted": words, "price": costs.prices(everything, share)[gate].item()}
        for words, share in COUNTED.items()
        for name, gate in gates.items()
    ]
    table = pd.DataFrame(rows)
    what = "A channel" if sites.groups else "A block"
    said = []
    for words in ("multiply-adds", "parameters"):
        part = table[table.counted == words].set_index("layer").price
        said.append(
            f"by {words} {part.max() / part.min():.1f} times as much in {part.idxmax()} as in {part.idxmin()}"
        )
    return Figure(
        "What a gate costs",
        f"{what} costs {'; '.join(said)} (shares of all that has gates, all gates open).",
        table,
        "layer",
        "price",
        "bars",
        colour="counted",
        percent=frozenset({"price"}),
        labels={"price": "price of one, of all", "counted": "counted by"},
    )


def expectation(table: Tensor, odds: Tensor) -> Tensor:
    """Mean of `table` (2, ..., 2), what happens with every gate shut or open, over gates open with `odds`.

    It is linear in every single one of the odds, so that its least value lies where all are 0 or 1.
    """
    for chance in odds:
        table = torch.lerp(table[0], table[1], chance)
    return table


def prior_cost(odds: Tensor, prior: Tensor, gamma: float) -> Tensor:
    """What a gate costs under a prior probability: divergence from it, and its own improbability.

    The hyper-prior of the prior is proportional to 1 / (1 + (gamma - 1) prior), gamma > 1. Minimised
    over the prior, at `best_prior`, the cost is odds * log(gamma): a constant price of being open.
    """
    divergence = torch.special.xlogy(odds, odds / prior) + torch.special.xlogy(
        1 - odds, (1 - odds) / (1 - prior)
    )
    return divergence + torch.log1p((gamma - 1) * prior)


def best_prior(odds: Tensor, gamma: float) -> Tensor:
    """The prior probability at which `prior_cost` is least."""
    return odds / (gamma - (gamma - 1) * odds)
