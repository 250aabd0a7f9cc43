"""Attribution matching against plain training, at equal sparsity and equal schedules.

python -m bench.matching digits     the shipped small CNN on Cluttered digits, 97 % pruned: five minutes
python -m bench.matching shapes     the same on made shapes, with networks trained here: three minutes
python -m bench.matching students   students of a quarter of the channels, on those shapes: three minutes
python -m bench.matching imagenet   SqueezeNet 1.1 on real pictures (--weights FILE): four minutes a seed

Prints a row per seed and variant, and their means. Minutes are those of one processor thread.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from core.agreement import agreement
from core.as_json import to_json
from core.attribution import ATTRIBUTIONS, answers, explain
from core.bundles import MODELS, DatasetBundle, Setting, Split
from core.drift import drift, look, summary
from core.recipe import COMPRESSORS, Compressor, Recipe, compress
from core.run import Run, seeded
from core.training import Classification, Schedule, fit
from core.weights import load_dataset, load_model

EXPLAINED = 64  # test pictures explained by a method that no training used
COLUMNS = ("accuracy", "auc", "pointing_game", "mass_inside", "cosine", "spearman", "dead", "pairs")
PRUNED = {"sparsity": 0.97, "rounds": 4, "epochs": 3, "images": 2048, "learning_rate": 0.1}
TAUGHT = {"epochs": 10, "images": 2048, "learning_rate": 0.05, "schedule": "one-cycle"}
CUT = {"epochs": 3, "images": 2048, "learning_rate": 0.02}
SMALL = {"crop": 0, "batch_size": 64}  # for the shapes
REAL = {  # for real pictures
    **{"rounds": 2, "epochs": 2, "images": 300, "batch_size": 16, "learning_rate": 0.002},
    **{"weight_decay": 2e-4, "crop": 8, "flip": True},
}
SOFT = {"share": 0.9, "temperature": 4.0}  # of distillation


def pruned(objective: Mapping[str, Any], **schedule: Any) -> tuple[Compressor, ...]:
    """A network that loses its weights in rounds."""
    step = {"objective": {"method": "attribution-matching", **objective}} | PRUNED | schedule
    return (COMPRESSORS["iterative-pruning"](**step),)


def cut(objective: Mapping[str, Any], **schedule: Any) -> tuple[Compressor, ...]:
    """A network that loses 70 % of the channels of every group at once, by the L1 norm of filters."""
    aim = {"method": "attribution-matching", **objective}
    step = COMPRESSORS["fine-tuning"](objective=aim, **CUT | schedule)
    return (COMPRESSORS["prune-filters"](criterion="filter-l1", sparsity=0.7), step)


def taught(objective: Mapping[str, Any], **schedule: Any) -> tuple[Compressor, ...]:
    """A student of a quarter of the channels."""
    aim = {"method": "attribution-matching", **SOFT, **objective}
    step = COMPRESSORS["fine-tuning"](objective=aim, **TAUGHT | schedule)
    return (COMPRESSORS["student"](width=0.25), step)


ROWS = {  # what is compared: name -> objective
    "pruned": {name: {"variant": name} for name in ("none", "EWA", "SWA", "SSWA")},
    "cut": {name: {"variant": name} for name in ("none", "EWA", "SWA", "SSWA")},
    "taught": {
        "none": {"variant": "none"},
        "SWA, weight 0.2": {"variant": "SWA", "weight": 0.2},
        "SWA, weight 0.8": {"variant": "SWA", "weight": 0.8},
    },
}
MAKE = {"pruned": pruned, "cut": cut, "taught": taught}


def measure(network: nn.Module, teacher: nn.Module, test: Split) -> dict[str, float]:
    """What became of accuracy and maps, on test pictures; `spearman` is that of integrated gradients."""
    return summary(drifted(network, teacher, test)) | {"spearman": elsewhere(network, teacher, test)}


def drifted(network: nn.Module, teacher: nn.Module, test: Split) -> pd.DataFrame:
    original = look(teacher, test)
    return drift(original, look(network, test, original.classes), test)


def elsewhere(network: nn.Module, teacher: nn.Module, test: Split, count: int = EXPLAINED) -> float:
    """Mean rank correlation with the teacher's maps by a method that no training used."""
    images, method = test.take(slice(count)).images, ATTRIBUTIONS["integrated-gradients"](steps=16)
    classes = answers(teacher, images).argmax(dim=1)
    return agreement(*(explain(net, method, images, classes) for net in (teacher, network))).means()[
        "spearman"
    ]


def compare(
    kind: str, cases: Iterator[tuple[int, DatasetBundle, nn.Module]], **schedule: Any
) -> pd.DataFrame:
    """One row per seed and variant; `cases` are seed, data and the network to compress."""
    rows = []
    for seed, data, teacher in cases:
        setting = Setting(data.train, data.validation, teacher)
        original = {"variant": "original", "seed": seed, **measure(teacher, teacher, data.test)}
        rows.append(original)
        for name, objective in ROWS[kind].items():
            start = time.monotonic()
            recipe = Recipe(MAKE[kind](objective, **schedule), seed)
            made = compress(teacher, setting, recipe, Run())
            row = {"variant": name, "seed": seed, **measure(made.model, teacher, data.test)}
            rows.append(row | {"seconds": time.monotonic() - start})
            say(rows[-1])
    return pd.DataFrame(rows)


def shipped(seeds: int) -> Iterator[tuple[int, DatasetBundle, nn.Module]]:
    """The shipped network, compressed with different seeds."""
    data, teacher = load_dataset("cluttered-digits"), load_model("small-cnn", "cluttered-digits").module
    for seed in range(seeds):
        yield seed, data, teacher


def shapes(seeds: int) -> Iterator[tuple[int, DatasetBundle, nn.Module]]:
    """A small CNN trained on made shapes, another one for every seed."""
    for seed in range(seeds):
        data = shape_data(seed)
        with seeded(seed):
            teacher = MODELS["small-cnn"]().build(data.shape, len(data.classes))
            schedule = Schedule(epochs=10, learning_rate=0.1, crop=0, flip=False, batch_size=64)
            fit(teacher, data.train, Classification(), schedule, Run())
        yield seed, data, teacher


SHAPES = ("square", "disc", "triangle", "cross", "ring", "stripes")


def shape_data(seed: int, side: int = 32) -> DatasetBundle:
    """Grey pictures of one shape over noise and bright straight lines, with the shape's pixels as mask."""
    random = torch.Generator().manual_seed(seed)
    parts = {name: made_shapes(count, side, random) for name, count in (("train", 2000), ("validation", 300))}
    parts["test"] = made_shapes(500, side, random)
    grey = parts["train"][0]
    low, reach = grey.min(), grey.max() - grey.min()
    mean, std = (((value - shift) / reach).item() for value, shift in ((grey.mean(), low), (grey.std(), 0)))
    splits = {
        name: Split(
            ((pictures[:, None] - low) / reach * 255).round().clamp(0, 255).to(torch.uint8),
            labels,
            (mean,),
            (std,),
            masks,
        )
        for name, (pictures, labels, masks) in parts.items()
    }
    return DatasetBundle(name="shapes", classes=SHAPES, licence="made here", source="made here", **splits)


def made_shapes(count: int, side: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (N, S, S), labels (N,) and masks (N, S, S)."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=random).item()

    line = torch.arange(side, dtype=torch.float32)
    down, across = line[:, None], line[None, :]
    pictures = 0.35 * torch.randn(count, side, side, generator=random)
    labels = torch.randint(0, len(SHAPES), (count,), generator=random)
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    for picture, mask, label in zip(pictures, masks, labels.tolist(), strict=True):
        for _ in range(int(torch.randint(2, 5, (), generator=random))):
            angle, offset = uniform(0, math.pi), uniform(-side / 3, side / 3)
            away = (across - side / 2) * math.cos(angle) + (down - side / 2) * math.sin(angle) - offset
            picture += uniform(0.3, 0.8) * (away.abs() < 0.7)
        radius = uniform(4, 6.5)
        y, x = (line_ - uniform(radius + 1, side - radius - 1) for line_ in (down, across))
        mask |= _inside(SHAPES[label], y, x, radius)
        picture += uniform(0.6, 1.2) * mask
    return pictures, labels, masks


def _inside(shape: str, y: Tensor, x: Tensor, radius: float) -> Tensor:
    """Pixels of the shape around the point where `y` (S, 1) and `x` (1, S) are zero."""
    square = (x.abs() <= radius) & (y.abs() <= radius)
    round_ = x.square() + y.square()
    return {
        "square": square,
        "disc": round_ <= radius**2,
        "triangle": (y <= radius) & (x.abs() <= (y + radius) / 2),
        "cross": square & ((x.abs() <= radius / 3) | (y.abs() <= radius / 3)),
        "ring": (round_ <= radius**2) & (round_ >= (0.55 * radius) ** 2),
        "stripes": square & ((y + radius).floor() % 4 < 2),
    }[shape]


def imagenet(weights: Path, seeds: int, sparsity: float) -> pd.DataFrame:
    """SqueezeNet 1.1 on 300 pictures, measured on 300 others, with differences and their 95 % intervals."""
    bundle = load_model("torchvision:network=squeezenet1_1", "imagenet-val650", weights)
    data, teacher = load_dataset("imagenet-val650"), bundle.module
    parts = [getattr(data, name) for name in ("train", "validation", "test")]
    train = joined(parts[0], parts[1], parts[2].take(slice(40)))  # 300
    setting = Setting(train, parts[2].take(slice(40, 90)), teacher)
    test, rows = parts[2].take(slice(90, None)), []
    rows.append({"variant": "original", "seed": 0, **summary(drifted(teacher, teacher, test))})
    for seed in range(seeds):
        tables = {}
        for name in ("none", "SWA"):
            start = time.monotonic()
            made = compress(
                teacher, setting, Recipe(pruned({"variant": name}, sparsity=sparsity, **REAL), seed)
            ).model
            tables[name] = drifted(made, teacher, test)
            row = {"variant": name, "seed": seed, **summary(tables[name])}
            row["spearman"] = elsewhere(made, teacher, test, 16)
            rows.append(row | {"seconds": time.monotonic() - start})
            say(rows[-1])
        rows.append({"variant": "SWA - none", "seed": seed, **differences(*tables.values())})
        say(rows[-1])
    return pd.DataFrame(rows)


def joined(*parts: Split) -> Split:
    tensors = ("pixels", "labels", "masks")
    return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in tensors})


def differences(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, float]:
    """Means of `second` minus `first`, picture by picture, with half the width of the 95 % interval.

    Of the pictures that the original and both networks answer rightly; accuracy of all.
    """
    tables = [table.assign(right=1.0 * (table.answer_after == table.label)) for table in (first, second)]
    both = (tables[0].right * tables[1].right * (first.answer_before == first.label)).astype(bool)
    found = {"pairs": int(both.sum())}
    columns = {"auc": "auc_after", "pointing_game": "hit_after", "mass_inside": "mass_after"}
    for name, column in {"accuracy": "right", "cosine": "cosine", **columns}.items():
        some = slice(None) if name == "accuracy" else both
        moved = (tables[1][column] - tables[0][column])[some].dropna()
        found |= {name: moved.mean(), f"{name}_within": 1.96 * moved.sem()}
    return found


def say(row: Mapping[str, Any]) -> None:
    shown = [f"seed {row['seed']} {row['variant']}:"]
    for name in (column for column in COLUMNS if column in row):
        within = f" within {row[f'{name}_within']:.3f}" if f"{name}_within" in row else ""
        shown.append(f"{name} {row[name]:.3f}{within}")
    print(*shown, file=sys.stderr, flush=True)


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Variant -> the mean over seeds."""
    shown = [name for name in COLUMNS if name in table]
    return table.groupby("variant", sort=False)[shown].mean().round(3)


def main() -> None:
    top = argparse.ArgumentParser(prog="python -m bench.matching", description=__doc__.splitlines()[0])
    top.add_argument("part", choices=("digits", "filters", "shapes", "students", "imagenet"))
    top.add_argument("--seeds", type=int, default=3)
    top.add_argument("--epochs", type=int, default=10, help="students: passes over the pictures")
    top.add_argument("--sparsity", type=float, default=0.6, help="imagenet: fraction that goes")
    top.add_argument("--weights", type=Path, help="imagenet: the file with SqueezeNet's weights")
    top.add_argument("--json", type=Path, help="also write the rows to this file")
    options = top.parse_args()
    torch.set_num_threads(1)
    table = {
        "digits": lambda: compare("pruned", shipped(options.seeds)),
        "filters": lambda: compare("cut", shipped(options.seeds)),
        "shapes": lambda: compare("pruned", shapes(options.seeds), **SMALL, epochs=2, learning_rate=0.01),
        "students": lambda: compare("taught", shapes(options.seeds), **SMALL, epochs=options.epochs),
        "imagenet": lambda: imagenet(options.weights, options.seeds, options.sparsity),
    }[options.part]()
    print(f"{options.part}, mean of {options.seeds} seeds", means(table).to_string(), sep="\n")
    if options.json:
        options.json.write_text(to_json(table.round(5).to_dict("records")) + "\n")


if __name__ == "__main__":
    main()
