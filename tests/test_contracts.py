"""What everything in a registry owes its callers. A new file in a growth folder is tested by all of this."""

import copy
import inspect
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny import CLASSES, ROOT, plain_network
from torch import nn

from core.attribution import ATTRIBUTIONS, explain
from core.bundles import DATASETS, MODELS, Setting
from core.criterion import CRITERIA, rank
from core.diagnosis import DIAGNOSTICS
from core.errors import DataUnavailableError, ParameterError, TrainingError, UnsupportedModelError, UserError
from core.figure import Figure
from core.lab import LABS
from core.layers import apply_mask, bake, prunable
from core.method import Choice, Flag, Nested, Number, PerLayer, from_dict
from core.objective import OBJECTIVES
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run, seeded
from core.training import Classification, Schedule, fit
from core.verification import PROPERTIES, Verdict
from view.figures import draw

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
EFFORT = {"epochs", "images", "permutations", "samples", "seeds", "steps", "units", "width"}  # lowest: quick
EVERYTHING = [pytest.param(r, n, id=f"{r.package}-{n}") for r in REGISTRIES for n in r]
WEIGHTED = nn.Sequential(nn.Flatten(), nn.ReLU())  # has no weight at all


class Stop(BaseException):
    """What a front end raises to cancel."""


def stop(progress) -> None:
    raise Stop


def extremes(cls):
    """The defaults, and every hyper-parameter at every end of its domain, the others at their defaults."""
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
        for value in values:
            yield cls(**{name: value})


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
        assert draw(figure, dark=False).data
    assert len({figure.title for figure in figures}) == len(figures)


# ---------------------------------------------------------------------------------------- criteria


@pytest.mark.parametrize("name", CRITERIA)
class TestCriterion:
    def test_scores_every_layer_in_its_grain_at_every_extreme(self, name, tiny_model, setting):
        layers = prunable(tiny_model)
        for criterion in extremes(CRITERIA[name]):
            scores = rank(criterion, tiny_model, setting).scores
            assert list(scores) == list(layers)
            for layer, score in scores.items():
                shape = layers[layer].weight.shape
                assert score.shape == (shape if criterion.grain == "weight" else shape[:1])
                assert score.isfinite().all()
                assert not score.requires_grad
            filters = rank(criterion, tiny_model, setting, grain="filter").scores
            assert {n: s.shape for n, s in filters.items()} == {
                n: (len(m.weight),) for n, m in layers.items()
            }

    @pytest.mark.parametrize("training", [False, True])
    def test_leaves_model_data_and_random_state_alone(self, name, training, tiny_model, setting):
        tiny_model.train(training).requires_grad_(training)
        before, pixels = fingerprint(tiny_model), setting.train.pixels.clone()
        state = torch.get_rng_state()
        rank(CRITERIA[name](), tiny_model, setting)
        assert_untouched(tiny_model, before)
        assert torch.equal(setting.train.pixels, pixels)
        assert torch.equal(torch.get_rng_state(), state)

    def test_same_seed_same_bits(self, name, tiny_model, setting):
        first = rank(CRITERIA[name](), tiny_model, setting, seed=5).scores
        torch.rand(7)
        second = rank(CRITERIA[name](), tiny_model, setting, seed=5).scores
        assert all(torch.equal(first[layer], second[layer]) for layer in first)

    def test_reads_a_masked_network_as_the_plain_one_and_leaves_its_masks(self, name, tiny_model, setting):
        plain = copy.deepcopy(tiny_model)
        for masked in (plain, tiny_model):
            for layer in prunable(masked).values():
                apply_mask(layer, layer.weight > 0)
        bake(plain)
        before = fingerprint(tiny_model)
        found = rank(CRITERIA[name](), tiny_model, setting).scores
        assert_untouched(tiny_model, before)
        assert list(found) == list(prunable(tiny_model))
        expected = rank(CRITERIA[name](), plain, setting).scores
        assert all(torch.equal(found[layer], expected[layer]) for layer in expected)
        tiny_model(setting.train.images)  # still runs

    def test_works_where_gradients_are_switched_off(self, name, tiny_model, setting):
        expected = rank(CRITERIA[name](), tiny_model, setting).scores
        with torch.no_grad():
            found = rank(CRITERIA[name](), tiny_model, setting).scores
        assert all(torch.equal(found[layer], expected[layer]) for layer in found)

    def test_looks_at_train_and_validation_only_as_far_as_it_says(self, name, tiny_model, setting):
        """A criterion that has no parameter `images` looks at none."""
        if "images" not in CRITERIA[name].domains():
            blind = Setting(None, None, None)
            expected = rank(CRITERIA[name](), tiny_model, setting).scores
            found = rank(CRITERIA[name](), tiny_model, blind).scores
            assert all(torch.equal(found[layer], expected[layer]) for layer in found)

    def test_progress_rises_and_can_be_stopped(self, name, tiny_model, setting):
        seen = []
        rank(CRITERIA[name](), tiny_model, setting, Run(on_progress=lambda p: seen.append(p.fraction)))
        assert_progress(seen)
        if "images" in CRITERIA[name].domains():
            assert seen[-1] == pytest.approx(1)
        if seen:
            with pytest.raises(Stop):
                rank(CRITERIA[name](), tiny_model, setting, Run(on_progress=stop))

    def test_refuses_models_without_layers_and_with_broken_weights(self, name, tiny_model, setting):
        with pytest.raises(UnsupportedModelError, match="no convolution or linear layer"):
            rank(CRITERIA[name](), WEIGHTED, setting)
        tiny_model.layer1[0].conv2.weight.data[0, 0, 0, 0] = torch.nan
        with pytest.raises(UnsupportedModelError, match=r"layer layer1\.0\.conv2: weight must be finite"):
            rank(CRITERIA[name](), tiny_model, setting)


# -------------------------------------------------------------------------------------- compressors

REFUSES_RESIDUAL: dict[str, bool] = {}  # compressor -> does it say that it is not for residual networks?


@pytest.fixture
def suitable(plain_model, setting):
    """Compressor -> a setting whose teacher it works on: the residual network, else the plain one."""

    def choose(name: str) -> Setting:
        if name not in REFUSES_RESIDUAL:
            try:
                compress(setting.teacher, setting, Recipe((COMPRESSORS[name](),)))
            except UnsupportedModelError as error:
                assert_says(r"must .*, got ", error)
                REFUSES_RESIDUAL[name] = True
            else:
                REFUSES_RESIDUAL[name] = False
        return replace(setting, teacher=plain_model) if REFUSES_RESIDUAL[name] else setting

    return choose


@pytest.mark.parametrize("name", COMPRESSORS)
class TestCompressor:
    @pytest.mark.parametrize("training", [False, True])
    def test_leaves_the_callers_model_data_and_random_state_alone(self, name, training, suitable):
        setting = suitable(name)
        model = setting.teacher.train(training).requires_grad_(training)
        before, pixels = fingerprint(model), setting.train.pixels.clone()
        state = torch.get_rng_state()
        compress(model, setting, Recipe((COMPRESSORS[name](),)))
        assert_untouched(model, before)
        assert torch.equal(setting.train.pixels, pixels)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.slow
    def test_keeps_the_interface_at_every_extreme(self, name, suitable, tiny_data):
        network = suitable(name).teacher
        setting = Setting(tiny_data.train.take(slice(0, 8)), tiny_data.validation.take(slice(0, 4)), network)
        images = tiny_data.test.images
        for step in extremes(COMPRESSORS[name]):
            try:
                model = compress(network, setting, Recipe((step,))).model
            except TrainingError as error:  # a learning rate of 10 may leave the finite numbers, and says so
                assert_says(r"^training: .* became .* in epoch \d+", error)
                continue
            logits = model(images)
            assert logits.shape == (len(images), CLASSES), step
            assert logits.isfinite().all(), step
            assert not any(module.training for module in model.modules()), step
            assert not any(parameter.requires_grad for parameter in model.parameters()), step
            assert not any(".parametrizations." in key for key in model.state_dict()), step

    def test_same_seed_same_bits(self, name, suitable):
        setting, recipe = suitable(name), Recipe((COMPRESSORS[name](),), seed=7)
        first = compress(setting.teacher, setting, recipe).model
        torch.rand(3)
        assert equal_states(first, compress(setting.teacher, setting, recipe).model)

    def test_recipe_survives_json_at_every_extreme(self, name):
        for step in extremes(COMPRESSORS[name]):
            recipe = Recipe((step, COMPRESSORS[name]()), seed=3)
            assert Recipe.from_json(recipe.to_json()) == recipe

    def test_progress_rises_to_the_end_and_can_be_stopped(self, name, suitable):
        seen, cls, setting = [], COMPRESSORS[name], suitable(name)
        model = setting.teacher
        compress(model, setting, Recipe((cls(), cls())), Run(on_progress=lambda p: seen.append(p.fraction)))
        assert_progress(seen)
        assert seen[-1] == pytest.approx(1)
        before, state = fingerprint(model), torch.get_rng_state()
        with pytest.raises(Stop):
            compress(model, setting, Recipe((cls(),)), Run(on_progress=stop))
        assert_untouched(model, before)
        assert torch.equal(torch.get_rng_state(), state)

    def test_refuses_models_without_layers_and_with_broken_weights(self, name, tiny_model, setting):
        with pytest.raises(UnsupportedModelError):
            compress(WEIGHTED, setting, Recipe((COMPRESSORS[name](),)))
        tiny_model.layer2[0].conv1.weight.data[1] = torch.inf
        with pytest.raises(
            UnsupportedModelError, match=r"layer layer2\.0\.conv1: weight must be finite, got 72"
        ):
            compress(tiny_model, setting, Recipe((COMPRESSORS[name](),)))

    @pytest.mark.parametrize("other", COMPRESSORS)
    def test_composes_with_every_other(self, name, other, suitable):
        """On the residual network; on the plain one, where one may refuse, if either is not for it."""
        first, second = suitable(other), suitable(name)
        setting = second if REFUSES_RESIDUAL[name] else first
        try:
            result = compress(setting.teacher, setting, Recipe((COMPRESSORS[other](), COMPRESSORS[name]())))
        except UnsupportedModelError as error:
            assert REFUSES_RESIDUAL[name] or REFUSES_RESIDUAL[other]
            assert_says(r"must .*, got ", error)
            return
        logits = result.model(setting.validation.images)
        assert logits.shape == (len(setting.validation), CLASSES)
        assert logits.isfinite().all()

    def test_works_on_a_network_without_shortcuts_and_shows_what_it_did(self, name, plain_model, tiny_data):
        setting = Setting(tiny_data.train, tiny_data.validation, plain_model)
        recipe = Recipe((COMPRESSORS[name](),))
        try:
            model = compress(plain_model, setting, recipe).model
        except UnsupportedModelError as error:
            assert_says(r"must .*, got ", error)
            return
        assert model(tiny_data.test.images).isfinite().all()
        before, state, seen = fingerprint(plain_model), torch.get_rng_state(), []
        run = Run(on_progress=lambda p: seen.append(p.fraction))
        shown = compress(plain_model, setting, recipe, run, figures=True)
        assert_figures(shown.figures[0])
        assert_progress(seen)
        assert equal_states(shown.model, model)
        assert_untouched(plain_model, before)
        assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------- attributions


@pytest.mark.parametrize("name", ATTRIBUTIONS)
class TestAttribution:
    @pytest.fixture(scope="class")
    def trained(self, tiny_data):
        """A network that has something to explain."""
        with seeded(0):
            model = plain_network()
            schedule = Schedule(epochs=20, learning_rate=0.05, batch_size=16, crop=0, flip=False)
            fit(model, tiny_data.train, Classification(), schedule, Run())
        return model

    @pytest.fixture
    def question(self, trained, tiny_data):
        return trained, tiny_data.test.images[:2], tiny_data.test.labels[:2]

    def test_maps_are_finite_and_shaped_like_the_images(self, name, question):
        model, images, targets = question
        maps = explain(model, ATTRIBUTIONS[name](), images, targets)
        assert maps.shape == images.shape
        assert maps.isfinite().all()
        assert maps.any()
        assert not maps.requires_grad

    @pytest.mark.slow
    def test_keeps_the_interface_at_every_option_and_lowest_effort(self, name, question):
        model, images, targets = question
        for method in extremes(ATTRIBUTIONS[name]):
            if all(getattr(method, n) < d.high for n, d in method.domains().items() if isinstance(d, Number)):
                maps = explain(model, method, images, targets)
                assert maps.shape == images.shape, method
                assert maps.isfinite().all(), method

    def test_leaves_model_images_and_random_state_alone(self, name, question):
        model, images, targets = question
        before, pixels, state = fingerprint(model), images.clone(), torch.get_rng_state()
        explain(model, ATTRIBUTIONS[name](), images, targets)
        assert_untouched(model, before)
        assert torch.equal(images, pixels)
        assert not images.requires_grad
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.usefixtures("forgetful")
    def test_same_seed_same_bits(self, name, question):
        model, images, targets = question
        first = explain(model, ATTRIBUTIONS[name](), images, targets, seed=3)
        torch.rand(5)
        assert torch.equal(first, explain(model, ATTRIBUTIONS[name](), images, targets, seed=3))

    def test_progress_rises_to_the_end_and_can_be_stopped(self, name, question):
        model, images, targets = question
        seen = []
        run = Run(on_progress=lambda p: seen.append(p.fraction))
        explain(model, ATTRIBUTIONS[name](), images, targets, run)
        assert_progress(seen)
        assert seen[-1] == pytest.approx(1)
        before = fingerprint(model)
        with pytest.raises(Stop):
            explain(model, ATTRIBUTIONS[name](), images, targets, Run(on_progress=stop))
        assert_untouched(model, before)

    def test_works_on_what_every_compressor_leaves_or_says_why_not(self, name, suitable):
        for other in COMPRESSORS:
            setting = suitable(other)
            images, targets = setting.validation.images[:1], setting.validation.labels[:1]
            model = compress(setting.teacher, setting, Recipe((COMPRESSORS[other](),))).model
            try:
                maps = explain(model, ATTRIBUTIONS[name](), images, targets)
            except UnsupportedModelError as error:
                assert_says(rf"^{name}: .*(must .*, got |, which this network has)", error)
                continue
            assert maps.isfinite().all(), other


# ------------------------------------------------------------------------ diagnostics and properties


@pytest.mark.parametrize("name", DIAGNOSTICS)
class TestDiagnostic:
    def measure(self, name, before, after, setting, run=None):
        run = run or Run()
        with seeded(0, run):
            return DIAGNOSTICS[name]().measure(before, after, setting, run)

    @pytest.mark.parametrize("compressor", COMPRESSORS)
    def test_gives_a_tidy_table_for_every_compressor(self, name, compressor, suitable):
        setting = suitable(compressor)
        compressed = compress(setting.teacher, setting, Recipe((COMPRESSORS[compressor](),))).model
        table = self.measure(name, setting.teacher, compressed, setting)
        assert len(table)
        assert table.columns.is_unique
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", column) for column in table.columns)
        assert not table.map(lambda value: isinstance(value, torch.Tensor | list | dict)).any(axis=None)
        assert_figures(DIAGNOSTICS[name]().figures(table))

    def test_leaves_both_networks_and_the_random_state_alone_and_repeats_itself(
        self, name, tiny_model, setting
    ):
        other = copy.deepcopy(tiny_model)
        first, second, state = fingerprint(tiny_model), fingerprint(other), torch.get_rng_state()
        table = self.measure(name, tiny_model, other, setting)
        assert_untouched(tiny_model, first)
        assert_untouched(other, second)
        assert torch.equal(torch.get_rng_state(), state)
        assert table.equals(self.measure(name, tiny_model, other, setting))
        assert_figures(shown := DIAGNOSTICS[name]().figures(table))
        assert shown

    def test_progress_rises_and_can_be_stopped(self, name, tiny_model, setting):
        seen = []
        self.measure(
            name, tiny_model, tiny_model, setting, Run(on_progress=lambda p: seen.append(p.fraction))
        )
        assert_progress(seen)
        assert seen
        with pytest.raises(Stop):
            self.measure(name, tiny_model, tiny_model, setting, Run(on_progress=stop))


@pytest.mark.parametrize("name", LABS)
class TestLab:
    def figures(self, name, setting, run=None):
        run = run or Run()
        with seeded(0, run):
            return lightest(LABS[name]).figures(setting, run)

    def test_shows_the_same_again_and_leaves_network_and_random_state_alone(
        self, name, plain_model, tiny_data
    ):
        setting = Setting(tiny_data.train, tiny_data.validation, plain_model)
        before, state, seen = fingerprint(plain_model), torch.get_rng_state(), []
        figures = self.figures(name, setting, Run(on_progress=lambda p: seen.append(p.fraction)))
        assert figures
        assert_figures(figures)
        assert_progress(seen)
        assert_untouched(plain_model, before)
        assert torch.equal(torch.get_rng_state(), state)
        again = self.figures(name, setting)
        assert [figure.to_dict() for figure in again] == [figure.to_dict() for figure in figures]

    def test_works_on_a_residual_network_or_says_why_not(self, name, setting):
        try:
            assert_figures(self.figures(name, setting))
        except UnsupportedModelError as error:
            assert_says(r"must .*, got ", error)


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_gives_a_verdict_and_leaves_the_model_alone(name, plain_model, tiny_data):
    before = fingerprint(plain_model)
    verdict = PROPERTIES[name]().check(plain_model, tiny_data.test.images[0], Run())
    assert isinstance(verdict, Verdict)
    assert_untouched(plain_model, before)


# ----------------------------------------------------------------------------------- data and models


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


def test_every_growth_folder_is_a_kind_with_a_registry():
    folders = {path.parent.name for path in (ROOT / "core").glob("*/__init__.py")}
    assert folders == {registry.package.removeprefix("core.") for registry in REGISTRIES}
