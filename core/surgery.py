"""Channels that live and die together: found, masked, removed.

The output channels of one layer are often tied to those of others: through a residual addition, a
depthwise convolution, a concatenation. Such a *group* is found by Torch-Pruning's dependency graph
and held here as plain lists of channels by layer name, so that it is computed once per architecture
and serves every copy of it. Three questions are kept apart: `remove_groups` (and its picture,
`mask_groups`), `silence` and `zero_filters`.

Source: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from core.criterion import Scores
from core.errors import ParameterError, UnsupportedModelError
from core.layers import (
    PRUNABLE,
    ChannelShortcut,
    Mask,
    apply_mask,
    bake,
    following_batch_norms,
    prunable,
    require_layers,
    require_prunable,
)
from core.registry import unknown

T = TypeVar("T")
Masks = Mapping[str, Tensor]  # name -> (width,) bool, True = kept

MIXERS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.Embedding,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Bilinear,
    _ConvTransposeNd,
)  # a channel's value depends on all channels, or a channel's place changes
MIXING_STEPS = {
    "BmmBackward0": "a product of activations",
    "FlipBackward0": "a flip of channels",
    "NativeGroupNormBackward0": "a norm over channels",
    "NativeLayerNormBackward0": "a norm over channels",
    "PermuteBackward0": "a permutation of dimensions",
    "RollBackward0": "a shift of channels",
    "TransposeBackward0": "a transposition",
}  # the same as operations of the autograd graph, for those that no module performs

OTHERS_WORK = "silencing and zeroing filters work"
CACHED = 32  # answers about architectures that are remembered


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a group touches one layer: the layer's channel channels[i] goes with unit units[i]."""

    layer: str
    side: Literal["out", "in"]  # "in": the layer reads these channels
    channels: Tensor  # (M,) int64
    units: Tensor  # (M,) int64 in [0, width)


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, in `width` units that can go one by one.

    A unit is one output channel of every layer in `layers`; in front of and behind a grouped
    convolution it is one channel of each of its groups.
    """

    name: str  # the first of `layers`
    layers: tuple[str, ...]  # every convolution and linear layer whose outputs these are
    width: int
    slots: tuple[Slot, ...] = field(repr=False, compare=False)

    def filters(self, layer: str) -> tuple[Tensor, Tensor]:
        """(filters, units), both (M,): filter filters[i] of `layer` belongs to unit units[i]."""
        slot = next(slot for slot in self.slots if slot.layer == layer and slot.side == "out")
        return slot.channels, slot.units

    @property
    def channels(self) -> int:
        """Output channels that its first layer has in one unit."""
        return max(1, len(self.filters(self.name)[0]) // self.width)


def groups(model: nn.Module, example: Tensor) -> tuple[Group, ...]:
    """The groups of `model` that can be removed, in order of definition; `example` is (1, C, H, W).

    The channels of the picture and the logits are in none. The answer is remembered for every model
    of this architecture. Before it is given, half of every group is masked in a copy with random
    weights and removed from another, and both must agree.

    Raises:
        UnsupportedModelError: the model has no prunable layer, or its channels cannot be followed.
    """
    require_prunable(model)
    return _remembered("groups", model, example, _analyse)


def output_layers(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """The layers whose outputs are the logits: they keep all their outputs, whatever is asked."""
    require_prunable(model)
    return _remembered("outputs", model, example, lambda network, example: _trace(network, example).outputs)


def group_scores(found: Iterable[Group], scores: Scores) -> Scores:
    """Group name -> importance (width,) of its units, 1 on average.

    Every layer's filter scores (O,) are first divided by the layer's mean absolute score, so that
    layers with large weights do not outvote the others and groups can be compared; a unit then gets
    the mean over its filters, layer by layer.

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900,
    section 3.3; Torch-Pruning's default is the same mean, normalised after instead of before it.
    """
    relative = normalised(scores)
    return {group.name: _unit_scores(group, relative) for group in found}


def normalised(scores: Scores) -> Scores:
    """Scores (O,) of every layer divided by the layer's mean absolute score; NaN is passed on."""
    return {
        name: score / mean if (mean := score.abs().nanmean()) > 0 else score for name, score in scores.items()
    }


def _unit_scores(group: Group, scores: Scores) -> Tensor:
    total, count = torch.zeros(group.width), torch.zeros(group.width)
    for layer in group.layers:
        filters, units = group.filters(layer)
        size = torch.zeros(group.width).index_add_(0, units, torch.ones(len(units)))
        score = scores[layer].detach().float().cpu()[filters]
        total += torch.zeros(group.width).index_add_(0, units, score) / size.clamp(min=1)
        count += size > 0
    return total / count


def remove_groups(model: nn.Module, masks: Masks, example: Tensor) -> nn.Module:
    """A copy of `model` without the units that are False in `masks`, group name -> (width,) bool.

    The weights, biases and batch norms of every layer of the group go, and the input columns that
    read them; shortcuts without weights get a new source. Weights held at zero stay held; other
    parametrizations become plain weights. `model` is left as it is.

    Raises:
        ParameterError: a name is no group, a mask has the wrong length or keeps nothing.
    """
    gone = _gone(require_groups(groups(model, example), masks), masks)
    network = bake(_skeleton(model))
    held = _held(model)
    pattern = _pattern(network, held)  # the masks, as if they were the weights
    _slice(network, gone)
    if pattern is not None:
        _slice(pattern, gone)
        for layer, tensor in held:
            keep = getattr(pattern.get_submodule(layer), tensor).detach() != 0
            apply_mask(network.get_submodule(layer), keep, tensor)
    _own(network, model)
    return network


def mask_groups(model: nn.Module, masks: Masks, example: Tensor) -> None:
    """Hold at zero, in place, what `remove_groups` would take away: the same logits, the old shapes."""
    for (name, tensor), keep in tensor_masks(model, masks, example).items():
        layer = model.get_submodule(name)
        if isinstance(layer, ChannelShortcut):
            layer.source = _blank(layer.source, keep)
        else:
            apply_mask(layer, keep, tensor)


def tensor_masks(model: nn.Module, masks: Masks, example: Tensor) -> dict[tuple[str, str], Tensor]:
    """(layer, tensor) -> what stays when the units that are False in `masks` go.

    The masks are shaped so that they broadcast against the tensor: (O, I, 1, 1), (O, 1) or (O,). A
    shortcut without weights has its `source` among them: -1, a channel of zeros, where False.
    """
    return _tensor_masks(model, _gone(require_groups(groups(model, example), masks), masks))


def silence(model: nn.Module, masks: Masks, example: Tensor) -> None:
    """Hold single filters at zero, in place, with their bias and the batch norm that follows.

    `masks` is layer name -> (O,) bool. Layers that share the channels go on filling them. A layer
    whose output meets something else first (an addition, a concatenation) has no batch norm of its
    own, and loses weights and bias.
    """
    layers = _filters(model, masks)
    skeleton = _skeleton(model)
    names = {module: name for name, module in skeleton.named_modules()}
    norms = following_batch_norms(skeleton, _like(example, model))
    for name, keep in masks.items():
        _hold(layers[name], keep, "weight", "bias")
        if name in norms:
            _hold(model.get_submodule(names[norms[name]]), keep, "weight", "bias")


def zero_filters(model: nn.Module, masks: Masks) -> None:
    """Hold the weights of single filters at zero, in place; biases and batch norms stay.

    `masks` is layer name -> (O,) bool. It is what `torch.nn.utils.prune.ln_structured` does.
    """
    layers = _filters(model, masks)
    for name, keep in masks.items():
        _hold(layers[name], keep, "weight")


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the module called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


# --- masks: which channels go -----------------------------------------------------------------------


def require_groups(found: Iterable[Group], names: Iterable[str]) -> dict[str, Group]:
    """Name -> group, of groups that must be among those `found`.

    Raises:
        ParameterError: one is not; a layer that is only a member is told the name of its group.
    """
    known = {group.name: group for group in found}
    for name in names:
        if name not in known:
            raise ParameterError(_no_group(name, known.values()))
    return {name: known[name] for name in names}


def _no_group(name: str, found: Iterable[Group]) -> str:
    """The sentence for a name that is no group's: a member is told the name of its group."""
    homes = [group.name for group in found if name in group.layers]
    if homes:
        return f"layer {name} shares its channels with {homes[0]}; the group is called {homes[0]!r}"
    return unknown("group", name, [group.name for group in found])


def _gone(found: Mapping[str, Group], masks: Masks) -> dict[tuple[str, str], Tensor]:
    """(layer, side) -> the channels (M,) that go."""
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for name, group in found.items():
        keep = masks[name].cpu()
        if keep.shape != (group.width,) or keep.dtype != torch.bool:
            raise ParameterError(
                f"group {name}: the mask must be bool and of length {group.width}, "
                f"got {keep.dtype} of shape {tuple(keep.shape)}"
            )
        if not keep.any():
            raise ParameterError(f"group {name}: at least one of {group.width} channels must stay")
        for slot in group.slots:
            parts.setdefault((slot.layer, slot.side), []).append(slot.channels[~keep[slot.units]])
    joined = {place: torch.cat(channels).unique() for place, channels in parts.items()}
    return {place: channels for place, channels in joined.items() if len(channels)}


def _tensor_masks(model: nn.Module, gone: Mapping[tuple[str, str], Tensor]) -> dict[tuple[str, str], Tensor]:
    """See `tensor_masks`; `gone` is what `_gone` returned."""
    masks: dict[tuple[str, str], Tensor] = {}

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
            keep = torch.ones(_width(layer), dtype=torch.bool)
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


def _blank(value: Tensor, keep: Tensor) -> Tensor:
    """`value` with nothing where `keep` is False: zeros, or in a shortcut's source -1."""
    return torch.where(keep, value, torch.tensor(0 if value.is_floating_point() else -1).to(value))


def _width(layer: nn.Module) -> int:
    """Number of output channels."""
    for name in ("out_channels", "out_features", "num_features"):
        if hasattr(layer, name):
            return getattr(layer, name)
    raise AssertionError(type(layer))


def _filters(model: nn.Module, masks: Masks) -> dict[str, nn.Module]:
    """The layers named in `masks`, whose masks must fit."""
    require_layers(model, masks)
    layers = {name: model.get_submodule(name) for name in masks}
    for name, keep in masks.items():
        if keep.shape != layers[name].weight.shape[:1] or keep.dtype != torch.bool:
            raise ParameterError(
                f"layer {name}: the mask must be bool and of length {_width(layers[name])}, "
                f"got {keep.dtype} of shape {tuple(keep.shape)}"
            )
    return layers


def _hold(layer: nn.Module, keep: Tensor, *tensors: str) -> None:
    """Hold the tensors of `layer` at zero in the channels where `keep` (O,) is False."""
    for tensor in tensors:
        value = getattr(layer, tensor, None)
        if value is not None and not keep.all():
            apply_mask(layer, keep.view(-1, *[1] * (value.dim() - 1)), tensor)


# --- cutting ----------------------------------------------------------------------------------------


def _slice(network: nn.Module, gone: Mapping[tuple[str, str], Tensor]) -> None:
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


def _held(model: nn.Module) -> dict[tuple[str, str], Tensor]:
    """(layer, tensor) -> mask, of every tensor that masks hold at zero."""
    held: dict[tuple[str, str], Tensor] = {}
    for name, layer in model.named_modules():
        if not parametrize.is_parametrized(layer):
            continue
        for tensor, steps in layer.parametrizations.items():
            for step in steps:
                if isinstance(step, Mask):
                    keep = step.keep.expand(getattr(layer, tensor).shape)
                    held[name, tensor] = held[name, tensor] & keep if (name, tensor) in held else keep
    return held


def _pattern(network: nn.Module, held: Mapping[tuple[str, str], Tensor]) -> nn.Module | None:
    """A copy of `network` whose tensors are the masks in `held`; None where there are none."""
    if not held:
        return None
    pattern = _skeleton(network)
    for (layer, tensor), keep in held.items():
        value = getattr(pattern.get_submodule(layer), tensor)
        value.data = keep.to(value.dtype)
    return pattern


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode whose tensors share their memory with it: cheap at any size."""
    with torch.inference_mode(False):
        shared: dict[int, Any] = {}
        for value in model.parameters():
            shared[id(value)] = nn.Parameter(value.detach(), value.requires_grad)
        for value in model.buffers():
            shared[id(value)] = value.detach()
        return copy.deepcopy(model, shared).eval()


def _own(network: nn.Module, model: nn.Module) -> None:
    """Give `network` memory of its own for every tensor that it shares with `model`; copy its mode."""
    theirs = {v.untyped_storage().data_ptr() for v in [*model.parameters(), *model.buffers()]}
    for value in [*network.parameters(), *network.buffers()]:
        if value.untyped_storage().data_ptr() in theirs:
            value.data = value.data.clone()
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in network.named_modules():
        module.training = modes.get(name, model.training)


# --- finding the groups -----------------------------------------------------------------------------

_cache: OrderedDict[Any, Any] = OrderedDict()
_cache_lock = threading.Lock()


@dataclass(frozen=True)
class _Trace:
    """What one forward pass showed."""

    outputs: tuple[str, ...]  # layers that make the logits
    inputs: dict[str, int]  # shortcut without weights -> its input channels
    unused: tuple[str, ...]  # layers that took no part
    mixing: tuple[str, ...]  # operations that mix or reorder channels, in words


def _remembered(what: str, model: nn.Module, example: Tensor, find: Callable[[nn.Module, Tensor], T]) -> T:
    """`find(network, example)`, once per architecture; `network` is a private copy in float32."""
    key = (what, _signature(model), tuple(example.shape))
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    with torch.inference_mode(False):
        network = bake(_skeleton(model)).float()
        answer = find(network, _like(example, network))
    with _cache_lock:
        _cache[key] = answer
        if len(_cache) > CACHED:
            _cache.popitem(last=False)
    return answer


def _analyse(network: nn.Module, example: Tensor) -> tuple[Group, ...]:
    """The groups of `network`, a private copy in eval mode that is spoilt."""
    _refuse_layers(network)
    trace = _trace(network, example)
    _refuse_steps(trace)
    found = _find(network, example, trace)
    _prove(network, example, found)
    return found


def _signature(model: nn.Module) -> tuple:
    """What decides the groups: every module's class, settings and parameter shapes; not its values."""
    simple = (bool, int, float, str, tuple, FunctionType, type(None))
    return tuple(
        (
            name,
            type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module),
            tuple((k, v) for k, v in vars(module).items() if isinstance(v, simple) and k != "training"),
            tuple((k, tuple(v.shape)) for k, v in module._buffers.items() if v is not None),
        )
        for name, module in model.named_modules()
        if "parametrizations" not in name.split(".")
    )


def _like(example: Tensor, model: nn.Module) -> Tensor:
    """`example` on the device and in the precision of `model`."""
    value = next(model.parameters())
    with torch.inference_mode(False):
        return example.clone().to(value.device, value.dtype if value.is_floating_point() else None)


def _refuse_layers(model: nn.Module) -> None:
    """Say at once, before anything is traced, that a type of layer is not supported."""
    for name, module in model.named_modules():
        if isinstance(module, MIXERS):
            raise UnsupportedModelError(
                f"channel removal: channels must keep to themselves, got a {type(module).__name__} "
                f"(layer {name}) that mixes or reorders them; {OTHERS_WORK}"
            )
        alone = isinstance(module, _ConvNd) and module.groups == module.out_channels > 1
        if alone and module.in_channels != module.out_channels:
            raise UnsupportedModelError(
                f"channel removal: layer {name}, in which every output has a group of its own, must have as "
                f"many inputs as outputs, got {module.in_channels} and {module.out_channels}; {OTHERS_WORK}"
            )


def _refuse_steps(trace: _Trace) -> None:
    """The same for what only a forward pass shows."""
    if trace.unused:
        raise UnsupportedModelError(
            f"channel removal: every layer must take part in a prediction, got {trace.unused[0]}, which does "
            f"not ({len(trace.unused)} such layers; auxiliary heads?); {OTHERS_WORK}"
        )
    if trace.mixing:
        raise UnsupportedModelError(
            f"channel removal: channels must keep to themselves, got {trace.mixing[0]} "
            f"that mixes or reorders them; {OTHERS_WORK}"
        )


def _trace(network: nn.Module, example: Tensor) -> _Trace:
    """Run `network`, a private copy in eval mode, once and look at its autograd graph."""
    made_by: dict[Any, str] = {}  # autograd node -> the layer that made it
    inputs: dict[str, int] = {}

    def made(name: str):
        return lambda layer, args, output: made_by.__setitem__(output.grad_fn, name)

    def entered(name: str):
        return lambda layer, args: inputs.__setitem__(name, args[0].shape[1])

    layers = prunable(network)
    handles = [layer.register_forward_hook(made(name)) for name, layer in layers.items()]
    handles += [
        module.register_forward_pre_hook(entered(name))
        for name, module in network.named_modules()
        if isinstance(module, ChannelShortcut)
    ]
    network.requires_grad_(True)
    with torch.enable_grad():
        logits = network(example)
    for handle in handles:
        handle.remove()
    if not isinstance(logits, Tensor):
        raise UnsupportedModelError(
            f"the model must return one tensor of logits, got {type(logits).__name__}"
        )
    used, steps = set(made_by.values()), {step.name() for step in _steps(logits.grad_fn, stop=())}
    ends = {made_by[step] for step in _steps(logits.grad_fn, stop=made_by) if step in made_by}
    return _Trace(
        outputs=tuple(name for name in layers if name in ends),
        inputs=inputs,
        unused=tuple(name for name in layers if name not in used),
        mixing=tuple(words for step, words in MIXING_STEPS.items() if step in steps),
    )


def _steps(root: Any, stop: Iterable[Any]) -> Iterator[Any]:
    """The autograd nodes behind `root`, itself included; those in `stop` are not looked behind."""
    stack, seen = [root], {root}
    while stack:
        step = stack.pop()
        yield step
        if step in stop:
            continue
        for before, _ in step.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                stack.append(before)


def _find(network: nn.Module, example: Tensor, trace: _Trace) -> tuple[Group, ...]:
    """The groups of `network`, in which shortcuts without weights become convolutions for the while."""
    import torch_pruning  # a second to import, needed once

    shortcuts = {name: network.get_submodule(name) for name in trace.inputs}
    layers = prunable(network)
    for name, inputs in trace.inputs.items():
        width, stride = len(shortcuts[name].source), shortcuts[name].stride
        replace_layer(network, name, nn.Conv2d(inputs, width, 1, stride, bias=False, device=example.device))
    try:
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(network, example, verbose=False)
            coupled = list(graph.get_all_groups())
    except Exception as error:
        raise UnsupportedModelError(
            "channel removal: Torch-Pruning's dependency graph must follow the channels, and cannot here "
            f"({type(error).__name__}: {error}); {OTHERS_WORK}"
        ) from error
    names = {module: name for name, module in network.named_modules()}
    order = {name: place for place, name in enumerate(layers)}
    found: dict[str, Group] = {}
    for items in coupled:
        group = _group(items, graph, names, order, taken=found.keys())
        if group is not None and not set(group.layers) & set(trace.outputs):
            found[group.name] = group
    for name, shortcut in shortcuts.items():
        replace_layer(network, name, shortcut)
    return tuple(sorted(found.values(), key=lambda group: order[group.name]))


def _group(
    items: Any, graph: Any, names: Mapping[nn.Module, str], order: Mapping[str, int], taken: Iterable[str]
) -> Group | None:
    """One group of Torch-Pruning's, as lists of channels by name; None where no layer is left to name it."""
    slots, ties = [], _Ties(len(items[0].idxs))
    for item in items:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            raise UnsupportedModelError(
                "channel removal: the weights that channels meet must belong to layers, got the parameter "
                f"{graph._param_to_name[module]}; {OTHERS_WORK}"
            )
        if module not in names:
            continue  # an addition, a concatenation, a flattening
        side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
        slots.append((names[module], side, list(item.idxs), list(item.root_idxs)))
        if isinstance(module, _ConvNd) and 1 < module.groups != module.out_channels:
            per_group = (module.out_channels if side == "out" else module.in_channels) // module.groups
            ties.tie([channel % per_group for channel in item.idxs], item.root_idxs)
    units = ties.units()
    layers = sorted({name for name, side, _, _ in slots if side == "out" and name in order}, key=order.get)
    free = [name for name in layers if name not in taken]
    if not free:
        return None
    return Group(
        free[0],
        tuple(layers),
        max(units) + 1,
        tuple(
            Slot(name, side, torch.tensor(channels), torch.tensor([units[root] for root in roots]))
            for name, side, channels, roots in slots
        ),
    )


class _Ties:
    """Which channels can only go together: a partition that grows coarser."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def first(self, channel: int) -> int:
        """The representative of its part."""
        while self.parent[channel] != channel:
            self.parent[channel] = channel = self.parent[self.parent[channel]]
        return channel

    def tie(self, marks: Iterable[int], channels: Iterable[int]) -> None:
        """Join the channels of equal mark."""
        seen: dict[int, int] = {}
        for mark, channel in zip(marks, channels, strict=True):
            one, other = sorted((self.first(channel), self.first(seen.setdefault(mark, channel))))
            self.parent[other] = one

    def units(self) -> list[int]:
        """Channel -> number of its part, counted in order of appearance."""
        numbers: dict[int, int] = {}
        return [numbers.setdefault(self.first(c), len(numbers)) for c in range(len(self.parent))]


def _prove(network: nn.Module, example: Tensor, found: tuple[Group, ...]) -> None:
    """Check on random weights that masking and removing half of every group agree; spoils `network`.

    Raises:
        UnsupportedModelError: they do not, so an operation was not understood.
    """
    random = torch.Generator().manual_seed(0)
    masks = {group.name: torch.randperm(group.width, generator=random) >= group.width // 2 for group in found}
    gone = _gone({group.name: group for group in found}, masks)
    _randomise(network, random)
    images = torch.randn(2, *example.shape[1:], generator=random).to(example.device)
    with torch.no_grad():
        masked = {
            f"{layer}.{tensor}": _blank(getattr(network.get_submodule(layer), tensor), keep)
            for (layer, tensor), keep in _tensor_masks(network, gone).items()
        }
        try:
            expected = functional_call(network, masked, images)
            _slice(network, gone)
            got = network(images)
        except Exception as error:
            raise UnsupportedModelError(_not_understood(f"{type(error).__name__}: {error}")) from error
    spread = (expected[0] - expected[1]).abs().max().item()
    off = (expected - got).abs().max().item() if got.shape == expected.shape else float("inf")
    if not off <= 1e-3 * spread + 1e-5 * expected.abs().max().item():
        raise UnsupportedModelError(
            _not_understood(f"logits differ by {off:.3g}, their range being {spread:.3g}")
        )


def _not_understood(what: str) -> str:
    return (
        "channel removal: removing channels must give the same logits as masking them, and does not in this "
        f"model, which reshapes, pads or mixes channels on the way ({what}); {OTHERS_WORK}"
    )


def _randomise(network: nn.Module, random: torch.Generator) -> None:
    """Give it random weights, and batch norms random statistics, so that every channel counts."""

    def uniform(value: Tensor, low: float, high: float) -> Tensor:
        return torch.empty(value.shape).uniform_(low, high, generator=random).to(value)

    for layer in network.modules():
        if isinstance(layer, PRUNABLE):
            bound = (6 / layer.weight[0].numel()) ** 0.5
            layer.weight.data = uniform(layer.weight, -bound, bound)
            if layer.bias is not None:
                layer.bias.data = uniform(layer.bias, -0.2, 0.2)
        elif isinstance(layer, _BatchNorm):
            if layer.affine:
                layer.weight.data = uniform(layer.weight, 0.5, 1.5)
                layer.bias.data = uniform(layer.bias, -0.2, 0.2)
            if layer.track_running_stats:
                layer.running_mean.data = uniform(layer.running_mean, -0.2, 0.2)
                layer.running_var.data = uniform(layer.running_var, 0.5, 1.5)
