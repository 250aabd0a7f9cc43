"""Students of a quarter of the channels, taught in several ways with the same number of steps.

python -m bench.transfer                       small CNN on Fashion-MNIST, three seeds: five minutes
python -m bench.transfer --data cluttered-digits --images 6000 --epochs 20
python -m bench.transfer --only CE FT fitnet:weight=0.1        some of them, or objectives as text
python -m bench.transfer --paraphrasers --model resnet20 --data cluttered-digits   no students: a minute

Prints a line per student, and at the end means and spreads. Minutes are those of one processor thread.
"""

import argparse
import math
import sys
import time
from typing import Any

import pandas as pd
import torch
from torch import nn

from core.agreement import agreement
from core.attribution import ATTRIBUTIONS, answers, explain
from core.bundles import Setting, Split
from core.evaluation import evaluate
from core.method import from_text
from core.objective import OBJECTIVES
from core.paraphraser import Paraphrasing, paraphrase_of
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run, seeded
from core.taps import feature_layers
from core.weights import load_dataset, load_model

EXPLAINED = 100  # test pictures
WIDTH = 0.25
COLLAPSED = "reconstruction=l1,paraphraser_optimizer=sgd,paraphraser_images=256,paraphraser_epochs=5"
WAYS = {  # name -> objective, its hyper-parameters behind a colon
    "CE": "labels",
    "KD": "distillation",
    "AT": "attention-transfer",
    "AT, weight 1000": "attention-transfer:weight=1000",
    "FitNet": "fitnet",
    "FitNet, weight 1": "fitnet:weight=1",
    "FT": "factor-transfer",
    "FT + KD": "factor-transfer:share=0.9",
    "FT, collapsed": f"factor-transfer:{COLLAPSED}",
}
TOLD = ("factor_cosine_before", "factor_cosine", "paraphraser_error", "paraphraser_under_trained")


def student(way: str, seed: int, setting: Setting, test: Split, **schedule: Any) -> dict[str, float]:
    """One student, and what became of it."""
    objective = from_text(OBJECTIVES, WAYS.get(way, way))
    tuning = COMPRESSORS["fine-tuning"](objective=objective, **schedule)
    recipe = Recipe((COMPRESSORS["student"](width=WIDTH), tuning), seed)
    run, start = Run(), time.process_time()
    network = compress(setting.teacher, setting, recipe, run).model
    seconds, found = time.process_time() - start, evaluate(network, test)
    row = {"way": way, "seed": seed, "accuracy": found.accuracy, "parameters": found.parameters}
    row |= {"maps": alike(network, setting.teacher, test), "seconds": seconds}
    return row | {name: run.records[-1].get(name, math.nan) for name in TOLD}


def alike(network: nn.Module, teacher: nn.Module, test: Split) -> float:
    """Mean rank correlation of both networks' integrated gradients for the teacher's classes."""
    images, method = test.take(slice(EXPLAINED)).images, ATTRIBUTIONS["integrated-gradients"](steps=16)
    classes = answers(teacher, images).argmax(1)
    maps = [explain(net, method, images, classes) for net in (teacher, network)]
    return agreement(*maps).means()["spearman"]


def paraphrasers(setting: Setting, seeds: int) -> pd.DataFrame:
    """What paraphrasers of the last maps miss, by what they minimise and what trains them: mean, worst."""
    layer, rows = feature_layers(setting.teacher, setting.train.take(slice(1)).images)[-1], []
    for reconstruction in ("mse", "l1"):
        for optimizer in ("adamw", "sgd"):
            for seed in range(seeds):
                how = Paraphrasing(reconstruction=reconstruction, optimizer=optimizer)
                with seeded(seed):
                    made = paraphrase_of(setting.teacher, layer, setting, how, Run())
                rows.append({"minimised": reconstruction, "optimizer": optimizer, "error": made.error})
                print(rows[-1] | {"seed": seed, "zeros": made.zeros}, flush=True)
    return pd.DataFrame(rows).groupby(["minimised", "optimizer"], sort=False).error.agg(["mean", "max"])


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, spreads (standard deviation) of accuracy and of the difference from CE."""
    beside = rows.pivot(index="seed", columns="way", values="accuracy")
    means = rows.drop(columns="seed").groupby("way", sort=False).mean()
    means.insert(1, "spread", beside.std())
    if "CE" in beside:
        gain = beside.sub(beside["CE"], axis=0)
        means.insert(2, "gain", gain.mean())
        means.insert(3, "gain_spread", gain.std())
    return means


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--paraphrasers", action="store_true")
    parser.add_argument("--only", nargs="+", default=list(WAYS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, teacher = load_dataset(options.data), load_model(options.model, options.data).module
    setting = Setting(data.train, data.validation, teacher)
    schedule = {"epochs": options.epochs, "images": options.images, "learning_rate": 0.1, "batch_size": 64}
    schedule["schedule"] = "one-cycle"
    whole = evaluate(teacher, data.test)
    print(f"teacher: {whole.accuracy:.2%} of {len(data.test)}, {whole.parameters:,} parameters", flush=True)
    if options.paraphrasers:
        print(paraphrasers(setting, options.seeds))
        return
    rows = []
    for seed in range(options.seeds):
        for way in options.only:
            rows.append(student(way, seed, setting, data.test, **schedule))
            print(
                {name: round(v, 4) if isinstance(v, float) else v for name, v in rows[-1].items()}, flush=True
            )
    print(table(pd.DataFrame(rows)).round(4).T.to_string())


if __name__ == "__main__":
    main(sys.argv[1:])
