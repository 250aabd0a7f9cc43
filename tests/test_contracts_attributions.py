"""What every attribution method owes its callers."""

import pytest
import torch
from promises import Stop, assert_progress, assert_says, assert_untouched, extremes, fingerprint, stop
from tiny import plain_network

from core.attribution import ATTRIBUTIONS, explain
from core.errors import UnsupportedModelError
from core.method import Number
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run, seeded
from core.training import Classification, Schedule, fit


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
