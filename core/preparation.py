"""Private copies of a network that attribution methods may put hooks on.

Guided backpropagation, deconvolution and DeepLift change the gradient at ReLU *modules*. A ReLU that
is called as a function, is used in two places or works in place is missed, or met twice, and the
map is silently wrong. So every activation becomes a module of its own here.
"""

import contextlib
import copy
import operator
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from core.errors import ParameterError, UnsupportedModelError
from core.layers import bake
from core.tracing import trace

# Functions and tensor methods with a module twin -> (twin, names of the arguments after the first).
_TWINS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), (nn.ReLU, ())),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), (nn.Sigmoid, ())),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), (nn.Tanh, ())),
    F.relu6: (nn.ReLU6, ()),
    F.hardswish: (nn.Hardswish, ()),
    F.silu: (nn.SiLU, ()),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope",)),
    F.elu: (nn.ELU, ("alpha",)),
    F.softplus: (nn.Softplus, ("beta", "threshold")),
    F.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    F.avg_pool2d: (nn.AvgPool2d, ("kernel_size", "stride", "padding", "ceil_mode")),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
}
_IN_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}

# What DeepLift has a rule for, and guided backpropagation hooks.
_NONLINEAR = (
    nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softmax, nn.Hardtanh, nn.Hardswish,
    nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.SELU, nn.CELU, nn.Mish, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
)  # fmt: skip

# Rectifiers for which guided backpropagation and deconvolution state no rule. Gates (sigmoid, tanh,
# softmax) are not among them: their gradient passes as it is.
_OTHER_RECTIFIERS = (
    nn.Hardswish, nn.SiLU, nn.GELU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.PReLU, nn.Softplus,
)  # fmt: skip


class Ceiling(nn.Module):
    """min(x, top). ReLU6 is a ReLU and a ceiling of 6, so that rules for ReLU reach its ReLU part."""

    def __init__(self, top: float) -> None:
        super().__init__()
        self.top = top

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=self.top)


class Copy(nn.Module):
    """x, in memory of its own.

    Captum's hooks sit on a module's input tensor. Where that is another module's output (max pooling
    right after a ReLU) or is read by other layers as well (pre-activation, Inception), they meet hooks
    and gradients that are not theirs, and DeepLift's sums go wrong without a word.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Windows(nn.Module):
    """Lays the overlapping windows of a max pooling side by side: (N, C, H, W) -> (N, C, H' k, W' k).

    Pooling without overlap then gives the same values, and DeepLift's rule adds up: Captum's keeps, of
    all windows that share a largest pixel, one.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool
        self.sizes, self.steps, self.margins = (
            _pair(value) for value in (pool.kernel_size, pool.stride, pool.padding)
        )

    @classmethod
    def overlap(cls, module: nn.Module) -> bool:
        """Whether `module` is a max pooling that needs this."""
        if not isinstance(module, nn.MaxPool2d) or _pair(module.dilation) != (1, 1):
            return False
        return any(
            step < size for step, size in zip(_pair(module.stride), _pair(module.kernel_size), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        index = [self._index(x.shape[2], 0), self._index(x.shape[3], 1)]
        (top, left), (bottom, right) = self.margins, (int(i.max()) + 1 for i in index)
        after = (max(0, right - left - x.shape[3]), max(0, bottom - top - x.shape[2]))
        x = F.pad(x, (left, after[0], top, after[1]), value=torch.finfo(x.dtype).min / 4)
        return x[:, :, index[0].to(x.device)][:, :, :, index[1].to(x.device)]

    def _index(self, length: int, axis: int) -> Tensor:
        """The padded row (column) that each row (column) of the result shows."""
        size, step, margin = self.sizes[axis], self.steps[axis], self.margins[axis]
        room = length + 2 * margin - size
        count = (-(-room // step) if self.pool.ceil_mode else room // step) + 1
        if (count - 1) * step >= length + margin:  # torch drops a window that starts in the far margin
            count -= 1
        return (torch.arange(count)[:, None] * step + torch.arange(size)).flatten()


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def prepare(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A private copy of `model`, in eval mode, in which every activation is a module of its own.

    Functional, reused and in-place activations are rewritten in the traced graph; layers keep their
    names. A network that cannot be traced keeps its code: its activation modules stop working in
    place, and `require_own_relus` says later whether a function or a reused module is left. With
    `example` (N, C, H, W) the copy's logits are compared with the original's.

    Raises:
        UnsupportedModelError: the rewritten copy answers `example` differently.
    """
    original = bake(copy.deepcopy(model)).eval().requires_grad_(False)
    for rewrite in (_rewritten_graph, _rewritten_modules):
        network = rewrite(original)
        if network is not None and (example is None or _same_answer(original, network, example)):
            return network.eval().to(memory_format=torch.channels_last)
    raise UnsupportedModelError(
        "the network answers differently when its activations do not work in place: no map explains it"
    )


def _same_answer(original: nn.Module, network: nn.Module, example: Tensor) -> bool:
    with torch.no_grad():
        expected, got = original(example.clone()), network(example.clone())
    return torch.allclose(expected, got, rtol=1e-3, atol=1e-4, equal_nan=True)


def _rewritten_modules(original: nn.Module) -> nn.Module:
    """The fallback: `original`'s own code, with activation modules that leave their input alone."""
    network = copy.deepcopy(original)
    for path, module in list(network.named_modules()):
        if path and (replacement := _isolated(module)) is not None:
            network.set_submodule(path, replacement)
    return network


def _isolated(module: nn.Module) -> nn.Module | None:
    """What takes the place of an activation, a pooling or an in-place module; None: it can stay."""
    if isinstance(module, nn.ReLU6):
        return nn.Sequential(Copy(), nn.ReLU(), Copy(), Ceiling(6.0))
    if Windows.overlap(module):
        windows = Windows(module)
        return nn.Sequential(windows, nn.MaxPool2d(windows.sizes))
    if not isinstance(module, _NONLINEAR) and not getattr(module, "inplace", False):
        return None
    own = copy.deepcopy(module)  # a shallow copy would share its hooks
    if hasattr(own, "inplace"):
        own.inplace = False
    return nn.Sequential(Copy(), own) if isinstance(own, _NONLINEAR) else own


def _rewritten_graph(original: nn.Module) -> fx.GraphModule | None:
    """`original` as a traced graph with one module per activation; None if it cannot be traced."""
    try:
        network = trace(original)
    except Exception:  # tracing runs the network's own code on symbols, so anything may come out
        return None
    _own_modules(network)
    _twin_modules(network)
    network.graph.lint()
    network.recompile()
    return network


def _own_modules(network: fx.GraphModule) -> None:
    """Every call of a parameter-free module gets its own instance, which does not work in place."""
    before = dict(network.named_modules())
    seen: set[str] = set()
    for node in list(network.graph.nodes):
        if node.op != "call_module":
            continue
        module = before[node.target]
        if getattr(module, "inplace", False):
            _pass_on(network.graph, node)
        if node.target in seen and not any(True for _ in module.parameters()):
            node.target = _free_name(network, node.target)
            network.add_submodule(node.target, copy.deepcopy(module))
        seen.add(node.target)
        if (replacement := _isolated(module)) is not None:
            network.set_submodule(node.target, replacement)


def _twin_modules(network: fx.GraphModule) -> None:
    """Activations called as functions or tensor methods become modules."""
    graph = network.graph
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        if node.target in _IN_PLACE:
            _pass_on(graph, node)
            node.target = _IN_PLACE[node.target]
        elif node.target in _TWINS and isinstance(source := _source(node), fx.Node):
            twin, names = _TWINS[node.target]
            values = dict(zip(names, node.args[1:], strict=False))
            values |= {name: value for name, value in node.kwargs.items() if name in names}
            if any(isinstance(value, fx.Node) for value in values.values()):
                continue  # its shape is computed on the fly
            if node.kwargs.get("inplace") or str(getattr(node.target, "__name__", node.target)).endswith("_"):
                _pass_on(graph, node)
            module = twin(**values)
            name = _free_name(network, node.name)
            network.add_submodule(name, _isolated(module) or module)
            with graph.inserting_after(node):
                call = graph.call_module(name, (source,))
            node.replace_all_uses_with(call)
            graph.erase_node(node)


def _source(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _pass_on(graph: fx.Graph, node: fx.Node) -> None:
    """Whatever read the input of the in-place `node` later on saw its output: make that explicit."""
    order = {each: place for place, each in enumerate(graph.nodes)}
    _source(node).replace_all_uses_with(
        node, delete_user_cb=lambda user: user is not node and order[user] > order[node]
    )


def _free_name(network: nn.Module, wanted: str) -> str:
    taken = {name for name, _ in network.named_modules()}
    count = 2
    while f"{wanted}_{count}" in taken:
        count += 1
    return f"{wanted}_{count}"


# What a method may ask for.


class _CountReLUs(TorchDispatchMode):
    """Counts every ReLU that torch computes, wherever it was called from."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
        return function(*args, **(kwargs or {}))


def require_own_relus(who: str, network: nn.Module, image: Tensor) -> None:
    """Check, by running `image` (1, C, H, W), that every ReLU is a module used once.

    Raises:
        UnsupportedModelError: a ReLU is called as a function, or a ReLU module is used twice.
    """
    calls: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    relus = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.ReLU)]
    with contextlib.ExitStack() as stack, torch.no_grad(), _CountReLUs() as seen:
        for name, module in relus:
            stack.callback(module.register_forward_hook(count(name)).remove)
        network(image)
    functional = seen.count - sum(calls.values())
    reused = [name for name, times in calls.items() if times > 1]
    if functional or reused:
        found = (
            f"module {reused[0]} is used {calls[reused[0]]} times"
            if reused
            else f"{functional} are functions"
        )
        raise UnsupportedModelError(
            f"{who}: every ReLU must be a module of its own, but {found} and the network cannot be traced"
        )


def require_relu_rules(who: str, network: nn.Module) -> None:
    """Check that a rule stated for ReLU alone covers the activations of `network`.

    Raises:
        UnsupportedModelError: it has no ReLU, or another rectifier beside it.
    """
    others = sorted({type(m).__name__ for m in network.modules() if isinstance(m, _OTHER_RECTIFIERS)})
    if others:
        raise UnsupportedModelError(
            f"{who}: the rule is stated for ReLU, and this network has {', '.join(others)} as well"
        )
    if not any(isinstance(m, nn.ReLU) for m in network.modules()):
        raise UnsupportedModelError(f"{who}: the rule changes gradients at ReLUs, and this network has none")


def convolution_from_output(who: str, network: nn.Module, place: int) -> nn.Module:
    """The convolution number `place` of `network`, counted from the output: 1 is the last.

    Raises:
        UnsupportedModelError: it has no convolution.
        ParameterError: it has fewer of them.
    """
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if not found:
        raise UnsupportedModelError(f"{who}: needs a convolution, and this network has none")
    if place > len(found):
        raise ParameterError(f"{who}: layer must lie in [1, {len(found)}] for this network, got {place}")
    return found[-place]


# Prepared copies are kept, so that the next map of the same network need not trace it again.


@dataclass
class _Pool:
    """Copies of one network that nobody uses at the moment."""

    signature: tuple[Any, ...]
    free: list[nn.Module] = field(default_factory=list)


_POOLS: weakref.WeakKeyDictionary[nn.Module, _Pool] = weakref.WeakKeyDictionary()
_POOLS_LOCK = threading.Lock()
_KEPT_COPIES = 2


@contextlib.contextmanager
def prepared(model: nn.Module, example: Tensor) -> Iterator[nn.Module]:
    """Lend a prepared copy of `model`; nobody else has it meanwhile, so hooks cannot meet.

    Copies of weights that have changed since are dropped, as is one in which an error was raised.
    """
    signature = _signature(model)
    with _POOLS_LOCK:
        pool = _POOLS.get(model)
        if pool is None or pool.signature != signature:
            pool = _POOLS[model] = _Pool(signature)
        network = pool.free.pop() if pool.free else None
    if network is None:
        network = prepare(model, example)
    yield network
    with _POOLS_LOCK:
        if len(pool.free) < _KEPT_COPIES:
            pool.free.append(network)


def _signature(model: nn.Module) -> tuple[Any, ...]:
    """Changes when a weight or buffer is replaced or written to."""
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
