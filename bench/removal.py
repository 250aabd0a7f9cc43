"""Channels removed: Torch-Pruning's pruner and an evaluation of the smaller network, against ours."""

from functools import partial
from statistics import median
from typing import Any

from bench.sliders import Agreement, Peer, classes, fresh_plans, removed_filters, spread
from bench.timing import timed, turns
from core.errors import UnsupportedModelError
from core.whatif import Slider, WhatIf


def measure(engine: WhatIf, peer: Peer, rounds: int) -> dict[str, Any]:
    """One layer a round; empty for a network in which no layer's channels are its own.

    Only such layers: in a group of several, Torch-Pruning and we rank the channels differently.
    """
    chosen = spread(alone(engine), rounds)
    if not chosen:
        return {}
    agreement, taken = Agreement(), []
    peer.ask("smaller", chosen[0].name, 1)
    for number in range(rounds):
        slider = chosen[number % len(chosen)]
        first, plan = fresh_plans(slider, 2, seed=number, question="remove")
        engine.exact(first)
        ((name, count),) = removed_filters(plan, [slider]).items()
        ask = partial(timed, partial(classes, engine, plan))
        taken.append(turns({"ours": ask, "peer": partial(peer.ask, "smaller", name, count)}, number))
        agreement.add(taken[-1]["ours"][1], taken[-1]["peer"][1])
    ours, theirs = (median(turn[who][0] for turn in taken) for who in ("ours", "peer"))
    return {
        "removal_ratio": theirs / ours,
        "removal_ms": 1000 * ours,
        "torch_pruning_ms": 1000 * theirs,
        "agreement_with_torch_pruning": agreement.share,
    }


def alone(engine: WhatIf) -> list[Slider]:
    """Sliders whose channels belong to one layer."""
    try:
        return [slider for slider in engine.sliders("remove") if len(slider.layers) == 1]
    except UnsupportedModelError:
        return []
