"""Bounds of networks all over a box: how tight, and how long; ours against auto_LiRPA's.

python -m bench.bounds                            the shipped mlp on Digits, 20 test pictures, three radii
python -m bench.bounds --onnx NET.onnx FILE.vnnlib ...   instead: a network from a file, and its boxes
python -m bench.bounds --reuse                    branching on the mlp, and on its int8 copy with and without

With auto_LiRPA 0.3 in a folder of its own it takes turns with ours; its metadata ask for an old torch:

pip install --no-deps --target FOLDER auto_LiRPA==0.3 appdirs
PYTHONPATH=FOLDER python -m bench.bounds

A row per radius and method: the mean over pictures of the smallest margin's lower bound, pictures of which
that proves something, seconds a picture, one thread. Then by how much the two CROWNs differ at most.
"""

import argparse
import importlib.util
import statistics
import sys
import types
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import machine
from bench.timing import medians, say, timed
from core.properties.robustness import pixels
from core.proving.attack import attack
from core.proving.bounds import crown, intervals
from core.proving.branching import branch
from core.proving.instance import rounded
from core.proving.network import ReluNetwork, unroll
from core.proving.proof import Answer, Proof
from core.proving.question import TOLERANCE, Deadline, Question
from core.proving.slopes import alive, optimised, tightened
from core.weights import load_dataset, load_model

STEPS = 20  # of every optimisation
RADII = (0.02, 0.05, 0.1)
SAID = ("proved", "refuted", "unknown")
Method = Callable[[Question], Tensor]  # lower bounds of the margins, (R,)


def mlp(pictures: int) -> dict[str, list[Question]]:
    """Radius -> a question for every picture: every other class is a margin."""
    model, test = load_model("mlp", "digits").module, load_dataset("digits").test
    found: dict[str, list[Question]] = {f"radius {radius:g}": [] for radius in RADII}
    for place in range(pictures):
        picture = test.take(slice(place, place + 1))
        network = unroll(model, picture.pixels.shape[1:]).behind(picture.mean, picture.std)
        label, x = int(picture.labels[0]), pixels(picture)
        others = [other for other in range(network.outputs) if other != label]
        for radius in RADII:
            box = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
            found[f"radius {radius:g}"].append(Question(network.margins(label, others), *box))
    return found


def published(onnx: Path, files: Sequence[Path]) -> dict[str, list[Question]]:
    """File -> its one box; the outputs of all its questions are the margins."""
    from core.proving.onnx_file import read_onnx
    from core.proving.vnnlib import questions, read_vnnlib

    network, found = read_onnx(onnx), {}
    for path in files:
        asked = questions(network, read_vnnlib(path, network.inputs, network.outputs))
        last = torch.cat([question.network.weights[-1] for question in asked])
        shift = torch.cat([question.network.biases[-1] for question in asked])
        together = ReluNetwork((*network.weights[:-1], last), (*network.biases[:-1], shift))
        found[path.stem] = [Question(together, asked[0].low, asked[0].high)]
    return found


# ----------------------------------------------------------------------------------------------- ours


def plain(question: Question) -> Tensor:
    return intervals(question.network, question.low[None], question.high[None]).margins[0]


def linear(question: Question) -> Tensor:
    return crown(question.network, question.low[None], question.high[None]).margins[0]


def sloped(question: Question) -> Tensor:
    """CROWN's ranges of the hidden layers, slopes of the margins optimised."""
    low, high = question.low, question.high
    network, bounds, _ = alive(question.network, crown(question.network, low[None], high[None]))
    return optimised(network, low, high, bounds, None, STEPS)[0][0]


def tight(question: Question) -> Tensor:
    """The ranges of the hidden layers optimised, too."""
    low, high = question.low, question.high
    network, bounds, _ = alive(question.network, crown(question.network, low[None], high[None]))
    bounds = tightened(network, low, high, bounds, STEPS)
    network, bounds, _ = alive(network, bounds)
    return optimised(network, low, high, bounds, None, STEPS)[0][0]


OURS: dict[str, Method] = {
    "intervals": plain,
    "CROWN": linear,
    "CROWN, slopes of margins optimised": sloped,
    "CROWN, all slopes optimised": tight,
}


# --------------------------------------------------------------------------------------------- theirs


def theirs() -> dict[str, Method]:
    """auto_LiRPA's methods; none where it is not installed."""
    if importlib.util.find_spec("auto_LiRPA") is None:
        say("no auto_LiRPA here: only our own bounds are measured")
        return {}
    _old_names()
    return {
        "auto_LiRPA, intervals": lambda question: lirpa(question, "IBP"),
        "auto_LiRPA, CROWN": lambda question: lirpa(question, "backward"),
    }


def lirpa(question: Question, method: str) -> Tensor:
    from auto_LiRPA import BoundedTensor
    from auto_LiRPA.perturbations import PerturbationLpNorm

    low, high = question.low[None], question.high[None]
    ball = BoundedTensor((low + high) / 2, PerturbationLpNorm(norm=np.inf, x_L=low, x_U=high))
    lower, _ = _prepared(question).compute_bounds(x=(ball,), method=method, bound_upper=False)
    return lower[0].detach()


@cache
def _prepared(question: Question) -> nn.Module:
    """The network as auto_LiRPA wants it; not a part of what is timed."""
    from auto_LiRPA import BoundedModule

    # "adaptive": the slope below is 1 where a ReLU is more on than off, else 0, as ours is
    return BoundedModule(_module(question.network), question.low[None], bound_opts={"relu": "adaptive"})


def _module(network: ReluNetwork) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _old_names() -> None:
    """Three names that auto_LiRPA 0.3 uses and that numpy 2 and torch 2 have not kept."""
    sets = types.ModuleType("numpy.lib.arraysetops")
    sets.isin = np.isin
    sys.modules.setdefault(sets.__name__, sets)
    helper = importlib.import_module("torch.onnx.symbolic_helper")
    settings = importlib.import_module("torch.onnx._internal.torchscript_exporter._globals").GLOBALS
    helper._set_opset_version = lambda version: setattr(settings, "export_onnx_opset_version", version)
    torch._C.Node.__getitem__ = lambda node, key: getattr(node, node.kindOf(key))(key)


# --------------------------------------------------------------------------------------- proofs again


def again(radii: Sequence[float], pictures: int, seconds: float) -> list[dict[str, Any]]:
    """A row per radius: what bounds and attack leave open, and int8 weights with and without cores."""
    model, test = load_model("mlp", "digits").module, load_dataset("digits").test
    rows = []
    for radius in radii:
        found = []
        for place in range(pictures):
            picture = test.take(slice(place, place + 1))
            network = unroll(model, picture.pixels.shape[1:])
            both = [each.behind(picture.mean, picture.std) for each in (network, rounded(network, 8))]
            label, x = int(picture.labels[0]), pixels(picture)
            box = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
            for other in (other for other in range(network.outputs) if other != label):
                asked = [Question(each.margins(label, [other]), *box) for each in both]
                if all(_hard(question) for question in asked):
                    first = _branched(asked[0], seconds)
                    found.append(
                        (first, _branched(asked[1], seconds), _branched(asked[1], seconds, first.proof))
                    )
            say(f"radius {radius:g}, {place + 1} pictures, {len(found)} questions")
        rows.append(_compared(radius, found))
    return rows


def _hard(question: Question) -> bool:
    return linear(question).item() <= TOLERANCE and attack(question) is None


def _branched(question: Question, seconds: float, old: Proof | None = None) -> Answer:
    bounds = crown(question.network, question.low[None], question.high[None])
    return branch(question, bounds, Deadline(seconds), old)


def _compared(radius: float, found: list[tuple[Answer, Answer, Answer]]) -> dict[str, Any]:
    searched = [row for row in found if row[0].proof.cores not in ((), ((),)) and row[0].status == "proved"]
    both = [row for row in searched if row[1].status == row[2].status == "proved"]
    parts, held = (
        sum(number(row[2].reuse) for row in searched)
        for number in (lambda reuse: reuse.parts, lambda reuse: reuse.trivial + reuse.valid)
    )
    ratio = {
        what: statistics.geometric_mean([measure(row[1]) / measure(row[2]) for row in both]) if both else None
        for what, measure in (("seconds", lambda a: a.seconds), ("bounds", lambda a: a.work["bounds"]))
    }
    return {
        "radius": radius,
        "questions": len(found),
        **{f"original {said}": sum(row[0].status == said for row in found) for said in SAID},
        **{f"int8 {said}": sum(row[1].status == said for row in found) for said in SAID},
        "other verdict with cores": sum(row[1].status != row[2].status for row in found),
        "proved by cores": len(searched),
        "cores held": f"{held} of {parts}",
        "n": len(both),
        **{f"speed-up, {what}": value for what, value in ratio.items()},
    }


# ------------------------------------------------------------------------------------------ the table


def measure(asked: dict[str, list[Question]], rounds: int) -> list[dict[str, Any]]:
    """A row per set of questions and method."""
    methods, rows = OURS | theirs(), []
    for name, questions in asked.items():
        say(name)
        found = {method: _all(bound, questions) for method, bound in methods.items()}
        turns = {method: partial(timed, partial(_all, bound, questions)) for method, bound in methods.items()}
        seconds = medians(turns, rounds)
        for method, margins in found.items():
            least = [margin.min().item() for margin in margins]
            rows.append(
                {
                    "boxes": name,
                    "n": len(least),
                    "method": method,
                    "bound": statistics.mean(least),
                    "proved": sum(value > TOLERANCE for value in least),
                    "ms": 1000 * seconds[method] / len(least),
                }
            )
        if "auto_LiRPA, CROWN" in found:
            pairs = list(zip(found["CROWN"], found["auto_LiRPA, CROWN"], strict=True))
            rows[-1]["theirs above ours"] = max((b - a).max().item() for a, b in pairs)
            rows[-1]["ours above theirs"] = max((a - b).max().item() for a, b in pairs)
    return rows


def _all(bound: Method, questions: Sequence[Question]) -> list[Tensor]:
    return [bound(question) for question in questions]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--onnx", type=Path, help="a network in a file")
    parser.add_argument("vnnlib", nargs="*", type=Path, help="boxes for it")
    parser.add_argument("--reuse", action="store_true", help="branching, with and without old cores")
    parser.add_argument("--seconds", type=float, default=20.0, help="time limit of a question")
    parser.add_argument("--radii", type=float, nargs="*", default=RADII)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.reuse:
        for row in again(options.radii, options.pictures, options.seconds):
            print(*(f"{name:28}{value}" for name, value in row.items()), "", sep="\n")
        print(machine.sentence(machine.describe()))
        return
    asked = published(options.onnx, options.vnnlib) if options.onnx else mlp(options.pictures)
    print("| boxes | n | method | mean bound of the smallest margin | proved | ms a box |")
    print("|---|---|---|---|---|---|")
    for row in measure(asked, options.rounds):
        what = f"| {row['boxes']} | {row['n']} | {row['method']} |"
        print(f"{what} {row['bound']:.4f} | {row['proved']} | {row['ms']:.1f} |")
        if "theirs above ours" in row:
            more, less = row["theirs above ours"], row["ours above theirs"]
            print(
                f"The two CROWNs: theirs is above ours by at most {more:.1e}, ours above theirs {less:.1e}."
            )
    print(machine.sentence(machine.describe()))


if __name__ == "__main__":
    main()
