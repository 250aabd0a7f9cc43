"""What a recipe made of a network, measured on the test pictures: carried out once for all readers."""

import pandas as pd
from torch import nn

from core import outcome
from core.bundles import Setting
from core.cost import latency
from core.diagnosis import DIAGNOSTICS, Diagnostic
from core.figure import Figure
from core.lab import LABS, Lab
from core.layers import digest
from core.outcome import Outcome
from core.recipe import Recipe
from core.run import Run, seeded
from core.weights import load_dataset
from view import engine
from view.shared import shared
from view.url import method_from_text, method_to_text

TIMED = 64  # pictures in the batch that is timed
ROUNDS = 5

Diagnosed = tuple[pd.DataFrame, tuple[Figure, ...]]


@shared(6)
def carry_out(key: str, recipe: Recipe, _run: Run) -> Outcome:
    """Compress network `key` and measure both; a reader who leaves stops it, and nothing is kept."""
    bundle = engine.bundle(key)
    with engine.slot():
        return outcome.carry_out(bundle, load_dataset(bundle.dataset), recipe, run=_run, figures=True)


def timed(key: str, network: nn.Module) -> pd.DataFrame:
    """Rows "original" and "compressed" of `core.cost.latency`."""
    return _timed(key, digest(network), network)


@shared(6)
def _timed(key: str, asked: str, _network: nn.Module) -> pd.DataFrame:
    bundle = engine.bundle(key)
    images = load_dataset(bundle.dataset).test.take(slice(TIMED)).images
    with engine.slot():
        return latency({"original": bundle.module, "compressed": _network}, images, ROUNDS)


def diagnose(key: str, diagnostic: Diagnostic, network: nn.Module, seed: int, run: Run) -> Diagnosed:
    """What a diagnostic says of `network`, which network `key` became."""
    return _diagnosed(key, method_to_text(diagnostic), digest(network), seed, network, run)


@shared(16)
def _diagnosed(key: str, asked: str, of: str, seed: int, _network: nn.Module, _run: Run) -> Diagnosed:
    diagnostic = method_from_text(asked, DIAGNOSTICS)
    with engine.slot(), seeded(seed, _run):
        table = diagnostic.measure(engine.bundle(key).module, _network, setting(key), _run)
    return table, tuple(diagnostic.figures(table))


def experiment(key: str, lab: Lab, seed: int, run: Run) -> tuple[Figure, ...]:
    """What a lab shows of network `key`."""
    return _experiment(key, method_to_text(lab), seed, run)


@shared(24)
def _experiment(key: str, asked: str, seed: int, _run: Run) -> tuple[Figure, ...]:
    with engine.slot(), seeded(seed, _run):
        return tuple(method_from_text(asked, LABS).figures(setting(key), _run))


def setting(key: str) -> Setting:
    """All that a method may look at."""
    bundle = engine.bundle(key)
    data = load_dataset(bundle.dataset)
    return Setting(data.train, data.validation, bundle.module)
