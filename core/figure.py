"""A finding as data: a table, how it is drawn, and what it says. Front ends draw it, a shell prints it."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.as_json import plain

Mark = Literal["line", "bars", "points", "heat", "pictures"]


@dataclass(frozen=True)
class Reference:
    """A straight line across a figure, such as a threshold: at `value` of one of the two axes."""

    axis: Literal["x", "y"]
    value: float
    label: str


@dataclass(frozen=True, eq=False)
class Figure:
    """One picture of a tidy table.

    `x`, `y`, `colour`, `panel`, `low`, `high` and `value` name columns. A line joins its points in
    the order of the table, and breaks where y is NaN. Bars stand side by side where `colour` tells
    them apart. A heat map has a cell for every pair of x and y, coloured and labelled by `value`. Of
    pictures, `x` holds their sources (see `picture`), `y` their captions, and those whose `value` is
    true are marked.

    Raises:
        ValueError: a column that is named is not there, or there is no finding.
    """

    title: str
    finding: str  # what it shows, in a sentence with its numbers: also what a reader hears who cannot see it
    table: pd.DataFrame
    x: str
    y: str
    mark: Mark = "line"
    colour: str = ""  # told apart by colour and by dash or symbol; at most eight values
    panel: str = ""  # a small chart for each value, on the same axes; at most six
    low: str = ""  # ends of an interval around y
    high: str = ""
    value: str = ""  # of a cell of a heat map; of a picture, whether it is marked
    log: frozenset[str] = frozenset()  # columns on a logarithmic axis
    percent: frozenset[str] = frozenset()  # columns of fractions, which are shown as percentages
    labels: Mapping[str, str] = field(default_factory=dict)  # column -> its name for people, with its unit
    references: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        named = {self.x, self.y, self.colour, self.panel, self.low, self.high, self.value} - {""}
        named |= self.log | self.percent | set(self.labels)
        if missing := named - set(self.table.columns):
            raise ValueError(f"figure {self.title!r}: the table has no column {sorted(missing)}")
        if not self.finding.strip() or (self.mark in ("heat", "pictures")) != bool(self.value):
            raise ValueError(
                f"figure {self.title!r}: needs a finding, and a value if and only if it is heat or pictures"
            )

    def label(self, column: str) -> str:
        """What `column` is called on an axis: its label, or its name in words."""
        return self.labels.get(column, column.replace("_", " "))

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON; `from_dict` reads it back."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "table"}
        values |= {"log": sorted(self.log), "percent": sorted(self.percent)}
        values["references"] = [vars(line) for line in self.references]
        return plain(values | {"rows": rows(self.table)})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote; numbers that were not finite are NaN."""
        given = {name: value for name, value in values.items() if name != "rows"}
        given |= {name: frozenset(values[name]) for name in ("log", "percent")}
        given["references"] = tuple(Reference(**line) for line in values["references"])
        return cls(**given, table=pd.DataFrame(values["rows"]))


def picture(pixels: Tensor) -> str:
    """A picture (C, H, W) uint8, of one channel or three, as the source of an image: a PNG in a data URL."""
    from PIL import Image

    shown = pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    with io.BytesIO() as file:
        Image.fromarray(np.ascontiguousarray(shown)).save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table for JSON, row by row."""
    return plain(table.to_dict("records"))


def histogram(values: Mapping[str, Tensor], bins: int, name: str = "name", x: str = "value") -> pd.DataFrame:
    """Columns `name`, `x` (a bin's middle) and share (of that name's values), bins equal for all names."""
    every = torch.cat([v.flatten().double().cpu() for v in values.values()])
    edges = np.histogram_bin_edges(every.numpy(), bins)
    middles = (edges[1:] + edges[:-1]) / 2
    parts = []
    for who, entries in values.items():
        counts, _ = np.histogram(entries.flatten().double().cpu().numpy(), edges)
        parts.append(pd.DataFrame({name: who, x: middles, "share": counts / max(counts.sum(), 1)}))
    return pd.concat(parts, ignore_index=True)
