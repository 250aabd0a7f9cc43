"""Bounds of every neuron that hold for all inputs of a box: intervals, and linear bounds on the way back.

Many boxes, and many choices of phases, are bounded at once: B is their number, d_k the width of hidden
layer k. A phase says on which side of 0 a ReLU's input lies: 1 active, -1 inactive, 0 open. Bounds then
hold for those inputs of the box at which every ReLU with a phase is in it.

Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions"
(CROWN), NeurIPS 2018, arXiv:1811.00866; intervals: Gowal et al., 2018, arXiv:1810.12715.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.proving.network import ReluNetwork

Phases = Sequence[Tensor]  # per hidden layer (B, d_k) int8


@dataclass(frozen=True, eq=False)
class Bounds:
    """Of all hidden layers' inputs, (B, d_k) each, and of the outputs, (B, R).

    Where no input of the box fits the phases, a lower bound lies above its upper one; `empty` says so.
    """

    lows: tuple[Tensor, ...]
    highs: tuple[Tensor, ...]
    margins: Tensor  # (B, R) lower bounds of the outputs
    empty: Tensor  # (B,) bool
    narrowed: list[tuple[tuple[Tensor, ...], ...]] = field(default_factory=list, repr=False)
    # lows and highs that somebody has looked for since: shared by copies about other outputs

    @property
    def margin(self) -> Tensor:
        """(B,) lower bound of the largest output; infinite where no input is left."""
        return self.margins.max(1).values.masked_fill(self.empty, torch.inf)

    def take(self, index: Tensor | slice) -> "Bounds":
        lows, highs = (tuple(v[index] for v in side) for side in (self.lows, self.highs))
        return Bounds(lows, highs, self.margins[index], self.empty[index])

    def unstable(self) -> list[Tensor]:
        """Per hidden layer (B, d_k) bool: may be on both sides of 0."""
        return [(low < 0) & (high > 0) for low, high in zip(self.lows, self.highs, strict=True)]


def intervals(network: ReluNetwork, low: Tensor, high: Tensor) -> Bounds:
    """Interval arithmetic, layer by layer; `low` and `high` are (B, I)."""
    lows, highs = [], []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        middle, radius = (low + high) / 2, (high - low) / 2
        centre, spread = middle @ weight.T + bias, radius @ weight.abs().T
        lows.append(centre - spread)
        highs.append(centre + spread)
        low, high = lows[-1].relu(), highs[-1].relu()
    empty = torch.zeros(len(low), dtype=torch.bool)
    return Bounds(tuple(lows[:-1]), tuple(highs[:-1]), lows[-1], empty)


def crown(network: ReluNetwork, low: Tensor, high: Tensor, phases: Phases | None = None) -> Bounds:
    """Linear bounds, from every layer back to the inputs, intersected with those of intervals.

    `low` and `high` are (B, I); with `phases`, of B rows, one box may serve all of them: (1, I).
    """
    boxes = len(phases[0]) if phases else len(low)
    low, high = low.expand(boxes, -1), high.expand(boxes, -1)
    lows: list[Tensor] = []
    highs: list[Tensor] = []
    relaxed: list[Relaxed] = []
    empty = torch.zeros(boxes, dtype=torch.bool)
    below, above = low, high  # what enters the next layer, as intervals
    for k in range(len(network.widths)):
        weight, bias = network.weights[k], network.biases[k]
        centre, spread = (below + above) / 2 @ weight.T + bias, (above - below) / 2 @ weight.abs().T
        least, most = centre - spread, centre + spread
        if k:
            eye = weight.new_zeros(boxes, 1, 1) + torch.eye(len(weight), dtype=weight.dtype)
            least = torch.maximum(least, backward(network, k, eye, relaxed, low, high))
            most = torch.minimum(most, -backward(network, k, -eye, relaxed, low, high))
        if phases:
            least, most, fits = _in_phase(least, most, phases[k])
            empty |= ~fits
        lows.append(least)
        highs.append(most)
        relaxed.append(relax(least, most))
        below, above = least.relu(), most.relu()
    last = len(network.widths)
    weight, bias = network.weights[-1], network.biases[-1]
    plain = (below + above) / 2 @ weight.T + bias - (above - below) / 2 @ weight.abs().T
    rows = weight.new_zeros(boxes, 1, 1) + torch.eye(len(weight), dtype=weight.dtype)
    margins = torch.maximum(plain, backward(network, last, rows, relaxed, low, high)) if last else plain
    return Bounds(tuple(lows), tuple(highs), margins, empty)


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Lines below and above a layer's ReLUs, (B, d_k): flat * z <= relu(z) <= steep * z + lift."""

    flat: Tensor
    steep: Tensor
    lift: Tensor


def relax(low: Tensor, high: Tensor) -> Relaxed:
    """The lines for inputs between `low` and `high` (B, d_k)."""
    off, on = high <= 0, low >= 0
    width = (high - low).clamp(min=1e-300)
    steep = torch.where(on, 1.0, (high / width).masked_fill(off, 0.0))
    lift = (-low * steep).masked_fill(off | on, 0.0)
    flat = torch.where(on, 1.0, ((high > -low) & ~off).to(low.dtype))
    return Relaxed(flat, steep, lift)


def backward(
    network: ReluNetwork,
    layer: int,
    rows: Tensor,
    relaxed: Sequence[Relaxed],
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """(B, R) lower bounds of rows (B, R, d) @ z^layer, by the lines of the layers before it."""
    total = (rows @ network.biases[layer][:, None]).squeeze(-1)
    rows = rows @ network.weights[layer]
    for k in range(layer - 1, -1, -1):
        lines = relaxed[k]
        up, down = rows.clamp(min=0), rows.clamp(max=0)
        total = total + (down @ lines.lift[:, :, None]).squeeze(-1)
        rows = up * lines.flat[:, None] + down * lines.steep[:, None]
        total = total + rows @ network.biases[k]
        rows = rows @ network.weights[k]
    middle, radius = (low + high) / 2, (high - low) / 2
    return total + (rows @ middle[:, :, None]).squeeze(-1) - (rows.abs() @ radius[:, :, None]).squeeze(-1)


def _in_phase(low: Tensor, high: Tensor, phase: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds (B, d) of what is in its phase, and (B,) whether anything can be."""
    fits = ~(((phase > 0) & (high < 0)) | ((phase < 0) & (low > 0))).any(1)
    low = torch.where(phase > 0, low.clamp(min=0), low)
    high = torch.where(phase < 0, high.clamp(max=0), high)
    high = torch.where(phase > 0, torch.maximum(high, low), high)
    return torch.where(phase < 0, torch.minimum(low, high), low), high, fits
