"""How many directions a matrix uses: singular values, four ways to count them, what truncation loses.

Matrices are (m, n) and computed in float64; s are their singular values, largest first.
"""

import math

import numpy as np
import torch
from torch import Tensor


def unfolding(weight: Tensor, side: str = "output") -> Tensor:
    """The weight of a layer as a matrix, one row for every output (or input) channel.

    (O, I, ...) becomes (O, I * ...), or with side "input" (I, O * ...): the columns are what the
    channel's filters hold.

    Raises:
        TypeError: it has fewer than two dimensions, as a bias.
    """
    if weight.dim() < 2:
        raise TypeError(f"a matrix form needs a weight of at least 2 dimensions, got {weight.dim()}")
    return (weight if side == "output" else weight.transpose(0, 1)).flatten(1)


def singular_values(matrix: Tensor) -> np.ndarray:
    """The min(m, n) singular values, largest first.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    if not matrix.isfinite().all():
        raise ValueError("a spectrum needs finite entries, got NaN or infinite ones")
    return torch.linalg.svdvals(matrix.detach().double().cpu()).numpy()


def participation_ratio(s: np.ndarray) -> float:
    """(sum s^2)^2 / sum s^4: k where k values are equal and the others 0; NaN where all are 0."""
    energies = _energies(s)
    return float(1 / (energies**2).sum()) if len(energies) else math.nan


def random_participation(rows: int, columns: int) -> float:
    """What the participation ratio of a matrix of independent random entries is close to: m n / (m + n)."""
    return rows * columns / (rows + columns)


def entropy_rank(s: np.ndarray) -> float:
    """exp of the entropy of s / sum s; NaN where all are 0."""
    shares = s[s > 0] / s.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else math.nan


def stable_rank(s: np.ndarray) -> float:
    """sum s^2 / s_1^2; NaN where all are 0."""
    energies = _energies(s)
    return float(1 / energies[0]) if len(energies) else math.nan


def energy_rank(s: np.ndarray, energy: float) -> int:
    """The smallest rank, at least 1, that keeps the share `energy` of sum s^2.

    Raises:
        ValueError: `energy` does not lie in (0, 1].
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must lie in (0, 1], got {energy}")
    kept = np.cumsum(_energies(s))
    return int((kept < energy * (1 - 1e-12)).sum()) + 1 if len(kept) else 1  # sums are that exact


def truncation_errors(s: np.ndarray) -> np.ndarray:
    """|W - W_r| / |W| in the Frobenius norm of the best rank-r matrix W_r, for r = 0 ... min(m, n)."""
    lost = np.append(np.cumsum((s**2)[::-1])[::-1], 0.0)  # from the small end: no cancellation
    return np.sqrt(lost / lost[0]) if lost[0] else np.zeros(len(lost))


def _energies(s: np.ndarray) -> np.ndarray:
    """s^2 / sum s^2 of the values above 0, without overflow of their squares."""
    positive = s[s > 0]
    scaled = positive / positive[0] if len(positive) else positive
    return scaled**2 / (scaled**2).sum()
