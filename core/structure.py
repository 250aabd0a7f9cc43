"""How a network differs from its freshly built architecture, as JSON: what a file must say beside weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import CheckpointError
from core.layers import ChannelShortcut
from core.linearity import MergedChain
from core.random_features import StepActivation

Structure = dict[str, Any]  # module name -> its description, or None where it is gone

_CONVOLUTION = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
_CONVOLUTION += ["bias", "padding_mode"]
_NORM = ["num_features", "eps", "momentum", "affine", "track_running_stats"]
LAYERS: dict[type[nn.Module], list[str]] = {  # what a file may hold -> arguments, which are attributes too
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Linear: ["in_features", "out_features", "bias"],
    nn.BatchNorm1d: _NORM,
    nn.BatchNorm2d: _NORM,
    nn.LayerNorm: ["normalized_shape", "eps", "elementwise_affine"],
    nn.ReLU: ["inplace"],
    nn.ReLU6: ["inplace"],
    nn.Identity: [],
    nn.Flatten: ["start_dim", "end_dim"],
    nn.ZeroPad2d: ["padding"],
    ChannelShortcut: ["source", "stride"],
    StepActivation: ["steps"],
    MergedChain: ["widths", "shortcuts", "biases"],
}
_BY_NAME = {layer.__name__: layer for layer in LAYERS}
LARGEST = {"stride": 64, "padding": 64, "dilation": 64}  # more would only make pictures huge


def describe(fresh: nn.Module, changed: nn.Module, name: str = "") -> Structure:
    """What to change in `fresh` to get `changed`; weights aside. Empty where nothing differs.

    Raises:
        CheckpointError: it differs by a module that is not in `LAYERS` or a sequence of those.
    """
    if type(fresh) is type(changed) and type(changed) in LAYERS:
        return {} if _layer(fresh) == _layer(changed) else {name: _layer(changed)}
    before, after = dict(fresh.named_children()), dict(changed.named_children())
    shrunk = isinstance(changed, nn.Sequential) and [n for n in before if n in after] == list(after)
    if type(fresh) is type(changed) and (shrunk or list(before) == list(after)):
        if not before and fresh.extra_repr() != changed.extra_repr():
            raise _unknown(changed, name)
        changes: Structure = {}
        for child, module in before.items():
            path = f"{name}.{child}" if name else child
            changes |= describe(module, after[child], path) if child in after else {path: None}
        return changes
    return {name: _layer(changed, name)}


def rebuild(network: nn.Module, structure: Structure) -> nn.Module:
    """Make the changes that `describe` found, in place; new layers have no numbers yet.

    Raises:
        CheckpointError: they do not fit `network`, or name something a file may not hold.
    """
    try:
        for name, description in structure.items():
            made = None if description is None else _make(description, name)
            if not name:
                network = made
                continue
            parent_name, _, child = name.rpartition(".")
            parent = network.get_submodule(parent_name)
            parent.get_submodule(child)  # it must be there
            if made is None:
                delattr(parent, child)
            else:
                setattr(parent, child, made)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"checkpoint: the structure of {name or 'the network'} cannot be read ({error})"
        ) from error
    return network


def _layer(module: nn.Module, name: str = "") -> dict[str, Any]:
    if type(module) is nn.Sequential:
        layers = {child: _layer(layer, f"{name}.{child}") for child, layer in module.named_children()}
        return {"type": "Sequential", "layers": layers}
    if type(module) not in LAYERS:
        raise _unknown(module, name)
    return {"type": type(module).__name__} | {
        key: _plain(getattr(module, key)) for key in LAYERS[type(module)]
    }


def _plain(value: Any) -> Any:
    """An attribute as JSON; a bias only counts as there or not."""
    if isinstance(value, nn.Parameter):
        return True
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple):
        return list(value)
    return False if value is None else value


def _unknown(module: nn.Module, name: str) -> CheckpointError:
    known = ", ".join(_BY_NAME)
    return CheckpointError(
        f"checkpoint: {name or 'the network'} was changed to something that a file cannot hold: it must be "
        f"made of {known}, got {type(module).__name__}"
    )


def _make(description: Mapping[str, Any], name: str) -> nn.Module:
    """The layer, on the device "meta", so that huge ones cost nothing until they are checked."""
    values = dict(description)
    kind = values.pop("type")
    if kind == "Sequential":
        made = nn.Sequential()
        for child, layer in values["layers"].items():
            made.add_module(child, _make(layer, f"{name}.{child}"))
        return made
    if kind not in _BY_NAME:
        raise CheckpointError(f"checkpoint: {name} must be one of {', '.join(_BY_NAME)}, got {kind!r}")
    arguments = {key: _argument(key, values[key], name) for key in LAYERS[_BY_NAME[kind]]}
    if kind == "ChannelShortcut":
        return ChannelShortcut(torch.tensor(arguments["source"], dtype=torch.int64), arguments["stride"])
    with torch.device("meta"):
        return _BY_NAME[kind](**arguments)


def _argument(key: str, value: Any, name: str) -> Any:
    """A constructor's argument, if it is plain and of a sane size."""
    values = value if isinstance(value, list) else [value]
    for number in values:
        sane = isinstance(number, bool | str) or (isinstance(number, int | float) and math.isfinite(number))
        if sane and not isinstance(number, str) and key in LARGEST:
            sane = 0 <= number <= LARGEST[key]
        if not sane:
            raise CheckpointError(f"checkpoint: {key} of {name} must be a sane number, got {number!r}")
    return tuple(value) if isinstance(value, list) and key != "source" else value
