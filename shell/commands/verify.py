"""Proofs about a network and what a recipe makes of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated, Any

import typer

from shell.loading import choose, load, setting, use_threads
from shell.options import read_method, read_recipe
from shell.output import print_json, run_with_progress
from shell.parameters import Data, Json, Model, SplitOption, Threads, Weights


def verify(
    model: Model,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also what this saved recipe makes of the network")
    ] = None,
    property_: Annotated[
        str, typer.Option("--property", metavar="NAME", help="What is to be proved; its options follow")
    ] = "robustness",
    images: Annotated[str, typer.Option(metavar="A:B|0,5,7", help="Which pictures are asked about")] = "0:10",
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    reuse: Annotated[bool, typer.Option(help="Let the original's proof help with the other network")] = True,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Prove the other network without it, too, to compare times")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Prove that no small change of a picture changes the answer, or show one that does."""
    from core.certificate import certify, side_of
    from core.recipe import compress
    from core.verification import PROPERTIES

    use_threads(threads)
    check = read_method(PROPERTIES, property_, settings)
    steps = None if recipe is None else read_recipe(recipe)
    bundle, dataset = load(model, data, weights)
    pictures = dataset.split(split)
    chosen = choose(images, len(pictures), pictures)
    run = run_with_progress()
    networks = [bundle.module]
    if steps is not None:
        networks.append(compress(bundle.module, setting(bundle, dataset), steps, run).model)
    found = []
    for index in run.track(chosen, "Proving"):
        picture = pictures.take(slice(index, index + 1))
        if steps is None:
            verdict = check.check(bundle.module, picture, run)
            about = {"original": side_of(verdict, {"original": bundle.module}, picture).to_dict()}
            about = {"label": int(picture.labels[0]), **about}
        else:
            about = certify(check, networks, picture, run, reuse, scratch).to_dict()
        found.append({"picture": index} | about)
    report = {
        "model": bundle.architecture.name,
        "data": dataset.name,
        "split": split,
        "n": len(chosen),
        "property": check.to_dict(),
        "recipe": None if steps is None else json.loads(steps.to_json()),
        "summary": _summary(found),
        "pictures": found,
    }
    if as_json:
        return print_json(report)
    return _print(report)


def _summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of verdicts, share of pictures proved, of the old proofs that held, and what they saved."""
    from core.evaluation import wilson

    report: dict[str, Any] = {}
    for name in ("original", "compressed"):
        said = [each[name]["status"] for each in found if name in each]
        if said:
            proved = said.count("proved")
            counts = {status: said.count(status) for status in ("proved", "refuted", "unknown")}
            report[name] = counts | {"certified": proved / len(said), "interval": wilson(proved, len(said))}
    kept = [each["reuse"] for each in found if each.get("reuse")]
    if parts := sum(each["parts"] for each in kept):
        report["reuse_rate"] = sum(each["trivial"] + each["valid"] for each in kept) / parts
    gains = [each["speed_up"] for each in found if each.get("speed_up") and _searched(each)]
    if gains:
        report |= {"speed_up": geometric_mean(gains), "searched": len(gains)}
    return report


def _print(report: Mapping[str, Any]) -> None:
    """A line for every picture and network, then the counts."""
    named = report["property"]
    print(
        f"{report['model']} on {report['data']}, {report['split']}; "
        + ", ".join(f"{name} {value}" for name, value in named.items() if name != "method")
    )
    for each in report["pictures"]:
        sides = [(name, each[name]) for name in ("original", "compressed", "scratch") if each.get(name)]
        for name, side in sides:
            words = "misclassified" if _misclassified(each, side) else side["status"]
            held = each["reuse"] if name == "compressed" and _searched(each) else None
            kept = f"  {held['trivial'] + held['valid']} of {held['parts']} cores hold" if held else ""
            print(f"  {each['picture']:>5}  {name:10}  {words:13} {side['seconds']:8.3f} s{kept}")
    summary = report["summary"]
    for name in ("original", "compressed"):
        if name in summary:
            low, high = summary[name]["interval"]
            print(
                f"  {name}: proved {summary[name]['proved']} of {report['n']} "
                f"({summary[name]['certified']:.0%}, 95 % interval {low:.0%} to {high:.0%}), "
                f"refuted {summary[name]['refuted']}, unknown {summary[name]['unknown']}"
            )
    if "reuse_rate" in summary:
        print(f"  reused: {summary['reuse_rate']:.0%} of the original's cores hold")
    if "speed_up" in summary:
        print(
            f"  with the old proof {summary['speed_up']:.1f} times as fast as without "
            f"(geometric mean of the {summary['searched']} pictures that bounds alone do not decide)"
        )


def _searched(each: Mapping[str, Any]) -> bool:
    """Was there anything to search, or did bounds and an attack tell?"""
    return any(finding["cores"] and finding["cores"] > 1 for finding in each["original"]["findings"])


def _misclassified(each: Mapping[str, Any], side: Mapping[str, Any]) -> bool:
    return side["status"] == "refuted" and side["predicted"] != each["label"]
