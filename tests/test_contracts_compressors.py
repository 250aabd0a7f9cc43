"""What every compressor, every objective and every criterion owes its callers."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from promises import (
    Stop,
    assert_figures,
    assert_progress,
    assert_says,
    assert_untouched,
    equal_states,
    extremes,
    fingerprint,
    stop,
)
from tiny import CLASSES
from torch import nn

from core.bundles import Setting
from core.criterion import CRITERIA, rank
from core.errors import ParameterError, TrainingError, UnsupportedModelError
from core.layers import apply_mask, bake, prunable
from core.methods.fine_tuning import FineTuning
from core.objective import OBJECTIVES
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run
from core.tuning import Tuning

WEIGHTED = nn.Sequential(nn.Flatten(), nn.ReLU())  # has no weight at all


# ---------------------------------------------------------------------------------------- criteria


@pytest.mark.parametrize("name", CRITERIA)
class TestCriterion:
    def test_scores_every_layer_in_its_grain_at_every_extreme(self, name, tiny_model, setting):
        layers = prunable(tiny_model)
        for criterion in extremes(CRITERIA[name], quick=True):
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


# --------------------------------------------------------------------------------------- objectives


@pytest.mark.parametrize("name", OBJECTIVES)
class TestObjective:
    def tuned(self, objective, setting, seed=0, run=None, steps=(), **schedule):
        step = FineTuning(objective=objective, **{"epochs": 1, "batch_size": 16, "crop": 0} | schedule)
        return compress(setting.teacher, setting, Recipe((*steps, step), seed), run, figures=True)

    def test_trains_any_network_and_leaves_the_teacher_alone(self, name, setting, plain_model):
        for teacher in (setting.teacher, plain_model):
            before, run = fingerprint(teacher), Run()
            result = self.tuned(OBJECTIVES[name](), replace(setting, teacher=teacher), run=run, epochs=2)
            assert_untouched(teacher, before)
            assert not equal_states(teacher, result.model)
            assert result.model(setting.validation.images).isfinite().all()
            rows = [row for row in run.records if "validation_accuracy" in row]
            assert len(rows) == 2
            assert all(math.isfinite(value) for row in rows for value in row.values())
            assert_figures(result.figures[-1])

    def test_trains_networks_of_other_widths_and_shapes_or_says_why_not(self, name, setting):
        for step in (COMPRESSORS["student"](width=0.5), COMPRESSORS["layer-removal"](sparsity=1.0)):
            try:
                model = self.tuned(OBJECTIVES[name](), setting, steps=(step,)).model
            except UnsupportedModelError as error:
                assert_says(rf"^{name}: .*must .*, got ", error)
                continue
            assert model(setting.validation.images).isfinite().all()

    def test_same_seed_same_bits(self, name, setting):
        first = self.tuned(OBJECTIVES[name](), setting, seed=5).model
        torch.rand(3)
        assert equal_states(first, self.tuned(OBJECTIVES[name](), setting, seed=5).model)

    def test_works_at_every_extreme(self, name, setting):
        few = replace(
            setting, train=setting.train.take(slice(0, 8)), validation=setting.validation.take(slice(0, 4))
        )
        for objective in extremes(OBJECTIVES[name], quick=True):
            try:
                model = self.tuned(objective, few, learning_rate=1e-3).model
            except UnsupportedModelError as error:
                assert_says(rf"^{name}: .*must .*, got ", error)
                continue
            assert model(few.validation.images).isfinite().all(), objective

    def test_says_how_its_source_trained(self, name):
        paper = FineTuning(objective=OBJECTIVES[name]()).preset("paper")
        assert paper.objective == OBJECTIVES[name]()
        assert all(getattr(paper, field) == value for field, value in OBJECTIVES[name].paper.items())

    def test_progress_rises_and_can_be_stopped(self, name, setting):
        seen = []
        self.tuned(OBJECTIVES[name](), setting, run=Run(on_progress=lambda p: seen.append(p.fraction)))
        assert_progress(seen)
        with pytest.raises(Stop):
            self.tuned(OBJECTIVES[name](), setting, run=Run(on_progress=stop))


# -------------------------------------------------------------------------------------- compressors


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
        for step in extremes(COMPRESSORS[name], quick=True):
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

    def test_one_that_trains_is_quick_by_default_and_says_how_its_source_trained(self, name):
        if issubclass(COMPRESSORS[name], Tuning):
            step = COMPRESSORS[name]()
            paper = step.preset("paper")
            assert paper.epochs * paper.images > 20 * step.epochs * step.images
            with pytest.raises(ParameterError, match=f"^{name}: no preset is called 'papr'; .*paper"):
                step.preset("papr")

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
    def test_composes_with_every_other(self, name, other, suitable, plain_model):
        """On the residual network; on the plain one, where one may refuse, if either is not for it."""
        first, second = suitable(other), suitable(name)
        particular = [each for each in (first, second) if each.teacher is plain_model]
        setting = particular[0] if particular else first
        try:
            result = compress(setting.teacher, setting, Recipe((COMPRESSORS[other](), COMPRESSORS[name]())))
        except UnsupportedModelError as error:
            assert particular
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
