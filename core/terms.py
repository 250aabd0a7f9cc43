"""What any position of the sliders leaves of a network, as a formula that a browser can evaluate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from core.groups import Group
from core.layers import prunable


@dataclass(frozen=True)
class Term:
    """`weights` and `macs`, of which the product of the kept fractions of `sliders` stays.

    Numbers of sliders in their order; none: always there, twice the same: its square.
    """

    weights: float
    macs: float
    sliders: tuple[int, ...]


def layer_terms(
    layers: Mapping[str, nn.Module], sliders: Sequence[str], positions: Mapping[str, int]
) -> tuple[Term, ...]:
    """Terms where every slider takes entries of one layer's weight tensor; what is zero is skipped."""
    terms = []
    for name, layer in layers.items():
        count = int(layer.weight.count_nonzero())
        place = (sliders.index(name),) if name in sliders else ()
        terms.append(Term(count, count * positions[name], place))
    return tuple(terms)


def group_terms(model: nn.Module, found: Sequence[Group], positions: Mapping[str, int]) -> tuple[Term, ...]:
    """Terms where every slider removes a group of channels; equal products are added up.

    The weights of a layer are its filters times the inputs that they read; both sides may belong to
    several groups (behind a concatenation), or to none (pictures, logits).
    """
    total: dict[tuple[int, ...], tuple[float, float]] = {}

    def add(place: tuple[int, ...], weights: float, macs: float) -> None:
        before = total.get(place, (0.0, 0.0))
        total[place] = (before[0] + weights, before[1] + macs)

    layers = prunable(model)
    for name, layer in layers.items():
        filters, columns = layer.weight.shape[:2]
        inner = layer.weight[0, 0].numel()
        for group, rows in _shares(found, name, "out", filters):
            if layer.bias is not None:
                add(group, rows, 0)
            for other, wide in _shares(found, name, "in", columns):
                count = rows * wide * inner
                add(tuple(sorted(group + other)), count, count * positions[name])
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if name not in layers and own:
            width = len(own[0])
            for group, rows in _shares(found, name, "out", width):
                add(group, rows * len(own), 0)
    return tuple(Term(weights, macs, place) for place, (weights, macs) in sorted(total.items()))


def _shares(
    found: Sequence[Group], layer: str, side: str, channels: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """(group's number, channels of `layer` that belong to it), and ((), those that belong to none)."""
    free = channels
    for number, group in enumerate(found):
        belonging = sum(
            len((slot.channels % channels).unique())
            for slot in group.slots
            if slot.layer == layer and slot.side == side
        )
        if belonging:
            free -= belonging
            yield (number,), belonging
    if free:
        yield (), free
