"""Prune weights: single weights become zero, the shapes stay."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from core.bundles import Setting
from core.criterion import CRITERIA, Criterion, Ranking, require_weight_scores
from core.errors import ParameterError
from core.layers import apply_mask, require_layers, require_prunable
from core.method import choice, nested, number, per_layer
from core.recipe import COMPRESSORS, Compressor
from core.run import Run


@COMPRESSORS.register
@dataclass(frozen=True)
class PruneWeights(Compressor):
    """Set the least important weights to zero.

    With scope "global" one threshold serves the whole network, so layers of low scores lose more;
    with scope "layer" every layer loses `sparsity`, or what `layers` names for it. Weights that are
    zero already are counted. Zeros stay zero when a later step trains. Biases and batch norms stay,
    so at 100 % the network still answers: the same for every image. The network is smaller when
    zipped, and no faster.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015, arXiv:1506.02626, section 3.
    """

    name: ClassVar[str] = "prune-weights"
    variants = ("criterion",)

    sparsity: float = number(0.5, 0.0, 1.0, 0.01, help="Fraction of weights set to zero")
    scope: str = choice("layer", "global", help="Compare weights within a layer or across all")
    criterion: Criterion = nested(CRITERIA, "magnitude", help="What makes a weight important")
    layers: tuple[tuple[str, float], ...] = per_layer(0.0, 1.0, 0.01, help="Sparsity of single layers")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weight_scores(self.name, self.criterion)
        if self.layers and self.scope == "global":
            raise ParameterError(f'{self.name}: scope must be "layer" where single layers have a sparsity')

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        layers = require_prunable(model)
        require_layers(model, dict(self.layers))
        with run.step(0, 2):
            ranking = Ranking(self.criterion.scores(model, setting, run))
        if self.scope == "global":
            masks = ranking.global_masks(self.sparsity)
        else:
            masks = ranking.masks(dict.fromkeys(layers, self.sparsity) | dict(self.layers))
        with run.step(1, 2):
            for name, keep in run.track(masks.items(), "Masking layers"):
                apply_mask(layers[name], keep)
        return model
