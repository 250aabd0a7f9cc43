"""A network as a list of steps that can be entered anywhere.

Between two steps a few values are alive; whoever keeps them can go on from there, as often as wanted,
with other weights in the steps that follow. `core.fusion` makes the list from a network's code.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from core.cutting import TensorMasks, blank, skeleton
from core.kernels import Activation, Fused, Geometry, Kernel, function_of
from core.layers import ChannelShortcut, private_copy

Values = dict[str, Any]  # name -> what a step made
NOTHING: Mapping[Any, Any] = MappingProxyType({})
GATES = "gates"  # the value, in steps that are gated, that says which channels are on: (N, O) of 0 and 1


@dataclass(frozen=True, eq=False)
class Step:
    """One call that makes one value from others."""

    name: str  # of the value it makes
    reads: tuple[str, ...]
    modules: tuple[str, ...]  # whose weights it uses
    frees: tuple[str, ...]  # values that no later step reads
    float32: bool  # whether its values are float32 in a network of less precision

    def run(self, values: Values, fresh: set[str]) -> Any:
        """The value made from `values`; of those, the `fresh` ones were made in this run."""
        raise NotImplementedError

    def masked(self, masks: TensorMasks) -> "Step":
        """The same step with zeros where `masks` is False."""
        raise NotImplementedError

    def gated(self, modules: Collection[str]) -> "Sequence[Step]":
        """Steps in its place that multiply the outputs of `modules`, which are its own, by `GATES`."""
        plain = replace(self, name=f"{self.name} ungated")
        return plain, _gate(self, plain, lambda x: x)

    @property
    def size_bytes(self) -> int:
        """Memory that its weights take."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Call(Step):
    """A module, function or tensor method, called as the network's code calls it."""

    function: Callable[..., Any]
    args: tuple[Any, ...]  # nodes of the graph stand for values
    kwargs: dict[str, Any]

    def run(self, values: Values, fresh: set[str]) -> Any:
        args, kwargs = fx.node.map_arg((self.args, self.kwargs), lambda node: values[node.name])
        return self.function(*args, **kwargs)

    def masked(self, masks: TensorMasks) -> Step:
        inside = {("", tensor): keep for (_, tensor), keep in masks.items()}
        return replace(self, function=blanked(self.function, inside))

    @property
    def size_bytes(self) -> int:
        return _size(self.function) if isinstance(self.function, nn.Module) else 0


@dataclass(frozen=True, eq=False)
class Convolution(Step):
    """activation(norm(conv(x)) + other) in one kernel, laid out when it is made."""

    layer: nn.Conv2d
    norm: nn.BatchNorm2d | None
    geometry: Geometry
    activation: Activation
    overwrites: bool  # `other` is read here for the last time, and by convolutions alone
    kernel: Kernel
    dtype: torch.dtype
    masks: TensorMasks = field(default_factory=dict)

    @cached_property
    def _convolve(self) -> Callable[..., Tensor]:
        weight, bias = self._folded()
        return self.kernel(weight, bias, self.geometry, self.activation, self.dtype)

    def run(self, values: Values, fresh: set[str]) -> Tensor:
        if len(self.reads) == 1:
            return self._convolve(values[self.reads[0]])
        x, other = self.reads
        return self._convolve(values[x], values[other], self.overwrites and other in fresh)

    def masked(self, masks: TensorMasks) -> Step:
        return replace(self, masks=masks)

    def gated(self, modules: Collection[str]) -> Sequence[Step]:
        """Gates stand behind the batch norm, in front of the addition and the activation."""
        others = self.reads[1:]
        plain = replace(
            self,
            name=f"{self.name} ungated",
            reads=self.reads[:1],
            frees=tuple(name for name in self.frees if name not in others),
            activation=("none", ()),
        )
        return plain, _gate(self, plain, function_of(self.activation), others)

    @property
    def size_bytes(self) -> int:
        return _size(self.layer)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight (O, I, h, w) and bias (O,) of the convolution and the batch norm behind it together."""
        weight, bias = (self._tensor(self.layer, 0, name) for name in ("weight", "bias"))
        if self.norm is not None:
            norm, (scale, shift) = (
                self.norm,
                (self._tensor(self.norm, 1, name) for name in ("weight", "bias")),
            )
            folded = fuse_conv_bn_weights(
                weight, bias, norm.running_mean, norm.running_var, norm.eps, scale, shift
            )
            weight, bias = (value.detach() for value in folded)
        return weight, torch.zeros(len(weight)) if bias is None else bias

    def _tensor(self, owner: nn.Module, place: int, name: str) -> Tensor | None:
        value, keep = getattr(owner, name), self.masks.get((self.modules[place], name))
        return value if value is None or keep is None else blank(value, keep)


@dataclass(frozen=True, eq=False)
class Shortcut(Step):
    """A shortcut without weights, by copying runs of neighbouring channels: much faster than by index."""

    module: ChannelShortcut

    @cached_property
    def _runs(self) -> list[tuple[int, int, int]]:
        """(first output, first input, length) of channels that stay neighbours."""
        runs: list[tuple[int, int, int]] = []
        for output, source in enumerate(self.module.source.tolist()):
            if source < 0:
                continue
            last = runs[-1] if runs else (0, 0, 0)
            if last[2] and (output, source) == (last[0] + last[2], last[1] + last[2]):
                runs[-1] = (last[0], last[1], last[2] + 1)
            else:
                runs.append((output, source, 1))
        return runs

    def run(self, values: Values, fresh: set[str]) -> Tensor:
        stride = self.module.stride
        x = values[self.reads[0]][:, :, ::stride, ::stride]
        shape = (len(x), len(self.module.source), *x.shape[2:])
        made = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last).zero_()
        for output, source, length in self._runs:
            made[:, output : output + length] = x[:, source : source + length]
        return made

    def masked(self, masks: TensorMasks) -> Step:
        inside = {("", tensor): keep for (_, tensor), keep in masks.items()}
        return replace(self, module=blanked(self.module, inside))

    @property
    def size_bytes(self) -> int:
        return _size(self.module)


@dataclass(frozen=True, eq=False)
class Whole(Step):
    """A network that cannot be cut, in one step."""

    network: nn.Module

    def run(self, values: Values, fresh: set[str]) -> Tensor:
        return self.network(values[self.reads[0]])

    def masked(self, masks: TensorMasks) -> Step:
        return replace(self, network=blanked(self.network, masks))

    def gated(self, modules: Collection[str]) -> Sequence[Step]:
        return (_GatedWhole(**vars(self), gates_of=tuple(modules)),)

    @property
    def size_bytes(self) -> int:
        return _size(self.network)


@dataclass(frozen=True, eq=False)
class _GatedWhole(Whole):
    """The same with gates behind the modules `gates_of`."""

    gates_of: tuple[str, ...]

    def run(self, values: Values, fresh: set[str]) -> Tensor:
        network, gates = skeleton(self.network), values[GATES]  # hooks of its own: others run at once
        for name in self.gates_of:
            layer = network.get_submodule(name)
            last = isinstance(layer, nn.Linear)
            layer.register_forward_hook(
                lambda _, inputs, output, last=last: output * _spread(gates, output, last)
            )
        return network(values[self.reads[0]])


@dataclass(frozen=True, eq=False)
class Gate(Step):
    """activation(gates * value + other)."""

    activate: Callable[[Tensor], Tensor]
    last: bool  # whether channels are the last dimension, else the second

    def run(self, values: Values, fresh: set[str]) -> Tensor:
        value, *others = (values[name] for name in self.reads)
        gates = _spread(values[GATES], value, self.last)
        return self.activate(torch.addcmul(others[0], value, gates) if others else value * gates)

    @property
    def size_bytes(self) -> int:
        return 0


def _gate(
    step: Step, plain: Step, activate: Callable[[Tensor], Tensor], others: tuple[str, ...] = ()
) -> Gate:
    """The gate behind `plain`, which computes what `step` does but for additions and activations."""
    frees = (plain.name, *(name for name in step.frees if name not in plain.frees))
    last = isinstance(getattr(step, "function", None), nn.Linear)
    return Gate(step.name, (plain.name, *others), (), frees, step.float32, activate, last)


def _spread(gates: Tensor, value: Tensor, last: bool) -> Tensor:
    """Gates (N, O) in a shape that broadcasts to `value`, which may hold several windows of every picture."""
    gates = gates.to(value.dtype).repeat_interleave(len(value) // len(gates), 0)
    shaped = gates.reshape(*gates.shape, *[1] * (value.dim() - 2))
    return shaped.movedim(1, -1) if last else shaped


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a network from normalised pictures (N, C, H, W) to logits (N, K)."""

    steps: Sequence[Step]
    constants: Values
    input: str
    output: str
    dtype: torch.dtype  # of the values of all steps that are not float32

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def words(self) -> str:
        """The form it is in, for a person."""
        if isinstance(self.steps[0], Whole):
            return "as it is, in one piece"
        fused = sum(isinstance(step, Convolution) and step.kernel is Fused for step in self.steps)
        precision = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[self.dtype]
        return f"{precision}, {len(self)} steps, {fused} fused convolutions"

    def enter(self, images: Tensor) -> Values:
        """What is alive before the first step."""
        dtype = torch.float32 if self.steps[0].float32 else self.dtype
        return {self.input: images.to(dtype, memory_format=torch.channels_last)}

    def run(self, values: Values, start: int, stop: int, changed: Mapping[int, Step] = NOTHING) -> Values:
        """From what is alive before step `start` to what is alive before `stop`.

        `changed` are steps that stand in for those of the network. `values` stay as they are.
        """
        values, fresh = {**self.constants, **values}, set()
        for index in range(start, stop):
            step = changed.get(index) or self.steps[index]
            if step.float32 and index and not self.steps[index - 1].float32:
                values = {name: _float32(value) for name, value in values.items()}
            values[step.name] = step.run(values, fresh)
            if isinstance(step, Convolution | Gate):
                fresh.add(step.name)
            for name in step.frees:
                del values[name]
        return {name: value for name, value in values.items() if name not in self.constants}

    def finish(self, values: Values, start: int, changed: Mapping[int, Step] = NOTHING) -> Tensor:
        """Logits (N, K) float32 from what is alive before step `start`."""
        return self.run(values, start, len(self), changed)[self.output].float()

    def touched(self, masks: TensorMasks) -> dict[int, TensorMasks]:
        """Step -> those of `masks` that change it, in order of the steps."""
        found: dict[int, TensorMasks] = {}
        for index, step in enumerate(self.steps):
            here = {place: keep for place, keep in masks.items() if place[0] in step.modules}
            if here:
                found[index] = here
        return found

    def gated(self, modules: Collection[str]) -> tuple["Steps", int]:
        """The same steps with gates behind `modules`, and where the first gate stands.

        Up to there the steps are, in number and effect, those of this network. From there on `GATES`
        must be among the values: zeros do to a layer with its batch norm what `surgery.silence` does.
        """
        steps: list[Step] = []
        first = None
        for step in self.steps:
            here = [name for name in step.modules if name in modules]
            parts = step.gated(here) if here else (step,)
            steps += parts
            if here and first is None:
                first = len(steps) - 1
        return replace(self, steps=steps), len(steps) if first is None else first


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def whole(module: nn.Module) -> Steps:
    """A network whose code cannot be followed; every plan runs all of it, in float32."""
    network = private_copy(module).to(memory_format=torch.channels_last)
    names = tuple(name for name, _ in network.named_modules())
    return Steps([Whole("logits", ("x",), names, ("x",), True, network)], {}, "x", "logits", torch.float32)


def _size(module: nn.Module) -> int:
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))


def blanked(module: nn.Module, masks: TensorMasks) -> nn.Module:
    """A copy of `module`, which is frozen, with zeros where `masks` is False."""
    changed = copy.deepcopy(module)
    for (name, tensor), keep in masks.items():
        owner = changed.get_submodule(name)
        value = blank(getattr(owner, tensor), keep)
        setattr(owner, tensor, nn.Parameter(value, False) if tensor in owner._parameters else value)
    return changed
