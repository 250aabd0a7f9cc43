"""Layer-wise relevance propagation."""

import copy
import weakref
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from core.attribution import ATTRIBUTIONS, AttributionMethod, target_logits
from core.errors import UnsupportedModelError
from core.method import choice
from core.preparation import Ceiling, Copy, Windows, fold_batch_norms
from core.prepared import Prepared
from core.run import Run

_LINEAR = (nn.Conv2d, nn.Linear)
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_ACTIVATIONS = (nn.ReLU, Ceiling)
_PASSING = (Copy, Windows, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d)
_SUMS = {"add"}
# Functions and tensor methods that only move or choose: their gradient moves relevance as it should.
_MOVING = {
    "flatten", "cat", "concat", "concatenate", "getitem", "view", "reshape", "contiguous", "permute",
    "transpose", "squeeze", "unsqueeze", "chunk", "split",
}  # fmt: skip
_SIZES = {"getattr", "size", "dim"}

# Private copy -> its canonical form. Both are lent to one caller at a time (see core.prepared).
_CANONICAL: weakref.WeakKeyDictionary[nn.Module, fx.GraphModule] = weakref.WeakKeyDictionary()


class Sum(nn.Module):
    """a + b, as a sum over a stacked dimension, so that a relevance rule can be hooked to it."""

    def __init__(self) -> None:
        super().__init__()
        from zennit.layer import Sum as ZennitSum

        self.stacked = ZennitSum(dim=-1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.stacked(torch.stack(torch.broadcast_tensors(a, b), dim=-1))


@ATTRIBUTIONS.register
@dataclass(frozen=True)
class LRP(AttributionMethod):
    """Passes the logit back layer by layer, each unit to its inputs in the share they contributed.

    Batch norm is folded into the convolution before it. The last linear layer follows the epsilon
    rule, all others `rule`; averages and residual sums share in proportion to the summands. Biases get
    nothing, so relevance adds up to the logit. (With biases, the epsilon rule alone is input x gradient in
    a ReLU network; without them it divides by sums near zero. Neither is offered.)

    Source: Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
    Relevance Propagation", PLoS ONE 2015, equations 58 and 60; Anders et al., "Software for
    Dataset-wide XAI: From Local Explanations to Global Insights with Zennit, CoRelAy, and ViRelAy",
    2021, arXiv:2106.13200, for batch norm and residual sums.
    """

    name: ClassVar[str] = "lrp"
    title: ClassVar[str] = "Layer-wise relevance propagation"
    complete = "exactly"

    rule: str = choice(
        "alpha2-beta1",
        "alpha1-beta0",
        help="alpha1-beta0 follows positive contributions alone, alpha2-beta1 weighs negative ones too",
    )

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        with model.private() as hooked:
            network = _canonical(self.name, hooked)
            images = images.clone().requires_grad_()
            with _composite(self.rule, network).context(network):
                logits = network(images)
                relevance = torch.zeros_like(logits).scatter_(
                    1, targets[:, None], logits.detach().gather(1, targets[:, None])
                )
                (maps,) = torch.autograd.grad(logits, images, relevance)
        return maps

    def promise(self, model: Prepared, images: Tensor, targets: Tensor) -> Tensor:
        return target_logits(model, images, targets)


def _composite(rule: str, network: nn.Module) -> Any:
    """Zennit's rules for the modules of a canonical network."""
    from zennit.core import Composite
    from zennit.layer import Sum as ZennitSum
    from zennit.rules import AlphaBeta, Epsilon, Norm, Pass

    alpha, beta = (2, 1) if rule == "alpha2-beta1" else (1, 0)
    last = [m for m in network.modules() if isinstance(m, _LINEAR)][-1:]

    def choose(context: dict, name: str, module: nn.Module) -> Any:
        if any(module is each for each in last):
            return Epsilon(1e-6, zero_params="bias")
        if isinstance(module, _LINEAR):
            return AlphaBeta(alpha, beta, zero_params="bias")
        if isinstance(module, (*_AVERAGES, ZennitSum)):
            return Norm()
        return Pass() if isinstance(module, _ACTIVATIONS) else None

    return Composite(choose)


def _canonical(who: str, hooked: nn.Module) -> fx.GraphModule:
    """The canonical form of the private copy `hooked`, made once."""
    if hooked not in _CANONICAL:
        _CANONICAL[hooked] = _make_canonical(who, hooked)
    return _CANONICAL[hooked]


def _make_canonical(who: str, hooked: nn.Module) -> fx.GraphModule:
    """A copy of `hooked` with batch norm folded and every sum a module.

    Raises:
        UnsupportedModelError: it has something for which there is no relevance rule here.
    """
    if not isinstance(hooked, fx.GraphModule):
        raise UnsupportedModelError(
            f"{who}: the network's code cannot be traced, so its sums cannot be given rules"
        )
    network = copy.deepcopy(hooked)
    fold_batch_norms(network)
    _make_averages(network)
    signals = _signals(network.graph)
    for node in [n for n in network.graph.nodes if n in signals and n.op not in ("placeholder", "output")]:
        problem = _problem(network, node, signals)
        if problem:
            raise UnsupportedModelError(
                f"{who}: there is no relevance rule for {problem}, which this network has"
            )
        if _is_sum(node, signals):
            _replace(network, node, Sum(), node.args[:2])
    network.recompile()
    return network


def _make_averages(network: fx.GraphModule) -> None:
    """The mean over height and width becomes a pooling module."""
    for node in list(network.graph.nodes):
        if node.op not in ("call_function", "call_method") or _called(node) != "mean":
            continue
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if isinstance(dims, list | tuple) and sorted(dims) in ([2, 3], [-2, -1]):
            keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
            pool = nn.AdaptiveAvgPool2d(1)
            _replace(network, node, pool if keep else nn.Sequential(pool, nn.Flatten()), node.args[:1])


def _replace(
    network: fx.GraphModule, node: fx.Node, module: nn.Module, arguments: tuple[fx.Node, ...]
) -> None:
    name = f"lrp_{node.name}"
    network.add_submodule(name, module)
    with network.graph.inserting_after(node):
        call = network.graph.call_module(name, arguments)
    node.replace_all_uses_with(call)
    network.graph.erase_node(node)


def _called(node: fx.Node) -> str:
    """The name of the function or tensor method that `node` calls."""
    return getattr(node.target, "__name__", str(node.target))


def _signals(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values, not only whose shapes and types, depend on the picture."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        reads = any(source in found for source in node.all_input_nodes)
        converts = _called(node) == "to" and node.args[0] not in found  # a constant, to the signal's type
        if node.op == "placeholder" or (reads and _called(node) not in _SIZES and not converts):
            found.add(node)
    return found


def _is_sum(node: fx.Node, signals: set[fx.Node]) -> bool:
    return _called(node) in _SUMS and sum(each in signals for each in node.args) == 2


def _problem(network: fx.GraphModule, node: fx.Node, signals: set[fx.Node]) -> str | None:
    """What stands in the way at `node`, in a few words."""
    if node.op == "call_module":
        module = network.get_submodule(node.target)
        known = (*_LINEAR, *_AVERAGES, *_ACTIVATIONS, *_PASSING)
        parts = module if type(module) is nn.Sequential else [module]
        return next((type(part).__name__ for part in parts if not isinstance(part, known)), None)
    if _is_sum(node, signals):
        fine = all(_is_sum(user, signals) or _has_relu(network, user) for user in node.users)
        return (
            None
            if fine
            else "a residual sum without a ReLU behind it (shares of a sum near zero are boundless)"
        )
    scaled = _called(node) == "mul" and sum(each in signals for each in node.all_input_nodes) == 1
    return None if scaled or _called(node) in _MOVING | _SUMS else _called(node)


def _has_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and any(
        isinstance(part, nn.ReLU) for part in network.get_submodule(node.target).modules()
    )
