"""Band energy: how much of every layer's kernels lies in low frequencies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from torch import nn

from core.bundles import Setting
from core.diagnosis import DIAGNOSTICS, Diagnostic
from core.figure import Figure
from core.frequency import band_table, energy_figure, kernel_layers, sizes
from core.layers import private_copy
from core.run import Run


@DIAGNOSTICS.register
@dataclass(frozen=True)
class BandEnergy(Diagnostic):
    """How smooth every layer's kernels are: energy and zeros by frequency, before and after.

    Kernels are written as sums of cosine patterns (DCT-II along every axis); a band holds those with
    the same sum of frequencies. `energy_before` and `energy_after` are the mean square of a band's
    coefficients, both divided by that of all the layer's coefficients before: 1 in every band is
    noise, more in low bands is smooth. `zero_before` and `zero_after` are the share of coefficients
    that are zero up to the rounding of the weights. Layers without kernels are not in the table; one
    that is gone, or whose kernel has another size, has no numbers after.

    Source: Ahmed, Natarajan and Rao, "Discrete Cosine Transform", IEEE Transactions on Computers
    C-23, 1974; Liu, Xu, Peng and Xiong, "Frequency-Domain Dynamic Pruning for Convolutional Neural
    Networks", NeurIPS 2018.
    """

    name: ClassVar[str] = "band-energy"

    def measure(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> pd.DataFrame:
        layers = kernel_layers(self.name, before)
        old, new = private_copy(before), private_copy(after)
        return pd.concat(
            [band_table(old, new, [name]) for name in run.track(layers, "Transforming layers")],
            ignore_index=True,
        )

    def figures(self, table: pd.DataFrame) -> Sequence[Figure]:
        return (*_layers(table), *energy_figure(table), *_zeros(table))


def _layers(table: pd.DataFrame) -> list[Figure]:
    names = {"energy_before": "before", "energy_after": "after"}
    known = table.rename(columns=names).melt(["layer", "band"], list(names.values()), "network", "energy")
    known = known.dropna(subset="energy")
    if known.empty:
        return []
    lowest = known[known.band == 0]
    finding = " ".join(
        f"{when.capitalize()}, a coefficient of the lowest band has {part.energy.median():.2f} times the "
        f"mean energy of its layer, in the median of {len(part)} layers; most in "
        f"{part.layer[part.energy.idxmax()]}: {part.energy.max():.2f} times."
        for when, part in lowest.groupby("network", sort=False)
    )
    labels = {"energy": "energy per coefficient, of the mean before", "band": "band (sum of frequencies)"}
    return [
        Figure("Energy by layer and band", finding, known, "band", "layer", "heat", panel="network",
               value="energy", labels=labels)
    ]  # fmt: skip


def _zeros(table: pd.DataFrame) -> list[Figure]:
    """Share of zeros by band, over all layers of a size of kernel."""
    names = {"zero_before": "before", "zero_after": "after"}
    keys = ["kernel", "band", "network"]
    every = table[table.kernel.isin(sizes(table))].rename(columns=names)
    every = every.melt([*keys[:2], "coefficients"], list(names.values()), "network", "zero").dropna()
    every["zero"] *= every.coefficients
    sums = every.groupby(keys, sort=False)[["zero", "coefficients"]].sum().reset_index()
    sums["zero"] /= sums.coefficients
    name = sizes(table)[0]
    finding = " ".join(
        f"{when.capitalize()}, {part.zero.iloc[0]:.1%} of the coefficients of the lowest band are zero and "
        f"{part.zero.iloc[-1]:.1%} of the highest, in kernels of {name}."
        for when, part in sums[sums.kernel == name].groupby("network", sort=False)
    )
    labels = {"zero": "coefficients that are zero", "band": "band (sum of frequencies)"}
    panel = "kernel" if sums.kernel.nunique() > 1 else ""
    return [
        Figure("Zeros by band", finding, sums, "band", "zero", "bars", "network", panel, labels=labels,
               percent=frozenset({"zero"}))
    ]  # fmt: skip
