"""Which channels can only go together: found once per architecture, proved before they are believed.

Source: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize, skip_init

from core.cutting import blank, cut, example_for, masks_of, replace_layer, skeleton
from core.errors import UnsupportedModelError
from core.groups import Group, Slot, gone_channels
from core.layers import PRUNABLE, ChannelShortcut, bake, following_batch_norms, prunable, require_prunable

T = TypeVar("T")

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

_cache: OrderedDict[Any, Any] = OrderedDict()
_signatures: WeakKeyDictionary[nn.Module, tuple[list, tuple]] = WeakKeyDictionary()
_cache_lock = threading.Lock()


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


def following_norms(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Prunable layer -> the name of the batch norm that its output enters directly."""

    def find(network: nn.Module, example: Tensor) -> dict[str, str]:
        names = {module: name for name, module in network.named_modules()}
        return {layer: names[norm] for layer, norm in following_batch_norms(network, example).items()}

    return _remembered("norms", model, example, find)


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
        network = bake(skeleton(model)).float()
        answer = find(network, example_for(example, network))
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
    """What decides the groups; looked up again only where modules, shapes or settings have changed since.

    Of torch's own modules no setting but the shapes decides which channels are tied.
    """
    state = [
        (
            id(module),
            type(module),
            () if type(module).__module__.startswith("torch.nn") else _settings(module),
            *(v.shape for v in (*module._parameters.values(), *module._buffers.values()) if v is not None),
        )
        for module in model.modules()
    ]
    known, found = _signatures.get(model, (None, ()))
    if known != state:
        found = _outline(model)
        _signatures[model] = state, found
    return found


def _settings(module: nn.Module) -> tuple:
    simple = (bool, int, float, str, tuple, FunctionType, type(None))
    return tuple((k, v) for k, v in vars(module).items() if isinstance(v, simple) and k != "training")


def _outline(model: nn.Module) -> tuple:
    """Every module's class, settings and parameter shapes; not its values."""
    return tuple(
        (
            name,
            type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module),
            _settings(module),
            tuple((k, tuple(v.shape)) for k, v in module._buffers.items() if v is not None),
        )
        for name, module in model.named_modules()
        if "parametrizations" not in name.split(".")
    )


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
        stand_in = skip_init(nn.Conv2d, inputs, width, 1, stride, bias=False, device=example.device)
        nn.init.ones_(stand_in.weight)  # drawing them would move the caller's random numbers on
        replace_layer(network, name, stand_in)
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
    gone = gone_channels({group.name: group for group in found}, masks)
    _randomise(network, random)
    images = torch.randn(2, *example.shape[1:], generator=random).to(example.device)
    with torch.no_grad():
        masked = {
            f"{layer}.{tensor}": blank(getattr(network.get_submodule(layer), tensor), keep)
            for (layer, tensor), keep in masks_of(network, gone).items()
        }
        try:
            expected = functional_call(network, masked, images)
            cut(network, gone)
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
