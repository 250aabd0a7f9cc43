"""What pruning costs and saves, as the Prune page shows it."""

from dataclasses import replace

import pandas as pd
import streamlit as st

from core.cost import Cost
from core.evaluation import Evaluation
from core.plan import Plan
from core.run import Progress
from core.whatif import EVALUATING, Answer, Slider
from view import charts, latency
from view import state as states
from view.charts import Bar, Card
from view.engine import Scene


def accuracy(answer: Answer) -> Card:
    """What is right of the pictures looked at so far, and how that changed."""
    low, high = answer.interval
    if answer.exact:
        notes = [f"95 % {charts.span(answer.interval)}, n = {answer.n:,}"]
    else:
        notes = [f"all pictures: 95 % {charts.span(answer.remaining)}", f"so far n = {answer.n:,}"]
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


def costs(scene: Scene, plan: Plan) -> list[Card]:
    """Weights, MACs, bytes and time of what `plan` leaves, beside the original's."""
    cost, was = scene.whatif.cost(plan), scene.whatif.original.cost
    return [*cost_cards(cost, was, _macs(plan, cost, was)), latency.card(scene)]


def cost_cards(cost: Cost, was: Cost, macs: tuple[str, ...]) -> list[Card]:
    """Weights, MACs, with `macs` as its notes, and bytes of a network beside those it had before."""
    help = {name: metric.help for name, metric in Evaluation.metrics().items()}
    return [
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
            notes=macs,
            help=help["macs"],
        ),
        Card(
            "File",
            charts.size(cost.size_bytes),
            _relative(cost.size_bytes, was.size_bytes),
            notes=(f"zipped {charts.size(cost.zipped_bytes)}", f"was {charts.size(was.zipped_bytes)} zipped"),
            help=help["size_bytes"],
        ),
    ]


def last(scene: Scene) -> list[Card]:
    """The cards of the plan measured last, dimmed, while those of the present one are worked out."""
    answer = measured(scene)
    if answer is None:
        labels = ("Accuracy", "Weights", "MACs per picture", "File", "Latency")
        return [Card(label, "...", dim=True) for label in labels]
    return [replace(card, dim=True) for card in (accuracy(answer), *costs(scene, answer.plan))]


def measured(scene: Scene) -> Answer | None:
    """The last answer about this network, whatever its plan."""
    key, answer = states.state().kept.get("answer") or ("", None)
    return answer if key == scene.key else None


def _macs(plan: Plan, cost: Cost, was: Cost) -> tuple[str, ...]:
    if plan.question == "remove":
        return (f"realised: channels are gone (was {charts.count(was.macs)})",)
    return (f"stored; zeros skipped: {charts.count(cost.theoretical_macs)} in theory", "as slow as before")


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


def working(progress: Progress) -> str:
    """How far the answer is, while there is none: its pictures, or the scores that it waits for."""
    share = charts.percent(progress.fraction, 0)
    return f"{share} of the pictures" if progress.message == EVALUATING else f"{progress.message}: {share}"


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
