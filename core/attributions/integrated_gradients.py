"""Integrated gradients: gradients averaged on the way from a baseline to the image."""

from dataclasses import dataclass
from typing import ClassVar

from numpy.polynomial.legendre import leggauss
from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod, baseline, baseline_choice, target_logits
from core.method import number
from core.prepared import Prepared
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class IntegratedGradients(AttributionMethod):
    """Gradients along the straight line from a baseline to the picture, times the difference.

    Attributions add up to the logit of the picture minus that of the baseline, the better the more
    steps (Gauss-Legendre) are taken.

    Source: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017,
    arXiv:1703.01365, section 3.
    """

    name: ClassVar[str] = "integrated-gradients"
    complete = "exactly"

    steps: int = number(50, 2, 500, 1, help="Points on the line at which the gradient is taken")
    baseline: str = baseline_choice()

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        empty = baseline(images, self.baseline)
        places, weights = (ends.tolist() for ends in leggauss(self.steps))  # on [-1, 1]
        gradients = model.gradients(
            lambda place: empty + (1 + place) / 2 * (images - empty), places, targets, run
        )
        total = sum(weight / 2 * gradient for weight, gradient in zip(weights, gradients, strict=True))
        return (images - empty) * total

    def promise(self, model: Prepared, images: Tensor, targets: Tensor) -> Tensor:
        empty = baseline(images, self.baseline)
        return target_logits(model, images, targets) - target_logits(model, empty, targets)
