"""From calls in a network's code to affine layers with ReLUs between them, whoever wrote the code down."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair as pair

from core.errors import UnsupportedModelError

Affine = tuple[Tensor, Tensor]  # matrix (O, I), offset (O,)

LARGEST = 40_000_000  # numbers in one unrolled layer: 320 MB
LARGEST_NETWORK = 120_000_000  # in all of them


@dataclass(frozen=True, eq=False)
class Step:
    """One call in a network's code: `name` is what `make` gives of the values called `reads`.

    `make` is an affine function of batches (N, ...), or "relu", or a max pooling.
    """

    name: str
    reads: tuple[str, ...]
    make: Callable[..., Tensor] | str | nn.MaxPool2d
    keeps_sign: bool = False  # makes nothing negative of what is not


@dataclass(frozen=True, eq=False)
class _Value:
    """What a name stands for: an affine function of the ReLUs (N, H) last passed, or of the inputs."""

    function: Callable[[Tensor], Tensor]  # (N, H) -> (N, *shape)
    shape: torch.Size
    positive: bool = False  # never negative

    def flat(self, given: Tensor) -> Tensor:
        return self.function(given).flatten(1)

    def pick(self, places: Tensor) -> "_Value":
        """The numbers at `places` (M,) of all, laid out in a row."""
        return _Value(lambda h: self.flat(h)[:, places], places.shape, self.positive)


@torch.no_grad()
def assemble(given: str, steps: Sequence[Step], result: str, shape: torch.Size) -> list[Affine]:
    """The layers of `steps`, in order, from the value `given` (N, *shape) to the value `result`.

    Raises:
        UnsupportedModelError: it is too large.
    """
    last_read = {name: place for place, step in enumerate(steps) for name in step.reads}
    last_read[result] = len(steps)
    unrolling = _Unrolling(given, shape)
    for place, step in enumerate(steps):
        if step.name not in last_read:
            continue
        unrolling.take(step, {name for name, last in last_read.items() if last > place})
    return unrolling.end(result)


class _Unrolling:
    """The hidden layers so far, and the values of which something is still to be made."""

    def __init__(self, given: str, shape: torch.Size) -> None:
        self._layers: list[Affine] = []
        self._width = shape.numel()
        self._room = LARGEST_NETWORK
        self._values = {given: _Value(lambda h: h.view(len(h), *shape), shape)}

    def take(self, step: Step, later: AbstractSet[str]) -> None:
        """One more step; the values named in `later` are read behind it."""
        reads = [self._values[name] for name in step.reads]
        self._values = {name: value for name, value in self._values.items() if name in later}
        if step.make == "relu":
            (value,) = reads
            if not value.positive:  # otherwise it changes nothing
                (value,) = self._through(step.name, [value], [])
        elif isinstance(step.make, nn.MaxPool2d):
            value = self._pooled(step.name, reads[0], step.make)
        else:
            value = self._made(step, reads)
        self._values[step.name] = value

    def end(self, result: str) -> list[Affine]:
        return [*self._layers, self._matrix("the output", [self._values[result]])]

    def _made(self, step: Step, reads: list[_Value]) -> _Value:
        def function(given: Tensor) -> Tensor:
            return step.make(*(value.function(given) for value in reads))

        made = step.make(*(torch.zeros(1, *value.shape, dtype=torch.float64) for value in reads))
        positive = step.keeps_sign and all(value.positive for value in reads)
        return _Value(function, made.shape[1:], positive)

    def _pooled(self, name: str, value: _Value, pool: nn.MaxPool2d) -> _Value:
        """A knockout: in every layer half of those left in a window meet the other half."""
        windows, shape = _windows(value.shape, pool)
        left = [value.pick(places) for places in windows.T]
        while len(left) > 1:
            first, second, rest = left[::2], left[1::2], left[len(left) // 2 * 2 :]
            ahead = [_sum(a, b, -1.0) for a, b in zip(first, second, strict=False)]
            found = self._through(name, ahead, second + rest)
            pairs = zip(found[: len(ahead)], found[len(ahead) :], strict=False)
            left = [_sum(over, other) for over, other in pairs] + found[len(ahead) + len(second) :]
        return _Value(lambda h: left[0].flat(h).view(len(h), *shape), shape, left[0].positive)

    def _through(self, name: str, rectified: list[_Value], passed: list[_Value]) -> list[_Value]:
        """A hidden layer: ReLUs of `rectified`; `passed`, and what is read later, comes through as it is.

        What may be negative takes two ReLUs: v = relu(v) - relu(-v).
        """
        kept = [*passed, *self._values.values()]
        negated = [_Value(lambda h, v=v: -v.function(h), v.shape) for v in kept if not v.positive]
        entering = [*rectified, *kept, *negated]
        self._layers.append(self._matrix(name, entering))
        self._width = sum(value.shape.numel() for value in entering)
        ends = list(accumulate((value.shape.numel() for value in entering), initial=0))
        behind = [_slice(start, value.shape) for start, value in zip(ends, entering, strict=False)]
        minus = iter(behind[len(rectified) + len(kept) :])
        whole = [
            new if old.positive else _sum(new, next(minus), -1.0)
            for old, new in zip(kept, behind[len(rectified) :], strict=False)
        ]
        self._values = dict(zip(self._values, whole[len(passed) :], strict=True))
        return behind[: len(rectified)] + whole[: len(passed)]

    def _matrix(self, name: str, values: list[_Value]) -> Affine:
        """Column by column: what becomes of every input alone, less what becomes of nothing."""
        size = self._width * sum(value.shape.numel() for value in values)
        self._room -= size
        if size > LARGEST:
            raise unsupported(name, f"at most {LARGEST:,} numbers once unrolled", f"{size:,}")
        if self._room < 0:
            raise unsupported(name, f"in a network of at most {LARGEST_NETWORK:,} numbers", "a larger one")

        def flat(given: Tensor) -> Tensor:
            return torch.cat([value.flat(given) for value in values], 1)

        offset = flat(torch.zeros(1, self._width, dtype=torch.float64))
        matrix = torch.empty(offset.numel(), self._width, dtype=torch.float64)
        for start in range(0, self._width, 256):
            part = torch.eye(min(256, self._width - start), self._width, dtype=torch.float64)
            matrix[:, start : start + 256] = (flat(part.roll(start, 1)) - offset).T
        return matrix, offset[0]


def _sum(first: _Value, second: _Value, factor: float = 1.0) -> _Value:
    """first + factor * second; never negative where both are not and `factor` is 1."""
    positive = first.positive and second.positive and factor > 0
    return _Value(lambda h: first.function(h) + factor * second.function(h), first.shape, positive)


def _slice(start: int, shape: torch.Size) -> _Value:
    return _Value(lambda h: h[:, start : start + shape.numel()].reshape(len(h), *shape), shape, True)


def _windows(shape: torch.Size, pool: nn.MaxPool2d) -> tuple[Tensor, torch.Size]:
    """The places (M, K) in every window of a picture (C, H, W) laid out in a row, and (C, H', W')."""
    channels, height, width = shape
    rows, columns = (_window(side, pool, axis) for axis, side in enumerate((height, width)))
    plane = rows[:, None, :, None] * width + columns[:, None]  # (H', W', k, k)
    whole = torch.arange(channels)[:, None] * height * width + plane.flatten()
    windows = whole.view(-1, rows.shape[1] * columns.shape[1])
    return windows.unique(dim=1), torch.Size([channels, len(rows), len(columns)])


def _window(side: int, pool: nn.MaxPool2d, axis: int) -> Tensor:
    """The rows (columns) in every window, (windows, k); of the margin, one that is in the window anyway."""
    options = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    kernel, stride, margin, dilation = (pair(option)[axis] for option in options)
    room = side + 2 * margin - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if pool.ceil_mode else room // stride) + 1
    if pool.ceil_mode and (count - 1) * stride >= side + margin:
        count -= 1  # as torch does: no window begins in the far margin
    places = torch.arange(count)[:, None] * stride - margin + torch.arange(kernel) * dilation
    inside = places.where((places >= 0) & (places < side), -1)
    return inside.where(inside >= 0, inside.max(1, keepdim=True).values)


def unsupported(name: str, wanted: str, got: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"proof: {name} must be {wanted}, got {got}")
