"""Adaptive pruning: every neuron keeps as many weights as its l_q norm says that it needs."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from core.bundles import Setting
from core.compressibility import (
    keep_bound,
    keep_exact,
    keep_index,
    largest,
    output_changes,
    sparsity_index,
    tail_shares,
)
from core.errors import ParameterError, UnsupportedModelError
from core.figure import Figure, Reference, histogram
from core.layers import apply_mask, prunable, require_prunable
from core.method import choice, number
from core.recipe import COMPRESSORS, Compressor
from core.run import Run

PANELS = 6  # layers whose neurons are shown one by one
WATCHED = 200  # validation pictures on which the change of the outputs is measured
HALVINGS = 80  # of the interval in which the tolerance is sought: as fine as numbers are

Rule = Callable[[float], Tensor]  # tolerance or strength -> weights (N,) that the N neurons keep


@COMPRESSORS.register
@dataclass(frozen=True)
class LqAdaptive(Compressor):
    """Keep many weights of flat neurons and few of those that live on few.

    A neuron is one output unit: a row of a linear layer, a filter of a convolution. Its smallest
    weights go, and how many follows from its own weights, with one tolerance eta for all: they may
    have the share eta of its l_1 norm, so that its output moves by at most eta ||w||_1 times its
    largest input. "exact" takes the fewest weights for which this is so; "bound" those for which
    Stechkin's inequality in ||w||_q guarantees it, always at least as many; "index" removes a
    multiple of the share that the index ||w||_1 / ||w||_q calls superfluous, at most 90 %.

    With `by` "sparsity", eta (or the multiple) is sought so that round(sparsity x n) of all n weights
    are zero; those that are zero already count. Between two steps of the counts the earlier
    neurons keep one more. Every neuron that has a weight keeps one. Equal weights go in
    order of position, the last first. Scale does not matter, so batch norm need not be folded.

    Source: Yang et al., "A Theoretical Understanding of Neural Network Compression from Sparse Linear
    Approximation", 2022, arXiv:2206.05604; Diao et al., "Pruning Deep Neural Networks from a Sparsity
    Perspective", ICLR 2023, arXiv:2302.05601, theorem 2 ("index", as in early code of the authors).
    """

    name: ClassVar[str] = "lq-adaptive"
    title: ClassVar[str] = "l_q-adaptive pruning"
    variants = ("rule",)

    sparsity: float = number(0.5, 0.0, 0.99, 0.01, help="Fraction of all weights that goes, set by hand")
    rule: str = choice("bound", "exact", "index", help="From what the number of a neuron's weights follows")
    q: float = number(0.5, 0.1, 0.9, 0.05, help="Exponent of the norm in the rules bound and index")
    by: str = choice("sparsity", "tolerance", help="What is given: how much goes, or how much may change")
    tolerance: float = number(0.3, 0.01, 0.99, 0.01, help="Share of its norm that a neuron may lose at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == "tolerance" and self.rule == "index":
            raise ParameterError(
                f'{self.name}: rule must be "bound" or "exact" where a tolerance is given, got "index"'
            )

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        layers = require_prunable(model)
        neurons = [layer.weight.detach().flatten(1) for layer in layers.values()]
        counts = self._counts(neurons).split([len(rows) for rows in neurons])
        parts = list(zip(layers.values(), neurons, counts, strict=True))
        for layer, rows, kept in run.track(parts, "Masking layers"):
            apply_mask(layer, largest(rows, kept).view_as(layer.weight))
        return model

    def _counts(self, neurons: Sequence[Tensor]) -> Tensor:
        """How many weights (N,) the neurons of all layers keep."""
        rule = self._rule(neurons)
        if self.by == "tolerance":
            return rule(self.tolerance)
        every = sum(rows.numel() for rows in neurons)
        wanted = every - round(self.sparsity * every)
        low, high = (1e-6, 1e6) if self.rule == "index" else (1e-40, 1e40)
        most, least = rule(low), rule(high)
        if least.sum() > wanted:
            reachable = 1 - int(least.sum()) / every
            raise UnsupportedModelError(
                f"{self.name}: sparsity must be at most {reachable:.4f}, all that the rule {self.rule!r} can "
                f"take from this network, got {self.sparsity:g}"
            )
        if most.sum() <= wanted:
            return most  # as much is zero already
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5
            if (found := rule(middle)).sum() > wanted:
                low, most = middle, found
            else:
                high, least = middle, found
        room = most - least  # of neurons whose next step lies at the very same tolerance
        before = room.cumsum(0) - room
        return least + (wanted - least.sum() - before).clamp(min=0).minimum(room)

    def _rule(self, neurons: Sequence[Tensor]) -> Rule:
        """Counts as a function of the tolerance, or of the strength: falling, and quick to ask."""
        if self.rule == "exact":
            shares = [tail_shares(rows) for rows in neurons]
            return lambda tolerance: torch.cat([keep_exact(s, tolerance) for s in shares])
        index = torch.cat([sparsity_index(rows, self.q) for rows in neurons])
        nonzero = torch.cat([rows.count_nonzero(-1) for rows in neurons])
        count = keep_bound if self.rule == "bound" else keep_index
        return lambda value: count(index, nonzero, self.q, value)

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        old, new = prunable(before), prunable(after)
        ratios = {
            name: _ratios(old[name].weight, new[name].weight)
            for name in old
            if name in new and old[name].weight.shape == new[name].weight.shape
        }
        ratios = {name: ratio for name, ratio in ratios.items() if len(ratio)}
        if not ratios:
            return ()
        nonzero = [sum(int(m[name].weight.count_nonzero()) for name in ratios) for m in (old, new)]
        uniform = Reference("x", nonzero[1] / nonzero[0], "the same for all")
        shown = [_by_layer(ratios, uniform), _by_neuron(ratios, old, uniform)]
        images = setting.validation.take(slice(0, WATCHED)).images
        with contextlib.suppress(UnsupportedModelError):  # networks that branch have no bound here
            changes = output_changes(before, after, images)
            shown += [_outputs(changes, len(images))] if changes.bound.any() else []
        return tuple(shown)


def _ratios(before: Tensor, after: Tensor) -> Tensor:
    """The share (O,) of its nonzero weights that every neuron kept, of neurons that had one."""
    had, has = (weight.flatten(1).count_nonzero(-1).double() for weight in (before, after))
    return (has / had)[had > 0]


def _by_layer(ratios: dict[str, Tensor], uniform: Reference) -> Figure:
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    rows = [(name, *ratio.quantile(levels).tolist()) for name, ratio in ratios.items()]
    table = pd.DataFrame(rows, columns=["layer", "low", "kept", "high"])
    most, least = (table.loc[i] for i in (table.kept.idxmax(), table.kept.idxmin()))
    finding = (
        f"The middle neuron of {least.layer} keeps {least.kept:.1%} of its weights, that of {most.layer} "
        f"{most.kept:.1%}; the same share for all would be {uniform.value:.1%}."
    )
    return Figure(
        "Kept weights by layer",
        finding,
        table,
        "layer",
        "kept",
        "points",
        low="low",
        high="high",
        percent=frozenset({"kept", "low", "high"}),
        labels={"kept": "kept of a neuron's weights"},
        references=(Reference("y", uniform.value, uniform.label),),
    )


def _by_neuron(ratios: dict[str, Tensor], layers: dict[str, nn.Module], uniform: Reference) -> Figure:
    biggest = sorted(ratios, key=lambda name: -layers[name].weight.numel())[:PANELS]
    table = histogram({name: ratios[name] for name in ratios if name in biggest}, 25, "layer", "kept")
    widest = max(biggest, key=lambda name: ratios[name].max() - ratios[name].min())
    low, high = ratios[widest].min(), ratios[widest].max()
    finding = (
        f"Of the layers shown neurons differ most in {widest}: they keep between {low:.1%} and {high:.1%} "
        f"of their weights, where a uniform rule of the same total would keep {uniform.value:.1%} of each."
    )
    return Figure(
        "Kept weights by neuron",
        finding,
        table,
        "kept",
        "share",
        "bars",
        panel="layer",
        percent=frozenset({"kept", "share"}),
        labels={"kept": "kept of a neuron's weights", "share": "of the layer's neurons"},
        references=(uniform,),
    )


def _outputs(table: pd.DataFrame, count: int) -> Figure:
    last = table.iloc[-1]
    finding = (
        f"On {count} validation pictures no output moved by more than {last.measured:.3g}; the bound, which "
        f"needs only the weights and each layer's largest inputs, allows {last.bound:.3g}."
    )
    long = table.melt("layer", var_name="what", value_name="change")
    return Figure(
        "Change of the outputs",
        finding,
        long[long.change > 0],
        "layer",
        "change",
        "points",
        colour="what",
        log=frozenset({"change"}),
        labels={"change": "largest change of an output", "what": ""},
    )
