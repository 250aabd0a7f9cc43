"""Linear RNN: where the low rank of learned changes comes from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.bundles import Setting
from core.figure import Figure
from core.lab import LABS, Lab
from core.method import number
from core.run import Run
from core.spectra import participation_ratio, singular_values

STRENGTHS = (0.0, 0.375, 0.75, 1.0)  # of the initial weights, as shares of the largest
SNAPSHOTS = 12  # of the singular values, during learning
VALUES = 5  # singular values that are drawn
SHUFFLES = 5  # of the initial weights
CONVERGED = 1e-3  # of the first loss
ROUNDING = 1e-12  # a singular value below it
NETWORK, THEORY = "network", "theory"
STOPPED = "No network learned the goal in these steps: a smaller learning rate or goal may help."
SCALINGS = {  # quantity -> its theory, relative to no initial weights (the last: to the first loss)
    "time to learn": lambda g: (1 - g**2) ** 2,
    "size of the change": lambda g: 1 - g**2,
    "loss once W0 is shuffled": lambda g: g**4 * (2 - g**2) ** 2,
}


@LABS.register
@dataclass(frozen=True)
class LinearRNN(Lab):
    """A linear recurrent network learns one number: its random weights change along one direction.

    N units settle at x = W x + m and give z = w x; gradient descent on (z - goal)^2 / 2 changes W
    alone, by y x^T in every step, where y = W^T y + w. W starts as independent numbers of variance
    g^2 / N, m and w are random and orthogonal, of length sqrt(N) and 1 / sqrt(N). The learning rate
    is scaled by (1 - g^2)^2, so that effective time, rate times steps, means the same for every g.
    Beside the network stands the theory for large N: third order in time for loss and singular
    values, and how time, size and the loss after shuffling the initial weights depend on g.

    Learning that makes an eigenvalue of W reach 1 has no state to settle at any more: it stops.

    Source: Schuessler et al., "The Interplay between Randomness and Structure during Learning in
    RNNs", NeurIPS 2020, arXiv:2006.11036, section 4 and its published code; the fixed point in the
    place of a long trial is ours.
    """

    name: ClassVar[str] = "linear-rnn"
    title: ClassVar[str] = "Linear RNN"

    gain: float = number(0.8, 0.1, 0.9, 0.05, help="Largest strength g of the random initial weights")
    goal: float = number(0.5, 0.1, 3.0, 0.1, help="The number that the network is to give")
    rate: float = number(0.03, 0.001, 0.1, 0.001, scale="log", help="Learning rate where g is 0")
    steps: int = number(200, 150, 1000, 10, help="Steps of gradient descent")
    units: int = number(256, 64, 512, 64, help="Units of the network")
    seeds: int = number(3, 1, 10, 1, help="Networks for every strength")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        histories, ends = [], []
        for seed in run.track(range(self.seeds), "Learning"):
            noise, enter, leave = draw(self.units)
            for share in run.track(STRENGTHS, "Learning"):
                gain = share * self.gain
                rate = self.rate * (1 - gain**2) ** 2
                learned = learn(gain * noise, enter, leave, self.goal, rate, self.steps)
                of = {"seed": seed, "gain": gain}
                histories.append(self._history(learned).assign(**of))
                ends.append(of | self._end(learned, rate, enter, leave))
        history, end = pd.concat(histories), pd.DataFrame(ends)
        middle = history.drop(columns="seed").groupby(["gain", "time"], as_index=False).median()
        beside = [
            theory(rows.time.to_numpy(), self.goal, gain).assign(gain=gain)
            for gain, rows in middle.groupby("gain")
        ]
        expected = pd.concat(beside, ignore_index=True)
        return [_losses(middle, expected, end), _values(middle, expected, end), _scalings(end)]

    def _history(self, learned: "Learned") -> pd.DataFrame:
        """One row per step: effective time, loss relative to the first, singular values of some steps."""
        table = pd.DataFrame({"time": self.rate * np.arange(len(learned.outputs))})
        table["loss"] = (1 - learned.outputs / self.goal) ** 2
        for index in range(VALUES):
            table[f"s{index + 1}"] = pd.Series({step: s[index] for step, s in learned.values.items()})
        return table

    def _end(self, learned: "Learned", rate: float, enter: Tensor, leave: Tensor) -> dict[str, float]:
        """What one network came to; its time is rate times steps."""
        losses = (1 - learned.outputs / self.goal) ** 2
        below = np.flatnonzero(losses < CONVERGED)
        s = singular_values(learned.change)
        shuffled = [shuffled_output(learned, enter, leave) for _ in range(SHUFFLES)]
        time, size, loss = SCALINGS
        return {
            "stable": learned.stable,
            "s1": s[0],
            "s2": s[1],
            "participation_ratio": participation_ratio(s),
            time: rate * below[0] if len(below) else np.nan,
            size: float(np.linalg.norm(s)),
            loss: float(np.median([(1 - z / self.goal) ** 2 for z in shuffled])),
        }


@dataclass(frozen=True, eq=False)
class Learned:
    """How one network learned."""

    outputs: np.ndarray  # (steps + 1,) z, the untrained one first
    values: dict[int, np.ndarray]  # step -> the first singular values of the change
    start: Tensor  # (N, N) W0
    change: Tensor  # (N, N) W - W0
    stable: bool  # False where it stopped, since an eigenvalue reached 1


def draw(units: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (N, N) of variance 1 / N, m of length sqrt(N), w of length 1 / sqrt(N), orthogonal to m."""
    noise = torch.randn(units, units, dtype=torch.float64) / math.sqrt(units)
    enter, leave = torch.randn(2, units, dtype=torch.float64)
    enter *= math.sqrt(units) / enter.norm()
    leave -= (leave @ enter) / units * enter
    return noise, enter, leave / (leave.norm() * math.sqrt(units))


def learn(start: Tensor, enter: Tensor, leave: Tensor, goal: float, rate: float, steps: int) -> Learned:
    """Gradient descent on W from `start`; what is kept up to date is the inverse of 1 - W.

    Every step adds an outer product to W, so the inverse follows by the Sherman-Morrison formula. Its
    denominator is the factor of det(1 - W), and passes 0 when a real eigenvalue of W passes 1.
    """
    change = torch.zeros_like(start)
    inverse = torch.linalg.inv(torch.eye(len(start), dtype=start.dtype) - start)
    stable = bool(torch.linalg.eigvals(start).real.max() < 1)
    outputs, values = [float(leave @ inverse @ enter)], {}
    for step in range(1, steps + 1) if stable else ():
        state, adjoint = inverse @ enter, leave @ inverse
        size = rate * (goal - float(leave @ state))
        along, across = inverse @ adjoint, state @ inverse
        denominator = 1 - size * float(state @ along)
        if denominator <= 0:
            stable = False
            break
        change += size * torch.outer(adjoint, state)
        inverse += size / denominator * torch.outer(along, across)
        outputs.append(float(leave @ inverse @ enter))
        if step % (steps // SNAPSHOTS) == 0:
            values[step] = singular_values(change)[:VALUES]
    values[len(outputs) - 1] = singular_values(change)[:VALUES]
    return Learned(np.array(outputs), values, start, change, stable)


def shuffled_output(learned: Learned, enter: Tensor, leave: Tensor) -> float:
    """z of a network that keeps the learned change but has the entries of its initial weights shuffled."""
    start = learned.start.flatten()[torch.randperm(learned.start.numel())].view_as(learned.start)
    system = torch.eye(len(start), dtype=start.dtype) - start - learned.change
    return float(leave @ torch.linalg.solve(system, enter))


def theory(time: np.ndarray, goal: float, gain: float) -> pd.DataFrame:
    """Loss, of the first, and two singular values at effective `time`, as long as z is below the goal.

    To third order in time, for many units. Rows come in the order of `time`.
    """
    beta, second, third = 1 / (1 - gain**2), time - time**2 / 2, time**3 / 6
    z = goal * (second + third * (1 + 8 * goal**2 * beta))
    s1 = goal / beta * (second + third * (1 + 3.5 * goal**2 * beta))
    table = pd.DataFrame({"time": time, "loss": (1 - z / goal) ** 2, "s1": s1, "s2": goal**3 * time**3 / 12})
    return table[np.cumprod(z <= goal).astype(bool)]


# ------------------------------------------------------------------------------------------ figures


def _losses(middle: pd.DataFrame, expected: pd.DataFrame, end: pd.DataFrame) -> Figure:
    halved = middle[middle.loss < 0.5].groupby("gain").time.first()
    times = ", ".join(f"{time:.2f} (g = {gain:.2g})" for gain, time in halved.items())
    finding = f"In effective time, half the loss is gone at {times}" if times else "The loss was never halved"
    if stopped := (~end.stable).sum():
        finding += f"; {stopped} networks stopped, an eigenvalue having reached 1"
    both = pd.concat([middle.assign(curve=NETWORK), expected.assign(curve=THEORY)])
    return Figure(
        "Loss in effective time",
        f"{finding}.",
        _named(both[["gain", "time", "loss", "curve"]]),
        "time",
        "loss",
        colour="curve",
        panel="strength",
        labels={"time": "effective time, rate times steps", "loss": "loss, of the first"},
    )


def _values(middle: pd.DataFrame, expected: pd.DataFrame, end: pd.DataFrame) -> Figure:
    names = {f"s{index + 1}": f"s{index + 1}" for index in range(VALUES)}
    of_theory = {"s1": "s1, theory", "s2": "s2, theory"}
    table = pd.concat(
        rows.rename(columns=which).melt(["gain", "time"], list(which.values()), "value", "size").dropna()
        for rows, which in ((middle, names), (expected, of_theory))
    )
    ends = end[end.stable].groupby("gain")[["s1", "s2", "participation_ratio"]].median()
    said = ", ".join(f"{row.s1:.2f} and {row.s2:.3f} (g = {gain:.2g})" for gain, row in ends.iterrows())
    finding = (
        f"The first two end at {said}: participation ratio at most {ends.participation_ratio.max():.3f}."
    )
    return Figure(
        "Singular values of the change",
        finding if len(ends) else STOPPED,
        _named(table[table["size"] > ROUNDING]),
        "time",
        "size",
        colour="value",
        panel="strength",
        log=frozenset({"size"}),
        labels={"time": "effective time, rate times steps", "size": "singular value of W - W0"},
    )


def _scalings(end: pd.DataFrame) -> Figure:
    """Medians of the networks that did not stop; time and size relative to g = 0."""
    middle = end.where(end.stable)[list(SCALINGS)].groupby(end.gain).median()
    time, size, _ = SCALINGS
    middle[[time, size]] /= middle.loc[0.0, [time, size]]
    rows = [
        {"quantity": name, "gain": gain, "curve": curve, "relative": value}
        for name, expected in SCALINGS.items()
        for gain in middle.index
        for curve, value in ((NETWORK, middle.loc[gain, name]), (THEORY, expected(gain)))
    ]
    finding = STOPPED
    for gain, row in middle.dropna().tail(1).iterrows():
        said = ", ".join(f"{name} {row[name]:.2f} (theory {SCALINGS[name](gain):.2f})" for name in SCALINGS)
        finding = f"At g = {gain:.2g}, relative to g = 0 (the loss: to the first one): {said}."
    return Figure(
        "What the strength of the initial weights does",
        finding,
        pd.DataFrame(rows),
        "gain",
        "relative",
        colour="curve",
        panel="quantity",
        labels={"gain": "strength g of the initial weights", "relative": "relative value"},
    )


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """With a column of words for the strength, by which the panels are told apart."""
    return table.assign(strength=[f"g = {gain:.2g}" for gain in table.gain])
