"""What a link says: model, plan, image, methods and seed, as few short query parameters.

The texts of plan and methods are carried here and read elsewhere (by `Plan.from_text` and
`method_from_text`), so that a link can be taken apart before the engine is loaded.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlencode

from core.errors import RecipeError, UserError
from core.method import Method, from_dict
from core.registry import Registry

LONGEST = 2000  # characters of one parameter; browsers and proxies take links of about 8,000
HIGHEST = 2**31 - 1

NAMES = {
    "model": "m",
    "plan": "plan",
    "image": "img",
    "attribution": "attr",
    "target": "target",
    "steps": "steps",
    "lab": "lab",
    "property": "prop",
    "compressed": "by",
    "seed": "seed",
}


@dataclass(frozen=True)
class Nouns:
    """What every page is about. Empty texts stand for the default model, no pruning, the default method."""

    model: str = ""
    plan: str = ""
    image: int = 0  # position in the data set's test part
    attribution: str = ""
    target: str = ""  # which class is explained: "" what the original says
    seed: int = 0
    steps: str = ""  # a recipe for the Methods page, see `steps_to_text`
    lab: str = ""  # the experiment of the Learn page, see `method_to_text`
    property: str = ""  # what the Prove page asks, likewise
    compressed: str = ""  # of which compressed network: "" the plan's, else that of `steps`, else a quick one


def to_query(nouns: Nouns) -> dict[str, str]:
    """The query parameters of `nouns`; what is at its default is left out."""
    default = Nouns()
    return {
        NAMES[f.name]: str(getattr(nouns, f.name))
        for f in fields(Nouns)
        if getattr(nouns, f.name) != getattr(default, f.name)
    }


def from_query(query: Mapping[str, str]) -> tuple[Nouns, list[str]]:
    """The nouns a link names, and a sentence for each parameter that could not be read."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for f in fields(Nouns):
        text = query.get(NAMES[f.name])
        if text is None:
            continue
        value = _whole(text) if f.type is int else _text(text)
        if value is None:
            problems.append(f"{NAMES[f.name]}={text[:40]!r}")
        else:
            values[f.name] = value
    return Nouns(**values), problems


def link(path: str, nouns: Nouns) -> str:
    """`path` with the nouns behind it, for an href."""
    query = urlencode(to_query(nouns))
    return f"{path}?{query}" if query else path


def method_to_text(method: Method) -> str:
    """A method as link text: its name, and as JSON what differs from its defaults."""
    default, values = type(method)().to_dict(), method.to_dict()
    changed = {name: value for name, value in values.items() if value != default[name]}
    return method.name + (json.dumps(changed, separators=(",", ":")) if changed else "")


def method_from_text(text: str, registry: Registry) -> Method:
    """The method that `method_to_text` wrote.

    Raises:
        UserError: the name, a parameter or the JSON is unknown or malformed.
    """
    name, brace, rest = text.partition("{")
    try:
        values = json.loads(brace + rest) if brace else {}
        return from_dict(registry, values | {"method": name})
    except UserError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise RecipeError(f"link: must name a {registry.kind}, got {text[:60]!r}") from error


def steps_to_text(steps: Sequence[Method]) -> str:
    """The steps of a recipe as link text: a JSON list of their `method_to_text`."""
    return json.dumps([method_to_text(step) for step in steps], separators=(",", ":")) if steps else ""


def steps_from_text(text: str, registry: Registry) -> tuple[Method, ...]:
    """The steps that `steps_to_text` wrote.

    Raises:
        UserError: it is no list of texts, or one of them is not that of a method.
    """
    try:
        texts = json.loads(text) if text else []
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise RecipeError(f"link: steps must be a list of methods, got {text[:60]!r}")
    return tuple(method_from_text(each, registry) for each in texts)


def _whole(text: str) -> int | None:
    """A whole number in [0, 2**31), or None."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    return int(text) if int(text) <= HIGHEST else None


def _text(text: str) -> str | None:
    """Printable text of bearable length, or None."""
    return text if len(text) <= LONGEST and text.isprintable() else None
