"""Training a network from nothing."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from core.as_json import plain, to_json
from shell.loading import make_folder, use_threads
from shell.options import given, read_data, read_method
from shell.output import print_report, run_with_progress, say
from shell.parameters import Device, Json, Model, Seed, Threads


def train(
    model: Model,
    data: Annotated[
        str, typer.Option(metavar="NAME|JSON|PATH", help="Data set to train on, or own pictures")
    ],
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the weights go")] = Path("runs"),
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the files are called (default MODEL--DATA)")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint that a stopped run left")
    ] = False,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train a network; write its weights and how they were made."""
    from core.bundles import MODELS
    from core.evaluation import evaluate as measure
    from core.run import seeded
    from core.training import Classification, Schedule, fit
    from core.weights import save_model

    use_threads(threads)
    schedule = Schedule(**given(Schedule, settings))
    architecture = read_method(MODELS, model, settings)
    bundle = read_data(data)
    make_folder(out)
    path = out / f"{name or f'{architecture.name}--{bundle.name}'}.safetensors"
    asked = {
        "model": architecture.to_dict(),
        "data": bundle.name,
        "seed": seed,
        "schedule": schedule.to_dict(),
    }
    checkpoint = _checkpoint(path.with_suffix(".ckpt"), asked, resume)
    run = run_with_progress(device)
    with seeded(seed, run):
        network = architecture.build(bundle.shape, len(bundle.classes))
        try:
            fit(
                network,
                bundle.train,
                Classification(schedule.label_smoothing),
                schedule,
                run,
                validation=bundle.validation,
                checkpoint=checkpoint,
            )
        except KeyboardInterrupt:
            say(f"\nStopped; the same command with --resume goes on from {checkpoint}")
            raise
    result = measure(network.to("cpu"), bundle.test)
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


def _machine() -> dict[str, Any]:
    import torch

    return {"torch": torch.__version__, "threads": torch.get_num_threads()}
