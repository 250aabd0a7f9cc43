"""The largest rate of multiply-adds that this machine shows: big matrix products, one thread a worker."""

from collections.abc import Callable
from itertools import product
from time import perf_counter

import torch
from torch import Tensor

from core import workers

SIDES = (512, 1024, 2048)  # of square matrices: the best one differs between processors
FLOPS = 4e9  # per worker and measurement, some 50 ms

Multiply = Callable[[Tensor, Tensor], Tensor]


def gemm_rate(dtype: torch.dtype) -> float:
    """FLOP per second of all workers together, at the best side and with the best library."""
    return max(_rate(multiply, side, dtype) for multiply, side in product(libraries(), SIDES))


def libraries() -> list[Multiply]:
    """a @ b.t() as torch does it and, where torch was built with it, as oneDNN does."""
    found: list[Multiply] = [lambda a, b: torch.mm(a, b.t())]
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found.append(lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return found


def _rate(multiply: Multiply, side: int, dtype: torch.dtype) -> float:
    repeats = max(1, round(FLOPS / (2 * side**3)))
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))

    @torch.inference_mode()
    def work(worker: int) -> None:
        for _ in range(repeats):
            multiply(left, right)

    start = perf_counter()
    list(workers.each(work, range(workers.COUNT)))
    return workers.COUNT * repeats * 2 * side**3 / (perf_counter() - start)
