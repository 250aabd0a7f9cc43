"""Linearity: ReLU neurons that are almost always active are folded into the next layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from core.bundles import Setting, Split
from core.evaluation import answered, logits
from core.figure import Figure, Reference
from core.layers import require_prunable
from core.linearity import (
    RULES,
    Activity,
    Chain,
    Decision,
    Rule,
    Sizes,
    always_active,
    chain_inputs,
    decide,
    merge_chain,
    observe,
    preactivations,
    require_chains,
)
from core.method import choice, flag, number
from core.recipe import COMPRESSORS, Compressor
from core.run import Run

STEP = 0.01  # of the falling threshold
BINS = 20  # of a histogram
SHOWN = 6  # layers that get a histogram
POINTS = 500  # pictures whose logits are compared


@COMPRESSORS.register
@dataclass(frozen=True)
class Linearity(Compressor):
    """Fold neurons that are almost always active, and so almost linear, into the next layer.

    Where ReLU never cuts a neuron off, the next layer can read what the neuron reads, through a
    shortcut matrix, and the neuron goes. A neuron counts as linear if it is active on a certain share
    of the calibration pictures, the first `images` of the validation pictures. That share falls from
    100 % in steps of 1 % until `sparsity` of the parameters in the network's chains of linear layers
    are gone, and never below `threshold`: at sparsity 1 it is `threshold`, at sparsity 0 nothing
    changes. Neurons active on all calibration pictures leave the answers on these pictures as they
    are; of others the next layer also gets the negative values that ReLU would have cut off.

    A shortcut stores inputs x outputs numbers, so with rule "best" a layer is merged only where
    numbers are saved; with "any" (one linear neuron is enough) and "share" the network may grow. A chain
    is linear layers with a ReLU module and at most batch norm, which is folded in, and dropout between
    them: an MLP, or the classifier of a convolutional network.

    Source: Dobler and Lemmerich, "Linearity-based Neural Network Compression", 2025, arXiv:2506.21146;
    neurons active on every possible input: Serra, Kumar and Ramalingam, "Lossless Compression of Deep
    Neural Networks", CPAIOR 2020, arXiv:2001.00218.
    """

    name: ClassVar[str] = "linearity"

    sparsity: float = number(
        0.5, 0.0, 1.0, 0.01, help="Fraction of the chains' parameters that goes, if it can"
    )
    threshold: float = number(
        0.05, 0.05, 1.0, 0.01, help="Merge no neuron that is active on a smaller share of the pictures"
    )
    rule: str = choice(*RULES, help="Merge a layer where that saves numbers, always, or from a share on")
    share: float = number(
        0.5, 0.0, 1.0, 0.01, help='Rule "share": more than this share of a layer\'s neurons must be linear'
    )
    dead: bool = flag(False, help="Also remove neurons that no calibration picture activates")
    images: int = number(2000, 1, 10000, 1, help="Validation pictures on which neurons are watched")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        for outcome in self._outcomes(model, setting, run):
            if outcome.changed:
                chain = outcome.chain
                chain.put(model, merge_chain(chain.layers, outcome.linear, outcome.dead, outcome.decisions))
        return model

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        with run.step(0, 2):
            outcomes = self._outcomes(before, setting, run)
        with run.step(1, 2):
            pictures = setting.validation.take(slice(0, min(self.images, POINTS)))
            errors = _errors(before, after, outcomes, pictures, run)
        if not any(outcome.chain.hidden for outcome in outcomes):
            return _sizes(outcomes), errors  # all of it was merged by an earlier step
        return _rates(outcomes), _break_even(outcomes), _sizes(outcomes), errors

    def _outcomes(self, model: nn.Module, setting: Setting, run: Run) -> "list[_Outcome]":
        require_prunable(model)
        chains = require_chains(self.name, model)
        split = setting.validation.take(slice(0, self.images))
        pairs = list(zip(chains, observe(self.name, model, chains, split, run), strict=True))
        threshold = self._settle(pairs)
        return [self._outcome(chain, activity, threshold) for chain, activity in pairs]

    def _settle(self, pairs: Sequence[tuple[Chain, Activity]]) -> float:
        """The largest threshold at which `sparsity` is reached, else `threshold`; inf if nothing is to go."""
        if not self.sparsity:
            return math.inf
        wanted = (1 - self.sparsity) * sum(chain.parameters for chain, _ in pairs)
        for step in range(round((1 - self.threshold) / STEP)):
            threshold = round(1 - step * STEP, 2)
            outcomes = [self._outcome(chain, activity, threshold) for chain, activity in pairs]
            if sum(outcome.parameters for outcome in outcomes) <= wanted:
                return threshold
        return self.threshold

    def _outcome(self, chain: Chain, activity: Activity, threshold: float) -> "_Outcome":
        linear = [rates >= threshold for rates in activity.rates]
        dead = [(rates == 0) & self.dead & (threshold <= 1) for rates in activity.rates]
        counts = ([int(mask.sum()) for mask in masks] for masks in (linear, dead))
        sizes, decisions = decide(Sizes.of(chain.layers), *counts, Rule(self.rule, self.share))
        return _Outcome(chain, activity, threshold, linear, dead, sizes, decisions)


class _Outcome(NamedTuple):
    """What becomes of one chain."""

    chain: Chain
    activity: Activity
    threshold: float
    linear: list[Tensor]  # per hidden layer, (m,) bool
    dead: list[Tensor]
    sizes: Sizes
    decisions: list[Decision]

    @property
    def changed(self) -> bool:
        """Batch norms alone are not worth a new module."""
        return any(decision.merged or decision.dead for decision in self.decisions)

    @property
    def parameters(self) -> int:
        return self.sizes.stored if self.changed else self.chain.parameters

    def lowest(self, x: Tensor) -> Tensor:
        """For inputs (N, ..., P): the lowest value (N,) of a merged neuron before ReLU, and at most 0."""
        values = torch.zeros(len(x), 1, dtype=x.dtype)
        hidden = zip(preactivations(self.chain.layers, x), self.linear, self.decisions, strict=False)
        for active, linear, decision in hidden:
            if decision.merged:
                values = torch.cat([values, active[..., linear].flatten(1)], 1)
        return values.amin(1)


def _rates(outcomes: Sequence[_Outcome]) -> Figure:
    """Histograms of the first hidden layers; the finding is about all."""
    layers = {
        layer: rates
        for outcome in outcomes
        for layer, rates in zip(outcome.chain.hidden, outcome.activity.rates, strict=True)
    }
    rows = [
        {"layer": layer, "rate": (place + 0.5) / BINS, "share": count / len(rates)}
        for layer, rates in list(layers.items())[:SHOWN]
        for place, count in enumerate(torch.histc(rates, BINS, 0, 1).tolist())
    ]
    every, threshold = torch.cat(list(layers.values())), outcomes[0].threshold
    proved = [always_active(o.chain.layers, o.activity.low, o.activity.high) for o in outcomes]
    linear = f"at a threshold of {threshold:.0%}, {int((every >= threshold).sum())} count as linear"
    finding = (
        f"Of {len(every)} hidden neurons {int((every == 1).sum())} are active on every calibration picture, "
        f"{sum(int(active.sum()) for part in proved for active in part)} provably for all inputs in between, "
        f"and {int((every == 0).sum())} on none; {linear if threshold <= 1 else 'none counts as linear'}."
    )
    return Figure(
        "How often neurons are active",
        finding,
        pd.DataFrame(rows),
        "rate",
        "share",
        "bars",
        panel="layer",
        percent=frozenset({"rate", "share"}),
        labels={"rate": "pictures on which a neuron is active", "share": "neurons of the layer"},
        references=(Reference("x", threshold, "threshold"),) if threshold <= 1 else (),
    )


def _break_even(outcomes: Sequence[_Outcome]) -> Figure:
    pairs = [pair for o in outcomes for pair in zip(o.chain.hidden, o.decisions, strict=True)]
    rows = [
        {"layer": layer, "kind": kind, "neurons": float(neurons)}
        for layer, decision in pairs
        for kind, neurons in (("linear", decision.linear), ("break-even", decision.break_even))
    ]
    enough = sum(decision.linear > decision.break_even for _, decision in pairs)
    finding = (
        f"In {enough} of {len(pairs)} hidden layers more neurons are linear than break-even, inputs x "
        f"outputs / (inputs + outputs + 1); {sum(decision.merged for _, decision in pairs)} are merged."
    )
    return Figure(
        "Where merging pays", finding, pd.DataFrame(rows), "layer", "neurons", "bars", colour="kind"
    )


def _sizes(outcomes: Sequence[_Outcome]) -> Figure:
    before, after = (sum(o.chain.parameters for o in outcomes), sum(o.parameters for o in outcomes))
    past = [
        sum(Sizes.of(o.chain.layers).shortcuts for o in outcomes),
        sum(o.sizes.shortcuts for o in outcomes),
    ]
    rows = [
        {"part": part, "network": network, "parameters": count}
        for network, total, shortcuts in (("before", before, past[0]), ("after", after, past[1]))
        for part, count in (("layers", total - shortcuts), ("shortcuts", shortcuts), ("all", total))
    ]
    finding = (
        f"The linear layers in a row store {after:,} numbers instead of {before:,}, {after / before:.1%}; "
        f"{past[1]:,} of them are in shortcuts."
    )
    return Figure("Parameters", finding, pd.DataFrame(rows), "part", "parameters", "bars", colour="network")


def _errors(
    before: nn.Module, after: nn.Module, outcomes: Sequence[_Outcome], pictures: Split, run: Run
) -> Figure:
    with run.step(0, 3):
        inputs = list(chain_inputs(before, [o.chain for o in outcomes], pictures, run))
    lowest = torch.stack([torch.cat([o.lowest(x[o.chain.name]) for x in inputs]) for o in outcomes]).amin(0)
    with run.step(1, 3):
        old = logits(before, pictures, run)
    with run.step(2, 3):
        new = logits(after, pictures, run)
    change = (new - old).abs()
    exact = lowest == 0
    there = f", and there logits change by at most {change[exact].max():.1e}" if exact.any() else ""
    finding = (
        f"On {exact.float().mean():.0%} of {len(pictures)} calibration pictures no merged neuron is "
        f"negative{there}. Over all of them logits change by {change.mean():.3g} on average and "
        f"{change.max():.3g} at most; {(answered(old) == answered(new)).float().mean():.1%} of answers stay."
    )
    table = pd.DataFrame({"lowest": lowest.tolist(), "change": change.amax(1).tolist()})
    labels = {"lowest": "lowest value of a merged neuron before ReLU", "change": "largest change of a logit"}
    return Figure("What the answers lose", finding, table, "lowest", "change", "points", labels=labels)
