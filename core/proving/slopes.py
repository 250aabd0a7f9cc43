"""Linear bounds that are looked for: slopes of ReLUs and multipliers of phases, improved step by step.

Below an open ReLU lie all lines alpha * z with alpha in [0, 1], and wherever a phase holds, beta * z times
the phase is not negative for any beta >= 0: every choice of both gives a sound bound, and some give a much
better one than CROWN's. P rows (directions of one layer's inputs) are bounded at once. The gradient is in
closed form: at the inputs where a row's bound is reached, it is what the lines below let through.

Source: Xu et al., "Fast and Complete: Enabling Complete Neural Network Verification with Rapid and Massively
Parallel Incomplete Verifiers" (alpha-CROWN), ICLR 2021, arXiv:2011.13824; Wang et al., "Beta-CROWN", NeurIPS
2021, arXiv:2103.06624. The gradient without automatic differentiation, and Adam on rows that leave, are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from core.proving.bounds import Bounds, Phases, backward, relax
from core.proving.network import ReluNetwork
from core.proving.question import TOLERANCE

ALPHA_STEP, BETA_STEP, FADE = 0.15, 0.2, 0.95  # sizes of the first step, and what is left in the next
SLOPE_KEPT, SIZE_KEPT = 0.5, 0.9  # of the gradient and its square, from step to step (Adam)
TOGETHER = 128  # ReLUs whose ranges are looked for at once
LEAVING = 4  # steps after which rows that have reached their goal are taken out


@dataclass(frozen=True, eq=False)
class Slopes:
    """What a row's linear bound may choose, all hidden layers in a row: (P, N) each."""

    alpha: Tensor  # slope below an open ReLU, in [0, 1]
    beta: Tensor  # multiplier of a ReLU's phase, >= 0; of no effect on an open one

    def take(self, index: Tensor | slice) -> "Slopes":
        return Slopes(self.alpha[index], self.beta[index])


@dataclass(frozen=True, eq=False)
class Line:
    """A lower bound of P rows, where it is reached, and what made it."""

    value: Tensor  # (P,)
    input: Tensor  # (P, I) the box's corner that the bound is the value at
    pull: Tensor  # (P, N) the row's coefficient of every ReLU's output
    guess: Tensor  # (P, N) of every ReLU's input there, if the lines were the network

    def take(self, index: Tensor) -> "Line":
        return Line(*(value[index] for value in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Lines:
    """Flat ranges of all ReLUs of a network over P sets of phases, and the lines above them, (P, N)."""

    network: ReluNetwork
    low: Tensor  # (I,) of the box
    high: Tensor
    below: Tensor  # (P or 1, N) range of every ReLU's input
    above: Tensor
    phases: Tensor  # (P or 1, N) 1, -1 or 0

    def take(self, index: Tensor) -> "Lines":
        """Those of some of the sets of phases."""
        parts = (v if len(v) == 1 else v[index] for v in (self.below, self.above, self.phases))
        return Lines(self.network, self.low, self.high, *parts)

    @property
    def empty(self) -> Tensor:
        """(P,) bool: nothing in the box is in these phases."""
        return (self.below > self.above + TOLERANCE).any(1)

    def refreshed(self) -> "Lines":
        """With the ranges of later layers as the phases of earlier ones leave them."""
        below, above = self.below.clone(), self.above.clone()
        before = []
        sides = (side.split(self.network.widths, 1) for side in (below, above))  # parts of them
        for layer, (least, most) in enumerate(zip(*sides, strict=True)):
            some = ((least < 0) & (most > 0)).any(0).nonzero()[:, 0] if layer else ()
            if len(some):
                rows = torch.zeros(1, len(some), len(least[0]), dtype=torch.float64)
                rows[0, torch.arange(len(some)), some] = 1.0
                low, high = self.low.expand(len(below), -1), self.high.expand(len(below), -1)
                lower = backward(self.network, layer, rows, before, low, high)
                upper = -backward(self.network, layer, -rows, before, low, high)
                least[:, some] = torch.maximum(least[:, some], lower)
                most[:, some] = torch.minimum(most[:, some], upper)
            before.append(relax(least, most))
        return Lines(self.network, self.low, self.high, below, above, self.phases)

    def start(self, rows: int) -> Slopes:
        """CROWN's own choice, for so many rows."""
        alpha = relax(self.below, self.above).flat
        return Slopes(alpha.expand(rows, -1).clone(), torch.zeros(rows, alpha.shape[1], dtype=alpha.dtype))

    def bound(self, layer: int, rows: Tensor, slopes: Slopes) -> Line:
        """Lower bounds of rows (P, d) @ z^layer, for any `slopes` in their ranges."""
        return _bound(self, self._fixed, layer, rows, slopes)

    def improved(
        self, layer: int, rows: Tensor, slopes: Slopes, steps: int, goal: float = torch.inf
    ) -> tuple[Line, Slopes]:
        """The best of so many steps and the slopes that gave it; rows above `goal` rest.

        A step is Adam's, cut back to the ranges that are sound.
        """
        fixed = self._fixed
        best = _bound(self, fixed, layer, rows, slopes)
        kept = Slopes(slopes.alpha.clone(), slopes.beta.clone())
        at = torch.arange(len(rows))  # rows that still move
        here, now, last = self, slopes, best.take(at)
        size = best.pull.abs().amax(1, keepdim=True).clamp(min=1e-12)  # multipliers are of the size of pulls
        mean = [torch.zeros_like(slopes.alpha), torch.zeros_like(slopes.alpha)]
        square = [torch.zeros_like(slopes.alpha), torch.zeros_like(slopes.alpha)]
        for step in range(steps):
            if step % LEAVING == 0:
                stay = (best.value[at] <= goal).nonzero()[:, 0]
                if len(stay) == 0:
                    break
                if len(stay) < len(at):
                    at, rows, here, now, size = (
                        at[stay],
                        rows[stay],
                        here.take(stay),
                        now.take(stay),
                        size[stay],
                    )
                    last = last.take(stay)
                    mean, square = [v[stay] for v in mean], [v[stay] for v in square]
                    fixed = here._fixed
            slope = (last.pull.clamp(min=0) * last.guess, -here.phases * last.guess)
            moved = []
            for i, (value, first) in enumerate(((now.alpha, ALPHA_STEP), (now.beta, BETA_STEP))):
                mean[i] = mean[i].lerp(slope[i], 1 - SLOPE_KEPT)
                square[i] = square[i].lerp(slope[i].square(), 1 - SIZE_KEPT)
                length = first * FADE**step / (1 - SLOPE_KEPT ** (step + 1))
                move = length * mean[i] / ((square[i] / (1 - SIZE_KEPT ** (step + 1))).sqrt() + 1e-12)
                moved.append(value + (move if i == 0 else move * size))
            now = Slopes(moved[0].clamp_(0, 1), moved[1].clamp_(min=0))
            last = _bound(here, fixed, layer, rows, now)
            won = (last.value > best.value[at]).nonzero()[:, 0]
            for mine, theirs in zip(vars(best).values(), vars(last).values(), strict=True):
                mine[at[won]] = theirs[won]
            kept.alpha[at[won]], kept.beta[at[won]] = now.alpha[won], now.beta[won]
        return best, kept

    @cached_property
    def _fixed(self) -> tuple[Tensor, ...]:
        """Of every ReLU: is it open, its slope if not, slope and lift of the line above."""
        found = relax(self.below, self.above)
        return (self.below < 0) & (self.above > 0), found.flat, found.steep, found.lift

    @property
    def lift(self) -> Tensor:
        """(P, N) of the lines above open ReLUs: what they cost at 0."""
        return self._fixed[3]


def _bound(lines: Lines, fixed: tuple[Tensor, ...], layer: int, rows: Tensor, slopes: Slopes) -> Line:
    """Back to the inputs by the lines, and from the corner found there forward by the same lines."""
    network = lines.network
    opened, shut, steep, lift = fixed
    flat = torch.where(opened, slopes.alpha, shut)
    push = slopes.beta * lines.phases
    ends = [0]
    for width in network.widths:
        ends.append(ends[-1] + width)
    total = rows @ network.biases[layer]
    rows = rows @ network.weights[layer]
    pulls, ways = [], []
    for k in range(layer - 1, -1, -1):
        part = slice(ends[k], ends[k + 1])
        positive = rows >= 0
        way = torch.where(positive, flat[:, part], steep[:, part])
        up = torch.where(positive, 0.0, lift[:, part])
        total = total + (rows * up).sum(1)
        pulls.append(rows)
        ways.append((way, up))
        rows = rows * way - push[:, part]
        total = total + rows @ network.biases[k]
        rows = rows @ network.weights[k]
    middle, radius = (lines.low + lines.high) / 2, (lines.high - lines.low) / 2
    value = total + rows @ middle - rows.abs() @ radius
    corner = torch.where(rows >= 0, lines.low, lines.high)
    guesses, x = [], corner
    for k in range(layer):
        guesses.append(x @ network.weights[k].T + network.biases[k])
        way, up = ways[layer - 1 - k]
        x = guesses[-1] * way + up
    rest = value.new_zeros(len(value), ends[-1] - ends[layer])
    return Line(value, corner, torch.cat([*pulls[::-1], rest], 1), torch.cat([*guesses, rest], 1))


def lines(
    network: ReluNetwork,
    low: Tensor,
    high: Tensor,
    ranges: tuple[Tensor, Tensor],
    phases: Tensor | None = None,
) -> Lines:
    """For one box (I,), ranges of all ReLUs in it (P, N), and phases (P, N), which narrow them."""
    below, above = ranges
    if phases is None:
        return Lines(network, low, high, below, above, torch.zeros_like(below))
    below = torch.where(phases > 0, below.clamp(min=0), below)
    above = torch.where(phases < 0, above.clamp(max=0), above)
    return Lines(network, low, high, below, above, phases.to(below.dtype))


def ranges(bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Lower and upper ends for all hidden ReLUs in a row, (B, N)."""
    none = bounds.margins[:, :0]
    return torch.cat([none, *bounds.lows], 1), torch.cat([none, *bounds.highs], 1)


def optimised(
    network: ReluNetwork, low: Tensor, high: Tensor, bounds: Bounds, phases: Phases | None, steps: int
) -> tuple[Tensor, Slopes]:
    """Better lower bounds of the margins, (B, R), and the slopes to go on with, of B * R rows.

    `low` and `high` are (I,), `bounds` of that box, one row or B; `phases` as in `bounds.py`.
    """
    flat = torch.cat(tuple(phases), 1) if phases else None
    sets = len(bounds.margins) if flat is None else len(flat)
    outputs = network.outputs
    rows = torch.eye(outputs, dtype=torch.float64).repeat(sets, 1)
    each = torch.arange(sets).repeat_interleave(outputs)
    found = lines(network, low, high, ranges(bounds), flat).take(each)
    line, slopes = found.improved(len(network.widths), rows, found.start(len(rows)), steps)
    return torch.maximum(line.value.view(sets, outputs), bounds.margins), slopes


def tightened(
    network: ReluNetwork,
    low: Tensor,
    high: Tensor,
    bounds: Bounds,
    steps: int,
    look: Callable[[], None] = lambda: None,
) -> Bounds:
    """Bounds of one box whose open ReLUs have ranges of optimised slopes, layer after layer.

    Only what may be on both sides of 0 is worth the work; a side that has left 0 behind is done. `look`
    is called many times, and may raise.
    """
    lows, highs = [v.clone() for v in bounds.lows], [v.clone() for v in bounds.highs]
    for layer in range(1, len(network.widths)):
        for effort in (0, steps):  # the lines before it are better by now: a look first, then the work
            here = Bounds(tuple(lows), tuple(highs), bounds.margins, bounds.empty)
            small, cut, kept = alive(network, here, layer)
            ways = lines(small, low, high, ranges(cut))
            neurons = here.unstable()[layer][0].nonzero()[:, 0]
            for part in neurons.split(TOGETHER):
                for side in (lows, highs):
                    look()
                    rows = torch.zeros(len(part), network.widths[layer], dtype=torch.float64)
                    rows[torch.arange(len(part)), part] = 1.0 if side is lows else -1.0
                    rows = rows[:, kept[layer]]
                    line, _ = ways.improved(layer, rows, ways.start(len(rows)), effort, 0.0)
                    if side is lows:
                        lows[layer][0, part] = torch.maximum(lows[layer][0, part], line.value)
                    else:
                        highs[layer][0, part] = torch.minimum(highs[layer][0, part], -line.value)
    found = Bounds(tuple(lows), tuple(highs), bounds.margins, bounds.empty)
    margins, _ = optimised(network, low, high, found, None, 0)
    return Bounds(found.lows, found.highs, margins, found.empty)


def alive(
    network: ReluNetwork, bounds: Bounds, below: int | None = None
) -> tuple[ReluNetwork, Bounds, list[Tensor]]:
    """The network without ReLUs that are never active in the (one) box, its bounds, and who is left.

    With `below`, only layers before that one lose any.
    """
    count = len(network.widths)
    kept = [
        (high[0] > 0).nonzero()[:, 0]
        if k < (count if below is None else below)
        else torch.arange(high.shape[1])
        for k, high in enumerate(bounds.highs)
    ]
    weights, biases = list(network.weights), list(network.biases)
    for k, index in enumerate(kept):
        weights[k], biases[k] = weights[k][index], biases[k][index]
        weights[k + 1] = weights[k + 1][:, index]
    lows, highs = (
        tuple(v[:, i] for v, i in zip(side, kept, strict=True)) for side in (bounds.lows, bounds.highs)
    )
    small = ReluNetwork(tuple(weights), tuple(biases))
    return small, Bounds(lows, highs, bounds.margins, bounds.empty), kept
