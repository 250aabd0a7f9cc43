"""An atlas made in the background."""

import threading

import pytest
import torch
from test_atlas import cache  # noqa: F401 (fixture)
from test_whatif import data, engine, model  # noqa: F401 (fixtures)

from core.errors import UnsupportedModelError
from core.survey import Survey


def test_a_survey_ends_with_the_exact_atlas(model, data):  # noqa: F811
    whatif = engine(model, data)
    survey = Survey(lambda run: whatif.atlas("zero", run=run))
    survey.wait(60)
    assert not survey.running
    assert survey.atlas.exact
    assert survey.fraction == pytest.approx(1.0)
    *_, wanted = engine(model, data).atlas("zero")
    assert torch.equal(survey.atlas.hits, wanted.hits)


def test_a_stopped_survey_keeps_what_it_knows(model, data):  # noqa: F811
    whatif, known = engine(model, data), threading.Event()

    def slowly(run):
        for atlas in whatif.atlas("zero", run=run):
            yield atlas
            known.set()
            stopped.wait(10)

    stopped = threading.Event()
    survey = Survey(slowly)
    assert known.wait(30)
    survey.stop()
    stopped.set()
    survey.wait(30)
    assert not survey.running
    assert survey.atlas is not None
    assert not survey.atlas.exact
    assert survey.problem is None


def test_a_survey_pauses_where_it_was_told_to_until_somebody_wants_more(model, data):  # noqa: F811
    whatif = engine(model, data)
    survey = Survey(lambda run: whatif.atlas("zero", run=run), pause=200)
    for _ in range(600):
        if not survey.running:
            break
        survey.wait(0.05)
    assert survey.atlas.n == 200
    assert survey.complete is survey.atlas
    survey.go_on()
    survey.wait(60)
    assert survey.complete.exact


def test_a_pausing_survey_can_be_stopped(model, data):  # noqa: F811
    whatif = engine(model, data)
    survey = Survey(lambda run: whatif.atlas("zero", run=run), pause=1)
    while survey.complete is None:
        survey.wait(0.05)
    survey.stop()
    survey.wait(30)
    assert not survey.running
    assert not survey.atlas.exact


def test_what_a_reader_can_put_right_is_kept_as_a_sentence():
    def refuse(run):
        raise UnsupportedModelError("channel removal: channels must keep to themselves")
        yield

    survey = Survey(refuse)
    survey.wait(10)
    assert "channels must keep" in str(survey.problem)
    assert survey.atlas is None
