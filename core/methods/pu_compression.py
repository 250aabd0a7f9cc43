"""PU compression: few original pictures are left; find more in a pool, and distil on both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.bundles import Setting, Split
from core.distillation import divergence
from core.errors import ParameterError
from core.figure import Figure
from core.layers import private_copy, require_prunable
from core.method import choice, flag, number
from core.pools import blends, divide, mixed, noise, shared_pictures, textures, turned
from core.positive_unlabeled import ESTIMATORS, FEATURES, Scoring, estimated_prior, learn, pooled_pair
from core.recipe import COMPRESSORS
from core.robust_distillation import RobustDistillation, class_weights, logits_of
from core.run import Run
from core.selection import (
    Selection,
    balance_figure,
    histogram_figure,
    origins_figure,
    pictures_figure,
    sensitivity_figure,
    trace_figure,
)
from core.tuning import Tuning

BASELINES = ("random", "oracle", "all", "none")  # what to take from the pool without a classifier
PRIORS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)  # of the sensitivity
WITHIN = 0.99  # of the smallest class weight: epsilon at most


@COMPRESSORS.register
@dataclass(frozen=True)
class PUCompression(Tuning):
    """Keep a few original pictures, find more like them in a pool, and follow the original on both.

    `positives` training pictures of every class are kept; their labels are not used. The pool is made
    of the rest: `share` of it held-back pictures, the others outside of the domain, "far" (textures,
    noise), "near" (two pictures blended, pictures turned by a quarter) or both. A classifier of the
    original's pooled features is trained with the kept pictures as positive and the pool as unlabelled
    examples; what scores above `threshold` joins the kept pictures. "nnpu" is the non-negative risk,
    "upu" the unbiased one, "naive" an ordinary classifier that takes the pool for negative. "random"
    takes as many pictures as nnpu would, but any, "oracle" all that are in the domain, "all" the
    pool, "none" nothing. `prior` is what the classifier is told of the share; 0: it is estimated.

    Then the network follows the original's answers on kept and chosen pictures. A picture weighs as
    much as the class that the original names for it, rare classes more, at most 10; in every step the
    weights are the worst, for the student, of those that differ by at most `epsilon` from them and
    have the same sum. "official" draws one change that is never negative instead, which makes it no
    worst case. An epoch is `images` pictures, at most as many as the training part has: what there
    is, again and again, so that every choice gets as many steps. Where nothing is chosen, only the
    kept pictures are used. Put a step before it that makes a student, or prunes.

    Source: Xu et al., "Positive-Unlabeled Compression on the Cloud", NeurIPS 2019, arXiv:1909.09757,
    and the authors' code; Kiryo et al., "Positive-Unlabeled Learning with Non-Negative Risk
    Estimator", NeurIPS 2017, arXiv:1703.00593.
    """

    name: ClassVar[str] = "pu-compression"
    title: ClassVar[str] = "PU compression"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "positives": 100,
            "prior": 0.21,
            "passes": 170,
            "worst_case": "official",
            "epochs": 200,
            "batch_size": 2048,
            "learning_rate": 0.1,
            "schedule": "cosine",
            "crop": 4,
            "flip": True,
            "images": 1_000_000,
        }
    }

    positives: int = number(
        15, 1, 5000, 1, help="Training pictures of every class that are kept, at most half"
    )
    pool: int = number(2000, 20, 100_000, 10, help="Pictures of the pool, fewer where pictures run out")
    share: float = number(0.2, 0.05, 0.95, 0.05, help="Share of the pool that is in the domain")
    outside: str = choice("both", "far", "near", help="What the rest of the pool is")
    estimator: str = choice(*ESTIMATORS, *BASELINES, help="What chooses from the pool")
    prior: float = number(0.0, 0.0, 0.95, 0.01, help="Share that the classifier is told; 0: estimated")
    features: str = choice(*FEATURES, help="Of every stage, with a gate or without, or of the last one")
    passes: int = number(60, 1, 500, 1, help="Passes of the classifier over the pool")
    threshold: float = number(0.0, -10.0, 10.0, 0.1, help="Score above which a picture is chosen")
    most: int = number(0, 0, 100_000, 10, help="Take a random part of the chosen ones, so many; 0: all")
    weighted: bool = flag(True, help="Pictures of classes that are rare among the chosen weigh more")
    epsilon: float = number(
        0.1, 0.0, 1.0, 0.01, help="How far class weights may be wrong; cut where they are"
    )
    worst_case: str = choice("exact", "official", help="Worst weights near the given ones, or the code's")
    temperature: float = number(1.0, 0.5, 20.0, 0.5, help="Of the answers that are compared")
    epochs: int = number(8, 1, 500, 1, help="Passes over the pictures")
    learning_rate: float = number(0.05, 1e-6, 10.0, 1e-6, scale="log", help="Peak learning rate")
    schedule: str = choice("one-cycle", "cosine", "constant", help="Learning rate over time")
    batch_size: int = number(64, 1, 4096, 1, help="Pictures per step")
    images: int = number(2048, 1, 1_000_000, 1, help="Pictures of an epoch, at most the training part's")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        require_prunable(model)
        with run.step(0, 4):
            found = self.choose(setting, run)
        with run.step(1, 4):
            weights = self._weights(logits_of(setting.teacher, found.kept, run))
        count, precision, _ = found.judged()
        task = RobustDistillation(
            private_copy(setting.teacher, run.device),
            weights,
            self._epsilon(weights),
            self.temperature,
            official=self.worst_case == "official",
            notes={"chosen": count, "chosen_in_domain": precision},
        )
        size, kept = min(self.images, len(setting.train)), found.kept
        rounds = [torch.randperm(len(kept)) for _ in range(-(-size // len(kept)))]
        with run.step(1, 2):
            self.tune(model, task, replace(setting, train=kept.take(torch.cat(rounds)[:size])), run)
        return model

    def choose(self, setting: Setting, run: Run) -> Selection:
        """Keep, make the pool and choose from it; random numbers are torch's.

        Raises:
            ParameterError: a picture is in the validation part too, or there are too few.
            UnsupportedModelError: the original has no feature maps to tell pictures by.
        """
        positives, held = divide(setting.train, self.positives)
        pool = mixed(held, self._outside(held), self.pool, self.share)
        for split, name in ((positives, "kept pictures"), (pool.pictures, "the pool")):
            if shared := shared_pictures(split, setting.validation):
                raise ParameterError(
                    f"{self.name}: {name} must have no picture of the validation part, got {shared}"
                )
        told = {
            "oracle": pool.truth,
            "all": torch.ones_like(pool.truth),
            "none": torch.zeros_like(pool.truth),
        }
        if self.estimator in told:
            return Selection(positives, pool, self._some(told[self.estimator]))
        with run.step(0, 2):
            both = pooled_pair(setting.teacher, positives, pool.pictures, self.features, run)
        with run.step(1, 2):
            scoring = self._learn(*both, self.prior or estimated_prior(*both), run)
        chosen = scoring.unlabelled > self.threshold
        if self.estimator == "random":
            chosen, scoring = chosen[torch.randperm(len(chosen))], None
        return Selection(positives, pool, self._some(chosen), self.threshold, scoring)

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        """What `apply` chose, which equal random numbers choose again; and what it was trained with."""
        with run.step(0, 4):
            found = self.choose(setting, run)
        with run.step(2, 8):
            logits = logits_of(setting.teacher, found.kept, run)
        with run.step(3, 8):
            student = logits_of(after, found.kept.take(slice(0, self.batch_size)), run)
        weights, first = self._weights(logits), logits[: self.batch_size]
        distances = divergence(student, first, self.temperature)
        balance = balance_figure(logits.argmax(1), weights, distances, self._epsilon(weights))
        shown = [origins_figure(found), balance]
        scoring = found.scoring
        if scoring is None:
            return tuple(shown)
        with run.step(2, 4):
            kept, pool = found.positives, found.pool.pictures
            both = pooled_pair(setting.teacher, kept, pool, self.features, run)
        with run.step(3, 4):
            told = [self._learn(*both, prior, run) for prior in run.track(PRIORS, "Telling other shares")]
        true = found.pool.truth.double().mean().item()
        finding = (
            f"{found.words()}. The classifier was told that {scoring.prior:.1%} are in the domain"
            f"{'' if self.prior else ', as it was estimated'}; in truth it is {true:.1%}."
        )
        shown += [
            histogram_figure({self.estimator: scoring.unlabelled}, found.pool.truth, self.threshold, finding),
            trace_figure({self.estimator: scoring}),
            sensitivity_figure(told, found.pool.truth, self.threshold, scoring.prior),
            pictures_figure(found),
        ]
        return tuple(shown)

    def _learn(self, inside: Tensor, unknown: Tensor, prior: float, run: Run) -> Scoring:
        """The classifier of features (P, C) and (U, C), as it is declared."""
        estimator = self.estimator if self.estimator in ESTIMATORS else "nnpu"
        gated = self.features == "gated"
        return learn(inside, unknown, prior, estimator, gated=gated, epochs=self.passes, run=run)

    def _outside(self, held: Split) -> dict[str, Tensor]:
        """Origin -> pixels, as many as the pool needs."""
        made = {"textures": textures, "noise": noise, "blends": blends, "turned": turned}
        kinds = {"far": ("textures", "noise"), "near": ("blends", "turned"), "both": tuple(made)}
        names = kinds[self.outside]
        size = min(self.pool, len(held) / self.share)
        return {name: made[name](held, math.ceil(size * (1 - self.share) / len(names)) + 1) for name in names}

    def _some(self, chosen: Tensor) -> Tensor:
        """(U,) bool: at most `most` of the chosen ones."""
        places = chosen.nonzero()[:, 0]
        if 0 < self.most < len(places):
            places = places[torch.randperm(len(places))[: self.most]]
        return torch.zeros_like(chosen).index_fill_(0, places, True)

    def _weights(self, logits: Tensor) -> Tensor:
        """(K,): of the classes that the original names; ones where they are switched off."""
        weights = class_weights(logits.softmax(1))
        return weights if self.weighted else torch.ones_like(weights)

    def _epsilon(self, weights: Tensor) -> float:
        return min(self.epsilon, WITHIN * weights.min().item())
