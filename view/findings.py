"""The measured results that the Start page opens with."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.agreement import agreement
from core.attribution import ATTRIBUTIONS, AttributionMethod, channel_sum
from core.drift import shipped, shipped_network
from core.plan import Plan
from core.run import Run
from core.whatif import Answer
from view import maps
from view.engine import Scene
from view.shared import computed

SPARSITY = 0.5  # of single weights, the smallest anywhere
CHANNELS = 0.3  # of every group: about as many weights, since a layer loses inputs and outputs
COMPARED = 8  # pictures whose maps are compared
SEARCHED = 16  # pictures among which the surprise is found


@dataclass(frozen=True, eq=False)
class Surprise:
    """A picture that three networks answer alike, and whose reason only one of two trainings kept."""

    place: int
    maps: tuple[np.ndarray, ...]  # of the original, of the naively trained network, of the matched one
    scores: tuple[float, float]  # rank correlation of the latter two with the first
    searched: int  # pictures that all three answer alike, among those looked at
    rows: tuple[pd.Series, ...]  # what was measured of all three on all test pictures


@dataclass(frozen=True, eq=False)
class Finding:
    """What becomes of answers and reasons when half of the weights go, in two ways."""

    plan: Plan  # single weights become zero
    answer: Answer
    channels: Answer  # whole channels are removed instead
    place: int  # of the picture whose maps differ most
    a: np.ndarray  # its map in the original, (H, W)
    b: np.ndarray  # its map in the pruned network
    scores: tuple[float, ...]  # rank correlation of the maps of each compared picture


def method() -> AttributionMethod:
    """Coarse enough to be quick on any machine."""
    return ATTRIBUTIONS["integrated-gradients"](steps=16)


@computed(1)
def surprise(key: str, *, scene: Scene, run: Run) -> Surprise | None:
    """Of the pictures looked at, the one where matching kept most that naive training lost."""
    records = shipped()
    gone = records.sparsity.max()
    rows = tuple(
        records[(records.training == way) & (records.sparsity == (0.0 if way == "original" else gone))].iloc[
            0
        ]
        for way in ("original", "naive", "matched")
    )
    networks = [scene.bundle.module, *(shipped_network(way, gone).module for way in ("naive", "matched"))]
    places = list(range(SEARCHED))
    said = [maps.logits(scene, network, places).argmax(1) for network in networks]
    alike = [place for place in places if len({int(each[place]) for each in said}) == 1]
    if not alike:
        return None
    targets, found = said[0][alike], []
    for index, network in enumerate(networks):
        with run.step(index, len(networks)):
            found.append(maps.maps(scene, network, method(), alike, targets, run))
    scores = [agreement(found[0], each).spearman.nan_to_num() for each in found[1:]]
    best = int((scores[1] - scores[0]).argmax())
    drawn = tuple(channel_sum(each)[best].numpy() for each in found)
    return Surprise(alike[best], drawn, (scores[0][best].item(), scores[1][best].item()), len(alike), rows)


def finding(scene: Scene, run: Run) -> Finding:
    """Zero the smallest weights in the network of `scene`; remove its smallest channels; compare.

    Answers and maps are remembered by those who compute them, so the second visit is quick.
    """
    plan = scene.whatif.preset("global", "weights", None, SPARSITY)
    other = scene.whatif.preset("uniform", "remove", None, CHANNELS)
    with run.step(0, 3):
        *_, answer = scene.whatif.answer(plan, run)
    with run.step(1, 3):
        *_, channels = scene.whatif.answer(other, run)
    with run.step(2, 3):
        found = maps.gallery(scene, plan, method(), COMPARED, run)
    place, a, b, _ = found[0]
    return Finding(plan, answer, channels, place, a, b, tuple(score for *_, score in found))
