"""Given channels blanked or cut out of a network, layer by layer, whatever the reason they go."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.groups import Gone
from core.layers import PRUNABLE, ChannelShortcut

TensorMasks = dict[tuple[str, str], Tensor]  # (layer, tensor) -> what stays; broadcasts to the tensor


def masks_of(model: nn.Module, gone: Gone) -> TensorMasks:
    """See `tensor_masks`; `gone` is what `gone_channels` returned."""
    masks: TensorMasks = {}

    def cut(name: str, tensor: str, keep: Tensor) -> None:
        value = getattr(model.get_submodule(name), tensor, None)
        if value is not None:
            keep = keep.to(value.device)
            masks[name, tensor] = masks[name, tensor] & keep if (name, tensor) in masks else keep

    for (name, side), channels in gone.items():
        layer = model.get_submodule(name)
        if side == "out" and isinstance(layer, ChannelShortcut):
            keep = torch.ones(len(layer.source), dtype=torch.bool)
            keep[channels] = False
            cut(name, "source", keep)
        elif side == "out" and isinstance(
            layer, (*PRUNABLE, _BatchNorm, nn.modules.instancenorm._InstanceNorm)
        ):
            keep = torch.ones(width_of(layer), dtype=torch.bool)
            keep[channels] = False
            weighted = isinstance(layer, PRUNABLE)
            cut(name, "weight", keep.view(-1, *[1] * (layer.weight.dim() - 1)) if weighted else keep)
            cut(name, "bias", keep)
        elif side == "in" and isinstance(layer, PRUNABLE):
            columns = layer.weight.shape[1]  # in a grouped convolution: inputs of one of its groups
            keep = torch.ones(columns, dtype=torch.bool)
            keep[channels % columns] = False
            cut(name, "weight", keep.view(1, -1, *[1] * (layer.weight.dim() - 2)))
    return masks


def blank(value: Tensor, keep: Tensor) -> Tensor:
    """`value` with nothing where `keep` is False: zeros, or in a shortcut's source -1."""
    return torch.where(keep, value, torch.tensor(0 if value.is_floating_point() else -1).to(value))


def width_of(layer: nn.Module) -> int:
    """Number of output channels."""
    for name in ("out_channels", "out_features", "num_features"):
        if hasattr(layer, name):
            return getattr(layer, name)
    raise AssertionError(type(layer))


def cut(network: nn.Module, gone: Gone) -> None:
    """Take the channels away, in place, with Torch-Pruning's functions for each type of layer."""
    from torch_pruning import ops
    from torch_pruning.pruner import function

    pruners = {name: function.PrunerBox.get(ops.module2type(network.get_submodule(name))) for name, _ in gone}
    for (name, side), channels in gone.items():
        layer = network.get_submodule(name)
        trained = {tensor: value.requires_grad for tensor, value in layer.named_parameters()}
        if isinstance(layer, ChannelShortcut):
            _slice_shortcut(layer, side, channels)
        elif side == "out":
            pruners[name].prune_out_channels(layer, channels.tolist())
        else:
            pruners[name].prune_in_channels(layer, channels.tolist())
        for tensor, flag in trained.items():
            getattr(layer, tensor).requires_grad_(flag)


def _slice_shortcut(shortcut: ChannelShortcut, side: str, channels: Tensor) -> None:
    """A new source: outputs without the gone ones, inputs renumbered, -1 where an input has gone."""
    source = shortcut.source
    channels = channels.to(source.device)
    if side == "out":
        keep = torch.ones(len(source), dtype=torch.bool, device=source.device)
        keep[channels] = False
        shortcut.source = source[keep]
        return
    before = torch.searchsorted(channels, source)  # how many of the gone inputs come first
    shortcut.source = torch.where(torch.isin(source, channels) | (source < 0), -1, source - before)


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode whose tensors share their memory with it: cheap at any size."""
    with torch.inference_mode(False):
        shared: dict[int, Any] = {}
        for value in model.parameters():
            shared[id(value)] = nn.Parameter(value.detach(), value.requires_grad)
        for value in model.buffers():
            shared[id(value)] = value.detach()
        return copy.deepcopy(model, shared).eval()


def example_for(example: Tensor, model: nn.Module) -> Tensor:
    """`example` on the device and in the precision of `model`."""
    value = next(model.parameters())
    with torch.inference_mode(False):
        return example.clone().to(value.device, value.dtype if value.is_floating_point() else None)


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the module called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
