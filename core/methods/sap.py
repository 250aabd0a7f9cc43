"""SAP: train, prune as far as the PQ index of the weights says, rewind, and again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.bundles import Setting
from core.compressibility import ROUNDING, gini, keep_pq, largest, pq_index
from core.criterion import sample
from core.errors import Stopped
from core.evaluation import correct, logits
from core.figure import Figure, Reference
from core.layers import Mask, apply_mask, bake, draw_again, prunable, require_prunable
from core.method import choice, flag, number
from core.recipe import COMPRESSORS, Compressor
from core.run import Run
from core.training import Classification, Schedule, fit

WATCHED = 1000  # validation pictures on which every iteration's accuracy is measured
LOST = 0.02  # of accuracy: from there on the network counts as collapsing
Masks = dict[str, Tensor]  # layer -> what is left of its weight


@COMPRESSORS.register
@dataclass(frozen=True)
class Sap(Compressor):
    """Train, prune as far as the PQ index allows, rewind, repeat; or as the lottery ticket does.

    Every iteration trains the network, then looks at the d weights left in a group and takes the
    smallest of them. Rule "sap": the PQ index I says that no fewer than r = d (1 + slack)^(-q/(q-p))
    (1 - I)^(pq/(q-p)) carry the group, so min(gamma (d - r), beta d) go, r rounded up and the whole
    rounded down: an uneven group loses much, an even one nothing. "lottery" takes a fixed `share` of
    what is left. "one-shot" takes the same, judged for good by the first training. Then all
    weights, biases and norms are set back, to what the network had ("given") or to new ones drawn
    under the seed ("fresh", the paper's protocol), and it trains again with the gap in place; the
    last training comes after the last pruning. Weights that are zero at the beginning stay zero. No
    group loses its last weight. Biases and norms are not pruned.

    Records of every iteration: the weights remaining, PQ index and Gini index of all of them
    together, and accuracy on validation pictures.

    Source: Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023,
    arXiv:2302.05601, theorem 2 and algorithm 1; Frankle and Carbin, "The Lottery Ticket Hypothesis",
    ICLR 2019, arXiv:1803.03635 (the rule "lottery").
    """

    name: ClassVar[str] = "sap"
    title: ClassVar[str] = "SAP"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "iterations": 30,
            "epochs": 200,
            "learning_rate": 0.1,
            "batch_size": 250,
            "start": "fresh",
            "images": 1_000_000,
        }
    }

    rule: str = choice("sap", "lottery", "one-shot", help="What decides how much goes in every iteration")
    scope: str = choice("global", "layer", "neuron", help="Compare weights of the network, a layer, a neuron")
    iterations: int = number(5, 1, 30, 1, help="Prunings; each is followed by a training from the start")
    p: float = number(1.0, 0.1, 1.0, 0.1, help="Rule sap: the smaller exponent of the PQ index")
    ratio: float = number(2.0, 1.1, 10.0, 0.1, help="Rule sap: the larger exponent q, as a multiple of p")
    slack: float = number(0.0, 0.0, 1.0, 0.001, help="Rule sap: what may be lost, as a share of what is kept")
    gamma: float = number(1.0, 0.1, 10.0, 0.1, help="Rule sap: multiplies what the index would take")
    beta: float = number(0.9, 0.05, 0.95, 0.05, help="Rule sap: most of a group that one iteration takes")
    share: float = number(0.2, 0.01, 0.95, 0.01, help="Other rules: fraction of the weights left that goes")
    start: str = choice("given", "fresh", help="Rewind to the weights it was handed, or to new random ones")
    epochs: int = number(2, 1, 200, 1, help="Passes over the pictures in every iteration")
    learning_rate: float = number(0.02, 1e-6, 10.0, 1e-6, scale="log", help="Peak learning rate")
    batch_size: int = number(128, 1, 4096, 1, help="Pictures per step")
    crop: int = number(0, 0, 16, 1, unit="pixels", help="Random shift by up to this many pixels")
    flip: bool = flag(False, help="Mirror half of the pictures")
    images: int = number(2048, 1, 1_000_000, 1, help="Training pictures, drawn once; all if there are fewer")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        layers = require_prunable(model)
        train, watched = sample(setting.train, self.images), sample(setting.validation, WATCHED)
        left = {name: layer.weight != 0 for name, layer in layers.items()}
        if self.start == "fresh":
            _start_over(model)
        keys = {name: _hold(name, layer, left[name]) for name, layer in layers.items()}
        begin = {name: value.clone() for name, value in model.state_dict().items()}
        judged = done = None
        for iteration in run.track(range(self.iterations + 1), "Training and pruning"):
            model.load_state_dict(begin | {keys[name]: keep for name, keep in left.items()})
            try:
                fit(model, train, Classification(), self._schedule(), replace(run, records=[]))
            except Stopped:
                if done:  # a network that was just rewound is no result
                    model.load_state_dict(done)
                raise
            done = {name: value.clone() for name, value in model.state_dict().items()}
            weights = {name: layer.weight.detach() for name, layer in layers.items()}
            hits = correct(logits(model, watched), watched.labels).double().mean().item()
            run.record(iteration=iteration, **self._state(weights, left), validation_accuracy=hits)
            if self.rule != "one-shot" or judged is None:
                judged = weights
            if iteration < self.iterations:
                left = self._pruned(judged, left)
        return model

    def _schedule(self) -> Schedule:
        """The training of one iteration, with the paper's optimiser, decay and cosine."""
        same = {name: getattr(self, name) for name in Schedule.domains() if hasattr(self, name)}
        return Schedule(schedule="cosine", **same)

    def _pruned(self, weights: dict[str, Tensor], left: Masks) -> Masks:
        """What is left after one more pruning."""
        if self.scope == "global":
            every = [
                torch.cat([part.flatten() for part in parts.values()])[None] for parts in (weights, left)
            ]
            kept = self._keep(*every)[0].split([keep.numel() for keep in left.values()])
        else:
            rows = {name: len(keep) if self.scope == "neuron" else 1 for name, keep in left.items()}
            kept = [self._keep(weights[n].reshape(rows[n], -1), left[n].reshape(rows[n], -1)) for n in left]
        return {name: mask.reshape(left[name].shape) for name, mask in zip(left, kept, strict=True)}

    def _keep(self, weights: Tensor, left: Tensor) -> Tensor:
        """The mask (G, K) of what stays of the groups `weights` (G, K) of which `left` is there."""
        count = left.sum(-1)
        if self.rule == "sap":
            needed = keep_pq(weights, self.p, self.ratio * self.p, self.slack, left)
            needed = (needed * (1 - ROUNDING)).ceil().nan_to_num(torch.inf)  # a group of zeros has no index
            gone = (self.gamma * (count - needed)).clamp(min=0).minimum(self.beta * count)
        else:
            gone = self.share * count
        return largest(weights, count - (gone + ROUNDING).floor().long(), left)

    def _state(self, weights: dict[str, Tensor], left: Masks) -> dict[str, float]:
        """What is left of all weights together, and how uneven it is; NaN where nothing is."""
        every, there = (torch.cat([part.flatten() for part in parts.values()]) for parts in (weights, left))
        return {
            "remaining": there.double().mean().item(),
            "pq_index": pq_index(every, self.p, self.ratio * self.p, there).item(),
            "gini": gini(every, there).item(),
        }

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        if not any(layer.weight.any() for layer in prunable(before).values()):
            return ()  # there was nothing to prune
        shown = [_by_layer(before, after)]
        table = pd.DataFrame(run.records[-self.iterations - 1 :])
        if "pq_index" in table and table.pq_index.notna().any():
            shown += [_accuracy(table), _indices(table)]
        return tuple(shown)


def _start_over(model: nn.Module) -> None:
    """New numbers for every layer; masks hold as before."""
    held = [
        (layer, name, step.keep)
        for layer in model.modules()
        if parametrize.is_parametrized(layer)
        for name, steps in layer.parametrizations.items()
        for step in steps
        if isinstance(step, Mask)
    ]
    draw_again(bake(model))
    for layer, name, keep in held:
        apply_mask(layer, keep, name)


def _hold(name: str, layer: nn.Module, keep: Tensor) -> str:
    """Mask the weight of `layer`, and say what the state of the network calls that mask."""
    apply_mask(layer, keep)
    return f"{name}.parametrizations.weight.{len(layer.parametrizations.weight) - 1}.keep"


def _by_layer(before: nn.Module, after: nn.Module) -> Figure:
    old, new = prunable(before), prunable(after)
    kept = {name: [int(m[name].weight.count_nonzero()) for m in (new, old)] for name in old}
    rows = [(name, has / had) for name, (has, had) in kept.items() if had]
    table = pd.DataFrame(rows, columns=["layer", "remaining"])
    total = sum(has for has, _ in kept.values()) / sum(had for _, had in kept.values())
    most, least = (table.loc[i] for i in (table.remaining.idxmax(), table.remaining.idxmin()))
    return Figure(
        "What remains of each layer",
        f"{total:.1%} of the weights remain: {most.remaining:.1%} of {most.layer}, "
        f"{least.remaining:.1%} of {least.layer}.",
        table,
        "layer",
        "remaining",
        "bars",
        percent=frozenset({"remaining"}),
        labels={"remaining": "weights that remain"},
        references=(Reference("y", total, "all layers"),),
    )


def _accuracy(table: pd.DataFrame) -> Figure:
    first, last = table.iloc[0], table.iloc[-1]
    return Figure(
        "Accuracy by what remains",
        f"With {last.remaining:.1%} of the weights left the accuracy on validation pictures is "
        f"{last.validation_accuracy:.1%}, after {first.validation_accuracy:.1%} with {first.remaining:.1%}.",
        table,
        "remaining",
        "validation_accuracy",
        percent=frozenset({"remaining", "validation_accuracy"}),
        log=frozenset({"remaining"}),
        labels={"remaining": "weights that remain", "validation_accuracy": "accuracy"},
    )


def _indices(table: pd.DataFrame) -> Figure:
    known = table.dropna(subset="pq_index")
    least, first, last = known.loc[known.pq_index.idxmin()], known.iloc[0], known.iloc[-1]
    collapsed = known[known.validation_accuracy < first.validation_accuracy - LOST].iteration
    marks = [(least.iteration, "PQ index lowest")] if least.iteration < last.iteration else []
    marks += [(collapsed.iloc[0], f"{100 * LOST:g} points lost")] if len(collapsed) else []
    finding = (
        f"The PQ index goes from {first.pq_index:.3f} to {last.pq_index:.3f} and is lowest, "
        f"{least.pq_index:.3f}, at iteration {least.iteration:.0f}, where {least.remaining:.1%} of the "
        "weights remain: while it falls, trained weights even out; where it rises, few carry the rest."
    )
    names = {"pq_index": "PQ index", "gini": "Gini index"}
    long = known.rename(columns=names).melt("iteration", list(names.values()), "index", "value")
    return Figure(
        "How uneven the remaining weights are",
        finding,
        long,
        "iteration",
        "value",
        colour="index",
        labels={"value": "index (0: all equal)"},
        references=tuple(Reference("x", float(at), label) for at, label in marks),
    )
