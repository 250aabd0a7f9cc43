"""How well a network does, with intervals, and what changed against another on the same images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import NormalDist
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Split
from core.cost import Cost, Metric, cost, metric, twin
from core.run import Run

Interval = tuple[float, float]

Z = NormalDist().inv_cdf(0.975)  # of a two-sided interval of 95 %


@dataclass(frozen=True, kw_only=True)
class Evaluation(Cost):
    """What a network costs and how well it does. Fractions lie in [0, 1].

    With no image at all, accuracy and loss are NaN and the interval is (0, 1).
    """

    n: int = metric("Images", ",", "neither", "Number of images the accuracy was measured on")
    accuracy: float = metric(
        "Accuracy", ".1%", "higher", "Share of images whose largest logit is the label's"
    )
    interval: tuple[float, float] = metric(
        "95 % interval", ".1%", "neither", "Where the accuracy on new images of this kind may lie (Wilson)"
    )
    loss: float = metric("Loss", ".3f", "lower", "Mean cross-entropy", "nats per image")

    @classmethod
    def metrics(cls) -> dict[str, Metric]:
        """Field name -> how it is shown; how well it does first, then what it costs."""
        costs = {f.name for f in fields(Cost)}
        shown = sorted(fields(cls), key=lambda f: f.name in costs)
        return {f.name: f.metadata["metric"] for f in shown}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: None stands for it."""
        values = {name: getattr(self, name) for name in self.metrics()}
        return {name: None if value != value else value for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class Change:
    """What became of the same images under another network."""

    n: int
    difference: float  # of the accuracies, after minus before, a fraction; NaN without images
    interval: Interval  # of the difference on new images, paired, 95 %
    gained: Tensor  # (G,) int64, images that were wrong and are right
    lost: Tensor  # (L,) int64, images that were right and are wrong
    changed: Tensor  # (D,) int64, images with another answer, right or wrong


def evaluate(
    model: nn.Module, split: Split, run: Run | None = None, answers: Tensor | None = None
) -> Evaluation:
    """Measure `model` on `split`; `answers` are its `logits` there, where they are at hand.

    Equal inputs give equal bits; `model` is left as it is.
    """
    answers = logits(model, split, run) if answers is None else answers
    n, right = len(split), correct(answers, split.labels)
    example = split.normalise(torch.zeros(1, *split.pixels.shape[1:], dtype=torch.uint8))
    return Evaluation(
        n=n,
        accuracy=int(right.sum()) / n if n else math.nan,
        interval=wilson(int(right.sum()), n),
        loss=F.cross_entropy(answers, split.labels).item() if n else math.nan,
        **asdict(cost(model, example)),
    )


def logits(model: nn.Module, split: Split, run: Run | None = None, batch_size: int = 250) -> Tensor:
    """Logits (N, K), float32 on the CPU, in eval mode; `model` is left as it is."""
    run = run or Run()
    model = twin(model).eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    parts = []
    for number in run.track(range(max(math.ceil(len(split) / batch_size), 1)), "Evaluating"):
        batch = slice(number * batch_size, (number + 1) * batch_size)
        parts.append(forward(model, split.normalise(split.pixels[batch]).to(device)).float().cpu())
    return torch.cat(parts)


@torch.inference_mode()
def forward(model: nn.Module, images: Tensor) -> Tensor:
    """The logits (N, K) of `images` (N, C, H, W), in the memory layout that is fastest on CPUs."""
    return model(images.contiguous(memory_format=torch.channels_last))


def answered(logits: Tensor) -> Tensor:
    """The class (N,) int64 with the largest logit (N, K); -1 where a logit is NaN, for no answer."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) bool: the answer is the label. No answer is never right."""
    return answered(logits) == labels


def change(before: Tensor, after: Tensor, labels: Tensor) -> Change:
    """Compare two networks' logits (N, K) on the same images with `labels` (N,)."""
    n, was, is_ = len(labels), correct(before, labels), correct(after, labels)
    gained, lost = (~was & is_).nonzero()[:, 0], (was & ~is_).nonzero()[:, 0]
    return Change(
        n=n,
        difference=(len(gained) - len(lost)) / n if n else math.nan,
        interval=paired_interval(len(gained), len(lost), n),
        gained=gained,
        lost=lost,
        changed=(answered(before) != answered(after)).nonzero()[:, 0],
    )


def wilson(hits: int, n: int) -> Interval:
    """95 % score interval of a proportion; (0, 1) when nothing was counted.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal
    of the American Statistical Association 22, 1927.
    """
    if n == 0:
        return (0.0, 1.0)
    share, z2 = hits / n, Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return (0.0 if hits == 0 else centre - half, 1.0 if hits == n else centre + half)


def paired_interval(gained: int, lost: int, n: int) -> Interval:
    """95 % score interval of (gained - lost) / n on n images seen by both networks.

    Holds every difference d with |gained - lost - n d| <= 1.96 s(d), where s(d) is the standard
    deviation under d, with the share of lost images at its most likely value given d. It depends on
    the images that changed sides only. None of n changed: +-z^2 / (n + z^2), the pairs' rule of
    three, where a Wald interval would claim certainty.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17, 1998; recommended by Fagerland, Lydersen
    and Laake, "Recommended tests and confidence intervals for paired binomial proportions",
    Statistics in Medicine 33, 2014.
    """
    if n == 0:
        return (-1.0, 1.0)

    def statistic(d: float) -> float:
        b, c = (2 * n - gained + lost) * d - gained - lost, -lost * d * (1 - d)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * share + d * (1 - d))
        distance = gained - lost - n * d
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    estimate = (gained - lost) / n
    low = -1.0 if estimate == -1 else _crossing(lambda d: statistic(d) > Z, -1.0, estimate)
    high = 1.0 if estimate == 1 else _crossing(lambda d: statistic(d) >= -Z, estimate, 1.0)
    return (low, high)


def per_class(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """One row per class: class, n, accuracy, low, high. An empty class has n = 0 and accuracy NaN."""
    right, rows = correct(logits, labels), []
    for number, name in enumerate(classes):
        hits = right[labels == number]
        n, count = len(hits), int(hits.sum())
        low, high = wilson(count, n)
        rows.append(
            {"class": name, "n": n, "accuracy": count / n if n else math.nan, "low": low, "high": high}
        )
    return pd.DataFrame(rows, columns=["class", "n", "accuracy", "low", "high"])


def _crossing(before: Callable[[float], bool], low: float, high: float) -> float:
    """Where `before`, True at first and then False, changes between `low` and `high`."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if before(middle) else (low, middle)
    return (low + high) / 2
