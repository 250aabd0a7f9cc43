"""KernelShap on superpixels."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod, baseline, baseline_choice, target_logits
from core.method import number
from core.prepared import Prepared
from core.run import Run
from core.superpixels import grid, grid_field, sum_over_superpixels


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class KernelShap(AttributionMethod):
    """Shapley values of superpixels, from a weighted linear fit to random coalitions.

    The values of the superpixels add up to the logit of the picture minus that of the baseline.
    Every pixel of a superpixel has its value, in all channels. With fewer samples than superpixels
    the fit is not unique; Captum's coalitions take several hundred samples even for a grid of 6 x 6.

    Source: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017,
    arXiv:1705.07874, section 4.1.
    """

    name: ClassVar[str] = "kernel-shap"
    title: ClassVar[str] = "KernelSHAP"
    complete = "exactly"
    random: ClassVar[bool] = True
    chunk: ClassVar[int] = 1

    samples: int = number(200, 10, 5000, 10, help="Coalitions of superpixels per picture")
    side: int = grid_field(4)
    baseline: str = baseline_choice()

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import KernelShap as Captum

        return Captum(model).attribute(
            images,
            baselines=baseline(images, self.baseline),
            target=targets,
            feature_mask=grid(images, self.side),
            n_samples=self.samples,
            perturbations_per_eval=model.at_once(images),
        )

    def promise(self, model: Prepared, images: Tensor, targets: Tensor) -> Tensor:
        empty = baseline(images, self.baseline)
        return target_logits(model, images, targets) - target_logits(model, empty, targets)

    def total(self, maps: Tensor) -> Tensor:
        return sum_over_superpixels(maps, self.side)
