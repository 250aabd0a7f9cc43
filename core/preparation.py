"""Private copies of a network, rewritten for those who differentiate it or put hooks on it.

`rewrite` makes a copy in which nothing works in place and every activation is a module of its own. Two
forms follow from it: `fold`, lean and quick, for passes without hooks, and `isolate`, on which hooks are
right. Guided backpropagation, deconvolution and DeepLift change the gradient at ReLU *modules*: a ReLU
that is called as a function, is used in two places or works in place is missed, or met twice, and the
map is silently wrong.
"""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.cost import twin
from core.errors import UnsupportedModelError
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
    """A private copy of `model` on which hooks are right: `isolate` of `rewrite`."""
    return isolate(rewrite(model, example))


def rewrite(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A private copy of `model`, in eval mode and channels-last, in which nothing works in place.

    Functional, reused and in-place activations become modules of their own in the traced graph; layers
    keep their names. A network that cannot be traced keeps its code: its modules stop working in place,
    and `require_own_relus` says later whether a function or a reused module is left. With `example`
    (N, C, H, W) the copy's logits are compared with the original's.

    Raises:
        UnsupportedModelError: the rewritten copy answers `example` differently.
    """
    original = bake(copy.deepcopy(model)).eval().requires_grad_(False)
    for attempt in (_rewritten_graph, _rewritten_modules):
        network = attempt(original)
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
    """The fallback: `original`'s own code, with modules that leave their input alone."""
    network = twin(original)
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return network


def _rewritten_graph(original: nn.Module) -> fx.GraphModule | None:
    """`original` as a traced graph with one module per activation; None if it cannot be traced."""
    try:
        network = trace(twin(original))
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
            module = copy.deepcopy(module)
            network.add_submodule(node.target, module)
        seen.add(node.target)
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False


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
            kind, names = _TWINS[node.target]
            values = dict(zip(names, node.args[1:], strict=False))
            values |= {name: value for name, value in node.kwargs.items() if name in names}
            if any(isinstance(value, fx.Node) for value in values.values()):
                continue  # its shape is computed on the fly
            if node.kwargs.get("inplace") or str(getattr(node.target, "__name__", node.target)).endswith("_"):
                _pass_on(graph, node)
            name = _free_name(network, node.name)
            network.add_submodule(name, kind(**values))
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


# The two forms.


def isolate(network: nn.Module) -> nn.Module:
    """A twin of the rewritten `network` in which no two hooks meet on one tensor; it shares the weights."""
    hooked = twin(network)
    for path, module in list(hooked.named_modules()):
        if path and (replacement := _isolated(module)) is not None:
            hooked.set_submodule(path, replacement)
    return hooked


def _isolated(module: nn.Module) -> nn.Module | None:
    """What takes the place of an activation or a pooling; None: it can stay."""
    if isinstance(module, nn.ReLU6):
        return nn.Sequential(Copy(), nn.ReLU(), Copy(), Ceiling(6.0))
    if Windows.overlap(module):
        windows = Windows(module)
        return nn.Sequential(windows, nn.MaxPool2d(windows.sizes))
    return nn.Sequential(Copy(), module) if isinstance(module, _NONLINEAR) else None


def fold(network: nn.Module) -> nn.Module:
    """A twin of the rewritten `network` with batch norms folded into the convolutions before them.

    The same function up to rounding, in fewer passes over the memory. For passes that ask for logits
    and gradients only: what a convolution gives out is no longer what it was, so rules that look at
    layers (Grad-CAM, DeepLift) have no use for it. A network that was not traced stays as it is.
    """
    folded = twin(network)
    if isinstance(folded, fx.GraphModule):
        fold_batch_norms(folded)
        folded.recompile()
    return folded


def fold_batch_norms(network: fx.GraphModule) -> None:
    """Fold every batch norm that alone reads a convolution into it, in place.

    In float64, so that every weight is rounded once.
    """
    calls = [node.target for node in network.graph.nodes if node.op == "call_module"]
    for node in list(network.graph.nodes):
        norm = _module(network, node)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        before = node.args[0]
        convolution = _module(network, before)
        alone = isinstance(convolution, nn.Conv2d) and calls.count(before.target) == len(before.users) == 1
        if alone:
            both = (copy.deepcopy(each).double() for each in (convolution, norm))
            network.set_submodule(before.target, fuse_conv_bn_eval(*both).to(convolution.weight.dtype))
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(node.target) if node.op == "call_module" else None
