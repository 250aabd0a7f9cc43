"""Integrated gradients: gradients averaged on the way from a baseline to the image."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core.attribution import ATTRIBUTIONS, AttributionMethod, baseline, baseline_choice, target_logits
from core.method import number
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
    chunk: ClassVar[int] = 4

    steps: int = number(50, 2, 500, 1, help="Points on the line at which the gradient is taken")
    baseline: str = baseline_choice()

    def attribute(self, model: nn.Module, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import IntegratedGradients as Captum

        return Captum(model).attribute(
            images,
            baselines=baseline(images, self.baseline),
            target=targets,
            n_steps=self.steps,
            internal_batch_size=max(64, len(images)),
        )

    def promise(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        empty = baseline(images, self.baseline)
        return target_logits(model, images, targets) - target_logits(model, empty, targets)
