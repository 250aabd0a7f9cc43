"""Published instances: ONNX networks and VNN-LIB properties whose verdicts are known.

    python -m bench instances acasxu --seconds 20 --out acasxu.jsonl
    python -m bench instances acasxu --seconds 20 --bits 8 --out acasxu-int8.jsonl
    python -m bench instances --table acasxu.jsonl

One line of JSON per instance, so that a run that was stopped goes on: what is in the file is not asked
again, unless it was unknown and there is more time now. With --bits N the same property is asked of the
network with weights of N bits as well, once with the original's proof and once without. A verdict that
contradicts the published one is "wrong"; none may be.
"""

import argparse
import csv
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch

from bench.subjects import SHARED
from bench.timing import say
from core.proving.instance import Settled, rounded, settle, thinned
from core.proving.onnx_file import read_onnx
from core.proving.vnnlib import read_vnnlib

FOLDER = SHARED / "verification"
ARCHIVES = {
    "acasxu": "acasxu_onnx_vnnlib.zip",
    "mnistfc": "mnistfc_onnx_vnnlib.zip",
    "oval21": "cifar10_oval21_resnet.zip",
}
PUBLISHED = {"holds": "proved", "violated": "refuted", "unknown": "unknown"}


def published(category: str, every: int = 1) -> list[dict[str, str]]:
    """The instances of a category: category, network, property, verdict ..."""
    with open(FOLDER / "verdicts_2021.csv", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["category"] == category]
    return found[::every]


def measure(row: dict[str, str], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One instance; `folder` holds the unpacked files."""
    paths = {path.name: path for path in folder.rglob("*") if path.suffix in (".onnx", ".vnnlib")}
    network = read_onnx(paths[row["network"]])
    cases = read_vnnlib(paths[row["property"]], network.inputs, network.outputs)
    found = settle(network, cases, options.seconds)
    told = {key: row[key] for key in ("category", "network", "property", "verdict")}
    told |= {"limit": options.seconds, **_told(found)}
    if options.bits or options.sparsity:
        changed = rounded(network, options.bits) if options.bits else thinned(network, options.sparsity)
        helped, alone = (
            settle(changed, cases, options.seconds, found.proofs),
            settle(changed, cases, options.seconds),
        )
        told |= {"bits": options.bits, "sparsity": options.sparsity}
        told |= {"helped": _told(helped), "alone": _told(alone)}
    return told


def _told(found: Settled) -> dict[str, Any]:
    told = {"status": found.status, "seconds": found.seconds, "work": found.work, "reason": found.reason}
    return told | ({"reuse": vars(found.reuse)} if found.reuse is not None else {})


def outstanding(rows: list[dict[str, str]], path: Path, seconds: float) -> Iterator[dict[str, str]]:
    """What is not in the file yet, or was not known with less time."""
    known = {}
    for line in read(path):
        known[line["network"], line["property"]] = line
    for row in rows:
        before = known.get((row["network"], row["property"]))
        if before is None or (before["status"] == "unknown" and before["limit"] < seconds):
            yield row


def read(path: Path) -> list[dict[str, Any]]:
    """The last line of every instance."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = {(line["network"], line["property"]): line for line in map(json.loads, lines)}
    return list(found.values())


def table(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of verdicts, and what the old proofs saved."""
    said = [line["status"] for line in lines]
    finished = [line for line in lines if line["status"] != "unknown"]
    wrong = [
        line
        for line in finished
        if line["verdict"] != "unknown" and PUBLISHED[line["verdict"]] != line["status"]
    ]
    found: dict[str, Any] = {
        "instances": len(lines),
        "finished": len(finished),
        **{status: said.count(status) for status in ("proved", "refuted", "unknown")},
        "wrong": len(wrong),
        "unknown as published": sum(line["verdict"] == "unknown" for line in finished),
        "median seconds": median(line["seconds"] for line in finished) if finished else None,
        "most seconds": max((line["seconds"] for line in finished), default=None),
    }
    return found | _savings([line for line in lines if "helped" in line])


def _savings(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the old proof had parts, and the changed network has a verdict either way."""
    pairs = [line for line in lines if "unknown" not in (line["helped"]["status"], line["alone"]["status"])]
    differ = sum(line["helped"]["status"] != line["alone"]["status"] for line in pairs)
    reused = [line for line in pairs if line["helped"].get("reuse", {}).get("parts")]
    if not reused:
        return {"compressed": len(lines), "verdicts that differ": differ} if lines else {}
    parts = sum(line["helped"]["reuse"]["parts"] for line in reused)
    valid = sum(line["helped"]["reuse"]["valid"] + line["helped"]["reuse"]["trivial"] for line in reused)

    def gain(what: str) -> float:
        return geometric_mean(_cost(line["alone"], what) / _cost(line["helped"], what) for line in reused)

    searched = {
        "compressed": len(lines),
        "verdicts that differ": differ,
        "with a proof by parts": len(reused),
    }
    saved = {
        "reuse rate": valid / parts,
        "speed-up, boxes": gain("boxes"),
        "speed-up, seconds": gain("seconds"),
    }
    return searched | saved


def _cost(side: dict[str, Any], what: str) -> float:
    return side["seconds"] if what == "seconds" else max(side["work"].get(what, 0), 1)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench instances", description=__doc__.splitlines()[0])
    parser.add_argument("category", nargs="?", choices=ARCHIVES)
    parser.add_argument("--seconds", type=float, default=20.0, help="time for every verdict")
    parser.add_argument("--every", type=int, default=1, help="every so-manieth instance")
    parser.add_argument("--bits", type=int, help="also of the network with weights of so many bits")
    parser.add_argument(
        "--sparsity", type=float, help="also of the network without this share of its weights"
    )
    parser.add_argument("--out", type=Path, help="lines of JSON; a run that was stopped goes on")
    parser.add_argument("--table", type=Path, nargs="+", help="print what is in these files")
    options = parser.parse_args(arguments)
    if options.table:
        for path in options.table:
            print(
                path.name,
                *(f"  {name:24}{_shown(value)}" for name, value in table(read(path)).items()),
                sep="\n",
            )
        return
    if options.category is None or options.out is None:
        parser.error("a category and --out, or --table")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, options.out.open("a") as out:
        with zipfile.ZipFile(FOLDER / ARCHIVES[options.category]) as archive:
            archive.extractall(folder)
        for row in outstanding(published(options.category, options.every), options.out, options.seconds):
            line = measure(row, Path(folder), options)
            out.write(json.dumps(line) + "\n")
            out.flush()
            say(f"{row['network']:36} {row['property']:16} {line['status']:8} {line['seconds']:8.2f} s")


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
