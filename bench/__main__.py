"""`python -m bench`: everything, as one table of ratios; or one part of it.

python -m bench                       the table; --markdown as in docs/performance.md, --json as JSON
python -m bench whatif --json         one network: --model resnet20, vgg11-bn ...
python -m bench coverage              how often the first interval is right; takes minutes
python -m bench attributions          maps of six methods against Captum
python -m bench memory                what 200 sliders moved leave behind
python -m bench jobs                  what sliders cost while a job trains beside them
python -m bench.matching | .transfer | .pu | .gates   three seeds of a paper that trains, see --help
python -m bench.bounds                bounds over boxes against auto_LiRPA, and proofs used again, see --help
python -m bench criteria resnet20     every criterion on one network, see bench/criteria.py
python -m bench.proofs                what is left of proofs after compression, and Marabou beside, see --help
python -m bench instances acasxu      published verification instances, see bench/instances.py
"""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the app does, and before torch is loaded

import argparse
import json
from typing import Any

import torch

from bench import attributions, coverage, criteria, instances, jobs, large, machine, memory, table, whatif
from bench.subjects import SUBJECTS
from bench.timing import say
from core.plan import QUESTIONS


def everything(options: argparse.Namespace) -> dict[str, Any]:
    before = machine.load()
    networks = [
        whatif.measure(SUBJECTS["resnet20"](), options.rounds),
        *(
            whatif.measure(SUBJECTS[name](), options.rounds, layers=options.rounds, atlas_rounds=0)
            for name in ("vgg11-bn", "vgg16-bn", "mobilenetv2")
        ),
    ]
    say("all pictures, attributions, memory")
    return {
        "networks": networks,
        "large": large.measure(SUBJECTS["resnet20"](None), options.rounds),
        "attributions": attributions.measure(options.rounds),
        "memory": memory.measure_alone(),
        "machine": machine.describe(before),
    }


def one_network(options: argparse.Namespace) -> dict[str, Any]:
    images = {} if options.images is None else {"images": options.images}
    return whatif.measure(
        SUBJECTS[options.model](**images), options.rounds, options.layers, options.atlas_rounds
    )


def intervals(options: argparse.Namespace) -> dict[str, Any]:
    return coverage.measure(SUBJECTS["resnet20"](), options.plans, options.orders, options.question)


def moves(options: argparse.Namespace) -> dict[str, Any]:
    return memory.measure(SUBJECTS["resnet20"](), options.moves)


def maps(options: argparse.Namespace) -> dict[str, Any]:
    return attributions.measure(options.rounds)


def beside_jobs(options: argparse.Namespace) -> dict[str, Any]:
    return jobs.measure(SUBJECTS["resnet20"](), options.rounds)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["criteria"]:
        criteria.main(arguments[1:])
        return
    if arguments[:1] == ["instances"]:
        instances.main(arguments[1:])
        return
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)  # as the app does on two cores: the workers have the cores
    results = options.work(options)
    if options.command is None and not options.json:
        print(table.markdown(results) if options.markdown else table.plain(results))
    elif options.json:
        print(json.dumps(results, indent=2))
    else:
        print(*(f"{name:32}{value}" for name, value in results.items() if name != "layers"), sep="\n")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    top.set_defaults(work=everything)
    top.add_argument("--markdown", action="store_true", help="the table as it stands in docs/performance.md")
    shared = argparse.ArgumentParser(add_help=False)
    for each in (top, shared):
        each.add_argument("--json", action="store_true", help="all numbers, for programs")
        each.add_argument("--rounds", type=int, default=5, help="every median is one of so many rounds")
    parts = top.add_subparsers(dest="command")
    network = parts.add_parser("whatif", parents=[shared], help="one network")
    network.add_argument("--model", choices=SUBJECTS, default="resnet20")
    network.add_argument("--images", type=int, help="so many of the test pictures")
    network.add_argument("--layers", type=int, help="time so many of the sliders, from first to last")
    network.add_argument(
        "--atlas-rounds", type=int, help="surveys of all layers; as many as rounds unless given"
    )
    network.set_defaults(work=one_network)
    first = parts.add_parser("coverage", parents=[shared], help="is the first answer's interval right?")
    first.add_argument("--plans", type=int, default=500, help="random plans of several layers")
    first.add_argument("--orders", type=int, default=1000, help="orders of the pictures for every cell")
    first.add_argument("--question", choices=QUESTIONS, default="remove")
    first.set_defaults(work=intervals)
    session = parts.add_parser("memory", parents=[shared], help="what moved sliders leave behind")
    session.add_argument("--moves", type=int, default=memory.MOVES)
    session.set_defaults(work=moves)
    parts.add_parser("attributions", parents=[shared], help="maps against Captum").set_defaults(work=maps)
    beside = parts.add_parser("jobs", parents=[shared], help="sliders beside a training")
    beside.set_defaults(work=beside_jobs)
    parts.add_parser("criteria", add_help=False, help="every criterion on one network")
    parts.add_parser("instances", add_help=False, help="published verification instances")
    return top


if __name__ == "__main__":
    main()
