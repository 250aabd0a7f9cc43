"""Gate portrait: where a weight and its gate flow, and why a good unit may close before it has learned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from core.bundles import Setting
from core.figure import Figure, Reference
from core.lab import LABS, Lab
from core.method import number
from core.run import Run

TIME = 60.0  # by then all but starts next to the saddle are at an end
STEP = 0.1
WAITS = 13  # warm-ups that are tried
LONGEST = 6.0  # of them
PRICES = 96  # that are tried for each
DRAWN = 5  # every so many steps of a path


@dataclass(frozen=True)
class Toy:
    """One weight w behind one gate of probability g: loss (1 - gate w)^2 / 2, decay of w, price of g.

    Its mean is 1/2 - g (w - w^2 / 2) + decay w^2 / 2 + price g. Downhill, w moves by g (1 - w) - decay w
    and g by w - w^2 / 2 - price, within [0, 1].
    """

    price: float | Tensor  # a tensor: many of them at once
    decay: float

    def objective(self, weight: Tensor, gate: Tensor) -> Tensor:
        """What is minimised."""
        return 0.5 - gate * (weight - weight**2 / 2) + self.decay * weight**2 / 2 + self.price * gate

    def downhill(self, state: Tensor) -> Tensor:
        """How weight and gate (..., 2) move; a gate at an end does not leave [0, 1]."""
        weight, gate = state.unbind(-1)
        change = weight - weight**2 / 2 - self.price
        stuck = ((gate <= 0) & (change < 0)) | ((gate >= 1) & (change > 0))
        return torch.stack([gate * (1 - weight) - self.decay * weight, change.masked_fill(stuck, 0.0)], -1)

    @property
    def open(self) -> tuple[float, float]:
        """Where a unit that stays ends: weight and gate."""
        return 1 / (1 + self.decay), 1.0

    @property
    def worth(self) -> float:
        """The price up to which an open unit is better than none."""
        return 1 / (2 * (1 + self.decay))

    @property
    def saddle(self) -> tuple[float, float] | None:
        """Where neither moves; None where no gate is worth its price, whatever the weight."""
        if self.price >= 0.5:
            return None
        weight = 1 - math.sqrt(1 - 2 * self.price)
        gate = self.decay * weight / (1 - weight)
        return (weight, gate) if gate <= 1 else None

    def path(self, start: Tensor, time: float, step: float = 0.1, back: bool = False) -> Tensor:
        """(T, ..., 2) the way from `start` (..., 2), by Runge and Kutta's method of order four."""
        states, sign = [start.double()], -step if back else step
        for _ in range(round(time / step)):
            at = states[-1]
            first = self.downhill(at)
            second = self.downhill(at + sign / 2 * first)
            third = self.downhill(at + sign / 2 * second)
            fourth = self.downhill(at + sign * third)
            after = at + sign / 6 * (first + 2 * second + 2 * third + fourth)
            states.append(torch.stack([after[..., 0], after[..., 1].clamp(0, 1)], -1))
        return torch.stack(states)

    def separatrix(self, time: float = 30.0) -> Tensor:
        """(T, 2) the line through the saddle, inside the unit square: starts above it stay, others close."""
        assert self.saddle is not None
        weight, gate = self.saddle
        # the second derivatives of the objective, negated: its eigenvector of negative value leads in
        slopes = torch.tensor([[-gate - self.decay, 1 - weight], [1 - weight, 0.0]], dtype=torch.float64)
        inwards = torch.linalg.eigh(slopes).eigenvectors[:, 0]
        ends = torch.tensor(self.saddle, dtype=torch.float64) + 1e-4 * torch.stack([inwards, -inwards])
        ways = self.path(ends, time, back=True)
        line = torch.cat([ways[:, 0].flip(0), ways[:, 1]])
        return line[((line > 0) & (line < 1)).all(-1)]


@LABS.register
@dataclass(frozen=True)
class GatePortrait(Lab):
    """One weight behind one gate: where both flow, the line between staying and closing, and warm-up.

    A unit of weight w is to give 1; its gate is open with probability g. The mean loss, the decay of
    the weight and the price of the gate are 1/2 - g (w - w^2 / 2) + decay w^2 / 2 + price g, and both go
    downhill. Open and closed both attract, whatever the price; between them is a saddle, and the line
    through it parts the starts. A unit that has learned nothing yet has no benefit, so that its gate
    falls at first: from a high price on it closes although it would have paid. A warm-up, in which
    the gate waits while the weight learns, prevents that. The network of the page plays no part.

    Source: Guenter and Sideris, "Complexity-Aware Training of Deep Neural Networks for Optimal
    Structure Discovery", 2024, arXiv:2411.09127 (domains of attraction); the example is ours.
    """

    name: ClassVar[str] = "gate-portrait"

    price: float = number(0.2, 0.01, 0.49, 0.01, help="What an open gate costs")
    decay: float = number(0.1, 0.01, 1.0, 0.01, help="Weight decay")
    gate: float = number(0.5, 0.05, 1.0, 0.01, help="Probability of the gate at the beginning")
    weight: float = number(0.0, 0.0, 1.0, 0.01, help="Weight at the beginning")
    units: int = number(16, 4, 64, 1, help="Other beginnings, on the edges of the portrait")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        toy = Toy(self.price, self.decay)
        figures = []
        for make in run.track((self._portrait, self._prices, self._warm_ups), "Following the flow"):
            figures.append(make(toy))
        return figures

    def _portrait(self, toy: Toy) -> Figure:
        along = torch.linspace(0.02, 0.98, max(self.units // 4, 1))
        edges = [torch.stack(pair, 1) for pair in ((0 * along, along), (along, 0 * along + 0.01))]
        edges += [torch.stack(pair, 1) for pair in ((0 * along + 1, along), (along, 0 * along + 0.99))]
        starts = torch.cat([torch.tensor([[self.weight, self.gate]]), *edges])
        ways = toy.path(starts, TIME, STEP)
        stays = ways[-1, :, 1] > 0.5
        lines = [_line("this beginning", ways[::DRAWN, 0])]
        lines += [_line("stays" if stays[i] else "closes", ways[::DRAWN, i]) for i in range(1, len(starts))]
        marks, beside = (), "no beginning stays, whatever the weight has learned"
        if toy.saddle is not None:
            lines.append(_line("the line between", toy.separatrix()))
            weight, gate = toy.saddle
            marks = (Reference("x", weight, "saddle"), Reference("y", gate, "saddle"))
            beside = f"the saddle is at weight {weight:.3f}, gate {gate:.3f}"
        end_weight, end_gate = ways[-1, 0].tolist()
        kept, others = int(stays[1:].sum()), len(starts) - 1
        return Figure(
            "Where weight and gate flow",
            f"At a price of {self.price:g} and a decay of {self.decay:g} {beside}; the beginning at weight "
            f"{self.weight:g}, gate {self.gate:g} ends at weight {end_weight:.3f}, gate {end_gate:.3f}, "
            f"and of {others} beginnings on the edges {kept} stay.",
            pd.concat(lines, ignore_index=True),
            "weight",
            "gate",
            colour="what",
            labels={"gate": "gate (probability of being open)"},
            references=marks,
        )

    def _prices(self, toy: Toy) -> Figure:
        """What the beginning comes to at every price, beside the better end."""
        prices = torch.linspace(0.005, 0.5, PRICES, dtype=torch.float64)
        many = Toy(prices, self.decay)
        ends = many.path(torch.tensor([self.weight, self.gate]).expand(PRICES, 2), TIME, STEP)[-1]
        reached = many.objective(ends[:, 0], ends[:, 1])
        kept = many.objective(*(torch.tensor(value, dtype=torch.float64) for value in toy.open))
        names = ("where it flows", "open", "closed")
        values = (reached, kept, torch.full_like(kept, 0.5))
        table = pd.concat(
            pd.DataFrame({"price": prices, "objective": value, "what": name})
            for name, value in zip(names, values, strict=True)
        )
        survived = prices[ends[:, 1] > 0.5]
        last = survived.max().item() if len(survived) else 0.0
        between = "closes too soon" if last < toy.worth else "stays though closed would be better"
        return Figure(
            "Too soon: what closes though it would have paid",
            f"An open unit is the better end up to a price of {toy.worth:.3f}; this beginning stays up to "
            f"{last:.3f}. Between the two it {between} (prices in steps of {0.495 / (PRICES - 1):.3f}).",
            table,
            "price",
            "objective",
            colour="what",
            labels={"objective": "mean loss, decay and price"},
            references=(Reference("x", toy.worth, "not worth it from here"),),
        )

    def _warm_ups(self, toy: Toy) -> Figure:
        """The highest price at which the beginning stays, by how long the gate waits."""
        waits = torch.linspace(0, LONGEST, WAITS, dtype=torch.float64)
        rate = self.gate + self.decay
        settled = self.gate / rate  # where the weight goes while the gate does not move
        weights = settled + (self.weight - settled) * (-rate * waits).exp()
        prices = torch.linspace(0.005, 0.5, PRICES, dtype=torch.float64)
        starts = torch.stack([weights, torch.full_like(weights, self.gate)], 1)[:, None].expand(-1, PRICES, 2)
        stays = Toy(prices, self.decay).path(starts, TIME, STEP)[-1, ..., 1] > 0.5
        highest = (stays * prices).amax(1)
        return Figure(
            "What a warm-up saves",
            f"Without a warm-up the unit stays up to a price of {highest[0]:.3f}, after one of {LONGEST:g} "
            f"up to {highest[-1]:.3f}; it is worth it up to {toy.worth:.3f}. In that time the weight goes "
            f"from {weights[0]:.2f} to {weights[-1]:.2f}.",
            pd.DataFrame({"wait": waits, "price": highest}),
            "wait",
            "price",
            labels={"wait": "time in which the gate waits", "price": "highest price at which it stays"},
            references=(Reference("y", toy.worth, "worth it below"),),
        )


def _line(what: str, way: Tensor) -> pd.DataFrame:
    """The points of one path, and a gap behind them."""
    gap = torch.full((1, 2), torch.nan, dtype=way.dtype)
    return pd.DataFrame(torch.cat([way, gap]).numpy(), columns=["weight", "gate"]).assign(what=what)
