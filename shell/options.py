"""Options of the shell, drawn from the declarations in `core`, and what people type after them."""

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # torch takes seconds to load, and `--help` needs none of it
    from core.bundles import DatasetBundle
    from core.method import Domain, Method
    from core.recipe import Recipe
    from core.registry import Registry


def registries() -> "dict[str, Registry]":
    """Kind -> registry: what there is to choose from."""
    from core.attribution import ATTRIBUTIONS
    from core.bundles import DATASETS, MODELS
    from core.criterion import CRITERIA
    from core.diagnosis import DIAGNOSTICS
    from core.lab import LABS
    from core.objective import OBJECTIVES
    from core.recipe import COMPRESSORS
    from core.verification import PROPERTIES

    return {
        "criteria": CRITERIA,
        "objectives": OBJECTIVES,
        "methods": COMPRESSORS,
        "attributions": ATTRIBUTIONS,
        "diagnostics": DIAGNOSTICS,
        "properties": PROPERTIES,
        "labs": LABS,
        "datasets": DATASETS,
        "models": MODELS,
    }


def declared_options(command: str, arguments: Sequence[str]) -> "dict[str, tuple[Domain, Any]] | None":
    """Field -> (domain, default) of what this command line names; None where it names nothing known."""
    if command in ("compress", "explain", "diagnose", "lab"):
        from core.lab import LABS
        from core.recipe import COMPRESSORS

        named = _named(LABS if command == "lab" else COMPRESSORS, arguments)
        return declarations(named) if named else None
    if command == "verify":
        from core.verification import PROPERTIES

        return declarations(_named(PROPERTIES, arguments) or PROPERTIES["robustness"])
    if command == "train":
        from core.bundles import MODELS
        from core.training import Schedule

        named = _named(MODELS, arguments)
        return declarations(Schedule) | (declarations(named) if named else {})
    return {}


def _named(registry: "Registry", arguments: Sequence[str]) -> "type[Method] | None":
    """The first class that a command line names, without its parameters after a colon."""
    names = (text.partition(":")[0] for text in arguments)
    return next((registry[name] for name in names if name in registry), None)


def declarations(cls: "type[Method]") -> "dict[str, tuple[Domain, Any]]":
    return {f.name: (f.metadata["domain"], f.default) for f in fields(cls)}  # type: ignore[arg-type]


def with_options(
    command: Callable[..., None], declared: "Mapping[str, tuple[Domain, Any]]"
) -> Callable[..., None]:
    """`command` with its **settings spelled out, so that typer sees an option per declaration."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [_option(name, domain, default) for name, (domain, default) in declared.items()]

    def wrapped(**values: Any) -> None:
        command(**values)

    wrapped.__doc__ = command.__doc__
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    wrapped.__signature__ = inspect.Signature(keyword + options)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in keyword + options}
    return wrapped


def _option(name: str, domain: "Domain", default: Any) -> inspect.Parameter:
    """One declared hyper-parameter as an option; None where the shell does not name it."""
    from core.method import Choice, Flag, Nested, Number, PerLayer

    flag, kind = flag_name(name), str
    note = f"{domain.help} (default {default})"
    match domain:
        case Number(low=low, high=high):
            metavar = f"{low:g}..{high:g}"
        case Choice(options=options):
            metavar = "|".join(options)
        case Flag():
            flag, kind, metavar = f"{flag}/--no-{flag[2:]}", bool, None
        case Nested():
            metavar = "NAME|JSON"
        case PerLayer(low=low, high=high):
            kind, metavar, note = list[str], "LAYER=NUMBER", f"{domain.help}; may be repeated"
    annotation = Annotated[kind | None, typer.Option(flag, metavar=metavar, help=note)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def given(cls: "type[Method]", settings: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of `cls` among `settings` that the shell named, as Python values."""
    domains = cls.domains()
    return {n: _read_value(domains[n], v) for n, v in settings.items() if n in domains and v is not None}


def _read_value(domain: "Domain", value: Any) -> Any:
    """What the shell says, as the domain expects it; nonsense is left for the domain to refuse."""
    from core.errors import ParameterError
    from core.method import Nested, Number, PerLayer

    match domain:
        case Number():
            return _read_number(value)
        case Nested(registry=registry):
            return read_method(registry, value)
        case PerLayer():
            pairs = [pair.partition("=") for text in value for pair in text.split(",")]
            for layer, equals, number in pairs:
                if not equals or not layer:
                    raise ParameterError(f"layers: must be LAYER=NUMBER, got {layer + equals + number!r}")
            return {layer: _read_number(number) for layer, _, number in pairs}
    return value


def _read_number(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def read_method(
    registry: "Registry", text: str, settings: Mapping[str, Any] | None = None, preset: str | None = None
) -> Any:
    """A method from its name, as in "mlp:hidden=16", or its JSON form, with `settings` on top.

    A preset lies between: it changes what was named before the options, not what the options name.
    """
    from core.errors import ParameterError
    from core.method import from_dict, from_text

    if text.lstrip().startswith("{"):
        try:
            method = from_dict(registry, json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ParameterError(f"{registry.kind}: must be a name or JSON, got {text!r} ({error})") from None
    else:
        method = from_text(registry, text)
    named = given(type(method), settings or {})
    if named:
        method = type(method).from_dict(method.to_dict() | named)
    if preset is not None:
        method = replace(method.preset(preset), **named)
    return method


def read_data(text: str) -> "DatasetBundle":
    """A data set by name, as in "cluttered-digits:seed=1", by JSON form, or a path to own pictures."""
    from core.bundles import DATASETS
    from core.weights import load_dataset

    own = text not in DATASETS and Path(text).exists()
    return load_dataset(Path(text) if own else read_method(DATASETS, text))


def read_recipe(path: Path) -> "Recipe":
    from core.errors import RecipeError
    from core.recipe import Recipe

    try:
        return Recipe.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise RecipeError(f"recipe: must be a JSON file, got {path}, which is no text") from None


def describe(cls: "type[Method]") -> dict[str, Any]:
    """What `list --json` says of one class."""
    parameters = []
    for name, (domain, default) in declarations(cls).items():
        held = {f.name: getattr(domain, f.name) for f in fields(domain)}
        if "registry" in held:
            held["options"] = list(held.pop("registry"))
        kind = type(domain).__name__.lower()
        parameters.append({"name": name, "default": {} if default == () else default, "kind": kind, **held})
    return {"name": cls.name, "summary": cls.summary(), "parameters": parameters}


def explain_parameter(parameter: Mapping[str, Any]) -> str:
    return f"{parameter['help']} (default {parameter['default']})"
