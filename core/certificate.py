"""What is left of a proof about two networks: plain values, kept in a folder and read back."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from core.as_json import plain
from core.bundles import Split
from core.errors import CheckpointError, Stopped
from core.fates import CoreLine, fates, shortest, tally
from core.layers import private_copy
from core.method import brief
from core.proving.bounds import Bounds
from core.proving.changes import classify
from core.proving.network import ReluNetwork, unroll
from core.proving.proof import Answer, Literal, Reuse, Status
from core.run import Run
from core.verification import Property, Verdict

FILE = "certificate.json"
NETWORKS = ("original", "compressed")

Picture = tuple[float, ...]  # pixels in [0, 1], (C, H, W) laid out in a row


@dataclass(frozen=True)
class Finding:
    """About one other class: can the network be made to answer it?"""

    other: int
    status: Status
    seconds: float
    bound: float | None  # lower bound of the right logit less the other one; None where there is none
    reason: str
    work: Mapping[str, int]
    reuse: Mapping[str, int] | None  # see `core.proving.proof.Reuse`
    cores: int | None  # of its proof, without the empty one of bounds alone; None where there is no proof


@dataclass(frozen=True)
class Counterexample:
    """A picture that breaks the property, and what both networks make of it."""

    pixels: Picture
    distance: float  # largest change of a pixel
    logits: Mapping[str, tuple[float, ...]]  # by network


@dataclass(frozen=True)
class Side:
    """What was found about one network."""

    status: Status
    seconds: float
    predicted: int | None
    phases: tuple[tuple[int, ...], ...]  # of every ReLU around the picture: 1 on, -1 off, 0 undecided
    findings: tuple[Finding, ...]
    counterexample: Counterexample | None

    @property
    def work(self) -> dict[str, int]:
        """What all classes cost together."""
        return dict(sum((Counter(finding.work) for finding in self.findings), Counter()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return plain(asdict(self))


@dataclass(frozen=True)
class Certificate:
    """One picture, one property, both networks."""

    check: Mapping[str, Any]  # the property, see `Method.to_dict`
    label: int
    logits: Mapping[str, tuple[float, ...]]  # of the picture itself, by network
    original: Side
    compressed: Side
    scratch: Side | None  # the compressed network without the original's proof, where it was asked for
    cores: tuple[CoreLine, ...]  # of every class the shortest
    fates: Mapping[str, Mapping[str, int]]  # class -> status -> all cores, see `core.fates.WORDS`
    reuse: Mapping[str, float] | None
    changes: tuple[Mapping[str, int], ...]  # per hidden layer: kind of change -> neurons of the original
    speed_up: float | None
    finished: bool = True

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """What `to_dict` made."""
        sides = {name: _side(saved[name]) for name in (*NETWORKS, "scratch")}
        lines = tuple(
            CoreLine(line["other"], tuple(Literal(*each) for each in line["literals"]), line["status"])
            for line in saved["cores"]
        )
        changes, logits = tuple(saved["changes"]), _tuples(saved["logits"])
        return cls(**saved | sides | {"logits": logits, "cores": lines, "changes": changes})

    def save(self, folder: Path) -> None:
        """Write it into `folder`, in one go."""
        partial = folder / f"{FILE}.partial"
        partial.write_text(json.dumps(self.to_dict(), allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `save` wrote.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        try:
            return cls.from_dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder.name}: must be the folder of a certificate, got {brief(str(error))}"
            ) from error


@dataclass(frozen=True, eq=False)
class Comparison:
    """Verdicts about one picture: original, compressed with the original's proof, and without."""

    original: Verdict
    compressed: Verdict
    scratch: Verdict | None = None

    @property
    def reuse(self) -> Reuse | None:
        """What became of the original's proof, over all classes; None where nothing was to be reused."""
        return Reuse.total(self.compressed.answers.values())

    @property
    def speed_up(self) -> float | None:
        """Seconds from scratch for every second with the old proof."""
        return None if self.scratch is None else self.scratch.seconds / self.compressed.seconds


@dataclass(frozen=True, eq=False)
class Unasked(Verdict):
    """In the place of a verdict that a stopped run did not come to."""

    status: Status = "unknown"
    seconds: float = 0.0
    predicted: None = None
    answers: Mapping[int, Any] = field(default_factory=dict)
    bounds: None = None


def certify(
    check: Property,
    networks: Sequence[nn.Module],
    picture: Split,
    run: Run,
    reuse: bool = True,
    scratch: bool = False,
) -> Certificate:
    """Prove the original of the two `networks`, then the compressed one with what the first proof left.

    With `scratch`, the compressed one also without. Where `run` is stopped, what was found by then is
    kept, and the rest is unknown.

    Raises:
        UnsupportedModelError: a network cannot be reasoned about.
    """
    asked = [*networks, networks[1]] if scratch else list(networks)
    found: list[Verdict] = []
    try:
        for index, network in enumerate(asked):
            old = found[0].proof if reuse and index == 1 else None
            with run.step(index, len(asked)):
                found.append(check.check(network, picture, run, old))
                run.report(1.0, "Proving")  # what bounds alone decide says nothing itself
    except Stopped:
        return of(check, networks, picture, Comparison(*found, *[Unasked()] * (2 - len(found))), False)
    return of(check, networks, picture, Comparison(*found))


def of(
    check: Property, networks: Sequence[nn.Module], picture: Split, found: Comparison, finished: bool = True
) -> Certificate:
    """What was found about the original and the compressed of `networks`, as plain values."""
    named = dict(zip(NETWORKS, networks, strict=True))

    def side(verdict: Verdict) -> Side:
        return side_of(verdict, named, picture)

    left = phases(found.compressed.bounds) if found.compressed.bounds else ()
    lines = list(fates(found.original.answers, found.compressed.answers, left))
    return Certificate(
        check=check.to_dict(),
        label=int(picture.labels[0]),
        logits=_logits(named, picture, _pixels(picture)),
        original=side(found.original),
        compressed=side(found.compressed),
        scratch=None if found.scratch is None else side(found.scratch),
        cores=shortest(lines),
        fates=tally(lines),
        reuse=None if found.reuse is None else asdict(found.reuse) | {"rate": found.reuse.rate},
        changes=_changes(*(unroll(network, picture.pixels.shape[1:]) for network in networks)),
        speed_up=found.speed_up,
        finished=finished,
    )


def _changes(before: ReluNetwork, after: ReluNetwork) -> tuple[Mapping[str, int], ...]:
    """Per hidden layer, kind of change -> neurons; nothing where there are more layers, or fewer."""
    return tuple(classify(before, after).counts) if len(before.widths) == len(after.widths) else ()


def side_of(verdict: Verdict, networks: Mapping[str, nn.Module], picture: Split) -> Side:
    """What was found about one of the `networks`, and what all of them make of a counterexample to it."""
    at, broken = verdict.counterexample, None
    if at is not None:
        distance = (at - _pixels(picture)).abs().max().item()
        broken = Counterexample(tuple(at.flatten().tolist()), distance, _logits(networks, picture, at))
    return Side(
        verdict.status,
        verdict.seconds,
        verdict.predicted,
        phases(verdict.bounds) if verdict.bounds else (),
        tuple(_finding(other, answer) for other, answer in verdict.answers.items()),
        broken,
    )


def _pixels(picture: Split) -> Tensor:
    """(C, H, W) in [0, 1]."""
    return picture.pixels[0].double() / 255


@torch.no_grad()
def _logits(networks: Mapping[str, nn.Module], picture: Split, x: Tensor) -> dict[str, tuple[float, ...]]:
    """What all answer to pixels (C, H, W) in [0, 1], in double precision."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (picture.mean, picture.std))
    shown = ((x - mean) / std)[None]
    return {name: tuple(private_copy(net).double()(shown)[0].tolist()) for name, net in networks.items()}


def phases(bounds: Bounds) -> tuple[tuple[int, ...], ...]:
    """Of every ReLU of one box: 1 surely on, -1 surely off, 0 undecided."""
    return tuple(
        tuple(((low[0] >= 0).int() - ((high[0] <= 0) & (low[0] < 0)).int()).tolist())
        for low, high in zip(bounds.lows, bounds.highs, strict=True)
    )


def _finding(other: int, answer: Answer) -> Finding:
    return Finding(
        other,
        answer.status,
        answer.seconds,
        answer.bound if math.isfinite(answer.bound) else None,
        answer.reason,
        dict(answer.work),
        None if answer.reuse is None else asdict(answer.reuse),
        None if answer.proof is None else sum(map(bool, answer.proof.cores)),
    )


def _side(saved: Mapping[str, Any] | None) -> Side | None:
    if saved is None:
        return None
    broken = saved["counterexample"]
    if broken is not None:
        pixels, logits = tuple(broken["pixels"]), _tuples(broken["logits"])
        broken = Counterexample(**broken | {"pixels": pixels, "logits": logits})
    return Side(
        **saved
        | {
            "phases": tuple(map(tuple, saved["phases"])),
            "findings": tuple(Finding(**finding) for finding in saved["findings"]),
            "counterexample": broken,
        }
    )


def _tuples(values: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(each) for name, each in values.items()}
