"""How far two stacks of attribution maps agree, and between which bounds that number lies.

A map is compared as it is shown: summed over its channels, with its sign. *Where* two networks look is
a question about magnitudes (Spearman, overlap, peak shift); *whether they say the same about it* is one
about signs as well (cosine, SSIM). All but SSIM ignore the strength of a map; SSIM sees both maps on one
scale, as the pictures do. docs/attributions.md gives the reasons.
"""

import copy
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.attribution import AttributionMethod, channel_sum, explain
from core.cost import Metric, metric
from core.errors import ParameterError
from core.layers import bake, require_prunable
from core.prepared import Prepared
from core.run import Run

State = Literal["ok", "zero", "constant", "not finite", "no positive evidence"]

TOP = 0.1  # share of the pixels whose overlap is counted
CEILING_NOISE = 0.01  # standard deviation of the noise ceiling's input noise, as a fraction of max - min
_DEAD = ("zero", "constant", "not finite")  # no pattern to compare


def state(map_: Tensor) -> State:
    """What there is to see in a map (C, H, W) or (H, W), summed over its channels.

    "no positive evidence" is a proper map in which nothing speaks for the class.
    """
    shown = map_.sum(dim=0) if map_.dim() == 3 else map_
    if not shown.isfinite().all():
        return "not finite"
    low, high = shown.min().item(), shown.max().item()
    if low == high == 0:
        return "zero"
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # the rounding of float32
        return "constant"
    return "ok" if high > 0 else "no positive evidence"


@dataclass(frozen=True, eq=False)
class Agreement:
    """Of two maps of each of N images. NaN where one has no pattern and the other differs from it."""

    spearman: Tensor = metric(
        "Rank correlation", ".3f", "higher", "Spearman's, of the magnitudes of all pixels; in [-1, 1]"
    )
    cosine: Tensor = metric(
        "Cosine", ".3f", "higher", "Of the signed maps; in [-1, 1], -1 where all evidence has changed sides"
    )
    overlap: Tensor = metric(
        "Top-10 % overlap",
        ".1%",
        "higher",
        "Share of the strongest tenth of pixels that both maps have in common",
    )
    peak_shift: Tensor = metric(
        "Peak shift", ".1f", "lower", "Distance between the strongest pixels of both maps", "pixels"
    )
    ssim: Tensor = metric(
        "SSIM", ".3f", "higher", "Structural similarity of the signed maps, both on one scale; in [-1, 1]"
    )
    before: tuple[State, ...]  # of the first map of every image
    after: tuple[State, ...]  # of the second

    @classmethod
    def metrics(cls) -> dict[str, Metric]:
        """Measure -> how it is shown."""
        return {f.name: f.metadata["metric"] for f in fields(cls) if "metric" in f.metadata}

    @property
    def compared(self) -> int:
        """How many of the N images have two maps that can be compared: the means are over these."""
        return int((~self.spearman.isnan()).sum())

    def means(self) -> dict[str, float]:
        """Measure -> mean over the compared images; NaN if there is none."""
        return {name: getattr(self, name).nanmean().item() for name in self.metrics()}


def agreement(before: Tensor, after: Tensor) -> Agreement:
    """Compare maps (N, C, H, W) with maps of the same images, float64 inside.

    Identical maps agree exactly, also if they are all zero: 1 everywhere, shift 0.
    """
    if before.shape != after.shape or before.dim() != 4:
        raise ParameterError(
            "agreement: both maps must be (N, C, H, W) alike, "
            f"got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    a, b = channel_sum(before.double()), channel_sum(after.double())  # (N, H, W)
    states = tuple(map(state, a)), tuple(map(state, b))
    finite = torch.tensor([m != "not finite" for m in states[0]], dtype=torch.bool)
    same = finite & (a == b).flatten(1).all(dim=1)
    dead = torch.tensor([x in _DEAD or y in _DEAD for x, y in zip(*states, strict=True)], dtype=torch.bool)

    def settle(values: Tensor, identical: float) -> Tensor:
        return values.masked_fill(dead, torch.nan).masked_fill(same, identical)

    strength = a.abs().flatten(1), b.abs().flatten(1)  # (N, H W)
    return Agreement(
        spearman=settle(_correlation(ranks(strength[0]), ranks(strength[1])), 1.0),
        cosine=settle(_cosine(_unit(a.flatten(1)), _unit(b.flatten(1))), 1.0),
        overlap=settle(_overlap(*strength), 1.0),
        peak_shift=settle(torch.linalg.vector_norm(_peak(a.abs()) - _peak(b.abs()), dim=1), 0.0),
        ssim=settle(ssim(a, b), 1.0),
        before=states[0],
        after=states[1],
    )


def ranks(values: Tensor) -> Tensor:
    """Rank of every entry within its row, from 1; equal entries share the mean of their ranks."""
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values.contiguous(), right=False)
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + up_to + 1).double() / 2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, row by row."""
    return _cosine(a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Row by row; NaN where a row is zero. The square root of the product keeps equal rows at exactly 1."""
    return ((a * b).sum(dim=1) / ((a * a).sum(dim=1) * (b * b).sum(dim=1)).sqrt()).clamp(-1, 1)


def _unit(rows: Tensor) -> Tensor:
    """Rows scaled to a largest magnitude of 1, so that squares of tiny maps do not vanish."""
    return rows / rows.abs().amax(dim=1, keepdim=True)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Shared share of the strongest pixels of each row."""
    count = max(1, round(TOP * a.shape[1]))
    return torch.minimum(_membership(a, count), _membership(b, count)).sum(dim=1) / count


def _membership(rows: Tensor, count: int) -> Tensor:
    """How far a pixel belongs to the `count` strongest: 1, 0, or an equal share among ties at the edge."""
    edge = rows.topk(count, dim=1).values[:, -1:]
    above, tied = rows > edge, rows == edge
    share = (count - above.sum(dim=1, keepdim=True)) / tied.sum(dim=1, keepdim=True).clamp(min=1)
    return above + tied * share


def _peak(maps: Tensor) -> Tensor:
    """Row and column (N, 2) of the largest value; the centre of all that tie for it."""
    tied = (maps == maps.amax(dim=(1, 2), keepdim=True)).double()
    rows, columns = torch.arange(maps.shape[1]), torch.arange(maps.shape[2])
    centre = torch.stack([(tied.sum(2) * rows).sum(1), (tied.sum(1) * columns).sum(1)], dim=1)
    return centre / tied.sum(dim=(1, 2))[:, None]


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity (N,) of maps (N, H, W) on the symmetric scale that both share.

    Gaussian window of 11 pixels (fewer on smaller maps), standard deviation 1.5; the data range is
    twice the largest magnitude of the pair.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
    IEEE Transactions on Image Processing 2004.
    """
    side = min(11, *(length - (length + 1) % 2 for length in a.shape[1:]))
    line = torch.exp(-0.5 * ((torch.arange(side).double() - side // 2) / 1.5) ** 2)
    window = (torch.outer(line, line) / line.sum() ** 2)[None, None]

    def local_mean(x: Tensor) -> Tensor:
        return F.conv2d(x[:, None], window)[:, 0]

    limit = torch.maximum(a.abs().amax(dim=(1, 2)), b.abs().amax(dim=(1, 2)))[:, None, None]
    a, b = a / limit, b / limit  # data range 2
    small, smaller = (0.03 * 2) ** 2, (0.01 * 2) ** 2
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + smaller) / (mean_a**2 + mean_b**2 + smaller)
    structure = (2 * covariance + small) / (var_a + var_b + small)
    return (luminance * structure).mean(dim=(1, 2))


# What a value of agreement means: between which bounds it lies.


def noise_ceiling(
    model: nn.Module,
    method: AttributionMethod,
    images: Tensor,
    targets: Tensor,
    run: Run | None = None,
    seed: int = 0,
) -> Agreement:
    """Agreement of a network with itself under noise: more than this cannot be asked of another network.

    A random method is run with another seed; a deterministic one on the pictures with Gaussian noise of
    1 % of their range of values, which no person would see.
    """
    maps = explain(model, method, images, targets, run, seed)
    if method.random:
        return agreement(maps, explain(model, method, images, targets, run, seed + 1))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)
    spread = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)
    noisy = images + CEILING_NOISE * spread * noise
    return agreement(maps, explain(model, method, noisy, targets, run, seed))


def random_floor(
    model: nn.Module,
    method: AttributionMethod,
    images: Tensor,
    targets: Tensor,
    run: Run | None = None,
    seed: int = 0,
    layers: int | None = None,
) -> Agreement:
    """Agreement with the same architecture with random weights: what the picture alone brings about.

    A method whose floor is high shows the picture rather than the network.
    """
    maps = explain(model, method, images, targets, run, seed)
    other = Prepared.of(model, images[:1]).relative(
        ("randomised", seed, layers), lambda: randomised(model, seed, layers)
    )
    return agreement(maps, explain(other, method, images, targets, run, seed))


def randomised(model: nn.Module, seed: int = 0, layers: int | None = None) -> nn.Module:
    """A copy of `model` whose last `layers` convolutions and linear layers are random; None: all of them.

    New weights and biases are normal with the mean and standard deviation of the old ones, so that
    signals keep their size; the channels of batch norms (with all layers: of all, else of those behind
    the first random layer) become alike. Cascading goes from the output towards the input.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292, section 4.
    """
    copied = bake(copy.deepcopy(model)).requires_grad_(False)
    found = list(require_prunable(copied).values())
    count = len(found) if layers is None else layers
    if not 0 <= count <= len(found):
        raise ParameterError(f"randomised: layers must lie in [0, {len(found)}], got {layers}")
    generator = torch.Generator().manual_seed(seed)
    chosen = {id(layer) for layer in found[len(found) - count :]}
    reached = False
    for module in copied.modules():
        reached = reached or id(module) in chosen
        if id(module) in chosen:
            for values in (module.weight, module.bias):
                _redraw(values, generator)
        elif reached and isinstance(module, nn.modules.batchnorm._BatchNorm):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                if values is not None:
                    values.copy_(values.mean().expand_as(values))
    return copied


def _redraw(values: Tensor | None, generator: torch.Generator) -> None:
    if values is None:
        return
    mean, deviation = values.mean(), values.std(correction=0)
    values.copy_(mean + deviation * torch.randn(values.shape, generator=generator).to(values.device))


def is_dead(each: State) -> bool:
    """Whether a map of this state has no pattern at all: a page shows a panel instead of a picture."""
    return each in _DEAD
