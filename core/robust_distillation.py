"""Distillation on pictures without labels, at the worst of similar class weights.

Letters: N pictures, B of them in a batch, K classes.

Source: Xu et al., "Positive-Unlabeled Compression on the Cloud", NeurIPS 2019, arXiv:1909.09757, section 3.2.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.bundles import Split
from core.distillation import divergence
from core.errors import ParameterError
from core.layers import private_copy
from core.run import Run
from core.training import Task

HEAVIEST = 10.0  # largest class weight: a class that is hardly ever predicted would get any
PART = 250  # pictures in one forward pass


def class_weights(probabilities: Tensor) -> Tensor:
    """(K,): the rarer a class is among the teacher's answers (N, K), the heavier; mean 1 unless cut at 10."""
    inverse = 1 / probabilities.double().sum(0).clamp(min=1e-12)
    return (len(inverse) * inverse / inverse.sum()).clamp(max=HEAVIEST).float()


def worst_weights(weights: Tensor, losses: Tensor, epsilon: float) -> Tensor:
    """Of weights (K,) within `epsilon` of `weights`, of equal sum, those with the largest weighted loss.

    Exact: the larger half of the classes' losses (K,) gains epsilon and the smaller half loses it;
    of an odd number the middle one stays.
    """
    require_epsilon(weights, epsilon)
    half, order = len(losses) // 2, losses.argsort()
    change = torch.zeros_like(weights)
    change[order[:half]] = -epsilon
    change[order[len(losses) - half :]] = epsilon
    return weights + change


def require_epsilon(weights: Tensor, epsilon: float) -> None:
    """Refuse a neighbourhood that reaches weights below zero."""
    largest = weights.min().item()
    if not 0 <= epsilon < largest:
        raise ParameterError(
            f"robust distillation: epsilon must be at least 0 and below the smallest class weight, "
            f"{largest:.4g}, got {epsilon}"
        )


def logits_of(network: nn.Module, split: Split, run: Run) -> Tensor:
    """(N, K), on the processor."""
    own, found = private_copy(network, run.device), []
    with torch.no_grad():
        for start in run.track(range(0, len(split), PART), "Asking for answers"):
            images = split.take(slice(start, start + PART)).images.to(run.device)
            found.append(own(images).float().cpu())
    return torch.cat(found)


def robust_loss(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    epsilon: float,
    temperature: float = 1.0,
    drawn: Tensor | None = None,
) -> Tensor:
    """T^2 times the mean over logits (B, K) of w_c KL(teacher || student), c the class the teacher names.

    w is the worst of the neighbourhood of `weights` (K,). With `drawn` (K,) that is `weights` and
    `weights` + `drawn` alone, as in the official code.
    """
    if not temperature > 0:
        raise ParameterError(f"robust distillation: temperature must be above 0, got {temperature}")
    distances = divergence(student, teacher, temperature)
    named = teacher.argmax(1)
    losses = torch.zeros_like(weights).index_add_(0, named, distances.detach().to(weights.dtype))
    if drawn is None:
        worst = worst_weights(weights, losses, epsilon)
    else:
        worst = max(weights, weights + drawn, key=lambda held: (held * losses).sum().item())
    return temperature**2 * (worst[named] * distances).mean()


class RobustDistillation(Task):
    """Follow the teacher on pictures without labels, at the worst class weights near the given ones.

    `notes` are recorded with every epoch.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weights: Tensor,
        epsilon: float,
        temperature: float = 1.0,
        *,
        official: bool = False,
        notes: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        require_epsilon(weights, epsilon)
        self._teacher, self._notes = teacher, dict(notes or {})
        self._weights = weights.to(next(teacher.parameters()).device)
        self._neighbourhood = epsilon, temperature
        self._drawn = epsilon * torch.rand(len(weights)).to(self._weights) if official else None

    def terms(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = self._teacher(images).float()
        student, (epsilon, temperature) = model(images).float(), self._neighbourhood
        worst = robust_loss(student, teacher, self._weights, epsilon, temperature, self._drawn)
        plain = robust_loss(student.detach(), teacher, self._weights, 0.0, temperature)
        return {"loss": worst, "without_worst_case": plain}

    def observed(self) -> dict[str, float]:
        return self._notes
