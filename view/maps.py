"""Attribution maps of both networks for the Attributions page; `core.prepared` remembers them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import streamlit as st
import torch
from torch import Tensor, nn

from core.agreement import Agreement, agreement, noise_ceiling, random_floor
from core.attribution import ATTRIBUTIONS, AttributionMethod, answers, channel_sum, explain
from core.errors import UserError
from core.plan import Plan
from core.run import Run
from view import engine
from view import state as states
from view.engine import Scene
from view.url import method_from_text, method_to_text

DEFAULT = "integrated-gradients"
TARGETS = {"": "what A says", "label": "the label", "b": "what B says", "own": "A and B: each its own"}


def method() -> AttributionMethod:
    """The method of the present nouns; the default, and a notice, where they name none."""
    text = states.state().nouns.attribution
    try:
        return method_from_text(text or DEFAULT, ATTRIBUTIONS)
    except UserError as error:
        states.state().notice = str(error)
        states.state().history.now = replace(states.state().nouns, attribution="")
        st.rerun()


def save_method(chosen: AttributionMethod) -> None:
    states.change(attribution=method_to_text(chosen))


def logits(scene: Scene, of: Plan | nn.Module, places: Sequence[int]) -> Tensor:
    """(N, K) logits of a network, or of what a plan makes, for the test pictures at `places`."""
    with engine.slot():
        return answers(_network(scene, of), _images(scene, places))


def maps(
    scene: Scene,
    of: Plan | nn.Module,
    chosen: AttributionMethod,
    places: Sequence[int],
    targets: Tensor,
    run: Run,
) -> Tensor:
    """Signed maps (N, C, H, W) of a network, or of what a plan makes."""
    seed = states.state().nouns.seed
    with engine.slot():
        return explain(_network(scene, of), chosen, _images(scene, places), targets, run, seed)


def bounds(
    scene: Scene, chosen: AttributionMethod, places: Sequence[int], targets: Tensor, run: Run
) -> tuple[Agreement, Agreement]:
    """Random floor and noise ceiling of the original for these pictures."""
    given = (_network(scene, Plan()), chosen, _images(scene, places), targets, run, states.state().nouns.seed)
    with engine.slot():
        return random_floor(*given), noise_ceiling(*given)


def _network(scene: Scene, of: Plan | nn.Module) -> nn.Module:
    """What a plan makes of the network; one that removes nothing leaves the original, whatever it asks."""
    if isinstance(of, nn.Module):
        return of
    return engine.network(scene.key, of) if of.sparsities else scene.bundle.module


def _images(scene: Scene, places: Sequence[int]) -> Tensor:
    return scene.split.take(torch.tensor(list(places))).images


@dataclass(frozen=True, eq=False)
class Pair:
    """One picture, explained in both networks."""

    a: Tensor  # (1, C, H, W)
    b: Tensor
    targets: tuple[int, int]  # the explained class in A and in B
    said: tuple[int, int]  # what they answer
    sure: tuple[float, float]  # with which probability

    @property
    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Both maps summed over their channels, (H, W)."""
        return channel_sum(self.a)[0].numpy(), channel_sum(self.b)[0].numpy()

    @property
    def agreement(self) -> Agreement:
        return agreement(self.a, self.b)


def pair(
    scene: Scene, chosen: AttributionMethod, target: str, run: Run, b: Plan | nn.Module | None = None
) -> Pair:
    """The present picture in the original and in `b`, by default what the present plan makes.

    `target` is a key of `TARGETS` or a class's position.
    """
    place, b = [scene.image], scene.plan if b is None else b
    answers = scene.whatif.original.logits[place], logits(scene, b, place)
    said = tuple(int(each.nan_to_num().argmax()) for each in answers)
    sure = tuple(float(each.softmax(1).max()) for each in answers)
    targets = _targets(target, said, int(scene.split.labels[scene.image]))
    found = (
        maps(scene, each, chosen, place, torch.tensor([wanted]), run)
        for each, wanted in zip((Plan(), b), targets, strict=True)
    )
    return Pair(*found, targets, said, sure)


def _targets(target: str, said: tuple[int, int], label: int) -> tuple[int, int]:
    if target.isdigit():
        return int(target), int(target)
    return {"": (said[0], said[0]), "label": (label, label), "b": (said[1], said[1]), "own": said}[target]


def scaled(scene: Scene, mean: float) -> Plan:
    """The present plan with its sliders scaled to an average of `mean`; uniform where all are at zero."""
    plan, sliders = scene.plan, scene.sliders
    now = sum(plan.sparsity(slider.name) for slider in sliders) / max(len(sliders), 1)
    shape = {s.name: plan.sparsity(s.name) / now if now else 1.0 for s in sliders}
    return replace(plan, sparsities={name: min(mean * share, 0.95) for name, share in shape.items()})


def gallery_places(scene: Scene, plan: Plan, count: int) -> list[int]:
    """The first `count` test pictures whose answer `plan` does not change."""
    answer = scene.whatif.exact(plan)
    moved = set(answer.change.changed.tolist())
    return [place for place in range(len(scene.split)) if place not in moved][:count]


def gallery(
    scene: Scene, plan: Plan, chosen: AttributionMethod, count: int, run: Run
) -> list[tuple[int, np.ndarray, np.ndarray, float]]:
    """(place, map in A, map in B, rank correlation) where the answer is the same, most different first."""
    places = gallery_places(scene, plan, count)
    if not places:
        return []
    targets = scene.whatif.original.logits[places].argmax(1)
    with run.step(0, 2):
        a = maps(scene, Plan(), chosen, places, targets, run)
    with run.step(1, 2):
        b = maps(scene, plan, chosen, places, targets, run)
    scores = agreement(a, b).spearman.nan_to_num(nan=-1.0)
    drawn = channel_sum(a).numpy(), channel_sum(b).numpy()
    order = scores.argsort(stable=True).tolist()
    return [(places[i], drawn[0][i], drawn[1][i], scores[i].item()) for i in order]
