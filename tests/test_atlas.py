"""The atlas against one plain evaluation per cell."""

import copy

import pytest
import torch
from test_precision import IMAGES, reduced, split, trained  # noqa: F401 (fixtures)
from test_whatif import N, data, engine, model  # noqa: F401 (fixtures)

from core import atlas as atlases
from core.atlas import SPARSITIES
from core.errors import UserError
from core.evaluation import logits
from core.plan import QUESTIONS
from core.run import Run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNESCOPE_CACHE", str(tmp_path))
    return tmp_path / "atlas"


def plain_hits(whatif, found, images) -> torch.Tensor:
    """(S, G), from the network of every cell."""
    return torch.tensor(
        [
            [
                int((logits(whatif.model(found.plan(s, g)), images).argmax(1) == images.labels).sum())
                for g in range(len(found.sparsities))
            ]
            for s in range(len(found.sliders))
        ]
    )


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_cell_of_an_exact_atlas_is_a_plain_evaluation(question, trained):  # noqa: F811
    *_, before, found = trained.atlas(question)
    assert (before.exact, found.exact, before.n, found.n) == (False, True, IMAGES, IMAGES)
    assert found.sliders == tuple(slider.name for slider in trained.sliders(question))
    assert found.sparsities == SPARSITIES
    assert torch.equal(found.hits, plain_hits(trained, found, split()))
    assert found.original_hits == round(trained.original.accuracy * IMAGES)
    assert torch.allclose(found.change, found.accuracy - trained.original.accuracy)


def test_atlases_come_coarse_first_on_growing_parts_of_the_images(model, data):  # noqa: F811
    whatif = engine(model, data)
    found = list(whatif.atlas("zero"))
    complete = [atlas for atlas in found if atlas.complete]
    assert [(atlas.n, atlas.exact) for atlas in complete] == [(100, False), (200, False), (N, True)]
    answer = next(whatif.answer(complete[0].plan(2, 4)))
    assert complete[0].accuracy[2, 4].item() == answer.accuracy
    assert complete[0].change[2, 4].item() == pytest.approx(answer.change.difference)


def test_the_first_one_fills_in_slider_by_slider(model, data):  # noqa: F811
    first = [atlas for atlas in engine(model, data).atlas("zero") if atlas.n == 100]
    known = [int((atlas.hits >= 0).sum()) for atlas in first]
    assert len(first) > 2
    assert known == sorted(known)
    assert known[0] < known[-1] == first[-1].hits.numel()
    for atlas in first:
        there = atlas.hits >= 0
        assert torch.equal(atlas.hits[there], first[-1].hits[there])
        assert torch.equal(atlas.accuracy.isnan(), ~there)


def test_an_answer_that_is_not_a_number_is_no_hit(model, data):  # noqa: F811
    """As in an evaluation: the logit of class 0 overflows to NaN for every image."""
    broken = copy.deepcopy(model)
    broken.linear.weight[0] = 3e38
    broken.linear.weight[0, ::2] = -3e38
    whatif = engine(broken, data)
    *_, found = whatif.atlas("zero")
    assert found.original_hits == round(whatif.original.accuracy * N)
    for slider in range(len(found.sliders)):
        answer = whatif.exact(found.plan(slider, 4))
        assert found.accuracy[slider, 4].item() == pytest.approx(answer.accuracy)
    assert whatif.original.logits.isnan().any()


def test_without_images_there_is_an_atlas_of_nothing(model, data):  # noqa: F811
    (found,) = engine(model, data, data.test.take(slice(0, 0))).atlas("zero")
    assert found.exact
    assert found.n == 0


def test_removing_groups_and_silencing_layers_are_different_atlases(model, data):  # noqa: F811
    whatif = engine(model, data)
    *_, removed = whatif.atlas("remove")
    *_, silenced = whatif.atlas("silence")
    assert removed.sliders != silenced.sliders
    assert not torch.equal(removed.hits[0], silenced.hits[silenced.sliders.index("conv1")])


def test_an_exact_atlas_is_found_again_by_its_content(model, data, cache, monkeypatch):  # noqa: F811
    *_, first = engine(model, data).atlas("zero")
    monkeypatch.setattr(atlases, "_measure", None)
    (again,) = engine(model, data).atlas("zero")
    assert again.exact
    assert torch.equal(again.hits, first.hits)
    monkeypatch.undo()


def test_other_weights_images_or_scores_are_other_content(model, data, cache, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PRUNESCOPE_CACHE", str(cache.parent))
    other = copy.deepcopy(model)
    other.linear.bias[0] += 1
    for whatif in (
        engine(model, data),
        engine(other, data),
        engine(model, data, data.test.take(slice(0, N - 1))),
    ):
        list(whatif.atlas("zero"))
    list(engine(model, data).atlas("zero", "filter-l1"))
    list(engine(model, data).atlas("silence"))
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", [b"", b"x" * 200])
def test_a_damaged_file_is_measured_again(damage, model, data, cache):  # noqa: F811
    *_, first = engine(model, data).atlas("zero")
    (file,) = cache.iterdir()
    file.write_bytes(damage)
    *_, again = engine(model, data).atlas("zero")
    assert torch.equal(again.hits, first.hits)
    assert file.read_bytes() != damage


def test_where_nothing_can_be_kept_the_atlas_is_there_all_the_same(model, data, monkeypatch, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRUNESCOPE_CACHE", str(tmp_path / "file"))
    *_, found = engine(model, data).atlas("zero")
    assert found.exact


def test_progress_grows_to_one_and_an_exception_in_it_ends_the_survey(model, data, cache):  # noqa: F811
    seen = []
    list(engine(model, data).atlas("zero", run=Run(lambda progress: seen.append(progress.fraction))))
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    (file,) = cache.iterdir()
    file.unlink()

    class StopError(Exception):
        pass

    calls = []

    def stop(progress):
        calls.append(progress)
        if len(calls) == 5:
            raise StopError

    with pytest.raises(StopError):
        list(engine(model, data).atlas("zero", run=Run(stop)))
    assert len(calls) == 5
    assert not list(cache.iterdir())


def test_an_unknown_question_or_criterion_is_named(model, data):  # noqa: F811
    with pytest.raises(UserError, match="question"):
        list(engine(model, data).atlas("zeros"))
    with pytest.raises(UserError, match="criterion"):
        list(engine(model, data).atlas("weights", "taylor"))
