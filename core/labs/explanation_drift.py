"""Explanation drift: accuracy holds longer than the reasons do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from core.bundles import Setting
from core.criterion import sample
from core.drift import Look, drift, look, summary, tiles
from core.errors import Stopped
from core.figure import Figure
from core.lab import LABS, Lab
from core.method import choice, number
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run
from core.weights import load_dataset, load_model

SEEN = 300  # validation pictures on which everything is measured
WAYS = ("naive", "matched")
MEASURES = {
    "accuracy": "accuracy",
    "cosine": "cosine with the original",
    "auc": "AUC on the digit",
    "pointing_game": "pointing game",
}


@LABS.register
@dataclass(frozen=True)
class ExplanationDrift(Lab):
    """A network is pruned step by step, twice: once it may look where it likes, once where it looked.

    The shipped small CNN on Cluttered digits loses its smallest convolution weights in equal shares and
    is trained after every step, for the labels ("naive") and for labels and the original's collapsed
    attribution maps ("matched"), on the same pictures for as long. After every step its maps are held
    against the original's (cosine) and against the digit's pixels (AUC, strongest cell on the digit);
    the latter on pictures that original and both networks answer rightly. The network of the page
    plays no part.

    Source: Park, Yang, Hwang and Yang, "Attribution Preservation in Network Compression for Reliable
    Network Interpretation", NeurIPS 2020, arXiv:2010.15054.
    """

    name: ClassVar[str] = "explanation-drift"

    variant: str = choice("SWA", "SSWA", "EWA", help="What the matched maps are collapsed from")
    weight: float = number(4.0, 0.0, 40.0, 0.1, help="Of 1 - cosine of the maps, beside the task's loss")
    sparsity: float = number(0.9, 0.1, 0.99, 0.01, help="Fraction of the weights that is gone in the end")
    steps: int = number(3, 1, 8, 1, help="Prunings; each is followed by a training")
    epochs: int = number(2, 1, 20, 1, help="Passes over the pictures after every pruning")
    images: int = number(768, 32, 8624, 1, help="Training pictures")

    def figures(self, setting: Setting, run: Run) -> Sequence[Figure]:
        data, teacher = load_dataset("cluttered-digits"), load_model("small-cnn", "cluttered-digits").module
        train, seen = sample(data.train, self.images), sample(data.validation, SEEN)
        setting, seed = Setting(train, seen, teacher), int(torch.randint(2**30, ()))
        original, networks = look(teacher, seen), dict.fromkeys(WAYS, teacher)
        rows, tables = _rows(0.0, dict.fromkeys(WAYS, drift(original, original, seen))), {}
        looks: dict[str, Look] = {}
        for index in run.track(range(self.steps), "Pruning"):
            gone = 1 - (1 - self.sparsity) ** ((index + 1) / self.steps)
            for turn, way in enumerate(WAYS):
                with run.step(turn, len(WAYS)):
                    networks[way] = self._pruned(networks[way], way, gone, setting, seed + index, run)
                looks[way] = look(networks[way], seen, original.classes)
                tables[way] = drift(original, looks[way], seen)
            rows += _rows(gone, tables)
        return _curves(pd.DataFrame(rows)), _strip(original, looks, tables)

    def _pruned(
        self, network: nn.Module, way: str, sparsity: float, setting: Setting, seed: int, run: Run
    ) -> nn.Module:
        matched = {"method": "attribution-matching", "variant": self.variant, "weight": self.weight}
        step = COMPRESSORS["iterative-pruning"](
            sparsity=sparsity,
            rounds=1,
            epochs=self.epochs,
            learning_rate=0.1,
            images=self.images,
            objective=matched if way == "matched" else "labels",
        )
        made = compress(network, setting, Recipe((step,), seed), replace(run, records=[]))
        if not made.finished:
            raise Stopped
        return made.model


def _rows(sparsity: float, tables: Mapping[str, pd.DataFrame]) -> list[dict]:
    """What is measured of both networks; the maps' places where original and both are right."""
    right = np.all([table.answer_after == table.label for table in tables.values()], axis=0)
    right &= (tables[WAYS[0]].answer_before == tables[WAYS[0]].label).to_numpy()
    rows = []
    for way, table in tables.items():
        whole, part = summary(table), summary(table[right])
        found = {name: part[name] for name in ("auc", "pointing_game")} | {
            name: whole[name] for name in ("accuracy", "cosine")
        }
        rows += [
            {"sparsity": sparsity, "training": way, "measure": label, "value": found[name]}
            for name, label in MEASURES.items()
        ]
    return rows


def _curves(table: pd.DataFrame) -> Figure:
    last = table[table.sparsity == table.sparsity.max()].set_index(["measure", "training"]).value
    told = [
        f"{label} {last[label, 'naive']:.2f} naive, {last[label, 'matched']:.2f} matched"
        for label in MEASURES.values()
    ]
    return Figure(
        "Accuracy and maps as weights go",
        f"With {table.sparsity.max():.1%} of the convolution weights gone: {'; '.join(told)} "
        f"({SEEN} validation pictures, one run).",
        table,
        "sparsity",
        "value",
        colour="training",
        panel="measure",
        percent=frozenset({"sparsity"}),
        labels={"sparsity": "weights that are gone"},
    )


def _strip(original: Look, looks: Mapping[str, Look], tables: Mapping[str, pd.DataFrame]) -> Figure:
    naive = tables["naive"]
    known = naive[naive.cosine.notna()]
    alike = known[(known.answer_before == known.answer_after) & (known.answer_after == known.label)]
    both = alike[tables["matched"].answer_after[alike.index] == alike.label]
    chosen = next((each for each in (both, alike, known) if len(each)), naive)
    picture = int(chosen.sort_values("cosine", kind="stable").picture.iloc[0])
    parts = [
        tiles(seen, picture).assign(network=name) for name, seen in {"original": original, **looks}.items()
    ]
    words = [
        f"{way}: answer {table.answer_after[picture]}, cosine {table.cosine[picture]:.2f}"
        for way, table in tables.items()
    ]
    return Figure(
        "The same picture at the end",
        f"A {naive.label[picture]} that the original calls a {naive.answer_before[picture]}; "
        f"{'; '.join(words)}. Of the pictures that all answer rightly, where there are any, the one that the "
        "naive network sees most differently (each map on its own scale).",
        pd.concat(parts, ignore_index=True),
        "across",
        "down",
        "heat",
        panel="network",
        value="strength",
    )
