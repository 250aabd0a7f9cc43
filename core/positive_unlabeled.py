"""Learning from positive and unlabelled examples.

Letters: P positive and U unlabelled examples, C features, g a score, in-domain where g > 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Split
from core.errors import ParameterError, TrainingError, UnsupportedModelError
from core.layers import private_copy
from core.run import Run
from core.taps import feature_layers, tapped

ESTIMATORS = ("nnpu", "upu", "naive")
FEATURES = ("gated", "multi-scale", "last-stage")
PART = 250  # pictures in one forward pass
REDUCTION = 16  # of the gate's hidden layer
BATCH = 200  # unlabelled examples in a step, beside all positive ones
RATE, DECAY = 3e-3, 5e-3  # of Adam
FOLDS = 3  # for scores of examples that their classifier has not seen
RIDGE = 0.1  # pull of that classifier's weights towards zero
NEWTON = 12  # its steps
STILL = 0.02  # of the prior: a risk that close to it, with nothing selected, is the trivial solution


# ------------------------------------------------------------------------------------------- risks


class Risk(NamedTuple):
    """A risk estimated on some positive and unlabelled scores; scalars."""

    value: Tensor
    objective: Tensor  # what to descend: not always the value
    positive: Tensor  # prior * R_P+
    negative: Tensor  # R_U- - prior * R_P-: risk on the negatives times their share, never below 0 in truth


def sigmoid_loss(margin: Tensor) -> Tensor:
    """l(z) = sigmoid(-z): 0 far on the right side, 1 far on the wrong one; l(z) + l(-z) = 1."""
    return torch.sigmoid(-margin)


def upu_risk(positive: Tensor, unlabelled: Tensor, prior: float) -> Risk:
    """The unbiased risk of scores (P,) and (U,): it falls below zero where a classifier overfits.

    Source: du Plessis, Niu and Sugiyama, "Convex Formulation for Learning from Positive and Unlabeled
    Data", ICML 2015.
    """
    require_prior(prior)
    if not len(positive) or not len(unlabelled):
        raise ParameterError(
            "positive-unlabelled risk: must have at least one positive and one unlabelled score, "
            f"got {len(positive)} and {len(unlabelled)}"
        )
    part = prior * sigmoid_loss(positive).mean()
    negative = sigmoid_loss(-unlabelled).mean() - prior * sigmoid_loss(-positive).mean()
    return Risk(part + negative, part + negative, part, negative)


def nnpu_risk(
    positive: Tensor, unlabelled: Tensor, prior: float, beta: float = 0.0, gamma: float = 1.0
) -> Risk:
    """The non-negative risk: the negative part counts as -beta where it is below that.

    There the objective is -gamma times the negative part, which a step of descent raises again.

    Source: Kiryo, Niu, du Plessis and Sugiyama, "Positive-Unlabeled Learning with Non-Negative Risk
    Estimator", NeurIPS 2017, arXiv:1703.00593, algorithm 1.
    """
    _, _, part, negative = upu_risk(positive, unlabelled, prior)
    if negative < -beta:
        return Risk(part - beta, -gamma * negative, part, negative)
    return Risk(part + negative, part + negative, part, negative)


def naive_risk(positive: Tensor, unlabelled: Tensor, prior: float) -> Risk:
    """Cross-entropy of an ordinary classifier that takes every unlabelled example for a negative one."""
    _, _, part, negative = upu_risk(positive, unlabelled, prior)
    value = F.softplus(torch.cat([-positive, unlabelled])).mean()
    return Risk(value, value, part, negative)


RISKS: dict[str, Callable[[Tensor, Tensor, float], Risk]] = dict(
    zip(ESTIMATORS, (nnpu_risk, upu_risk, naive_risk), strict=True)
)


def require_prior(prior: float) -> None:
    """Refuse what cannot be a share of positives."""
    if not 0 < prior < 1:  # so is NaN's comparison
        raise ParameterError(f"class prior must lie strictly between 0 and 1, got {prior}")


# ---------------------------------------------------------------------------------------- features


def pooled_features(teacher: nn.Module, split: Split, stages: str, run: Run) -> Tensor:
    """(N, C): the outputs of the teacher's stages, averaged over the picture, one after the other.

    `stages` is one of FEATURES; "last-stage" takes the last one alone.

    Raises:
        UnsupportedModelError: the teacher has no feature map, or fewer than two where several are wanted.
    """
    network = private_copy(teacher, run.device)
    first = split.take(slice(0, 1)).images.to(run.device)
    names = feature_layers(network, first)
    few = 1 if stages == "last-stage" else 2
    if len(names) < few:
        advice = "; features last-stage takes one" if names else ""
        raise UnsupportedModelError(
            f"positive-unlabelled features: the model must have feature maps of {few} or more sizes, "
            f"got {len(names)}{advice}"
        )
    names, found = names[-1:] if few == 1 else names, []
    with torch.no_grad():
        for start in run.track(range(0, len(split), PART), "Looking at pictures"):
            images = split.take(slice(start, start + PART)).images.to(run.device)
            with tapped(network, names) as seen:
                network(images)
            found.append(torch.cat([seen[name].mean((2, 3)) for name in names], 1).cpu())
    return torch.cat(found)


def pooled_pair(
    teacher: nn.Module, positive: Split, unlabelled: Split, stages: str, run: Run
) -> tuple[Tensor, Tensor]:
    """`pooled_features` of both kinds: (P, C) and (U, C)."""
    with run.step(0, 2):
        first = pooled_features(teacher, positive, stages, run)
    with run.step(1, 2):
        return first, pooled_features(teacher, unlabelled, stages, run)


class GatedScore(nn.Module):
    """g(h) = w . (a * h) + b with the gate a = sigmoid(W2 relu(W1 h)); without a gate a is 1.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, arXiv:1709.01507 (the gate).
    """

    def __init__(self, features: int, gated: bool) -> None:
        super().__init__()
        hidden = max(features // REDUCTION, 1)
        self.squeeze = nn.Linear(features, hidden, bias=False) if gated else None
        self.excite = nn.Linear(hidden, features, bias=False) if gated else None
        self.score = nn.Linear(features, 1)

    def gate(self, h: Tensor) -> Tensor:
        """(N, C) -> (N, C) in (0, 1)."""
        if self.squeeze is None:
            return torch.ones_like(h)
        return torch.sigmoid(self.excite(F.relu(self.squeeze(h))))

    def forward(self, h: Tensor) -> Tensor:
        return self.score(self.gate(h) * h).squeeze(1)


# -------------------------------------------------------------------------------------- classifier


@dataclass(frozen=True, eq=False)
class Scoring:
    """What a classifier made of positive and unlabelled examples."""

    positive: Tensor  # (P,) scores
    unlabelled: Tensor  # (U,)
    prior: float  # that it was told
    risk: float  # on all examples, at the end
    negative: float  # the negative part of it
    trace: pd.DataFrame  # of every step: step, positive, negative (parts of the risk), selected (share of U)

    def collapsed(self) -> bool:
        """Did it end at the trivial solution, in which everything is negative and the risk is the prior?"""
        return not (self.unlabelled > 0).any() and abs(self.risk - self.prior) <= STILL * self.prior


def standardised(positive: Tensor, unlabelled: Tensor) -> tuple[Tensor, Tensor]:
    """Features (P, C) and (U, C) less the mean of U, over its standard deviation where there is any."""
    mean, spread = unlabelled.mean(0), unlabelled.std(0, correction=0)
    spread = spread.where(spread > 1e-6, 1.0)
    return (positive - mean) / spread, (unlabelled - mean) / spread


def learn(
    positive: Tensor,
    unlabelled: Tensor,
    prior: float,
    estimator: str,
    *,
    gated: bool,
    epochs: int,
    run: Run,
) -> Scoring:
    """Train a classifier of features (P, C) and (U, C), and score them all.

    Every step takes all positive examples and some unlabelled ones. The unlabelled ones are first laid
    in an order of their own, so that the order in which they are given changes nothing. Random numbers
    are torch's.

    Raises:
        ParameterError: there are no examples of a kind, or the prior is none.
        TrainingError: a risk is not finite.
    """
    order = _own_order(unlabelled)
    positive, ordered = standardised(positive, unlabelled[order])
    network = GatedScore(positive.shape[1], gated)
    rows = _train(network, positive, ordered, prior, RISKS[estimator], epochs, run)
    with torch.no_grad():
        scores = torch.empty(len(ordered)).index_copy_(0, order, network(ordered))
        of_positive = network(positive)
        risk = RISKS[estimator](of_positive, scores, prior)
    return Scoring(of_positive, scores, prior, risk.value.item(), risk.negative.item(), pd.DataFrame(rows))


def _own_order(features: Tensor) -> Tensor:
    """Indices that sort the rows of (N, C), by the first column, equal ones by the next ..."""
    return torch.from_numpy(np.lexsort(features.numpy().T[::-1]))


def _train(
    network: nn.Module,
    positive: Tensor,
    unlabelled: Tensor,
    prior: float,
    risk_of: Callable[[Tensor, Tensor, float], Risk],
    epochs: int,
    run: Run,
) -> list[dict[str, float]]:
    """Adam on features: no pictures and no convolutions, so none of what `training.fit` is for."""
    optimizer, rows = torch.optim.Adam(network.parameters(), lr=RATE, weight_decay=DECAY), []
    for _ in run.track(range(epochs), "Learning what is in the domain"):
        for index in torch.randperm(len(unlabelled)).split(BATCH):
            scores = network(unlabelled[index])
            risk = risk_of(network(positive), scores, prior)
            if not risk.objective.isfinite():
                raise TrainingError(f"training: the positive-unlabelled risk became {risk.objective.item()}")
            optimizer.zero_grad()
            risk.objective.backward()
            optimizer.step()
            selected = (scores > 0).float().mean().item()
            parts = {"positive": risk.positive.item(), "negative": risk.negative.item()}
            rows.append({"step": len(rows) + 1, **parts, "selected": selected})
    return rows


# ------------------------------------------------------------------------------- share of positives


def best_bin(positive: Tensor, unlabelled: Tensor, delta: float = 0.1, gamma: float = 0.01) -> float:
    """The share of positives among unlabelled examples, from scores (P,) and (U,) of unseen examples.

    Above a threshold c lies a share q_P of the positive and q_U of the unlabelled scores, and q_U / q_P
    is the share looked for if only positives lie there; else it is too large. Taken is the threshold
    with the lowest upper confidence bound, which weighs pure tops against few examples.

    Source: Garg et al., "Mixture Proportion Estimation and PU Learning: A Modern Approach", NeurIPS
    2021, arXiv:2111.00980, algorithm 1 (best bin estimation); constants as in its code.
    """
    cuts = torch.cat([positive, unlabelled]).unique()
    above = [_share_above(scores, cuts) for scores in (positive, unlabelled)]
    met = above[0] > 0
    q_positive, q_unlabelled = above[0][met], above[1][met]
    noise = sum(math.sqrt(math.log(1 / delta) / (2 * len(scores))) for scores in (positive, unlabelled))
    best = ((q_unlabelled + (1 + gamma) * noise) / q_positive).argmin()
    return min((q_unlabelled[best] / q_positive[best]).item(), 1.0)


def _share_above(scores: Tensor, cuts: Tensor) -> Tensor:
    """Share of `scores` at or above every cut."""
    return 1 - torch.searchsorted(scores.sort().values, cuts).double() / len(scores)


def estimated_prior(positive: Tensor, unlabelled: Tensor) -> float:
    """`best_bin` of features (P, C) and (U, C), from scores of classifiers that have not seen the example.

    The classifiers tell positive from unlabelled examples. The answer is kept within [0.01, 0.99].

    Raises:
        ParameterError: there are too few examples for that.
    """
    if min(len(positive), len(unlabelled)) < FOLDS:
        raise ParameterError(
            f"class prior: must be given where there are fewer than {FOLDS} positive or unlabelled examples, "
            f"got {len(positive)} and {len(unlabelled)}"
        )
    order = _own_order(unlabelled)
    both = [rows.double() for rows in standardised(positive, unlabelled[order])]
    folds = [torch.arange(len(rows)) % FOLDS for rows in both]
    scores = [torch.zeros(len(rows), dtype=torch.float64) for rows in both]
    for fold in range(FOLDS):
        weights = logistic(*(rows[own != fold] for rows, own in zip(both, folds, strict=True)))
        for held, rows, own in zip(scores, both, folds, strict=True):
            held[own == fold] = rows[own == fold] @ weights[:-1] + weights[-1]
    return min(max(best_bin(*scores), 0.01), 0.99)


def logistic(positive: Tensor, unlabelled: Tensor) -> Tensor:
    """Weights (C) and bias, (C + 1,), of a logistic regression in which both kinds weigh the same.

    Newton's method on the sum of both mean cross-entropies and RIDGE / 2 times the squared weights.
    """
    kinds = (positive, unlabelled)
    rows = torch.cat([F.pad(kind, (0, 1), value=1.0) for kind in kinds])
    sign = torch.cat([rows.new_full((len(kind),), s) for kind, s in zip(kinds, (1, -1), strict=True)])
    share = torch.cat([rows.new_full((len(kind),), 1 / len(kind)) for kind in kinds])
    pull = F.pad(rows.new_full((rows.shape[1] - 1,), RIDGE), (0, 1), value=1e-9)  # the bias is free
    weights = rows.new_zeros(rows.shape[1])
    for _ in range(NEWTON):
        wrong = torch.sigmoid(-sign * (rows @ weights))
        slope = pull * weights - rows.T @ (share * sign * wrong)
        curve = (rows.T * (share * wrong * (1 - wrong))) @ rows + pull.diag()
        weights = weights - torch.linalg.solve(curve, slope)
    return weights
