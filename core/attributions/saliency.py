"""Saliency: the gradient."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.prepared import Prepared
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class Saliency(AttributionMethod):
    """How fast the logit changes with each pixel: the signed gradient.

    Source: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014,
    arXiv:1312.6034, section 3. The paper takes absolute values; here the sign is kept.
    """

    name: ClassVar[str] = "saliency"

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        return model.gradient(images, targets)
