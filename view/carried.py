"""What a recipe made of a network, measured on the test pictures: carried out once for all readers."""

import time
from dataclasses import dataclass

import pandas as pd
from torch import Tensor, nn

from core.bundles import Setting
from core.cost import latency
from core.diagnosis import DIAGNOSTICS
from core.evaluation import Change, Evaluation, change, evaluate, logits
from core.figure import Figure
from core.lab import LABS
from core.recipe import CompressionResult, Recipe, compress
from core.run import Run, seeded
from core.weights import load_dataset
from view import engine
from view.shared import shared
from view.url import method_from_text

TIMED = 64  # pictures in the batch that is timed
ROUNDS = 5

Diagnosed = tuple[pd.DataFrame, tuple[Figure, ...]]


@dataclass(frozen=True, eq=False)
class Carried:
    """A recipe that was carried out."""

    result: CompressionResult
    before: Evaluation
    after: Evaluation
    change: Change
    latency: pd.DataFrame  # rows "original" and "compressed", see `core.cost.latency`
    seconds: float  # that the recipe itself took, with the figures of its steps

    @property
    def network(self) -> nn.Module:
        return self.result.model


@shared(6)
def carry_out(key: str, recipe: Recipe, _run: Run) -> Carried:
    """Compress network `key` and measure both; a reader who leaves stops it, and nothing is kept."""
    bundle, data = engine.bundle(key), load_dataset(engine.bundle(key).dataset)
    start = time.monotonic()
    with engine.slot():
        with _run.step(0, 2):
            result = compress(bundle.module, setting(key), recipe, _run, figures=True)
        seconds = time.monotonic() - start
        with _run.step(1, 2):
            answers = logits(result.model, data.test, _run)
        timed = latency(
            {"original": bundle.module, "compressed": result.model},
            data.test.take(slice(TIMED)).images,
            ROUNDS,
        )
    before, original = _original(key)
    after = evaluate(result.model, data.test, answers=answers)
    return Carried(result, before, after, change(original, answers, data.test.labels), timed, seconds)


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


@shared(4)
def _original(key: str) -> tuple[Evaluation, Tensor]:
    """The network as it came, and its logits (N, K), of the test pictures."""
    bundle, test = engine.bundle(key), load_dataset(engine.bundle(key).dataset).test
    answers = logits(bundle.module, test)
    return evaluate(bundle.module, test, answers=answers), answers
