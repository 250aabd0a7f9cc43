"""Prunescope from a shell: the same engine as the app, every command with --json.

Options of methods are not written here: they are read from the declarations in `core`, so that a
new method, criterion or schedule setting is an option at once.
"""

import contextlib
import inspect
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shell.options import (
    declared_options,
    describe,
    explain_parameter,
    flag_name,
    given,
    read_data,
    read_method,
    read_recipe,
    registries,
    with_options,
)
from shell.output import (
    plain,
    print_agreement,
    print_atlas,
    print_json,
    print_latency,
    print_report,
    print_table,
    run_with_progress,
    say,
    to_json,
)

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded: idle threads sleep

if TYPE_CHECKING:  # torch takes seconds to load, and `--help` needs none of it
    from torch import nn

    from core.attribution import AttributionMethod
    from core.bundles import DatasetBundle, ModelBundle, Split
    from core.recipe import Recipe
    from core.run import Run

SplitName = Literal["train", "validation", "test"]

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, as in resnet20 or mlp:hidden=16, or JSON form")
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|JSON|PATH", help="Data set, or own pictures; default: what the weights were trained on"
    ),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights to use instead of the shipped ones")
]
SplitOption = Annotated[SplitName, typer.Option(help="Part of the data that is reported on")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of all random numbers")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; default: torch's choice")]
OutFolder = Annotated[Path | None, typer.Option(metavar="DIR", help="Write the results into this folder")]
Attributions = Annotated[
    list[str] | None,
    typer.Option("--attribution", metavar="NAME|JSON", help="Attribution method; may be repeated"),
]
Indices = Annotated[
    str | None, typer.Option(metavar="0,5,7", help="Which pictures are explained; default: the first")
]
Count = Annotated[int, typer.Option(min=1, help="How many pictures are explained")]


# ---------------------------------------------------------------------------------------- commands


def list_(
    kind: Annotated[str | None, typer.Argument(help="Only this kind, for instance methods")] = None,
    as_json: Json = False,
) -> None:
    """Show models, data sets, methods, criteria, attributions."""
    from core.errors import UnknownNameError
    from core.registry import unknown

    kinds = registries()
    if kind is not None:
        if kind not in kinds:
            raise UnknownNameError(unknown("kind", kind, kinds))
        kinds = {kind: kinds[kind]}
    found = {kind: [describe(registry[name]) for name in registry] for kind, registry in kinds.items()}
    if as_json:
        return print_json(found)
    for kind, entries in found.items():
        print(kind)
        for entry in entries:
            print(f"  {entry['name']:26}{entry['summary']}")
            if len(found) == 1:
                for parameter in entry["parameters"]:
                    print(f"    {flag_name(parameter['name']):24}{explain_parameter(parameter)}")
    return None


def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set to fetch into the data directory")],
    as_json: Json = False,
) -> None:
    """Fetch a data set; embedded ones are made."""
    from core.bundles import DATASETS

    source = read_method(DATASETS, name)
    with contextlib.redirect_stdout(sys.stderr):  # where torchvision's own messages may go
        source.download(run_with_progress())
    data = source.load()
    sizes = {part: len(data.split(part)) for part in ("train", "validation", "test")}
    report = {
        "data": data.name,
        **sizes,
        "classes": len(data.classes),
        "licence": data.licence,
        "source": data.source,
    }
    print_report(report, as_json)


def train(
    model: Model,
    data: Annotated[
        str, typer.Option(metavar="NAME|JSON|PATH", help="Data set to train on, or own pictures")
    ],
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the weights go")] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint that a stopped run left")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train a network; write its weights and how they were made."""
    from core.bundles import MODELS
    from core.evaluation import evaluate as measure
    from core.run import seeded
    from core.training import Schedule, classification_loss, fit
    from core.weights import save_model

    _use_threads(threads)
    schedule = Schedule(**given(Schedule, settings))
    architecture = read_method(MODELS, model, settings)
    bundle = read_data(data)
    _make_folder(out)
    path = out / f"{architecture.name}--{bundle.name}.safetensors"
    asked = {
        "model": architecture.to_dict(),
        "data": bundle.name,
        "seed": seed,
        "schedule": schedule.to_dict(),
    }
    checkpoint = _checkpoint(path.with_suffix(".ckpt"), asked, resume)
    run = run_with_progress()
    with seeded(seed):
        network = architecture.build(bundle.shape, len(bundle.classes))
        loss = classification_loss(schedule.label_smoothing)
        try:
            fit(
                network,
                bundle.train,
                loss,
                schedule,
                run,
                validation=bundle.validation,
                checkpoint=checkpoint,
            )
        except KeyboardInterrupt:
            say(f"\nStopped; the same command with --resume goes on from {checkpoint}")
            raise
    result = measure(network, bundle.test)
    report = {
        **asked,
        "command": shlex.join(["python", "cli.py", *(word for word in sys.argv[1:] if word != "--resume")]),
        "epochs": schedule.epochs,
        "split": "test",
        **result.to_dict(),
        **_machine(),
        "history": run.records,
    }
    save_model(network, path, architecture, bundle, plain(report))
    for leftover in (checkpoint, _settings_file(checkpoint)):
        leftover.unlink(missing_ok=True)
    print_report({**report, "weights": str(path)}, as_json, hide=("history", "schedule", "model"))


def evaluate(
    model: Model,
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a network: accuracy, costs, size."""
    from core.evaluation import evaluate as measure

    _use_threads(threads)
    bundle, dataset = _load(model, data, weights)
    result = measure(bundle.module, dataset.split(split), run_with_progress())
    if as_json:
        named = {"model": bundle.architecture.name, "data": dataset.name, "split": split}
        return print_json(named | result.to_dict())
    print(f"{bundle.architecture.name} on {dataset.name}, {split}")
    return print_table([result])


def compress(
    model: Model,
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Name of a method; its options follow")],
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    seed: Seed = 0,
    out: OutFolder = None,
    attribution: Attributions = None,
    indices: Indices = None,
    count: Count = 16,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Apply one method; compare before and after."""
    from core.recipe import COMPRESSORS, Recipe

    _use_threads(threads)
    step = read_method(COMPRESSORS, method, settings)
    recipe = Recipe((step,), seed)
    _carry_out(_load(model, data, weights), recipe, split, out, attribution, indices, count, as_json)


def run(
    model: Model,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="JSON file with steps and seed")],
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    out: OutFolder = None,
    attribution: Attributions = None,
    indices: Indices = None,
    count: Count = 16,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Carry out a saved recipe; compare before and after."""
    _use_threads(threads)
    steps = read_recipe(recipe)
    _carry_out(_load(model, data, weights), steps, split, out, attribution, indices, count, as_json)


def explain(
    model: Model,
    method: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", help="Method that compresses; its options follow")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A saved recipe instead of METHOD")
    ] = None,
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    attribution: Attributions = None,
    indices: Indices = None,
    count: Count = 16,
    bounds: Annotated[bool, typer.Option(help="Also the noise ceiling and the random floor")] = True,
    target: Annotated[
        Literal["predicted", "label"],
        typer.Option(help="Class explained: the original's answer, or the true one"),
    ] = "predicted",
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the maps into this .npz file")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Compare where the network looks, before and after."""
    import numpy as np

    from core.errors import ParameterError
    from core.recipe import COMPRESSORS, Recipe
    from core.recipe import compress as carry_out

    _use_threads(threads)
    if (method is None) == (recipe is None):
        raise ParameterError("explain: name either a METHOD or a --recipe, to have a network to compare with")
    if method is not None:
        steps = Recipe((read_method(COMPRESSORS, method, settings),), seed)
    else:
        steps = read_recipe(recipe)
    bundle, dataset = _load(model, data, weights)
    pictures = dataset.split(split)
    chosen = _choose(indices, count, pictures)
    methods = _attributions(attribution)
    progress = run_with_progress()
    compressed = carry_out(bundle.module, _setting(bundle, dataset), steps, progress).model
    looked = _look(bundle.module, compressed, pictures, chosen, methods, target, steps.seed, progress, bounds)
    if out is not None:
        path = out if out.suffix == ".npz" else out / "maps.npz"
        _make_folder(path.parent)
        np.savez_compressed(path, **looked.maps)
    report = {
        "model": bundle.architecture.name,
        "data": dataset.name,
        "split": split,
        "n": len(chosen),
        "images": chosen,
        "target": target,
        "recipe": json.loads(steps.to_json()),
        "agreement": looked.agreement,
    }
    if as_json:
        return print_json(report)
    print(
        f"{bundle.architecture.name} on {dataset.name}, {split}, n = {len(chosen)} pictures; target: {target}"
    )
    return print_agreement(looked.agreement)


def latency(
    model: Model,
    sparsity: Annotated[float, typer.Option(min=0, max=1, help="Of every slider")] = 0.5,
    question: Annotated[
        str, typer.Option(help="What the sliders take away, as on the Prune page")
    ] = "remove",
    plan: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instead of both: a plan, as the app's links carry it")
    ] = None,
    data: Data = None,
    weights: Weights = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each network has")] = 7,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time a plan in fact: original, zeros only, removed."""
    from core.plan import Plan
    from core.realised import realised
    from core.sliders import Sliders

    _use_threads(threads)
    bundle, dataset = _load(model, data, weights)
    sliders = Sliders(bundle, dataset)
    if plan is None:
        chosen = sliders.preset("uniform", question, None, sparsity)
    else:
        chosen = Plan.from_text(plan, sliders.sliders)
    found = realised(sliders, chosen, dataset.test.take(slice(batch)).images, rounds)
    if as_json:
        named = {"model": bundle.architecture.name, "data": dataset.name}
        text = chosen.to_text(sliders.sliders)
        rows = found.table.to_dict("records")
        return print_json({**named, "plan": text, "forms": rows, "no_removed_form": found.why})
    return print_latency(found)


def atlas(
    model: Model,
    question: Annotated[str, typer.Option(help="What a slider takes away, as on the Prune page")] = "remove",
    criterion: Annotated[
        str | None, typer.Option(metavar="NAME", help="What goes first; else the question's own")
    ] = None,
    data: Data = None,
    weights: Weights = None,
    split: SplitOption = "test",
    as_json: Json = False,
) -> None:
    """Move every slider alone through nine sparsities; see what each costs."""
    from core.whatif import WhatIf

    bundle, dataset = _load(model, data, weights)
    progress = run_with_progress()
    with progress.step(0, 2):
        whatif = WhatIf(bundle, dataset, dataset.split(split), progress)
    with progress.step(1, 2):
        *_, found = whatif.atlas(question, criterion, progress)
    if as_json:
        named = {"model": bundle.architecture.name, "data": dataset.name, "split": split}
        return print_json(named | found.to_dict())
    print(f"{bundle.architecture.name} on {dataset.name}, {split}, n = {found.n:,}; {whatif.words}")
    return print_atlas(found)


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_,
    "download": download,
    "train": train,
    "evaluate": evaluate,
    "compress": compress,
    "run": run,
    "explain": explain,
    "latency": latency,
    "atlas": atlas,
}


# ------------------------------------------------------------------------- what the commands share


def _load(model: str, data: str | None, weights: Path | None) -> "tuple[ModelBundle, DatasetBundle]":
    """The network, and the data it is to be measured on."""
    from core.bundles import MODELS
    from core.weights import load_dataset, load_model

    dataset = None if data is None else read_data(data)
    bundle = load_model(read_method(MODELS, model), dataset, weights)
    return bundle, dataset or load_dataset(bundle.dataset)


def _setting(bundle: "ModelBundle", dataset: "DatasetBundle") -> Any:
    from core.bundles import Setting

    return Setting(dataset.train, dataset.validation, bundle.module)


def _carry_out(
    loaded: "tuple[ModelBundle, DatasetBundle]",
    recipe: "Recipe",
    split: str,
    out: Path | None,
    attribution: list[str] | None,
    indices: str | None,
    count: int,
    as_json: bool,
) -> None:
    """Compress, measure before and after on the same pictures, report, and write with `out`."""
    from core.evaluation import change, logits
    from core.evaluation import evaluate as measure
    from core.recipe import compress as carry_out
    from core.weights import save_model

    bundle, dataset = loaded
    pictures = dataset.split(split)
    methods = _attributions(attribution) if attribution else {}
    chosen = _choose(indices, count, pictures) if methods else []
    if out is not None:
        _make_folder(out)
    progress = run_with_progress()
    started = time.monotonic()
    compressed = carry_out(bundle.module, _setting(bundle, dataset), recipe, progress).model
    seconds = time.monotonic() - started
    networks = (bundle.module, compressed)
    answers = [logits(network, pictures, progress) for network in networks]
    before, after = (
        measure(network, pictures, answers=given) for network, given in zip(networks, answers, strict=True)
    )
    moved = change(*answers, pictures.labels)
    report = {
        "model": bundle.architecture.name,
        "data": dataset.name,
        "split": split,
        "recipe": json.loads(recipe.to_json()),
        "before": before.to_dict(),
        "after": after.to_dict(),
        "difference": moved.difference,
        "interval": moved.interval,
        "gained": len(moved.gained),
        "lost": len(moved.lost),
        "gained_images": moved.gained.tolist(),
        "lost_images": moved.lost.tolist(),
        "history": progress.records,
        "seconds": round(seconds, 2),
    }
    if methods:
        looked = _look(
            bundle.module, compressed, pictures, chosen, methods, "predicted", recipe.seed, progress
        )
        report["agreement"] = looked.agreement
    if out is not None:
        provenance = bundle.provenance | {"compressed_by": report["recipe"]}
        save_model(compressed, out / "model.safetensors", bundle.architecture, dataset, provenance)
        (out / "recipe.json").write_text(recipe.to_json() + "\n")
        (out / "report.json").write_text(to_json(report) + "\n")
    if as_json:
        return print_json(report)
    print(f"{report['model']} on {report['data']}, {split}: before and after")
    print_table([before, after])
    low, high = (f"{100 * end:+.2f}" for end in moved.interval)
    print(f"  {'Gained, lost':20}{report['gained']:>16,}{report['lost']:>16,}")
    print(
        f"  {'Change of accuracy':20}{100 * moved.difference:>+16.2f} points, 95 % interval [{low}, {high}]"
    )
    return print_agreement(report.get("agreement", {}))


@dataclass(frozen=True)
class _Looked:
    """Attribution maps of two networks on the same pictures, and how far they agree."""

    agreement: dict[str, dict[str, Any]]  # attribution method -> means, per image, and their bounds
    maps: dict[str, Any]  # array name -> array, as written to .npz


def _look(
    before: "nn.Module",
    after: "nn.Module",
    pictures: "Split",
    chosen: list[int],
    methods: "dict[str, AttributionMethod]",
    target: str,
    seed: int,
    progress: "Run",
    bounds: bool = True,
) -> _Looked:
    """Explain `chosen` pictures by both networks, for the same classes.

    The bounds, in which an agreement is read: the original against itself under noise, and against
    its architecture with random weights.
    """
    import torch

    from core.agreement import agreement, noise_ceiling, random_floor
    from core.attribution import explain
    from core.evaluation import logits

    taken = pictures.take(torch.tensor(chosen))
    targets = logits(before, taken).argmax(1) if target == "predicted" else taken.labels
    agreements: dict[str, dict[str, Any]] = {}
    maps: dict[str, Any] = {"images": chosen, "labels": taken.labels.numpy(), "targets": targets.numpy()}
    for name, method in methods.items():
        pair = [explain(m, method, taken.images, targets, progress, seed) for m in (before, after)]
        maps[f"{name}.before"], maps[f"{name}.after"] = (m.numpy() for m in pair)
        agreed = agreement(*pair)
        agreements[name] = {
            "mean": agreed.means(),
            "compared": agreed.compared,
            "per_image": {measure: getattr(agreed, measure) for measure in agreed.metrics()},
            "states": {"before": agreed.before, "after": agreed.after},
        }
        if bounds:
            ends = {"noise_ceiling": noise_ceiling, "random_floor": random_floor}
            for end, measure in ends.items():
                agreements[name][end] = measure(before, method, taken.images, targets, progress, seed).means()
    return _Looked(agreements, maps)


def _choose(indices: str | None, count: int, pictures: "Split") -> list[int]:
    """Which pictures to explain: those named, else the first `count`."""
    from core.errors import ParameterError

    if indices is None:
        return list(range(min(count, len(pictures))))
    try:
        chosen = [int(part) for part in indices.split(",")]
    except ValueError:
        raise ParameterError(f"indices: must be whole numbers with commas between, got {indices!r}") from None
    for index in chosen:
        if not 0 <= index < len(pictures):
            raise ParameterError(f"indices: must lie in [0, {len(pictures) - 1}], got {index}")
    return chosen


def _attributions(named: list[str] | None) -> "dict[str, AttributionMethod]":
    """Name -> attribution method, integrated gradients unless others are named."""
    from core.attribution import ATTRIBUTIONS

    methods = [read_method(ATTRIBUTIONS, text) for text in named or ["integrated-gradients"]]
    return {method.name: method for method in methods}


def _checkpoint(path: Path, asked: dict[str, Any], resume: bool) -> Path:
    """Where training keeps its state; what is there is gone on with only if asked for alike."""
    from core.errors import ParameterError

    beside = _settings_file(path)
    if not resume:
        path.unlink(missing_ok=True)
    elif not path.exists():
        raise ParameterError(f"train: --resume needs the checkpoint of a stopped run, got no file {path}")
    elif (held := json.loads(beside.read_text())) != asked:
        differ = ", ".join(key for key in asked if held.get(key) != asked[key])
        raise ParameterError(
            f"train: --resume must have the settings of the stopped run, got another {differ}"
        )
    beside.write_text(to_json(asked))
    return path


def _settings_file(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".ckpt.json")


def _make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def _use_threads(count: int | None) -> None:
    import torch

    if count is not None:
        torch.set_num_threads(count)


def _machine() -> dict[str, Any]:
    import torch

    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


# -------------------------------------------------------------------------------------------- main


def _application(arguments: Sequence[str]) -> typer.Typer:
    """The commands; the one that `arguments` ask for has its declared options too."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help=(__doc__ or "").split("\n\n")[0],
    )
    app.callback()(lambda: None)
    asked = next((a for a in arguments if not a.startswith("-")), None)
    for name, command in COMMANDS.items():
        takes_settings = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(command).parameters.values())
        lenient = {}
        if takes_settings:
            declared = declared_options(name, arguments) if name == asked else {}
            if declared is None:  # an unknown method: let the command say so, not an option it lacks
                lenient, declared = {"ignore_unknown_options": True, "allow_extra_args": True}, {}
            command = with_options(command, declared)
        app.command(name, context_settings=lenient)(command)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 2: the request cannot be carried out, and why; 130: Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    from core.errors import UserError

    try:
        code = _application(arguments)(arguments, prog_name="cli.py", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `cli.py list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        say(f"error: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        say(f"error: {error.filename}: {error.strerror}")
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's way to say that the command line is wrong
            raise
        say(f"error: {error.format_message()}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
