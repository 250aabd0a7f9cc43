"""Accuracy, intervals and change against plain loops and peer libraries."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint
from torch import nn
from torch.nn import functional as F

from core.bundles import MODELS, Split
from core.evaluation import (
    Evaluation,
    answered,
    change,
    evaluate,
    logits,
    paired_interval,
    per_class,
    wilson,
)
from core.run import Run


def pictures(n: int, classes: int = 10) -> Split:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, classes, (n,), generator=random)
    return Split(pixels, labels, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def network(name: str = "small-cnn") -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().build((3, 32, 32), 10).eval()


class Fixed(nn.Module):
    """Answers with given logits whatever it sees: the first pixel of an image is its number."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, x):
        return self.table[(x[:, 0, 0, 0] * 255).round().long()]


def numbered(labels: torch.Tensor) -> Split:
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Split(pixels, labels, (0.0,), (1.0,))


# accuracy and loss


@pytest.mark.parametrize("n", [1, 7, 260])
def test_accuracy_and_loss_equal_a_plain_loop(n):
    model, split = network(), pictures(n)
    hits, loss = 0, 0.0
    with torch.no_grad():
        for image, label in zip(split.images, split.labels, strict=True):
            answer = model(image[None])[0]
            hits += int(answer.argmax() == label)
            loss += (answer.exp().sum().log() - answer[label]).item()
    found = evaluate(model, split)
    assert found.n == n
    assert found.accuracy == hits / n
    assert found.loss == pytest.approx(loss / n, rel=1e-5)
    assert found.interval == pytest.approx(proportion_confint(hits, n, method="wilson"))


def test_equal_inputs_give_equal_bits():
    split = pictures(30)
    assert torch.equal(logits(network(), split), logits(network(), split))
    assert evaluate(network(), split) == evaluate(network(), split)


def test_logits_do_not_depend_on_the_batch_size_beyond_rounding():
    model, split = network("resnet20"), pictures(23)
    whole = logits(model, split)
    assert whole.shape == (23, 10)
    assert whole.dtype == torch.float32
    assert torch.allclose(logits(model, split, batch_size=4), whole, atol=1e-5)


def test_evaluating_leaves_a_training_model_as_it_was_but_measures_it_in_eval_mode():
    model, split = network().train(), pictures(9)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = logits(model, split)
    assert torch.equal(found, logits(network(), split))
    assert all(layer.training for layer in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_split_without_images_has_no_accuracy_and_knows_nothing():
    found = evaluate(network("resnet20"), pictures(0))
    assert found.n == 0
    assert math.isnan(found.accuracy)
    assert math.isnan(found.loss)
    assert found.interval == (0.0, 1.0)
    assert found.parameters == 269_722
    assert logits(network(), pictures(0)).shape == (0, 10)


def test_an_image_with_nan_logits_has_no_answer_and_is_never_right():
    table = torch.eye(3)
    table[1, 1] = math.nan  # plain argmax would take the NaN for the largest, and be "right"
    split = numbered(torch.tensor([0, 1, 2]))
    assert answered(table).tolist() == [0, -1, 2]
    found = evaluate(Fixed(table), split)
    assert found.accuracy == pytest.approx(2 / 3)
    assert math.isnan(found.loss)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["loss"] is None


def test_progress_reaches_the_end_and_cancelling_stops_the_work():
    seen = []
    logits(network(), pictures(10), Run(lambda p: seen.append(p.fraction)), batch_size=3)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)

    class CancelledError(Exception):
        pass

    def cancel(progress):
        raise CancelledError

    with pytest.raises(CancelledError):
        logits(network(), pictures(10), Run(cancel), batch_size=3)


def test_every_field_of_an_evaluation_says_how_it_is_shown():
    metrics = Evaluation.metrics()
    assert list(metrics)[:2] == ["n", "accuracy"]
    found = evaluate(network(), pictures(4))
    for name, shown in metrics.items():
        value = getattr(found, name)
        for part in value if isinstance(value, tuple) else (value,):
            assert format(part, shown.format)
        assert shown.help
        assert shown.label
    assert found.to_dict().keys() == metrics.keys()


def test_an_empty_class_is_listed_with_no_accuracy():
    table = per_class(torch.eye(3)[[0, 0, 2]], torch.tensor([0, 0, 0]), ("a", "b", "c"))
    assert table["n"].tolist() == [3, 0, 0]
    assert table["accuracy"][0] == pytest.approx(2 / 3)
    assert table["accuracy"][1:].isna().all()
    assert table[["low", "high"]].to_numpy()[1].tolist() == [0.0, 1.0]


# intervals


@settings(deadline=None)
@given(st.integers(1, 3000), st.data())
def test_wilson_equals_statsmodels(n, data):
    hits = data.draw(st.integers(0, n))
    assert wilson(hits, n) == pytest.approx(proportion_confint(hits, n, method="wilson"), abs=1e-9)


@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high"),
    [
        # "contingencytables" (R), data of Cavo et al. 2012 and of Bentur et al. 2009
        (6, 16, 161, -0.1240, -0.0054),
        (1, 7, 21, -0.5172, -0.0260),
    ],
)
def test_paired_interval_has_the_published_values(gained, lost, n, low, high):
    assert paired_interval(gained, lost, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 9, 60), (0, 4, 50), (12, 12, 40)])
def test_paired_interval_is_where_the_score_statistic_is_1_96(gained, lost, n):
    """The score statistic with its nuisance parameter found by brute force over a fine grid."""
    for d in paired_interval(gained, lost, n):
        share = np.linspace(max(0.0, -d), (1 - d) / 2, 400_001)[1:-1]  # of lost images; of gained: share + d
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = [
                count * np.log(p) if count else np.zeros_like(p)
                for count, p in ((gained, share + d), (lost, share), (n - gained - lost, 1 - 2 * share - d))
            ]
        best = share[np.nanargmax(sum(terms))]
        variance = n * (2 * best + d - d * d)
        assert abs(gained - lost - n * d) / math.sqrt(variance) == pytest.approx(1.959964, abs=2e-3)


@settings(deadline=None)
@given(st.integers(1, 2000), st.data())
def test_paired_interval_encloses_the_estimate_and_mirrors_when_the_networks_are_swapped(n, data):
    gained = data.draw(st.integers(0, n))
    lost = data.draw(st.integers(0, n - gained))
    low, high = paired_interval(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    swapped = paired_interval(lost, gained, n)
    assert (-swapped[1], -swapped[0]) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_no_image_changed_still_leaves_room_around_zero(n):
    low, high = paired_interval(0, 0, n)
    z2 = 1.959963984540054**2
    assert (low, high) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))


def test_no_image_at_all_leaves_every_difference_possible():
    assert paired_interval(0, 0, 0) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("n", "gains", "losses"),
    [(250, 0.004, 0.004), (250, 0.02, 0.05), (1077, 0.001, 0.003), (1077, 0.03, 0.10), (100, 0.1, 0.5)],
)
def test_paired_interval_covers_the_truth_about_95_times_in_100(n, gains, losses):
    draws = np.random.default_rng(0).multinomial(n, [gains, losses, 1 - gains - losses], 4000)
    held = 0
    for (gained, lost, _), count in zip(*np.unique(draws, axis=0, return_counts=True), strict=True):
        low, high = paired_interval(int(gained), int(lost), n)
        held += count * (low <= gains - losses <= high)
    assert 0.93 <= held / 4000 <= 1.0


def test_the_published_agresti_min_interval_agrees_where_both_are_good():
    """A second method for the same thing: a Wald interval after adding half an image to every cell."""
    n, gained, lost = 1000, 40, 75
    b, c, m = gained + 0.5, lost + 0.5, n + 2
    half = 1.959964 * math.sqrt(b + c - (b - c) ** 2 / m) / m
    assert paired_interval(gained, lost, n) == pytest.approx(
        ((b - c) / m - half, (b - c) / m + half), abs=1e-3
    )


# change


def test_change_counts_the_images_that_changed_sides_and_those_with_another_answer():
    labels = torch.tensor([0, 0, 0, 0, 1])
    before = F.one_hot(torch.tensor([0, 0, 1, 1, 1]), 3).float()
    after = F.one_hot(torch.tensor([0, 2, 0, 2, 1]), 3).float()
    found = change(before, after, labels)
    assert found.n == 5
    assert found.difference == 0.0
    assert found.gained.tolist() == [2]
    assert found.lost.tolist() == [1]
    assert found.changed.tolist() == [1, 2, 3]
    assert found.interval == paired_interval(1, 1, 5)


def test_difference_is_the_difference_of_the_accuracies():
    torch.manual_seed(0)
    before, after, labels = torch.randn(200, 4), torch.randn(200, 4), torch.randint(0, 4, (200,))
    right = [
        sum(int(row.argmax() == label) for row, label in zip(x, labels, strict=True)) for x in (before, after)
    ]
    assert change(before, after, labels).difference == pytest.approx((right[1] - right[0]) / 200)


def test_the_same_logits_change_nothing():
    x = torch.randn(50, 10)
    found = change(x, x, torch.randint(0, 10, (50,)))
    assert found.difference == 0.0
    assert [len(t) for t in (found.gained, found.lost, found.changed)] == [0, 0, 0]
    assert found.interval[0] < 0 < found.interval[1]


def test_change_without_images_is_unknown():
    found = change(torch.empty(0, 3), torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert math.isnan(found.difference)
    assert found.interval == (-1.0, 1.0)


def test_losing_every_answer_to_nan_loses_the_right_ones():
    x, labels = torch.eye(3), torch.tensor([0, 1, 0])
    found = change(x, torch.full((3, 3), math.nan), labels)
    assert found.lost.tolist() == [0, 1]
    assert found.changed.tolist() == [0, 1, 2]


def test_the_largest_logit_wins_for_every_order_of_three():
    for order in itertools.permutations([0.0, 1.0, 2.0]):
        assert answered(torch.tensor([order])).item() == order.index(2.0)
