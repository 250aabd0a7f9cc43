"""What was chosen from a pool of pictures: judged where the truth is known, and shown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.bundles import Split
from core.figure import Figure, Reference, picture
from core.pools import Pool
from core.positive_unlabeled import Scoring
from core.robust_distillation import worst_weights

BINS = 40  # of the histogram of scores
LINED = 8  # pictures in a row
SHOWN = 20  # classes at most, the heaviest
IN, OUT = "in the domain", "outside"


@dataclass(frozen=True, eq=False)
class Selection:
    """Kept pictures, a pool, and what was chosen from it."""

    positives: Split
    pool: Pool
    chosen: Tensor  # (U,) bool
    threshold: float = 0.0
    scoring: Scoring | None = None  # none where no classifier chose

    @property
    def kept(self) -> Split:
        """The pictures to go on with: positives and chosen ones. Labels of both are 0."""
        pixels = torch.cat([self.positives.pixels, self.pool.pictures.pixels[self.chosen]])
        return replace(self.positives, pixels=pixels, labels=torch.zeros(len(pixels)).long(), masks=None)

    def judged(self) -> tuple[int, float, float]:
        """Pictures chosen, the share of them that is right, the share of the right ones that is chosen."""
        return judged(self.chosen, self.pool.truth)

    def words(self) -> str:
        """How many were chosen and how well; why, where nothing was."""
        count, precision, recall = self.judged()
        if count:
            return (
                f"{count:,} of {len(self.pool):,} pictures were chosen; {precision:.1%} of them are in the "
                f"domain (precision), and {recall:.1%} of those in the domain were chosen (recall)"
            )
        words = "Nothing was chosen, so only the kept pictures were used"
        if self.scoring is not None and self.scoring.collapsed():
            words += (
                ": the classifier ended at the trivial solution, in which everything is outside and the risk "
                f"({self.scoring.risk:.3f}) is the prior; more passes may help"
            )
        return words


def judged(chosen: Tensor, truth: Tensor) -> tuple[int, float, float]:
    """Count, precision (0 where nothing is chosen) and recall of `chosen`, both (U,) bool."""
    right = int((chosen & truth).sum())
    return int(chosen.sum()), right / max(int(chosen.sum()), 1), right / max(int(truth.sum()), 1)


def histogram_figure(scores: dict[str, Tensor], truth: Tensor, threshold: float, finding: str) -> Figure:
    """Scores (U,) of one classifier or of several, coloured by truth; from 2 on, a panel each."""
    every = torch.cat(list(scores.values())).double().numpy()
    low, high = np.quantile(every, [0.002, 0.998])  # a score far out would leave no room for the others
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    parts = []
    for name, values in scores.items():
        for kind, members in ((IN, truth), (OUT, ~truth)):
            counts, _ = np.histogram(values[members].double().numpy().clip(low, high), edges)
            middles = (edges[1:] + edges[:-1]) / 2
            parts.append(pd.DataFrame({"by": name, "kind": kind, "score": middles, "pictures": counts}))
    return Figure(
        "Scores of the pool",
        finding,
        pd.concat(parts, ignore_index=True),
        "score",
        "pictures",
        "bars",
        colour="kind",
        panel="by" if len(scores) > 1 else "",
        labels={"score": "score; chosen above the threshold"},
        references=(Reference("x", threshold, "threshold"),),
    )


def trace_figure(scorings: dict[str, Scoring]) -> Figure:
    """Both parts of the risk while it is learned, of one classifier or of several, a panel each."""
    parts, words = [], []
    names = {"positive": "prior x R_P+", "negative": "N"}
    for name, scoring in scorings.items():
        trace = scoring.trace
        group = np.arange(len(trace)) * 100 // max(len(trace), 100)  # means of steps: a hundred points
        means = trace.groupby(group)[["step", *names]].mean().rename(columns=names)
        parts.append(means.melt("step", var_name="part", value_name="risk").assign(by=name))
        below = (trace.negative < 0).mean()
        words.append(
            f"{name}: N was below zero in {below:.0%} of the steps and ends at {scoring.negative:+.3f}"
        )
    return Figure(
        "The risk while the classifier learns",
        f"N stands for the risk on pictures outside, which cannot be negative. {'; '.join(words)}.",
        pd.concat(parts, ignore_index=True),
        "step",
        "risk",
        colour="part",
        panel="by" if len(scorings) > 1 else "",
        references=(Reference("y", 0.0, "zero"),),
    )


def sensitivity_figure(scorings: Sequence[Scoring], truth: Tensor, threshold: float, used: float) -> Figure:
    """Precision, recall and count against the prior that the classifier was told."""
    rows = []
    for scoring in scorings:
        chosen = scoring.unlabelled > threshold
        count, precision, recall = judged(chosen, truth)
        shares = {"precision": precision if count else np.nan, "recall": recall, "chosen": count / len(truth)}
        rows += [{"prior": scoring.prior, "measure": m, "share": share} for m, share in shares.items()]
    table = pd.DataFrame(rows)
    true = truth.double().mean().item()
    counts = table[table.measure == "chosen"].share
    finding = (
        f"In truth {true:.1%} of the pool are in the domain; the classifier was told {used:.1%}. Told "
        f"{scorings[0].prior:.0%}, it chooses {counts.iloc[0]:.1%} of the pool, told "
        f"{scorings[-1].prior:.0%}, {counts.iloc[-1]:.1%}."
    )
    return Figure(
        "What the assumed share decides",
        finding,
        table,
        "prior",
        "share",
        colour="measure",
        percent=frozenset({"prior", "share"}),
        labels={"prior": "share that the classifier is told"},
        references=(Reference("x", true, "true share"),),
    )


def origins_figure(selection: Selection) -> Figure:
    """Where the chosen pictures and the others came from."""
    names = selection.pool.names()
    table = pd.DataFrame({"origin": names, "fate": np.where(selection.chosen.numpy(), "chosen", "left")})
    table = table.groupby(["origin", "fate"], sort=False).size().unstack(fill_value=0)
    table = table.reindex(index=list(selection.pool.origins), columns=["chosen", "left"], fill_value=0)
    said = ", ".join(f"{row.chosen} of {row.sum()} {name}" for name, row in table.iterrows())
    return Figure(
        "What was chosen",
        f"{selection.words()}. By origin: {said}.",
        table.reset_index().melt("origin", var_name="fate", value_name="pictures"),
        "origin",
        "pictures",
        "bars",
        colour="fate",
    )


def balance_figure(named: Tensor, weights: Tensor, distances: Tensor, epsilon: float) -> Figure:
    """Classes `named` (N,) by the original, their weights (K,), and the worst of those near them on a batch.

    `distances` (B,) are those of the student to the original on the first B pictures.
    """
    often = named.bincount(minlength=len(weights)) / len(named)
    losses = torch.zeros_like(weights).index_add_(0, named[: len(distances)], distances) / len(distances)
    worst = worst_weights(weights, losses, epsilon)
    columns = {"how often, 1: evenly": often * len(weights), "weight": weights, "worst weight": worst}
    shown = weights.argsort(descending=True, stable=True)[:SHOWN].sort().values.tolist()
    rows = [
        {"class": f"class {k}", "number": name, "value": values[k].item()}
        for name, values in columns.items()
        for k in shown
    ]
    most, least = int(often.argmax()), int(often.argmin())
    finding = (
        f"The original names class {most} on {often[most]:.1%} of the {len(named):,} pictures, weight "
        f"{weights[most]:.2f}, and class {least} on {often[least]:.1%}, weight {weights[least]:.2f}. On "
        f"{len(distances)} pictures the student's loss is {weights @ losses:.3f}, and "
        f"{worst @ losses:.3f} with the worst weights within {epsilon:.2f}."
    )
    table = pd.DataFrame(rows)
    return Figure("Classes and their weights", finding, table, "class", "value", "bars", panel="number")


def pictures_figure(selection: Selection) -> Figure:
    """Pictures of the pool at both ends and on both sides of the threshold; mistakes are marked."""
    scores, truth, names = selection.scoring.unlabelled, selection.pool.truth, selection.pool.names()
    told, order = scores > selection.threshold, scores.argsort(descending=True, stable=True).tolist()
    edge = int(told.sum())
    groups = {
        "highest scores": order[:LINED],
        "just chosen": order[max(LINED, edge - LINED) : edge],
        "just left": order[edge : edge + LINED],
        "lowest scores": order[max(edge + LINED, len(order) - LINED) :],
    }
    table = pd.DataFrame(
        {
            "group": group,
            "picture": picture(selection.pool.pictures.pixels[index]),
            "caption": f"{names[index]}, {scores[index]:.1f}",
            "mistake": bool(told[index] != truth[index]),
        }
        for group, places in groups.items()
        for index in places
    )
    wrong = table.groupby("group", sort=False).mistake.agg(["sum", "size"])
    words = ", ".join(f"{row['sum']} of {row['size']} ({group})" for group, row in wrong.iterrows())
    return Figure(
        "Pictures of the pool",
        f"With origin and score. Judged wrongly, and marked: {words}.",
        table,
        "picture",
        "caption",
        "pictures",
        panel="group",
        value="mistake",
    )
