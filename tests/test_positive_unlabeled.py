"""Risks, gate, prior, class weights and robust distillation against known answers; what is chosen."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import CLASSES, TinyResNet, quadrants
from torch import nn
from torch.nn import functional as F

from core.bundles import DATASETS, MODELS, Setting
from core.errors import ParameterError, UnsupportedModelError
from core.evaluation import evaluate
from core.figure import picture
from core.labs.pu_selection import PUSelection
from core.layers import private_copy
from core.methods.pu_compression import PUCompression
from core.methods.student import Student
from core.pools import blends, divide, mixed, noise, shared_pictures, textures, turned
from core.positive_unlabeled import (
    RIDGE,
    RISKS,
    GatedScore,
    Scoring,
    best_bin,
    estimated_prior,
    learn,
    logistic,
    naive_risk,
    nnpu_risk,
    pooled_features,
    sigmoid_loss,
    standardised,
    upu_risk,
)
from core.recipe import Recipe, compress
from core.robust_distillation import RobustDistillation, class_weights, robust_loss, worst_weights
from core.run import Run, seeded
from core.selection import Selection, histogram_figure, pictures_figure
from core.training import Classification, Schedule, fit

FIRST = ([2.0, 0.0], [-1.0, 1.0, -3.0])  # scores of positive and unlabelled examples with N > 0
SECOND = ([3.0, 2.0], [-4.0, -3.0, -2.0])  # and with N < 0
WEIGHTS = torch.tensor([1 / 3, 2 / 3, 2.0], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 1.5]], dtype=torch.float64)


def scores(pair: tuple[list, list]) -> list[torch.Tensor]:
    return [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in pair]


def gaussians(seed: int, positives: int, unlabelled: int, prior: float, apart: float = 3.0, width: int = 6):
    """Features (P, C) and (U, C) and the truth (U,): two normal clouds, `apart` deviations apart."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.rand(unlabelled, generator=random) < prior
    shift = torch.full((width,), apart / width**0.5)
    drawn = torch.randn(positives + unlabelled, width, generator=random)
    return drawn[:positives] + shift, drawn[positives:] + truth[:, None] * shift, truth


# ------------------------------------------------------------------------------------------- risks


@pytest.mark.parametrize(
    ("pair", "positive", "negative", "value", "unbiased", "gradients"),
    [
        (
            *(FIRST, 0.123841, 0.072983, 0.196823, 0.196823),
            ([-0.041997, -0.1], [0.065537, 0.065537, 0.015059]),
        ),
        (
            *(SECOND, 0.033326, -0.305136, 0.033326, -0.271810),
            ([0.009035, 0.020999], [-0.005888, -0.015059, -0.034998]),
        ),
    ],
)
def test_risks_and_gradients_are_the_known_ones(pair, positive, negative, value, unbiased, gradients):
    given = scores(pair)
    risk = nnpu_risk(*given, 0.4)
    assert [v.item() for v in (risk.positive, risk.negative, risk.value)] == pytest.approx(
        [positive, negative, value], abs=1e-6
    )
    assert upu_risk(*given, 0.4).value.item() == pytest.approx(unbiased, abs=1e-6)
    found = torch.autograd.grad(risk.objective, given)
    for gradient, expected in zip(found, gradients, strict=True):
        assert gradient.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pair", [FIRST, SECOND])
def test_gradients_equal_the_derivatives_written_out(pair):
    """d/dz of l(z) is -l(z) l(-z); both branches, to 1e-8."""
    positive, unlabelled = given = scores(pair)
    slope_p, slope_u = (torch.sigmoid(g) * torch.sigmoid(-g) / len(g) for g in given)
    whole, corrected = [-2 * 0.4 * slope_p, slope_u], [0.4 * slope_p, -slope_u]
    expected = whole if pair is FIRST else corrected
    found = torch.autograd.grad(nnpu_risk(positive, unlabelled, 0.4).objective, given)
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(found, expected, strict=True))


def test_what_the_risks_owe_each_other():
    random = torch.Generator().manual_seed(0)
    z = torch.randn(100, generator=random, dtype=torch.float64)
    assert torch.allclose(sigmoid_loss(z) + sigmoid_loss(-z), torch.ones_like(z))
    seen = set()
    for draw in range(200):
        p, u = (3 * torch.randn(n, generator=random) + (draw % 9 - 4) for n in (5, 7))
        plain, kept = upu_risk(p, u, 0.6), nnpu_risk(p, u, 0.6)
        assert kept.value >= plain.value
        assert kept.value >= 0
        assert (kept.value == plain.value) == (plain.negative.item() >= 0)
        assert plain.value.item() == pytest.approx((plain.positive + plain.negative).item())
        seen.add(plain.negative.item() >= 0)
    assert seen == {True, False}


def test_a_step_where_the_negative_part_is_below_zero_raises_it_again():
    given = scores(SECOND)
    risk = nnpu_risk(*given, 0.4)
    slopes = torch.autograd.grad(risk.objective, given)
    moved = [g - 0.1 * slope for g, slope in zip(given, slopes, strict=True)]
    assert nnpu_risk(*moved, 0.4).negative > risk.negative


def test_beta_and_gamma_move_the_border_and_the_step():
    given = scores(SECOND)
    below = nnpu_risk(*given, 0.4, beta=0.1, gamma=0.5)
    assert below.value.item() == pytest.approx(0.033326 - 0.1, abs=1e-6)
    assert below.objective.item() == pytest.approx(0.5 * 0.305136, abs=1e-6)
    within = nnpu_risk(*given, 0.4, beta=0.5)
    assert within.objective.item() == pytest.approx(-0.271810, abs=1e-6)


def test_the_naive_risk_is_the_cross_entropy_of_scikit_learn():
    from sklearn.metrics import log_loss

    positive, unlabelled = scores(FIRST)
    chances = torch.cat([positive, unlabelled]).sigmoid().detach().numpy()
    found = naive_risk(positive, unlabelled, 0.4).value.item()
    assert found == pytest.approx(log_loss([1, 1, 0, 0, 0], chances))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_threshold_between_two_normal_distributions_is_found(seed):
    """Positives N(1, 1), negatives N(-1, 1), prior 0.3, g = 10 (x - t): the best t is 0.435."""
    random = torch.Generator().manual_seed(seed)
    count = 100_000
    positive = 1 + torch.randn(count, generator=random, dtype=torch.float64)
    inside = torch.rand(count, generator=random) < 0.3
    unlabelled = torch.where(inside, 1.0, -1.0) + torch.randn(count, generator=random, dtype=torch.float64)
    cuts = torch.linspace(0.2, 0.7, 101).tolist()
    found = min(cuts, key=lambda t: nnpu_risk(10 * (positive - t), 10 * (unlabelled - t), 0.3).value.item())
    assert found == pytest.approx(0.435, abs=0.05)
    risk = nnpu_risk(10 * (positive - 0.435), 10 * (unlabelled - 0.435), 0.3).value.item()
    assert risk == pytest.approx(0.1420, abs=0.005)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("risk", RISKS.values())
def test_a_prior_that_is_none_is_refused(prior, risk):
    with pytest.raises(ParameterError, match="class prior must lie strictly between 0 and 1, got"):
        risk(*scores(FIRST), prior)


@pytest.mark.parametrize("pair", [([], [1.0]), ([1.0], [])])
@pytest.mark.parametrize("risk", RISKS.values())
def test_empty_batches_are_refused(pair, risk):
    with pytest.raises(ParameterError, match="at least one positive and one unlabelled score, got"):
        risk(*scores(pair), 0.4)


# ------------------------------------------------------------------------------ features and scores


def test_the_gate_is_the_known_one():
    network = GatedScore(2, gated=True).double()
    network.squeeze.weight.data = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    network.excite.weight.data = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    network.score.weight.data = torch.tensor([[3.0, 5.0]], dtype=torch.float64)
    network.score.bias.data = torch.tensor([0.25], dtype=torch.float64)
    h = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert network.gate(h)[0].tolist() == pytest.approx([0.817574, 0.182426], abs=1e-6)
    assert (network.gate(h) * h)[0].tolist() == pytest.approx([0.817574, 0.364851], abs=1e-6)
    assert network(h).item() == pytest.approx(3 * 0.817574 + 5 * 0.364851 + 0.25, abs=1e-5)
    assert GatedScore(112, gated=True).squeeze.weight.shape == (7, 112)
    plain = GatedScore(2, gated=False)
    assert torch.equal(plain.gate(h.float()), torch.ones(1, 2))


def test_features_are_the_means_of_every_stage(tiny_model, tiny_data):
    split = tiny_data.train.take(slice(0, 7))
    found = pooled_features(tiny_model, split, "gated", Run())
    x = tiny_model.relu(tiny_model.bn1(tiny_model.conv1(split.images)))
    first = tiny_model.layer1(x)
    second = tiny_model.layer2(first)
    assert torch.allclose(found, torch.cat([first.mean((2, 3)), second.mean((2, 3))], 1), atol=1e-6)
    last = pooled_features(tiny_model, split, "last-stage", Run())
    assert torch.equal(last, found[:, 8:])


def test_a_teacher_without_enough_feature_maps_is_refused(tiny_data):
    split = tiny_data.train.take(slice(0, 2))
    one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    with pytest.raises(UnsupportedModelError, match=r"must have feature maps of 2 .* got 1; .*last-stage"):
        pooled_features(one, split, "multi-scale", Run())
    assert pooled_features(one, split, "last-stage", Run()).shape == (2, 4)
    none = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES))
    with pytest.raises(UnsupportedModelError, match=r"must have feature maps of 1 .* got 0$"):
        pooled_features(none, split, "last-stage", Run())


def test_unlabelled_features_are_standardised_and_constant_ones_stay_finite():
    positive, unlabelled = torch.rand(5, 3), torch.rand(40, 3)
    unlabelled[:, 2] = 0.5
    own, other = standardised(positive, unlabelled)
    assert torch.allclose(other.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(other[:, :2].std(0, correction=0), torch.ones(2), atol=1e-5)
    assert own.isfinite().all()


def scored(positive, unlabelled, prior, estimator="nnpu", seed=0, gated=True, epochs=100) -> Scoring:
    with seeded(seed):
        return learn(positive, unlabelled, prior, estimator, gated=gated, epochs=epochs, run=Run())


def test_what_is_selected_does_not_depend_on_the_order_of_the_pool():
    positive, unlabelled, _ = gaussians(0, 30, 500, 0.3)
    first = scored(positive, unlabelled, 0.3, epochs=10)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(9))
    again = scored(positive, unlabelled[order], 0.3, epochs=10)
    assert torch.equal(first.unlabelled[order], again.unlabelled)
    assert not torch.equal(first.unlabelled, scored(positive, unlabelled, 0.3, seed=1, epochs=10).unlabelled)


def test_positives_are_found_among_others_far_away():
    positive, unlabelled, truth = gaussians(0, 60, 1000, 0.2, apart=6.0)
    chosen = scored(positive, unlabelled, 0.2).unlabelled > 0
    assert (chosen == truth).float().mean() > 0.98


def test_a_tiny_prior_selects_nothing_and_a_large_one_nearly_all():
    positive, unlabelled, _ = gaussians(0, 60, 200, 0.2)
    few = scored(positive, unlabelled, 0.001, epochs=1200)
    assert not (few.unlabelled > 0).any()
    alike = torch.randn(660, 6, generator=torch.Generator().manual_seed(0))
    most = scored(alike[:60], alike[60:], 0.999)
    assert (most.unlabelled > 0).float().mean() > 0.98
    assert (most.positive > 0).all()


def test_the_trivial_solution_is_told_from_a_selection():
    nothing, something = torch.tensor([-9.0, -8.0]), torch.tensor([-9.0, 8.0])
    held = partial(Scoring, positive=nothing, prior=0.3, negative=0.0, trace=None)
    assert held(unlabelled=nothing, risk=0.301).collapsed()
    assert not held(unlabelled=nothing, risk=0.32).collapsed()  # nothing selected, but it was not for that
    assert not held(unlabelled=something, risk=0.301).collapsed()


def test_more_is_selected_where_more_is_assumed():
    positive, unlabelled, _ = gaussians(1, 60, 400, 0.3, apart=2.0)
    counts = [(scored(positive, unlabelled, prior).unlabelled > 0).sum() for prior in (0.1, 0.3, 0.6)]
    assert counts[0] < counts[1] < counts[2]


def test_only_upu_overfits_below_zero():
    """Many features and few positives: the unbiased risk goes where no risk can be."""
    positive, unlabelled, truth = gaussians(0, 40, 800, 0.3, apart=2.0, width=64)
    kept, free = (scored(positive, unlabelled, 0.3, name) for name in ("nnpu", "upu"))
    assert free.negative < -0.05
    assert kept.negative > -0.02
    recall = [((s.unlabelled > 0) & truth).sum() / truth.sum() for s in (kept, free)]
    assert recall[0] > 1.2 * recall[1]


# ------------------------------------------------------------------------------- share of positives


@pytest.mark.parametrize("prior", [0.1, 0.3, 0.7])
def test_the_share_is_found_where_positives_stand_apart(prior):
    found = []
    for seed in range(3):
        positive, unlabelled, truth = gaussians(seed, 1000, 4000, prior, apart=6.0)
        found.append(estimated_prior(positive, unlabelled) - truth.float().mean().item())
    assert max(map(abs, found)) < 0.06


def test_the_best_bin_is_the_slow_search():
    random = torch.Generator().manual_seed(3)
    positive = torch.randn(80, generator=random) + 1
    unlabelled = torch.randn(300, generator=random)
    best = (math.inf, 0.0)
    for cut in torch.cat([positive, unlabelled]).tolist():
        q_p, q_u = ((s >= cut).double().mean().item() for s in (positive, unlabelled))
        if q_p:
            noise_ = math.sqrt(math.log(10) / 160) + math.sqrt(math.log(10) / 600)
            best = min(best, ((q_u + 1.01 * noise_) / q_p, q_u / q_p))
    assert best_bin(positive, unlabelled) == pytest.approx(best[1], abs=1e-9)


def test_the_share_is_too_large_and_never_too_small_where_others_look_alike():
    """Where no threshold has positives alone above it, no estimator can tell."""
    errors = []
    for seed in range(3):
        positive, unlabelled, truth = gaussians(seed, 100, 1500, 0.3, apart=1.0)
        errors.append(estimated_prior(positive, unlabelled) - truth.float().mean().item())
    assert min(errors) > 0


def test_the_logistic_regression_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    positive, unlabelled, _ = gaussians(0, 40, 300, 0.3)
    rows, labels = torch.cat([positive, unlabelled]).double(), [1] * 40 + [0] * 300
    weights = logistic(rows[:40], rows[40:])
    heavy = [1 / 40] * 40 + [1 / 300] * 300
    theirs = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=1000).fit(rows, labels, heavy)
    assert weights.tolist() == pytest.approx([*theirs.coef_[0], theirs.intercept_[0]], abs=1e-4)


def test_an_estimated_share_can_be_used_as_one():
    far = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert estimated_prior(far + 50, far) == 0.01
    assert 0.5 < estimated_prior(far, far) <= 0.99
    with pytest.raises(ParameterError, match=r"must be given where there are fewer than 3 .* got 2 and 50"):
        estimated_prior(far[:2], far)


# ------------------------------------------------------------------------------ robust distillation


def test_class_weights_are_the_known_ones():
    share = torch.tensor([[6.0, 3.0, 1.0]]) / 10
    assert class_weights(share.repeat(10, 1)).tolist() == pytest.approx([1 / 3, 2 / 3, 2.0], abs=1e-6)
    random = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert class_weights(random).mean().item() == pytest.approx(1)
    assert (class_weights(random) > 0).all()
    assert torch.allclose(class_weights(random), class_weights(random.repeat(3, 1)))
    assert torch.allclose(class_weights(torch.full((9, 4), 0.25)), torch.ones(4))


def test_a_class_that_is_never_predicted_weighs_ten_at_most():
    never = torch.tensor([[1.0] + [0.0] * 19])
    assert class_weights(never)[0] < 1e-9
    many = class_weights(torch.tensor([[1e-6] + [(1 - 1e-6) / 19] * 19]))
    assert many.max() == 10
    assert many.isfinite().all()


def test_robust_distillation_is_the_known_one():
    plain = robust_loss(STUDENT, TEACHER, WEIGHTS, 0.0)
    worst = robust_loss(STUDENT, TEACHER, WEIGHTS, 0.05)
    assert plain.item() == pytest.approx(0.633998, abs=1e-6)
    assert worst.item() == pytest.approx(0.649592, abs=1e-6)
    distances = torch.tensor([0.061554, 0.623739], dtype=torch.float64)
    losses = torch.tensor([distances[0], 0.0, distances[1]], dtype=torch.float64)
    assert (worst_weights(WEIGHTS, losses, 0.05) - WEIGHTS).tolist() == pytest.approx([0, -0.05, 0.05])
    drawn = torch.tensor([0.05, -0.03, -0.02], dtype=torch.float64)
    assert (((WEIGHTS + drawn) * losses).sum() / 2).item() == pytest.approx(0.629300, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5, 8])
def test_no_member_of_the_neighbourhood_is_worse_than_the_worst(classes):
    random = torch.Generator().manual_seed(classes)
    weights = 0.5 + torch.rand(classes, generator=random, dtype=torch.float64)
    losses = torch.rand(classes, generator=random, dtype=torch.float64)
    worst = worst_weights(weights, losses, 0.2)
    assert worst.sum().item() == pytest.approx(weights.sum().item())
    assert ((worst - weights).abs() <= 0.2 + 1e-12).all()
    for _ in range(1000):
        drawn = 2 * torch.rand(classes, generator=random, dtype=torch.float64) - 1
        drawn -= drawn.mean()
        drawn *= 0.2 / drawn.abs().max()  # as far as the neighbourhood goes in that direction
        assert ((weights + drawn) * losses).sum() <= (worst * losses).sum() + 1e-12


def test_the_worst_case_is_the_linear_programs():
    from scipy.optimize import linprog

    random = torch.Generator().manual_seed(4)
    losses = torch.rand(7, generator=random, dtype=torch.float64)
    program = linprog(-losses.numpy(), A_eq=[[1] * 7], b_eq=[0], bounds=[(-0.1, 0.1)] * 7)
    found = worst_weights(torch.ones(7, dtype=torch.float64), losses, 0.1)
    assert (found * losses).sum().item() == pytest.approx(losses.sum().item() - program.fun)


def test_a_student_that_agrees_up_to_a_constant_has_no_loss():
    moved = TEACHER + torch.tensor([[5.0], [-2.0]], dtype=torch.float64)
    assert robust_loss(moved, TEACHER, WEIGHTS, 0.05).item() == pytest.approx(0, abs=1e-12)


def test_temperature_counts_squared():
    hot = robust_loss(STUDENT, TEACHER, WEIGHTS, 0.0, temperature=4.0)
    by_hand = F.kl_div(
        (STUDENT / 4).log_softmax(1), (TEACHER / 4).log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    assert hot.item() == pytest.approx(16 * (WEIGHTS[[0, 2]] * by_hand).mean().item())


def test_of_the_official_pair_the_increased_weights_always_win():
    """Its perturbation is never negative, so its worst case is a constant: why it is not ours."""
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        student, teacher = torch.randn(2, 6, 3, generator=random, dtype=torch.float64)
        drawn = 0.1 * torch.rand(3, generator=random, dtype=torch.float64)
        found = robust_loss(student, teacher, WEIGHTS, 0.1, drawn=drawn)
        assert found.item() == pytest.approx(robust_loss(student, teacher, WEIGHTS + drawn, 0.0).item())
        assert found > robust_loss(student, teacher, WEIGHTS, 0.0)


@pytest.mark.parametrize("epsilon", [-0.1, 0.34, math.nan])
def test_a_neighbourhood_beyond_zero_is_refused(epsilon):
    with pytest.raises(ParameterError, match=r"epsilon must be .* smallest class weight, 0\.3333, got"):
        robust_loss(STUDENT, TEACHER, WEIGHTS, epsilon)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_of_zero_is_refused(temperature):
    with pytest.raises(ParameterError, match="temperature must be above 0, got"):
        robust_loss(STUDENT, TEACHER, WEIGHTS, 0.0, temperature)


@pytest.mark.parametrize("official", [False, True])
def test_the_task_records_what_the_worst_case_adds(tiny_model, tiny_data, official):
    images, labels = tiny_data.train.images, tiny_data.train.labels
    task = RobustDistillation(private_copy(tiny_model), torch.ones(CLASSES), 0.5, 2.0, official=official)
    torch.manual_seed(1)
    terms = task.terms(TinyResNet().eval(), images, labels)
    assert terms["loss"] > terms["without_worst_case"] > 0
    assert terms["loss"].requires_grad
    assert task.terms(tiny_model, images, labels)["loss"].item() == pytest.approx(0, abs=1e-5)


# ------------------------------------------------------------------------------------------- pools


def test_a_pool_has_the_share_that_was_asked_for_and_tells_where_pictures_came_from(tiny_data):
    held = tiny_data.train
    others = {"noise": noise(held, 200), "textures": textures(held, 200)}
    pool = mixed(held, others, 100, 0.3)
    assert len(pool) == 100
    assert pool.truth.sum() == 30
    assert pool.names().count("noise") == 35
    assert shared_pictures(pool.pictures, held) == 30
    inside = pool.pictures.take(pool.truth.nonzero()[:, 0])
    assert shared_pictures(inside, held) == 30
    assert len({p.tobytes() for p in pool.pictures.pixels.numpy()}) == 100  # nothing twice
    assert len(mixed(held, others, 10_000, 0.3)) == 160  # all 48 that there are inside


def test_a_pool_without_one_of_the_kinds_is_refused(tiny_data):
    few = tiny_data.train.take(slice(0, 1))
    with pytest.raises(ParameterError, match=r"at least two pictures at a share of 0\.95, got 1"):
        mixed(few, {"noise": noise(few, 9)}, 30, 0.95)
    with pytest.raises(ParameterError, match="a class of at least two training pictures, got none"):
        divide(few, 3)


def test_positives_and_the_rest_are_all_there_is(tiny_data):
    kept, held = divide(tiny_data.train, 5)
    assert len(kept) == 5 * CLASSES
    assert len(kept) + len(held) == len(tiny_data.train)
    assert shared_pictures(kept, held) == 0
    half, other = divide(tiny_data.train, 1000)
    assert len(half) == len(other) == len(tiny_data.train) // 2


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 12)])
def test_pictures_outside_have_the_shape_of_those_inside(shape):
    like = quadrants(20, seed=0)
    pixels = like.pixels[:, : shape[0], : shape[1], : shape[2]]
    like = replace(like, pixels=pixels, mean=like.mean[: shape[0]], std=like.std[: shape[0]])
    for made in (textures, noise, blends, turned):
        found = made(like, 9)
        assert found.shape == (9, *shape), made
        assert found.dtype == torch.uint8
        assert shared_pictures(replace(like, pixels=found, labels=torch.zeros(9)), like) == 0


def test_blends_are_of_two_classes_and_turns_turn():
    held = quadrants(40, seed=0)
    held = replace(held, pixels=(held.labels * 60).to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16))
    mixes = blends(held, 40)[:, 0, 0, 0]
    assert not set(mixes.tolist()) & {0, 180}  # the extreme classes are never blended with themselves
    one = replace(held, pixels=torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2), labels=torch.zeros(1))
    assert turned(one, 1)[0, 0].tolist() == [[1, 3], [0, 2]]


def test_texture_and_noise_are_as_bright_as_the_data(tiny_data):
    like = tiny_data.train
    for made in (textures, noise):
        values = made(like, 200).float() / 255
        assert values.mean().item() == pytest.approx(0.3, abs=0.06)


# -------------------------------------------------------------------------------------- the method


@pytest.fixture
def chosen(setting):
    """Method -> what it kept and chose on the small data, by the random numbers of a recipe with seed 0."""

    def choose(**values) -> Selection:
        with seeded(0):
            return PUCompression(positives=4, **values).choose(setting, Run())

    return choose


def test_what_is_kept_and_what_is_pooled_are_apart_and_of_the_training_part(chosen, setting):
    found = chosen(pool=60, share=0.5, outside="far")
    assert len(found.positives) == 4 * CLASSES
    assert shared_pictures(found.positives, setting.train) == len(found.positives)
    assert shared_pictures(found.positives, found.pool.pictures) == 0
    assert found.pool.truth.sum() == 30
    assert found.pool.origins == ("held back", "textures", "noise")
    assert chosen(outside="near").pool.origins == ("held back", "blends", "turned")
    assert chosen(outside="both").pool.origins[1:] == ("textures", "noise", "blends", "turned")


def test_choices_without_a_classifier_take_what_they_say(chosen):
    nothing, everything, oracle = (chosen(estimator=name) for name in ("none", "all", "oracle"))
    assert not nothing.chosen.any()
    assert nothing.words() == "Nothing was chosen, so only the kept pictures were used"
    assert len(nothing.kept) == len(nothing.positives)
    assert everything.chosen.all()
    assert torch.equal(oracle.chosen, oracle.pool.truth)
    assert oracle.judged()[1:] == (1.0, 1.0)
    classifier, drawn = chosen(estimator="nnpu"), chosen(estimator="random")
    assert drawn.chosen.sum() == classifier.chosen.sum() > 0
    assert torch.equal(drawn.pool.pictures.pixels, classifier.pool.pictures.pixels)
    assert not torch.equal(drawn.chosen, classifier.chosen)


def test_a_threshold_and_a_limit_narrow_the_choice(chosen):
    free = chosen()
    assert torch.equal(free.chosen, free.scoring.unlabelled > 0)
    some = chosen(most=10)
    assert some.chosen.sum() == 10
    assert (free.chosen | ~some.chosen).all()
    assert not chosen(threshold=10.0).chosen.any()


def test_a_prior_of_zero_is_estimated_and_another_one_is_told(chosen):
    assert chosen(prior=0.37).scoring.prior == 0.37
    assert chosen(share=0.3, outside="far").scoring.prior == pytest.approx(0.3, abs=0.1)


def test_pictures_of_the_validation_part_are_refused(setting):
    leaky = replace(setting, validation=setting.train.take(slice(0, 3)))
    with pytest.raises(ParameterError, match="must have no picture of the validation part, got"):
        compress(setting.teacher, leaky, Recipe((PUCompression(),)))


def test_a_network_without_feature_maps_is_refused(setting):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES)).eval().requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match="must have feature maps of 2 or more sizes, got 0"):
        compress(teacher, replace(setting, teacher=teacher), Recipe((PUCompression(),)))


@pytest.mark.parametrize("values", [{}, {"threshold": 10.0}, {"estimator": "oracle"}])
def test_the_figures_show_the_choice_that_the_training_used(setting, values):
    run = Run()
    step = PUCompression(positives=4, epochs=1, **values)
    shown = compress(setting.teacher, setting, Recipe((step,), seed=5), run, figures=True).figures[0]
    table = shown[0].table
    assert table[table.fate == "chosen"].pictures.sum() == run.records[-1]["chosen"]
    assert len(shown) == (2 if values.get("estimator") else 6)
    if "threshold" in values:
        assert "Nothing was chosen" in shown[0].finding
        assert run.records[-1]["chosen"] == 0


def test_the_histogram_counts_every_picture_once_and_mistakes_are_marked_on_show(chosen):
    found = chosen(outside="near", prior=0.6)
    scores = found.scoring.unlabelled
    table = histogram_figure({"nnpu": scores}, found.pool.truth, 0.0, "said").table
    assert table.pictures.sum() == len(found.pool)
    assert table[table.kind == "in the domain"].pictures.sum() == found.pool.truth.sum()
    shown = pictures_figure(found).table
    order = scores.argsort(descending=True, stable=True).tolist()
    edge = int(found.chosen.sum())
    rows = {"highest scores": order[:8], "just left": order[edge : edge + 8], "lowest scores": order[-8:]}
    for group, places in rows.items():
        part = shown[shown.group == group]
        assert [text.rpartition(", ")[0] for text in part.caption] == [found.pool.names()[i] for i in places]
        assert part.mistake.to_list() == [bool(found.chosen[i] != found.pool.truth[i]) for i in places]
        assert part.picture.iloc[0] == picture(found.pool.pictures.pixels[places[0]])


def test_a_collapse_is_said(chosen):
    found = chosen()
    nothing = torch.full((len(found.pool),), -5.0)
    trivial = replace(found.scoring, unlabelled=nothing, prior=0.3, risk=0.3)
    words = replace(found, scoring=trivial, chosen=nothing > 0).words()
    assert "ended at the trivial solution" in words
    assert "0.300" in words


def test_weights_follow_what_the_original_names(setting):
    logits = torch.eye(CLASSES)[[0, 0, 0, 1]] * 9
    weights = PUCompression()._weights(logits)
    assert weights[0] < weights[1] < weights[2]
    assert torch.equal(PUCompression(weighted=False)._weights(logits), torch.ones(CLASSES))


def test_the_papers_settings_can_be_had():
    paper = PUCompression().preset("paper")
    assert (paper.positives, paper.prior, paper.worst_case) == (100, 0.21, "official")


@pytest.fixture(scope="module")
def digits():
    """Digits of 8 x 8 pixels, and a network for them."""
    data = DATASETS["digits"]().load()
    with seeded(0):
        teacher = MODELS["small-cnn"](width=8).build(data.shape, 10)
        schedule = Schedule(epochs=12, learning_rate=0.1, batch_size=64, crop=1, flip=False)
        fit(teacher, data.train, Classification(), schedule, Run())
    return data, Setting(data.train, data.validation, teacher)


def test_chosen_pictures_teach_a_student_what_random_ones_do_not(digits):
    data, setting = digits
    found = {"nnpu": [], "random": []}
    for seed in range(2):
        for name, accuracies in found.items():
            step = PUCompression(positives=3, estimator=name, outside="far", crop=1, pool=1000)
            result = compress(setting.teacher, setting, Recipe((Student(width=0.5), step), seed))
            accuracies.append(evaluate(result.model, data.test).accuracy)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    assert means["nnpu"] > means["random"] + 0.1


# --------------------------------------------------------------------------------------------- lab


def test_the_lesson_holds_where_the_lab_opens(setting):
    with seeded(0):
        outcome, _, trace, sensitivity = PUSelection().figures(setting, Run())
    recall = outcome.table[outcome.table.measure == "recall"].set_index("classifier")["value"]
    assert recall["nnpu"] > 1.5 * recall["upu"] > 1.5 * recall["naive"]
    last = trace.table[trace.table.part == "N"].groupby("by").risk.last()
    assert last["upu"] < -0.05
    assert last["nnpu"] > -0.05
    chosen = sensitivity.table[sensitivity.table.measure == "chosen"].share
    assert chosen.is_monotonic_increasing
