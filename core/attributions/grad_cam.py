"""Grad-CAM: where the last convolution saw evidence."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from core.attribution import ATTRIBUTIONS, AttributionMethod
from core.method import flag, number
from core.prepared import Prepared
from core.requirements import convolution_from_output
from core.run import Run


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class GradCAM(AttributionMethod):
    """Channels of a late convolution, weighted by how much they raise the logit.

    The coarse map is enlarged to the picture (bilinear) and the same in all its channels. Signed: the
    paper's final ReLU, which keeps evidence for the class alone, is an option.

    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, arXiv:1610.02391, section 3.
    """

    name: ClassVar[str] = "grad-cam"
    title: ClassVar[str] = "Grad-CAM"

    layer: int = number(1, 1, 1000, 1, help="Which convolution, counted from the output: 1 is the last")
    positive: bool = flag(False, help="Keep only evidence for the class")

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import LayerGradCam

        with model.private() as network:
            layer = convolution_from_output(self.name, network, self.layer)
            coarse = LayerGradCam(network, layer).attribute(
                images, target=targets, relu_attributions=self.positive
            )  # (N, 1, h, w)
        size = tuple(images.shape[2:])
        return F.interpolate(coarse.detach(), size, mode="bilinear", align_corners=False).expand_as(images)
