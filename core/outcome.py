"""What a recipe made of a network: measured, reported, kept in a folder and read back.

A folder holds `model.safetensors` (which loads by itself and holds no code), `recipe.json`,
`report.json` and, where steps showed something, `figures.json`.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.as_json import to_json
from core.bundles import DatasetBundle, ModelBundle, Setting
from core.errors import CheckpointError, Stopped
from core.evaluation import Change, Evaluation, change, evaluate, logits
from core.figure import Figure
from core.method import brief
from core.recipe import Recipe, compress
from core.run import Progress, Run
from core.weights import read_model, save_model

PARTS = ("model.safetensors", "recipe.json", "report.json", "figures.json")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A recipe that was carried out on a network, and both networks on the same pictures."""

    model: str  # name of the architecture
    data: str
    split: str
    recipe: Recipe
    network: nn.Module  # compressed: eval mode, plain weights, frozen
    before: Evaluation
    after: Evaluation
    change: Change
    history: tuple[dict[str, float], ...]  # what methods recorded, e.g. the loss of every epoch
    figures: tuple[tuple[Figure, ...], ...]  # of every step; empty where none were asked for
    seconds: float  # that the recipe took, without the measuring
    finished: bool = True  # False: it was stopped, and `network` is what there was by then

    def to_dict(self) -> dict[str, Any]:
        """For JSON; network and figures left out."""
        return {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "recipe": json.loads(self.recipe.to_json()),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "difference": self.change.difference,
            "interval": list(self.change.interval),
            "gained": len(self.change.gained),
            "lost": len(self.change.lost),
            "gained_images": self.change.gained.tolist(),
            "lost_images": self.change.lost.tolist(),
            "changed_images": self.change.changed.tolist(),
            "history": list(self.history),
            "seconds": round(self.seconds, 2),
            "finished": self.finished,
        }

    def figures_dict(self) -> list[list[dict[str, Any]]]:
        """The figures of every step, for JSON."""
        return [[figure.to_dict() for figure in shown] for shown in self.figures]

    def save(self, folder: Path, bundle: ModelBundle, dataset: DatasetBundle) -> None:
        """Write all of it into `folder`; `bundle` is the network that the recipe began with.

        Raises:
            CheckpointError: the compressed network holds something that a file cannot say.
        """
        provenance = bundle.provenance | {"compressed_by": json.loads(self.recipe.to_json())}
        save_model(self.network, folder / PARTS[0], bundle.architecture, dataset, provenance)
        texts = self.recipe.to_json(), to_json(self.to_dict()), json.dumps(self.figures_dict())
        for name, text in zip(PARTS[1:], texts, strict=True):
            (folder / name).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Outcome":
        """What `save` wrote.

        Raises:
            CheckpointError: something is missing or damaged.
        """
        try:
            recipe, report, figures = ((folder / name).read_text(encoding="utf-8") for name in PARTS[1:])
            saved = json.loads(report)
            kinds = ("gained", "lost", "changed")
            moved = {name: torch.tensor(saved[f"{name}_images"]).long() for name in kinds}
            before, after = (_evaluation(saved[side]) for side in ("before", "after"))
            difference = math.nan if saved["difference"] is None else saved["difference"]
            return cls(
                **{name: saved[name] for name in ("model", "data", "split", "seconds", "finished")},
                recipe=Recipe.from_json(recipe),
                network=read_model(folder / PARTS[0]).module,
                before=before,
                after=after,
                change=Change(after.n, difference, tuple(saved["interval"]), **moved),
                history=tuple(saved["history"]),
                figures=tuple(tuple(map(Figure.from_dict, shown)) for shown in json.loads(figures)),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{folder.name}: must be the folder of an outcome, got {brief(str(error))}"
            ) from error


def carry_out(
    bundle: ModelBundle,
    dataset: DatasetBundle,
    recipe: Recipe,
    split: str = "test",
    run: Run | None = None,
    *,
    figures: bool = False,
) -> Outcome:
    """Compress a copy of `bundle`'s network, and measure it and the original on a part of `dataset`.

    Raises:
        UnsupportedModelError: a step cannot work on this network.
    """
    run = run or Run()
    pictures = dataset.split(split)
    setting = Setting(dataset.train, dataset.validation, bundle.module)
    start = time.monotonic()
    with run.step(0, 2):
        result = compress(bundle.module, setting, recipe, run, figures=figures)
    seconds, networks = time.monotonic() - start, (bundle.module, result.model)
    answers, measuring = [], replace(run, on_progress=_undeterred(run.on_progress))
    for index, network in enumerate(networks):
        with measuring.step(2 + index, 4):
            answers.append(logits(network, pictures, measuring))
    before, after = (
        evaluate(network, pictures, answers=given) for network, given in zip(networks, answers, strict=True)
    )
    return Outcome(
        model=bundle.architecture.name,
        data=dataset.name,
        split=split,
        recipe=recipe,
        network=result.model,
        before=before,
        after=after,
        change=change(*answers, pictures.labels),
        history=result.records,
        figures=result.figures,
        seconds=seconds,
        finished=result.finished,
    )


def _undeterred(report: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """The same, except that it stops nothing: what there is by then is measured."""

    def on(progress: Progress) -> None:
        with contextlib.suppress(Stopped):
            report(progress)

    return on


def _evaluation(saved: dict[str, Any]) -> Evaluation:
    values = {name: math.nan if value is None else value for name, value in saved.items()}
    return Evaluation(**values | {"interval": tuple(saved["interval"])})
