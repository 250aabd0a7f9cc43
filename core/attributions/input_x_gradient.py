"""Input x gradient."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.prepared import Prepared
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class InputXGradient(AttributionMethod):
    """The gradient times the pixel's own (normalised) value.

    Source: Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating
    Activation Differences", 2016, arXiv:1605.01713, section 2.
    """

    name: ClassVar[str] = "input-x-gradient"
    title: ClassVar[str] = "Input x gradient"

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        return images * model.gradient(images, targets)
