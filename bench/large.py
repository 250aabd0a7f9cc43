"""One slider released on every picture of the test set, not on the first thousand."""

from statistics import median
from typing import Any

from bench.sliders import QUESTION, fresh_plans, spread
from bench.subjects import Subject, start
from bench.timing import timed

LAYERS = 3


def measure(subject: Subject, rounds: int) -> dict[str, Any]:
    """Median over layers of medians over rounds; a slider of the layer was released before."""
    took, engine = timed(lambda: start(subject))
    medians = []
    for seed, slider in enumerate(spread(engine.sliders(QUESTION), LAYERS)):
        first, *plans = fresh_plans(slider, rounds + 1, seed)
        engine.exact(first)
        medians.append(median(timed(lambda plan=plan: engine.exact(plan))[0] for plan in plans))
    return {
        "images": len(subject.split),
        "slider_ms": 1000 * median(medians),
        "slowest_layer_ms": 1000 * max(medians),
        "engine_start_ms": 1000 * took,
    }
