"""How promises are kept track of: extremes of declarations, fingerprints of networks, proper figures."""

import json
import re
from itertools import pairwise

import torch
from torch import nn

from core.errors import ParameterError
from core.figure import Figure
from core.method import Choice, Flag, Nested, Number, PerLayer
from view.figures import draw, sheet

EFFORT = {"epochs", "images", "permutations", "samples", "seeds", "steps", "units", "width"}  # lowest: quick


LONG = {
    "epochs",
    "iterations",
    "paraphraser_epochs",
    "passes",
    "permutations",
    "population",
    "rounds",
    "steps",
}


class Stop(BaseException):
    """What a front end raises to cancel."""


def stop(progress) -> None:
    raise Stop


def extremes(cls, quick=False):
    """The defaults, and every hyper-parameter at every end of its domain, the others at their defaults.

    With `quick`, for those who carry them out, what only makes the same take longer is at its lowest.
    """
    short = {name: domain.low for name, domain in cls.domains().items() if quick and name in LONG}
    yield cls()
    for name, domain in cls.domains().items():
        match domain:
            case Number():
                values = [domain.low, domain.high]
            case Choice():
                values = domain.options
            case Flag():
                values = [False, True]
            case PerLayer():
                values = [{}, {"layer1.0.conv1": domain.low}, {"layer1.0.conv1": domain.high}]
            case Nested():
                values = [
                    value
                    for other in domain.registry
                    for value in accepted(cls, name, domain.registry[other])
                ]
        for value in values[:1] if name in short else values:
            yield cls(**short | {name: value})


def accepted(cls, name, other):
    """`other` with its defaults, where `cls` takes it: a method of weights needs scores of weights."""
    try:
        cls(**{name: other()})
    except ParameterError as error:
        assert_says(rf"^{cls.name}: {name} must .*, got ", error)
        return []
    return [other()]


def fingerprint(model: nn.Module) -> dict:
    """Everything about a module that its owner could miss."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": {name: value.detach().clone() for name, value in tensors},
        "storage": {
            name: (value.data_ptr(), value.requires_grad, value.grad is None) for name, value in tensors
        },
        "modules": {
            name: (id(module), type(module), module.training) for name, module in model.named_modules()
        },
        "hooks": {
            (name, key): len(hooks)
            for name, module in model.named_modules()
            for key, hooks in vars(module).items()
            if key.endswith("_hooks")
        },
    }


def assert_untouched(model: nn.Module, before: dict) -> None:
    after = fingerprint(model)
    for name, value in before.pop("values").items():
        assert torch.equal(value, after["values"][name]), name
    after.pop("values")
    assert after == before


def assert_says(pattern: str, error: Exception) -> None:
    assert re.search(pattern, str(error)), error


def equal_states(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_progress(fractions: list[float]) -> None:
    assert all(after >= before - 1e-9 for before, after in pairwise(fractions))  # parts of parts are rounded
    assert all(0 <= fraction <= 1 + 1e-9 for fraction in fractions)


def lightest(cls):
    """The defaults, except that what only costs time is at its lowest."""
    return cls(**{n: d.low for n, d in cls.domains().items() if n in EFFORT and isinstance(d, Number)})


def assert_figures(figures) -> None:
    """Figures that a page can draw and a shell can print."""
    for figure in figures:
        assert isinstance(figure, Figure)
        assert figure.title
        assert len(figure.finding) <= 400, figure.finding
        assert len(figure.table), figure.title
        assert not figure.table.map(lambda value: isinstance(value, torch.Tensor | list | dict)).any(
            axis=None
        )
        for column, most in ((figure.colour, 8), (figure.panel, 6)):
            assert not column or figure.table[column].nunique() <= most, (figure.title, column)
        for column in (figure.x, figure.y, figure.value):
            assert not column or figure.table[column].notna().any(), (figure.title, column)
        for column in figure.log:
            assert not (figure.table[column] <= 0).any(), (figure.title, column)
        json.dumps(figure.to_dict(), allow_nan=False)
        assert (
            sheet(figure).count("<img") == len(figure.table)
            if figure.mark == "pictures"
            else draw(figure, dark=False).data
        )
    assert len({figure.title for figure in figures}) == len(figures)
