"""The fastest form in which a network runs here, and float32 for the images on which it cannot be trusted."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.errors import UnsupportedModelError
from core.fusion import fuse
from core.kernels import Fused, Plain, fused_works
from core.layers import private_copy
from core.steps import Steps, whole

PRECISIONS = (torch.float32, torch.bfloat16)
WORTHWHILE = 1.25  # how much faster less precision must be to be used at all
OPEN = 0.25  # share of close calls above which it is of no use
SAFETY = 1.5  # a margin is trusted when it is so many times the largest error seen on close calls


@dataclass(frozen=True, eq=False)
class Forms:
    """One network twice; `fast` is `exact` where nothing is faster."""

    fast: Steps
    exact: Steps  # float32, equal to the network itself but for rounding


def race(module: nn.Module, images: Tensor, precisions: Sequence[torch.dtype] = PRECISIONS) -> Forms:
    """Try every precision on `images` (N, C, H, W), a batch like those that will come; the fastest wins.

    A form that answers differently from the network, whose errors leave too many calls open, or for
    which this processor has no kernels, does not enter. A network whose code cannot be followed step
    by step runs as it is.
    """
    with torch.inference_mode():
        exact = _exact(module, images)
        fastest, best = exact, _seconds(exact, images)
        for dtype in precisions:
            if dtype != torch.float32 and len(exact) > 1:
                with contextlib.suppress(UnsupportedModelError, RuntimeError):  # no such kernel
                    form = fuse(module, images, _kernel(dtype), dtype)
                    seconds = _seconds(form, images)
                    if WORTHWHILE * seconds < best and _is_decisive(form, exact, images):
                        fastest, best = form, seconds
    return Forms(fastest, exact)


def _is_decisive(form: Steps, exact: Steps, images: Tensor) -> bool:
    """Whether its errors leave most calls clear."""
    calls, answers = Calls.of(_run(form, images)), _run(exact, images)
    allowed = calls.error(torch.arange(len(images)), answers)
    return (calls.margins <= allowed).float().mean().item() <= OPEN


def _run(form: Steps, images: Tensor) -> Tensor:
    return form.finish(form.enter(images), 0)


def _exact(module: nn.Module, images: Tensor) -> Steps:
    try:
        form = fuse(module, images, _kernel(torch.float32), torch.float32)
        wanted = private_copy(module)(images)
        found = _run(form, images)
    except (UnsupportedModelError, RuntimeError, TypeError, ValueError, AttributeError):
        return whole(module)
    if wanted.shape != found.shape:
        return whole(module)
    close = 1e-4 * wanted.abs().nan_to_num(nan=0.0).amax().item()
    return form if torch.allclose(wanted, found, 1e-4, close, equal_nan=True) else whole(module)


def _kernel(dtype: torch.dtype) -> type[Plain] | type[Fused]:
    return Fused if fused_works(dtype) else Plain


def _seconds(form: Steps, images: Tensor) -> float:
    """Processor time of one batch on this thread: the least of three, once the weights are laid out."""
    taken = []
    for _ in range(4):
        start = time.thread_time()
        _run(form, images)
        taken.append(time.thread_time() - start)
    return min(taken[1:])


@dataclass(frozen=True, eq=False)
class Calls:
    """What decides which class wins: the two largest logits of each of n images."""

    values: Tensor  # (n, 2)
    classes: Tensor  # (n, 2) int64
    size: float  # mean of |logit| over all classes

    @classmethod
    def of(cls, logits: Tensor) -> "Calls":
        """Of logits (n, K); where there is one class, the second one is far behind."""
        values, classes = logits.topk(min(2, logits.shape[1]), 1)
        if logits.shape[1] < 2:
            values = torch.cat([values, torch.full_like(values, -torch.inf)], 1)
            classes = torch.cat([classes, classes], 1)
        size = logits.abs().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).mean().item()
        return cls(values, classes, size)

    @classmethod
    def join(cls, parts: Sequence["Calls"]) -> "Calls":
        """Of all images of `parts` together."""
        counts = [len(part.values) for part in parts]
        size = sum(part.size * count for part, count in zip(parts, counts, strict=True)) / max(sum(counts), 1)
        return cls(torch.cat([p.values for p in parts]), torch.cat([p.classes for p in parts]), size)

    @property
    def answers(self) -> Tensor:
        """The class (n,) that wins; -1, no answer, where a logit is NaN: `topk` puts NaN first."""
        return self.classes[:, 0].masked_fill(self.values[:, 0].isnan(), -1)

    @property
    def margins(self) -> Tensor:
        """The largest logit less the second largest, (n,)."""
        return self.values[:, 0] - self.values[:, 1]

    def error(self, index: Tensor, exact: Tensor) -> float:
        """The most that the margins at `index` (M,) differ from those of the logits `exact` (M, K)."""
        off = exact.gather(1, self.classes[index]) - self.values[index]  # (M, 2)
        off = (off[:, 0] - off[:, 1]).abs().nan_to_num(nan=0.0, posinf=0.0)
        return off.amax().item() if len(off) else 0.0


def doubt(calls: Calls, index: Tensor, exact: Tensor) -> float:
    """How far margins may be off, per unit of the size of logits, seen on the images at `index` (M,)."""
    return calls.error(index, exact) / max(calls.size, 1e-9)


def settle(
    calls: Calls, exactly: Callable[[Tensor], Tensor], doubt: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """(index (M,), float32 logits (M, K)) of every close call, in a few parts.

    A call is close where the two largest logits lie no further apart than errors may be: `doubt`
    times the size of the logits at first. `exactly` gives the float32 logits of the images at an
    index (M,). Where these show larger errors than were allowed for, more calls become close.
    """
    open_, allowed = torch.ones(len(calls.values), dtype=torch.bool), doubt * calls.size
    while True:
        close = (open_ & ~(calls.margins > allowed)).nonzero()[:, 0]  # NaN is a close call
        if not len(close):
            return
        exact = exactly(close)
        yield close, exact
        open_[close] = False
        allowed = max(allowed, SAFETY * calls.error(close, exact))
