"""Everything there is to choose from."""

from typing import Annotated

import typer

from shell.options import describe, explain_parameter, flag_name, registries
from shell.output import print_json
from shell.parameters import Json


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
