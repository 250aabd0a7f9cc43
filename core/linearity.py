"""ReLU neurons that are always active are linear, and what is linear can be folded into the next layer.

A chain is a run of linear layers with ReLU in between. Where a neuron of a hidden layer is active, ReLU
is the identity and the next layer reads an affine function of what the neuron reads: the product of the
two weights becomes a shortcut past the layer, and the neuron is gone. The algebra is in float64.

Source: Dobler and Lemmerich, "Linearity-based Neural Network Compression", 2025, arXiv:2506.21146.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

from core.bundles import Split
from core.cutting import replace_layer
from core.errors import CheckpointError, ParameterError, UnsupportedModelError
from core.layers import apply_mask, private_copy
from core.run import Run
from core.tracing import trace

BATCH = 250  # pictures in one forward pass
RULES = ("best", "any", "share")
_EVERYTHING = torch.ones((), dtype=torch.bool)  # expands to a mask that keeps all


class Size(NamedTuple):
    """How large one layer of a chain is."""

    own: int  # inputs from the layer before
    carried: int  # inputs of the shortcut past the layer before; 0 where there is none
    outputs: int
    biased: bool  # is a bias stored?

    @property
    def inputs(self) -> int:
        return self.own + self.carried

    @property
    def shortcut(self) -> int:
        """Numbers stored in the shortcut."""
        return self.carried * self.outputs

    def merge(self, following: "Size", linear: int, dead: int) -> "list[Size]":
        """The two layers without so many neurons between them; see the function `merge`."""
        stay = self.outputs - linear - dead
        biased = following.biased or (self.biased and linear > 0)
        if not stay:
            return [Size(self.own, self.carried, following.outputs, biased)]
        carried = self.inputs if linear else following.carried
        return [self._replace(outputs=stay), Size(stay, carried, following.outputs, biased)]


def stored(sizes: Sequence[Size]) -> int:
    """Numbers in weights, shortcuts and biases."""
    return sum((size.inputs + size.biased) * size.outputs for size in sizes)


@dataclass(frozen=True, eq=False)
class Affine:
    """One layer of a chain: x -> weight x + bias. In front of every layer but the first there is a ReLU.

    x are the outputs of that ReLU, `own` in number (in front of the first layer: the chain's inputs),
    and behind them, where a shortcut leads past the layer before, all that that layer reads.
    """

    weight: Tensor  # (Q, P) float64; columns from `own` on are the shortcut
    bias: Tensor  # (Q,)
    own: int
    biased: bool = True  # is a bias stored?
    keep_weight: Tensor = _EVERYTHING  # False where an earlier step holds a number at zero
    keep_bias: Tensor = _EVERYTHING

    @property
    def size(self) -> Size:
        outputs, inputs = self.weight.shape
        return Size(self.own, inputs - self.own, outputs, self.biased)

    def normed(self, norm: nn.BatchNorm1d) -> "Affine":
        """With the batch norm behind it folded in."""
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        bias = (self.bias - norm.running_mean.double()) * scale
        bias = bias if norm.bias is None else bias + norm.bias.double()
        return replace(
            self, weight=self.weight * scale[:, None], bias=bias, biased=True, keep_bias=_EVERYTHING
        )

    def only(self, neurons: Tensor) -> "Affine":
        """With the outputs at `neurons` alone."""
        keep_weight = self.keep_weight.expand_as(self.weight)[neurons]
        keep_bias = self.keep_bias.expand_as(self.bias)[neurons]
        weight, bias = self.weight[neurons], self.bias[neurons]
        return replace(self, weight=weight, bias=bias, keep_weight=keep_weight, keep_bias=keep_bias)


def merge(first: Affine, second: Affine, linear: Tensor, dead: Tensor) -> list[Affine]:
    """Two layers of a chain without the neurons between them that are `linear` or `dead`, (m,) bool.

    A linear neuron gives way to what it reads, a dead one to zero. If none is left, the layers are one.
    """
    gone, stay = linear.nonzero()[:, 0], (~(linear | dead)).nonzero()[:, 0]
    columns = second.size[:2]
    own, shortcut = second.weight.split(columns, 1)
    keep, keep_shortcut = second.keep_weight.expand_as(second.weight).split(columns, 1)
    bias = second.bias + own[:, gone] @ first.bias[gone]
    if len(gone) or not len(stay):
        product = own[:, gone] @ first.weight[gone]
        shortcut = product + shortcut if second.size.carried else product
        keep_shortcut = torch.ones_like(shortcut, dtype=torch.bool)
    merged = Affine(
        weight=torch.cat([own[:, stay], shortcut], 1),
        bias=bias,
        own=len(stay) or first.own,
        biased=second.biased or (first.biased and len(gone) > 0),
        keep_weight=torch.cat([keep[:, stay], keep_shortcut], 1),
        keep_bias=second.keep_bias | (bias != 0),
    )
    return [first.only(stay), merged] if len(stay) else [merged]


@dataclass(frozen=True)
class Rule:
    """When a layer's linear neurons are merged: where that stores fewer numbers ("best"), where there is
    one ("any"), or where they are more than `share` of the layer ("share")."""

    name: str = "best"  # one of RULES
    share: float = 0.5

    def merges(self, linear: int, width: int, saved: int) -> bool:
        wanted = {"best": saved > 0, "any": True, "share": linear > self.share * width}
        return linear > 0 and wanted[self.name]


class Decision(NamedTuple):
    """What becomes of one hidden layer."""

    linear: int  # neurons
    dead: int  # neurons that go because they are never active
    inputs: int  # all that the layer reads, with what is carried past earlier layers
    outputs: int  # width of the layer behind it
    merged: bool

    @property
    def break_even(self) -> float:
        """A new shortcut saves numbers if more neurons than this are merged."""
        return self.inputs * self.outputs / (self.inputs + self.outputs + 1)


def decide(
    sizes: Sequence[Size], linear: Sequence[int], dead: Sequence[int], rule: Rule
) -> tuple[list[Size], list[Decision]]:
    """What becomes of a chain with so many `linear` and `dead` neurons in its hidden layers, front to back.

    Dead neurons go in any case, linear ones where `rule` says so. What is carried past one layer is an
    input of the next.
    """
    done, decisions = [sizes[0]], []
    for second, straight, silent in zip(sizes[1:], linear, dead, strict=True):
        first = done.pop()
        merged, unmerged = first.merge(second, straight, silent), first.merge(second, 0, silent)
        goes = rule.merges(straight, first.outputs, stored(unmerged) - stored(merged))
        decisions.append(Decision(straight, silent, first.inputs, second.outputs, goes))
        done += merged if goes else unmerged
    return done, decisions


def merge_chain(
    layers: Sequence[Affine], linear: Sequence[Tensor], dead: Sequence[Tensor], decisions: Sequence[Decision]
) -> list[Affine]:
    """The chain as decided; `linear` and `dead` are (m,) bool for every hidden layer."""
    done = [layers[0]]
    for second, straight, silent, decision in zip(layers[1:], linear, dead, decisions, strict=True):
        done += merge(done.pop(), second, straight & decision.merged, silent)
    return done


def preactivations(layers: Sequence[Affine], x: Tensor) -> list[Tensor]:
    """(..., Q) of every layer for inputs `x` (..., P) in float64; the last ones are the chain's outputs."""
    values = [x @ layers[0].weight.T + layers[0].bias]
    for layer in layers[1:]:
        hidden = values[-1].relu()
        x = torch.cat([hidden, x], -1) if layer.size.carried else hidden
        values.append(x @ layer.weight.T + layer.bias)
    return values


def always_active(layers: Sequence[Affine], low: Tensor, high: Tensor) -> list[Tensor]:
    """Per hidden layer, (m,) bool: neurons proved active for all inputs between `low` and `high` (P,).

    Interval bounds, layer by layer: a neuron that they miss may still be active everywhere.
    """
    proved = []
    for layer, following in pairwise(layers):
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        least, most = up @ low + down @ high + layer.bias, up @ high + down @ low + layer.bias
        proved.append(least > 0)
        past = (low, high) if following.size.carried else (low[:0], high[:0])
        low, high = torch.cat([least.relu(), past[0]]), torch.cat([most.relu(), past[1]])
    return proved


# --------------------------------------------------------------------------- chains inside a network


class MergedChain(nn.Module):
    """Linear layers with ReLU in between; shortcuts lead all that a layer reads past it to the next one.

    `widths` are the numbers of inputs and of every layer's outputs; `shortcuts` and `biases` say which
    layers have them. Layer k reads value k, the inputs or what the ReLU in front of it gives; a shortcut
    is a linear layer for every earlier value that it reads, so that removing neurons finds its way.
    """

    def __init__(self, widths: Sequence[int], shortcuts: Sequence[bool], biases: Sequence[bool]) -> None:
        super().__init__()
        sizes = zip(pairwise(widths), biases, strict=True)
        self.layers = nn.ModuleList(nn.Linear(*size, bias=biased) for size, biased in sizes)
        self.relus = nn.ModuleList(nn.ReLU() for _ in self.layers[1:])
        self.past = nn.ModuleDict()  # "j-k": what layer k reads of value j
        self.shortcuts = tuple(shortcuts)
        for index, outputs in enumerate(widths[1:]):
            for source in self.sources(index):
                self.past[f"{source}-{index}"] = nn.Linear(widths[source], outputs, bias=False)

    def sources(self, index: int) -> list[int]:
        """The values that the shortcut of layer `index` reads: all that the layer before reads."""
        return [index - 1, *self.sources(index - 1)] if self.shortcuts[index] else []

    @classmethod
    def of(cls, layers: Sequence[Affine]) -> "MergedChain":
        """The module that computes `layers`, in float64; what was held at zero still is."""
        widths = [layers[0].own, *(len(layer.weight) for layer in layers)]
        made = cls(widths, [layer.size.carried > 0 for layer in layers], [layer.biased for layer in layers])
        made = made.double()
        for index, layer in enumerate(layers):
            parts = made.parts(index)
            columns = [part.in_features for part in parts]
            keep = layer.keep_weight.expand_as(layer.weight).split(columns, 1)
            for part, weight, kept in zip(parts, layer.weight.split(columns, 1), keep, strict=True):
                _fill(part, "weight", weight, kept)
            if layer.biased:
                _fill(parts[0], "bias", layer.bias, layer.keep_bias.expand_as(layer.bias))
        return made

    def parts(self, index: int) -> list[nn.Linear]:
        """Layer `index` and its shortcut, in the order of an `Affine`'s columns."""
        return [self.layers[index], *(self.past[f"{source}-{index}"] for source in self.sources(index))]

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for index, layer in enumerate(self.layers):
            past = [self.past[f"{source}-{index}"](values[source]) for source in self.sources(index)]
            out = sum(past, start=layer(values[index]))
            if index < len(self.relus):
                values.append(self.relus[index](out))
        return out

    @property
    def plain(self) -> bool:
        """Is it made of linear layers? Later steps may put others in their place."""
        return all(type(layer) is nn.Linear for layer in (*self.layers, *self.past.values()))

    @property
    def widths(self) -> tuple[int, ...]:
        if not self.plain:
            raise CheckpointError(
                "checkpoint: the layers of a merged chain must be linear, got others in their place"
            )
        return (self.layers[0].in_features, *(layer.out_features for layer in self.layers))

    @property
    def biases(self) -> tuple[bool, ...]:
        return tuple(layer.bias is not None for layer in self.layers)


def _fill(layer: nn.Linear, tensor: str, value: Tensor, keep: Tensor) -> None:
    getattr(layer, tensor).data.copy_(value)
    if not keep.all():
        apply_mask(layer, keep, tensor)


@dataclass(frozen=True, eq=False)
class Chain:
    """Where in a network a chain lies, and its layers."""

    name: str  # of its first module, whose place a merged chain takes
    others: tuple[str, ...]  # its other modules, which then do nothing
    layers: tuple[Affine, ...]
    hidden: tuple[str, ...]  # the linear layers in front of its ReLUs
    parameters: int  # stored, batch norms included

    @property
    def sizes(self) -> list[Size]:
        return [layer.size for layer in self.layers]

    def put(self, model: nn.Module, layers: Sequence[Affine]) -> None:
        """Let `model` compute `layers` in the chain's place."""
        value = next(model.get_submodule(self.name).parameters())
        replace_layer(model, self.name, MergedChain.of(layers).to(value))
        for name in self.others:
            replace_layer(model, name, nn.Identity())


def require_chains(who: str, model: nn.Module) -> list[Chain]:
    """The chains of `model` in the order of execution: two or more linear layers in a row, or a merged chain.

    Between two layers there may be one batch norm, a ReLU that is a module of its own and called once,
    and dropout. Batch norms are folded in.

    Raises:
        UnsupportedModelError: there is none, or the network's code cannot be followed.
    """
    network = private_copy(model)
    try:
        graph = trace(network, (MergedChain,)).graph
    except Exception as error:  # whatever a network's code makes of symbols in place of tensors
        raise UnsupportedModelError(
            f"{who}: the model must have code that can be followed, got {type(error).__name__}"
        ) from error
    chains = _Search(graph, network, model).chains()
    if not chains:
        raise UnsupportedModelError(
            f"{who}: the model must have two linear layers in a row, with a ReLU module and at most batch "
            "norm and dropout between them, got none"
        )
    return chains


class _Search:
    """The chains in a graph of `network`, the plain copy of `model`."""

    def __init__(self, graph: fx.Graph, network: nn.Module, model: nn.Module) -> None:
        self._graph, self._network, self._model = graph, network, model
        self._calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def chains(self) -> list[Chain]:
        found: list[Chain] = []
        for node in self._graph.nodes:
            taken = {name for chain in found for name in (chain.name, *chain.others)}
            if node.target not in taken and (layers := self._layers(node)):
                found += self._follow(node, layers)
        return found

    def _follow(self, node: fx.Node, layers: dict[str, Affine]) -> list[Chain]:
        """The chain that begins at `node` with `layers`, if it is one."""
        modules, labels, affine = [node.target], list(layers), list(layers.values())
        passed: list[nn.Module] = []  # behind the last layer; they belong to the chain if another one follows
        names: list[str] = []  # theirs
        while len(node.users) == 1:
            (node,) = node.users
            module, following = self._module(node), self._layers(node)
            norms, active = (any(isinstance(m, kind) for m in passed) for kind in (nn.BatchNorm1d, nn.ReLU))
            if active and following:
                for norm in (m for m in passed if isinstance(m, nn.BatchNorm1d)):
                    affine[-1] = affine[-1].normed(norm)
                affine += following.values()
                labels += following
                modules += [*names, node.target]
                passed, names = [], []
                continue
            plain = type(module) in (nn.ReLU, nn.Identity) or isinstance(module, _DropoutNd)
            if not plain and (norms or active or not _folds(module, affine[-1])):
                break
            passed.append(module)
            names.append(node.target)
        if len(affine) < 2 and not isinstance(self._network.get_submodule(modules[0]), MergedChain):
            return []
        stored = sum(p.numel() for name in modules for p in self._network.get_submodule(name).parameters())
        return [Chain(modules[0], tuple(modules[1:]), tuple(affine), tuple(labels[:-1]), stored)]

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that `node` calls, if it is called once."""
        once = node.op == "call_module" and self._calls[node.target] == 1
        return self._network.get_submodule(node.target) if once else None

    def _layers(self, node: fx.Node) -> dict[str, Affine]:
        """Names and layers, if `node` calls a linear layer or a merged chain."""
        module = self._module(node)
        if type(module) is nn.Linear:
            return {node.target: self._affine(node.target, module)}
        if not isinstance(module, MergedChain) or not module.plain:
            return {}
        found = {}
        for index in range(len(module.layers)):
            name = f"{node.target}.layers.{index}"
            found[name] = self._affine(name, module.layers[index])
            for source in module.sources(index):
                past = f"{source}-{index}"
                found[name] = _beside(
                    found[name], self._affine(f"{node.target}.past.{past}", module.past[past])
                )
        return found

    def _affine(self, name: str, layer: nn.Linear) -> Affine:
        weight, biased = layer.weight.double(), layer.bias is not None
        return Affine(
            weight=weight,
            bias=layer.bias.double() if biased else torch.zeros(len(weight), dtype=torch.float64),
            own=weight.shape[1],
            biased=biased,
            keep_weight=self._kept(name, "weight"),
            keep_bias=self._kept(name, "bias"),
        )

    def _kept(self, name: str, tensor: str) -> Tensor:
        """False where a mask holds a number of layer `name` at zero."""
        layer = self._model.get_submodule(name)
        masked = parametrize.is_parametrized(layer, tensor)
        return (getattr(layer, tensor) != 0).cpu() if masked else _EVERYTHING


def _beside(layer: Affine, shortcut: Affine) -> Affine:
    """`layer` with the columns of `shortcut` behind those that it has."""
    keep = [part.keep_weight.expand_as(part.weight) for part in (layer, shortcut)]
    return replace(
        layer, weight=torch.cat([layer.weight, shortcut.weight], 1), keep_weight=torch.cat(keep, 1)
    )


def _folds(module: nn.Module | None, layer: Affine) -> bool:
    """Is it a batch norm that in eval mode is one scale and shift per output of `layer`?"""
    fixed = isinstance(module, nn.BatchNorm1d) and module.running_mean is not None
    return fixed and module.num_features == len(layer.weight)


# -------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True, eq=False)
class Activity:
    """What pictures do in a chain."""

    rates: list[Tensor]  # per hidden layer, (m,) float64: share of the pictures on which a neuron is active
    low: Tensor  # (P,) float64, the smallest input seen
    high: Tensor  # (P,) and the largest


def chain_inputs(
    model: nn.Module, chains: Sequence[Chain], split: Split, run: Run
) -> Iterator[Mapping[str, Tensor]]:
    """Chain's name -> what enters it, (N, ..., P) float64, for one batch of `split` after the other."""
    network = private_copy(model, run.device)
    entering: dict[str, Tensor] = {}

    def enter(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            entering[name] = inputs[0].cpu().double()

        return hook

    for chain in chains:
        network.get_submodule(chain.name).register_forward_pre_hook(enter(chain.name))
    for start in run.track(range(0, len(split), BATCH), "Watching neurons"):
        with torch.no_grad():
            network(split.normalise(split.pixels[start : start + BATCH]).to(run.device))
        yield dict(entering)


def observe(who: str, model: nn.Module, chains: Sequence[Chain], split: Split, run: Run) -> list[Activity]:
    """The activity of every chain of `model` on `split`; at several positions, these count like pictures.

    Raises:
        ParameterError: there are no pictures.
        UnsupportedModelError: a chain's inputs are not finite.
    """
    if not len(split):
        raise ParameterError(f"{who}: there must be pictures to watch the neurons on, got none")
    active = [[torch.zeros(len(layer.bias)).double() for layer in chain.layers[:-1]] for chain in chains]
    seen = [0] * len(chains)
    lows, highs = ([torch.tensor(end, dtype=torch.float64)] * len(chains) for end in (torch.inf, -torch.inf))
    for entering in chain_inputs(model, chains, split, run):
        for index, chain in enumerate(chains):
            x = entering[chain.name].flatten(0, -2)
            if not x.isfinite().all():
                raise UnsupportedModelError(
                    f"{who}: what enters layer {chain.name} must be finite, got NaN or infinity"
                )
            for count, values in zip(active[index], preactivations(chain.layers, x), strict=False):
                count += (values > 0).sum(0)
            seen[index] += len(x)
            lows[index], highs[index] = lows[index].minimum(x.amin(0)), highs[index].maximum(x.amax(0))
    return [
        Activity([count / n for count in counts], low, high)
        for counts, n, low, high in zip(active, seen, lows, highs, strict=True)
    ]
