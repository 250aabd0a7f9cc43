"""Feature ablation on superpixels."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod, baseline, baseline_choice
from core.prepared import Prepared
from core.run import Run
from core.superpixels import grid, grid_field


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class FeatureAblation(AttributionMethod):
    """How much the logit falls when one superpixel is replaced.

    Every pixel of a superpixel has its value, in all channels.

    Source: Kokhlikyan et al., "Captum: A unified and generic model interpretability library for
    PyTorch", 2020, arXiv:2009.07896, section 3.
    """

    name: ClassVar[str] = "feature-ablation"

    side: int = grid_field()
    baseline: str = baseline_choice()

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import FeatureAblation as Captum

        return Captum(model).attribute(
            images,
            baselines=baseline(images, self.baseline),
            target=targets,
            feature_mask=grid(images, self.side),
            perturbations_per_eval=model.at_once(images),
        )
