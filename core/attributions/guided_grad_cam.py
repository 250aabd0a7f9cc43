"""Guided Grad-CAM: guided backpropagation inside the Grad-CAM region."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.method import number
from core.prepared import Prepared
from core.requirements import convolution_from_output, require_own_relus, require_relu_rules
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class GuidedGradCAM(AttributionMethod):
    """Guided backpropagation times the positive part of Grad-CAM (bilinear).

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, arXiv:1610.02391, section 3.2.
    """

    name: ClassVar[str] = "guided-grad-cam"
    title: ClassVar[str] = "Guided Grad-CAM"

    layer: int = number(1, 1, 1000, 1, help="Which convolution, counted from the output: 1 is the last")

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import GuidedGradCam as Captum

        with model.private() as network:
            require_relu_rules(self.name, network)
            require_own_relus(self.name, network, images[:1])
            layer = convolution_from_output(self.name, network, self.layer)
            return Captum(network, layer).attribute(images, target=targets, interpolate_mode="bilinear")
