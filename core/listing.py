"""Plain PyTorch programs that repeat a compression: no data, nothing of this program in them."""

import base64
import zlib
from collections.abc import Callable, Mapping
from pprint import pformat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.criterion import Ranking
from core.errors import UnsupportedModelError
from core.layers import private_copy, prunable

ZEROED_BY_MAGNITUDE = '''\
import torch
from torch.nn.utils import prune

# Layer: the fraction of its weights that become zero, the smallest first.
SPARSITIES = {sparsities}


@torch.no_grad()
def compress(model, example):
    """Set weights of `model` to zero, in place, and return it; `example` is not needed."""
    for name, sparsity in SPARSITIES.items():
        layer = model.get_submodule(name)
        order = layer.weight.abs().flatten().argsort(stable=True)
        mask = torch.ones(len(order), device=order.device)
        mask[order[: round(sparsity * len(order))]] = 0
        prune.custom_from_mask(layer, "weight", mask.view_as(layer.weight))
        prune.remove(layer, "weight")  # the zeros stay, the mask goes
    return model
'''

ZEROED_BY_MASK = '''\
import base64
import zlib

import numpy as np
import torch
from torch.nn.utils import prune

# Layer: one bit per weight, 1 = kept, in the order of `weight.flatten()`; packed, zipped, in base 64.
# (The criterion looks at more than the weights, so its choice is written down here.)
MASKS = {masks}


@torch.no_grad()
def compress(model, example):
    """Set weights of `model` to zero, in place, and return it; `example` is not needed."""
    for name, packed in MASKS.items():
        layer = model.get_submodule(name)
        bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
        mask = torch.from_numpy(np.unpackbits(bits, count=layer.weight.numel()))
        prune.custom_from_mask(layer, "weight", mask.view_as(layer.weight).to(layer.weight))
        prune.remove(layer, "weight")  # the zeros stay, the mask goes
    return model
'''

ZEROED_ROWS = '''\
import torch

# Parameter: its filters (entries along the first dimension) that become zero.
ZEROED = {zeroed}


@torch.no_grad()
def compress(model, example):
    """Set filters of `model` to zero, in place, and return it; `example` is not needed."""
    for name, filters in ZEROED.items():
        model.get_parameter(name)[filters] = 0
    return model
'''

REMOVED_CHANNELS = '''\
import torch
from torch import nn

# The channels that stay, named after the first layer that makes them.
CHANNELS = {channels}

# Layer: (which channels leave it, which channels enter it); None where all stay.
LAYERS = {layers}

# Layer: what it says about its own size.
SIZES = {sizes}

# Buffers that hold channel numbers, counted anew.
BUFFERS = {buffers}


@torch.no_grad()
def compress(model, example):
    """Remove channels from `model`, in place, try it on `example` (1, C, H, W), and return it."""
    for name, (leaving, entering) in LAYERS.items():
        layer = model.get_submodule(name)
        for kind, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            kept = tensor
            if leaving and tensor.dim() > 0:
                kept = kept[CHANNELS[leaving]]
            if entering and tensor.dim() > 1:
                kept = kept[:, CHANNELS[entering]]
            if isinstance(tensor, nn.Parameter):
                kept = nn.Parameter(kept, requires_grad=tensor.requires_grad)
            setattr(layer, kind, kept)
    for name, sizes in SIZES.items():
        for attribute, value in sizes.items():
            setattr(model.get_submodule(name), attribute, value)
    for name, values in BUFFERS.items():
        layer, _, kind = name.rpartition(".")
        setattr(model.get_submodule(layer), kind, torch.tensor(values, device=example.device))
    model(example)
    return model
'''


def zeroed_weights(model: nn.Module, ranking: Ranking, sparsities: Mapping[str, float]) -> str:
    """Single weights; as one bit each only where sorting by magnitude would choose others."""
    masks = ranking.masks(sparsities)
    weights = {name: layer.weight.detach().abs() for name, layer in prunable(model).items()}
    by_magnitude = Ranking(weights).masks(sparsities)
    if all(torch.equal(by_magnitude[name], keep) for name, keep in masks.items()):
        return ZEROED_BY_MAGNITUDE.format(sparsities=_table(dict(sparsities)))
    packed = {name: _pack(keep) for name, keep in masks.items()}
    return ZEROED_BY_MASK.format(masks=_table(packed))


def zeroed_filters(before: nn.Module, after: nn.Module) -> str:
    """Whole filters, with whatever else of them became zero: read off the two networks."""
    zeroed = {}
    for name, tensor in before.named_parameters():
        width = len(tensor) if tensor.dim() else 1
        was, is_ = (t.detach().reshape(width, -1) != 0 for t in (tensor, after.get_parameter(name)))
        filters = (was.any(1) & ~is_.any(1)).nonzero()[:, 0].tolist()
        if filters:
            zeroed[name] = filters
    return ZEROED_ROWS.format(zeroed=_table(zeroed))


def removed_channels(model: nn.Module, remove: Callable[[nn.Module], nn.Module]) -> str:
    """Removed channels, read off two copies whose weights are their own row and column numbers.

    Raises:
        UnsupportedModelError: `remove` did more than to take rows and columns out of tensors.
    """
    smaller = remove(model)
    rows, columns = (remove(_numbered(model, dimension)) for dimension in (0, 1))
    if _kinds(smaller) != _kinds(model):
        raise UnsupportedModelError("code: removal must keep every layer, it replaces some of this model's")
    channels: dict[str, list[int]] = {}
    layers: dict[str, tuple[str | None, str | None]] = {}
    sizes: dict[str, dict[str, Any]] = {}
    buffers: dict[str, list] = {}
    for name, layer in model.named_modules():
        cut = smaller.get_submodule(name)
        found = [_kept(m.get_submodule(name), d) for m, d in ((rows, 0), (columns, 1))]
        widths = [_width(layer, dimension) for dimension in (0, 1)]
        keys = [
            _key(channels, kept, name, side) if kept is not None and len(kept) < width else None
            for kept, width, side in zip(found, widths, ("", " inputs"), strict=True)
        ]
        if any(keys):
            layers[name] = tuple(keys)
        if changed := {k: v for k, v in _attributes(cut).items() if _attributes(layer).get(k) != v}:
            sizes[name] = changed
        for kind, value in cut.named_buffers(recurse=False):
            if not value.is_floating_point() and not torch.equal(value, getattr(layer, kind)):
                buffers[f"{name}.{kind}"] = value.tolist()
    return REMOVED_CHANNELS.format(
        channels=_table(channels), layers=_table(layers), sizes=_table(sizes), buffers=_table(buffers)
    )


def _numbered(model: nn.Module, dimension: int) -> nn.Module:
    """A copy in which every number is its own index along `dimension`."""
    copy = private_copy(model)
    for tensor in _tensors(copy):
        if tensor.dim() > dimension:
            shape = [-1 if d == dimension else 1 for d in range(tensor.dim())]
            index = torch.arange(tensor.shape[dimension], dtype=tensor.dtype, device=tensor.device)
            tensor.copy_(index.view(shape).expand_as(tensor))
    return copy


def _tensors(module: nn.Module, recurse: bool = True) -> list[Tensor]:
    """Parameters and floating-point buffers."""
    found = [*module.parameters(recurse), *module.buffers(recurse)]
    return [tensor.detach() for tensor in found if tensor.is_floating_point()]


def _kept(numbered: nn.Module, dimension: int) -> list[int] | None:
    """The indices that are left along `dimension` in the tensors of one numbered layer."""
    found: list[int] | None = None
    for tensor in _tensors(numbered, recurse=False):
        if tensor.dim() <= dimension or not tensor.numel():
            continue
        first = tensor.movedim(dimension, 0).reshape(tensor.shape[dimension], -1)
        indices = first[:, 0].long().tolist()
        if (first != first[:, :1]).any() or (found is not None and found != indices):
            raise UnsupportedModelError("code: the tensors of a layer must keep the same channels")
        found = indices
    return found


def _width(layer: nn.Module, dimension: int) -> int:
    return max((t.shape[dimension] for t in _tensors(layer, recurse=False) if t.dim() > dimension), default=0)


def _key(channels: dict[str, list[int]], kept: list[int], name: str, side: str) -> str:
    """The name of these channels; new ones are named after the layer."""
    for key, known in channels.items():
        if known == kept:
            return key
    channels[name + side] = kept
    return name + side


def _kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(layer) for name, layer in model.named_modules()}


def _attributes(layer: nn.Module) -> dict[str, Any]:
    """What a layer says about its sizes: its plain numbers and tuples of numbers."""
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_")
        and isinstance(value, int | tuple)
        and not isinstance(value, bool)
        and all(isinstance(part, int) for part in (value if isinstance(value, tuple) else ()))
    }


def _pack(keep: Tensor) -> str:
    bits = np.packbits(keep.flatten().cpu().numpy())
    return base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode()


def _table(values: Mapping[str, Any]) -> str:
    return pformat(dict(values), width=108, compact=True, sort_dicts=False)
