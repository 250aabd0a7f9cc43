"""Guided backpropagation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.prepared import Prepared
from core.requirements import require_own_relus, require_relu_rules
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class GuidedBackprop(AttributionMethod):
    """The gradient, with negative values cut off at every ReLU on the way back.

    Sharp pictures, but they depend little on the later layers: compare with the random floor.

    Source: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop
    2015, arXiv:1412.6806, section 3.4.
    """

    name: ClassVar[str] = "guided-backprop"

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import GuidedBackprop as Captum

        with model.private() as network:
            require_relu_rules(self.name, network)
            require_own_relus(self.name, network, images[:1])
            return Captum(network).attribute(images, target=targets)
