"""Cards, bars and scales as HTML: drawn in one piece, coloured by role, followed by the theme.

Every function returns a string for `st.html`. What comes from names, links or files is escaped here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite, isnan
from typing import Literal

import numpy as np

from view import pictures

NARROW = 0.022  # share of the row below which a bar has no room for its number

Tone = Literal["", "grey", "loss", "kept"]


@dataclass(frozen=True)
class Card:
    """One number: what it is, how it changed, and what it rests on."""

    label: str
    value: str
    change: str = ""
    tone: Tone = "grey"  # of the change
    notes: tuple[str, ...] = ()
    help: str = ""
    dim: bool = False  # a newer number is on its way


def cards(shown: Sequence[Card]) -> str:
    """Cards side by side."""
    return f'<div class="ps-cards">{"".join(map(_card, shown))}</div>'


def _card(card: Card) -> str:
    change = f'<div class="d ps-{card.tone or "grey"}">{escape(card.change)}</div>' if card.change else ""
    notes = "".join(f'<div class="n">{escape(note)}</div>' for note in card.notes)
    dim = " ps-dim" if card.dim else ""
    return (
        f'<div class="ps-card{dim}" title="{escape(card.help)}"><div class="l">{escape(card.label)}</div>'
        f'<div class="v">{escape(card.value)}</div>{change}{notes}</div>'
    )


def percent(fraction: float, digits: int = 1) -> str:
    """0.4213 -> "42.1 %"; "none" where there is no number."""
    return f"{100 * fraction:.{digits}f} %" if isfinite(fraction) else "none"


def points(fraction: float) -> str:
    """A difference of two percentages, with an ASCII sign: -0.0123 -> "-1.2 points"."""
    if isnan(fraction):
        return "none"
    value = f"{100 * fraction:+.1f}"
    return f"{'0.0' if value in ('-0.0', '+0.0') else value} points"


def span(interval: tuple[float, float], *, signed: bool = False) -> str:
    """An interval in per cent, or in points: "[96.1, 98.0]"."""
    low, high = (f"{100 * end:{'+' if signed else ''}.1f}" for end in interval)
    return f"[{low}, {high}]"


def tone(interval: tuple[float, float]) -> Tone:
    """Grey while the interval of a change still holds zero."""
    low, high = interval
    return "grey" if not (low > 0 or high < 0) else "kept" if low > 0 else "loss"


def count(number: float) -> str:
    """Three digits and a unit, whole below 10,000: 269722 -> "270 k", 40550000 -> "40.6 M"."""
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
        scaled = number / size
        if (scaled >= 9.9995 and scaled < 999.5) or (unit != "k" and 0.9995 <= scaled < 999.5):
            return f"{scaled:.{max(0, 2 - len(str(int(scaled))) + 1)}f} {unit}"
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes: 1110000 -> "1.11 MB"."""
    return (
        f"{number / 1e6:.2f} MB"
        if number >= 1e6
        else f"{number / 1e3:.0f} kB"
        if number >= 1e4
        else f"{number:,.0f} B"
    )


@dataclass(frozen=True)
class Bar:
    """One layer or group: its share of the whole, and how much of it is kept."""

    name: str
    share: float  # of the row's width, any unit
    kept: float  # in [0, 1]
    hint: str


def bars(shown: Sequence[Bar], width: str) -> str:
    """A bar per slider: width = share of `width` (for instance "weights"), height = kept."""
    whole = sum(bar.share for bar in shown) or 1
    columns = "".join(
        f'<div class="ps-bar{" cut" if bar.kept < 1 else ""}" style="flex-grow:{_grow(bar.share, whole)}" '
        f'title="{escape(bar.hint)}"><i style="height:{100 * bar.kept:.1f}%"></i></div>'
        for bar in shown
    )
    feet = "".join(
        f'<span style="flex-grow:{_grow(bar.share, whole)}">'
        f"{index if bar.share / whole > NARROW else '&nbsp;'}</span>"
        for index, bar in enumerate(shown, start=1)
    )
    cut = [bar for bar in shown if bar.kept < 1]
    least = min(cut, key=lambda bar: bar.kept, default=None)
    finding = f"{len(cut)} of {len(shown)} are pruned" + (
        f"; the most in {least.name}, which keeps {percent(least.kept, 0)}" if least else ""
    )
    key = (
        '<div class="ps-key"><span><i style="background:var(--a)"></i>untouched</span>'
        '<span><i style="background:var(--b)"></i>pruned: height is what is kept</span>'
        f'<span><i class="hatched"></i>removed</span><span>width is the share of {escape(width)}</span></div>'
    )
    return (
        f'<div role="img" aria-label="{escape(finding)}"><div class="ps-bars">{columns}</div>'
        f'<div class="ps-feet" aria-hidden="true">{feet}</div></div>{key}'
    )


def _grow(share: float, whole: float) -> str:
    return f"{max(100 * share / whole, 0.05):.3f}"


def figure(
    drawn: np.ndarray | None,
    title: str,
    note: str,
    alt: str,
    role: Literal["", "a", "b"] = "",
    below: str = "",
) -> str:
    """A picture with its heading; a sentence in its place where there is none to draw."""
    body = (
        f'<img src="{pictures.source(drawn)}" alt="{escape(alt)}">'
        if drawn is not None
        else f'<div class="ps-dead" role="img" aria-label="{escape(alt)}">{below}</div>'
    )
    after = below if drawn is not None else ""
    return (
        f'<figure class="ps-figure {role}"><figcaption><b>{escape(title)}</b>'
        f"<span>{escape(note)}</span></figcaption>{body}{after}</figure>"
    )


def panel(state: str, who: str) -> str:
    """What stands in the place of a map that has nothing to draw."""
    title, sentence = pictures.PANELS[state]
    return f"<b>{escape(title)}</b>{escape(sentence.format(who=who))}"


def scale(end: float, palette: pictures.Palette, low: str = "", high: str = "") -> str:
    """The colour scale under a map, with its ends."""
    table = pictures.colours(palette)[:: 255 // 15]
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in table)
    left = low or f"-{end:.2g}"
    return (
        f'<div class="ps-scale"><span>{escape(left)}</span>'
        f'<i style="background:linear-gradient(90deg,{stops})"></i>'
        f"<span>{escape(high or f'+{end:.2g}')}</span></div>"
    )


@dataclass(frozen=True)
class Between:
    """A score on its scale from `low` to `high`, with where chance and noise leave it."""

    label: str
    value: float
    floor: float | None  # what a random network reaches
    ceiling: float | None  # what the same network reaches with other noise
    low: float = 0.0
    high: float = 1.0
    help: str = ""
    format: str = ".3f"
    unit: str = ""

    def text(self, value: float) -> str:
        return f"{value:{self.format}}" + f" {self.unit}" * bool(self.unit)


def between(shown: Sequence[Between]) -> str:
    """Scores as marks between their random floor and their noise ceiling."""
    return f'<div class="ps-range">{"".join(map(_between, shown))}</div>'


def _between(row: Between) -> str:
    def place(value: float) -> float:
        return 100 * min(max((value - row.low) / (row.high - row.low), 0), 1)

    head = f'<span title="{escape(row.help)}">{escape(row.label)}</span>'
    if isnan(row.value):
        return f'{head}<span class="ps-grey">a map is constant: no score</span><span class="num">none</span>'
    zones, words = "", f"{row.label} {row.text(row.value)}"
    if row.floor is not None and isfinite(row.floor):
        zones += f'<span class="zone floor" style="width:{place(row.floor):.1f}%"></span>'
        words += f", random network {row.text(row.floor)}"
    if row.ceiling is not None and isfinite(row.ceiling):
        zones += f'<span class="zone ceiling" style="width:{100 - place(row.ceiling):.1f}%"></span>'
        words += f", same network under noise {row.text(row.ceiling)}"
    return (
        f'{head}<span class="ps-track" role="img" aria-label="{escape(words)}" title="{escape(words)}">'
        f"{zones}"
        f'<span class="mark" style="left:{place(row.value):.1f}%"></span></span>'
        f'<span class="num">{row.text(row.value)}</span>'
    )


def between_legend() -> str:
    """What the coloured ends of the tracks mean."""
    return (
        '<div class="ps-legend"><span><i style="background:var(--loss-area)"></i>like a random network</span>'
        '<span><i style="background:var(--kept)"></i>like the same network under noise</span></div>'
    )


def heading(title: str, note: str = "") -> str:
    """A heading with a few words behind it."""
    return f'<div class="ps-head"><h2>{escape(title)}</h2><span>{escape(note)}</span></div>'
