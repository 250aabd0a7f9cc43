"""What compression did to a network's neurons, and what an old proof's cores become on the new one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from core.proving.network import ReluNetwork
from core.proving.proof import Core

KINDS = ("unchanged", "other numbers", "connections removed", "neuron removed")
UNCHANGED, NUMBERS, CONNECTIONS, REMOVED = range(len(KINDS))

Places = tuple[Tensor, ...]  # per hidden layer (d_k,) of the old network: places in the new, or -1


@dataclass(frozen=True, eq=False)
class Changes:
    """One class per hidden neuron of the old network, as an index into KINDS, and where it is now."""

    classes: tuple[Tensor, ...]  # per hidden layer (d_k,)
    places: Places

    @cached_property
    def counts(self) -> list[dict[str, int]]:
        """Per hidden layer: kind -> neurons."""
        found = [Counter(layer.tolist()) for layer in self.classes]
        return [{kind: layer[index] for index, kind in enumerate(KINDS)} for layer in found]


def classify(before: ReluNetwork, after: ReluNetwork) -> Changes:
    """What became of every hidden neuron of `before`.

    A neuron is removed if it is gone, if nothing that it reads has a weight left, or if nothing reads
    it; connections are removed where a weight has become zero; else its row is the same, or has other
    numbers. Layers that `after` has more or less of leave nothing to compare: all neurons are removed.
    """
    places = match(before, after)
    if len(before.widths) != len(after.widths):
        return Changes(tuple(torch.full_like(place, REMOVED) for place in places), places)
    classes = []
    read = torch.arange(before.inputs)  # places of what the layer reads
    for k, place in enumerate(places):
        kept, stays = place >= 0, read >= 0
        row, bias = before.weights[k], before.biases[k]
        new = torch.zeros_like(row)
        new[kept.nonzero(), stays.nonzero().T] = after.weights[k][place[kept]][:, read[stays]]
        shift = torch.zeros_like(bias).masked_scatter(kept, after.biases[k][place[kept]])
        lost = ((row != 0) & (new == 0)).any(1)
        same = (row == new).all(1) & (bias == shift)
        gone = ~kept | (row.any(1) & ~new.any(1))
        gone[kept] |= before.weights[k + 1].any(0)[kept] & ~after.weights[k + 1].any(0)[place[kept]]
        kind = torch.full((len(row),), NUMBERS)
        kind[lost], kind[same], kind[gone] = CONNECTIONS, UNCHANGED, REMOVED
        classes.append(kind)
        read = place
    return Changes(tuple(classes), places)


def match(before: ReluNetwork, after: ReluNetwork) -> Places:
    """Where the neurons of `before` are in `after`.

    Layers of one width match in place. A narrower one has lost some: those that stay keep their order,
    and their rows (and biases) have the largest sum of inner products with the old ones. A wrong guess costs
    time and no truth, for nothing is taken over unchecked. Other shapes do not match at all.
    """
    if len(before.widths) != len(after.widths) or before.inputs != after.inputs:
        return tuple(torch.full((width,), -1) for width in before.widths)
    places: list[Tensor] = []
    read = torch.arange(before.inputs)
    for k, (old, new) in enumerate(zip(before.widths, after.widths, strict=True)):
        if old == new:
            places.append(torch.arange(old))
        elif old < new:
            places.append(torch.full((old,), -1))
        else:
            stays = read >= 0
            ours = torch.cat([before.weights[k][:, stays], before.biases[k][:, None]], 1)
            theirs = torch.cat([after.weights[k][:, read[stays]], after.biases[k][:, None]], 1)
            places.append(_in_order(torch.cdist(ours, theirs).square()))
        read = places[-1]
    return tuple(places)


def _in_order(distances: Tensor) -> Tensor:
    """(O, N) with O > N -> (O,): the cheapest way to give each of N a partner among O, in order; -1: none."""
    old, new = distances.shape
    best = torch.full((old + 1, new + 1), torch.inf, dtype=distances.dtype)
    best[:, 0] = 0.0
    for i in range(1, old + 1):
        best[i, 1:] = torch.minimum(best[i - 1, 1:], best[i - 1, :-1] + distances[i - 1])
    places, j = torch.full((old,), -1), new
    for i in range(old, 0, -1):
        if j and best[i, j] < best[i - 1, j]:
            j -= 1
            places[i - 1] = j
    return places


def translate(cores: Sequence[Core], places: Places, fixed: Sequence[Tensor]) -> list[Core | None]:
    """The cores on the new network; None: trivial, a literal cannot be there.

    `fixed`, per hidden layer (d_k,) of the new network, is 1 or -1 where the new bounds leave one phase only,
    0 elsewhere. A literal in its neuron's only phase goes without saying; a neuron that is gone gives
    0, as an inactive one does.
    """
    where = [place.tolist() for place in places]
    only = [layer.tolist() for layer in fixed]

    def moved(core: Core) -> Core | None:
        found = []
        for literal in core:
            place = where[literal.layer][literal.neuron]
            phase = only[literal.layer][place] if place >= 0 else -1
            if phase == -literal.phase:
                return None
            if not phase:
                found.append(literal._replace(neuron=place))
        return tuple(found)

    return [moved(core) for core in cores]
