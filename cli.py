"""Prunescope from a shell: the same engine as the app, every command with --json.

Options of methods are not written here: they are read from the declarations in `core`, so that a
new method, criterion or schedule setting is an option at once.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence

import typer

from shell.commands.atlas import atlas
from shell.commands.compress import compress
from shell.commands.diagnose import diagnose
from shell.commands.download import download
from shell.commands.evaluate import evaluate
from shell.commands.explain import explain
from shell.commands.lab import lab
from shell.commands.latency import latency
from shell.commands.leaderboard import leaderboard
from shell.commands.list import list_
from shell.commands.run import run
from shell.commands.train import train
from shell.commands.verify import verify
from shell.commands.verify_onnx import verify_onnx
from shell.options import declared_options, with_options
from shell.output import say

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded: idle threads sleep

COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_,
    "download": download,
    "train": train,
    "evaluate": evaluate,
    "compress": compress,
    "run": run,
    "explain": explain,
    "diagnose": diagnose,
    "latency": latency,
    "atlas": atlas,
    "lab": lab,
    "leaderboard": leaderboard,
    "verify": verify,
    "verify-onnx": verify_onnx,
}


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
