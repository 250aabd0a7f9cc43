"""What pruning costs and saves, as the Prune page shows it."""

import pandas as pd
import streamlit as st

from core.evaluation import Evaluation
from core.whatif import Answer, Slider
from view import charts, latency
from view.charts import Bar, Card
from view.engine import Scene


def cards(scene: Scene, answer: Answer) -> list[Card]:
    """Accuracy, weights, MACs and bytes of `answer` beside the original's."""
    before, help = scene.whatif.original, {name: m.help for name, m in Evaluation.metrics().items()}
    cost, was = answer.cost, before.cost
    return [
        _accuracy(scene, answer),
        Card(
            "Weights",
            charts.count(cost.nonzero_parameters),
            _relative(cost.nonzero_parameters, was.nonzero_parameters),
            notes=(f"stored {charts.count(cost.parameters)}", f"sparsity {charts.percent(cost.sparsity)}"),
            help=help["nonzero_parameters"],
        ),
        Card(
            "MACs per picture",
            charts.count(cost.macs),
            _relative(cost.macs, was.macs),
            notes=_macs(scene, answer),
            help=help["macs"],
        ),
        Card(
            "File",
            charts.size(cost.size_bytes),
            _relative(cost.size_bytes, was.size_bytes),
            notes=(f"zipped {charts.size(cost.zipped_bytes)}", f"was {charts.size(was.zipped_bytes)} zipped"),
            help=help["size_bytes"],
        ),
        latency.card(scene),
    ]


def _accuracy(scene: Scene, answer: Answer) -> Card:
    low, high = answer.interval
    notes = [f"95 % {charts.span(answer.interval)}, n = {answer.n:,}"]
    if low <= answer.chance <= high:
        notes.append(f"chance ({charts.percent(answer.chance)})")
    return Card(
        "Accuracy" if answer.exact else "Accuracy, so far",
        charts.percent(answer.accuracy),
        f"{charts.points(answer.change.difference)} {charts.span(answer.change.interval, signed=True)}",
        charts.tone(answer.change.interval),
        tuple(notes),
        "On the test pictures. The change is against the original on the same pictures, with its paired "
        "95 % interval: grey while that holds zero",
    )


def _macs(scene: Scene, answer: Answer) -> tuple[str, ...]:
    was = charts.count(scene.whatif.original.cost.macs)
    if scene.plan.question == "remove":
        return (f"realised: channels are gone (was {was})",)
    return (
        f"stored; zeros skipped: {charts.count(answer.cost.theoretical_macs)} in theory",
        "as slow as before",
    )


def _relative(now: float, before: float) -> str:
    """ "-37.2 %" against before."""
    change = 100 * (now / before - 1) if before else 0.0
    return "unchanged" if now == before else f"{change:+.1f} %"


def bars(scene: Scene, by: str) -> list[Bar]:
    """One bar per slider, as wide as its share of the "weights" or "MACs"."""
    return [
        Bar(
            slider.name,
            slider.weights if by == "weights" else slider.macs,
            _share_kept(scene, slider),
            f"{index} {slider.name}: keeps {charts.percent(_share_kept(scene, slider), 0)}; "
            f"{slider.weights:,} weights, {charts.count(slider.macs)} MACs"
            + (f"; shared by {', '.join(slider.layers)}" if len(slider.layers) > 1 else ""),
        )
        for index, slider in enumerate(scene.sliders, start=1)
    ]


def _share_kept(scene: Scene, slider: Slider) -> float:
    """What really stays: whole filters, so a small step of a slider may take none."""
    asked = scene.plan.question
    return slider.kept(asked, scene.plan.sparsity(slider.name)) / slider.entries(asked)


def table(scene: Scene) -> pd.DataFrame:
    """The bars in numbers, and which layers share channels."""
    return pd.DataFrame(
        [
            {
                "slider": slider.name,
                "sparsity": scene.plan.sparsity(slider.name),
                "kept": slider.kept(scene.plan.question, scene.plan.sparsity(slider.name)),
                "width": slider.width,
                "weights": slider.weights,
                "MACs": slider.macs,
                "layers that share": ", ".join(slider.layers),
            }
            for slider in scene.sliders
        ]
    )


def status(answer: Answer) -> str:
    """Which pictures the numbers rest on."""
    if answer.exact:
        return f"exact on all {answer.n:,} test pictures"
    return f"first answer from {answer.n:,} test pictures; the exact one follows"


def exports(scene: Scene) -> None:
    """The plan as JSON that the shell replays, and as plain PyTorch."""
    st.download_button(
        "Recipe (JSON)",
        lambda: scene.plan.recipe().to_json(),
        "recipe.json",
        "application/json",
        help="Replayed by the shell: cli.py run",
        on_click="ignore",
    )
    st.download_button(
        "PyTorch code",
        lambda: scene.whatif.code(scene.plan),
        "prune.py",
        "text/x-python",
        help="Plain PyTorch that does the same to the same network",
        on_click="ignore",
    )
