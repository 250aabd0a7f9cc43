"""GradientShap: expected gradients between a baseline and noisy copies."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod, baseline, baseline_choice, target_logits
from core.method import number
from core.prepared import Prepared
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class GradientShap(AttributionMethod):
    """Gradients at random points between a baseline and noisy copies, times the difference.

    An estimate of Shapley values; attributions add up to the logit of the picture minus that of the
    baseline in expectation only: over many samples, little noise.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017,
    arXiv:1705.07874; Erion et al., "Improving performance of deep learning models with axiomatic
    attribution priors and expected gradients", Nature Machine Intelligence 2021, arXiv:1906.10670.
    """

    name: ClassVar[str] = "gradient-shap"
    title: ClassVar[str] = "GradientSHAP"
    complete = "in expectation"
    random: ClassVar[bool] = True

    samples: int = number(25, 2, 500, 1, help="Random points per picture")
    noise: float = number(
        0.05, 0.0, 1.0, 0.01, help="Standard deviation of the noise, as a fraction of max - min"
    )
    baseline: str = baseline_choice()

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        empty = baseline(images, self.baseline)
        spread = self.noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
        noise = torch.randn(self.samples, *images.shape[1:]).to(images.device)  # the same for every image
        shares = torch.rand(self.samples).tolist()  # how far from the baseline to the noisy copy

        def difference(one: Tensor) -> Tensor:
            return images + spread * one - empty

        gradients = model.gradients(
            lambda place: empty + place[1] * difference(place[0]),
            list(zip(noise, shares, strict=True)),
            targets,
            run,
        )
        pairs = zip(gradients, noise, strict=True)
        return sum(gradient * difference(one) for gradient, one in pairs) / self.samples

    def promise(self, model: Prepared, images: Tensor, targets: Tensor) -> Tensor:
        empty = baseline(images, self.baseline)
        return target_logits(model, images, targets) - target_logits(model, empty, targets)
