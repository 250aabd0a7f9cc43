"""Shapley values of any game: what a player adds to a coalition, on average over all orders of arrival.

A coalition of n players is a row of n booleans, True = present. Player i is bit i of its bitmask.
Everything is float64.
"""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import ParameterError

Payoff = Callable[[Tensor], Tensor]  # coalitions (M, n) bool -> what each is worth (M,)

PLAYERS = 16  # for which every coalition is asked about without further ado
MOST = 20  # ... and at all


class Game:
    """A payoff that is asked once about every coalition, and counts."""

    def __init__(self, payoff: Payoff, players: int) -> None:
        self.players = players
        self._payoff = payoff
        self._known: dict[int, float] = {}

    @property
    def evaluations(self) -> int:
        """How many different coalitions were asked about: what an estimate costs."""
        return len(self._known)

    def __call__(self, coalitions: Tensor) -> Tensor:
        """(M, n) bool -> (M,) float64.

        Raises:
            ParameterError: a payoff is not finite.
        """
        keys = bitmasks(coalitions)
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            rows = coalitions[list(new.values())]
            values = self._payoff(rows).double()
            if not (finite := values.isfinite()).all():
                row = int((~finite).nonzero()[0])
                present = rows[row].nonzero()[:, 0].tolist()
                raise ParameterError(
                    f"shapley: the payoff of coalition {present} must be finite, got {values[row].item()}"
                )
            self._known.update(zip(new, values.tolist(), strict=True))
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64)


# coalitions


def bitmasks(coalitions: Tensor) -> list[int]:
    """(M, n) bool -> M whole numbers, in which bit i is player i."""
    packed = np.packbits(coalitions.numpy(), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def every(players: int) -> Tensor:
    """All coalitions (2^n, n) bool, in order of their bitmasks."""
    return (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1 == 1


def table(game: Game, force: bool = False) -> Tensor:
    """What every coalition is worth, (2^n,), in order of bitmasks.

    Raises:
        ParameterError: there are more than 16 players, or with `force` more than 20.
    """
    most = MOST if force else PLAYERS
    if game.players > most:
        raise ParameterError(
            f"shapley: players must be at most {most} to try all coalitions, "
            f"got {game.players}, which make 2^{game.players} = {2**game.players:,}"
        )
    return game(every(game.players))


def _drawn(sizes: Tensor, players: int) -> Tensor:
    """One coalition (M, n) of each of `sizes` (M,), uniform among those of its size."""
    return torch.rand(len(sizes), players).argsort(1).argsort(1) < sizes[:, None]


# exact values


def exact(game: Game, force: bool = False) -> Tensor:
    """The Shapley value (n,) from all 2^n coalitions; see `table`."""
    return of_table(table(game, force))


def of_table(worth: Tensor) -> Tensor:
    """The Shapley value (n,) of a game that is given as `table` gives it."""
    players = len(worth).bit_length() - 1
    coalitions = every(players)
    sizes = coalitions.sum(1)
    values = []
    for player in range(players):
        without = (~coalitions[:, player]).nonzero()[:, 0]
        gain = worth[without + 2**player] - worth[without]
        values.append((_weights(players)[sizes[without]] * gain).sum())
    return torch.stack(values)


def _weights(players: int) -> Tensor:
    """|S|! (n - |S| - 1)! / n! of a player's gain when S is already there, by |S| = 0 ... n - 1."""
    weights = [1 / (players * math.comb(players - 1, size)) for size in range(players)]
    return torch.tensor(weights, dtype=torch.float64)


def leave_up_to(game: Game, most: int, scaled: bool = False) -> Tensor:
    """The part of the Shapley value (n,) that is earned where at most `most` players are missing.

    The player itself counts as missing before it arrives. `most` = n gives the whole value, 1 the
    drop when a player alone leaves, over n. `scaled` multiplies by n / most: the mean gain there.

    Raises:
        ParameterError: `most` is not in [1, n].
    """
    n = game.players
    if not 1 <= most <= n:
        raise ParameterError(f"shapley: most must lie in [1, {n}], got {most}")
    missing = [gone for size in range(most + 1) for gone in combinations(range(n), size)]
    coalitions = torch.ones(len(missing), n, dtype=torch.bool)
    for row, gone in enumerate(missing):
        coalitions[row, list(gone)] = False
    worth = dict(zip(missing, game(coalitions).tolist(), strict=True))
    weights, values = _weights(n).tolist(), [0.0] * n
    for gone in missing[1:]:
        for place, player in enumerate(gone):
            before = worth[gone[:place] + gone[place + 1 :]]
            values[player] += weights[n - len(gone)] * (before - worth[gone])
    return torch.tensor(values, dtype=torch.float64) * (n / most if scaled else 1)


# orders


def paired_ranks(pairs: int, players: int) -> Tensor:
    """(pairs, 2, n): who leaves how early, 0 first, in random orders and in their reverse."""
    ranks = torch.rand(pairs, players).argsort(1)
    return torch.stack([ranks, players - 1 - ranks], 1)


def gains(worth: Tensor, ranks: Tensor) -> Tensor:
    """The drop (..., n) when each player leaves; `worth` (..., n + 1): after 0 ... n leavings."""
    return (worth[..., :-1] - worth[..., 1:]).gather(-1, ranks)


def mean_and_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (n,) of independent samples (M, n) and its standard error (n,), NaN of a single sample."""
    errors = samples.std(0) / math.sqrt(len(samples)) if len(samples) > 1 else torch.nan * samples[0]
    return samples.mean(0), errors


def permutation(game: Game, pairs: int, truncate: float = 0.0) -> tuple[Tensor, Tensor]:
    """Shapley value (n,) and standard error (n,) from random orders, each played forwards and backwards.

    All players leave one by one, and a player's value is the mean drop when it leaves. Once what is
    left is worth within `truncate` of nobody's worth, so is the rest of that order: cheaper, biased.

    Raises:
        ParameterError: there is no pair.
    """
    if pairs < 1:
        raise ParameterError(f"shapley: pairs must be at least 1, got {pairs}")
    n = game.players
    ranks = paired_ranks(pairs, n).flatten(0, 1)  # (M, n)
    full, nothing = game(torch.tensor([[True] * n, [False] * n])).tolist()
    worth = torch.full((len(ranks), n + 1), nothing, dtype=torch.float64)
    worth[:, 0] = full
    for gone in range(1, n):
        going_on = (worth[:, gone - 1] - nothing).abs() >= truncate if truncate else slice(None)
        worth[going_on, gone] = game(ranks[going_on] >= gone)
    return mean_and_error(gains(worth, ranks).view(pairs, 2, n).mean(1))


# regression


def kernel(game: Game, samples: int | None = None) -> Tensor:
    """Shapley value (n,) as the additive game nearest to this one, in weighted least squares.

    Coalitions are drawn in proportion to their weights, each with its complement; without
    `samples` all of them are used, and the value is exact.

    Raises:
        ParameterError: the coalitions drawn leave it open.
    """
    n = game.players
    full, nothing = game(torch.tensor([[True] * n, [False] * n])).tolist()
    if samples is None:
        worth = table(game)[1:-1]
        coalitions = every(n)[1:-1]
        sizes = coalitions.sum(1)
        weights = (
            1 / (torch.tensor([math.comb(n, size) for size in sizes.tolist()]) * sizes * (n - sizes)).double()
        )
    else:
        coalitions = kernel_coalitions(samples // 2, n).flatten(0, 1)
        worth, weights = game(coalitions), torch.ones(len(coalitions), dtype=torch.float64)
    rows = coalitions.double()
    excess = worth - nothing - rows.mean(1) * (full - nothing)
    weighted = weights[:, None] * rows
    return nearest_additive(weighted.T @ rows, weighted.T @ excess) + (full - nothing) / n


def kernel_coalitions(pairs: int, players: int) -> Tensor:
    """(pairs, 2, n) bool: coalitions drawn in proportion to their weight in `kernel`, with complements."""
    if players == 1:
        return torch.empty(0, 2, 1, dtype=torch.bool)  # somebody is present, somebody is not
    sizes = torch.arange(1, players)
    likely = 1 / (sizes * (players - sizes)).double()
    drawn = torch.multinomial(likely, max(pairs, 1), replacement=True)[:pairs] + 1
    coalitions = _drawn(drawn, players)
    return torch.stack([coalitions, ~coalitions], 1)


def nearest_additive(moments: Tensor, products: Tensor) -> Tensor:
    """The x (n,), which sum to zero, with the least squared error of sum_S x for the excess of every S.

    The excess of a coalition is what it is worth beyond equal shares; `moments` (n, n) are the
    weighted sums of the outer products of coalitions, `products` (n,) those of coalition times excess.

    Raises:
        ParameterError: the coalitions leave x open.
    """
    n = len(products)
    if n == 1:
        return torch.zeros_like(products)
    system = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    system[:n, :n] = moments
    system[n, :n] = system[:n, n] = moments.diagonal().mean()
    if torch.linalg.matrix_rank(system) <= n:
        raise ParameterError(f"shapley: need more coalitions to tell {n} players apart")
    return torch.linalg.solve(system, F.pad(products, (0, 1)))[:n]


def uniform_regression(game: Game, samples: int | None = None) -> Tensor:
    """Slopes (n,) of an unweighted regression on who is present: what the author code of 2407.15875 fits.

    The number of missing players is uniform on 1 ... n - 1, and there is an intercept. It does not
    tend to the Shapley value. Without `samples` all coalitions are used, every size with equal weight.

    Raises:
        ParameterError: the coalitions drawn leave it open.
    """
    n = game.players
    if samples is None:
        coalitions = every(n)[1:-1]
        worth = table(game)[1:-1]
        weights = torch.tensor([1 / math.comb(n, size) for size in coalitions.sum(1).tolist()]).double()
    else:
        coalitions = _drawn(torch.randint(1, max(n, 2), (samples,)), n)
        worth, weights = game(coalitions), torch.ones(samples, dtype=torch.float64)
    rows = torch.cat([coalitions.double(), torch.ones(len(worth), 1, dtype=torch.float64)], 1)
    root = weights.sqrt()[:, None]
    if torch.linalg.matrix_rank(root * rows) <= n:
        raise ParameterError(f"shapley: need more coalitions for {n} players, got {len(rows)}")
    return torch.linalg.lstsq(root * rows, root * worth[:, None]).solution[:n, 0]


# the best coalitions


def oracle(worth: Tensor) -> Tensor:
    """The best coalition of every size: row r of (n + 1, n) bool has r players. Ties go to the lower bitmask.

    `worth` is what `table` gives. What is best to remove is the complement of what is best to keep.
    """
    coalitions = every(len(worth).bit_length() - 1)
    sizes = coalitions.sum(1)
    best = [np.where(sizes == size, worth, -np.inf).argmax() for size in range(coalitions.shape[1] + 1)]
    return coalitions[torch.tensor(best)]


def oracle_order(sets: Tensor, values: Tensor) -> Tensor:
    """Players (n,), best first, by how many sets of the `oracle` have them; ties by `values` (n,)."""
    counts = sets[1:-1].sum(0)
    return torch.from_numpy(np.lexsort((-values.numpy(), -counts.numpy())))


def nested(sets: Tensor) -> tuple[int, int]:
    """How many neighbouring sets of the `oracle` (1 ... n - 1 players) are nested, and of how many."""
    inner, outer = sets[1:-2], sets[2:-1]
    return int((~inner | outer).all(1).sum()), len(inner)


def order_of(scores: Tensor) -> Tensor:
    """Players (n,) from the highest score to the lowest; ties in order of position."""
    return scores.argsort(descending=True, stable=True)


def agreement(order: Tensor, sets: Tensor, most: int = 5, side: str = "keep") -> float:
    """Share of the oracle's players among the first of `order`, over its sets of 1 ... `most` players.

    With `side` "remove": of the players that it removes among the last.
    """
    n = len(order)
    most = min(most, n - 1) or 1
    if side == "remove":
        order, sets = order.flip(0), (~sets).flip(0)
    hits = sum(int(sets[size, order[:size]].sum()) for size in range(1, most + 1))
    return hits / (most * (most + 1) / 2)
