"""Shapley ranks: one layer's filters, valued by every estimator and ranked by every criterion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core import coupling, shapley
from core.bundles import Setting
from core.coalitions import Coalitions
from core.criterion import CRITERIA, Scores, sample
from core.errors import ParameterError, UnsupportedModelError
from core.evaluation import Z
from core.figure import Figure, Reference
from core.lab import LABS, Lab
from core.layers import prunable
from core.method import number
from core.run import Run

EXACT = 12  # players up to which every coalition is played
FEWEST = 3  # players of which a ranking says something
QUICK = 100  # pairs of orders, one picture each, by which players are chosen
PER_PLAYER = 10  # coalitions that a regression has for every player
PAIRS = 5  # of random orders whose mean is the floor
SIZES = 16  # numbers of filters at which a curve is measured, at most
RIVALS = ("filter-l1", "filter-l2", "taylor", "random")  # criteria
CURVES = ("exact", "permutation", "leave one out", "filter-l1", "filter-l2", "taylor")


@LABS.register
@dataclass(frozen=True)
class ShapleyRanks(Lab):
    """The filters of one layer: what each is worth, which rankings agree, and what they keep.

    The payoff is the accuracy on `images` validation pictures when only a coalition of the layer's
    filters is present; an absent one is silent, with the batch norm behind it. The `units` filters
    that a quick estimate holds most valuable play, the others are silent throughout. Up to 12 play
    every coalition, so that exact Shapley values are known, and the best set of every size, the
    oracle; of more players there are estimates only, and no oracle. Accuracy is counted on the
    pictures of the payoff, where nothing beats the oracle.

    Source: Adamczewski, Li and Van Gool, "Shapley Pruning for Neural Network Compression", 2024,
    arXiv:2407.15875.
    """

    name: ClassVar[str] = "shapley-ranks"

    layer: int = number(1, 1, 500, 1, help="Which layer, counted back from the one that makes the logits")
    units: int = number(12, 3, 64, 1, help="Filters that play, the most valuable ones; up to 12 exactly")
    images: int = number(200, 10, 5000, 10, help="Validation pictures on which coalitions are judged")
    permutations: int = number(
        10, 4, 200, 2, help="Orders of the permutation estimate, half of them reversed"
    )

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        layer = self._layer(setting)
        with run.step(0, 5):
            pictures = sample(setting.validation, self.images)
            coalitions = Coalitions(setting.teacher, pictures, run=run)
        with run.step(1, 5):
            players = self._players(coalitions, layer, run)
        with run.step(2, 5):
            match = _Match.of(coalitions, layer, players, run)
        with run.step(3, 5):
            match.estimate(-(-self.permutations // 2))
        with run.step(4, 5):
            for name in run.track(RIVALS, "Scoring by other criteria"):
                found = CRITERIA[name]().filter_scores(setting.teacher, setting, run)
                match.scores[name] = found[layer].double().cpu()[players]
        return match.values(), match.agreement(), *match.curves_and_costs()

    def _layer(self, setting: Setting) -> str:
        example = setting.train.take(slice(0, 1)).images
        logits = coupling.output_layers(setting.teacher, example)
        inner = [name for name in prunable(setting.teacher) if name not in logits]
        if not inner:
            raise UnsupportedModelError(
                f"{self.name}: the model must have a layer in front of its logits, got none"
            )
        if self.layer > len(inner):
            raise ParameterError(f"{self.name}: layer must lie in [1, {len(inner)}], got {self.layer}")
        return inner[-self.layer]

    def _players(self, coalitions: Coalitions, layer: str, run: Run) -> Tensor:
        """The filters (n,) that play, in order of position."""
        width = coalitions.widths[layer]
        if width < FEWEST:
            raise UnsupportedModelError(
                f"{self.name}: layer {layer} must have at least {FEWEST} filters, got {width}"
            )
        if width <= self.units:
            return torch.arange(width)
        values, _ = coalitions.permutation(layer, QUICK, 1, run)
        return shapley.order_of(values)[: self.units].sort().values


@dataclass(eq=False)
class _Match:
    """A game of n filters, what estimators and criteria make of it, and the figures of that."""

    layer: str
    players: Tensor  # (n,) filters of the layer
    game: shapley.Game
    best: Tensor | None  # the oracle's sets (n + 1, n), where all coalitions were played
    scores: Scores = field(default_factory=dict)  # ranking -> (n,)
    errors: Tensor | None = None  # standard errors (n,) of the permutation estimate
    spent: list[dict] = field(default_factory=list)  # estimator, coalitions that it asked for, its scores

    @classmethod
    def of(cls, coalitions: Coalitions, layer: str, players: Tensor, run: Run) -> "_Match":
        exactly = len(players) <= EXACT
        still = Run(lambda progress: run.report(0.0, progress.message))  # for coalitions in small parts
        whole = coalitions.game(layer, run if exactly else still)

        def payoff(present: Tensor) -> Tensor:
            everybody = torch.zeros(len(present), whole.players, dtype=torch.bool)
            everybody[:, players] = present
            return whole(everybody)

        game = shapley.Game(payoff, len(players))
        return cls(layer, players, game, shapley.oracle(shapley.table(game)) if exactly else None)

    def estimate(self, pairs: int) -> None:
        """Value the players by every estimator, each with an account of its own."""
        regressions = PER_PLAYER * len(self.players)
        if self.best is not None:
            self._try("exact", shapley.exact)
            self._try("leave up to 2 out", partial(shapley.leave_up_to, most=2, scaled=True))
        self._try("leave one out", partial(shapley.leave_up_to, most=1, scaled=True))
        for some in [*(few for few in (1, 2, 4) if few < pairs), pairs]:
            self._try("permutation", lambda game, some=some: self._permutation(game, some))
        self._try("kernel", partial(shapley.kernel, samples=regressions))
        self._try("uniform regression", partial(shapley.uniform_regression, samples=regressions))

    def _try(self, name: str, estimator: Callable[[shapley.Game], Tensor]) -> None:
        game = shapley.Game(self.game, self.game.players)
        self.scores[name] = estimator(game)
        order = shapley.order_of(self.scores[name])
        self.spent.append({"estimator": name, "coalitions": game.evaluations, "order": order})

    def _permutation(self, game: shapley.Game, pairs: int) -> Tensor:
        values, self.errors = shapley.permutation(game, pairs)
        return values

    def values(self) -> Figure:
        """Bars of what filters are worth, with standard errors where there are any."""
        n = len(self.players)
        nothing, full = self.game(torch.tensor([[False] * n, [True] * n])).tolist()
        rows = []
        for name in ("exact", "permutation", "leave one out"):
            for place, value in enumerate(self.scores.get(name, torch.empty(0)).tolist()):
                error = Z * self.errors[place].item() if name == "permutation" else 0.0
                row = {"filter": f"filter {self.players[place]}", "estimator": name, "value": value}
                rows.append(row | {"low": value - error, "high": value + error})
        sums = {name: self.scores[name].sum().item() for name in ("permutation", "leave one out")}
        finding = (
            f"{self.layer}: accuracy is {full:.1%} with the {n} filters that play, {nothing:.1%} with none. "
            f"Permutation values add up to the difference, {sums['permutation']:.1%}; drops when one alone "
            f"is left out, to {sums['leave one out']:.1%}. Standard errors are {self.errors.mean():.2%} on "
            "average; whiskers are 95 %."
        )
        return Figure(
            "What each filter is worth",
            finding,
            pd.DataFrame(rows),
            "filter",
            "value",
            "bars",
            "estimator",
            low="low",
            high="high",
            percent=frozenset({"value", "low", "high"}),
            labels={"value": "accuracy that the filter adds"},
        )

    def agreement(self) -> Figure:
        """Spearman's correlation of every two rankings."""
        correlation = pd.DataFrame({name: s.numpy() for name, s in self.scores.items()}).corr("spearman")
        truth = "exact" if self.best is not None else "permutation"
        others = correlation[truth].drop([truth, "random"]).dropna().sort_values()
        finding = f"{self.layer}: "
        if len(others):
            finding += (
                f"of the other rankings, {others.index[-1]} agrees most with the {truth} one (Spearman "
                f"{others.iloc[-1]:.2f}) and {others.index[0]} least ({others.iloc[0]:.2f}). "
            )
        chance = min(Z / np.sqrt(len(self.players) - 1), 1.0)
        finding += f"Of {len(self.players)} filters, chance alone reaches {chance:.2f} one time in twenty."
        table = correlation.rename_axis("ranking").reset_index()
        table = table.melt("ranking", var_name="other", value_name="spearman")
        return Figure(
            "Which rankings agree",
            finding,
            table,
            "ranking",
            "other",
            "heat",
            value="spearman",
            labels={"other": "other ranking", "spearman": "Spearman's correlation"},
        )

    def curves_and_costs(self) -> tuple[Figure, Figure]:
        """Accuracy against filters kept, and what each estimate earns for the coalitions that it asks for."""
        n = len(self.players)
        sizes = np.unique(np.linspace(1, n, min(n, SIZES)).round().astype(int))
        inner = sizes < n  # all filters are the same whoever ranks them
        curves = {}
        if self.best is not None:
            curves["oracle"] = self.game(self.best[sizes])
        for name in CURVES:
            if name in self.scores:
                curves[name] = self._curve(shapley.order_of(self.scores[name]).argsort(), sizes)
        leavings = shapley.paired_ranks(PAIRS, n).flatten(0, 1)
        curves["random"] = torch.stack([self._curve(ranks, sizes) for ranks in leavings]).mean(0)
        means = {name: curve[inner].mean().item() for name, curve in curves.items()}
        table = pd.DataFrame(
            [
                {"kept": int(size), "ranking": name, "accuracy": value}
                for name, curve in curves.items()
                for size, value in zip(sizes, curve.tolist(), strict=True)
            ]
        )
        finding = f"{self.layer}, mean accuracy over 1 to {n - 1} filters kept: "
        finding += ", ".join(f"{name} {mean:.1%}" for name, mean in means.items()) + ". "
        if self.best is None:
            finding += f"More than {EXACT} filters play, so the best sets are not known."
        else:
            finding += "The best sets contain one another in {} of {} steps.".format(
                *shapley.nested(self.best)
            )
        kept = Figure(
            "What rankings keep",
            finding,
            table,
            "kept",
            "accuracy",
            colour="ranking",
            percent=frozenset({"accuracy"}),
            labels={"kept": "filters kept", "accuracy": "accuracy, no training after"},
        )
        rows = [
            {
                "estimator": spent["estimator"],
                "coalitions": spent["coalitions"],
                "accuracy": self._curve(spent["order"].argsort(), sizes)[inner].mean().item(),
            }
            for spent in self.spent
        ]
        return kept, self._costs(pd.DataFrame(rows), means)

    def _costs(self, table: pd.DataFrame, means: dict[str, float]) -> Figure:
        """What each estimate earns for the coalitions that it asks for."""
        cheapest, best = (table.loc[i] for i in (table.coalitions.idxmin(), table.accuracy.idxmax()))
        finding = (
            f"{self.layer}: the cheapest estimate, {cheapest.estimator}, asks for {cheapest.coalitions:,} "
            f"coalitions and keeps {cheapest.accuracy:.1%} on average; the best, {best.estimator}, asks for "
            f"{best.coalitions:,} and keeps {best.accuracy:.1%}. Without any, filter-l2 keeps "
            f"{means['filter-l2']:.1%}."
        )
        lines = [name for name in ("oracle", "filter-l2", "random") if name in means]
        return Figure(
            "What an estimate costs and earns",
            finding,
            table,
            "coalitions",
            "accuracy",
            "points",
            "estimator",
            log=frozenset({"coalitions"}),
            percent=frozenset({"accuracy"}),
            labels={"coalitions": "coalitions asked for", "accuracy": "mean accuracy over filters kept"},
            references=tuple(Reference("y", means[name], name) for name in lines),
        )

    def _curve(self, ranks: Tensor, sizes: np.ndarray) -> Tensor:
        """What the first players are worth, at `sizes` (S,); `ranks` (n,) says who is how far in front."""
        return self.game(ranks < torch.from_numpy(sizes)[:, None])
