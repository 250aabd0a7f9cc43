"""Frequency domain: coefficients of kernels become zero instead of weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from core.bundles import Setting
from core.criterion import Ranking
from core.errors import ParameterError
from core.figure import Figure
from core.frequency import (
    band_table,
    basis_of,
    beta_mask,
    cost_figure,
    energy_figure,
    hold,
    importance,
    kept_figure,
    kernel_layers,
    kernel_of,
)
from core.method import choice, flag, number
from core.recipe import COMPRESSORS, Compressor
from core.run import Run


@COMPRESSORS.register
@dataclass(frozen=True)
class Frequency(Compressor):
    """Set the smallest cosine coefficients of every kernel to zero, instead of the smallest weights.

    Kernels are written as sums of cosine patterns (DCT-II along every axis). With bands "threshold"
    one threshold T serves a layer, or with scope "global" all layers; in a band at x in (0, 1), from
    the lowest frequencies to the highest, it is T (1 + tilt (x - 1/2)). With bands "beta" every band
    keeps a share proportional to x^(alpha - 1) (1 - x)^(beta - 1), at most all of it, and within a
    band the largest stay; that is done layer by layer. Either way `sparsity` of the coefficients
    go. 1 x 1 convolutions and linear layers have one pattern only, so that pruning them is pruning
    weights; they stay as they are unless `pointwise` is set. Zeros stay zero when a later step
    trains; a step that removes channels leaves plain weights, which a training after it may refill.

    The zeros are coefficients: the plain weights that are saved have none, and neither a file nor
    its zipped form is smaller. What storing coefficients would cost is in the figures.

    Source: Liu, Xu, Peng and Xiong, "Frequency-Domain Dynamic Pruning for Convolutional Neural
    Networks", NeurIPS 2018 (the domain, bands of unequal worth); Chen et al., "Compressing
    Convolutional Neural Networks in the Frequency Domain", KDD 2016 (budgets of bands). The
    tilted threshold is of our making.
    """

    name: ClassVar[str] = "frequency"
    title: ClassVar[str] = "Frequency domain"

    sparsity: float = number(0.5, 0.0, 1.0, 0.01, help="Fraction of the coefficients of kernels that goes")
    scope: str = choice("layer", "global", help="Compare coefficients within a layer or across all")
    bands: str = choice("threshold", "beta", help="One threshold, tilted over the bands, or a quota for each")
    tilt: float = number(0.5, -1.9, 1.9, 0.1, help="Above 0, high frequencies have to be larger to stay")
    alpha: float = number(
        1.0, 0.1, 10.0, 0.1, help="Exponent of the quotas: above 1 the lowest bands keep less"
    )
    beta: float = number(
        2.0, 0.1, 10.0, 0.1, help="Exponent of the quotas: above 1 the highest bands keep less"
    )
    pointwise: bool = flag(False, help="Prune 1 x 1 convolutions and linear layers, too: by their weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bands == "beta" and self.scope == "global":
            raise ParameterError(f'{self.name}: scope must be "layer" where bands have quotas, got "global"')

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        layers = kernel_layers(self.name, model, self.pointwise)
        masks = self._masks(layers)
        for name, layer in run.track(layers.items(), "Masking coefficients"):
            hold(layer, masks[name], basis_of(kernel_of(layer.weight)))
        return model

    def _masks(self, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Layer -> mask of its coefficients, True = kept."""
        weights = {name: layer.weight for name, layer in layers.items()}
        bases = {name: basis_of(kernel_of(weight)) for name, weight in weights.items()}
        if self.bands == "beta":
            quota = (self.sparsity, self.alpha, self.beta)
            return {name: beta_mask(weight, bases[name], *quota) for name, weight in weights.items()}
        ranking = Ranking({name: importance(w, bases[name], self.tilt) for name, w in weights.items()})
        if self.scope == "global":
            return ranking.global_masks(self.sparsity)
        return ranking.masks(dict.fromkeys(weights, self.sparsity))

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        layers = list(kernel_layers(self.name, before, self.pointwise))
        example = setting.train.take(slice(0, 1)).images
        return (
            *energy_figure(band_table(before, after, layers)),
            *kept_figure(after, layers),
            cost_figure(before, after, example),
        )
