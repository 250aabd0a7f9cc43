"""The layers that methods work on, and the mask that keeps pruned weights at zero."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.errors import ParameterError, UnsupportedModelError
from core.registry import unknown

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified name -> every convolution and linear layer, in order of definition; may be empty."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, PRUNABLE)}


def require_prunable(model: nn.Module) -> dict[str, nn.Module]:
    """`prunable`, of a model that must have such a layer.

    Raises:
        UnsupportedModelError: it has none.
    """
    found = prunable(model)
    if not found:
        raise UnsupportedModelError("the model has no convolution or linear layer to compress")
    return found


def require_layers(model: nn.Module, names: object) -> None:
    """Check that every one of `names` is a prunable layer of `model`.

    Raises:
        ParameterError: one is not; the message names the nearest layer.
    """
    layers = require_prunable(model)
    for name in names:
        if name not in layers:
            raise ParameterError(unknown("layer", name, layers))


class Mask(nn.Module):
    """Parametrization w -> w * keep: pruned weights stay zero while the rest is trained."""

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.keep


def apply_mask(layer: nn.Module, keep: Tensor, tensor: str = "weight") -> None:
    """Hold `layer.<tensor>` at zero where `keep`, of the same shape, is False."""
    parametrize.register_parametrization(layer, tensor, Mask(keep.to(getattr(layer, tensor).device)))


def bake(model: nn.Module) -> nn.Module:
    """Turn every parametrization into plain weights, so the model can be saved and compared."""
    for layer in model.modules():
        if parametrize.is_parametrized(layer):
            for name in list(layer.parametrizations):
                parametrize.remove_parametrizations(layer, name)
    return model
