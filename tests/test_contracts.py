"""What everything in a registry owes its callers. A new file in a growth folder is tested by all of this."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from promises import (
    assert_says,
    equal_states,
    extremes,
)
from test_layering import GROWTH

from core.attribution import ATTRIBUTIONS
from core.bundles import DATASETS, MODELS
from core.criterion import CRITERIA
from core.diagnosis import DIAGNOSTICS
from core.errors import DataUnavailableError, ParameterError, UnsupportedModelError, UserError
from core.lab import LABS
from core.layers import prunable
from core.method import Choice, Nested, Number, PerLayer, from_dict
from core.objective import OBJECTIVES
from core.recipe import COMPRESSORS
from core.run import seeded
from core.verification import PROPERTIES

REGISTRIES = (
    CRITERIA,
    OBJECTIVES,
    COMPRESSORS,
    ATTRIBUTIONS,
    DIAGNOSTICS,
    PROPERTIES,
    LABS,
    DATASETS,
    MODELS,
)
ONE_PER_FILE = (CRITERIA, OBJECTIVES, COMPRESSORS, ATTRIBUTIONS, DIAGNOSTICS, PROPERTIES, LABS)
EVERYTHING = [pytest.param(r, n, id=f"{r.package}-{n}") for r in REGISTRIES for n in r]


# ---------------------------------------------------------------------------------- what all share


@pytest.mark.parametrize(("registry", "name"), EVERYTHING)
class TestEverything:
    def test_cites_a_source_with_a_year_below_a_line_in_plain_words(self, registry, name):
        cls = registry[name]
        sources = [part for part in inspect.getdoc(cls).split("\n\n") if part.startswith("Source: ")]
        assert sources, cls.__doc__
        assert re.search(r"\b(1[89]|20)\d\d\b", sources[0]), sources[0]
        assert re.fullmatch(r"[A-Z0-9].*[.:?]", cls.summary()), cls.summary()
        assert len(cls.summary()) <= 110

    def test_is_named_in_kebab_case_like_its_class_and_file(self, registry, name):
        cls = registry[name]
        assert cls.name == name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        if registry in ONE_PER_FILE:
            assert cls.__name__.lower() == name.replace("-", "")
            assert Path(inspect.getfile(cls)).stem == name.replace("-", "_")

    def test_survives_json_at_every_extreme(self, registry, name):
        for method in extremes(registry[name]):
            assert from_dict(registry, method.to_dict()) == method
            assert hash(method) == hash(from_dict(registry, method.to_dict()))

    def test_explains_every_hyper_parameter_and_refuses_values_outside_its_domain(self, registry, name):
        cls = registry[name]
        for parameter, domain in cls.domains().items():
            assert 5 <= len(domain.help) <= 120, parameter
            wrong: list = [None, [object()], float("nan")]
            if isinstance(domain, Number):
                wrong += [domain.high + 1, domain.low - 1, float("inf"), True, "1"]
            if isinstance(domain, Choice):
                wrong += ["no such option", 0]
            if isinstance(domain, PerLayer):
                wrong += [{"layer": domain.high + 1}, {3: domain.low}, "layer"]
            for value in wrong:
                with pytest.raises(ParameterError, match=rf"^{cls.name}: {parameter} .*must .*, got "):
                    cls(**{parameter: value})
            if isinstance(domain, Nested):
                with pytest.raises(UserError, match="no such thing"):
                    cls(**{parameter: "no such thing"})

    def test_refuses_an_unknown_hyper_parameter(self, registry, name):
        with pytest.raises(ParameterError, match=rf"^{name}: no parameter is called 'no-such'"):
            registry[name].from_dict({"no-such": 1})


def test_every_growth_folder_is_a_kind_with_a_registry():
    assert {registry.package.removeprefix("core.") for registry in REGISTRIES} == GROWTH


# ---------------------------------------------------------------------------------------- data and models


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_loads_the_same_three_parts_every_time_or_says_how_to_get_it(name):
    try:
        data = DATASETS[name]().load()
    except DataUnavailableError as error:
        assert_says(name, error)  # the sentence says which data are missing
        pytest.skip(str(error))
    assert data.name == name
    assert data.licence
    assert data.source
    again = DATASETS[name]().load()
    for part in ("train", "validation", "test"):
        split = data.split(part)
        assert split.pixels.dtype == torch.uint8, part
        assert split.pixels.shape == (len(split), *data.shape), part
        assert split.labels.dtype == torch.int64, part
        assert 0 <= split.labels.min() <= split.labels.max() < len(data.classes), part
        assert split.masks is None or split.masks.shape == (len(split), *data.shape[1:]), part
        assert split.take(slice(0, 2)).images.isfinite().all()
        assert torch.equal(split.labels, again.split(part).labels)
        assert torch.equal(split.pixels[:50], again.split(part).pixels[:50])


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8)])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_for_pictures_of_our_shapes_and_is_made_from_the_seed(name, shape):
    networks = []
    try:
        for _ in range(2):
            with seeded(1):
                networks.append(MODELS[name]().build(shape, 7).eval())
    except UnsupportedModelError as error:
        assert shape != (3, 32, 32)
        assert_says(r": .*pictures? of .*(8 x 8|28 x 28)", error)
        return
    assert equal_states(*networks)
    logits = networks[0](torch.rand(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert prunable(networks[0])
