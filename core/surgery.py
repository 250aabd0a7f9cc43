"""Three questions about filters, kept apart: remove a group of channels, silence filters, zero their weights.

`remove_groups` makes a smaller network and `mask_groups` is its picture in the old shapes; `silence`
and `zero_filters` leave the partners of a layer alone.
"""

import torch
from torch import Tensor, nn

from core.coupling import following_norms, groups
from core.cutting import TensorMasks, blank, cut, masks_of, skeleton, width_of
from core.errors import ParameterError
from core.groups import Masks, gone_channels, require_groups
from core.held import Held
from core.layers import ChannelShortcut, apply_mask, bake, require_layers


def remove_groups(model: nn.Module, masks: Masks, example: Tensor) -> nn.Module:
    """A copy of `model` without the units that are False in `masks`, group name -> (width,) bool.

    The weights, biases and batch norms of every layer of the group go, and the input columns that
    read them; shortcuts without weights get a new source. Weights held at zero stay held; other
    parametrizations become plain weights. `model` is left as it is.

    Raises:
        ParameterError: a name is no group, a mask has the wrong length or keeps nothing.
    """
    gone = gone_channels(require_groups(groups(model, example), masks), masks)
    network, held = bake(skeleton(model)), Held(model)
    cut(network, gone)
    held.cut(lambda pattern: cut(pattern, gone))
    held.hold(network)
    _own(network, model)
    return network


def mask_groups(model: nn.Module, masks: Masks, example: Tensor) -> None:
    """Hold at zero, in place, what `remove_groups` would take away: the same logits, the old shapes."""
    _hold(model, tensor_masks(model, masks, example))


def tensor_masks(model: nn.Module, masks: Masks, example: Tensor) -> TensorMasks:
    """(layer, tensor) -> what stays when the units that are False in `masks` go.

    The masks are shaped so that they broadcast against the tensor: (O, I, 1, 1), (O, 1) or (O,). A
    shortcut without weights has its `source` among them: -1, a channel of zeros, where False.
    """
    return masks_of(model, gone_channels(require_groups(groups(model, example), masks), masks))


def silence(model: nn.Module, masks: Masks, example: Tensor) -> None:
    """Hold single filters at zero, in place, with their bias and the batch norm that follows.

    `masks` is layer name -> (O,) bool. Layers that share the channels go on filling them. A layer
    whose output meets something else first (an addition, a concatenation) has no batch norm of its
    own, and loses weights and bias.
    """
    _hold(model, silence_masks(model, masks, example))


def zero_filters(model: nn.Module, masks: Masks) -> None:
    """Hold the weights of single filters at zero, in place; biases and batch norms stay.

    `masks` is layer name -> (O,) bool. It is what `torch.nn.utils.prune.ln_structured` does.
    """
    _hold(model, zero_masks(model, masks))


def silence_masks(model: nn.Module, masks: Masks, example: Tensor) -> TensorMasks:
    """What `silence` holds at zero: (layer, tensor) -> what stays, shaped to broadcast."""
    norms = following_norms(model, example)
    found: TensorMasks = {}
    for name in _require_filters(model, masks):
        for owner in (name, norms.get(name)):
            for tensor in ("weight", "bias") if owner else ():
                found |= _filter_mask(model, owner, tensor, masks[name])
    return found


def zero_masks(model: nn.Module, masks: Masks) -> TensorMasks:
    """What `zero_filters` holds at zero: (layer, tensor) -> what stays, shaped to broadcast."""
    found: TensorMasks = {}
    for name in _require_filters(model, masks):
        found |= _filter_mask(model, name, "weight", masks[name])
    return found


def _require_filters(model: nn.Module, masks: Masks) -> Masks:
    """`masks`, which must fit the layers that they name."""
    require_layers(model, masks)
    for name, keep in masks.items():
        width = width_of(model.get_submodule(name))
        if keep.shape != (width,) or keep.dtype != torch.bool:
            raise ParameterError(
                f"layer {name}: the mask must be bool and of length {width}, "
                f"got {keep.dtype} of shape {tuple(keep.shape)}"
            )
    return masks


def _filter_mask(model: nn.Module, layer: str, tensor: str, keep: Tensor) -> TensorMasks:
    """The mask of one tensor of `layer`, from which channels `keep` (O,); none where nothing goes."""
    value = getattr(model.get_submodule(layer), tensor, None)
    if value is None or keep.all():
        return {}
    return {(layer, tensor): keep.view(-1, *[1] * (value.dim() - 1))}


def _hold(model: nn.Module, masks: TensorMasks) -> None:
    """Hold at zero, in place, what is False in `masks`."""
    for (name, tensor), keep in masks.items():
        layer = model.get_submodule(name)
        if isinstance(layer, ChannelShortcut):
            layer.source = blank(layer.source, keep)
        else:
            apply_mask(layer, keep, tensor)


def _own(network: nn.Module, model: nn.Module) -> None:
    """Give `network` memory of its own for every tensor that it shares with `model`; copy its mode."""
    theirs = {v.untyped_storage().data_ptr() for v in [*model.parameters(), *model.buffers()]}
    for value in [*network.parameters(), *network.buffers()]:
        if value.untyped_storage().data_ptr() in theirs:
            value.data = value.data.clone()
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in network.named_modules():
        module.training = modes.get(name, model.training)
