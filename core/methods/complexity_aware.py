"""Complexity-aware training: units and residual blocks switch themselves off, each at a price of its own."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Setting, Split
from core.criterion import sample
from core.cutting import width_of
from core.errors import UnsupportedModelError
from core.evaluation import correct, logits
from core.figure import Figure, Reference
from core.gates import CLOSED, Costs, Gates, Sites, Tariff, find_sites, recalibrate
from core.held import Held
from core.layers import bake, draw_again, prunable, require_prunable
from core.method import choice, number
from core.recipe import COMPRESSORS
from core.run import Run
from core.training import Cut, Task
from core.tuning import WATCHED, Tuning

BINS = 5  # of the histogram of gates
PANELS = 6  # epochs that it shows
BATCH = 50  # of them in one pass forward and back
SPELT = 6  # removed blocks that are named
JUDGED = 250  # validation pictures on which benefits are measured
GATE, SHARE = "gate of ", "gates in "  # how columns of records begin: a mean gate, a bar of the histogram


@COMPRESSORS.register
@dataclass(frozen=True)
class ComplexityAware(Tuning):
    """Training in which channels and blocks close for good when they are not worth what they cost.

    Every channel that one layer writes and one other reads, and every residual block, has a gate: in
    each step it is open with a probability, drawn picture by picture. The probability rises by what
    the gate saves of the loss and falls by its price, its part of the network's complexity: 1 for all
    that has gates, `compute_share` of it by multiply-adds, the rest by parameters. Prices follow what
    is left: in a block that loses channels the block gets cheaper, and the reverse. What closes is
    cut out after the epoch, so that training gets faster. At the end gates of 0.5 or more open, the
    others close, and batch-norm statistics are computed again. Stem, classifier and what flows along
    shortcuts have no gates; a block without a living channel goes, the last channel of a layer
    outside of blocks stays. A strength, or a share, of 0 leaves the gates that pay nothing open. What
    earlier steps hold at zero stays at zero.

    Source: Guenter and Sideris, "Complexity-Aware Training of Deep Neural Networks for Optimal
    Structure Discovery", 2024, arXiv:2411.09127; the step of the gates and the schedule of the preset
    "paper" are ours.
    """

    name: ClassVar[str] = "complexity-aware"
    title: ClassVar[str] = "Complexity-aware training"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"start": "scratch", "epochs": 40, "learning_rate": 0.05, "images": 1_000_000}
    }

    strength: float = number(1.0, 0.0, 2.0, 0.01, help="Price of all that has gates, in nats of the loss")
    layer_share: float = number(
        0.5, 0.0, 1.0, 0.01, help="Share of the price that blocks pay; channels pay the rest"
    )
    compute_share: float = number(
        0.5, 0.0, 1.0, 0.01, help="Share of the price that goes by multiply-adds; the rest by parameters"
    )
    initial_gate: float = number(0.9, 0.05, 1.0, 0.01, help="How probably a gate is open at the beginning")
    warm_up: float = number(
        0.125, 0.0, 0.9, 0.005, help="Share of the training after which probabilities begin to move"
    )
    gate_step: float = number(
        0.0, 0.0, 10.0, 0.01, help="Step size of gates; 0: what is useless closes in 30 % of the training"
    )
    start: str = choice("pretrained", "scratch", help="Train the weights it was handed, or new random ones")
    epochs: int = number(6, 1, 500, 1, help="Passes over the pictures")

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        require_prunable(model)
        held = Held(model)
        bake(model)
        example = setting.train.take(slice(0, 1)).images
        sites = find_sites(model, example)
        if self.start == "scratch":
            draw_again(model)
            held.zero(model)
        steps = self.epochs * math.ceil(min(self.images, len(setting.train)) / self.batch_size)
        gates = Gates(sites, Costs(model, example, sites), self._tariff(steps), run.device)
        task = _Gated(gates, self, round(self.warm_up * steps), held)
        try:
            with gates.attached(model):
                self.tune(model, task, setting, run)
            gates.round()
            task.cut(model)
        finally:
            recalibrate(model, sample(setting.train, self.images), run.device)
            held.hold(model)
        watched = sample(setting.validation, WATCHED)
        hits = correct(logits(model, watched), watched.labels).double().mean().item()
        run.record(**_cost(gates), collapsed=float(gates.collapsed()), validation_accuracy=hits)
        return model

    def _tariff(self, steps: int) -> Tariff:
        return Tariff(
            self.strength,
            self.layer_share,
            self.compute_share,
            self.initial_gate,
            max(steps - round(self.warm_up * steps), 1),
            self.gate_step,
        )

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        example = setting.train.take(slice(0, 1)).images
        sites, history = find_sites(before, example), _history(run)
        costs = Costs(before, example, sites)
        collapsed = len(history) and history.collapsed.iloc[-1] == 1
        shown = [_architecture(before, after, sites, bool(collapsed))]
        if len(history):
            shown += [_over_time(history), _histogram(history), _progress(history, costs)]
            shown += [_speed(history, costs)]
        try:
            sites = find_sites(after, example)
        except UnsupportedModelError:
            return shown  # nothing is left that could be priced
        left = Costs(after, example, sites)
        left.prunable = costs.prunable
        gates = Gates(sites, left, replace(self._tariff(1), initial=1.0), run.device)
        if gates.prices().any():
            shown.append(_worth(gates, after, sample(setting.validation, JUDGED), run))
        return shown


class _Gated(Task):
    """Cross-entropy behind gates; they move after `waits` steps, and what closes is cut."""

    def __init__(self, gates: Gates, method: ComplexityAware, waits: int, held: Held) -> None:
        super().__init__()
        self.gates, self.method, self.waits, self.held = gates, method, waits, held
        self._steps: list[float] = []  # seconds of each, in this epoch
        self._began = 0.0

    def terms(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self._began = time.perf_counter()
        loss = F.cross_entropy(model(images), labels, label_smoothing=self.method.label_smoothing)
        norms = [value.square().sum() for value in self.gates.norms(model)]  # other weights: the optimiser
        decay = self.method.weight_decay / 2 * torch.stack(norms).sum() if norms else 0.0
        return {"loss": loss + decay, "cross_entropy": loss.detach()}

    def stepped(self, model: nn.Module) -> None:
        self.waits -= 1
        if self.waits < 0:
            self.gates.advance()
        self.gates.forget()
        self.held.zero(model)
        self._steps.append(time.perf_counter() - self._began)

    def passed(self, model: nn.Module, epoch: int) -> Cut | None:
        return self._cut()

    def _cut(self) -> Cut | None:
        cut = self.gates.cut()
        if cut is not None:
            self.held.cut(cut)
        return cut

    def cut(self, model: nn.Module) -> None:
        """Take what has closed since from `model`."""
        if (cut := self._cut()) is not None:
            cut(model)

    def observed(self) -> dict[str, float]:
        values, sites = self.gates.values.detach().cpu(), self.gates.sites
        row = _cost(self.gates) | {"seconds": len(self._steps) * statistics.median(self._steps)}
        self._steps = []
        row["undecided"] = ((values > CLOSED) & (values < 1 - CLOSED)).double().mean().item()
        for name, part in sites.groups.items():
            row[f"{GATE}{name}"] = values[part].mean().item()
        for block in sites.blocks:
            row[f"{GATE}{block.name}"] = values[sites.gate(block)].item()
        counts = torch.histc(values, BINS, 0.0, 1.0) / len(values)
        return row | {f"{SHARE}{(i + 0.5) / BINS:.1f}": counts[i].item() for i in range(BINS)}


def _cost(gates: Gates) -> dict[str, float]:
    """Of the network without what has closed for good."""
    macs, parameters = gates.costs.expected(gates.open.cpu()).round().tolist()
    return {"macs": macs, "parameters": parameters}


def _history(run: Run) -> pd.DataFrame:
    """What was recorded of the epochs of this step, the last of those that this run has seen."""
    rows: list[dict[str, float]] = []
    for row in reversed(run.records):
        if ("collapsed" in row and rows) or not ("collapsed" in row or "undecided" in row):
            break
        rows.append(row)
    return pd.DataFrame(rows[::-1])


def _over_time(history: pd.DataFrame) -> Figure:
    epochs = history.dropna(subset="epoch")
    names = {c: c.removeprefix(GATE) for c in epochs if c.startswith(GATE)}
    table = epochs.rename(columns=names).melt("epoch", list(names.values()), "layer", "gate")
    table["epoch"] = table.epoch.astype(int)
    last = epochs.iloc[-1].rename(names)[list(names.values())].astype(float)
    closed = [name for name in names.values() if last[name] == 0]
    finding = (
        f"After epoch {epochs.epoch.iloc[-1]:.0f} the mean gate is {last.mean():.2f}: highest in "
        f"{last.idxmax()} ({last.max():.2f}), lowest in {last.idxmin()} ({last.min():.2f}); "
        f"{len(closed)} of {len(names)} layers and blocks have closed, and {epochs.undecided.iloc[-1]:.0%} "
        "of all gates are undecided."
    )
    return Figure(
        "Gates while they are trained",
        finding,
        table,
        "epoch",
        "layer",
        "heat",
        value="gate",
        labels={"gate": "mean gate", "layer": "layer (its channels) or block"},
    )


def _histogram(history: pd.DataFrame) -> Figure:
    epochs = history.dropna(subset="epoch")
    every = torch.linspace(0, len(epochs) - 1, min(len(epochs), PANELS)).round().long().unique().tolist()
    shown = epochs.iloc[every].assign(when=lambda rows: rows.epoch.map("epoch {:.0f}".format))
    names = {c: float(c.removeprefix(SHARE)) for c in shown if c.startswith(SHARE)}
    table = shown.rename(columns=names).melt("when", list(names.values()), "gate", "share")
    table["gate"] = table.gate.astype(float)
    ends = [epochs.iloc[i].rename(names) for i in (0, -1)]
    bars = (min(names.values()), max(names.values()))
    low, high = (" to ".join(f"{end[bar]:.1%}" for end in ends) for bar in bars)
    return Figure(
        "How many gates stand where",
        f"From epoch 1 to {ends[1].epoch:.0f} the share of gates below {1 / BINS:.1f} goes from {low}, "
        f"that of gates above {1 - 1 / BINS:.1f} from {high}.",
        table,
        "gate",
        "share",
        "bars",
        panel="when",
        percent=frozenset({"share"}),
        labels={"share": "share of all gates"},
    )


def _progress(history: pd.DataFrame, costs: Costs) -> Figure:
    table = history.assign(epoch=range(1, len(history) + 1))
    table["multiply-adds"], table["parameters"] = (
        table[name] / full for name, full in zip(("macs", "parameters"), costs.full.tolist(), strict=True)
    )
    table = table.rename(columns={"validation_accuracy": "accuracy"})
    long = table.melt("epoch", ["accuracy", "multiply-adds", "parameters"], "what", "share")
    gated, last = table.dropna(subset="undecided").iloc[-1], table.iloc[-1]
    return Figure(
        "Accuracy and cost in every epoch",
        f"Behind its gates the network ends at {gated.accuracy:.1%} on validation pictures; with every gate "
        f"open or closed, the last point, at {last.accuracy:.1%}, with {last['multiply-adds']:.1%} of the "
        f"multiply-adds and {last.parameters:.1%} of the parameters.",
        long,
        "epoch",
        "share",
        colour="what",
        percent=frozenset({"share"}),
        labels={"share": "accuracy; share of the cost at first"},
    )


def _speed(history: pd.DataFrame, costs: Costs) -> Figure:
    table = history.dropna(subset="seconds")[["epoch", "macs", "seconds"]]
    table["macs"] = table.macs.shift(1).fillna(costs.full[0].item()) / 1e6  # what closes goes after the epoch
    first, last = table.iloc[0], table.iloc[-1]
    return Figure(
        "How long an epoch takes with what is left",
        f"The first epoch took {first.seconds:.2f} s with {first.macs:.2f} million multiply-adds a "
        f"picture, the last {last.seconds:.2f} s with {last.macs:.2f} million.",
        table,
        "macs",
        "seconds",
        "points",
        labels={"macs": "multiply-adds (millions)", "seconds": "seconds of an epoch, by its median step"},
    )


def _architecture(before: nn.Module, after: nn.Module, sites: Sites, collapsed: bool) -> Figure:
    """Living channels of every layer with gates; of a network without such layers, layers of every block."""
    parts = list(sites.groups) or [block.name for block in sites.blocks]
    size = _width if sites.groups else _layers
    rows = [
        {"layer": name, "network": network, "count": size(model, name)}
        for name in parts
        for network, model in (("original", before), ("compressed", after))
    ]
    gone = [b.name for b in sites.blocks if _layers(after, b.name) < _layers(before, b.name)]
    living = sum(_width(after, name) for name in sites.groups)
    finding = (
        f"Gates stood on {sites.units} channels of {len(sites.groups)} layers and on {len(sites.blocks)} "
        f"blocks: {living} channels and {len(sites.blocks) - len(gone)} blocks are left; removed: "
        f"{_named(gone)}. " + ("All that could go has gone: it collapsed." if collapsed else "")
    )
    return Figure(
        "What is left of every layer",
        finding.strip(),
        pd.DataFrame(rows),
        "layer",
        "count",
        "bars",
        colour="network",
        labels={"count": "channels" if sites.groups else "layers"},
    )


def _width(model: nn.Module, name: str) -> int:
    """Output channels of a layer; 0 where it has gone."""
    layer = dict(model.named_modules()).get(name)
    return width_of(layer) if layer is not None else 0


def _layers(model: nn.Module, name: str) -> int:
    """Layers in a block."""
    return len(prunable(model.get_submodule(name)))


def _named(blocks: Sequence[str]) -> str:
    """At most SPELT names in a row."""
    more = f" and {len(blocks) - SPELT} more" if len(blocks) > SPELT else ""
    return ", ".join(blocks[:SPELT]) + more if blocks else "no block"


def _worth(gates: Gates, model: nn.Module, judged: Split, run: Run) -> Figure:
    """Every gate of `model`, all of them open: its price, beside what it saves of the loss."""
    sites, prices = gates.sites, gates.prices()
    with gates.attached(model):
        open_loss = _loss(model, judged, run, gates.values)
        benefits = -gates.values.grad.double().cpu()
        for block in run.track(sites.blocks, "Closing blocks one at a time"):
            with torch.no_grad():
                gates.values[sites.gate(block)] = 0.0
                benefits[sites.gate(block)] = _loss(model, judged, run) - open_loss
                gates.values[sites.gate(block)] = 1.0
    names = [name for name, part in sites.groups.items() for _ in range(part.stop - part.start)]
    table = pd.DataFrame(
        {
            "what": ["channel"] * sites.units + ["block"] * len(sites.blocks),
            "name": names + [block.name for block in sites.blocks],
            "price": prices.tolist(),
            "benefit": benefits.tolist(),
        }
    ).query("price > 0")
    said = [
        f"{(part.benefit > part.price).sum()} of {len(part)} {what}s"
        for what, part in table.groupby("what", sort=False)
    ]
    return Figure(
        "Price and benefit of what is left",
        f"{' and '.join(said)} that are left save more of the loss than they cost, on {len(judged)} "
        "validation pictures (channels to first order, blocks by closing each); training saw other pictures.",
        table,
        "price",
        "benefit",
        "points",
        colour="what",
        log=frozenset({"price"}),
        labels={"price": "price (nats)", "benefit": "rise of the loss without it (nats)"},
        references=(Reference("y", 0.0, "no use"),),
    )


def _loss(model: nn.Module, judged: Split, run: Run, values: Tensor | None = None) -> float:
    """Mean cross-entropy; with `values`, its gradient is added to theirs."""
    total = 0.0
    with torch.set_grad_enabled(values is not None):
        for images, labels in judged.batches(BATCH):
            answers = model(images.to(run.device))
            loss = F.cross_entropy(answers, labels.to(run.device), reduction="sum") / len(judged)
            if values is not None:
                loss.backward()
            total += loss.item()
    return total
