"""The measured result that the Start page opens with."""

from dataclasses import dataclass

import numpy as np

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.criterion import CRITERIA
from core.plan import Plan
from core.run import Run
from core.whatif import Answer
from view import maps
from view.engine import Scene

SPARSITY = 0.5
CRITERION = "magnitude"
COMPARED = 8  # pictures whose maps are compared


@dataclass(frozen=True, eq=False)
class Finding:
    """What becomes of answers and reasons when most of the weights are gone."""

    plan: Plan
    answer: Answer
    place: int  # of the picture whose maps differ most
    a: np.ndarray  # its map in the original, (H, W)
    b: np.ndarray  # its map in the pruned network
    scores: tuple[float, ...]  # rank correlation of the maps of each compared picture

    @property
    def same(self) -> int:
        """How many pictures keep their answer, right or wrong."""
        return self.answer.n - len(self.answer.change.changed)


def method() -> AttributionMethod:
    """Coarse enough to be quick on any machine."""
    return ATTRIBUTIONS["integrated-gradients"](steps=16)


def finding(scene: Scene, run: Run) -> Finding:
    """Zero the weights of smallest magnitude anywhere in the network of `scene`, and compare.

    Answers and maps are remembered by those who compute them, so the second visit is quick.
    """
    plan = scene.whatif.preset("global", "weights", CRITERIA[CRITERION](), SPARSITY)
    with run.step(0, 2):
        *_, answer = scene.whatif.answer(plan, run)
    with run.step(1, 2):
        found = maps.gallery(scene, plan, method(), COMPARED, run)
    place, a, b, _ = found[0]
    return Finding(plan, answer, place, a, b, tuple(score for *_, score in found))
