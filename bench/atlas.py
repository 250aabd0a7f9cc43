"""Every layer at nine sparsities: one fresh engine's atlas against one plain evaluation after the other."""

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import Tensor

from bench.settings import setting
from bench.sliders import QUESTION, Peer, removed_filters
from bench.subjects import Subject, start
from core.atlas import Atlas
from core.sliders import Slider


@dataclass(frozen=True)
class Survey:
    """One atlas, and how long it took to its first complete version, on few images, and to its last."""

    atlas: Atlas
    first_n: int
    first_s: float
    s: float


def survey(subject: Subject) -> Survey:
    """A fresh engine's atlas; nothing is found on disk."""
    with tempfile.TemporaryDirectory() as empty, setting("PRUNESCOPE_CACHE", empty):
        engine, begun, seen = start(subject), time.perf_counter(), []
        for atlas in engine.atlas(QUESTION):
            if atlas.complete:
                seen.append((atlas, time.perf_counter() - begun))
    (first, first_s), (last, s) = seen[0], seen[-1]
    return Survey(last, first.n, first_s, s)


def summary(surveys: Sequence[Survey], plain: Sequence[float], one_thread: Sequence[float]) -> dict[str, Any]:
    """Medians over `surveys`, against one plain evaluation per measured layer, scaled to all cells."""
    took, cells = median(found.s for found in surveys), surveys[0].atlas.hits.numel()
    naive, naive_one_thread = (cells * sum(values) / len(values) for values in (plain, one_thread))
    return {
        "atlas_ratio": naive / took,
        "atlas_ratio_one_thread": naive_one_thread / took,
        "atlas_s": took,
        "atlas_first_s": median(found.first_s for found in surveys),
        "atlas_first_images": surveys[0].first_n,
        "atlas_cells": cells,
        "atlas_rounds": len(surveys),
        "naive_atlas_s": naive,
        "naive_atlas_one_thread_s": naive_one_thread,
        "naive_atlas_is": f"{len(plain)} plain evaluations, one per layer, scaled to {cells} cells",
    }


def equal_cells(atlas: Atlas, sliders: Sequence[Slider], peer: Peer, labels: Tensor, count: int) -> int:
    """How many of `count` cells, drawn by lot, have the hits that the plain way counts; `labels` (N,)."""
    lot, equal = random.Random(0), 0
    for _ in range(count):
        row, column = (lot.randrange(size) for size in atlas.hits.shape)
        _, classes = peer.ask("plain", removed_filters(atlas.plan(row, column), sliders))
        equal += int((classes == labels.numpy()).sum()) == int(atlas.hits[row, column])
    return equal
