"""How far a layer's weights moved: AP2, a distance, and AP3, between distributions centred on them.

Weights before and after are two tensors of one shape with n entries each, read as float64. AP3 is a
Kullback-Leibler divergence, in nats, of distributions on a latent space whose centre is the weights;
their width is chosen, not estimated. Also here: what the loss makes of such a move, to second order.

Source: Mozafari-Nia and Yasaei Sekeh, "Towards Explaining Deep Neural Network Compression Through a
Probabilistic Latent Space", 2024, arXiv:2403.00155.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from core.criterion import Ranking
from core.errors import ParameterError
from core.method import brief
from core.registry import unknown

NU = 4.0  # degrees of freedom of the Student-t, the paper's
GROUPS = 100  # groups whose means are its centre, about the paper's number
PAIRS = 20_000  # antithetic pairs of draws
SMALL = 0.3  # a shift below which the second order is the answer
LARGEST_COVARIANCE = 4096  # weights up to which a full covariance, n^2 numbers, is taken

RULES = ("lowest", "highest", "random", "structured")  # which weights go


class Estimate(NamedTuple):
    """A number and the standard error of the draws it is the mean of; 0 where nothing was drawn."""

    value: float
    error: float


def difference(before: Tensor, after: Tensor) -> Tensor:
    """after - before, (n,) float64.

    Raises:
        ParameterError: the shapes differ, or an entry is NaN or infinite.
    """
    if before.shape != after.shape:
        raise ParameterError(
            "latent: the weights must have one shape (lay the smaller out among zeros first), "
            f"got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    if not (before.isfinite().all() and after.isfinite().all()):
        raise ParameterError("latent: weights must be finite, got NaN or infinity")
    return after.detach().flatten().double() - before.detach().flatten().double()


def ap2(before: Tensor, after: Tensor) -> float:
    """The squared Euclidean distance; P, the paper's projection, is the identity."""
    return difference(before, after).square().sum().item()


def ap2_relative(before: Tensor, after: Tensor) -> float:
    """AP2 of the squared norm before: 1 where all became zero, NaN where all were."""
    norm = before.double().square().sum().item()
    return ap2(before, after) / norm if norm else math.nan


def ap3_gaussian(before: Tensor, after: Tensor, covariance: float | Tensor = 1.0) -> float:
    """Between N(before, Sigma) and N(after, Sigma): half of delta^T Sigma^-1 delta.

    `covariance` is lambda for Sigma = lambda I, its diagonal (n,), or all of it (n, n). With
    lambda I it is AP2 / (2 lambda): AP2 in other units.

    Raises:
        ParameterError: Sigma is not symmetric positive definite, or has not n rows.
    """
    delta = difference(before, after)
    sigma = torch.as_tensor(covariance, dtype=torch.float64)
    if sigma.dim() == 2:
        return 0.5 * (delta @ torch.cholesky_solve(delta[:, None], _root(sigma, len(delta)))[:, 0]).item()
    if sigma.dim() > 1 or (sigma.dim() == 1 and len(sigma) != len(delta)):
        raise ParameterError(f"latent: covariance must have {len(delta)} rows, got {tuple(sigma.shape)}")
    if not (sigma > 0).all() or not sigma.isfinite().all():
        raise ParameterError(f"latent: covariance must be above 0, got {sigma.min().item():g}")
    return 0.5 * (delta.square() / sigma).sum().item()


def _root(sigma: Tensor, n: int) -> Tensor:
    """The Cholesky factor of `sigma`, once it is known to have one."""
    if n > LARGEST_COVARIANCE:
        raise ParameterError(
            f"latent: a full covariance must have at most {LARGEST_COVARIANCE} rows, got {n} weights: "
            "give its diagonal"
        )
    if sigma.shape != (n, n):
        raise ParameterError(f"latent: covariance must have {n} rows, got {tuple(sigma.shape)}")
    if not sigma.isfinite().all() or not torch.allclose(sigma, sigma.T):
        raise ParameterError("latent: covariance must be finite and symmetric, got one that is not")
    root, failed = torch.linalg.cholesky_ex(sigma)
    if failed:
        smallest = torch.linalg.eigvalsh(sigma)[0].item()
        raise ParameterError(
            f"latent: covariance must be positive definite, got a smallest eigenvalue of {smallest:g}"
        )
    return root


def group_means(weights: Tensor, groups: int) -> Tensor:
    """Means (d,) of neighbours: of n // groups each, so that d is `groups` or a little more.

    Groups are positional, so another order of the weights gives other means; the last may be shorter.

    Raises:
        ParameterError: there are fewer weights than groups, or no group.
    """
    flat = weights.detach().flatten().double()
    if not 1 <= groups <= len(flat):
        raise ParameterError(f"latent: groups must lie in [1, {len(flat)}], got {brief(groups)}")
    return torch.stack([part.mean() for part in flat.split(len(flat) // groups)])


def ap3_student(
    before: Tensor,
    after: Tensor,
    nu: float = NU,
    scale: float = 1.0,
    groups: int = GROUPS,
    pairs: int = PAIRS,
) -> Estimate:
    """Between multivariate Student-t distributions with scale matrix `scale` I around the group means.

    Weights of opposite signs nearly cancel in a mean, so this is far smaller than the Gaussian AP3
    and does not see what happens within a group.
    """
    means = [group_means(weights, groups) for weights in (before, after)]
    if scale <= 0:
        raise ParameterError(f"latent: scale must be above 0, got {brief(scale)}")
    return student_divergence(difference(*means).norm().item() / math.sqrt(scale), len(means[0]), nu, pairs)


def student_divergence(shift: float, dimensions: int, nu: float = NU, pairs: int = PAIRS) -> Estimate:
    """KL between t_nu(0, I) and t_nu(c, I) in so many dimensions, where |c| = `shift`.

    The same in both directions. Below `SMALL` it is its own second order, else the mean over draws z
    and -z. Only the part of z along c and the length of the rest matter, so that is what is drawn.
    """
    if not (nu > 0 and math.isfinite(nu)):
        raise ParameterError(f"latent: nu must be above 0, got {brief(nu)}")
    if shift < SMALL:
        return Estimate(0.5 * (nu + dimensions) / (nu + dimensions + 2) * shift**2, 0.0)
    width = _chi_squared(nu, pairs) / nu
    along = torch.randn(pairs, dtype=torch.float64) / width.sqrt()
    squared = along.square() + (_chi_squared(dimensions - 1, pairs) / width if dimensions > 1 else 0.0)

    def log(towards: Tensor) -> Tensor:  # ln(1 + |z - c|^2 / nu), where z goes so far towards c
        return ((squared - 2 * shift * towards + shift**2) / nu).log1p()

    terms = (nu + dimensions) / 2 * ((log(along) + log(-along)) / 2 - (squared / nu).log1p())
    return Estimate(terms.mean().item(), terms.std().item() / math.sqrt(pairs))


def _chi_squared(freedom: float, count: int) -> Tensor:
    """(count,) draws of a sum of `freedom` squared standard normals."""
    return torch.distributions.Chi2(torch.tensor(float(freedom), dtype=torch.float64)).sample((count,))


def largest_curvature(loss: Callable[[Tensor], Tensor], weight: Tensor, steps: int = 20) -> float:
    """The largest eigenvalue of the Hessian of `loss` at `weight`, by power iteration.

    Power iteration finds the eigenvalue furthest from zero; if that is the most negative one, a
    second one finds the largest above it. From below, so few steps give too little, never too much.
    """
    at = weight.detach().clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(at), at, create_graph=True)

    def product(direction: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(slope, at, direction, retain_graph=True, materialize_grads=True)
        return found

    if slope.grad_fn is None:  # a straight line
        return 0.0
    furthest = _furthest_eigenvalue(product, at, steps)
    if furthest >= 0:
        return furthest
    return furthest + _furthest_eigenvalue(lambda v: product(v) - furthest * v, at, steps)


def _furthest_eigenvalue(product: Callable[[Tensor], Tensor], like: Tensor, steps: int) -> float:
    direction, value = torch.randn_like(like), 0.0
    for _ in range(steps):
        direction = direction / direction.norm()
        moved = product(direction)
        value = (direction * moved).sum().item()
        if not moved.any():
            break
        direction = moved
    return value


def curvature_bound(curvature: float, distance: float) -> float:
    """Rise of the loss after a move of AP2 `distance`, at most, to second order around a minimum."""
    return max(curvature, 0.0) * distance / 2


def rule_mask(weight: Tensor, rule: str, sparsity: float) -> Tensor:
    """Which entries of `weight` (O, ...) stay, True = kept, by one of `RULES`.

    Of n weights round(sparsity * n) go; "structured" takes the rows with the smallest L1 norm
    instead, round(sparsity * O) of them.
    """
    if not 0 <= sparsity < 1:
        raise ParameterError(f"latent: sparsity must lie in [0, 1), got {brief(sparsity)}")
    match rule:
        case "lowest":
            scores = weight.abs()
        case "highest":
            scores = -weight.abs()
        case "random":
            scores = torch.rand_like(weight)
        case "structured":
            scores = weight.abs().flatten(1).sum(1).view(-1, *[1] * (weight.dim() - 1))
        case _:
            raise ParameterError(f"latent: {unknown('rule', rule, RULES)}")
    return Ranking({rule: scores}).masks({rule: sparsity})[rule].expand_as(weight)


def rank_correlation(x: pd.Series, y: pd.Series) -> float:
    """Spearman's, equal values sharing their mean rank; NaN where either is the same everywhere."""
    if x.nunique() < 2 or y.nunique() < 2:
        return math.nan
    return x.rank().corr(y.rank())
