"""What changed inside: weight change by hand; and what a verdict may say."""

import math

import pytest
import torch
from torch import nn

from core.diagnosis import DIAGNOSTICS
from core.diagnostics.weight_change import WeightChange
from core.errors import UnsupportedModelError
from core.methods.prune_weights import PruneWeights
from core.recipe import Recipe, compress
from core.run import Run
from core.verification import Verdict


def network(*weights):
    model = nn.Sequential(*(nn.Linear(2, len(weight) // 2, bias=False) for weight in weights))
    for layer, weight in zip(model, weights, strict=True):
        layer.weight.data = torch.tensor(weight).view(-1, 2)
    return model


def measure(before, after):
    return WeightChange().measure(before, after, None, Run()).set_index("layer")


def test_weight_change_by_hand():
    before = network([3.0, 0.0, 0.0, 4.0], [1.0, 1.0, 1.0, 1.0])
    after = network([3.0, 0.0, 0.0, 0.0], [-2.0, -2.0, -2.0, -2.0])
    first, second = measure(before, after).loc["0"], measure(before, after).loc["1"]
    assert first.change == pytest.approx(4 / 5)
    assert first.cosine == pytest.approx(3 / 5)
    assert (first.sparsity_before, first.sparsity_after) == (0.5, 0.75)
    assert second.change == pytest.approx(3)
    assert second.cosine == pytest.approx(-1)


def test_the_same_network_did_not_change(tiny_model):
    table = measure(tiny_model, tiny_model)
    assert (table.change == 0).all()
    assert table.cosine.tolist() == pytest.approx([1.0] * len(table))


def test_where_all_weights_went_the_change_is_1_and_no_cosine_exists(tiny_model, setting):
    gone = compress(tiny_model, setting, Recipe((PruneWeights(sparsity=1.0),))).model
    table = measure(tiny_model, gone)
    assert (table.change == 1).all()
    assert table.cosine.isna().all()
    assert (table.sparsity_after == 1).all()
    assert measure(gone, tiny_model).change.isna().all()  # nothing to divide by


def test_other_shapes_and_missing_layers_have_no_change_but_keep_their_row():
    before = network([1.0] * 8, [1.0] * 4)
    table = measure(before, nn.Sequential(nn.Linear(2, 3)))
    assert table.index.tolist() == ["0", "1"]
    assert table.change.isna().all()
    assert table.weights_before.tolist() == [8, 4]
    assert table.weights_after.tolist() == [6, 0]
    assert math.isnan(table.loc["1"].sparsity_after)


def test_a_network_without_layers_has_nothing_to_compare():
    with pytest.raises(UnsupportedModelError):
        measure(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU()))


def test_the_diagnostic_is_found_by_name():
    assert DIAGNOSTICS["weight-change"] is WeightChange


def test_a_verdict_is_refuted_by_a_counterexample_and_by_nothing_else():
    assert Verdict("refuted", 0.1, counterexample=torch.zeros(1, 2, 2)).status == "refuted"
    assert Verdict("proved", 0.1, proof={"bounds": [1]}).proof == {"bounds": [1]}
    with pytest.raises(ValueError, match="a counterexample belongs to a refuted property"):
        Verdict("refuted", 0.1)
    with pytest.raises(ValueError, match="a counterexample belongs to a refuted property"):
        Verdict("proved", 0.1, counterexample=torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="status must be one of proved, refuted, unknown, got 'maybe'"):
        Verdict("maybe", 0.1)
