"""Kernels of networks: sampled from features, of infinite width, and their high-dimensional equivalents.

Source: Gu et al., NeurIPS 2022, arXiv:2403.00258 (equivalents); Cho and Saul, "Kernel Methods for Deep
Learning", NIPS 2009 (arc-cosine kernels); Jacot et al., "Neural Tangent Kernel", NeurIPS 2018,
arXiv:1806.07572; Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
arXiv:1905.00414 (CKA).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from core.moments import Coefficients, propagate

LARGEST = 4000  # pictures in an explicit kernel


def conjugate_kernel(features: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """Inner products (N, N), float64, of features (N, I) less `mean`, divided by I.

    Raises:
        ValueError: there are more pictures than an explicit kernel is for.
    """
    if len(features) > LARGEST:
        raise ValueError(f"kernel: there must be at most {LARGEST} pictures, got {len(features)}")
    centred = features.double() - mean
    return centred @ centred.T / features.shape[1]


def relu_kernels(gram: Tensor, depth: int) -> list[tuple[Tensor, Tensor]]:
    """(CK, NTK) after every layer of an infinitely wide ReLU network, activations centred.

    `gram` (N, N) holds the inputs' inner products, of mean diagonal 1: the constant that centres is that of
    inputs of norm 1, the same for all.
    """
    conjugate = tangent = gram.double()
    found = []
    for layer in propagate((F.relu,) * depth):
        spread = conjugate.diagonal().clamp(min=0).sqrt()
        size = torch.outer(spread, spread)
        cosine = (conjugate / size).clamp(-1, 1)
        angle = cosine.arccos()
        product = size * ((1 - cosine**2).sqrt() + (math.pi - angle) * cosine) / (2 * math.pi)
        average = spread / math.sqrt(2 * math.pi)
        conjugate = product - layer.mean * (average[:, None] + average) + layer.mean**2
        tangent = conjugate + (math.pi - angle) / (2 * math.pi) * tangent
        found.append((conjugate, tangent))
    return found


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussian classes: sqrt(p) x is normal about `means` (K, p) with `variances` (K, p) of its entries."""

    means: Tensor
    variances: Tensor

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Points (N, p) float64 and their labels (N,), classes in turns."""
        labels = torch.arange(count) % len(self.means)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.float64)
        points = self.means[labels].double() + noise * self.variances[labels].double().sqrt()
        return points / math.sqrt(self.means.shape[1]), labels


def equivalents(
    found: Coefficients, mixture: Mixture, points: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The matrices (N, N) that CK and NTK come close to in norm as points and dimensions grow together.

    The points' mean squared norm, but for the classes' means, must be 1.
    """
    dimensions = points.shape[1]
    onehot = F.one_hot(labels, len(mixture.means)).double()
    variances = mixture.variances.double()
    rest = points - mixture.means.double()[labels] / math.sqrt(dimensions)
    psi = rest.square().sum(1) - variances.mean(1)[labels]
    basis = torch.cat([onehot / math.sqrt(dimensions), psi[:, None]], 1)  # (N, K + 1)
    t = math.sqrt(dimensions) * (variances.mean(1) - 1)
    products = variances @ variances.T / dimensions
    gram = points @ points.T

    def matrix(linear: float, norms: float, quadratic: float, diagonal: float) -> Tensor:
        core = torch.empty(len(t) + 1, len(t) + 1, dtype=torch.float64)
        core[:-1, :-1] = norms * torch.outer(t, t) + quadratic * products
        core[:-1, -1] = core[-1, :-1] = norms * t
        core[-1, -1] = norms
        shift = diagonal**2 - linear - quadratic
        return linear * gram + basis @ core @ basis.T + shift * torch.eye(len(gram), dtype=torch.float64)

    return matrix(*found.alpha[:3], found.tau), matrix(*found.beta, found.kappa)


# --------------------------------------------------------------------------------------- comparing


def relative_distance(reference: Tensor, other: Tensor, norm: str = "operator") -> float:
    """|other - reference| / |reference| of symmetric (N, N), in the operator or the Frobenius norm."""

    def size(kernel: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(kernel).abs().max() if norm == "operator" else kernel.norm()

    return (size(other - reference) / size(reference)).item()


def overlaps(one: Tensor, other: Tensor, most: int) -> Tensor:
    """(most,) overlap of the spaces of the top 1, 2, ... eigenvectors: 1 equal, 0 at right angles.

    Spaces are compared and not single vectors, which may turn freely where eigenvalues are close.
    """
    first, second = (torch.linalg.eigh(kernel).eigenvectors.flip(1)[:, :most] for kernel in (one, other))
    inner = (first.T @ second).square()
    sums = inner.cumsum(0).cumsum(1).diagonal()
    return (sums / torch.arange(1, len(sums) + 1)).clamp(0, 1)


def alignment(one: Tensor, other: Tensor) -> float:
    """Linear CKA of two kernels (N, N) of centred features: 1 where one is a multiple of the other."""
    size = one.norm() * other.norm()
    return ((one * other).sum() / size).item() if size > 0 else math.nan
