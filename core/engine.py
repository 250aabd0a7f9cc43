"""Runs one network over one set of images with any of its weights gone, as fast as this machine can.

The network runs in its fastest form, chunk by chunk on the workers, and from the step on where a plan
begins to differ from one that was walked before. Whatever runs here is shared and never changed.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from core import workers
from core.bundles import Split
from core.cutting import TensorMasks
from core.memory import Memory, Path, PrefixMemory, fork
from core.precision import PRECISIONS, Calls, doubt, race, settle
from core.run import Run
from core.steps import GATES, Step
from core.strata import Strata

PREFIX_BYTES = 400 << 20  # activations that are remembered, at most
PREFIX_SHARE = 4  # and so many times what the images themselves take in float32: a few layers' worth
STEPS_BYTES = 16 << 20  # weights of changed steps, laid out for the processor, that are remembered
RECENT = 16  # paths that a new one is compared with
CALIBRATION = 200  # images on which the error of less precision is looked at first
TOGETHER = 20  # chunks whose activations are held at a time while many routes are run


@dataclass(frozen=True)
class Route:
    """A plan as the engine walks it."""

    masks: dict[int, TensorMasks]  # step -> what stays of its weights
    changed: dict[int, Step]  # the same steps, ready to run
    path: Path  # how to recognise them
    start: int  # the step where it leaves the closest path walked before

    @property
    def first(self) -> int:
        """The step where it leaves the original's path."""
        return min(self.changed, default=0)


class Engine:
    """One network, one set of images; safe to share between threads.

    Images have *places*: their position in `order`, in which every beginning represents the whole.
    """

    def __init__(
        self,
        module: nn.Module,
        split: Split,
        classes: int,
        chunk: int,
        run: Run,
        precisions: Sequence[torch.dtype] = PRECISIONS,
    ) -> None:
        """Runs the original once over all images of `split`, `chunk` at a time."""
        self.chunk = chunk
        self.classes = classes
        self._module = module
        self._split = split
        self._prefixes = PrefixMemory(min(PREFIX_BYTES, PREFIX_SHARE * 4 * split.pixels.numel()))
        self._steps: Memory[Step] = Memory(STEPS_BYTES, lambda step: step.size_bytes)
        self._recent: deque[Path] = deque(maxlen=RECENT)
        self._lock = threading.Lock()
        some = split.pixels[:chunk] if len(split) else split.pixels.new_zeros(1, *split.pixels.shape[1:])
        (self._forms,) = workers.each(partial(race, module, precisions=precisions), [split.normalise(some)])
        self._doubt = 0.0
        self.order = torch.arange(len(split))  # (N,) positions in the split
        self.original = self._run_original(run)  # (N, K) logits, in the order of the split
        self.strata = Strata(self.original, split.labels)
        self.order = self.strata.order
        self.labels = split.labels[self.order]  # (N,), by place

    @property
    def words(self) -> str:
        """The form in which the network runs, for a person."""
        return self._forms.fast.words

    @property
    def is_exact(self) -> bool:
        """Whether the fastest form is the exact one, so that nothing is left to be settled."""
        return self._forms.fast is self._forms.exact

    def route(self, masks: TensorMasks) -> Route:
        """The way of a network with zeros where `masks` is False."""
        touched, changed = self._forms.fast.touched(masks), {}
        path = tuple((index, _digest(here)) for index, here in touched.items())
        for key in path:
            index = key[0]
            changed[index] = self._steps.get(key) or self._forms.fast.steps[index].masked(touched[index])
            self._steps.put(key, changed[index])
        with self._lock:
            forks = [fork(path, other) for other in ((), *self._recent)]
        return Route(touched, changed, path, max((step for step in forks if step is not None), default=0))

    def forward(self, route: Route, begin: int, end: int) -> Iterator[Tensor]:
        """Logits (n, K) of the images at places [begin, end), chunk by chunk; `begin` starts a chunk.

        What was alive where the route leaves the closest earlier one is remembered: the next route
        is likely to leave this one at the same step.
        """
        with self._lock:
            if route.path not in self._recent:
                self._recent.append(route.path)

        @torch.inference_mode()
        def run(chunk: int) -> Tensor:
            at, values = self._prefixes.nearest(chunk, route.start, route.path) or (0, self._enter(chunk))
            if at < route.start:
                values = self._forms.fast.run(values, at, route.start, route.changed)
                self._prefixes.put(chunk, route.start, route.path, values)
            return self._forms.fast.finish(values, route.start, route.changed)

        return workers.each(run, self._chunks(begin, end))

    def branches(self, routes: Sequence[Route], begin: int, end: int) -> Iterator[tuple[int, int, Tensor]]:
        """(number of the route, place, logits) of many routes, a chunk at a time.

        The way of the original is walked once; every route leaves it where it begins to differ.
        """
        fast, chunks = self._forms.fast, self._chunks(begin, end)
        numbers = sorted(range(len(routes)), key=lambda number: routes[number].first)
        ways: dict[int, tuple[int, Any]] = {}  # chunk -> step and what is alive before it

        @torch.inference_mode()
        def run(item: tuple[int, int]) -> tuple[int, int, Tensor]:
            number, chunk = item
            route = routes[number]
            at, values = ways.get(chunk, (route.first + 1, None))
            if at > route.first:
                at, values = 0, self._enter(chunk)
            if at < route.first:
                values = fast.run(values, at, route.first)
                ways[chunk] = route.first, values
            return number, chunk * self.chunk, fast.finish(values, route.first, route.changed)

        for group in (chunks[i : i + TOGETHER] for i in range(0, len(chunks), TOGETHER)):
            ways.clear()
            yield from workers.each(run, ((number, chunk) for number in numbers for chunk in group))

    def gated(self, modules: Collection[str], plays: Iterable[tuple[int, Tensor]]) -> Iterator[Tensor]:
        """Logits (T, n, K) of the n images of a chunk under T gates, for every (chunk, gates) of `plays`.

        Gates (T, n, O) multiply the outputs of `modules`, a layer and the batch norm behind it, image by
        image. What comes before them is computed once for all T.
        """
        steps, first = self._forms.fast.gated(modules)
        start = max(first - 1, 0)  # up to here it is the original's way

        @torch.inference_mode()
        def run(play: tuple[int, Tensor]) -> Tensor:
            chunk, gates = play
            at, values = self._prefixes.nearest(chunk, start, ()) or (0, self._enter(chunk))
            if at < start:
                values = steps.run(values, at, start)
                self._prefixes.put(chunk, start, (), values)
            values = steps.run(values, start, first)
            return torch.stack([steps.finish({**values, GATES: some}, first) for some in gates])

        return workers.each(run, plays)

    def close_calls(self, route: Route, calls: Calls) -> Iterator[tuple[Tensor, Tensor]]:
        """(places (M,), float32 logits (M, K)) of those of the first n images that are close calls."""
        return iter(()) if self.is_exact else settle(calls, self._exactly(route), self._doubt)

    def settled(self, route: Route, logits: Tensor) -> Tensor:
        """`logits` (n, K) of the first places with float32's in the place of every close call."""
        logits = logits.clone()
        for places, exact in self.close_calls(route, Calls.of(logits)):
            logits[places] = exact
        return logits

    def digest(self) -> "blake2b":
        """Begins with all that decides an answer besides the route: the network and the images."""
        found = blake2b(f"{self._module}{self._split.mean}{self._split.std}".encode(), digest_size=20)
        tensors = {**self._module.state_dict(), "pixels": self._split.pixels, "labels": self._split.labels}
        tensors["answers"] = self.original.argmax(1)  # code that is not in the module's outline shows here
        for name, value in tensors.items():
            found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.detach().contiguous().numpy().tobytes())
        return found

    def _run_original(self, run: Run) -> Tensor:
        route, whole, parts, done = Route({}, {}, (), 0), len(self._split), [torch.empty(0, self.classes)], 0
        for part in self.forward(route, 0, whole):
            parts.append(part)
            done += len(part)
            run.report(done / whole, "Running the original")
        logits = torch.cat(parts)
        if not self.is_exact and whole:
            some = torch.arange(whole)[:: max(1, whole // CALIBRATION)]
            self._doubt = doubt(Calls.of(logits), some, self._exactly(route)(some))
        return self.settled(route, logits)

    def _exactly(self, route: Route) -> Callable[[Tensor], Tensor]:
        """Places (M,) -> float32 logits (M, K), with weights that are laid out once."""
        exact = self._forms.exact
        changed = {index: exact.steps[index].masked(masks) for index, masks in route.masks.items()}

        @torch.inference_mode()
        def run(part: Tensor) -> Tensor:
            filled = torch.cat([part, part[-1:].expand(self._batch(len(part)) - len(part))])
            return exact.finish(exact.enter(self._images(filled)), 0, changed)[: len(part)]

        def exactly(places: Tensor) -> Tensor:
            size = min(self.chunk, -(-len(places) // workers.COUNT))  # a part for every worker
            return torch.cat(list(workers.each(run, places.split(size))))

        return exactly

    def _batch(self, count: int) -> int:
        """The least power of two that holds `count` images, or a chunk: every size has kernels of its own."""
        return min(self.chunk, 1 << (count - 1).bit_length())

    def _enter(self, chunk: int) -> Any:
        return self._forms.fast.enter(self._images(slice(chunk * self.chunk, (chunk + 1) * self.chunk)))

    def _images(self, places: Tensor | slice) -> Tensor:
        return self._split.normalise(self._split.pixels[self.order[places]])

    def _chunks(self, begin: int, end: int) -> range:
        return range(begin // self.chunk, -(-end // self.chunk))


def _digest(masks: TensorMasks) -> bytes:
    """The same for the same masks, and for no others."""
    digest = blake2b(digest_size=16)
    for place, keep in sorted(masks.items(), key=lambda item: item[0]):
        digest.update(f"{place}{tuple(keep.shape)}".encode())
        digest.update(keep.numpy().tobytes())
    return digest.digest()
