"""What every diagnostic, every lab and every property owes its callers."""

import copy
import re

import pytest
import torch
from promises import (
    Stop,
    assert_figures,
    assert_progress,
    assert_says,
    assert_untouched,
    fingerprint,
    lightest,
    stop,
)
from torch import nn

from core.bundles import Setting
from core.diagnosis import DIAGNOSTICS
from core.errors import UnsupportedModelError
from core.lab import LABS
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run, seeded
from core.verification import PROPERTIES, Verdict


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
class TestProperties:
    def test_gives_a_verdict_and_leaves_the_model_alone(self, name, tiny_data):
        picture = tiny_data.test.take(slice(0, 1))
        model, seen = fully_connected(tiny_data), []
        before, state = fingerprint(model), torch.get_rng_state()
        verdict = PROPERTIES[name]().check(model, picture, Run(seen.append))
        assert isinstance(verdict, Verdict)
        assert verdict.seconds > 0
        assert_untouched(model, before)
        assert torch.equal(torch.get_rng_state(), state)
        again = PROPERTIES[name]().check(model, picture, Run(), verdict.proof)
        assert again.status == verdict.status

    def test_says_of_what_networks_it_can_speak(self, name, tiny_data, setting):
        try:
            PROPERTIES[name]().check(setting.teacher, tiny_data.test.take(slice(0, 1)), Run())
        except UnsupportedModelError as error:
            assert_says(r"must .*, got ", error)


def fully_connected(data) -> nn.Module:
    """A small network that has learned nothing."""
    torch.manual_seed(0)
    pixels = data.test.pixels[0].numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 6), nn.ReLU(), nn.Linear(6, len(data.classes)))
    return model.eval().requires_grad_(False)
