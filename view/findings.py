"""The measured result that the Start page opens with."""

from dataclasses import dataclass

import numpy as np

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.plan import Plan
from core.run import Run
from core.whatif import Answer
from view import maps
from view.engine import Scene

SPARSITY = 0.5  # of single weights, the smallest anywhere
CHANNELS = 0.3  # of every group: about as many weights, since a layer loses inputs and outputs
COMPARED = 8  # pictures whose maps are compared


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
