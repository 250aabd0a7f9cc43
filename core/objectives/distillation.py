"""Distillation: learn from another network's answers, not only from which one is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from torch import nn

from core.bundles import Setting
from core.distillation import divergence
from core.evaluation import logits
from core.figure import Figure
from core.layers import private_copy
from core.objective import OBJECTIVES, Objective
from core.run import Run
from core.training import Schedule, Task
from core.transfer import WATCHED, Taught, share_field, temperature_field

TEMPERATURES = (1, 2, 4, 8, 16)


@OBJECTIVES.register
@dataclass(frozen=True)
class Distillation(Objective):
    """The original's answers, wrong classes included: which of them it holds for almost right.

    The loss is (1 - share) of the cross-entropy of the labels, plus share T^2 of the divergence of
    the network's probabilities from the original's, both with logits divided by the temperature T.
    High temperatures let small probabilities speak; the square keeps the gradient as large as
    without. With share 0 the original is not listened to.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015,
    arXiv:1503.02531, section 2.
    """

    name: ClassVar[str] = "distillation"

    share: float = share_field(0.9)
    temperature: float = temperature_field()

    def bind(self, model: nn.Module, setting: Setting, schedule: Schedule, run: Run) -> Task:
        return Taught(
            private_copy(setting.teacher, run.device),
            share=self.share,
            temperature=self.temperature,
            smoothing=schedule.label_smoothing,
        )

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        split = setting.validation.take(slice(0, WATCHED))
        teacher = private_copy(setting.teacher, run.device)
        networks = {"original": teacher, "before": before, "after": after}
        answers = {
            name: logits(network, split) for name, network in run.track(networks.items(), "Asking networks")
        }
        same = {
            name: (a.argmax(1) == answers["original"].argmax(1)).float().mean() for name, a in answers.items()
        }
        rows: list[dict[str, Any]] = [
            {
                "temperature": t,
                "network": name,
                "apart": t * t * divergence(answers[name], answers["original"], t).mean().item(),
            }
            for name in ("before", "after")
            for t in TEMPERATURES
        ]
        table = pd.DataFrame(rows)
        at_one = table[table.temperature == 1].set_index("network").apart
        return (
            Figure(
                "How far its answers are from the original's",
                f"Of {len(split)} pictures it gives {same['before']:.1%} the original's class before and "
                f"{same['after']:.1%} after. At T = 1 the divergence is {at_one['before']:.3f} nats "
                f"before and {at_one['after']:.3f} after.",
                table,
                "temperature",
                "apart",
                colour="network",
                log=frozenset({"temperature"}),
                labels={"apart": "divergence times T squared, in nats", "temperature": "temperature T"},
            ),
        )
