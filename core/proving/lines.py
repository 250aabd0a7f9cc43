"""Lower bounds of the margins on very many small boxes, as lines: what splitting spends its time on.

The same as `bounds.crown`, for less: what cheap bounds show to be on one side of 0 needs no others. Cheap are
intervals, and lines in the inputs that are pushed forward through the layers. On the small boxes in which
splitting ends they settle nearly all ReLUs, and only the others are bounded on the way back.

Source: as `bounds.py`; forward: Wang et al., "Efficient Formal Safety Analysis of Neural Networks" (Neurify),
NeurIPS 2018, arXiv:1809.08098.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.proving.bounds import Relaxed, relax
from core.proving.network import ReluNetwork


@dataclass(frozen=True, eq=False)
class Lines:
    """Below every margin, on every box: slopes (B, R, I) @ x + offsets (B, R)."""

    slopes: Tensor
    offsets: Tensor

    def least(self, low: Tensor, high: Tensor) -> Tensor:
        """(B, R) smallest values in the boxes (B, I)."""
        middle, radius = (low + high) / 2, (high - low) / 2
        values = (self.slopes @ middle[:, :, None]).squeeze(-1) + self.offsets
        return values - (self.slopes.abs() @ radius[:, :, None]).squeeze(-1)

    def mixed(self, shares: Tensor) -> "Lines":
        """One line for every box: the mean weighted with `shares` (B, R)."""
        return Lines(shares[:, None] @ self.slopes, (shares[:, None] @ self.offsets[:, :, None]).squeeze(-1))

    def take(self, index: Tensor) -> "Lines":
        return Lines(self.slopes[index], self.offsets[index])


@dataclass(frozen=True, eq=False)
class Hidden:
    """What is known of a layer's ReLUs on all boxes."""

    lines: Relaxed  # below and above them
    slack: Tensor  # (B, d) how far a ReLU may lie above its lower line
    reach: Tensor  # (d, B, I) how far every input moves what enters them


def relaxations(network: ReluNetwork, low: Tensor, high: Tensor) -> list[Hidden]:
    """Of every hidden layer, on boxes (B, I)."""
    boxes, inputs = low.shape
    middle, radius = (low + high) / 2, (high - low) / 2
    found: list[Hidden] = []
    # Lines centre -+ gap below and above all neurons, (d, B, I + 1), in inputs from -1 to 1; last: offsets.
    centre = torch.cat([torch.diag_embed(radius), middle[:, :, None]], 2).transpose(0, 1)
    gap = torch.zeros_like(centre)
    below, above = low.T, high.T
    for k, (weight, bias) in enumerate(zip(network.weights[:-1], network.biases[:-1], strict=True)):
        size, offset = weight.abs(), bias[:, None]
        plain, spread = weight @ ((below + above) / 2) + offset, size @ ((above - below) / 2)
        centre = (weight @ centre.flatten(1)).view(-1, boxes, inputs + 1)
        centre[..., -1] += offset
        gap = (size @ gap.flatten(1)).view(-1, boxes, inputs + 1)
        lower, upper = centre - gap, centre + gap
        least = torch.maximum(lower[..., -1] - lower[..., :-1].abs().sum(2), plain - spread)
        most = torch.minimum(upper[..., -1] + upper[..., :-1].abs().sum(2), plain + spread)
        if k:
            neuron, box = ((least < 0) & (most > 0)).nonzero(as_tuple=True)
            down, up = _ends(network, k, neuron, box, found, middle, radius)
            least[neuron, box] = torch.maximum(least[neuron, box], down)
            most[neuron, box] = torch.minimum(most[neuron, box], up)
        lines = relax(least, most)
        turned = Relaxed(*(side.T.contiguous() for side in (lines.flat, lines.steep, lines.lift)))
        slack = torch.minimum(most, -least).clamp(min=0).T
        found.append(Hidden(turned, slack, centre[..., :-1].abs()))
        lower, upper = lower * lines.steep[..., None], upper * lines.steep[..., None]  # any slope in [0, 1]
        upper[..., -1] += lines.lift
        centre, gap = (upper + lower) / 2, (upper - lower) / 2
        below, above = least.relu(), most.relu()
    return found


def _ends(
    network: ReluNetwork,
    layer: int,
    neuron: Tensor,
    box: Tensor,
    relaxed: list[Hidden],
    middle: Tensor,
    radius: Tensor,
) -> tuple[Tensor, Tensor]:
    """Lower and upper ends (P,) of what enters ReLU neuron[p] of `layer` in box[p]."""
    rows, constants = network.weights[layer][neuron], network.biases[layer][neuron]
    box = torch.cat([box, box])
    rows, constants = _back(
        network, layer - 1, torch.cat([rows, -rows]), torch.cat([constants, -constants]), relaxed, box
    )
    ends = constants + (rows * middle[box]).sum(1) - (rows.abs() * radius[box]).sum(1)
    lower, minus_upper = ends.chunk(2)
    return lower, -minus_upper


def lines(network: ReluNetwork, relaxed: list[Hidden], boxes: int, shares: Tensor | None = None) -> Lines:
    """Below the margins on so many boxes; or, with `shares` (B, R), below one weighted mean of them a box."""
    weight, bias = network.weights[-1], network.biases[-1]
    rows = weight.repeat(boxes, 1) if shares is None else shares @ weight
    constants = bias.repeat(boxes) if shares is None else shares @ bias
    box = torch.arange(boxes).repeat_interleave(len(rows) // boxes)
    rows, constants = _back(network, len(network.widths) - 1, rows, constants, relaxed, box)
    return Lines(rows.view(boxes, -1, network.inputs), constants.view(boxes, -1))


def _back(
    network: ReluNetwork, layer: int, rows: Tensor, constants: Tensor, relaxed: list[Hidden], box: Tensor
) -> tuple[Tensor, Tensor]:
    """From rows (P, d) of the ReLUs of `layer`, each in box[p], to lower lines in the inputs."""
    for k in range(layer, -1, -1):
        lines = relaxed[k].lines
        constants = constants + (rows.clamp(max=0) * lines.lift[box]).sum(1)
        rows = rows * torch.where(rows > 0, lines.flat[box], lines.steep[box])
        constants = constants + rows @ network.biases[k]
        rows = rows @ network.weights[k]
    return rows, constants


def causes(network: ReluNetwork, relaxed: list[Hidden], shares: Tensor) -> Tensor:
    """(B, I): how much of what the bound of a mean of the margins may fall short by is due to each input.

    The lines of a ReLU that may be on both sides of 0 lie off by a certain height, which the bound feels
    times a factor; the inputs share it as they share the width of what enters the ReLU.
    """
    rows = shares @ network.weights[-1]
    total = torch.zeros(len(rows), network.inputs, dtype=rows.dtype)
    for k in range(len(relaxed) - 1, -1, -1):
        lines, reach = relaxed[k].lines, relaxed[k].reach
        off = rows.clamp(min=0) * relaxed[k].slack - rows.clamp(max=0) * lines.lift
        part = reach / reach.sum(2, keepdim=True).clamp(min=1e-300)
        total += torch.einsum("bd,dbi->bi", off, part)
        rows = rows * torch.where(rows > 0, lines.flat, lines.steep) @ network.weights[k]
    return total


def shares_of(found: Lines, low: Tensor, high: Tensor, steps: int = 12) -> Tensor:
    """(B, R) weights, none negative, of sum 1, of a mean of the lines that is high all over the box.

    The largest of several lines is nowhere smaller than any mean of them: exponentiated subgradient steps
    raise the smallest value of the mean, from the best single line and the plain mean on.
    """
    middle, radius = (low + high) / 2, (high - low) / 2
    values = (found.slopes @ middle[:, :, None]).squeeze(-1) + found.offsets  # (B, R) in the middle
    least = found.least(low, high)
    best = torch.zeros_like(least).scatter_(1, least.argmax(1, keepdim=True), 1.0)
    reached = least.max(1).values
    shares = (best + 1 / least.shape[1]) / 2
    scale = (values.abs() + (found.slopes.abs() @ radius[:, :, None]).squeeze(-1)).max(1, keepdim=True).values
    for step in range(steps):
        tilt = (shares[:, None] @ found.slopes).squeeze(1)
        now = (shares * values).sum(1) - (tilt.abs() * radius).sum(1)
        better = now > reached
        best = torch.where(better[:, None], shares, best)
        reached = torch.where(better, now, reached)
        rise = values - (found.slopes @ (tilt.sign() * radius)[:, :, None]).squeeze(-1)
        shares = (
            shares.clamp(min=1e-12).log() + 4 / (step + 1) ** 0.5 * rise / scale.clamp(min=1e-300)
        ).softmax(1)
    return best
