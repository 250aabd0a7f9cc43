"""Deconvolution."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.prepared import Prepared
from core.requirements import require_own_relus, require_relu_rules
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class Deconvolution(AttributionMethod):
    """Like the gradient, but a ReLU on the way back looks at the signal's sign, not the activation's.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
    arXiv:1311.2901, section 2.1.
    """

    name: ClassVar[str] = "deconvolution"

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import Deconvolution as Captum

        with model.private() as network:
            require_relu_rules(self.name, network)
            require_own_relus(self.name, network, images[:1])
            return Captum(network).attribute(images, target=targets)
