"""Masks cut from one ranking: exact counts, nested, the same as a plain sort."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.criterion import Ranking, per_filter
from core.errors import ParameterError

SCORES = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40)
FRACTION = st.floats(0, 1)


@given(SCORES, FRACTION)
def test_a_mask_removes_the_lowest_as_sorting_by_hand_does(values, sparsity):
    mask = Ranking({"a": torch.tensor(values)}).masks({"a": sparsity})["a"]
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    gone = set(order[: round(sparsity * len(values))])
    assert mask.tolist() == [i not in gone for i in range(len(values))]


@given(SCORES, SCORES, FRACTION)
def test_a_global_mask_sorts_all_layers_together(first, second, sparsity):
    masks = Ranking({"a": torch.tensor(first), "b": torch.tensor(second)}).global_masks(sparsity)
    values = first + second
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    gone = set(order[: round(sparsity * len(values))])
    kept = masks["a"].tolist() + masks["b"].tolist()
    assert kept == [i not in gone for i in range(len(values))]


@given(SCORES, FRACTION, FRACTION)
def test_masks_are_nested_in_sparsity(values, one, other):
    ranking = Ranking({"a": torch.tensor(values), "b": torch.tensor(values[::-1])})
    less, more = sorted((one, other))
    assert not (ranking.masks({"a": more})["a"] & ~ranking.masks({"a": less})["a"]).any()
    for name in "ab":
        assert not (ranking.global_masks(more)[name] & ~ranking.global_masks(less)[name]).any()


@pytest.mark.parametrize("count", [1, 2, 3, 16, 1000])
def test_nothing_goes_at_0_and_everything_at_100_percent(count):
    ranking = Ranking({"a": torch.zeros(count)})
    assert ranking.masks({"a": 0.0})["a"].all()
    assert not ranking.masks({"a": 1.0})["a"].any()
    assert ranking.global_masks(0.0)["a"].all()
    assert not ranking.global_masks(1.0)["a"].any()


def test_equal_scores_go_in_order_of_position_so_that_counts_are_exact():
    mask = Ranking({"a": torch.ones(2, 5)}).masks({"a": 0.3})["a"]
    assert mask.tolist() == [[False, False, False, True, True], [True] * 5]


def test_a_score_that_is_not_a_number_goes_first():
    scores = torch.tensor([1.0, float("nan"), -float("inf"), float("inf")])
    ranking = Ranking({"a": scores})
    assert ranking.masks({"a": 0.25})["a"].tolist() == [True, False, True, True]
    assert ranking.masks({"a": 0.75})["a"].tolist() == [False, False, False, True]


def test_global_sparsities_are_those_of_the_global_masks():
    ranking = Ranking({"low": torch.arange(10.0), "high": torch.arange(10.0) + 5})
    sparsities = ranking.global_sparsities(0.5)
    assert sparsities == pytest.approx({"low": 0.8, "high": 0.2})  # 0..4, then ties go by position
    masks = ranking.masks(sparsities)
    assert all(torch.equal(masks[name], mask) for name, mask in ranking.global_masks(0.5).items())


def test_scores_are_sorted_once_for_all_sparsities(monkeypatch):
    import core.criterion

    calls, places = [], core.criterion._places
    monkeypatch.setattr(core.criterion, "_places", lambda scores: calls.append(1) or places(scores))
    ranking = Ranking({"a": torch.rand(30), "b": torch.rand(4, 3)})
    for percent in range(101):
        ranking.masks({"a": percent / 100, "b": percent / 100})
        ranking.global_masks(percent / 100)
    assert len(calls) == 3  # one for each layer, one for all together


def test_a_mask_has_the_shape_of_its_scores():
    ranking = Ranking({"conv": torch.rand(4, 3, 2, 2), "linear": torch.rand(5)})
    assert {n: m.shape for n, m in ranking.global_masks(0.5).items()} == {
        "conv": (4, 3, 2, 2),
        "linear": (5,),
    }


def test_an_unknown_layer_is_named_with_the_nearest():
    with pytest.raises(
        ParameterError, match=r"no layer is called 'layer1.conv'; did you mean 'layer1.conv1'\?"
    ):
        Ranking({"layer1.conv1": torch.rand(3)}).masks({"layer1.conv": 0.5})


def test_filter_scores_are_sums_over_the_filter():
    scores = per_filter({"conv": torch.arange(12.0).view(3, 2, 2), "filters": torch.tensor([1.0, 2.0])})
    assert scores["conv"].tolist() == [6, 22, 38]
    assert scores["filters"].tolist() == [1, 2]
