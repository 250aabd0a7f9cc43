"""SmoothGrad: the gradient averaged over noisy copies."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.method import number
from core.prepared import Prepared
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class SmoothGrad(AttributionMethod):
    """The gradient averaged over copies of the picture with added noise.

    Source: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, arXiv:1706.03825,
    section 3. The noise level is relative to the picture's range of values, as there.
    """

    name: ClassVar[str] = "smooth-grad"
    title: ClassVar[str] = "SmoothGrad"
    random: ClassVar[bool] = True

    samples: int = number(25, 2, 500, 1, help="Noisy copies per picture")
    noise: float = number(0.15, 0.01, 1.0, 0.01, help="Standard deviation, as a fraction of max - min")

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        spread = self.noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
        noise = torch.randn(self.samples, *images.shape[1:]).to(images.device)  # the same for every image
        gradients = model.gradients(lambda one: images + spread * one, noise, targets, run)
        return sum(gradients) / self.samples
