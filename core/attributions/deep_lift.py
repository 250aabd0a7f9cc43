"""DeepLift: differences of activations instead of gradients."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core.attribution import ATTRIBUTIONS, AttributionMethod, baseline, baseline_choice, target_logits
from core.preparation import Ceiling
from core.prepared import Prepared
from core.requirements import require_own_relus
from core.run import Run

# Elementwise activations that Captum leaves out: its rescale rule, slope = difference of outputs over
# difference of inputs, holds for them as it is.
_ELEMENTWISE = (
    Ceiling,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.SiLU,
    nn.GELU,
    nn.SELU,
    nn.CELU,
    nn.Mish,
)


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class DeepLift(AttributionMethod):
    """How each pixel's difference from a baseline passes through the network (rescale rule).

    Attributions add up to the logit of the picture minus that of the baseline. Products of two
    activations (squeeze-and-excitation, attention) have no rule: there the sum is off, and shown to be.

    Source: Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating
    Activation Differences", ICML 2017, arXiv:1704.02685, section 3.5.1.
    """

    name: ClassVar[str] = "deep-lift"
    title: ClassVar[str] = "DeepLIFT"
    complete = "exactly"

    baseline: str = baseline_choice()

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        from captum.attr import DeepLift as Captum
        from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR, nonlinear

        for activation in _ELEMENTWISE:
            SUPPORTED_NON_LINEAR.setdefault(activation, nonlinear)
        with model.private() as network:
            require_own_relus(self.name, network, images[:1])
            return Captum(network).attribute(
                images, baselines=baseline(images, self.baseline), target=targets
            )

    def promise(self, model: Prepared, images: Tensor, targets: Tensor) -> Tensor:
        empty = baseline(images, self.baseline)
        return target_logits(model, images, targets) - target_logits(model, empty, targets)
