"""What became of a network's attribution maps: collapsed, beside those of the original, by picture."""

import json
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import ModelBundle, Split
from core.layers import private_copy
from core.localisation import localisation
from core.matching import cosine, dead, tap_of, view
from core.run import Run
from core.weights import read_model

BATCH = 100  # pictures in one pass
SIDE = 16  # cells a side of a map in a figure
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "matched"


@dataclass(frozen=True, eq=False)
class Look:
    """What a network says of N pictures, and what it rests that on."""

    logits: Tensor  # (N, K)
    classes: Tensor  # (N,) the class that the maps speak of
    maps: Tensor  # (N, H, W) sensitivity-weighted (SWA), nowhere negative


def look(
    model: nn.Module, split: Split, classes: Tensor | None = None, tap: int = 1, run: Run | None = None
) -> Look:
    """Look at `model`'s maps for `classes` (N,), for its own answers where none are named.

    Raises:
        UnsupportedModelError: it has no feature map.
    """
    run = run or Run()
    network, parts = private_copy(model, run.device), []
    layer = tap_of("maps", network, split.take(slice(0, 1)).images.to(run.device), tap)
    for start in run.track(range(0, len(split), BATCH), "Looking at maps"):
        part = slice(start, start + BATCH)
        images = split.take(part).images.to(run.device, memory_format=torch.channels_last)
        named = None if classes is None else classes[part].to(run.device)
        parts.append([seen.detach().cpu() for seen in view(network, layer, images, "SWA", named)])
    return Look(*(torch.cat(each) for each in zip(*parts, strict=True)))


def drift(before: Look, after: Look, split: Split) -> pd.DataFrame:
    """One row per picture: answers, confidence in the original's class, how far the maps agree.

    `after` speaks of the classes of `before`. `cosine` is NaN where the original's map is zero
    everywhere, 0 where the other one's is. Where `split` has masks, `auc` and `hit` say whether the
    maps lie on the object (see `localisation`).
    """
    kept = before.classes[:, None]
    named = (("before", before), ("after", after))
    table = {"picture": range(len(split)), "label": split.labels, "class": before.classes}
    for name, seen in named:
        table[f"answer_{name}"] = seen.logits.argmax(dim=1)
        table[f"confidence_{name}"] = seen.logits.softmax(dim=1).gather(1, kept).squeeze(1)
        table[f"dead_{name}"] = dead(seen.maps)
    agreed = cosine(before.maps.double(), after.maps.double())
    table["cosine"] = agreed.masked_fill(dead(before.maps), torch.nan)
    for name, seen in named if split.masks is not None else ():
        found = localisation(enlarged(seen.maps, split.pixels.shape[2:]), split.masks)
        table[f"auc_{name}"], table[f"hit_{name}"] = found.auc, found.pointing_game
        table[f"mass_{name}"] = found.mass_inside
    return pd.DataFrame({name: torch.as_tensor(values).numpy() for name, values in table.items()})


def summary(table: pd.DataFrame) -> dict[str, float]:
    """The means of `drift`: accuracy, agreement of the maps and, with masks, how they lie on the object.

    Where a map lies is asked of the pictures (`pairs`) that both networks answer rightly, so that
    both are asked about the same thing.
    """
    right = {name: table[f"answer_{name}"] == table.label for name in ("before", "after")}
    both = table[right["before"] & right["after"]]
    found = {
        "n": len(table),
        "accuracy": right["after"].mean(),
        "accuracy_before": right["before"].mean(),
        "same_answer": (table.answer_before == table.answer_after).mean(),
        "cosine": table.cosine.mean(),
        "dead": table.dead_after.mean(),
        "without_aim": int(table.dead_before.sum()),
        "pairs": len(both),
    }
    if "auc_after" in table:
        names = {"auc": "auc", "hit": "pointing_game", "mass": "mass_inside"}
        for name in ("after", "before"):
            end = "" if name == "after" else "_before"
            found |= {f"{long}{end}": both[f"{short}_{name}"].mean() for short, long in names.items()}
    return {name: value if isinstance(value, int) else float(value) for name, value in found.items()}


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, H, W) at the size of the picture, (N, 1, H', W'), bilinear."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)


def tiles(seen: Look, picture: int) -> pd.DataFrame:
    """The map of one picture for a figure: `down`, `across`, `strength`, the strongest at 1."""
    cells = enlarged(seen.maps[picture : picture + 1], (SIDE, SIDE))[0, 0].double()
    cells = cells / cells.max().clamp(min=1e-30)
    down, across = np.indices(cells.shape).reshape(2, -1)
    return pd.DataFrame({"down": down, "across": across, "strength": cells.flatten().numpy()})


# The networks that come with the program: pruned with and without their maps in mind


def shipped() -> pd.DataFrame:
    """One row per network in `assets/matched`: how it was made, and what was measured on test pictures.

    `training` is "original" (one row), "naive" or "matched"; `sparsity` the share of the convolution
    weights that is gone. The measures are those of `summary`, and `spearman`, the rank correlation of
    integrated gradients. `recipe` is the JSON of the whole recipe.
    """
    return pd.DataFrame(json.loads((SHIPPED / "records.json").read_text(encoding="utf-8")))


@cache
def shipped_network(training: str, sparsity: float) -> ModelBundle:
    """The network of one row of `shipped` but the original, read once per process and shared."""
    with TemporaryDirectory() as folder, zipfile.ZipFile(SHIPPED / "networks.zip") as packed:
        return read_model(Path(packed.extract(f"{training}-{sparsity:.2f}.safetensors", folder)))
