"""What a recipe made of a network, measured on the test pictures: carried out once for all readers."""

import pandas as pd
from torch import nn

from core import outcome
from core.bundles import Setting
from core.cost import latency
from core.diagnosis import Diagnostic
from core.figure import Figure
from core.lab import Lab
from core.layers import digest
from core.outcome import Outcome
from core.recipe import Recipe
from core.run import Run, seeded
from core.weights import load_dataset
from view import engine
from view.shared import computed

TIMED = 64  # pictures in the batch that is timed
ROUNDS = 5

Diagnosed = tuple[pd.DataFrame, tuple[Figure, ...]]


@computed(6)
def carry_out(key: str, recipe: Recipe, *, run: Run) -> Outcome:
    """Compress network `key` and measure both; a reader who leaves stops it, and nothing is kept."""
    bundle = engine.bundle(key)
    with engine.slot():
        return outcome.carry_out(bundle, load_dataset(bundle.dataset), recipe, run=run, figures=True)


def timed(key: str, network: nn.Module) -> pd.DataFrame:
    """Rows "original" and "compressed" of `core.cost.latency`."""
    return _timed(key, digest(network), network=network)


@computed(6)
def _timed(key: str, of: str, *, network: nn.Module) -> pd.DataFrame:
    bundle = engine.bundle(key)
    images = load_dataset(bundle.dataset).test.take(slice(TIMED)).images
    with engine.slot():
        return latency({"original": bundle.module, "compressed": network}, images, ROUNDS)


def diagnose(key: str, diagnostic: Diagnostic, network: nn.Module, seed: int, run: Run) -> Diagnosed:
    """What a diagnostic says of `network`, which network `key` became."""
    return _diagnosed(key, diagnostic, digest(network), seed, network=network, run=run)


@computed(16)
def _diagnosed(
    key: str, diagnostic: Diagnostic, of: str, seed: int, *, network: nn.Module, run: Run
) -> Diagnosed:
    with engine.slot(), seeded(seed, run):
        table = diagnostic.measure(engine.bundle(key).module, network, setting(key), run)
    return table, tuple(diagnostic.figures(table))


@computed(24)
def experiment(key: str, lab: Lab, seed: int, *, run: Run) -> tuple[Figure, ...]:
    """What a lab shows of network `key`."""
    with engine.slot(), seeded(seed, run):
        return tuple(lab.figures(setting(key), run))


def setting(key: str) -> Setting:
    """All that a method may look at."""
    bundle = engine.bundle(key)
    data = load_dataset(bundle.dataset)
    return Setting(data.train, data.validation, bundle.module)
