"""The live engine in numbers: sliders, atlas, prediction, removal, full forward; one network."""

from statistics import median
from typing import Any

from bench import atlas, machine, prediction, removal, speed
from bench.process import PeerProcess
from bench.sliders import ONE_THREAD, PLAIN, QUESTION, Sliders, spread, summary
from bench.subjects import Subject, start
from bench.timing import say, timed
from core.whatif import WhatIf

CHECKED = 3  # plans of several layers, and cells of the atlas, that the plain way works out too


def measure(
    subject: Subject, rounds: int = 5, layers: int | None = None, atlas_rounds: int | None = None
) -> dict[str, Any]:
    """Everything about one network; at most `layers` of its sliders are timed, of the atlas all."""
    before, starts, surveys = machine.load(), [], []
    with PeerProcess(subject) as plain, PeerProcess(subject, threads=1) as single:
        engine = start(subject)
        sliders = engine.sliders(QUESTION)
        found = Sliders(spread(sliders, layers), {PLAIN: plain, ONE_THREAD: single})
        for peer in found.peers.values():  # threads are started, memory is touched
            peer.ask("plain", {sliders[0].name: 1})
        for number in range(rounds):
            say(f"{subject.title}: round {number + 1} of {rounds}")
            took, engine = timed(lambda: start(subject))
            starts.append(took)
            found.round(engine, number, rounds)
            if atlas_rounds is None or number < atlas_rounds:
                surveys.append(atlas.survey(subject))
        say(f"{subject.title}: predictions, removal, full forward")
        results = summary(found.ours, found.plain)
        results |= surveyed(engine, surveys, found, subject)
        results |= removal.measure(engine, plain, rounds)
        results |= speed.measure(engine, subject, plain, rounds)
    return {
        "subject": subject.title,
        "images": len(subject.split),
        "rounds": rounds,
        **results,
        "first_images": found.first_images,
        "engine_start_ms": 1000 * median(starts),
        "agreement_with_plain": found.agreement.share,
        "plans_compared": found.agreement.plans,
        "plain_threads": plain.threads,
        "machine": machine.describe(before),
    }


def surveyed(engine: WhatIf, surveys: list[atlas.Survey], found: Sliders, subject: Subject) -> dict[str, Any]:
    """What the atlas took, what is predicted from it, and how both stand against the plain way."""
    prediction.compare(engine, found.peers[PLAIN], found.agreement, CHECKED)
    if not surveys:
        return {}
    known, sliders = surveys[-1].atlas, engine.sliders(QUESTION)
    return {
        **atlas.summary(surveys, found.plain[PLAIN], found.plain[ONE_THREAD]),
        "atlas_cells_checked": CHECKED,
        "atlas_cells_equal": atlas.equal_cells(
            known, sliders, found.peers[PLAIN], subject.split.labels, CHECKED
        ),
        **prediction.measure(engine, known),
    }
