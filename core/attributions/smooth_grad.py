"""SmoothGrad: the gradient averaged over noisy copies."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.method import number
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

    def attribute(self, model: nn.Module, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import NoiseTunnel, Saliency

        return NoiseTunnel(Saliency(model)).attribute(
            images,
            nt_type="smoothgrad",
            nt_samples=self.samples,
            nt_samples_batch_size=max(1, 64 // len(images)),
            stdevs=self.noise * (images.max() - images.min()).item(),
            target=targets,
            abs=False,
        )
