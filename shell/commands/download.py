"""Fetching data sets."""

import contextlib
import sys
from typing import Annotated

import typer

from shell.options import read_method
from shell.output import print_report, run_with_progress
from shell.parameters import Json


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
