"""The fastest form in which a network runs here, and float32 for the images on which it cannot be trusted."""

import contextlib
import time
from collections.abc import Callable, Sequence
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
SAFETY = 1.5  # a margin is trusted when it is so many times the largest error seen on close calls
CALIBRATION = 200  # images on which the error is looked at first


@dataclass(frozen=True, eq=False)
class Forms:
    """One network twice; `fast` is `exact` where nothing is faster."""

    fast: Steps
    exact: Steps  # float32, equal to the network itself but for rounding


def race(module: nn.Module, images: Tensor, precisions: Sequence[torch.dtype] = PRECISIONS) -> Forms:
    """Try every precision on `images` (N, C, H, W), a batch like those that will come; the fastest wins.

    A form that answers differently from the network, or for which this processor has no kernels,
    does not enter. A network whose code cannot be followed step by step runs as it is.
    """
    with torch.inference_mode():
        exact = _exact(module, images)
        fastest, best = exact, _seconds(exact, images)
        for dtype in precisions:
            if dtype != torch.float32 and len(exact) > 1:
                with contextlib.suppress(UnsupportedModelError, RuntimeError):  # no such kernel
                    form = fuse(module, images, _kernel(dtype), dtype)
                    seconds = _seconds(form, images)
                    if WORTHWHILE * seconds < best:
                        fastest, best = form, seconds
    return Forms(fastest, exact)


def _exact(module: nn.Module, images: Tensor) -> Steps:
    try:
        form = fuse(module, images, _kernel(torch.float32), torch.float32)
        wanted = private_copy(module)(images)
        found = form.finish(form.enter(images), 0)
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
        form.finish(form.enter(images), 0)
        taken.append(time.thread_time() - start)
    return min(taken[1:])


def doubt(fast: Tensor, exact: Tensor) -> float:
    """How far margins may be off, per unit of the mean size of logits, seen on some images (M, K)."""
    return largest_error(fast, exact) / max(_size(fast), 1e-9)


def settle(logits: Tensor, exactly: Callable[[Tensor], Tensor], doubt: float) -> Tensor:
    """Logits (N, K) in which every close call is float32's.

    A call is close where the two largest logits lie no further apart than errors may be: `doubt`
    times the mean size of the logits at first. `exactly` gives the float32 logits of the images at
    an index (M,). Where these show larger errors than were allowed for, more calls become close.
    """
    settled, open_ = logits.clone(), torch.ones(len(logits), dtype=torch.bool)
    allowed = doubt * _size(logits)
    while True:
        close = (open_ & ~(margins(logits) > allowed)).nonzero()[:, 0]  # NaN is a close call
        if not len(close):
            return settled
        settled[close] = exactly(close)
        open_[close] = False
        allowed = max(allowed, SAFETY * largest_error(logits[close], settled[close]))


def _size(logits: Tensor) -> float:
    return logits.abs().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).mean().item()


def margins(logits: Tensor) -> Tensor:
    """The largest logit less the second largest, (N,); infinite where there is one class."""
    if logits.shape[1] < 2:
        return torch.full((len(logits),), torch.inf)
    top = logits.topk(2, 1).values
    return top[:, 0] - top[:, 1]


def largest_error(fast: Tensor, exact: Tensor) -> float:
    """The most that any margin in `fast` (N, K) differs from the same margin in `exact`."""
    top = fast.topk(min(2, fast.shape[1]), 1)
    error = exact.gather(1, top.indices) - top.values  # (N, 2)
    return (error[:, 0] - error[:, -1]).abs().nan_to_num(nan=0.0).amax().item() if len(fast) else 0.0
