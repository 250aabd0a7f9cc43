"""Activation rates: how often every ReLU lets its neurons through."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from core.bundles import Setting, Split
from core.diagnosis import DIAGNOSTICS, Diagnostic
from core.errors import UnsupportedModelError
from core.figure import Figure
from core.layers import private_copy, prunable
from core.method import number
from core.run import Run

BATCH = 100  # pictures in one forward pass
KINDS = ("dead", "mixed", "linear")
_RELUS = {F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


@DIAGNOSTICS.register
@dataclass(frozen=True)
class ActivationRates(Diagnostic):
    """The share of pictures on which neurons and filters are active, before and after.

    A neuron is active where its ReLU passes a positive value on unchanged; a filter has a value at every
    position, and they all count. `dead` is the share of a layer's neurons that are never active,
    `linear` of those that are active on at least `threshold` of the validation pictures, `mixed` of all
    others; `rate` is the mean over the layer. A ReLU is named after the convolution or linear layer
    computed last before it. A layer without a ReLU of that name has no numbers.

    Source: Dobler and Lemmerich, "Linearity-based Neural Network Compression", 2025, arXiv:2506.21146
    (rates and linear neurons); Hu et al., "Network Trimming", 2016, arXiv:1607.03250 (shares of zeros).
    """

    name: ClassVar[str] = "activation-rates"

    threshold: float = number(
        1.0, 0.5, 1.0, 0.01, help="A neuron is linear if active on this share of pictures"
    )
    images: int = number(200, 1, 10000, 1, help="Validation pictures that are looked at")

    def measure(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> pd.DataFrame:
        split = setting.validation.take(slice(0, self.images))
        found: dict[str, dict[str, Tensor]] = {}
        for index, (network, model) in enumerate((("before", before), ("after", after))):
            with run.step(index, 2):
                found[network] = activation_rates(model, split, run)
        if not found["before"]:
            raise UnsupportedModelError(f"{self.name}: the model must have ReLUs, got none")
        layers = list(dict.fromkeys([*found["before"], *found["after"]]))
        return pd.DataFrame(
            {"layer": layer}
            | {
                f"{quantity}_{network}": value
                for network, rates in found.items()
                for quantity, value in self._shares(rates.get(layer)).items()
            }
            for layer in layers
        )

    def _shares(self, rates: Tensor | None) -> dict[str, float]:
        """What the table says of a layer whose neurons have `rates` (m,)."""
        if rates is None:
            return {"neurons": 0} | dict.fromkeys(("rate", *KINDS), float("nan"))
        dead, linear = (rates == 0).double().mean().item(), (rates >= self.threshold).double().mean().item()
        shares = {"dead": dead, "mixed": 1 - dead - linear, "linear": linear}
        return {"neurons": len(rates), "rate": rates.mean().item()} | shares

    def figures(self, table: pd.DataFrame) -> Sequence[Figure]:
        parts = []
        for network in ("before", "after"):
            names = {f"{quantity}_{network}": quantity for quantity in ("neurons", "rate", *KINDS)}
            part = table[["layer", *names]].rename(columns=names).assign(network=network)
            parts.append(part[part.neurons > 0])
        rows = pd.concat(parts, ignore_index=True)
        shares = rows.melt(["layer", "network"], KINDS, "kind", "share")
        return (
            Figure(
                "Dead, mixed and linear neurons",
                " ".join(_summary(part) for part in parts if len(part)),
                shares,
                "kind",
                "layer",
                "heat",
                panel="network",
                value="share",
                percent=frozenset({"share"}),
            ),
            Figure(
                "Mean activation rate",
                " ".join(_mean(part) for part in parts if len(part)),
                rows,
                "layer",
                "rate",
                "bars",
                colour="network",
                percent=frozenset({"rate"}),
                labels={"rate": "share of pictures (and positions) with a positive value"},
            ),
        )


def _summary(rows: pd.DataFrame) -> str:
    """How many neurons are dead and linear, over all layers."""
    neurons = rows.neurons.sum()
    dead, linear = ((rows[kind] * rows.neurons).sum() / neurons for kind in ("dead", "linear"))
    when = rows.network.iloc[0].capitalize()
    return f"{when}, {dead:.1%} of {neurons:,} neurons are never active and {linear:.1%} are linear."


def _mean(rows: pd.DataFrame) -> str:
    least, most = rows.loc[rows.rate.idxmin()], rows.loc[rows.rate.idxmax()]
    return (
        f"{least.network.capitalize()}, mean rates lie between {least.rate:.0%} ({least.layer}) and "
        f"{most.rate:.0%} ({most.layer})."
    )


def activation_rates(model: nn.Module, split: Split, run: Run) -> dict[str, Tensor]:
    """ReLU -> rates (m,) float64 of its neurons or filters, in order of execution."""
    network = private_copy(model, run.device)
    watch = _Watch()
    for name, layer in prunable(network).items():
        layer.register_forward_hook(watch.passed(name))
    for start in run.track(range(0, len(split), BATCH), "Watching neurons"):
        images = split.normalise(split.pixels[start : start + BATCH]).to(run.device)
        watch.begin()
        with torch.no_grad(), watch:
            network(images)
    return watch.rates()


class _Watch(TorchFunctionMode):
    """While it is entered, counts where ReLUs, modules or not, pass values on."""

    def __init__(self) -> None:
        super().__init__()
        self._active: dict[str, Tensor] = {}  # ReLU -> how often (m,) each neuron was active
        self._seen: Counter[str] = Counter()  # ReLU -> values of each neuron
        self.begin()

    def begin(self) -> None:
        """A new forward pass."""
        self._layer = "input"  # the layer that was computed last
        self._uses: Counter[str] = Counter()

    def passed(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
            self._layer = name

        return hook

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in _RELUS:
            return function(*args, **(kwargs or {}))
        given = args[0].clone()  # the function may work in place
        output = function(*args, **(kwargs or {}))
        self._count((given > 0) & (output == given))
        return output

    def _count(self, active: Tensor) -> None:
        """`active` is (N, C, H, W), or (N, ..., C)."""
        self._uses[self._layer] += 1
        use = self._uses[self._layer]
        name = self._layer if use == 1 else f"{self._layer} ({use})"
        neurons = active.movedim(1 if active.dim() == 4 else -1, 0).flatten(1)  # (C, values)
        self._active[name] = self._active.get(name, 0) + neurons.sum(1).cpu()
        self._seen[name] += neurons.shape[1]

    def rates(self) -> dict[str, Tensor]:
        return {name: active.double() / self._seen[name] for name, active in self._active.items()}
