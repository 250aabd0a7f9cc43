"""ReLU neurons that are always active are linear, and what is linear can be folded into the next layer.

A chain is a run of linear layers with ReLU in between. Where a neuron of a hidden layer is active, ReLU
is the identity and the next layer reads an affine function of what the neuron reads: the product of the
two weights becomes a shortcut past the layer, and the neuron is gone. The algebra is in float64.

Source: Dobler and Lemmerich, "Linearity-based Neural Network Compression", 2025, arXiv:2506.21146.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True, eq=False)
class Affine:
    """One layer of a chain: a sum of products with earlier values, and a bias.

    Value 0 is the chain's input, value k + 1 what the ReLU behind layer k gives; the last layer has no
    ReLU. Layer k reads value k, and through shortcuts earlier ones.
    """

    weights: Mapping[int, Tensor]  # value -> (Q, its width) float64
    bias: Tensor  # (Q,)
    biased: bool = True  # is a bias stored?
    keep: Mapping[int, Tensor] = field(default_factory=dict)  # of weights that an earlier step masked
    keep_bias: Tensor | None = None

    def normed(self, norm: nn.BatchNorm1d) -> "Affine":
        """With the batch norm behind it folded in."""
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        bias = (self.bias - norm.running_mean.double()) * scale
        bias = bias if norm.bias is None else bias + norm.bias.double()
        weights = {value: weight * scale[:, None] for value, weight in self.weights.items()}
        return Affine(weights, bias, keep=self.keep)

    def only(self, neurons: Tensor) -> "Affine":
        """The neurons at these places alone."""
        weights, keep = (
            {value: entries[neurons] for value, entries in tensors.items()}
            for tensors in (self.weights, self.keep)
        )
        keep_bias = None if self.keep_bias is None else self.keep_bias[neurons]
        return Affine(weights, self.bias[neurons], self.biased, keep, keep_bias)

    def without(self, value: int, maker: "Affine", linear: Tensor, stay: Tensor) -> "Affine":
        """Of the neurons of `value`, which `maker` makes, it reads those at `stay`, and what those at
        `linear` read."""
        weights, keep, keep_bias = dict(self.weights), dict(self.keep), self.keep_bias
        read, kept = weights.pop(value), keep.pop(value, None)
        if len(stay):
            weights[value] = read[:, stay]
            if kept is not None:
                keep[value] = kept[:, stay]
        if len(linear) or not len(stay):
            for source, weight in maker.weights.items():
                product = read[:, linear] @ weight[linear]
                weights[source] = weights[source] + product if source in weights else product
                keep.pop(source, None)
        bias = self.bias + read[:, linear] @ maker.bias[linear]
        if keep_bias is not None:
            keep_bias = keep_bias | (bias != 0)
        biased = self.biased or (maker.biased and len(linear) > 0)
        return Affine(weights, bias, biased, keep, keep_bias)

    def renumbered(self, places: Mapping[int, int]) -> "Affine":
        """The same where value v is called places[v]."""
        weights = {places[value]: weight for value, weight in self.weights.items()}
        return replace(self, weights=weights, keep={places[value]: mask for value, mask in self.keep.items()})


@dataclass(frozen=True)
class Sizes:
    """How large a chain's layers are."""

    widths: tuple[int, ...]  # of every value
    reads: tuple[frozenset[int], ...]  # layer -> values; none where the layer is gone
    biased: tuple[bool, ...]  # layer -> is a bias stored?

    @classmethod
    def of(cls, layers: Sequence[Affine]) -> "Sizes":
        widths = (layers[0].weights[0].shape[1], *(len(layer.bias) for layer in layers))
        reads = tuple(frozenset(layer.weights) for layer in layers)
        return cls(widths, reads, tuple(layer.biased for layer in layers))

    @property
    def stored(self) -> int:
        """Numbers in weights, shortcuts and biases."""
        return self._weights() + sum(
            width for width, biased in zip(self.widths[1:], self.biased, strict=True) if biased
        )

    @property
    def shortcuts(self) -> int:
        """Numbers in shortcuts: in all that a layer reads besides the value before it."""
        return self._weights() - sum(
            self.widths[max(reads)] * self.widths[layer + 1]
            for layer, reads in enumerate(self.reads)
            if reads
        )

    def _weights(self) -> int:
        return sum(self.inputs(layer) * self.widths[layer + 1] for layer in range(len(self.reads)))

    def inputs(self, layer: int) -> int:
        """All numbers that `layer` reads."""
        return sum(self.widths[value] for value in self.reads[layer])

    def readers(self, value: int) -> list[int]:
        return [layer for layer, reads in enumerate(self.reads) if value in reads]

    def merge(self, layer: int, linear: int, dead: int) -> "Sizes":
        """Without so many neurons of hidden layer `layer`; see the function `merge`."""
        value, widths, reads, biased = layer + 1, list(self.widths), list(self.reads), list(self.biased)
        widths[value] -= linear + dead
        for reader in self.readers(value):
            if linear or not widths[value]:
                reads[reader] |= reads[layer]
            if not widths[value]:
                reads[reader] -= {value}
            biased[reader] |= biased[layer] and linear > 0
        if not widths[value]:
            reads[layer] = frozenset()
        return Sizes(tuple(widths), tuple(reads), tuple(biased))


def merge(layers: Mapping[int, Affine], layer: int, linear: Tensor, dead: Tensor) -> dict[int, Affine]:
    """The chain without those neurons of hidden layer `layer` that are `linear` or `dead`, (m,) bool.

    Who reads a linear neuron then reads what it reads, and who reads a dead one reads nothing. A layer
    without neurons is gone; the others keep their numbers.
    """
    gone, stay = linear.nonzero()[:, 0], (~(linear | dead)).nonzero()[:, 0]
    maker, value = layers[layer], layer + 1
    merged = {
        number: reader.without(value, maker, gone, stay) if value in reader.weights else reader
        for number, reader in layers.items()
    }
    if not len(stay):
        del merged[layer]
        return merged
    return merged | {layer: maker.only(stay)}


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
    break_even: float  # merging more linear neurons than this saves numbers
    merged: bool


def decide(
    sizes: Sizes, linear: Sequence[int], dead: Sequence[int], rule: Rule
) -> tuple[Sizes, list[Decision]]:
    """What becomes of a chain with so many `linear` and `dead` neurons in its hidden layers, front to back.

    Dead neurons go in any case, linear ones where `rule` says so. What a shortcut leads past one layer
    is an input of the next.
    """
    decisions = []
    for layer, (straight, silent) in enumerate(zip(linear, dead, strict=True)):
        merged, unmerged = sizes.merge(layer, straight, silent), sizes.merge(layer, 0, silent)
        saved = unmerged.stored - merged.stored
        goes = rule.merges(straight, sizes.widths[layer + 1], saved)
        decisions.append(Decision(straight, silent, _break_even(sizes, layer), goes))
        sizes = merged if goes else unmerged
    return sizes, decisions


def _break_even(sizes: Sizes, layer: int) -> float:
    """Numbers in the new shortcuts, over those that one neuron saves: in a fresh chain p q / (p + q + 1)."""
    readers = sizes.readers(layer + 1)
    new = sum(
        sizes.widths[value] * sizes.widths[reader + 1]
        for reader in readers
        for value in sizes.reads[layer] - sizes.reads[reader]
    )
    read_by = sum(sizes.widths[reader + 1] for reader in readers)
    return new / (sizes.inputs(layer) + read_by + sizes.biased[layer])


def merge_chain(
    layers: Sequence[Affine], linear: Sequence[Tensor], dead: Sequence[Tensor], decisions: Sequence[Decision]
) -> list[Affine]:
    """The chain as decided; `linear` and `dead` are (m,) bool for every hidden layer."""
    done = dict(enumerate(layers))
    for layer, (straight, silent, decision) in enumerate(zip(linear, dead, decisions, strict=True)):
        done = merge(done, layer, straight & decision.merged, silent)
    places = {0: 0} | {layer + 1: place for place, layer in enumerate(done, 1)}
    return [layer.renumbered(places) for layer in done.values()]


def preactivations(layers: Sequence[Affine], x: Tensor) -> list[Tensor]:
    """(..., Q) of every layer for inputs `x` (..., P) in float64; the last ones are the chain's outputs."""
    values, found = [x], []
    for layer in layers:
        found.append(sum((values[v] @ weight.T for v, weight in layer.weights.items()), start=layer.bias))
        values.append(found[-1].relu())
    return found


def always_active(layers: Sequence[Affine], low: Tensor, high: Tensor) -> list[Tensor]:
    """Per hidden layer, (m,) bool: neurons proved active for all inputs between `low` and `high` (P,).

    Interval bounds, layer by layer: a neuron that they miss may still be active everywhere.
    """
    lows, highs, proved = [low], [high], []
    for layer in layers[:-1]:
        least = most = layer.bias
        for value, weight in layer.weights.items():
            up, down = weight.clamp(min=0), weight.clamp(max=0)
            least = least + up @ lows[value] + down @ highs[value]
            most = most + up @ highs[value] + down @ lows[value]
        proved.append(least > 0)
        lows.append(least.relu())
        highs.append(most.relu())
    return proved


# --------------------------------------------------------------------------- chains inside a network


class MergedChain(nn.Module):
    """Linear layers with ReLU in between, and shortcuts, which are linear too, past some of them.

    `widths` are the numbers of inputs and of every layer's outputs, `biases` says which layers have one.
    The values and layers are numbered as in `Affine`; "0-2" in `shortcuts` lets layer 2 read value 0.
    """

    def __init__(self, widths: Sequence[int], shortcuts: Sequence[str], biases: Sequence[bool]) -> None:
        super().__init__()
        sizes = zip(pairwise(widths), biases, strict=True)
        self.layers = nn.ModuleList(nn.Linear(*size, bias=biased) for size, biased in sizes)
        self.relus = nn.ModuleList(nn.ReLU() for _ in self.layers[1:])
        self.past = nn.ModuleDict()
        for name in shortcuts:
            value, layer = _ends(name)
            if not 0 <= value < layer < len(self.layers):
                raise ValueError(f"shortcut {name} leads past no layer")
            self.past[name] = nn.Linear(widths[value], widths[layer + 1], bias=False)

    @classmethod
    def of(cls, layers: Sequence[Affine]) -> "MergedChain":
        """The module that computes `layers`, in float64; what was held at zero still is."""
        names = [
            f"{value}-{k}" for k, layer in enumerate(layers) for value in sorted(layer.weights) if value < k
        ]
        sizes = Sizes.of(layers)
        made = cls(sizes.widths, names, sizes.biased).double()
        for layer, affine in enumerate(layers):
            parts = made.parts(layer)
            for value, weight in affine.weights.items():
                _fill(parts[value], "weight", weight, affine.keep.get(value))
            if affine.biased:
                _fill(parts[layer], "bias", affine.bias, affine.keep_bias)
        return made

    def parts(self, layer: int) -> dict[int, nn.Module]:
        """Value -> what layer `layer` reads it through."""
        past = {_ends(name)[0]: module for name, module in self.past.items() if _ends(name)[1] == layer}
        return past | {layer: self.layers[layer]}

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for index in range(len(self.layers)):
            read = [part(values[value]) for value, part in self.parts(index).items()]
            out = sum(read[1:], start=read[0])
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
    def shortcuts(self) -> tuple[str, ...]:
        return tuple(self.past)

    @property
    def biases(self) -> tuple[bool, ...]:
        return tuple(layer.bias is not None for layer in self.layers)


def _ends(shortcut: str) -> tuple[int, int]:
    """The value that it reads, and the layer that it leads to."""
    value, layer = shortcut.split("-")
    return int(value), int(layer)


def _fill(layer: nn.Module, tensor: str, value: Tensor, keep: Tensor | None) -> None:
    getattr(layer, tensor).data.copy_(value)
    if keep is not None:
        apply_mask(layer, keep, tensor)


@dataclass(frozen=True, eq=False)
class Chain:
    """Where in a network a chain lies, and its layers."""

    name: str  # of its first module, whose place a merged chain takes
    others: tuple[str, ...]  # its other modules, which then do nothing
    layers: tuple[Affine, ...]
    hidden: tuple[str, ...]  # the linear layers in front of its ReLUs
    parameters: int  # stored, batch norms included

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
                places = {value: value + len(affine) for value in range(len(following))}
                affine += [layer.renumbered(places) for layer in following.values()]
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
            return {node.target: self._affine(0, {0: node.target})}
        if not isinstance(module, MergedChain) or not module.plain:
            return {}
        names = {part: name for name, part in self._network.named_modules()}
        return {
            names[layer]: self._affine(k, {value: names[part] for value, part in module.parts(k).items()})
            for k, layer in enumerate(module.layers)
        }

    def _affine(self, number: int, parts: Mapping[int, str]) -> Affine:
        """Layer `number` of a chain, which reads values through the linear layers of these names."""
        layers = {value: self._network.get_submodule(name) for value, name in parts.items()}
        own = layers[number]
        biased = own.bias is not None
        masks = {value: self._kept(name, "weight") for value, name in parts.items()}
        return Affine(
            weights={value: layer.weight.double() for value, layer in layers.items()},
            bias=own.bias.double() if biased else torch.zeros(own.out_features, dtype=torch.float64),
            biased=biased,
            keep={value: mask for value, mask in masks.items() if mask is not None},
            keep_bias=self._kept(parts[number], "bias"),
        )

    def _kept(self, name: str, tensor: str) -> Tensor | None:
        """False where a mask holds a number of layer `name` at zero; None without a mask."""
        layer = self._model.get_submodule(name)
        return (getattr(layer, tensor) != 0).cpu() if parametrize.is_parametrized(layer, tensor) else None


def _folds(module: nn.Module | None, layer: Affine) -> bool:
    """Is it a batch norm that in eval mode is one scale and shift per output of `layer`?"""
    fixed = isinstance(module, nn.BatchNorm1d) and module.running_mean is not None
    return fixed and module.num_features == len(layer.bias)


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
