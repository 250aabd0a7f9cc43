"""Which images come first, and how far the rest may still move a number measured on them."""

import math

import torch
from torch import Tensor

from core.evaluation import Interval, Z

STRATA = 50  # bands of the original's margin; a run of that many images holds one of each
FIRST = 100  # images of the first answer; each later one has twice as many


class Strata:
    """An order of the images in which every beginning represents the whole.

    The images are sorted by the original's signed margin (the label's logit less the largest other
    one) and cut into `STRATA` bands; every run of `STRATA` images holds one of each band, drawn at
    random. Images near the border flip most easily, so a beginning predicts the effect of
    compression with two to six times fewer images than a random sample, while its accuracy stays a
    plain mean.
    """

    def __init__(self, logits: Tensor, labels: Tensor, seed: int = 0) -> None:
        """`logits` (N, K) of the original, `labels` (N,)."""
        n, random = len(labels), torch.Generator().manual_seed(seed)
        ranked = signed_margins(logits, labels).argsort(stable=True)

        def sorted_at_random(key: Tensor) -> Tensor:
            order = torch.randperm(n, generator=random)
            return order[key[order].argsort(stable=True)]

        band = torch.arange(n) * STRATA // max(n, 1)  # of every place in `ranked`
        by_band = sorted_at_random(band)
        turn = torch.arange(n) - torch.searchsorted(band, band)  # of every place in `by_band`
        places = by_band[sorted_at_random(turn)]
        self.order = ranked[places]  # (N,) positions in the split
        self._places = places  # (N,) rank of the margin of the image that comes n-th

    def remaining(self, right: Tensor) -> Interval:
        """Where the accuracy on all N images lies, with 95 % confidence, once n of them are known.

        `right` (n,) bool says which of the first n images are classified correctly. The interval is
        post-stratified over bands of the margin, with half a success and half a failure added to each
        band, and shrinks to the number itself as n comes to N. It says nothing of new images:
        that is Wilson's interval.

        Source: Cochran, "Sampling Techniques", Wiley 1977 (post-stratification).
        """
        n, whole = len(right), len(self.order)
        if n == 0:
            return (0.0, 1.0)
        accuracy = right.float().mean().item()
        bands = 20 if n >= 250 else 10
        band = self._places[:n] * bands // whole
        seen = torch.bincount(band, minlength=bands).double()
        hits = torch.bincount(band, weights=right.double(), minlength=bands)
        share = (hits + 0.5) / (seen + 1)
        variance = (share * (1 - share) / seen.clamp(min=1)).mean().item() / bands * (1 - n / whole)
        half = Z * math.sqrt(max(variance, 0.0))
        return (max(0.0, accuracy - half), min(1.0, accuracy + half))


def signed_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit less the largest other one, (N,); what is not a number comes first."""
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return (right - others).nan_to_num(nan=-math.inf)


def tier_ends(count: int, step: int = 1) -> list[int]:
    """100, 200, 400 ... rounded up to multiples of `step`, and `count`; none where nearly all would do."""
    ends, end = [], FIRST
    while 1.5 * end < count:
        ends.append(-(-end // step) * step)
        end *= 2
    return [*(end for end in ends if end < count), count]
