"""A finished proof on the screen: verdicts, the counterexample, classes, cores, certified accuracy."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.bundles import Split
from core.certificate import Certificate, Counterexample, Finding, Side
from core.fates import WORDS, CoreLine
from core.figure import Figure
from view import charts, pictures
from view.neurons import NAMES

SIGNS = {"proved": ("✓", "kept"), "refuted": ("✗", "loss"), "unknown": ("?", "grey")}
SHORTEST_S = 0.1  # times below say nothing about speed
TITLES = {"proved": "Proved robust", "refuted": "Not robust", "unknown": "Unknown"}
WRONG = "Answered wrongly"
UNITS = {
    "bounds": "bound",
    "lps": "linear program",
    "cores": "core",
    "nodes": "node",
    "boxes": "box",
}  # kind of work -> its name for people
HEADLINES = {
    ("proved", "proved"): "Yes: both networks keep their answer on every picture this close.",
    ("proved", "refuted"): "No: the original keeps its answer on every picture this close, the compressed "
    "network does not.",
    (
        "proved",
        "unknown",
    ): "Not shown: the original keeps its answer; of the compressed network neither a proof "
    "nor a counterexample was found.",
    (
        "refuted",
        "proved",
    ): "It has gained one: the original does not keep its answer, the compressed network does.",
    ("refuted", "refuted"): "There was none to keep: neither network keeps its answer.",
    ("refuted", "unknown"): "There was none to keep: the original does not keep its answer.",
    ("unknown", "proved"): "It has one; of the original neither a proof nor a counterexample was found.",
    ("unknown", "refuted"): "It has none; of the original neither a proof nor a counterexample was found.",
    (
        "unknown",
        "unknown",
    ): "Nobody knows yet: neither a proof nor a counterexample was found for either network.",
}  # (original, compressed) -> does it still deserve the certificate?


def headline(found: Certificate) -> str:
    return HEADLINES[found.original.status, found.compressed.status]


def badges(found: Certificate, classes: Sequence[str], dim: bool = False) -> str:
    """Both verdicts side by side, in words, with what they cost."""
    shown = ""
    for role, side in (("a", found.original), ("b", found.compressed)):
        words = sentence(found, side, classes)
        if _moved(side) and not dim:
            words += " It is shown below."
        shown += _badge(found, role, words, side)
    return f'<div class="ps-verdicts{" ps-dim" * dim}">{shown}</div>'


def _moved(side: Side) -> bool:
    """Is there a counterexample other than the picture itself?"""
    return side.counterexample is not None and side.counterexample.distance > 0


def _badge(found: Certificate, role: str, words: str, side: Side) -> str:
    sign, tone = SIGNS[side.status]
    wrong = side.status == "refuted" and side.predicted != found.label
    costs = [f"{side.seconds:.2f} s"]
    costs += [many(number, UNITS.get(kind, kind)) for kind, number in side.work.items() if number]
    return (
        f'<div class="ps-verdict {role}"><span class="sign ps-{tone}" aria-hidden="true">{sign}</span>'
        f"<div><small>{NAMES[role]}</small><b class=ps-{tone}>{WRONG if wrong else TITLES[side.status]}</b>"
        f'<p>{escape(words)}</p><p class="n">{" · ".join(costs)}</p></div></div>'
    )


def many(number: int, unit: str) -> str:
    """ "1 box", "1,024 boxes"."""
    return f"{number:,} {unit}" + ("" if number == 1 else "es" if unit.endswith("x") else "s")


def sentence(found: Certificate, side: Side, classes: Sequence[str]) -> str:
    """What a verdict means."""
    radius, label = f"{found.check['radius']:g}", classes[found.label]
    if side.status == "proved":
        which = "another class"
        if found.check["classes"] == "runner-up" and side.findings:
            which = f"{classes[side.findings[0].other]}, the runner-up; other classes were not asked about"
        return f"No picture whose pixels all lie within {radius} of this one's is answered with {which}."
    if side.status == "refuted":
        if side.predicted != found.label:
            return f"The picture itself is answered with {classes[side.predicted]}, not {label}."
        said = classes[int(np.argmax(side.counterexample.logits[_name(found, side)]))]
        return f"A picture within {radius} of this one is answered with {said}, not {label}."
    if side.predicted is None:
        return "It was stopped before this network's turn was over."
    left = [finding for finding in side.findings if finding.status == "unknown"]
    reasons = "; ".join(dict.fromkeys(finding.reason for finding in left if finding.reason))
    return f"Neither was found for {len(left)} of {len(side.findings)} other classes" + (
        f": {reasons}." if reasons else "."
    )


def _name(found: Certificate, side: Side) -> str:
    return "original" if side is found.original else "compressed"


def helped(found: Certificate) -> str:
    """What the old proof was good for, and how much faster it made the new one."""
    words = []
    counts = counted(found)
    if kept := holding(counts):
        held, parts = kept
        new = counts["new"]
        words.append(
            f"Of the original's {parts:,} cores {held:,} still hold ({charts.percent(held / parts, 0)}), "
            f"{parts - held:,} do not; {new:,} new ones were needed."
        )
    if found.scratch is not None:
        took = found.compressed.seconds, found.scratch.seconds
        words.append(
            f"The compressed network took {took[0]:.2f} s with the original's proof at hand, {took[1]:.2f} s "
            f"from scratch: {found.speed_up:.1f} times as fast."
            if max(took) > SHORTEST_S
            else "With and without the original's proof it took a moment: nothing to compare."
        )
    if "proved" in (found.original.status, found.compressed.status):
        words.append("Proved means: verified up to a tolerance of 1e-6.")
    return " ".join(words)


def counted(found: Certificate) -> Counter:
    """Status -> cores of all classes."""
    return sum((Counter(counts) for counts in found.fates.values()), Counter())


def holding(counts: Mapping[str, int]) -> tuple[int, int] | None:
    """(cores of the original that hold, all that were tried); None where none was."""
    tried = {status: number for status, number in counts.items() if status not in ("new", "not used")}
    held = tried.get("valid", 0) + tried.get("trivial", 0)
    return (held, sum(tried.values())) if tried else None


def counterexamples(found: Certificate, picture: Split, classes: Sequence[str]) -> str:
    """The picture, each counterexample, what differs, and what both networks make of them."""
    shown: dict[tuple[float, ...], str] = {}
    for name, side in (("A", found.original), ("B", found.compressed)):
        if _moved(side):
            held = shown.get(side.counterexample.pixels)
            shown[side.counterexample.pixels] = f"{held} and {name}" if held else name
    sides = {
        side.counterexample.pixels: side.counterexample
        for side in (found.compressed, found.original)
        if side.counterexample is not None
    }
    return "".join(_broken(found, sides[pixels], of, picture, classes) for pixels, of in shown.items())


def _broken(
    found: Certificate, broken: Counterexample, of: str, picture: Split, classes: Sequence[str]
) -> str:
    shape = picture.pixels.shape[1:]
    before, after = picture.pixels[0].double() / 255, torch.tensor(broken.pixels).double().view(shape)
    change, label = (after - before).mean(0).numpy(), classes[found.label]
    times = f"{1 / broken.distance:.0f}"
    cells = [
        charts.figure(drawn(before), f"The picture: {label}", "as it is", f"The picture, a {label}"),
        charts.figure(
            drawn(after),
            f"Counterexample for {of}",
            f"no pixel moved by more than {broken.distance:.4g}",
            f"A picture that looks much the same and breaks the property of network {of}",
        ),
        charts.figure(
            pictures.signed(change, broken.distance),
            "What differs",
            f"drawn {times} times as strong as it is",
            f"Difference of the two pictures, amplified {times} times: red is lighter, blue darker",
            below=charts.scale(broken.distance, "RdBu_r"),
        ),
    ]
    return (
        f'<div class="ps-row ps-three ps-broken">{"".join(cells)}</div>{_answers(found, broken, of, classes)}'
    )


def _answers(found: Certificate, broken: Counterexample, of: str, classes: Sequence[str]) -> str:
    """Both networks' answers to both pictures."""
    rows = []
    for name, title in (("original", "A original"), ("compressed", "B compressed")):
        cells = "".join(
            f"<td>{_said(logits[name], found.label, classes)}</td>"
            for logits in (found.logits, broken.logits)
        )
        rows.append(f"<tr><th>{title} says</th>{cells}</tr>")
    head = f"<tr><th></th><th>to the picture</th><th>to the counterexample for {of}</th></tr>"
    return f'<table class="ps-table">{head}{"".join(rows)}</table>'


def _said(logits: Sequence[float], label: int, classes: Sequence[str]) -> str:
    """ "3 (99.1 %)", with a cross where that is wrong, and what is left of the right class."""
    odds = torch.tensor(logits).softmax(0)
    said = int(odds.argmax())
    words = f"{escape(classes[said])} ({charts.percent(odds[said].item())})"
    if said == label:
        return f"{words} ✓"
    right = f"{escape(classes[label])}: {charts.percent(odds[label].item())}"
    return f'<span class="ps-loss">{words} ✗</span> {right}'


def drawn(pixels: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3) uint8: 256 shades, for the eye."""
    return pictures.picture((pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy())


def by_class(found: Certificate, classes: Sequence[str]) -> pd.DataFrame:
    """A row for every other class that was asked about."""
    sides = {
        name: {each.other: each for each in side.findings}
        for name, side in (("A original", found.original), ("B compressed", found.compressed))
    }
    rows = []
    for other in dict.fromkeys(other for findings in sides.values() for other in findings):
        row: dict[str, object] = {"other class": classes[other]}
        for name, findings in sides.items():
            each = findings.get(other)
            row[name] = f"{SIGNS[each.status][0]} {each.status}{_by(each)}" if each else "not asked"
        kept = holding(found.fates.get(str(other), {}))
        row["cores that hold"] = f"{kept[0]} of {kept[1]}" if kept else ""
        for column, value in (("bound", "bound"), ("ms", "seconds")):
            for name, findings in sides.items():
                known = getattr(findings[other], value) if other in findings else None
                row[f"{column} {name[0]}"] = known if known is None or value == "bound" else 1000 * known
        rows.append(row)
    return pd.DataFrame(rows)


def _by(each: Finding) -> str:
    """By what it was proved."""
    if each.status != "proved":
        return ""
    for number, unit in ((each.cores, "core"), (each.work.get("boxes"), "box")):
        if number:
            return f", {many(number, unit)}"
    return ", bounds alone"


def cores(lines: Sequence[CoreLine], classes: Sequence[str]) -> pd.DataFrame:
    """A row for every core."""
    return pd.DataFrame(
        {
            "other class": [classes[line.other] for line in lines],
            "status": [line.status for line in lines],
            "size": [len(line.literals) for line in lines],
            "phases that exclude each other": [phrase(line) for line in lines],
        }
    )


def phrase(line: CoreLine) -> str:
    """ "layer 2, unit 7 on; layer 1, unit 3 off"."""
    return "; ".join(
        f"layer {layer + 1}, unit {neuron} {'on' if phase > 0 else 'off'}"
        for layer, neuron, phase in line.literals
    )


def fates(found: Certificate) -> str:
    """How many cores met which fate, and what that means."""
    counts = counted(found)
    rows = "".join(
        f"<tr><th>{status}</th><td>{counts[status]:,}</td><th>{escape(words)}</th></tr>"
        for status, words in WORDS.items()
        if counts[status]
    )
    return f'<table class="ps-table">{rows}</table>'


def curve(standing: pd.DataFrame, seconds: float) -> Figure:
    """Certified accuracy against the radius."""
    last = standing.radius.max()
    ends: Mapping[str, pd.Series] = {
        row["network"]: row for _, row in standing[standing.radius == last].iterrows()
    }
    said = ", ".join(f"{name} {charts.percent(row.certified, 0)}" for name, row in ends.items())
    n = int(standing.n.max())
    unknown = int(standing.unknown.sum())
    return Figure(
        "Certified accuracy",
        f"Share of pictures whose answer is proved: at radius {last:g} {said} (n = {n}; at most {seconds:g} "
        f"s for every other class; {unknown} of {int(standing.n.sum())} answers are unknown).",
        standing,
        "radius",
        "certified",
        colour="network",
        low="low",
        high="high",
        percent=frozenset({"certified"}),
        labels={
            "certified": "answers proved right all around",
            "radius": "radius: largest change of a pixel",
        },
    )
