"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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
Device = Annotated[str, typer.Option(metavar="NAME", help="Where to compute: cpu, or the accelerator's type")]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="Settings as in the paper, say; options change single ones")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads; default: torch's choice")]
OutFolder = Annotated[Path | None, typer.Option(metavar="DIR", help="Write the results into this folder")]
Attributions = Annotated[
    list[str] | None,
    typer.Option("--attribution", metavar="NAME|JSON", help="Attribution method; may be repeated"),
]
Indices = Annotated[
    str | None, typer.Option(metavar="0,5,10:20", help="Which pictures are explained; default: the first")
]
Count = Annotated[int, typer.Option(min=1, help="How many pictures are explained")]
Figures = Annotated[bool, typer.Option("--figures", help="Also what every step shows of what it did")]
