"""What positive-unlabelled selection finds in two pools, and what students make of it.

python -m bench.pu classifiers   what each chooses, and at which risk: two minutes
python -m bench.pu shares        the estimated share of positives against the true one: one minute
python -m bench.pu students      what students make of every choice: five minutes

Three seeds each; minutes are those of one processor thread.

The network is a small CNN trained here on six classes of cluttered digits. Kept are 15 pictures of each.
Pool A is easy: 2,000 pictures, 20 % of them held back, the others textures and noise. Pool B is hard: 30 %
held back, the others digits of the four classes that the network has never seen. Pool C is like A, but the
first three classes are ten times as frequent as the others among the pictures held back.
"""

import argparse
import sys
from collections.abc import Iterator

import pandas as pd
import torch
from torch import nn

from core.bundles import DATASETS, MODELS, DatasetBundle, Setting, Split
from core.evaluation import evaluate
from core.layers import private_copy
from core.method import from_text
from core.pools import Pool, divide, mixed, noise, textures
from core.positive_unlabeled import ESTIMATORS, estimated_prior, learn, pooled_pair
from core.recipe import COMPRESSORS, Recipe, compress
from core.robust_distillation import RobustDistillation, class_weights, logits_of
from core.run import Run, seeded
from core.selection import Selection, judged
from core.training import Classification, Schedule, fit

SEEN = 6  # classes that the network knows
KEPT = 15  # pictures of each
SIZE = 2000  # of a pool
SHARES = {"A": 0.2, "B": 0.3, "C": 0.2}
PASSES = 170  # of the classifier, as in the authors' program
PICTURES = 9600  # that a student sees, again and again where there are fewer: 300 steps
SCHEDULE = Schedule(epochs=1, learning_rate=0.05, batch_size=32, crop=2, flip=False)
RARE = 10  # pool C: how much rarer the second half of the classes is
STUDENT = "student:width=0.5"


def part(split: Split, *, seen: bool) -> Split:
    """The pictures of the classes that the network knows, or of the others."""
    return split.take(((split.labels < SEEN) == seen).nonzero()[:, 0])


def taught(data: DatasetBundle) -> nn.Module:
    """The network that is to be compressed."""
    with seeded(0):
        model = MODELS["small-cnn"]().build(data.shape, SEEN)
        schedule = Schedule(epochs=8, crop=2, flip=False)
        fit(model, part(data.train, seen=True), Classification(), schedule, Run())
    return model


def drawn(name: str, data: DatasetBundle, share: float | None = None, kept: int = KEPT) -> tuple[Split, Pool]:
    """Kept pictures, and pool `name` with `share` of it in the domain."""
    positives, held = divide(part(data.train, seen=True), kept)
    if name == "C":
        frequent = (held.labels < SEEN // 2) | (torch.rand(len(held)) < 1 / RARE)
        held = held.take(frequent.nonzero()[:, 0])
    others = {"unseen classes": part(data.train, seen=False).pixels}
    far = {"textures": textures(held, SIZE), "noise": noise(held, SIZE)}
    return positives, mixed(held, others if name == "B" else far, SIZE, share or SHARES[name])


def classifiers(teacher: nn.Module, data: DatasetBundle, seeds: int) -> Iterator[dict]:
    """Every classifier on pools A and B: what it chooses, and its negative part at the end."""
    tried = [(name, "gated", None) for name in ESTIMATORS]
    tried += [("nnpu", "gated", told) for told in (0.1, 0.6)]
    tried += [("nnpu", stages, None) for stages in ("multi-scale", "last-stage")]
    for seed in range(seeds):
        for pool_name in "AB":
            with seeded(seed):
                positives, pool = drawn(pool_name, data)
            for estimator, stages, told in tried:
                both = pooled_pair(teacher, positives, pool.pictures, stages, Run())
                told = told or SHARES[pool_name]
                with seeded(seed):
                    gated = stages == "gated"
                    scoring = learn(*both, told, estimator, gated=gated, epochs=PASSES, run=Run())
                count, precision, recall = judged(scoring.unlabelled > 0, pool.truth)
                yield {
                    "pool": pool_name,
                    "classifier": estimator,
                    "features": stages,
                    "told": told,
                    "chosen": count,
                    "precision": precision,
                    "recall": recall,
                    "N": scoring.negative,
                    "collapsed": float(scoring.collapsed()),
                }


def shares(teacher: nn.Module, data: DatasetBundle, seeds: int) -> Iterator[dict]:
    """The estimated share against the true one."""
    for seed in range(seeds):
        for name in "AB":
            for kept in (KEPT, 100):
                for share in (0.1, 0.2, 0.3, 0.5, 0.7):
                    with seeded(seed):
                        positives, pool = drawn(name, data, share, kept)
                    estimate = estimated_prior(
                        *pooled_pair(teacher, positives, pool.pictures, "gated", Run())
                    )
                    true = pool.truth.double().mean().item()
                    yield {"pool": name, "kept": kept, "true": true, "estimate": estimate}


def students(teacher: nn.Module, data: DatasetBundle, seeds: int) -> Iterator[dict]:
    """Test accuracy of a student on what every choice leaves it, after equal numbers of steps."""
    for seed in range(seeds):
        for name in SHARES:
            with seeded(seed):
                positives, pool = drawn(name, data)
            both, chosen = pooled_pair(teacher, positives, pool.pictures, "gated", Run()), {}
            for estimator in ESTIMATORS:
                with seeded(seed):
                    scoring = learn(*both, SHARES[name], estimator, gated=True, epochs=PASSES, run=Run())
                chosen[estimator] = scoring.unlabelled > 0
            with seeded(seed):
                chosen["random, as many"] = chosen["nnpu"][torch.randperm(SIZE)]
            chosen |= {"oracle": pool.truth, "all of the pool": torch.ones(SIZE).bool()}
            kept = {how: Selection(positives, pool, which).kept for how, which in chosen.items()}
            if name == "A":  # these are the same beside every pool
                kept |= {"nothing": positives, "all original pictures": part(data.train, seen=True)}
            tried = [(how, "exact", True) for how in (kept if name != "C" else ["nnpu"])]
            tried += [("nnpu", "none", False)]
            tried += [("nnpu", "none", True), ("nnpu", "official", True)] if name == "C" else []
            for how, worst, weighted in tried:
                accuracy, rare = followed(teacher, kept[how], data, seed, worst, weighted=weighted)
                yield {
                    "pool": name,
                    "pictures": how,
                    "worst case": worst,
                    "weights": weighted,
                    "count": len(kept[how]),
                    "accuracy": accuracy,
                    "rare classes": rare,
                }


def followed(
    teacher: nn.Module, kept: Split, data: DatasetBundle, seed: int, worst: str, *, weighted: bool
) -> tuple[float, float]:
    """Test accuracy of a fresh student that followed the teacher on `kept`: all classes, the last half."""
    setting = Setting(part(data.train, seen=True), part(data.validation, seen=True), teacher)
    student = compress(teacher, setting, Recipe((from_text(COMPRESSORS, STUDENT),), seed)).model
    weights = class_weights(logits_of(teacher, kept, Run()).softmax(1))
    weights = weights if weighted else torch.ones_like(weights)
    epsilon = 0.0 if worst == "none" else min(0.1, 0.99 * weights.min().item())
    with seeded(seed):
        task = RobustDistillation(private_copy(teacher), weights, epsilon, official=worst == "official")
        rounds = torch.cat([torch.randperm(len(kept)) for _ in range(-(-PICTURES // len(kept)))])
        fit(student, kept.take(rounds[:PICTURES]), task, SCHEDULE, Run())
    test = part(data.test, seen=True)
    rare = test.take((test.labels >= SEEN // 2).nonzero()[:, 0])
    return evaluate(student, test).accuracy, evaluate(student, rare).accuracy


PARTS = {
    "classifiers": (classifiers, ["pool", "classifier", "features", "told"]),
    "shares": (shares, ["pool", "kept", "true"]),
    "students": (students, ["pool", "pictures", "worst case", "weights"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = DATASETS["cluttered-digits"]().load()
    teacher = taught(data)
    print(f"teacher: {evaluate(teacher, part(data.test, seen=True)).accuracy:.1%} of the test pictures")
    measure, keys = PARTS[options.part]
    rows = []
    for row in measure(teacher, data, options.seeds):
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    shown = table.groupby(keys, sort=False).agg(["mean", "std"]).round(3)
    print(f"{measure.__doc__} {options.seeds} seeds.\n{shown.to_string()}")


if __name__ == "__main__":
    main()
