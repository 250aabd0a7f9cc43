"""Input x gradient."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core.attribution import ATTRIBUTIONS, AttributionMethod
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
    chunk: ClassVar[int] = 64

    def attribute(self, model: nn.Module, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import InputXGradient as Captum

        return Captum(model).attribute(images, target=targets)
