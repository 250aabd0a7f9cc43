"""The engine as the pages use it: loaded once, shared read-only by all readers, bounded."""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from core.bundles import DATASETS, DatasetBundle, ModelBundle, Split
from core.errors import CheckpointError, UnknownNameError, UserError
from core.plan import Plan
from core.registry import unknown
from core.weights import Shipped, load_dataset, load_model, shipped
from core.whatif import Slider, WhatIf
from view.pictures import picture
from view.shared import shared
from view.state import state
from view.url import Nouns

CORES = os.cpu_count() or 1


@shared()
def _slots() -> threading.BoundedSemaphore:
    """Room for as many evaluations at a time as there are cores; torch's threads are set here, once."""
    torch.set_num_threads(max(1, CORES // 2))
    return threading.BoundedSemaphore(CORES)


@contextlib.contextmanager
def slot() -> Iterator[None]:
    """Hold one of the places for heavy work; the rest of the readers' requests wait their turn."""
    with _slots():
        yield


@shared()
def shelf() -> dict[str, Shipped]:
    """Key as it stands in links -> trained weights that come with the program, the default first."""
    return {each.path.stem: each for each in shipped()}


@shared(8)
def bundle(key: str) -> ModelBundle:
    return load_model(shelf()[key].model, shelf()[key].dataset, shelf()[key].path)


@shared(4)
def whatif(key: str) -> WhatIf:
    data = load_dataset(bundle(key).dataset)
    _slots()  # sets torch's threads before the first computation
    return WhatIf(bundle(key), data, data.test)


@shared(2)
def rehearsal(key: str) -> WhatIf:
    """The same on validation pictures: choices are made here, and reported on test pictures."""
    data = load_dataset(bundle(key).dataset)
    return WhatIf(bundle(key), data, data.validation)


@shared(8)
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
    """ "resnet20--cluttered-digits" -> "ResNet-20 · Cluttered digits"; "mlp-24--digits" -> "MLP-24 · ..."."""
    each = shelf()[key]
    member = key.partition("--")[0].removeprefix(each.model.name)  # of its family, where its file says which
    return f"{each.model.label()}{member} · {DATASETS[each.dataset].label()}"


def chosen() -> str:
    """The key of the network that the nouns name, as they are at this moment."""
    return state().nouns.model or next(iter(shelf()))


def scene() -> Scene:
    """The scene of the present nouns. A noun that stands for nothing gives the default and a notice.

    Raises:
        CheckpointError: the program has come without trained networks.
    """
    if not shelf():
        raise CheckpointError(
            "assets/weights: must hold a trained network, got none; make one with cli.py train"
        )
    nouns, problems = state().nouns, []
    engine, nouns = _network(nouns, problems)
    key = nouns.model or next(iter(shelf()))
    try:
        plan = Plan.from_text(nouns.plan, engine.sliders) if nouns.plan else Plan()
    except UserError as error:
        problems.append(str(error))
        plan, nouns = Plan(), replace(nouns, plan="")
    try:
        sliders = engine.sliders(plan.question)
    except UserError as error:  # channels that cannot be followed: single weights always have sliders
        problems.append(str(error))
        plan = Plan("weights")
        sliders, nouns = engine.sliders("weights"), replace(nouns, plan=plan.to_text(engine.sliders))
    data = load_dataset(bundle(key).dataset)
    if nouns.image >= len(data.test):
        problems.append(f"there are {len(data.test):,} pictures, so none is #{nouns.image:,}")
        nouns = replace(nouns, image=0)
    if problems:
        state().history.now = nouns
        state().notice = f"Something in this link is unknown, so the default is shown: {'; '.join(problems)}."
    return Scene(key, bundle(key), data, engine, plan, sliders, nouns.image)


def default() -> Scene:
    """The scene of the default network with nothing removed."""
    key = next(iter(shelf()))
    engine, data = whatif(key), load_dataset(bundle(key).dataset)
    return Scene(key, bundle(key), data, engine, Plan(), engine.sliders(Plan().question), 0)


def _network(nouns: Nouns, problems: list[str]) -> tuple[WhatIf, Nouns]:
    """The engine of the named network; of the default one where that is unknown or its data are not here."""
    default = next(iter(shelf()))
    try:
        if nouns.model and nouns.model not in shelf():
            raise UnknownNameError(unknown("network", nouns.model[:60], shelf()))
        return whatif(nouns.model or default), nouns
    except UserError as error:
        problems.append(str(error))
        return whatif(default), replace(nouns, model="", plan="", image=0)
