"""From a network's code to its steps: batch norm folded, additions and activations fused."""

import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from core.errors import UnsupportedModelError
from core.kernels import Activation, Geometry, Kernel, activation_of
from core.layers import PRUNABLE, ChannelShortcut, private_copy
from core.steps import Call, Convolution, Shortcut, Step, Steps
from core.tracing import trace

_LEAVES = (*PRUNABLE, _BatchNorm, ChannelShortcut)  # one step each, whoever wrote their class
_NO_OPERATION = (nn.Identity, _DropoutNd)  # in eval mode
_ADDITIONS = (operator.add, torch.add, "add")
Shapes = dict[fx.Node, torch.Size]  # of every tensor on the way

_OUT_OF_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}


def fuse(module: nn.Module, example: Tensor, kernel: Kernel, dtype: torch.dtype) -> Steps:
    """The steps of `module`; `example` (N, C, H, W) is shaped like the batches that will come.

    Up to the last convolution values are of `dtype`, from there on float32.

    Raises:
        UnsupportedModelError: its code cannot be followed, or uses weights in a way that cannot be masked.
    """
    network = private_copy(module)
    try:
        graph = trace(network, _LEAVES).graph
        for inner in network.modules():
            if getattr(inner, "inplace", False):
                inner.inplace = False
        _simplify(graph, network)
        shapes = _shapes(graph, network, example)
    except Exception as error:  # whatever a network's code makes of symbols in place of tensors
        raise UnsupportedModelError("the network's code cannot be followed step by step") from error
    return _Assembly(graph, network, shapes, kernel, dtype).steps()


def _simplify(graph: fx.Graph, network: nn.Module) -> None:
    """Drop what does nothing, and let nothing write into a value that was made before."""
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(network.get_submodule(node.target), _NO_OPERATION):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
            if "inplace" in _parameters(node.target):
                bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
                bound.arguments["inplace"] = False
                node.args, node.kwargs = bound.args, bound.kwargs
        elif node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
            node.target = node.target.removesuffix("_")
    graph.eliminate_dead_code()


def _parameters(function: Any) -> Iterable[str]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return ()


def _shapes(graph: fx.Graph, network: nn.Module, example: Tensor) -> Shapes:
    """The shape of every tensor that is made from `example`."""
    shapes: Shapes = {}

    class Observer(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if isinstance(value, Tensor):
                shapes[node] = value.shape
            return value

    with torch.inference_mode():
        Observer(network, graph=graph).run(example)
    return shapes


@dataclass(eq=False)
class _Chain:
    """A convolution and what one kernel does behind it."""

    convolution: fx.Node
    norm: fx.Node | None = None
    other: fx.Node | None = None  # the second summand
    activation: Activation = ("none", ())
    nodes: list[fx.Node] = field(default_factory=list)

    @property
    def end(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def reads(self) -> list[fx.Node]:
        x = self.convolution.args[0]
        return [x] if self.other is None else [x, self.other]


class _Assembly:
    """Steps out of a graph."""

    def __init__(
        self, graph: fx.Graph, network: nn.Module, shapes: Shapes, kernel: Kernel, dtype: torch.dtype
    ) -> None:
        self._nodes = list(graph.nodes)
        self._network = network
        self._shapes = shapes
        self._kernel = kernel
        self._dtype = dtype
        self._chains: dict[fx.Node, _Chain] = {}  # by their last node
        self._taken: set[fx.Node] = set()
        for node in reversed(self._nodes):  # of two convolutions that are added, the later one adds
            if self._can_fuse(node):
                chain = self._chain(node)
                self._chains[chain.end] = chain
                self._taken.update(chain.nodes)

    def steps(self) -> Steps:
        (given,) = (node for node in self._nodes if node.op == "placeholder")
        result = self._nodes[-1].args[0]
        if not isinstance(result, fx.Node):
            raise UnsupportedModelError("the network's code cannot be followed: it returns more than logits")
        constants = {node.name: self._constant(node) for node in self._nodes if node.op == "get_attr"}
        calls = [
            node
            for node in self._nodes
            if node in self._chains or (node.op.startswith("call_") and node not in self._taken)
        ]
        last_reader = {read: node for node in calls for read in self._reads(node)}  # later ones win
        last_reader.pop(result, None)
        convolving = [place for place, node in enumerate(calls) if self._convolves(node)]
        steps = []
        for place, node in enumerate(calls):
            frees = tuple(
                read.name for read, reader in last_reader.items() if reader is node and read.op != "get_attr"
            )
            steps.append(self._step(node, frees, float32=place > max(convolving, default=-1)))
        return Steps(steps, constants, given.name, result.name, self._dtype)

    def _step(self, node: fx.Node, frees: tuple[str, ...], float32: bool) -> Step:
        reads = tuple(read.name for read in self._reads(node))
        if node not in self._chains:
            module = self._module(node)
            modules = () if module is None else (node.target,)
            shared = (node.name, reads, modules, frees, float32)
            if isinstance(module, ChannelShortcut):
                return Shortcut(*shared, module)
            return Call(*shared, module or _function(node), node.args, node.kwargs)
        chain = self._chains[node]
        parts = [chain.convolution] if chain.norm is None else [chain.convolution, chain.norm]
        layer = self._module(chain.convolution)
        return Convolution(
            node.name,
            reads,
            tuple(part.target for part in parts),
            frees,
            float32,
            layer,
            None if chain.norm is None else self._module(chain.norm),
            Geometry.of(layer, self._shapes[chain.reads[0]]),
            chain.activation,
            chain.other is not None and chain.other.name in frees and self._read_by_kernels(chain.other),
            self._kernel,
            self._dtype,
        )

    def _chain(self, node: fx.Node) -> _Chain:
        """As much of what follows the convolution `node` as one kernel can do."""
        chain = _Chain(node, nodes=[node])
        after = self._only_reader(chain.end)
        if after and type(norm := self._module(after)) is nn.BatchNorm2d and norm.track_running_stats:
            chain.norm = after
            chain.nodes.append(after)
            after = self._only_reader(chain.end)
        if after and after.target in _ADDITIONS and len(after.args) == 2 and not after.kwargs:
            others = [value for value in after.args if value is not chain.end]
            if len(others) == 1 and self._shapes.get(others[0]) == self._shapes[chain.end]:
                chain.other = others[0]
                chain.nodes.append(after)
                after = self._only_reader(chain.end)
        if after and after.op.startswith("call_") and len(after.all_input_nodes) == 1:
            target = self._module(after) or after.target
            activation = activation_of(target, added=chain.other is not None)
            if activation and self._shapes[after] == self._shapes[chain.end]:
                chain.activation = activation
                chain.nodes.append(after)
        return chain

    def _only_reader(self, node: fx.Node) -> fx.Node | None:
        """The only node that reads `node`, unless another chain has it."""
        readers = list(node.users)
        return readers[0] if len(readers) == 1 and readers[0] not in self._taken else None

    def _can_fuse(self, node: fx.Node) -> bool:
        layer = self._module(node)
        plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str) and len(self._shapes[node.args[0]]) == 4

    def _convolves(self, node: fx.Node) -> bool:
        return node in self._chains or isinstance(self._module(node), nn.Conv2d)

    def _reads(self, node: fx.Node) -> list[fx.Node]:
        return self._chains[node].reads if node in self._chains else node.all_input_nodes

    def _read_by_kernels(self, node: fx.Node) -> bool:
        """Nothing but convolutions and additions reads it, so that no view of it can be alive."""
        return all(reader in self._taken for reader in node.users)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._network.get_submodule(node.target) if node.op == "call_module" else None

    def _constant(self, node: fx.Node) -> Any:
        path, _, name = node.target.rpartition(".")
        owner = self._network.get_submodule(path)
        if isinstance(owner, _LEAVES):
            raise UnsupportedModelError(
                f"the network uses the {name} of layer {path} behind the layer's back"
            )
        return getattr(owner, name)


def _function(node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_function":
        return node.target
    return lambda value, *args, **kwargs: getattr(value, node.target)(*args, **kwargs)
