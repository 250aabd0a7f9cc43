"""The measured result that the Start page opens with."""

from dataclasses import dataclass

import numpy as np
import streamlit as st

from core.attribution import ATTRIBUTIONS
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


@st.cache_resource(show_spinner=False, max_entries=4)
def finding(key: str, _scene: Scene) -> Finding:
    """Zero the weights of smallest magnitude anywhere in the network `key`, and compare."""
    plan = _scene.whatif.preset("global", "weights", CRITERIA[CRITERION](), SPARSITY)
    answer = _scene.whatif.exact(plan)
    found = maps.gallery(_scene, plan, ATTRIBUTIONS[maps.DEFAULT](), COMPARED, Run())
    place, a, b, _ = found[0]
    return Finding(plan, answer, place, a, b, tuple(score for *_, score in found))
