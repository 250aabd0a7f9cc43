"""A network as attribution methods meet it: prepared once, shared by all threads, changed by none."""

import contextlib
import hashlib
import math
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from core import workers
from core.memory import Memory
from core.preparation import fold, isolate, rewrite
from core.run import Run

BATCH_PIXELS = 32 * 32 * 32  # height x width x pictures of one pass: its activations stay in the cache
SMALLEST_BATCH = 4  # however large the pictures
KEPT_COPIES = 2  # for hooks, while nobody uses them
KEPT_RELATIVES = 2
REMEMBERED_BYTES = 64 << 20  # of all networks together; a map of 3 x 32 x 32 has 12 kB

T, R = TypeVar("T"), TypeVar("R")
_REMEMBERED: Memory[Tensor] = Memory(REMEMBERED_BYTES, lambda each: each.nbytes)
_PREPARED: "weakref.WeakKeyDictionary[nn.Module, Prepared]" = weakref.WeakKeyDictionary()
_PREPARING = threading.Lock()


class Prepared:
    """Gives logits, gradients, and private copies for hooks; remembers what it was asked before.

    Passes run on the workers in batches that fit the cache, float32 throughout, through a form with
    batch norms folded. Hooks have copies of their own, in which every layer is as it was.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        """Use `Prepared.of`, which does this once per network; `example` (1, C, H, W) checks the copy."""
        self._signature = _signature(model)
        self._token = object()  # stands for this network in what is remembered
        self._network = rewrite(model, example)
        self._folded = fold(self._network)
        self._copies: list[nn.Module] = []
        self._relatives: Memory[nn.Module] = Memory(KEPT_RELATIVES)
        self._lock = threading.Lock()

    @classmethod
    def of(cls, model: nn.Module, example: Tensor) -> Self:
        """`model` prepared: made on first use, and again once a weight has changed.

        Raises:
            UnsupportedModelError: no copy answers `example` as the network does.
        """
        signature = _signature(model)
        found = _PREPARED.get(model)
        if found is None or found._signature != signature:
            with _PREPARING:
                found = _PREPARED.get(model)
                if found is None or found._signature != signature:
                    found = _PREPARED[model] = cls(model, example)
        return found

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, K) of `images` (N, C, H, W), without gradients."""
        return torch.cat([*_each(self._logits, images.split(_batch(len(images), images)))])

    def _logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self._folded(images.contiguous(memory_format=torch.channels_last))

    def gradient(self, images: Tensor, targets: Tensor) -> Tensor:
        """How the logits `targets` (N,) change with `images` (N, C, H, W), like these; remembered."""

        def compute(index: Tensor) -> Tensor:
            parts = index.split(_batch(len(index), images))
            return torch.cat([*_each(lambda part: self._gradient(images[part], targets[part]), parts)])

        return self.remember("gradient", images, targets, compute)

    def gradients(
        self, points: Callable[[T], Tensor], places: Sequence[T], targets: Tensor, run: Run
    ) -> Iterator[Tensor]:
        """For every place in turn the gradient (N, C, H, W) of the logits `targets` (N,) at `points(place)`.

        Points are made when their turn comes, and several places share a pass.
        """
        count = max(1, _batch(len(places) * len(targets), points(places[0])) // len(targets))

        def differentiate(some: Sequence[T]) -> tuple[Tensor, ...]:
            stacked = torch.cat([points(place) for place in some])
            return self._gradient(stacked, targets.repeat(len(some))).split(len(targets))

        parts = [places[start : start + count] for start in range(0, len(places), count)]
        for done, found in enumerate(_each(differentiate, parts), start=1):
            yield from found
            run.report(done / len(parts), "Gradients")

    def _gradient(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            images = images.detach().clone(memory_format=torch.channels_last).requires_grad_()
            explained = self._folded(images).gather(1, targets[:, None]).sum()
            return torch.autograd.grad(explained, images)[0]

    def at_once(self, images: Tensor) -> int:
        """How many variants of each of `images` a call should bring, so that no worker waits."""
        return max(1, 2 * workers.COUNT * _largest_batch(images) // len(images))

    @contextlib.contextmanager
    def private(self) -> Iterator[nn.Module]:
        """Lend a copy for hooks that nobody else has; one in which an error was raised is dropped."""
        with self._lock:
            network = self._copies.pop() if self._copies else None
        network = network or isolate(self._network)
        yield network
        with self._lock:
            if len(self._copies) < KEPT_COPIES:
                self._copies.append(network)

    def forget(self) -> None:
        """What was remembered of this network is computed anew."""
        self._token = object()

    def relative(self, name: Hashable, make: Callable[[], nn.Module]) -> nn.Module:
        """A network made from this one, such as one with random weights; the last ones are kept."""
        found = self._relatives.get(name) or make()
        self._relatives.put(name, found)
        return found

    def remember(
        self, what: Hashable, images: Tensor, targets: Tensor, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`what` of every image and target: a stack (N, ...) of which only missing entries are computed.

        `compute` is given the indices (M,) of those, and returns their stack (M, ...).
        """
        asked = zip(map(_digest, images), targets.tolist(), strict=True)
        keys = [(self._token, what, *each) for each in asked]
        held = [_REMEMBERED.get(key) for key in keys]
        missing = [index for index, value in enumerate(held) if value is None]
        if missing:
            for index, value in zip(missing, compute(torch.tensor(missing)), strict=True):
                held[index] = value.detach().clone()
                _REMEMBERED.put(keys[index], held[index])
        return torch.stack(held)


def _each(function: Callable[[T], R], parts: Sequence[T]) -> Iterator[R]:
    """On the workers, in order; a single part is done here and now."""
    return workers.each(function, parts) if len(parts) > 1 else map(function, parts)


def _batch(count: int, images: Tensor) -> int:
    """How many of `count` pictures like `images` go through the network together: alike for all workers."""
    rounds = math.ceil(count / (workers.COUNT * _largest_batch(images)))
    return max(1, math.ceil(count / (workers.COUNT * rounds)))


def _largest_batch(images: Tensor) -> int:
    return max(SMALLEST_BATCH, BATCH_PIXELS // (images.shape[2] * images.shape[3]))


def _digest(image: Tensor) -> tuple[Any, ...]:
    """Equal for equal pictures (C, H, W) and, for all that can be known, for no others."""
    content = image.detach().cpu().contiguous().numpy()
    return tuple(image.shape), hashlib.blake2b(content, digest_size=16).digest()


def _signature(model: nn.Module) -> tuple[Any, ...]:
    """Changes when a weight or buffer is replaced or written to."""
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
