"""Attribution matching: keep looking where the original looked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from core.agreement import agreement
from core.attribution import ATTRIBUTIONS, explain
from core.bundles import Setting
from core.criterion import sample
from core.distillation import task_loss
from core.drift import Look, drift, look, summary, tiles
from core.errors import UnsupportedModelError
from core.figure import Figure, histogram
from core.layers import private_copy
from core.matching import cosine, dead, matching_loss, tap_of, view
from core.method import choice, number
from core.objective import OBJECTIVES, Objective
from core.run import Run
from core.training import Schedule, Task

SEEN = 200  # validation pictures whose maps are compared afterwards
EXPLAINED = 32  # of them by methods that the training did not use
OTHERS = {"integrated-gradients": {"steps": 16}, "input-x-gradient": {}}
NAMES = ("original", "before", "after")


@OBJECTIVES.register
@dataclass(frozen=True)
class AttributionMatching(Objective):
    """The labels, and attribution maps like the original's: right for the same reasons.

    The channels of one layer are collapsed to one map per picture, in both networks. "EWA": the mean
    square of the channels. "SWA": their sum, weighted by how much each raises the logit of the class
    that the original answers, positive part (Grad-CAM up to a factor). "SSWA": the same, with a share
    of the original's channels left out, drawn anew for every batch. The loss is the task's plus
    `weight` times the mean of 1 - cosine of the two maps; the slopes in the map are differentiated
    too. A picture whose original map is zero everywhere has no aim: it is left out, and counted.
    "none" only measures. With `share` the task has soft targets, as in distillation.

    Records: task loss, matching loss, mean cosine of the maps, share of dead maps (zero everywhere:
    they have no slope and cannot recover by themselves), pictures left out.

    Source: Park, Yang, Hwang and Yang, "Attribution Preservation in Network Compression for Reliable
    Network Interpretation", NeurIPS 2020, arXiv:2010.15054, and the authors' code.
    """

    name: ClassVar[str] = "attribution-matching"
    paper: ClassVar[Mapping[str, Any]] = {
        "epochs": 30,
        "learning_rate": 0.001,
        "schedule": "constant",
        "weight_decay": 1e-4,
        "images": 1_000_000,
    }

    variant: str = choice(
        "SWA", "SSWA", "EWA", "none", help="What a map is collapsed from; none: only measure"
    )
    weight: float = number(4.0, 0.0, 100.0, 0.1, help="Of 1 - cosine of the maps, beside the task's loss")
    drop: float = number(0.3, 0.0, 0.95, 0.05, help="SSWA: share of the original's channels left out")
    tap: int = number(1, 1, 8, 1, help="Which size of feature map, counted from the output: 1 is the last")
    share: float = number(0.0, 0.0, 1.0, 0.05, help="Of the original's soft answers in the task; 0: labels")
    temperature: float = number(4.0, 0.5, 20.0, 0.5, help="Of the soft answers")

    def bind(self, model: nn.Module, setting: Setting, schedule: Schedule, run: Run) -> Task:
        example = setting.train.take(slice(0, 1)).images.to(run.device)
        teacher, probe = (private_copy(network, run.device) for network in (setting.teacher, model))
        layers = [tap_of(self.name, network, example, self.tap) for network in (teacher, probe)]
        ends = [view(net, at, example, "SWA") for net, at in zip((teacher, probe), layers, strict=True)]
        for what, index in (("classes", 0), ("feature maps", 2)):
            theirs, mine = (tuple(end[index].shape[1:]) for end in ends)
            if theirs != mine:
                raise UnsupportedModelError(
                    f"{self.name}: the model must have {what} of {theirs} at {layers[1]}, like the "
                    f"original at {layers[0]}, got {mine}"
                )
        return _Matching(self, teacher, layers, schedule.label_smoothing)

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        seen = sample(setting.validation, SEEN)
        with run.step(0, 2):
            original = look(setting.teacher, seen, tap=self.tap)
            looks = [original] + [look(net, seen, original.classes, self.tap) for net in (before, after)]
            tables = {name: drift(original, each, seen) for name, each in zip(NAMES, looks, strict=True)}
        shown = [_strip(looks, tables), _cosines(tables), _scatter(tables["after"])]
        with run.step(1, 2):
            shown.append(_others((setting.teacher, before, after), seen, original.classes, run))
        shown.append(_on_the_object(tables) if seen.masks is not None else None)
        return tuple(figure for figure in shown if figure is not None)


class _Matching(Task):
    """The loss of one training, and what it has to tell."""

    def __init__(
        self, aim: AttributionMatching, teacher: nn.Module, layers: Sequence[str], smoothing: float
    ) -> None:
        super().__init__()
        self._aim, self._teacher, self._smoothing = aim, teacher, smoothing
        self._there, self._here = layers
        self._without_aim = 0

    def terms(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        aim = self._aim
        matched = aim.variant != "none" and aim.weight > 0
        kind = "SWA" if aim.variant == "none" else aim.variant
        rate = aim.drop if aim.variant == "SSWA" else 0.0
        taught, classes, wanted = view(self._teacher, self._there, images, kind, rate=rate)
        logits, _, maps = view(model, self._here, images, kind, classes, graph=matched)
        task = task_loss(
            logits,
            taught.detach(),
            labels,
            share=aim.share,
            temperature=aim.temperature,
            smoothing=self._smoothing,
        )
        matching, alive = matching_loss(wanted, maps), ~dead(wanted)
        self._without_aim += int((~alive).sum())
        return {
            "loss": task + aim.weight * matching if matched else task,
            "task_loss": task,
            "matching_loss": matching,
            "map_cosine": (cosine(wanted, maps) * alive).sum() / alive.sum().clamp(min=1),
            "dead_maps": dead(maps).float().mean(),
        }

    def observed(self) -> dict[str, float]:
        counted, self._without_aim = self._without_aim, 0
        return {"pictures_without_aim": counted}


def _strip(looks: Sequence[Look], tables: Mapping[str, pd.DataFrame]) -> Figure | None:
    """Two pictures that were answered alike: the one whose map has gone furthest, and a middling one."""
    start = tables["before"]
    same = [start.answer_before == tables[name].answer_after for name in NAMES[1:]]
    alike = start[start.cosine.notna() & same[0] & same[1]]
    if alike.empty:
        return None
    order = alike.sort_values("cosine", kind="stable").picture.to_list()
    chosen = list(dict.fromkeys((order[0], order[len(order) // 2])))
    parts = [
        tiles(seen, picture).assign(panel=f"{name}, picture {picture}")
        for picture in chosen
        for name, seen in zip(NAMES, looks, strict=True)
    ]
    ends = [tables[name].cosine[chosen[0]] for name in NAMES[1:]]
    return Figure(
        "Maps of two pictures",
        f"Both are answered alike by all three networks. Of picture {chosen[0]}, whose map had gone "
        f"furthest, the cosine with the original's map goes from {ends[0]:.2f} to {ends[1]:.2f} "
        "(each map on its own scale).",
        pd.concat(parts, ignore_index=True),
        "across",
        "down",
        "heat",
        panel="panel",
        value="strength",
    )


def _cosines(tables: Mapping[str, pd.DataFrame]) -> Figure | None:
    values = {name: torch.tensor(tables[name].cosine.dropna().tolist()) for name in NAMES[1:]}
    if not len(values["after"]):
        return None
    table = histogram(values, 20, "network", "cosine")
    means = {name: each.mean().item() for name, each in values.items()}
    gone = {name: tables[name].dead_after.mean() for name in NAMES[1:]}
    return Figure(
        "How far the maps agree with the original's",
        f"The mean cosine goes from {means['before']:.3f} to {means['after']:.3f} over "
        f"{len(values['after'])} validation pictures; {gone['before']:.1%} of the maps were zero "
        f"everywhere, and {gone['after']:.1%} are.",
        table,
        "cosine",
        "share",
        colour="network",
        percent=frozenset({"share"}),
        labels={"cosine": "cosine with the original's map", "share": "share of the pictures"},
    )


def _scatter(table: pd.DataFrame) -> Figure | None:
    known = table[table.cosine.notna()]
    if known.empty:
        return None
    same = known.answer_before == known.answer_after
    moved = known.assign(
        change=known.confidence_after - known.confidence_before,
        answer=np.where(same, "same answer", "another answer"),
    )
    far = moved[same & (moved.change.abs() < 0.05) & (moved.cosine < 0.8)]
    return Figure(
        "Confidence and map, picture by picture",
        f"{same.mean():.1%} of {len(known)} pictures keep their answer. Of {len(far)} of them neither answer "
        "nor confidence (within 5 points) tells that the map has moved (cosine below 0.8).",
        moved[["picture", "change", "cosine", "answer"]],
        "change",
        "cosine",
        "points",
        colour="answer",
        percent=frozenset({"change"}),
        labels={"change": "change of the confidence", "cosine": "cosine of the maps"},
    )


def _others(networks: Sequence[nn.Module], seen, classes: Tensor, run: Run) -> Figure | None:
    """Agreement by attribution methods that the training has not seen."""
    images, rows = seen.take(slice(EXPLAINED)).images, []
    for name, options in run.track(OTHERS.items(), "Explaining by other methods"):
        method = ATTRIBUTIONS[name](**options)
        maps = [explain(net, method, images, classes[:EXPLAINED], seed=0) for net in networks]
        for which, made in zip(NAMES[1:], maps[1:], strict=True):
            means = agreement(maps[0], made).means()
            rows += [
                {"method": method.label(), "network": which, "measure": measure, "agreement": means[measure]}
                for measure in ("spearman", "cosine", "overlap")
            ]
    table = pd.DataFrame(rows).dropna()
    if table.empty:
        return None
    told = table[table.measure == "spearman"].groupby("method", sort=False).agreement
    words = "; ".join(f"{name} {part.iloc[0]:.3f} to {part.iloc[-1]:.3f}" for name, part in told)
    return Figure(
        "Agreement by methods not used in training",
        f"Rank correlation with the original's maps, before and after: {words or 'undefined'} "
        f"({len(images)} validation pictures).",
        table,
        "method",
        "agreement",
        "bars",
        colour="network",
        panel="measure",
    )


def _on_the_object(tables: Mapping[str, pd.DataFrame]) -> Figure | None:
    right = np.all([table.answer_after == table.label for table in tables.values()], axis=0)
    if not right.any():
        return None
    measures = {"auc": "AUC", "pointing_game": "pointing game", "mass_inside": "mass inside"}
    means = {name: summary(table[right]) for name, table in tables.items()}
    rows = [
        {"measure": label, "network": name, "value": found[measure]}
        for measure, label in measures.items()
        for name, found in means.items()
    ]
    auc, hits = ({name: found[m] for name, found in means.items()} for m in ("auc", "pointing_game"))
    return Figure(
        "Do the maps lie on the object?",
        f"AUC {auc['original']:.3f} in the original, {auc['before']:.3f} before, {auc['after']:.3f} after; "
        f"strongest cell on the object {hits['original']:.1%}, {hits['before']:.1%}, {hits['after']:.1%} "
        f"(the {right.sum()} pictures that all three answer rightly).",
        pd.DataFrame(rows),
        "measure",
        "value",
        "bars",
        colour="network",
    )
