"""Hyper-parameters: what a domain takes, what it refuses, and with which sentence."""

import math
from dataclasses import FrozenInstanceError, dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.bundles import MODELS
from core.criteria.magnitude import Magnitude
from core.criteria.snip import SNIP
from core.criterion import CRITERIA, Criterion
from core.errors import ParameterError, UnknownNameError
from core.method import Method, Number, choice, flag, from_dict, from_text, nested, number, per_layer
from core.registry import Registry


@dataclass(frozen=True)
class Example(Method):
    """A method with every kind of hyper-parameter.

    The rest is not shown to users.
    """

    name: ClassVar[str] = "an-example"

    share: float = number(0.5, 0.0, 1.0, 0.01, help="Share of something")
    rate: float = number(0.1, 1e-6, 10.0, 1e-6, scale="log", help="A rate")
    count: int = number(3, 1, 2**31 - 1, 1, help="Number of things", unit="things")
    kind: str = choice("small", "large", "huge", help="Kind of thing", default="large")
    mirrored: bool = flag(False, help="Mirror it")
    criterion: Criterion = nested(CRITERIA, "magnitude", help="What matters")
    layers: tuple[tuple[str, float], ...] = per_layer(0.0, 1.0, 0.01, help="Of single layers")


def test_the_defaults_are_those_declared():
    assert Example().to_dict() == {
        "method": "an-example",
        "share": 0.5,
        "rate": 0.1,
        "count": 3,
        "kind": "large",
        "mirrored": False,
        "criterion": {"method": "magnitude"},
        "layers": {},
    }


@pytest.mark.parametrize(
    ("parameter", "value", "sentence"),
    [
        ("share", 1.01, "share must lie in [0.0, 1.0], got 1.01"),
        ("share", -1e-9, "share must lie in [0.0, 1.0], got -1e-09"),
        ("share", math.nan, "share must lie in [0.0, 1.0], got nan"),
        ("share", -math.inf, "share must lie in [0.0, 1.0], got -inf"),
        ("share", "0.5", "share must be a number, got '0.5'"),
        ("share", True, "share must be a number, got True"),
        ("share", np.True_, "share must be a number, got np.True_"),
        ("share", None, "share must be a number, got None"),
        ("share", 1j, "share must be a number, got 1j"),
        ("share", torch.tensor(0.5), "share must be a number, got tensor(0.5000)"),
        ("share", [0.5], "share must be a number, got [0.5]"),
        ("share", 10**400, "share must lie in [0.0, 1.0], got 1" + "0" * 76 + "..."),
        ("count", 2.5, "count must be a whole number, got 2.5"),
        ("count", 0, "count must lie in [1, 2147483647], got 0"),
        ("count", math.inf, "count must lie in [1, 2147483647], got inf"),
        ("count", math.nan, "count must lie in [1, 2147483647], got nan"),
        ("kind", "tiny", "kind must be one of small, large, huge, got 'tiny'"),
        ("kind", ["small"], "kind must be one of small, large, huge, got ['small']"),
        ("kind", np.array(["small", "large"]), "kind must be one of small, large, huge, got array("),
        ("mirrored", 1, "mirrored must be true or false, got 1"),
        ("mirrored", "yes", "mirrored must be true or false, got 'yes'"),
        ("criterion", 3, "criterion must be a criterion, got 3"),
        ("criterion", {"method": 3}, "criterion a criterion needs a 'method' name, got {'method': 3}"),
        (
            "criterion",
            {"method": "snip", "images": 0},
            "criterion snip: images must lie in [1, 10000], got 0",
        ),
        ("layers", {"conv1": 1.5}, "layers of layer conv1 must lie in [0.0, 1.0], got 1.5"),
        ("layers", {"conv1": True}, "layers of layer conv1 must be a number, got True"),
        ("layers", {1: 0.5}, "layers must map layer names to numbers, got {1: 0.5}"),
        ("layers", "conv1", "layers must map layer names to numbers, got 'conv1'"),
        ("layers", None, "layers must map layer names to numbers, got None"),
        ("layers", [0.5], "layers must map layer names to numbers, got [0.5]"),
    ],
)
def test_a_value_outside_the_domain_is_refused_with_a_sentence(parameter, value, sentence):
    with pytest.raises(ParameterError) as caught:
        Example(**{parameter: value})
    assert str(caught.value).startswith(f"an-example: {sentence}")


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("share", np.float32(0.25), 0.25),
        ("share", np.float64(0.3), 0.3),
        ("share", np.int64(1), 1.0),
        ("share", 1, 1.0),
        ("share", Fraction(1, 4), 0.25),
        ("count", np.int32(7), 7),
        ("count", 7.0, 7),
        ("count", np.float32(7), 7),
        ("kind", np.str_("huge"), "huge"),
        ("mirrored", np.True_, True),
        ("layers", {"b": np.float32(0.5), "a": 1}, (("a", 1.0), ("b", 0.5))),
        ("layers", [("a", 0.5)], (("a", 0.5),)),
        ("criterion", "snip", SNIP()),
        ("criterion", {"method": "snip", "images": 9}, SNIP(images=9)),
        ("criterion", SNIP(images=9), SNIP(images=9)),
    ],
)
def test_a_value_inside_the_domain_becomes_a_plain_one(parameter, value, expected):
    held = getattr(Example(**{parameter: value}), parameter)
    assert held == expected
    assert type(held) is type(expected)


def test_minus_zero_is_zero_so_that_equal_methods_have_equal_text():
    assert math.copysign(1, Example(share=-0.0).share) == 1


@given(st.floats(0, 1), st.integers(1, 2**31 - 1), st.dictionaries(st.text(), st.floats(0, 1), max_size=4))
def test_the_dictionary_form_reads_back_as_an_equal_method(share, count, layers):
    registry = Registry("core.criteria", "example")
    registry._loaded = True
    registry.register(Example)
    method = Example(share=share, count=count, layers=layers, criterion=SNIP(images=7))
    again = from_dict(registry, method.to_dict())
    assert again == method
    assert hash(again) == hash(method)


def test_missing_values_keep_their_defaults_and_wrong_names_suggest_the_nearest():
    assert Example.from_dict({"share": 0.25}) == Example(share=0.25)
    with pytest.raises(
        ParameterError, match=r"an-example: no parameter is called 'shares'; did you mean 'share'\?"
    ):
        Example.from_dict({"shares": 0.5})
    with pytest.raises(ParameterError, match=r"an-example: no parameter is called '3'; known: share, rate"):
        Example.from_dict({3: 0.5})


def test_an_unknown_nested_name_suggests_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"no criterion is called 'magnitud'; did you mean 'magnitude'\?"
    ):
        Example(criterion="magnitud")


def test_a_method_of_another_kind_is_no_nested_method_even_under_the_same_name():
    @dataclass(frozen=True)
    class Impostor(Method):
        name: ClassVar[str] = "magnitude"

    with pytest.raises(ParameterError, match="criterion must be a criterion, got"):
        Example(criterion=Impostor())
    assert Example(criterion=Magnitude()).criterion == Magnitude()


@pytest.mark.parametrize("values", [None, [], "magnitude", {}, {"method": None}, {"name": "magnitude"}])
def test_what_names_no_method_is_refused(values):
    with pytest.raises(ParameterError, match="a criterion needs a 'method' name, got"):
        from_dict(CRITERIA, values)


def test_methods_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Example().share = 0.1


def test_label_and_summary_are_what_a_user_sees():
    assert Example.label() == "An example"
    assert CRITERIA["filter-l2"].label() == "Filter L2"
    assert Example.summary() == "A method with every kind of hyper-parameter."


def test_a_field_without_a_domain_is_a_mistake_of_the_author():
    @dataclass(frozen=True)
    class Careless(Method):
        name: ClassVar[str] = "careless"
        share: float = 0.5

    with pytest.raises(TypeError, match=r"Careless\.share: declare it with number\(\)"):
        Careless()


@pytest.mark.parametrize(
    ("low", "high", "step", "scale"),
    [(1, 0, 1, "linear"), (0, math.inf, 1, "linear"), (0, 1, 0, "linear"), (0.0, 1.0, 0.1, "log")],
)
def test_a_domain_that_makes_no_sense_is_a_mistake_of_the_author(low, high, step, scale):
    with pytest.raises(ValueError, match="a domain needs"):
        Number(low, high, step, "help", scale=scale)


def test_a_default_outside_its_own_domain_is_found_at_once():
    @dataclass(frozen=True)
    class Careless(Method):
        name: ClassVar[str] = "careless"
        share: float = number(2.0, 0.0, 1.0, 0.1, help="Share")

    with pytest.raises(ParameterError, match="careless: share must lie in"):
        Careless()


def test_a_short_text_names_a_method_with_its_hyper_parameters():
    assert from_text(MODELS, "mlp:hidden=16,depth=3") == MODELS["mlp"](hidden=16, depth=3)
    assert from_text(MODELS, "torchvision:network=alexnet").network == "alexnet"
    with pytest.raises(ParameterError, match="hidden must be a number, got 'wide'"):
        from_text(MODELS, "mlp:hidden=wide")
    with pytest.raises(UnknownNameError, match="did you mean 'mlp'"):
        from_text(MODELS, "mpl:hidden=16")
