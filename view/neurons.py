"""What bounds say of every ReLU around a picture, at once: on, off or undecided, in both networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape

import pandas as pd
import torch
from torch import Tensor

from core.certificate import phases
from core.proving.bounds import Bounds, crown, intervals
from core.proving.changes import KINDS, Changes
from core.proving.network import ReluNetwork
from core.proving.proof import Core
from core.proving.question import TOLERANCE

MOST = 600  # ReLUs of a layer that are drawn one by one
DENSE = 64  # from here on, smaller
STATES = {1: ("on", "on"), -1: ("off", "off"), 0: ("open", "undecided")}  # phase -> (style, word)
NAMES = {"a": "A original", "b": "B compressed"}

BECAME = ("unchanged", "with other numbers", "with fewer connections", "gone")  # of KINDS, in a sentence

Marked = Mapping[tuple[int, int], int]  # (layer, neuron) -> phase


@dataclass(frozen=True, eq=False)
class Look:
    """One network around one picture."""

    network: ReluNetwork
    predicted: int
    sure: float
    narrow: Bounds  # linear bounds (CROWN), intersected with intervals
    wide: Bounds  # intervals alone
    excluded: int  # other classes that the linear bounds alone exclude
    others: int

    @cached_property
    def phases(self) -> tuple[tuple[int, ...], ...]:
        return phases(self.narrow)

    def counts(self, layer: int) -> dict[int, int]:
        """Phase -> ReLUs of a layer."""
        return {phase: self.phases[layer].count(phase) for phase in STATES}

    @property
    def undecided(self) -> int:
        return sum(layer.count(0) for layer in self.phases)

    def widths(self, layer: int) -> tuple[float, float]:
        """Mean distance of the bounds of a layer's inputs: by intervals, and by linear bounds."""
        return tuple(
            (each.highs[layer] - each.lows[layer]).mean().item() for each in (self.wide, self.narrow)
        )


@torch.no_grad()
def look(network: ReluNetwork, x: Tensor, label: int, radius: float) -> Look:
    """Around pixels `x` (I,) in [0, 1], which should be answered with `label`."""
    low, high = (x - radius).clamp(0, 1)[None], (x + radius).clamp(0, 1)[None]
    others = [other for other in range(network.outputs) if other != label]
    asked = network.margins(label, others)
    narrow, odds = crown(asked, low, high), network(x[None]).softmax(1)[0]
    excluded = int((narrow.margins[0] > TOLERANCE).sum())
    predicted = int(odds.argmax())
    wide = intervals(asked, low, high)
    return Look(network, predicted, odds[predicted].item(), narrow, wide, excluded, len(others))


def marked(core: Core, places: Sequence[Tensor] | None = None) -> Marked:
    """The ReLUs that a core names; in the other network, which has them in other `places`."""
    found = {}
    for layer, neuron, phase in core:
        place = neuron if places is None else int(places[layer][neuron])
        if place >= 0:
            found[layer, place] = phase
    return found


def grid(looks: Mapping[str, Look], changes: Changes | None, marks: Mapping[str, Marked]) -> str:
    """Every hidden layer of both networks, side by side: its ReLUs, and how wide their bounds are."""
    depth = max(len(each.phases) for each in looks.values())
    rows = "".join(_layer(k, looks, changes, marks) for k in range(depth))
    return f'<div class="ps-neurons">{rows}</div>{_legend(changes)}'


def _layer(k: int, looks: Mapping[str, Look], changes: Changes | None, marks: Mapping[str, Marked]) -> str:
    present = {role: each for role, each in looks.items() if k < len(each.phases)}
    widest = max(max(each.widths(k)) for each in present.values()) or 1.0
    other = _differing(k, looks, changes)
    parts = []
    for role, each in present.items():
        kinds = changes.counts[k] if changes and role == "b" and k < len(changes.counts) else {}
        parts.append(_side(k, role, each, other.get(role, set()), marks.get(role, {}), widest, kinds))
    return f'<section><h4>Layer {k + 1}</h4><div class="sides">{"".join(parts)}</div></section>'


def _side(
    k: int, role: str, each: Look, other: set[int], marks: Marked, widest: float, kinds: Mapping[str, int]
) -> str:
    """One layer of one network."""
    found, size = each.counts(k), len(each.phases[k])
    words = " · ".join(f"<b>{found[phase]}</b> {word}" for phase, (_, word) in STATES.items())
    heard = f"{NAMES[role]}, layer {k + 1}, {size} ReLUs: " + ", ".join(
        f"{found[phase]} {word}" for phase, (_, word) in STATES.items()
    )
    heard += f"; {len(other)} differ from the other network" if other else ""
    lows, highs = each.narrow.lows[k][0].tolist(), each.narrow.highs[k][0].tolist()
    cells = "".join(
        _cell(i, phase, low, high, i in other, marks.get((k, i)))
        for i, (phase, low, high) in enumerate(zip(each.phases[k], lows, highs, strict=True))
    )
    if size > MOST:
        cells = f'<span class="n">{size:,} ReLUs: too many to be drawn one by one</span>'
    small = " small" if size > DENSE else ""
    bars = "".join(
        f'<span>{name}</span><span class="bar"><i class="{style}" style="width:{100 * width / widest:.1f}%">'
        f"</i></span><span>{width:.3g}</span>"
        for (name, style), width in zip(
            (("intervals", "wide"), ("CROWN", "narrow")), each.widths(k), strict=True
        )
    )
    said = ", ".join(
        f"{kinds[kind]} {word}" for kind, word in zip(KINDS, BECAME, strict=True) if kinds.get(kind)
    )
    note = f'<p class="n">compression left them: {said}</p>' if said else ""
    return (
        f'<div class="{role}"><p><span class="who">{NAMES[role][0]}</span> {words}</p>'
        f'<div class="ps-cells{small}" role="img" aria-label="{escape(heard)}">{cells}</div>'
        f'<div class="ps-widths" role="img" aria-label="Mean width of bounds: '
        f'intervals {each.widths(k)[0]:.3g}, CROWN {each.widths(k)[1]:.3g}">{bars}</div>{note}</div>'
    )


def _cell(index: int, phase: int, low: float, high: float, other: bool, mark: int | None) -> str:
    style, word = STATES[phase]
    style += " other" * other + " marked" * (mark is not None)
    inside = "" if mark is None else "+" if mark > 0 else "-"
    hint = f"unit {index}: {word}, its input lies between {low:.3g} and {high:.3g}"
    return f'<i class="{style}" title="{hint}">{inside}</i>'


def _differing(k: int, looks: Mapping[str, Look], changes: Changes | None) -> dict[str, set[int]]:
    """Of both networks, the ReLUs that bounds judge otherwise in the other one, or that are gone."""
    if changes is None or k >= len(changes.places) or k >= len(looks["b"].phases):
        return {}
    ours, theirs = looks["a"].phases[k], looks["b"].phases[k]
    pairs = list(enumerate(changes.places[k].tolist()))
    moved = [(i, j) for i, j in pairs if j < 0 or ours[i] != theirs[j]]
    return {"a": {i for i, _ in moved}, "b": {j for _, j in moved if j >= 0}}


def _legend(changes: Changes | None) -> str:
    differs = '<span><i class="other"></i>differs between A and B</span>' if changes else ""
    return (
        '<div class="ps-legend ps-cells-key"><span><i class="on"></i>surely on</span>'
        '<span><i class="off"></i>surely off</span><span><i class="open"></i>undecided: may be either</span>'
        f"{differs}<span>bars: mean width of the bounds of a layer's inputs</span></div>"
    )


def finding(looks: Mapping[str, Look]) -> str:
    """What bounds decide, in a sentence."""
    said = [
        f"{each.undecided} of {sum(map(len, each.phases))} in {role.upper()}" for role, each in looks.items()
    ]
    return "Undecided ReLUs: " + ", ".join(said) + "."


def table(looks: Mapping[str, Look], changes: Changes | None) -> pd.DataFrame:
    """The same in numbers: a row per network and layer."""
    rows = []
    for role, each in looks.items():
        for k in range(len(each.phases)):
            found, (wide, narrow) = each.counts(k), each.widths(k)
            row = {"network": NAMES[role][2:], "layer": k + 1}
            row |= {word: found[phase] for phase, (_, word) in STATES.items()}
            row |= {"width, intervals": wide, "width, CROWN": narrow}
            if changes and role == "b" and k < len(changes.counts):
                row |= {kind: changes.counts[k][kind] for kind in KINDS}
            rows.append(row)
    return pd.DataFrame(rows)
