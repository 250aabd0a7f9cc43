"""How much a long session holds on to: resident memory over many sliders moved."""

import json
import random
import subprocess
import sys
from typing import Any

from bench import machine
from bench.subjects import Subject, start
from core.plan import Plan
from core.whatif import WhatIf

MOVES = 200


def measure(subject: Subject, moves: int = MOVES, question: str = "remove") -> dict[str, Any]:
    """Growth of this process in MB from the first answer on, over so many moves; and over the last half."""
    engine, sizes = start(subject), []
    for plan in random_moves(engine, moves + 1, question):
        engine.exact(plan)
        sizes.append(machine.resident_bytes())
    return {
        "moves": moves,
        "memory_growth_mb": (sizes[-1] - sizes[0]) / 1e6,
        "memory_growth_last_half_mb": (sizes[-1] - sizes[moves // 2]) / 1e6,
    }


def measure_alone() -> dict[str, Any]:
    """`python -m bench memory`: in a process of its own, which holds nothing yet."""
    words = [sys.executable, "-m", "bench", "memory", "--json"]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def random_moves(engine: WhatIf, moves: int, question: str, seed: int = 0) -> list[Plan]:
    """What a person does: one slider at a time, wherever it stands, to anywhere; the others stay."""
    random_, levels = random.Random(seed), {}
    sliders, plans = engine.sliders(question), []
    for _ in range(moves):
        levels[random_.choice(sliders).name] = random_.randint(0, 90) / 100
        plans.append(Plan(question, None, levels))
    return plans
