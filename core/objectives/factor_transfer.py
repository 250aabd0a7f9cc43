"""Factor transfer: learn what the original's feature maps say, said again in fewer channels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from core.bundles import Setting
from core.figure import Figure
from core.layers import private_copy
from core.method import choice, number
from core.objective import OBJECTIVES, Objective
from core.paraphraser import (
    Paraphrase,
    Paraphrasing,
    factors_view,
    paraphrase_of,
    paraphrase_view,
    reconstruction_figure,
    translator,
)
from core.run import Run
from core.training import Schedule, Task
from core.transfer import (
    REFERENCE,
    Outer,
    Pair,
    Taught,
    factor_cosine,
    factor_distance,
    maps_of,
    share_field,
    shared_layers,
    temperature_field,
)

MATCHED = 256  # validation pictures on which factors are compared


@OBJECTIVES.register
@dataclass(frozen=True)
class FactorTransfer(Objective):
    """The labels, and factors: the original's last feature maps, said again in fewer channels.

    First a paraphraser learns, without labels, to bring the original's last feature maps through
    round(rate x channels) channels and back. Then the network learns together with a translator that
    makes those factors of its own last maps. Both are scaled to length 1 per picture; the loss adds
    weight x sqrt(D / 2048) times the mean |difference| (l1) or squared difference (l2) of their D
    numbers, so that a weight means the same for all networks. Paraphraser and translator are thrown
    away. A paraphraser that misses 60 % or more of what varies in the maps is called under-trained:
    what its factors say of them is left to chance.

    Source: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
    NeurIPS 2018, arXiv:1802.04977, section 3, with its authors' code.
    """

    name: ClassVar[str] = "factor-transfer"
    paper: ClassVar[Mapping[str, Any]] = {
        "epochs": 164,
        "learning_rate": 0.1,
        "batch_size": 128,
        "weight_decay": 5e-4,
        "crop": 4,
        "flip": True,
    }

    weight: float = number(500.0, 0.0, 2000.0, 10.0, help="Weight of the factors, for 2,048 numbers in them")
    rate: float = number(0.5, 0.05, 4.0, 0.05, help="Factor channels for every channel of the original")
    norm: str = choice("l1", "l2", help="Distance between factors")
    share: float = share_field(0.0)
    temperature: float = temperature_field()
    reconstruction: str = choice("mse", "l1", help="What the paraphraser minimises; l1 may stay at zeros")
    paraphraser_optimizer: str = choice("adamw", "sgd", help="What trains the paraphraser; SGD is slower")
    paraphraser_epochs: int = number(6, 1, 200, 1, help="Passes in which the paraphraser learns")
    paraphraser_images: int = number(
        1024, 1, 10000, 1, help="Training pictures it learns from, without labels"
    )

    def bind(self, model: nn.Module, setting: Setting, schedule: Schedule, run: Run) -> Task:
        teacher, pair = self._teacher(model, setting, run)
        made = paraphrase_of(teacher, pair[0], setting, self._paraphrasing, run)
        images = setting.validation.take(slice(0, MATCHED)).images.to(run.device)
        return _Factors(
            made,
            private_copy(model, run.device),
            images,
            self.norm,
            teacher,
            share=self.share,
            temperature=self.temperature,
            smoothing=schedule.label_smoothing,
            pairs=[pair],
            weight=self.weight,
        )

    @property
    def _paraphrasing(self) -> Paraphrasing:
        return Paraphrasing(
            self.rate,
            self.reconstruction,
            self.paraphraser_optimizer,
            self.paraphraser_epochs,
            self.paraphraser_images,
        )

    def _teacher(self, model: nn.Module, setting: Setting, run: Run) -> tuple[nn.Module, Pair]:
        """The original, and the last layers of it and of `model` that can be compared."""
        teacher = private_copy(setting.teacher, run.device)
        examples = setting.train.take(slice(0, 2)).images.to(run.device)
        return teacher, shared_layers(self.name, teacher, model, examples)[-1]

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        teacher, (layer, _) = self._teacher(after, setting, run)
        made = paraphrase_of(teacher, layer, setting, self._paraphrasing, run)
        picture = setting.validation.take(slice(0, 1)).images.to(run.device)
        (maps,) = maps_of(teacher, [layer], picture)
        shown = (
            paraphrase_view({"as it comes back": made}, maps),
            factors_view(made, maps),
            reconstruction_figure({"": made}),
        )
        history = _last_training(run.records)
        return (*shown, *((_match(history), _balance(history)) if len(history) else ()))


class _Factors(Taught):
    """Judges the match of factors on `images` before training, and after every epoch."""

    def __init__(
        self,
        made: Paraphrase,
        student: nn.Module,
        images: Tensor,
        norm: Outer,
        teacher: nn.Module,
        *,
        weight: float,
        **rest: Any,
    ) -> None:
        super().__init__(teacher, weight=weight, **rest)
        self._made, self._images, self._norm = made, images, norm
        ((theirs, ours),) = self.pairs
        self._factors = made.paraphraser.factors(*maps_of(self.teacher, [theirs], images))
        own = maps_of(student, [ours], images[:1])[0]
        with torch.random.fork_rng(devices=[]):  # the network's data stay the same with and without
            self.partners.append(translator(own.shape[1], made.factors).to(images.device))
        self.weight *= math.sqrt(self._factors[0].numel() / REFERENCE)
        self._before = self._cosine = self._match(student)

    def distance(self, taught: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            factors = self._made.paraphraser.factors(taught[0])
        return factor_distance(factors, self.partners[0](own[0]), self._norm)

    def passed(self, model: nn.Module, epoch: int) -> None:
        model.eval()
        self._cosine = self._match(model)
        model.train()

    @torch.no_grad()
    def _match(self, model: nn.Module) -> float:
        own = maps_of(model, [self.pairs[0][1]], self._images)[0]
        return factor_cosine(self._factors, self.partners[0](own)).mean().item()

    def observed(self) -> dict[str, float]:
        return {
            "factor_cosine": self._cosine,
            "factor_cosine_before": self._before,
            "paraphraser_error": self._made.error,
            "paraphraser_under_trained": float(not self._made.trained),
        }


def _last_training(records: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """The epochs of the last training with factors in `records`; empty where there was none."""
    rows = [row for row in records if "factor_cosine" in row]
    begin = max((index for index, row in enumerate(rows) if row["epoch"] == 1), default=0)
    return pd.DataFrame(rows[begin:])


def _match(history: pd.DataFrame) -> Figure:
    before, after = history.factor_cosine_before.iloc[0], history.factor_cosine.iloc[-1]
    start = pd.DataFrame([{"epoch": 0, "factor_cosine": before}])
    return Figure(
        "Factor match",
        f"The cosine of the network's translated factors with the original's was {before:.2f} before and is "
        f"{after:.2f} after epoch {len(history)} (mean of up to {MATCHED} validation pictures).",
        pd.concat([start, history[["epoch", "factor_cosine"]]]),
        "epoch",
        "factor_cosine",
        labels={"factor_cosine": "cosine with the original's factors"},
    )


def _balance(history: pd.DataFrame) -> Figure:
    parts = {"supervised": "labels and answers", "transfer": "factors, weighted"}
    table = history.rename(columns=parts).melt("epoch", list(parts.values()), "part", "size")
    last = history.iloc[-1]
    return Figure(
        "What the loss is made of",
        f"In the last epoch labels and answers give {last.supervised:.2f} and the weighted factors "
        f"{last.transfer:.2f} of a loss of {last.loss:.2f}.",
        table,
        "epoch",
        "size",
        colour="part",
        labels={"size": "part of the loss"},
    )
