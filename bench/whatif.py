"""The live engine in numbers: sliders, removal, full forward; one network."""

import sys
from statistics import median
from typing import Any

from bench import machine, removal, speed
from bench.process import PeerProcess
from bench.sliders import ONE_THREAD, PLAIN, QUESTION, Sliders, spread, summary
from bench.subjects import Subject, start
from bench.timing import timed


def measure(subject: Subject, rounds: int = 5, layers: int | None = None) -> dict[str, Any]:
    """Everything about one network; at most `layers` of its sliders are timed."""
    before, starts = machine.load(), []
    with PeerProcess(subject) as plain, PeerProcess(subject, threads=1) as single:
        peers = {PLAIN: plain, ONE_THREAD: single}
        engine = start(subject)
        sliders = engine.sliders(QUESTION)
        found = Sliders(spread(sliders, layers), peers)
        for peer in peers.values():  # threads are started, memory is touched
            peer.ask("plain", {sliders[0].name: 1})
        for number in range(rounds):
            say(f"{subject.title}: round {number + 1} of {rounds}")
            took, engine = timed(lambda: start(subject))
            starts.append(took)
            found.round(engine, number, rounds)
        results = summary(found.ours, found.plain)
        say(f"{subject.title}: removal, full forward")
        results |= removal.measure(engine, plain, rounds)
        results |= speed.measure(subject, plain, rounds)
    return {
        "subject": subject.title,
        "images": len(subject.split),
        "rounds": rounds,
        **results,
        "engine_start_ms": 1000 * median(starts),
        "agreement_with_plain": found.agreement.share,
        "plans_compared": found.agreement.plans,
        "plain_threads": plain.threads,
        "machine": machine.describe(before),
    }


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
