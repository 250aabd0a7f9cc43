"""Proofs of robustness: how much of one survives compression, and what reusing it saves.

python -m bench.proofs            small networks, compressed in eleven ways: cores that hold, speed-up
python -m bench.proofs --quick    the same, cores of the new proofs not minimised
python -m bench.proofs marabou    the same questions about the originals, against Marabou
python -m bench.proofs shell      against whole assignments from z3, refuted one after the other
python -m bench.proofs slack      cores that are minimised less far

A question is a picture, a radius and the runner-up class; those are kept whose original is proved within the
limit and needs more than bounds and one linear program. Seconds are processor seconds, bounds included,
the least of three turns. Speed-ups are geometric means, with their range, over the questions that need
a search about the compressed network as well.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import machine
from core.bundles import DATASETS, DatasetBundle, Setting, Split
from core.errors import DataUnavailableError
from core.evaluation import evaluate
from core.methods.low_rank import LowRank
from core.methods.prune_filters import PruneFilters
from core.methods.prune_weights import PruneWeights
from core.methods.quantize import Quantize
from core.properties.robustness import pixels
from core.proving.attack import attack
from core.proving.bounds import crown
from core.proving.network import ReluNetwork, unroll
from core.proving.proof import Answer, Literal, Proof
from core.proving.question import TOLERANCE, Deadline, Question
from core.proving.relaxation import Relaxation
from core.proving.search import search
from core.recipe import Compressor, Recipe, compress
from core.run import seeded

SECONDS = 10.0  # for one question, as in the specification
TURNS = 3
RADII = tuple(round(0.02 + 0.01 * step, 2) for step in range(11))  # 0.02 to 0.12


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained network, and pictures to ask about."""

    name: str
    model: nn.Module
    data: DatasetBundle


@dataclass(frozen=True, eq=False)
class Asked:
    """A question about a subject that needs a search, and its answer."""

    subject: Subject
    picture: int
    radius: float
    label: int
    other: int
    question: Question
    answer: Answer

    def about(self, model: nn.Module) -> Question:
        """The same question about another network."""
        network = network_of(model, self.subject.data.test)
        return Question(network.margins(self.label, [self.other]), self.question.low, self.question.high)


def digits() -> DatasetBundle:
    return DATASETS["digits"]().load()


def small_mnist() -> DatasetBundle:
    """MNIST averaged to 7 x 7 pixels."""
    data = DATASETS["mnist"]().load()

    def pooled(split: Split, count: int) -> Split:
        images = F.avg_pool2d(split.pixels[:count].float(), 4).round().to(torch.uint8)
        return Split(images, split.labels[:count], split.mean, split.std)

    parts = {name: pooled(data.split(name), 12_000) for name in ("train", "validation", "test")}
    return DatasetBundle(
        **parts, name="mnist-7", classes=data.classes, licence=data.licence, source=data.source
    )


def trained(data: DatasetBundle, hidden: int, epochs: int) -> nn.Module:
    """Two hidden layers, by Adam."""
    with seeded(0):
        inputs = data.train.pixels[0].numel()
        layers = (nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 10))
        model = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        images, labels = data.train.images, data.train.labels
        optimizer = torch.optim.Adam(model.parameters(), 0.005)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)


def subjects() -> Iterator[Subject]:
    data = digits()
    for hidden in (16, 24):
        yield Subject(f"digits 64-{hidden}-{hidden}-10", trained(data, hidden, 60), data)
    try:
        data = small_mnist()
    except DataUnavailableError as missing:
        print(missing)
        return
    yield Subject("MNIST 49-20-20-10", trained(data, 20, 5), data)


def network_of(model: nn.Module, pictures: Split) -> ReluNetwork:
    return unroll(model, tuple(pictures.pixels.shape[1:])).behind(pictures.mean, pictures.std)


def asked(subject: Subject, pictures: int, **options) -> Iterator[Asked]:
    """All radii at which the first pictures need a search, up to where there is a counterexample."""
    network = network_of(subject.model, subject.data.test)
    for index in range(pictures):
        picture = subject.data.test.take(slice(index, index + 1))
        x, right = pixels(picture), int(picture.labels[0])
        label, other = network(x[None])[0].topk(2).indices.tolist()
        for radius in RADII if label == right else ():
            low, high = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
            question = Question(network.margins(label, [other]), low, high)
            bounds = crown(question.network, low[None], high[None])
            if bounds.margin.item() > TOLERANCE:
                continue
            if attack(question) is not None:
                break
            answer = search(question, bounds, Deadline(SECONDS), **options)
            if answer.status == "proved" and answer.proof.cores != ((),):
                yield Asked(subject, index, radius, label, other, question, answer)


# ---------------------------------------------------------------------------------------- compression


def by_recipe(step: Compressor) -> Callable[[Subject], nn.Module]:
    def apply(subject: Subject) -> nn.Module:
        setting = Setting(subject.data.train, subject.data.validation, subject.model)
        return compress(subject.model, setting, Recipe((step,))).model

    return apply


COMPRESSIONS: dict[str, Callable[[Subject], nn.Module]] = {
    "none": by_recipe(PruneWeights(sparsity=0.0)),
    "int8": by_recipe(Quantize(bits=8)),
    "int6": by_recipe(Quantize(bits=6)),
    "int4": by_recipe(Quantize(bits=4)),
    "prune 5 %": by_recipe(PruneWeights(sparsity=0.05)),
    "prune 20 %": by_recipe(PruneWeights(sparsity=0.2)),
    "prune 50 %": by_recipe(PruneWeights(sparsity=0.5)),
    "one neuron of every layer removed": by_recipe(PruneFilters(sparsity=0.05)),
    "a tenth of the neurons removed": by_recipe(PruneFilters(sparsity=0.1)),
    "low rank, 95 % of the energy": by_recipe(LowRank(rule="energy", energy=0.95)),
    "low rank, 80 % of the energy": by_recipe(LowRank(rule="energy", energy=0.8)),
}


# ----------------------------------------------------------------------------------------- measurement


def timed(question: Question, old: Proof | None = None, **options) -> tuple[Answer, float]:
    """The answer, and the processor seconds for bounds and search."""
    best = math.inf
    for _ in range(TURNS):
        begin = time.process_time()
        bounds = crown(question.network, question.low[None], question.high[None])
        answer = search(question, bounds, Deadline(SECONDS), old, **options)
        best = min(best, time.process_time() - begin)
    return answer, best


def compared(questions: Iterable[Asked], name: str, models: dict[str, nn.Module], **options) -> pd.DataFrame:
    """A row per question: how the compressed network's answer came about, alone and helped."""
    found = []
    for each in questions:
        new = each.about(models[each.subject.name])
        alone, seconds = timed(new, **options)
        helped, less = timed(new, each.answer.proof, **options)
        if helped.status != alone.status and "unknown" not in (helped.status, alone.status):
            raise AssertionError(f"{name}: {alone.status} alone and {helped.status} helped")
        found.append(
            {
                "status": helped.status,
                "alone": alone.status,
                "search": alone.work["lps"] > 1,
                "lps": alone.work["lps"],
                "lps_helped": helped.work["lps"],
                "seconds": seconds,
                "seconds_helped": less,
                **{part: getattr(helped.reuse, part) for part in helped.reuse.__dataclass_fields__},
            }
        )
    return pd.DataFrame(found)


def summary(name: str, table: pd.DataFrame) -> dict[str, str | int]:
    hard = table[table.search & (table.alone != "unknown") & (table.status != "unknown")]
    kept, cores = int((table.valid + table.trivial).sum()), int(table.parts.sum())
    return {
        "compression": name,
        "questions": len(table),
        "refuted now": int((table.status == "refuted").sum()),
        "unknown": int((table.status == "unknown").sum()),
        "one program is enough": int((~table.search).sum()),
        "cores that hold": f"{kept} of {cores} ({kept / cores:.0%}), {int(table.trivial.sum())} trivially",
        "broken": int(table.broken.sum()),
        "searched": len(hard),
        "speed-up, programs": ratios(hard.lps / hard.lps_helped.clip(lower=1)),
        "speed-up, seconds": ratios(hard.seconds / hard.seconds_helped),
        "programs": f"{hard.lps.sum()} -> {hard.lps_helped.sum()}",
        "seconds": f"{hard.seconds.sum():.2f} -> {hard.seconds_helped.sum():.2f}",
    }


def ratios(values: pd.Series) -> str:
    """Geometric mean and range."""
    if values.empty:
        return "-"
    mean = math.exp(values.map(math.log).mean())
    return f"{mean:.1f} ({values.min():.1f} to {values.max():.1f})"


# --------------------------------------------------------------------------------------------- others


def shell(question: Question, deadline: Deadline) -> tuple[str, int, int]:
    """Whole assignments from z3, each refuted by a core minimised by deletion: status, programs, cores."""
    import z3

    bounds = crown(question.network, question.low[None], question.high[None])
    program, solver = Relaxation(question, bounds), z3.Solver()
    places = [(k, int(i)) for k, part in enumerate(bounds.unstable()) for i in part[0].nonzero()[:, 0]]
    names = {place: z3.Bool(f"p{place[0]},{place[1]}") for place in places}
    cores = 0
    while solver.check() == z3.sat:
        if deadline.over:
            return "unknown", program.solved, cores
        model = solver.model()
        phases = tuple(
            Literal(*place, 1 if z3.is_true(model.eval(names[place], model_completion=True)) else -1)
            for place in places
        )
        found = program.value(phases)
        if found.support is None:
            if found.point is not None and question.violated_by(torch.from_numpy(found.point)):
                return "refuted", program.solved, cores
            return "unknown", program.solved, cores
        for literal in reversed(found.support):
            if literal in found.support:
                trial = program.value(tuple(x for x in found.support if x != literal))
                found = trial if trial.support is not None else found
        cores += 1
        solver.add(z3.Or([z3.Not(names[p[:2]]) if p.phase > 0 else names[p[:2]] for p in found.support]))
    return "proved", program.solved, cores


def marabou(question: Question, seconds: int) -> tuple[str, float]:
    """Marabou's verdict, and its processor seconds: those of its solver alone, the least of three turns."""
    from maraboupy import Marabou, MarabouCore, MarabouNetwork

    def add(rows: Tensor, shifts: Tensor, before: list[int]) -> list[int]:
        made = []
        for row, shift in zip(rows.tolist(), shifts.tolist(), strict=True):
            made.append(network.getNewVariable())
            network.addEquality([made[-1], *before], [-1.0, *row], -shift)
        return made

    network = MarabouNetwork.MarabouNetwork()
    values = [network.getNewVariable() for _ in question.low]
    network.inputVars = [np.array(values)]
    for variable, low, high in zip(values, question.low.tolist(), question.high.tolist(), strict=True):
        network.setLowerBound(variable, low)
        network.setUpperBound(variable, high)
    layers = list(zip(question.network.weights, question.network.biases, strict=True))
    for k, (weight, bias) in enumerate(layers):
        sums = add(weight, bias, values)
        if k == len(layers) - 1:
            break
        values = [network.getNewVariable() for _ in sums]
        for z, h in zip(sums, values, strict=True):
            network.addRelu(z, h)
    for margin in sums:
        network.setUpperBound(margin, 0.0)
    network.outputVars = [np.array(sums)]
    options = Marabou.createOptions(verbosity=0, timeoutInSeconds=seconds)
    best = math.inf
    for _ in range(TURNS):
        query = network.getInputQuery()
        begin = time.process_time()
        verdict, _, _ = MarabouCore.solve(query, options, "")
        best = min(best, time.process_time() - begin)
    return {"unsat": "proved", "sat": "refuted"}.get(verdict, "unknown"), best


# --------------------------------------------------------------------------------------------- tables


@cache
def everything(pictures: int, minimal: bool = True, slack: float = 0.0) -> tuple[Asked, ...]:
    return tuple(
        each for subject in subjects() for each in asked(subject, pictures, minimal=minimal, slack=slack)
    )


def reuse(options: argparse.Namespace, slack: float = 0.0) -> None:
    questions = everything(options.pictures, slack=slack)
    for name, group in by_subject(questions):
        cores = [len(each.answer.proof.cores) for each in group]
        sizes = [len(core) for each in group for core in each.answer.proof.cores]
        lps = [each.answer.work["lps"] for each in group]
        subject = group[0].subject
        accuracy = evaluate(subject.model, subject.data.test).accuracy
        print(
            f"{name}: accuracy {accuracy:.1%}, {len(group)} questions, {min(cores)} to {max(cores)} cores of "
            f"{sum(sizes) / len(sizes):.1f} phases, {min(lps)} to {max(lps)} programs",
            flush=True,
        )
    rows = []
    for name, change in COMPRESSIONS.items():
        if options.only not in name:
            continue
        models = {each.subject.name: change(each.subject) for each in questions}
        table = compared(questions, name, models, minimal=not options.quick, slack=slack)
        rows.append(summary(name, table))
        print(" | ".join(map(str, rows[-1].values())), flush=True)
    print(pd.DataFrame(rows).set_index("compression").T.to_string())


def by_subject(questions: Iterable[Asked]) -> Iterator[tuple[str, list[Asked]]]:
    groups: dict[str, list[Asked]] = {}
    for each in questions:
        groups.setdefault(each.subject.name, []).append(each)
    yield from groups.items()


def against_others(options: argparse.Namespace) -> None:
    """Ours beside Marabou, or beside z3's whole assignments, on the originals and on int8."""
    questions = everything(options.pictures)
    for name in ("none", "int8"):
        models = {each.subject.name: COMPRESSIONS[name](each.subject) for each in questions}
        rows = []
        for each in questions:
            question = each.about(models[each.subject.name])
            ours, seconds = timed(question)
            quick, quicker = timed(question, minimal=False)
            helped, less = timed(question, each.answer.proof)
            if options.part == "marabou":
                (theirs, taken), programs = marabou(question, 60), 0
            else:
                begin = time.process_time()
                theirs, programs, _ = shell(question, Deadline(60))
                taken = time.process_time() - begin
            if len({ours.status, quick.status, helped.status, theirs} - {"unknown"}) > 1:
                raise AssertionError(f"ours {ours.status}, helped {helped.status}, theirs {theirs}")
            rows.append((ours.status, theirs, taken, seconds, quicker, less, programs, ours.work["lps"]))
        table = pd.DataFrame(
            rows, columns=["ours", "theirs", "taken", "seconds", "quick", "helped", "programs", "lps"]
        )
        both = table[(table.ours != "unknown") & (table.theirs != "unknown")]
        print(f"{name}: {len(table)} questions, answered by both, alike: {len(both)}", end="; ")
        print(f"unknown to {options.part}: {(table.theirs == 'unknown').sum()}")
        for column in ("taken", "seconds", "quick", "helped"):
            print(f"  median {both[column].median() * 1000:.1f} ms, sum {both[column].sum():.2f} s: {column}")
        for column in ("seconds", "quick", "helped"):
            print(f"  {options.part} / {column}: {ratios(both.taken / both[column])}")
        if both.programs.any():
            print(f"  programs: {ratios(both.programs / both.lps)}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.proofs", description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", default="reuse", choices=("reuse", "marabou", "shell", "slack"))
    parser.add_argument("--pictures", type=int, default=25, help="the first so many test pictures")
    parser.add_argument("--quick", action="store_true", help="do not minimise the cores of new proofs")
    parser.add_argument("--only", default="", help="compressions with this in their name")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = machine.load()
    if options.part == "reuse":
        reuse(options)
    elif options.part == "slack":
        for slack in (0.0, 0.1, 0.3, 1.0):
            print(f"slack {slack:g}")
            reuse(options, slack)
    else:
        against_others(options)
    print(machine.sentence(machine.describe(before)))


if __name__ == "__main__":
    main()
