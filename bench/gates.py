"""Complexity-aware training: what its three numbers do to a small residual network, and to a trained one.

python -m bench.gates reference     four blocks of 16 channels learn noisy digits of 8 x 8: twelve minutes
python -m bench.gates pretrained    the shipped ResNet-20 on Cluttered digits, quick schedule: ten minutes

Prints a row per seed and setting, and their means. Minutes are those of one processor thread.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from core.bundles import DATASETS, Setting, Split
from core.evaluation import evaluate
from core.layers import prunable
from core.models.cifar_resnet import BasicBlock
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run, seeded
from core.weights import load_dataset, load_model

STEP = 128  # pictures in the pass that is timed
NOISE = 0.25  # standard deviation, of pixels in [0, 1]
WIDTH, BLOCKS = 16, 4
SLOW = {
    "epochs": 40,
    "learning_rate": 0.05,
    "crop": 0,
    "images": 10_000,
    "batch_size": 64,
    "start": "scratch",
}
RAW = {"gate_step": 0.5, "schedule": "constant", "warm_up": 0.0}  # neither sized steps nor patience
REFERENCE: dict[str, dict[str, Any]] = {
    **{f"strength {nu:g}": {"strength": nu} for nu in (0.03, 0.1, 0.3, 1.0, 2.0)},
    **{f"blocks pay {share:.0%}": {"strength": 1.0, "layer_share": share} for share in (0.1, 0.9)},
    **{
        f"raw steps, blocks pay {share:.0%}": {"strength": 0.3, "layer_share": share} | RAW
        for share in (0.0, 0.5, 1.0)
    },
    "raw steps, blocks pay 50%, warm-up": {"strength": 0.3} | RAW | {"warm_up": 0.25},
    "raw steps of 2": {"strength": 0.3} | RAW | {"gate_step": 2.0},
    "raw steps of 2, warm-up": {"strength": 0.3} | RAW | {"gate_step": 2.0, "warm_up": 0.25},
}
PRETRAINED: dict[str, dict[str, Any]] = {f"strength {nu:g}": {"strength": nu} for nu in (1.0, 2.0)}


class Blocks(nn.Module):
    """A stem and residual blocks of one width, all at the size of the picture, and a linear layer."""

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(*(BasicBlock(width, width, 1) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.linear(self.pool(x).flatten(1))


def noisy(split: Split, seed: int) -> Split:
    """The same pictures with noise that is drawn once."""
    random = torch.Generator().manual_seed(seed)
    pixels = split.pixels / 255 + NOISE * torch.randn(split.pixels.shape, generator=random)
    return replace(split, pixels=(pixels.clamp(0, 1) * 255).round().to(torch.uint8))


def reference(seed: int) -> tuple[Setting, Split]:
    """A fresh network and noisy digits to teach it, and others to test it on."""
    data = DATASETS["digits"]().load()
    train, validation, test = (
        noisy(part, n) for n, part in enumerate((data.train, data.validation, data.test))
    )
    with seeded(seed):
        return Setting(train, validation, Blocks().eval().requires_grad_(False)), test


def pretrained(seed: int) -> tuple[Setting, Split]:
    """The shipped network; the seed is that of its training."""
    bundle = load_model("resnet20", "cluttered-digits")
    data = load_dataset(bundle.dataset)
    return Setting(data.train, data.validation, bundle.module), data.test


def speed_up(before: nn.Module, after: nn.Module, train: Split, rounds: int = 7) -> float:
    """Processor time of a pass forward and back through `before`, as a multiple of that through `after`."""
    images = train.take(slice(0, STEP)).images.contiguous(memory_format=torch.channels_last)
    networks = [copy.deepcopy(model).train().requires_grad_(True) for model in (before, after)]
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for model, seconds in zip(networks, taken, strict=True):
            begin = time.process_time()
            model(images).sum().backward()
            seconds.append(time.process_time() - begin)
    return statistics.median(taken[0]) / statistics.median(taken[1])


def measured(setting: Setting, test: Split, seed: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """What training under `given` leaves, and how it went."""
    run, begin = Run(), time.perf_counter()
    model = compress(
        setting.teacher, setting, Recipe((COMPRESSORS["complexity-aware"](**given),), seed), run
    ).model
    seconds = time.perf_counter() - begin
    before, after = evaluate(setting.teacher, test), evaluate(model, test)
    *epochs, last = run.records
    widths = {name: len(layer.weight) for name, layer in prunable(model).items()}
    inner = [name for name in prunable(setting.teacher) if name.count(".") > 1 and name.endswith("conv1")]
    return {
        "accuracy": after.accuracy,
        "macs": after.macs / before.macs,
        "parameters": after.parameters / before.parameters,
        "blocks": sum(name in widths for name in inner),
        "undecided": epochs[-1]["undecided"],
        "speed_up": speed_up(setting.teacher, model, setting.train),
        "collapsed": last["collapsed"],
        "seconds": seconds,
        "channels": " ".join(str(widths.get(name, 0)) for name in inner),
    }


def rows(part: str, seeds: int, only: str) -> Iterator[dict[str, Any]]:
    build, common, settings = {
        "reference": (reference, SLOW, REFERENCE),
        "pretrained": (pretrained, {}, PRETRAINED),
    }[part]
    for seed in range(seeds):
        setting, test = build(seed)
        for name, given in settings.items():
            if only not in name:
                continue
            row = {"setting": name, "seed": seed} | measured(setting, test, seed, common | given)
            print(
                *(f"{value:.3f}" if isinstance(value, float) else value for value in row.values()), flush=True
            )
            yield row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gates", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("reference", "pretrained"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="settings with this in their name")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = pd.DataFrame(list(rows(options.part, options.seeds, options.only)))
    means = table.drop(columns=["seed", "channels"]).groupby("setting", sort=False).mean()
    print(means.round(3).to_string())


if __name__ == "__main__":
    main()
