"""LSTM rows: the recurrent weights of a network that reads pictures row by row."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from torch import Tensor, nn

from core import spectra
from core.bundles import DATASETS, Setting, Split
from core.evaluation import correct, logits
from core.factors import CHANGE, WEIGHTS, averaged, enough, own_accuracy, truncation_curves
from core.figure import Figure, Reference
from core.lab import LABS, Lab
from core.method import number
from core.run import Run
from core.training import Classification, Schedule, fit


@LABS.register
@dataclass(frozen=True)
class LSTMRows(Lab):
    """An LSTM learns digits row by row: its recurrent weights change in few directions.

    The paper's experiment on sentiment, in small: one layer reads the eight rows of a picture one
    after the other, and a linear layer reads its last state. It is trained with Adam at a constant
    rate of 0.01 / units. The matrix is that of the recurrent weights with the four gates stacked,
    (4 N, N). Then it alone is truncated: its initial value plus the best rank-r part of its change,
    or the best rank-r part of what it became. The weights that read the pictures stay.

    Source: Schuessler et al., "The Interplay between Randomness and Structure during Learning in
    RNNs", NeurIPS 2020, arXiv:2006.11036 (two layers of 256 units on sentences, 500 epochs).
    """

    name: ClassVar[str] = "lstm-rows"
    title: ClassVar[str] = "LSTM rows"

    units: int = number(64, 16, 256, 8, help="Units of the LSTM")
    epochs: int = number(30, 2, 500, 1, help="Passes over the training pictures")
    seeds: int = number(1, 1, 5, 1, help="Networks trained")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        data = DATASETS["digits"]().load()
        schedule = Schedule(
            epochs=self.epochs,
            learning_rate=0.01 / self.units,
            schedule="constant",
            optimizer="adamw",  # without weight decay: Adam
            batch_size=32,
            weight_decay=0.0,
            crop=0,
            flip=False,
        )
        matrices, curves = [], []
        for _ in run.track(range(self.seeds), "Training"):
            network = RowReader(data.shape[2], self.units, len(data.classes))
            before = _recurrent(network).double().clone()
            fit(network, data.train, Classification(), schedule, run)
            matrices.append((before, _recurrent(network).double().clone()))
            curves.append(_curves(network, *matrices[-1], data.validation))
        return [_spectra(*matrices[0]), _truncation(averaged(pd.concat(curves)), len(data.validation))]


class RowReader(nn.Module):
    """An LSTM over the rows of a picture (N, 1, H, W), and a linear layer on its last state."""

    def __init__(self, width: int, units: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, units, batch_first=True)
        self.linear = nn.Linear(units, classes)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.lstm(images[:, 0])
        return self.linear(states[:, -1])


def _recurrent(network: RowReader) -> Tensor:
    return network.lstm.weight_hh_l0.detach()


def _curves(network: RowReader, before: Tensor, after: Tensor, split: Split) -> pd.DataFrame:
    network = copy.deepcopy(network)

    def accuracy(weight: Tensor) -> float:
        _recurrent(network).copy_(weight)
        return correct(logits(network, split), split.labels).double().mean().item()

    return truncation_curves(before, after, accuracy)


def _spectra(before: Tensor, after: Tensor) -> Figure:
    values = {
        name: spectra.singular_values(matrix)
        for name, matrix in (("W0, before", before), ("W, after", after), ("W - W0", after - before))
    }
    rows = [
        {"matrix": name, "number": number, "value": value}
        for name, s in values.items()
        for number, value in enumerate(s, 1)
    ]
    said = ", ".join(f"{spectra.participation_ratio(s):.1f} ({name})" for name, s in values.items())
    chance = spectra.random_participation(*before.shape)
    return Figure(
        "Spectra of the recurrent weights",
        f"Participation ratios of {min(before.shape)}: {said}; a random matrix of that shape {chance:.1f}.",
        pd.DataFrame(rows),
        "number",
        "value",
        colour="matrix",
        labels={"number": "number of the singular value", "value": "singular value"},
    )


def _truncation(table: pd.DataFrame, n: int) -> Figure:
    ranks, own = enough(table), own_accuracy(table)
    return Figure(
        "Accuracy with truncated change and truncated weights",
        f"Within one point of {own:.1%} (n = {n}) from rank {ranks[CHANGE]} of the change of the recurrent "
        f"weights, and from rank {ranks[WEIGHTS]} of the weights.",
        table,
        "rank",
        "accuracy",
        colour="what",
        low="lowest",
        high="highest",
        percent=frozenset({"accuracy"}),
        labels={"rank": "rank of the recurrent weights", "accuracy": "accuracy on validation pictures"},
        references=(Reference("y", own, "as trained"),),
    )
