"""Occlusion: cover a square, look how the logit falls."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod, baseline, baseline_choice
from core.method import number
from core.prepared import Prepared
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class Occlusion(AttributionMethod):
    """How much the logit falls when a square of the picture is covered.

    A pixel has the mean over the squares that cover it, the same in all channels. Window and step
    are relative, so that pictures of any size take the same number of evaluations.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
    arXiv:1311.2901, section 4.2.
    """

    name: ClassVar[str] = "occlusion"

    window: float = number(0.25, 0.03, 1.0, 0.01, help="Side of the square, as a fraction of the picture's")
    step: float = number(0.5, 0.1, 1.0, 0.1, help="Step of the square, as a fraction of its own side")
    baseline: str = baseline_choice()

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import Occlusion as Captum

        channels, *size = images.shape[1:]
        window = tuple(max(1, round(self.window * side)) for side in size)
        step = tuple(max(1, round(self.step * side)) for side in window)
        return Captum(model).attribute(
            images,
            sliding_window_shapes=(channels, *window),
            strides=(channels, *step),
            baselines=baseline(images, self.baseline),
            target=targets,
            perturbations_per_eval=model.at_once(images),
        )
