"""The engine as the pages use it: loaded once, shared read-only by all readers, bounded."""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import streamlit as st
import torch
from core.weights import Shipped, load_dataset, load_model, shipped
from torch import nn

from core.bundles import DATASETS, MODELS, DatasetBundle, ModelBundle, Split
from core.errors import UserError
from core.plan import Plan
from core.whatif import Slider, WhatIf
from view.pictures import picture
from view.state import state

CORES = os.cpu_count() or 1


@st.cache_resource(show_spinner=False)
def _slots() -> threading.BoundedSemaphore:
    """Room for as many evaluations at a time as there are cores; torch's threads are set here, once."""
    torch.set_num_threads(max(1, CORES // 2))
    return threading.BoundedSemaphore(CORES)


@contextlib.contextmanager
def slot() -> Iterator[None]:
    """Hold one of the places for heavy work; the rest of the readers' requests wait their turn."""
    with _slots():
        yield


@st.cache_resource(show_spinner=False)
def shelf() -> dict[str, Shipped]:
    """Key as it stands in links -> trained weights that come with the program, the default first."""
    return {f"{each.model}--{each.dataset}": each for each in shipped()}


@st.cache_resource(max_entries=8, show_spinner=False)
def bundle(key: str) -> ModelBundle:
    return load_model(shelf()[key].model, shelf()[key].dataset)


@st.cache_resource(max_entries=4, show_spinner=False)
def whatif(key: str) -> WhatIf:
    data = load_dataset(bundle(key).dataset)
    _slots()  # sets torch's threads before the first computation
    return WhatIf(bundle(key), data, data.test)


@st.cache_resource(max_entries=24, show_spinner=False)
def network(key: str, plan: Plan) -> nn.Module:
    """The compressed network of a plan: one copy for all pages and readers, changed by none."""
    return whatif(key).model(plan)


@dataclass(frozen=True, eq=False)
class Scene:
    """What the three nouns stand for."""

    key: str
    bundle: ModelBundle
    data: DatasetBundle
    whatif: WhatIf
    plan: Plan
    sliders: tuple[Slider, ...]
    image: int

    @property
    def split(self) -> Split:
        return self.data.test

    @property
    def untouched(self) -> bool:
        """The plan removes nothing."""
        return not self.plan.sparsities

    def picture(self, index: int) -> np.ndarray:
        """Test picture `index` as (H, W, 3) uint8."""
        return picture(self.split.pixels[index].numpy())

    def label(self, index: int) -> str:
        return self.data.classes[int(self.split.labels[index])]

    def network(self) -> nn.Module:
        return network(self.key, self.plan)


def title(key: str) -> str:
    """ "resnet20--cluttered-digits" -> "Resnet20 · Cluttered digits"."""
    each = shelf()[key]
    return f"{MODELS[each.model].label()} · {DATASETS[each.dataset].label()}"


def scene() -> Scene:
    """The scene of the present nouns. A noun that stands for nothing gives the default and a notice."""
    nouns, problems = state().nouns, []
    if nouns.model and nouns.model not in shelf():
        problems.append(f"no network is called {nouns.model[:60]!r}")
        nouns = replace(nouns, model="", plan="")
    key = nouns.model or next(iter(shelf()))
    engine = whatif(key)
    try:
        plan = Plan.from_text(nouns.plan, engine.sliders) if nouns.plan else Plan()
    except UserError as error:
        problems.append(str(error))
        plan, nouns = Plan(), replace(nouns, plan="")
    data = load_dataset(bundle(key).dataset)
    if nouns.image >= len(data.test):
        problems.append(f"there are {len(data.test):,} pictures, so none is #{nouns.image}")
        nouns = replace(nouns, image=0)
    if problems:
        state().history.now = nouns
        state().notice = f"This link names something unknown, so the default is shown: {'; '.join(problems)}."
    return Scene(key, bundle(key), data, engine, plan, engine.sliders(plan.question), nouns.image)
