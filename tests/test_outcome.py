"""An outcome is what its recipe makes, and comes back from its folder as it was."""

import json

import pandas as pd
import pytest
import torch

from core.as_json import plain, to_json
from core.bundles import Setting
from core.errors import CheckpointError
from core.evaluation import change, evaluate, logits
from core.figure import Figure, Reference, histogram
from core.outcome import PARTS, Outcome, carry_out
from core.recipe import COMPRESSORS, Recipe, compress
from core.weights import load_dataset, load_model


@pytest.fixture(scope="module")
def bundle():
    return load_model("mlp", "digits")


@pytest.fixture(scope="module")
def recipe():
    return Recipe((COMPRESSORS["prune-weights"](sparsity=0.9), COMPRESSORS["low-rank"](sparsity=0.3)), seed=2)


@pytest.fixture(scope="module")
def outcome(bundle, recipe):
    return carry_out(bundle, load_dataset("digits"), recipe, figures=True)


def test_its_numbers_are_those_of_the_two_networks(outcome, bundle, recipe):
    data = load_dataset("digits")
    made = compress(bundle.module, Setting(data.train, data.validation, bundle.module), recipe).model
    assert outcome.before.to_dict() == evaluate(bundle.module, data.test).to_dict()
    assert outcome.after.to_dict() == evaluate(made, data.test).to_dict()
    moved = change(logits(bundle.module, data.test), logits(made, data.test), data.test.labels)
    assert torch.equal(outcome.change.lost, moved.lost)
    assert outcome.change.interval == moved.interval
    assert len(outcome.figures) == 2


def test_it_comes_back_from_its_folder_as_it_was(outcome, bundle, tmp_path):
    outcome.save(tmp_path, bundle, load_dataset("digits"))
    again = Outcome.read(tmp_path)
    assert again.to_dict() == outcome.to_dict()
    images = load_dataset("digits").test.images
    assert torch.equal(again.network(images), outcome.network(images))
    assert again.recipe == outcome.recipe
    assert to_json(again.figures_dict()) == to_json(outcome.figures_dict())


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_with_something_missing_or_damaged_is_refused_with_a_sentence(
    part, outcome, bundle, tmp_path
):
    outcome.save(tmp_path, bundle, load_dataset("digits"))
    (tmp_path / part).write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"must be|damaged"):
        Outcome.read(tmp_path)
    (tmp_path / part).unlink()
    with pytest.raises(CheckpointError):
        Outcome.read(tmp_path)


def test_a_figure_reads_back_with_everything_it_says():
    table = pd.DataFrame({"x": [1, 2], "y": [0.5, float("nan")], "who": ["a", "b"]})
    line = Reference("y", 0.3, "chance")
    figure = Figure(
        "T",
        "It says so.",
        table,
        "x",
        "y",
        colour="who",
        log=frozenset({"x"}),
        percent=frozenset({"y"}),
        labels={"x": "the x"},
        references=(line,),
    )
    again = Figure.from_dict(json.loads(to_json(figure.to_dict())))
    assert again.to_dict() == figure.to_dict()
    assert again.references == (line,)
    assert again.table.y.isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": "z"}, "no column"),
        ({"colour": "nobody"}, "no column"),
        ({"percent": frozenset({"q"})}, "no column"),
        ({"finding": " "}, "needs a finding"),
        ({"mark": "heat"}, "a value if and only if"),
        ({"value": "y"}, "a value if and only if"),
    ],
)
def test_a_figure_that_could_not_be_drawn_is_refused(change, words):
    given = {"title": "T", "finding": "So.", "table": pd.DataFrame({"x": [1], "y": [2]}), "x": "x", "y": "y"}
    with pytest.raises(ValueError, match=words):
        Figure(**given | change)


def test_a_histogram_has_equal_bins_for_all_and_shares_that_add_up():
    found = histogram({"a": torch.tensor([0.0, 0.1, 1.0]), "b": torch.tensor([0.9])}, 2)
    assert found.value.tolist() == [0.25, 0.75, 0.25, 0.75]
    assert found.share.tolist() == [2 / 3, 1 / 3, 0, 1]


def test_json_has_none_for_what_is_not_finite():
    assert plain({"a": [float("inf"), torch.tensor([1.0])], 3: (None, True)}) == {
        "a": [None, [1.0]],
        "3": [None, True],
    }
