"""SAP phases: what the PQ index of a small network does while SAP, or the lottery ticket, prunes it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from core.bundles import DATASETS, MODELS, Setting
from core.errors import Stopped
from core.figure import Figure, Reference
from core.lab import LABS, Lab
from core.method import choice, number
from core.recipe import COMPRESSORS, Compressor, Recipe, compress
from core.run import Run

RULES = {"sap": "SAP", "lottery": "lottery ticket", "one-shot": "one shot"}
LOST = 0.02  # of accuracy: from there on the network counts as collapsing
EVERYTHING = 1_000_000  # pictures: all that there are


@LABS.register
@dataclass(frozen=True)
class SapPhases(Lab):
    """An MLP learns digits, is pruned and rewound again and again: by SAP, lottery ticket or one shot.

    A network 64-128-10 learns the 1,797 digits of 8 x 8 pixels from new random weights, loses weights and
    is rewound to the same random weights, by the method `sap` with each of its three rules; all start
    alike. In the first iterations the PQ index of the trained weights falls while accuracy holds: pruning
    regularises. Then both hold: it compresses. At last the accuracy goes. A large `gamma` shows it all
    in few iterations. The network of the page plays no part.

    Source: Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023,
    arXiv:2302.05601.
    """

    name: ClassVar[str] = "sap-phases"
    title: ClassVar[str] = "SAP phases"

    scope: str = choice("global", "layer", "neuron", help="Compare weights of the network, a layer, a neuron")
    p: float = number(1.0, 0.1, 1.0, 0.1, help="The smaller exponent of the PQ index")
    ratio: float = number(2.0, 1.1, 10.0, 0.1, help="The larger exponent q, as a multiple of p")
    gamma: float = number(1.0, 0.1, 10.0, 0.1, help="Multiplies what the PQ index would take")
    share: float = number(
        0.2, 0.01, 0.95, 0.01, help="Lottery ticket, one shot: fraction that goes each time"
    )
    iterations: int = number(8, 1, 30, 1, help="Prunings; each is followed by a training from the start")
    epochs: int = number(10, 1, 50, 1, help="Passes over the 1,078 training pictures in every iteration")
    seeds: int = number(2, 1, 10, 1, help="Initial weights that the numbers are means over")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        data = DATASETS["digits"]().load()
        network = MODELS["mlp"](hidden=128, depth=1).build(data.shape, len(data.classes))
        setting = Setting(data.train, data.validation, network)
        seeds = torch.randint(2**31, (self.seeds,)).tolist()
        pairs = [(rule, seed) for seed in seeds for rule in RULES]
        rows: list[dict] = []
        for rule, seed in run.track(pairs, "Training and pruning"):
            inner = replace(run, records=[])
            made = compress(network, setting, Recipe((self._method(rule),), seed), inner)
            if not made.finished:
                raise Stopped
            rows += [{"rule": RULES[rule], "seed": seed, **record} for record in made.records]
        groups = pd.DataFrame(rows).groupby(["rule", "iteration"], sort=False)
        means, spread = groups.mean(), groups.validation_accuracy
        means = means.assign(low=spread.min(), high=spread.max()).drop(columns="seed").reset_index()
        return (_accuracy(means, len(data.validation), self.seeds), _indices(means))

    def _method(self, rule: str) -> Compressor:
        return COMPRESSORS["sap"](
            rule=rule,
            scope=self.scope,
            p=self.p,
            ratio=self.ratio,
            gamma=self.gamma,
            share=self.share,
            iterations=self.iterations,
            epochs=self.epochs,
            start="fresh",
            learning_rate=0.1,
            images=EVERYTHING,
        )


def _accuracy(means: pd.DataFrame, pictures: int, seeds: int) -> Figure:
    ends = means.groupby("rule", sort=False).remaining.min()
    common = ends.max()
    there = {
        rule: np.interp(common, part.remaining[::-1], part.validation_accuracy[::-1])
        for rule, part in means.groupby("rule", sort=False)
    }
    reached = ", ".join(f"{rule} {value:.1%}" for rule, value in there.items())
    finding = (
        f"With {common:.1%} of the weights, the fewest to which all three get, the accuracy is {reached} "
        f"(read between iterations; mean of {seeds} initial weights, {pictures} validation pictures); "
        f"with all weights it is {means.validation_accuracy.iloc[0]:.1%}."
    )
    return Figure(
        "Accuracy by what remains",
        finding,
        means,
        "remaining",
        "validation_accuracy",
        colour="rule",
        low="low",
        high="high",
        log=frozenset({"remaining"}),
        percent=frozenset({"remaining", "validation_accuracy", "low", "high"}),
        labels={"remaining": "weights that remain", "validation_accuracy": "accuracy"},
    )


def _indices(means: pd.DataFrame) -> Figure:
    sap = means[means.rule == RULES["sap"]]
    least, first, last = sap.loc[sap.pq_index.idxmin()], sap.iloc[0], sap.iloc[-1]
    collapsed = sap[sap.validation_accuracy < first.validation_accuracy - LOST]
    marks = ()
    finding = (
        f"SAP takes the PQ index of the trained weights from {first.pq_index:.3f} to "
        f"{sap.pq_index.iloc[1]:.3f} in its first iteration and to {least.pq_index:.3f} at its lowest, "
        f"iteration {least.iteration:.0f}; "
    )
    if len(collapsed):
        lost = collapsed.iloc[0]
        marks = (Reference("x", float(lost.iteration), "SAP loses accuracy"),)
        finding += f"at iteration {lost.iteration:.0f} more than {100 * LOST:g} points of accuracy are lost."
    else:
        finding += (
            f"down to {last.remaining:.1%} of the weights at most {100 * LOST:g} points of accuracy go."
        )
    names = {"pq_index": "PQ index", "gini": "Gini index"}
    long = means.rename(columns=names).melt(["rule", "iteration"], list(names.values()), "index", "value")
    return Figure(
        "How uneven the remaining weights are",
        finding,
        long,
        "iteration",
        "value",
        colour="rule",
        panel="index",
        labels={"value": "index (0: all equal)"},
        references=marks,
    )
