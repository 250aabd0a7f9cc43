"""PU selection: which pictures of a pool belong to us, when only some that do are known?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from torch import Tensor, nn

from core.bundles import DATASETS, MODELS, Setting, Split
from core.figure import Figure
from core.lab import LABS, Lab
from core.method import choice, number
from core.pools import Pool, divide, mixed, noise, textures
from core.positive_unlabeled import (
    ESTIMATORS,
    FEATURES,
    Scoring,
    estimated_prior,
    learn,
    pooled_pair,
)
from core.run import Run
from core.selection import histogram_figure, judged, sensitivity_figure, trace_figure
from core.training import Classification, Schedule, fit

SEEN = 6  # classes that the network knows: 0 to 5
SIZE = 600  # pictures of the pool
WIDTH = 32  # filters of its first layer
PRIORS = (0.1, 0.2, 0.3, 0.45, 0.6)  # of the sensitivity
SCHEDULE = Schedule(epochs=8, learning_rate=0.1, batch_size=64, crop=1, flip=False)


@LABS.register
@dataclass(frozen=True)
class PUSelection(Lab):
    """Which pictures of a pool are like ours, when no picture is known to be unlike them?

    A small network is trained on the digits 0 to 5 of 8 x 8 pixels. Some of them are known as positive;
    a pool has other ones and, beside them, digits that the network has never seen ("near") or textures
    and noise ("far"). Three classifiers of the network's pooled features choose: "naive" takes the whole
    pool for negative, and so learns to refuse what it should find. "upu" corrects the risk for the
    positives in the pool, without bias; with few positives it drives the part N that stands for the
    negatives below zero, where no risk can be, and chooses too little. "nnpu" steps back there. Move
    the prior to see what a wrong share does: pictures alone do not tell it where others look alike.

    Source: Kiryo et al., "Positive-Unlabeled Learning with Non-Negative Risk Estimator", NeurIPS 2017,
    arXiv:1703.00593; Xu et al., "Positive-Unlabeled Compression on the Cloud", NeurIPS 2019,
    arXiv:1909.09757 (the features).
    """

    name: ClassVar[str] = "pu-selection"
    title: ClassVar[str] = "PU selection"

    outside: str = choice(
        "near", "far", help="What else is in the pool: unseen digits, or textures and noise"
    )
    positives: int = number(4, 1, 50, 1, help="Known pictures of every class")
    share: float = number(0.3, 0.1, 0.7, 0.05, help="True share of the pool that is like ours")
    prior: float = number(0.3, 0.0, 0.95, 0.01, help="Share that the classifiers are told; 0: estimated")
    features: str = choice(*FEATURES, help="Of every stage, with a gate or without, or of the last one")
    epochs: int = number(100, 10, 500, 10, help="Passes over the pool")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        with run.step(0, 4):
            teacher, positives, pool = self._made(run)
        with run.step(1, 4):
            both = pooled_pair(teacher, positives, pool.pictures, self.features, run)
        prior = self.prior or estimated_prior(*both)
        with run.step(2, 4):
            found = {name: self._learn(both, prior, name, run) for name in run.track(ESTIMATORS, "Learning")}
        with run.step(3, 4):
            told = [self._learn(both, p, "nnpu", run) for p in run.track(PRIORS, "Telling other shares")]
        scores = {name: scoring.unlabelled for name, scoring in found.items()}
        return (
            _outcome_figure(found, pool, prior, estimated=not self.prior),
            histogram_figure(scores, pool.truth, 0.0, _where(found, pool)),
            trace_figure(found),
            sensitivity_figure(told, pool.truth, 0.0, prior),
        )

    def _made(self, run: Run) -> tuple[nn.Module, Split, Pool]:
        """The network, the known pictures and the pool."""
        data = DATASETS["digits"]().load().train
        seen = data.take((data.labels < SEEN).nonzero()[:, 0])
        network = MODELS["small-cnn"](width=WIDTH).build(tuple(seen.pixels.shape[1:]), SEEN)
        fit(network, seen, Classification(), SCHEDULE, run)
        positives, held = divide(seen, self.positives)
        unseen = {"unseen digits": data.take((data.labels >= SEEN).nonzero()[:, 0]).pixels}
        far = {"textures": textures(held, SIZE), "noise": noise(held, SIZE)}
        return network, positives, mixed(held, unseen if self.outside == "near" else far, SIZE, self.share)

    def _learn(self, both: Sequence[Tensor], prior: float, estimator: str, run: Run) -> Scoring:
        gated = self.features == "gated"
        return learn(*both, prior, estimator, gated=gated, epochs=self.epochs, run=run)


def _outcome_figure(found: dict[str, Scoring], pool: Pool, prior: float, *, estimated: bool) -> Figure:
    """Precision and recall of every classifier."""
    rows, words = [], []
    for name, scoring in found.items():
        count, precision, recall = judged(scoring.unlabelled > 0, pool.truth)
        rows += [
            {"classifier": name, "measure": measure, "value": value}
            for measure, value in (("precision", precision), ("recall", recall))
        ]
        words.append(f"{name} chooses {count}: precision {precision:.0%}, recall {recall:.0%}")
    true = pool.truth.double().mean().item()
    finding = (
        f"{int(pool.truth.sum())} of {len(pool)} pictures ({true:.0%}) are in the domain; the classifiers "
        f"were told {prior:.0%}{', as it was estimated' if estimated else ''}. {'; '.join(words)}."
    )
    return Figure(
        "What each classifier chooses",
        finding,
        pd.DataFrame(rows),
        "classifier",
        "value",
        "bars",
        colour="measure",
        percent=frozenset({"value"}),
    )


def _where(found: dict[str, Scoring], pool: Pool) -> str:
    """Where the scores of both kinds lie, in words."""
    truth = pool.truth
    said = [
        f"{name} {scoring.unlabelled[truth].mean():+.1f} and {scoring.unlabelled[~truth].mean():+.1f}"
        for name, scoring in found.items()
    ]
    return f"Mean scores of pictures in the domain and outside of it: {'; '.join(said)}."
