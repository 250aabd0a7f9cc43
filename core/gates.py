"""Gates on units and residual blocks: a probability each, a price, and what becomes of them in training.

A gate is a Bernoulli variable that multiplies what it stands at; its probability is trained along with
the weights and pays for what it lets pass. Mean loss plus price is linear in every single probability,
so that the minimum lies at 0 or 1. What reaches 0 is cut out of the network while training goes on.

Source: Guenter and Sideris, "Complexity-Aware Training of Deep Neural Networks for Optimal Structure
Discovery", 2024, arXiv:2411.09127.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.blocks import Block, carriers, shortcut_blocks
from core.bundles import Split
from core.cost import output_positions
from core.coupling import groups
from core.cutting import cut, replace_layer, width_of
from core.errors import UnsupportedModelError
from core.groups import Group
from core.layers import ChannelShortcut
from core.training import Cut

Place = tuple[str, Literal["out", "in"]]  # a side of a layer

CLOSED = 0.02  # a gate that falls this low is closed for good
FALL = 0.3  # share of the training in which a gate of the highest price and of no use closes
LEAP = 3  # longest step of a gate, in those of one that has the highest price and is of no use
BATCH = 250  # pictures in one forward pass
FEWEST = 40  # steps that a training is taken to have at least: in fewer, noise would close gates
NONE = -1  # the gate of what has none: always open, the last of the values with `_padded`


# ----------------------------------------------------------------------------------- where gates are


@dataclass(frozen=True, eq=False)
class Sites:
    """Where gates stand in a network: on U units first, then on B blocks.

    A unit's gate is at the input of the one layer that reads its channels, behind batch norm and
    ReLU whatever the network; a block's gate leads from its shortcut's output to its own.
    """

    groups: Mapping[str, slice]  # group of channels -> its units among the gates
    blocks: tuple[Block, ...]
    homes: Mapping[Place, Tensor]  # side of a layer -> (channels,) the gate of every channel, or NONE
    readers: Mapping[str, str]  # group -> the layer that reads it
    inside: Mapping[str, int]  # group -> the gate of the block in whose branch it is
    carrying: frozenset[str]  # groups inside a block without which its branch is a constant

    @property
    def units(self) -> int:
        return sum(part.stop - part.start for part in self.groups.values())

    @property
    def count(self) -> int:
        return self.units + len(self.blocks)

    def gate(self, block: Block) -> int:
        return self.units + self.blocks.index(block)


def find_sites(model: nn.Module, example: Tensor) -> Sites:
    """The gates that `model` can have; `example` is (1, C, H, W).

    A group of channels has gates where one layer writes it and one other reads it, the first layer
    aside: so the stem, the logits and what flows along shortcuts have none. Where channels cannot be
    followed, only blocks have gates.

    Raises:
        UnsupportedModelError: there is neither such a group nor a block that can go.
    """
    blocks = tuple(shortcut_blocks(model, example))
    try:
        found = _between_two_layers(model, groups(model, example))
    except UnsupportedModelError:
        found = {}
    if not found and not blocks:
        raise UnsupportedModelError(
            "gates: the model must have a residual block, or channels that one layer behind the first writes "
            "and one other reads, got neither"
        )
    slices, homes, start = {}, {}, 0
    for group in found:
        slices[group.name] = slice(start, start + group.width)
        for slot in group.slots:
            layer = model.get_submodule(slot.layer)
            home = homes.setdefault((slot.layer, slot.side), _nobody(layer, slot.side))
            home[slot.channels] = start + slot.units
        start += group.width
    readers = {group.name: reader for group, reader in found.items()}
    carrying = carriers(model, example, blocks, readers.values())
    inside = {
        name: start + index
        for name, reader in readers.items()
        for index, block in enumerate(blocks)
        if block.holds(reader)
    }
    essential = frozenset(name for name, reader in readers.items() if reader in carrying)
    return Sites(slices, blocks, homes, readers, inside, essential)


def _between_two_layers(model: nn.Module, found: tuple[Group, ...]) -> dict[Group, str]:
    """Group -> the layer that reads it, of groups that one layer writes and one other reads."""
    behind = {slot.layer for group in found for slot in group.slots if slot.side == "in"}
    chosen = {}
    for group in found:
        members = [model.get_submodule(slot.layer) for slot in group.slots]
        writers = {name for name in group.layers if not _depthwise(model.get_submodule(name))}
        readers = {slot.layer for slot in group.slots if slot.side == "in"} - set(group.layers)
        alone = len(writers) == len(readers) == 1 and writers <= behind
        if alone and not any(isinstance(m, ChannelShortcut) or _in_parts(m) for m in members):
            chosen[group] = readers.pop()
    return chosen


def _depthwise(layer: nn.Module) -> bool:
    return 1 < getattr(layer, "groups", 1) == width_of(layer)


def _in_parts(layer: nn.Module) -> bool:
    """A convolution in groups of several channels each, which become single ones on the way."""
    return 1 < getattr(layer, "groups", 1) < width_of(layer)


def _nobody(layer: nn.Module, side: str) -> Tensor:
    """NONE for every channel on that side of `layer`."""
    read = getattr(layer, "in_channels", None) or getattr(layer, "in_features", None)
    return torch.full((width_of(layer) if side == "out" else read,), NONE)


# --------------------------------------------------------------------------------- what they cost


class Costs:
    """Expected parameters and multiply-adds of a network whose gates are open with given probabilities."""

    def __init__(self, model: nn.Module, example: Tensor, sites: Sites) -> None:
        positions = output_positions(model, example)
        rows = {place: row for row, place in enumerate(sites.homes, 1)}  # row 0: channels without gates
        self._shares = torch.zeros(len(rows) + 1, sites.count + 1, dtype=torch.float64)
        self._shares[0, NONE] = 1.0
        for place, home in sites.homes.items():
            share = torch.full((len(home),), 1 / len(home), dtype=torch.float64)
            self._shares[rows[place]].index_add_(0, home % (sites.count + 1), share)
        terms = []  # numbers stored, multiply-adds, row of the outputs, row of the inputs, gate of the block
        for name, layer in model.named_modules():
            out, block = rows.get((name, "out"), 0), _block_of(name, sites)
            for tensor, value in layer.named_parameters(recurse=False):
                weight = tensor == "weight" and name in positions
                reads = rows.get((name, "in"), 0) if weight else 0
                macs = value.numel() * positions[name] if weight else 0
                terms.append((value.numel(), macs, out, reads, block))
        stored, macs, out, reads, block = zip(*terms, strict=True)
        self._amounts = torch.tensor([macs, stored], dtype=torch.float64)  # (2, terms)
        self._out, self._reads, self._block = (torch.tensor(index) for index in (out, reads, block))
        ones = torch.ones(sites.count, dtype=torch.float64)
        self.rest, self.full = self.expected(0 * ones), self.expected(ones)
        self.prunable = self.full - self.rest  # (2,) what complexity is measured in

    def expected(self, values: Tensor) -> Tensor:
        """(2,) multiply-adds and parameters of the whole network, gates (G,) independent."""
        padded = _padded(values.double())
        kept = self._shares @ padded
        return self._amounts @ (kept[self._out] * kept[self._reads] * padded[self._block])

    def complexity(self, values: Tensor, compute_share: float) -> Tensor:
        """Multiply-adds and parameters of what has gates, weighted: 1 where all are open, 0 where none is."""
        shares = (self.expected(values) - self.rest) / self.prunable
        return compute_share * shares[0] + (1 - compute_share) * shares[1]

    def prices(self, values: Tensor, compute_share: float) -> Tensor:
        """(G,) what opening a gate entirely would add to the complexity, the others as they are."""
        values = values.detach().double().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.complexity(values, compute_share), values)[0]


def _block_of(layer: str, sites: Sites) -> int:
    """The gate of the block in whose branch `layer` is, or NONE."""
    return next((sites.gate(block) for block in sites.blocks if block.holds(layer)), NONE)


def _padded(values: Tensor) -> Tensor:
    """`values` (G,) with a 1 behind them, which is where NONE points."""
    return torch.cat([values, values.new_ones(1)])


# ------------------------------------------------------------------------------------- what they do


@dataclass(frozen=True)
class Tariff:
    """What a gate pays, and how far it moves.

    `strength` (nu) is the price of the whole prunable part; `layer_share` (beta) of it is paid by
    blocks, the rest by units; `compute_share` (alpha) of it goes by multiply-adds, the rest by
    parameters. `updates` steps are to come, of the size `step`; 0: such that a gate that has the
    highest price, and no use, closes after FALL of them, none longer than LEAP of its.
    """

    strength: float
    layer_share: float
    compute_share: float
    initial: float
    updates: int
    step: float = 0.0

    @property
    def fall(self) -> float:
        """What a gate of the highest price and of no use loses in a step."""
        return self.initial / (FALL * max(self.updates, FEWEST))


class Gates:
    """The state of all gates of one network while it is trained; a gate that pays nothing is open.

    `values` (G,) are the probabilities. They hold their places when the network gets smaller.
    """

    def __init__(self, sites: Sites, costs: Costs, tariff: Tariff, device: str = "cpu") -> None:
        self.sites, self.costs, self.tariff = sites, costs, tariff
        self.homes = dict(sites.homes)  # as the sides of layers are now
        self._pays = torch.full(
            (sites.count,), tariff.strength * (1 - tariff.layer_share), dtype=torch.float64
        )
        self._pays[sites.units :] = tariff.strength * tariff.layer_share
        start = torch.where(self._pays > 0, tariff.initial, 1.0)
        self.values = start.float().to(device).requires_grad_()
        self._pace = self._paces(self.prices())
        self._cut: set[Block] = set()

    @property
    def open(self) -> Tensor:
        """(G,) bool: not closed for good."""
        return self.values.detach() > 0

    def prices(self) -> Tensor:
        """(G,) what every gate pays per unit of its probability, the others being as they are."""
        return self._pays * self.costs.prices(self.values.cpu(), self.tariff.compute_share)

    def _paces(self, prices: Tensor) -> Tensor:
        """(G,) sizes of a step; units and blocks each have their own, as blocks are far dearer."""
        pace = torch.zeros_like(prices)
        for family in (slice(0, self.sites.units), slice(self.sites.units, None)):
            highest = prices[family].max().item() if len(prices[family]) else 0.0
            if highest > 0:
                pace[family] = self.tariff.step or self.tariff.fall / highest
        return pace

    def norms(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """Scales and shifts of the batch norms of all that has gates."""
        for name, module in model.named_modules():
            gated = (name, "out") in self.homes or _block_of(name, self.sites) != NONE
            if gated and isinstance(module, _BatchNorm):
                yield from module.parameters(recurse=False)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` runs behind its gates: drawn for every picture in training mode, else the mean."""
        handles = [
            model.get_submodule(layer).register_forward_pre_hook(self._at_input(layer))
            for layer in self.sites.readers.values()
            if (layer, "in") in self.homes
        ]
        for block in self.sites.blocks:
            if block not in self._cut:
                handles += self._at_output(block, model.get_submodule(block.name))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _at_input(self, layer: str) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            (x,) = args
            gate = self._gate(self.homes[layer, "in"], len(x), module.training).to(x.dtype)
            after = 0 if isinstance(module, nn.Linear) else x.dim() - 2
            return (x * gate.view(len(gate), *[1] * (x.dim() - 2 - after), -1, *[1] * after),)

        return hook

    def _at_output(self, block: Block, module: nn.Module) -> list:
        gate, past = torch.tensor([self.sites.gate(block)]), {}

        def keep(shortcut: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            past["shortcut"] = output.relu() if block.rectified else output

        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            beside = past.pop("shortcut") if block.shortcut else args[0]
            gates = self._gate(gate, len(output), module.training).to(output.dtype)
            return beside + gates.view(-1, *[1] * (output.dim() - 1)) * (output - beside)

        handles = [module.register_forward_hook(hook)]
        if block.shortcut:
            handles.append(module.get_submodule(block.shortcut).register_forward_hook(keep))
        return handles

    def _gate(self, home: Tensor, pictures: int, training: bool) -> Tensor:
        """(N, C) open or not, as the gates in `home` (C,) say; (1, C) probabilities outside of training.

        The gradient of what is drawn goes to the probability as it is: the straight-through estimate.
        """
        own, channel = home.unique(return_inverse=True)
        odds = _padded(self.values)[own]
        if not training:
            return odds[channel][None]
        drawn = (torch.rand(pictures, len(own), device=odds.device) < odds).float()
        return (drawn + (odds - odds.detach()))[:, channel]

    def advance(self) -> None:
        """One projected step against benefit and price; gates at CLOSED or below are closed for good."""
        if self.values.grad is None:
            return
        downhill = self._pace * (self.values.grad.cpu() + self.prices())
        if not self.tariff.step:
            most = LEAP * self.tariff.fall
            downhill = downhill.clamp(-most, most)
        self._set(self.values.detach().cpu() - downhill)

    def round(self) -> None:
        """Open or close every gate, whichever is nearer."""
        self._set(self.values.detach().cpu().double(), rounded=True)

    def forget(self) -> None:
        """Drop what the last pass said."""
        self.values.grad = None

    def _set(self, wanted: Tensor, rounded: bool = False) -> None:
        """Take over `wanted` (G,), as far as the network stays one."""
        values = (wanted >= 0.5).double() if rounded else wanted.clamp(0, 1)
        values[(values <= CLOSED) | ~self.open.cpu()] = 0.0
        for group, part in self.sites.groups.items():
            if values[part].any():
                continue
            if group in self.sites.carrying:  # without a unit the branch is a constant
                values[self.sites.inside[group]] = 0.0
            elif self.open[part].any():  # the last unit of a chain stays
                last = part.start + int(wanted[part].where(self.open[part].cpu(), -torch.inf).argmax())
                values[last], self._pace[last] = 1.0, 0.0
        for group, block in self.sites.inside.items():
            if values[block] == 0:
                values[self.sites.groups[group]] = 0.0
        self.values.data = values.to(self.values)
        self.forget()

    def cut(self) -> Cut | None:
        """What takes away all that closed since the last call; None where nothing did."""
        closed = ~self.open.cpu()
        blocks = [b for b in self.sites.blocks if closed[self.sites.gate(b)] and b not in self._cut]
        self._cut.update(blocks)
        within = {place for place in self.homes if any(block.holds(place[0]) for block in blocks)}
        gone, left = {}, {}
        for place, home in self.homes.items():
            if place in within:
                continue
            leaves = _padded(closed)[home] & (home != NONE)
            left[place] = home[~leaves]
            if leaves.any():
                gone[place] = leaves.nonzero()[:, 0]
        self.homes = left

        def take(network: nn.Module) -> None:
            cut(network, gone)
            for block in blocks:
                replace_layer(network, block.name, block.bypass(network.get_submodule(block.name)))

        return take if gone or blocks else None

    def collapsed(self) -> bool:
        """Has everything gone that could?"""
        return bool(self._pays.any()) and not self.open.cpu()[self._pace > 0].any()


# -------------------------------------------------------------------------------- the network itself


@torch.no_grad()
def recalibrate(model: nn.Module, split: Split, device: str = "cpu") -> None:
    """Batch-norm statistics of `split`, in place: those of training are of networks with other gates."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms or len(split) < 2:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for index in torch.arange(len(split)).tensor_split(math.ceil(len(split) / BATCH)):
        model(split.normalise(split.pixels[index]).to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
