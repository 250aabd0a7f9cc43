"""What a wide random layer keeps of its input, in a few Gaussian moments of its activation.

In a wide layer of random weights the inputs of the activation are Gaussian. Its kernel then depends on the
activation through the moments below only, and any activation with the same moments has the same kernel.

Source: Gu et al., "'Lossless' Compression of Deep Neural Networks: A High-dimensional Neural Tangent Kernel
Approach", NeurIPS 2022, arXiv:2403.00258.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import UserError

NODES = 4001  # of the trapezoid rule, from -REACH to REACH standard deviations
REACH = 12.0
STARTS = 60  # of the root finder, which stops at the first root
FITS = 20  # of least squares, which keep the best
SOLVED = 1e-10  # largest squared error of a root
QUANTILES = 200_000  # of the normal distribution, on which quantisers are found


class MomentsNotMatchedError(UserError, RuntimeError):
    """No activation of the wanted form was found that has the wanted moments."""


@dataclass(frozen=True)
class Steps:
    """A function of a few values: `levels[i]` between `thresholds[i - 1]` and `thresholds[i]`.

    Thresholds do not fall; there is one level more than there are thresholds. A threshold itself
    belongs to the interval below it.
    """

    thresholds: tuple[float, ...]
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.thresholds) + 1 or list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"steps need rising thresholds and one level more, got {self}")

    def __call__(self, x: Tensor) -> Tensor:
        thresholds, levels = (torch.tensor(v, dtype=x.dtype) for v in (self.thresholds, self.levels))
        return levels[torch.bucketize(x, thresholds)]

    def times(self, factor: float) -> "Steps":
        """The same thresholds, every level times `factor`."""
        return Steps(self.thresholds, tuple(factor * level for level in self.levels))


Activation = Steps | Callable[[Tensor], Tensor]
SIGN = Steps((0.0,), (-1.0, 1.0))


@dataclass(frozen=True)
class Moments:
    """Of an activation s at inputs tau_in * xi, xi standard normal; all but the mean of s minus its mean."""

    tau_in: float
    mean: float  # E[s]
    a1: float  # E[s']
    a2: float  # E[s'']
    a4: float  # E[(s^2)'']
    tau: float  # sqrt E[s^2]: the standard deviation of the outputs
    slope: float  # E[s'^2]; infinite for a function that jumps

    @property
    def share(self) -> float:
        """Part of the outputs' variance that follows the input: its linear and quadratic part.

        The rest acts on the kernel like noise of every picture's own.
        """
        linear, quadratic = self.tau_in * self.a1, self.tau_in**2 * self.a2 / math.sqrt(2)
        return (linear**2 + quadratic**2) / self.tau**2 if self.tau else 0.0


def moments(activation: Activation, tau: float) -> Moments:
    """The moments of `activation` at tau * xi: in closed form for ReLU and steps, else by quadrature.

    Raises:
        ValueError: tau is not a positive number.
    """
    if not 0 < tau < math.inf:
        raise ValueError(f"moments: tau must be a positive number, got {tau}")
    if isinstance(activation, Steps):
        return _step_moments(activation, tau)
    return _relu_moments(tau) if activation in (F.relu, torch.relu) else _smooth_moments(activation, tau)


def _relu_moments(tau: float) -> Moments:
    density = 1 / math.sqrt(2 * math.pi)
    spread = tau * math.sqrt(0.5 - 0.5 / math.pi)
    return Moments(tau, tau * density, 0.5, density / tau, 1 - 1 / math.pi, spread, 0.5)


def _step_moments(steps: Steps, tau: float) -> Moments:
    u, levels = np.array(steps.thresholds) / tau, np.array(steps.levels)
    below = np.array([0.5 * math.erfc(-t / math.sqrt(2)) for t in u])
    weight = np.diff(below, prepend=0.0, append=1.0)  # of each level
    mean = float(weight @ levels)
    centred = levels - mean
    density = np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
    return Moments(
        tau,
        mean,
        a1=float(np.diff(levels) @ density / tau),
        a2=float(np.diff(levels) @ (u * density) / tau**2),
        a4=float(np.diff(centred**2) @ (u * density) / tau**2),
        tau=math.sqrt(float(weight @ centred**2)),
        slope=math.inf if np.diff(levels).any() else 0.0,
    )


def _smooth_moments(activation: Callable[[Tensor], Tensor], tau: float) -> Moments:
    """By the trapezoid rule: exact to rounding for smooth functions, steep ones included."""
    xi = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    weight = (-(xi**2) / 2).softmax(0)
    with torch.enable_grad():
        x = (tau * xi).requires_grad_()
        values = activation(x)
        (slopes,) = torch.autograd.grad(values.sum(), x)
    mean = weight @ values.detach()
    centred = values.detach() - mean
    return Moments(
        tau,
        mean.item(),
        a1=(weight @ (xi * centred)).item() / tau,
        a2=(weight @ ((xi**2 - 1) * centred)).item() / tau**2,
        a4=(weight @ ((xi**2 - 1) * centred**2)).item() / tau**2,
        tau=(weight @ centred**2).sqrt().item(),
        slope=(weight @ slopes**2).item(),
    )


def propagate(activations: Sequence[Activation], tau: float = 1.0) -> tuple[Moments, ...]:
    """The moments layer by layer: each layer's outputs, centred, are the next one's inputs."""
    found = []
    for activation in activations:
        found.append(moments(activation, tau))
        tau = found[-1].tau
    return tuple(found)


@dataclass(frozen=True)
class Coefficients:
    """What the kernels of a network of random layers are made of, after one of its layers.

    `alpha` (4 numbers) belongs to the conjugate kernel, `beta` (3) to the neural tangent kernel;
    `tau` and `kappa` are the roots of their diagonals.
    """

    alpha: tuple[float, float, float, float]
    beta: tuple[float, float, float]
    tau: float
    kappa: float


def coefficients(layers: Sequence[Moments]) -> tuple[Coefficients, ...]:
    """The coefficients after every layer; beta and kappa in the corrected form that exact kernels confirm."""
    alpha, beta = (1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0)
    kappa2 = layers[0].tau_in ** 2
    found = []
    for layer in layers:
        a1, a2 = layer.a1**2, layer.a2**2
        new = (
            a1 * alpha[0],
            a1 * alpha[1] + a2 * alpha[3] ** 2 / 4,
            a1 * alpha[2] + a2 * alpha[0] ** 2 / 2,
            layer.a4 * alpha[3] / 2,
        )
        beta = (
            new[0] + a1 * beta[0],
            new[1] + a1 * beta[1],
            new[2] + a1 * beta[2] + a2 * alpha[0] * beta[0],
        )
        kappa2 = layer.tau**2 + layer.slope * kappa2
        alpha = new
        found.append(Coefficients(alpha, beta, layer.tau, math.sqrt(kappa2)))
    return tuple(found)


# ------------------------------------------------------------------------- activations of a few values


def require_attainable(who: str, target: Moments, tau: float) -> None:
    """Check that some function of tau_in * xi with the a1 and a2 of `target` has the spread `tau`.

    Raises:
        ValueError: its linear and quadratic part alone spread more.
    """
    least = math.hypot(target.tau_in * target.a1, target.tau_in**2 * target.a2 / math.sqrt(2))
    if tau < least:
        raise ValueError(f"{who}: tau must be at least {least:.4g}, got {tau:.4g}: no activation attains it")


@cache
def three_steps(a1: float, a2: float, a4: float, tau: float) -> Steps:
    """The function of two values a and 0 on three intervals (a, 0, a) with these moments at tau * xi.

    It is unique but for its mirror images, of which this one has the signs of a1 and a2. Its spread
    cannot be chosen, and is larger than ReLU's.

    Raises:
        MomentsNotMatchedError: none was found.
    """
    from scipy.optimize import root

    def found(x: np.ndarray) -> np.ndarray:
        return _matched(_three_steps(x), tau)

    target = np.array([a1, a2, a4])
    random = np.random.default_rng(0)  # its own, so that a caller's random numbers do not depend on it
    best, error = None, math.inf
    for _ in range(STARTS):
        start = np.array([random.normal() * tau, math.log(tau * random.uniform(0.2, 4)), random.normal() * 2])
        with np.errstate(all="ignore"):
            answer = root(lambda x: found(x) - target, start, tol=1e-13)
            miss = float(((found(answer.x) - target) ** 2).sum()) if np.isfinite(answer.x).all() else math.inf
        if miss < error:
            best, error = answer.x, miss
        if error < SOLVED**2:
            break
    if best is None or error > SOLVED:
        wanted = ", ".join(f"{n} {t:.4g}" for n, t in zip(("a1", "a2", "a4"), target, strict=True))
        got = "none" if best is None else ", ".join(f"{value:.4g}" for value in found(best))
        raise MomentsNotMatchedError(f"three steps: moments must be {wanted} at tau {tau:.4g}, got {got}")
    return _three_steps(best)


def _three_steps(x: np.ndarray) -> Steps:
    """From lower threshold, logarithm of the gap, value."""
    low, gap, value = float(x[0]), math.exp(min(float(x[1]), 50.0)), float(x[2])
    return Steps((low, low + gap), (value, 0.0, value))


def _matched(steps: Steps, tau: float) -> np.ndarray:
    m = moments(steps, tau)
    return np.array([m.a1, m.a2, m.a4])


@cache
def five_steps(a1: float, a2: float, a4: float, spread: float, tau: float) -> tuple[Steps, float]:
    """The paper's last activation, (b, 0, b, 0, b) on five intervals, and the squared error that is left.

    Least squares on a1^2, a2^2, a4 and the squared spread, with b from a4, a2 and the spread; the
    error is that of the four. For ReLU it is not zero.

    Raises:
        ValueError: a2 is zero, as for odd activations: b is not defined then.
    """
    from scipy.optimize import least_squares

    if abs(a2) < 1e-12:
        raise ValueError("five steps: a2 must not be zero, as it is for odd activations, got 0")
    b = math.hypot(a4 / a2, 2 * spread)
    target = np.array([a1**2, a2**2, a4, spread**2])

    def steps(x: np.ndarray) -> Steps:
        first, outer, inner = float(x[0]), *np.exp(np.clip(x[1:], -50, 10)).tolist()
        return Steps(
            (first, first + outer, first + outer + inner, first + 2 * outer + inner), (b, 0, b, 0, b)
        )

    def errors(x: np.ndarray) -> np.ndarray:
        m = moments(steps(x), tau)
        return np.array([m.a1**2, m.a2**2, m.a4, m.tau**2]) - target

    random = np.random.default_rng(0)
    starts = (tau * random.normal(size=3) * [2, 1, 1] for _ in range(FITS))
    best = min((least_squares(errors, start, max_nfev=60) for start in starts), key=lambda fit: fit.cost)
    return steps(best.x), 2 * best.cost


@cache
def quantised(activation: Callable[[Tensor], Tensor], levels: int, tau: float = 1.0) -> Steps:
    """The function of `levels` values closest to a rising `activation` of tau * xi, scaled to spread 1.

    Lloyd's algorithm on the values: each level is the mean of the values nearest to it. What it
    misses is small in the mean square, so most of the variance stays signal.
    """
    middles = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    x = tau * torch.special.ndtri(middles)
    values = activation(x)
    total = F.pad(values.cumsum(0), (1, 0))
    centres = torch.linspace(values[0].item(), values[-1].item(), 2 * levels + 1, dtype=x.dtype)[1::2]
    for _ in range(10_000):
        cuts = torch.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        edges = F.pad(F.pad(cuts, (1, 0)), (0, 1), value=QUANTILES)
        count = edges.diff()
        means = torch.where(count > 0, total[edges].diff() / count.clamp(min=1), centres)
        if torch.equal(means, centres):
            break
        centres = means
    inside = cuts.clamp(1, QUANTILES - 1)
    steps = Steps(tuple(((x[inside] + x[inside - 1]) / 2).tolist()), tuple(centres.tolist()))
    return steps.times(1 / moments(steps, tau).tau)
