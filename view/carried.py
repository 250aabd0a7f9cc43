"""What a recipe made of a network, measured on the test pictures: carried out once for all readers."""

import pandas as pd
from torch import nn

from core import outcome
from core.bundles import Setting
from core.cost import latency
from core.diagnosis import DIAGNOSTICS
from core.figure import Figure
from core.lab import LABS
from core.outcome import Outcome
from core.recipe import Recipe
from core.run import Run, seeded
from core.weights import load_dataset
from view import engine
from view.shared import shared
from view.url import method_from_text

TIMED = 64  # pictures in the batch that is timed
ROUNDS = 5

Diagnosed = tuple[pd.DataFrame, tuple[Figure, ...]]


@shared(6)
def carry_out(key: str, recipe: Recipe, _run: Run) -> Outcome:
    """Compress network `key` and measure both; a reader who leaves stops it, and nothing is kept."""
    bundle = engine.bundle(key)
    with engine.slot():
        return outcome.carry_out(bundle, load_dataset(bundle.dataset), recipe, run=_run, figures=True)


@shared(6)
def timed(key: str, recipe: Recipe, _network: nn.Module) -> pd.DataFrame:
    """Rows "original" and "compressed" of `core.cost.latency`, of `_network`, which `recipe` made."""
    bundle = engine.bundle(key)
    images = load_dataset(bundle.dataset).test.take(slice(TIMED)).images
    with engine.slot():
        return latency({"original": bundle.module, "compressed": _network}, images, ROUNDS)


@shared(16)
def diagnose(key: str, recipe: Recipe, asked: str, _network: nn.Module, _run: Run) -> Diagnosed:
    """What the diagnostic that `asked` is the text of says of `_network`, which `recipe` made."""
    diagnostic = method_from_text(asked, DIAGNOSTICS)
    with engine.slot(), seeded(recipe.seed, _run):
        table = diagnostic.measure(engine.bundle(key).module, _network, setting(key), _run)
    return table, tuple(diagnostic.figures(table))


@shared(24)
def experiment(key: str, asked: str, seed: int, _run: Run) -> tuple[Figure, ...]:
    """What the lab that `asked` is the text of shows of network `key`."""
    with engine.slot(), seeded(seed, _run):
        return tuple(method_from_text(asked, LABS).figures(setting(key), _run))


def setting(key: str) -> Setting:
    """All that a method may look at."""
    bundle = engine.bundle(key)
    data = load_dataset(bundle.dataset)
    return Setting(data.train, data.validation, bundle.module)
