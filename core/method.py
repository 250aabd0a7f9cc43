"""Hyper-parameters declared once, read by forms, command line, validation, recipes and tests.

A method is a frozen dataclass and its fields are its hyper-parameters. `number`, `choice`, `flag`,
`nested` and `per_layer` declare a field together with its domain and its help, so that no second
list exists in which a parameter could be missing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np

from core.errors import ParameterError
from core.registry import Registry, unknown

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Number:
    """A number in the closed interval [low, high]; whole when `step` is an int."""

    low: float
    high: float
    step: float
    help: str
    unit: str = ""
    scale: Scale = "linear"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a domain needs finite low <= high, got [{self.low}, {self.high}]")
        if self.step <= 0 or (self.scale == "log" and self.low <= 0):
            raise ValueError("a domain needs a step above 0, and a low above 0 where its scale is log")

    @property
    def whole(self) -> bool:
        return isinstance(self.step, int)

    def read(self, value: Any) -> Any:
        """`value` as a plain int or float; numpy's numbers are numbers too, true and false are not."""
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ParameterError(f"must be a number, got {brief(value)}")
        if not self.low <= value <= self.high:  # so is NaN's comparison
            raise ParameterError(f"must lie in [{self.low}, {self.high}], got {brief(value)}")
        if not self.whole:
            return float(value) + 0.0  # no minus zero: equal recipes have equal text
        if not isinstance(value, Integral) and value != int(value):
            raise ParameterError(f"must be a whole number, got {brief(value)}")
        return int(value)

    def write(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class Choice:
    """One of `options`."""

    options: tuple[str, ...]
    help: str

    def read(self, value: Any) -> Any:
        if not isinstance(value, str) or value not in self.options:
            raise ParameterError(f"must be one of {', '.join(self.options)}, got {brief(value)}")
        return str(value)

    def write(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class Flag:
    """Yes or no."""

    help: str

    def read(self, value: Any) -> Any:
        if not isinstance(value, bool | np.bool_):
            raise ParameterError(f"must be true or false, got {brief(value)}")
        return bool(value)

    def write(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class Nested:
    """Another method with hyper-parameters of its own, from `registry`.

    Read from an instance, from its dictionary form, or from its bare name (all defaults).
    """

    registry: Registry
    help: str

    def read(self, value: Any) -> Any:
        match value:
            case str():
                return self.registry[value]()
            case Mapping():
                return from_dict(self.registry, value)
            case Method() if value.name in self.registry and isinstance(value, self.registry[value.name]):
                return value
        raise ParameterError(f"must be a {self.registry.kind}, got {brief(value)}")

    def write(self, value: "Method") -> Any:
        return value.to_dict()


@dataclass(frozen=True)
class PerLayer:
    """Layer name -> number in [low, high]; held as a sorted tuple of pairs, so that it hashes."""

    low: float
    high: float
    step: float
    help: str

    def read(self, value: Any) -> Any:
        pairs = value.items() if isinstance(value, Mapping) else value
        try:
            entries = dict(pairs)
        except (TypeError, ValueError):
            raise ParameterError(f"must map layer names to numbers, got {brief(value)}") from None
        if not all(isinstance(layer, str) for layer in entries):
            raise ParameterError(f"must map layer names to numbers, got {brief(value)}")
        domain = Number(self.low, self.high, float(self.step), self.help)
        for layer, number_ in entries.items():
            try:
                entries[layer] = domain.read(number_)
            except ParameterError as error:
                raise ParameterError(f"of layer {layer} {error}") from None
        return tuple(sorted(entries.items()))

    def write(self, value: tuple[tuple[str, float], ...]) -> Any:
        return dict(value)


Domain = Number | Choice | Flag | Nested | PerLayer


def brief(value: Any) -> str:
    """`value` as an error message shows it: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def number(
    default: float,
    low: float,
    high: float,
    step: float,
    *,
    help: str,
    unit: str = "",
    scale: Scale = "linear",
) -> Any:
    """A field in the closed interval [low, high]; it is whole when `step` is an int.

    `scale="log"` asks front ends for a slider whose steps are ratios.
    """
    return field(default=default, metadata={"domain": Number(low, high, step, help, unit, scale)})


def choice(*options: str, help: str, default: str | None = None) -> Any:
    """A field that takes one of `options`; the first is the default unless one is named."""
    return field(default=default or options[0], metadata={"domain": Choice(options, help)})


def flag(default: bool, *, help: str) -> Any:
    """A yes-or-no field."""
    return field(default=default, metadata={"domain": Flag(help)})


def nested(registry: Registry, default: str, *, help: str) -> Any:
    """A field that holds another method of `registry`; `default` is its name."""
    return field(default=default, metadata={"domain": Nested(registry, help)})


def per_layer(low: float, high: float, step: float, *, help: str) -> Any:
    """A field that gives some layers a number of their own; empty by default."""
    return field(default=(), metadata={"domain": PerLayer(low, high, step, help)})


class Method:
    """Base of everything with hyper-parameters: criteria, compressors, attributions, data, models.

    Subclasses are frozen dataclasses with a class attribute `name`, the identifier that saved
    recipes use. It never changes once published, whatever happens to the class name.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""  # how people write the name, where it is not simply its words
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # name -> fields that differ from the defaults

    def __post_init__(self) -> None:
        for name, domain in self.domains().items():
            try:
                object.__setattr__(self, name, domain.read(getattr(self, name)))
            except ParameterError as error:
                raise ParameterError(f"{self.name}: {name} {error}") from None

    @classmethod
    def domains(cls) -> dict[str, Domain]:
        """Field name -> domain, in the order of declaration."""
        for f in fields(cls):
            if "domain" not in f.metadata:
                raise TypeError(f"{cls.__name__}.{f.name}: declare it with number(), choice(), flag() ...")
        return {f.name: f.metadata["domain"] for f in fields(cls)}

    @classmethod
    def label(cls) -> str:
        """The name as a heading: `title`, or "prune-weights" -> "Prune weights"."""
        words = cls.name.replace("-", " ")
        return cls.title or words[0].upper() + words[1:]

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, every hyper-parameter spelled out; `from_dict` reads it back."""
        values = {name: d.write(getattr(self, name)) for name, d in self.domains().items()}
        return {"method": self.name} | values

    def preset(self, name: str) -> Self:
        """The same with one of its `presets` laid over it.

        Raises:
            ParameterError: it has none of that name.
        """
        if name not in self.presets:
            raise ParameterError(f"{self.name}: {unknown('preset', name, self.presets)}")
        return replace(self, **self.presets[name])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The method with these hyper-parameters; those that are missing keep their defaults."""
        known = cls.domains()
        for name in values:
            if name not in known and name != "method":
                raise ParameterError(f"{cls.name}: {unknown('parameter', name, known)}")
        return cls(**{name: values[name] for name in known if name in values})


def from_dict(registry: Registry, values: Any) -> Any:
    """The method that `values` (see `Method.to_dict`) describes."""
    if not isinstance(values, Mapping) or not isinstance(values.get("method"), str):
        raise ParameterError(f"a {registry.kind} needs a 'method' name, got {brief(values)}")
    return registry[values["method"]].from_dict(values)


def from_text(registry: Registry, text: str) -> Any:
    """The method that a short text names, hyper-parameters after a colon: "mlp:hidden=16,depth=3"."""
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, _, written = pair.partition("=")
        try:
            values[key] = json.loads(written)
        except ValueError:
            values[key] = written  # an option's name; the domain judges it
    return registry[name].from_dict(values)
