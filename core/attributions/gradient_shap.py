"""GradientShap: expected gradients between a baseline and noisy copies."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy
import torch
from torch import Tensor, nn

from core.attribution import ATTRIBUTIONS, AttributionMethod, baseline, baseline_choice, target_logits
from core.method import number
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

    def attribute(self, model: nn.Module, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import GradientShap as Captum

        with _numpy_follows_torch():
            return Captum(model).attribute(
                images,
                baselines=baseline(images, self.baseline),
                n_samples=self.samples,
                stdevs=self.noise * (images.max() - images.min()).item(),
                target=targets,
            )

    def promise(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        empty = baseline(images, self.baseline)
        return target_logits(model, images, targets) - target_logits(model, empty, targets)


@contextlib.contextmanager
def _numpy_follows_torch() -> Iterator[None]:
    """Captum draws the points on the line with numpy: seed it from torch's generator, then put it back."""
    before = numpy.random.get_state()
    numpy.random.seed(int(torch.randint(2**31, ())))
    try:
        yield
    finally:
        numpy.random.set_state(before)
