"""Lime on superpixels."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod, baseline, baseline_choice
from core.method import number
from core.prepared import Prepared
from core.run import Run
from core.superpixels import grid, grid_field


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class Lime(AttributionMethod):
    """A sparse linear model of the logit, fitted to pictures with random superpixels replaced.

    Every pixel of a superpixel has its coefficient, in all channels. Similarity of a sample is an
    exponential kernel on the cosine distance, the fit a Lasso.

    Source: Ribeiro, Singh and Guestrin, "'Why Should I Trust You?': Explaining the Predictions of Any
    Classifier", KDD 2016, arXiv:1602.04938, section 3.
    """

    name: ClassVar[str] = "lime"
    title: ClassVar[str] = "LIME"
    random: ClassVar[bool] = True
    chunk: ClassVar[int] = 1

    samples: int = number(200, 10, 5000, 10, help="Random pictures to fit to")
    alpha: float = number(
        0.01, 1e-4, 1.0, 1e-4, scale="log", help="Strength of the Lasso: more gives fewer superpixels"
    )
    side: int = grid_field()
    baseline: str = baseline_choice()

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum._utils.models.linear_model import SkLearnLasso
        from captum.attr import Lime as Captum

        return Captum(model, interpretable_model=SkLearnLasso(alpha=self.alpha)).attribute(
            images,
            baselines=baseline(images, self.baseline),
            target=targets,
            feature_mask=grid(images, self.side),
            n_samples=self.samples,
            perturbations_per_eval=model.at_once(images),
        )
