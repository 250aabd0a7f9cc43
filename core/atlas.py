"""The atlas: every slider at every sparsity, each alone; where is the cliff, and which layer is to blame?"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from core.bundles import cache_directory
from core.criterion import Criterion
from core.engine import Engine, Route
from core.evaluation import answered, correct
from core.memory import Path as Way
from core.plan import Plan
from core.precision import Calls
from core.run import Run
from core.sliders import Sliders
from core.strata import tier_ends

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, eq=False)
class Atlas:
    """How many of the first n images are right when one of S sliders stands at one of G sparsities.

    While the first images are gone through, cells that are not known yet hold -1.
    """

    question: str
    criterion: Criterion
    sliders: tuple[str, ...]  # S names
    sparsities: tuple[float, ...]  # G fractions
    hits: Tensor  # (S, G) int64
    n: int
    exact: bool  # on all images, every one with the class that the float32 network gives it
    original_hits: int  # of the untouched network on the same images

    @property
    def complete(self) -> bool:
        """Whether every cell is known."""
        return bool((self.hits >= 0).all())

    @property
    def accuracy(self) -> Tensor:
        """(S, G) float64, in [0, 1]; NaN where it is not known yet."""
        return torch.where(self.hits < 0, torch.nan, self.hits.double() / max(self.n, 1))

    @property
    def change(self) -> Tensor:
        """(S, G) float64: accuracy less that of the untouched network on the same images."""
        return self.accuracy - self.original_hits / max(self.n, 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "question": self.question,
            "criterion": self.criterion.to_dict(),
            "n": self.n,
            "exact": self.exact,
            "original_accuracy": self.original_hits / max(self.n, 1),
            "sparsities": list(self.sparsities),
            "accuracy": dict(zip(self.sliders, self.accuracy.tolist(), strict=True)),
        }

    def plan(self, slider: int, level: int) -> Plan:
        """The plan of one cell."""
        return Plan(self.question, self.criterion, {self.sliders[slider]: self.sparsities[level]})


def survey(
    engine: Engine, sliders: Sliders, question: str, criterion: Criterion | None, run: Run
) -> Iterator[Atlas]:
    """Atlases on more and more images; the last is exact, and kept on disk. See `WhatIf.atlas`."""
    empty = Plan(question, criterion)
    names = tuple(slider.name for slider in sliders.sliders(question))
    plans = [empty.with_sparsity(name, sparsity) for name in names for sparsity in SPARSITIES]
    routes = [engine.route(sliders.masks(plan, run)) for plan in plans]
    original = correct(engine.original[engine.order], engine.labels)

    def atlas(hits: Tensor, n: int, exact: bool) -> Atlas:
        shaped, right = hits.view(len(names), len(SPARSITIES)), int(original[:n].sum())
        return Atlas(question, empty.criterion, names, SPARSITIES, shaped, n, exact, right)

    whole, file = len(engine.labels), _file(engine, routes)
    kept = _read(file, len(routes))
    if kept is not None:
        yield atlas(kept, whole, True)
        return
    for hits, n, exact in _measure(engine, routes, run):
        if exact:
            _write(file, hits)
        yield atlas(hits, n, exact)


def _measure(engine: Engine, routes: Sequence[Route], run: Run) -> Iterator[tuple[Tensor, int, bool]]:
    """(hits of every route (M,), images, whether these are all and settled)."""
    whole, done = len(engine.labels), 0
    share = 1.0 if engine.is_exact else 0.9  # of the progress; the rest is for settling close calls
    different = list({route.path: route for route in routes}.values())  # some cells take the same weights
    calls: dict[Way, list[Calls]] = {route.path: [] for route in different}
    answers: dict[Way, Tensor] = {}  # classes (n,) of the first images

    def count() -> Tensor:
        return torch.tensor([_right(engine, answers.get(route.path)) for route in routes])

    for end in tier_ends(whole, engine.chunk):
        gone, known = 0, len(answers)
        for number, place, logits in engine.branches(different, done, end):
            path = different[number].path
            calls[path].append(Calls.of(logits))
            gone += len(logits)
            run.report(share * (done + gone / len(different)) / whole, "Surveying")
            if place + len(logits) == end:
                answers[path] = Calls.join(calls[path]).answers
                if done == 0 and len(answers) >= known + len(SPARSITIES):
                    known = len(answers)
                    yield count(), end, False
        done = end
        yield count(), end, end == whole and engine.is_exact
    if not engine.is_exact:
        for index, route in enumerate(different):
            for places, exact in engine.close_calls(route, Calls.join(calls[route.path])):
                answers[route.path][places] = answered(exact)
            run.report(share + (1 - share) * (index + 1) / len(different), "Settling close calls")
        yield count(), whole, True


def _right(engine: Engine, answers: Tensor | None) -> int:
    if answers is None:
        return -1 if len(engine.labels) else 0
    return int((answers == engine.labels[: len(answers)]).sum())


# on disk


def _file(engine: Engine, routes: Sequence[Route]) -> Path:
    """Where the exact atlas of this content is kept."""
    digest = engine.digest()
    for route in routes:
        digest.update(repr(route.path).encode())
    return cache_directory() / "atlas" / f"{digest.hexdigest()}.safetensors"


def _read(file: Path, count: int) -> Tensor | None:
    """The hits in `file`; None where it is not there or damaged."""
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        hits = load(file.read_bytes())["hits"]
        return hits if hits.shape == (count,) and hits.dtype == torch.int64 else None
    return None


def _write(file: Path, hits: Tensor) -> None:
    """Keep it if that is possible; whoever reads meanwhile sees all of it or nothing."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(save({"hits": hits}))
        unfinished.replace(file)
