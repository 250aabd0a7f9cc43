"""AP2 and AP3, curvature, differential evolution, and what distances say about damage."""

import copy
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn import functional as F

from core.bundles import MODELS, Setting
from core.diagnostics.latent_distance import LatentDistance
from core.errors import ParameterError, UnsupportedModelError
from core.evaluation import evaluate
from core.factors import factorised
from core.labs import fine_tuning_triangle
from core.labs.distance_and_damage import DistanceAndDamage, answers_of, cells
from core.labs.fine_tuning_triangle import FineTuningTriangle
from core.latent import (
    RULES,
    ap2,
    ap2_relative,
    ap3_gaussian,
    ap3_student,
    curvature_bound,
    group_means,
    largest_curvature,
    rank_correlation,
    rule_mask,
    student_divergence,
)
from core.layers import prunable
from core.methods.differential_evolution import DifferentialEvolution, Trials, apportion
from core.methods.prune_filters import PruneFilters
from core.methods.prune_weights import PruneWeights
from core.recipe import Recipe, compress
from core.run import Run, seeded
from core.weights import load_dataset, load_model, read_model, save_model


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# ------------------------------------------------------------------------------------ AP2, Gaussian


def test_removing_the_two_smallest_of_four_weights_by_hand():
    omega = torch.tensor([3.0, 4.0, 0.0, 1.0])
    pruned = omega * rule_mask(omega[None], "lowest", 0.5)[0]
    assert pruned.tolist() == [3, 4, 0, 0]
    assert ap2(omega, pruned) == 1
    assert ap2_relative(omega, pruned) == pytest.approx(1 / 26)
    assert ap3_gaussian(omega, pruned) == 0.5
    assert ap3_gaussian(omega, pruned, 0.25) == 2


def test_a_diagonal_covariance_by_hand_and_a_full_one_as_torchs_own_divergence():
    assert ap3_gaussian(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 1
    before, after, root = normal(6), normal(6), normal(6, 6)
    sigma = root @ root.T + torch.eye(6)
    expected = kl_divergence(MultivariateNormal(before, sigma), MultivariateNormal(after, sigma)).item()
    assert ap3_gaussian(before, after, sigma) == pytest.approx(expected, rel=1e-10)
    assert ap3_gaussian(before, after, sigma.diag().diag()) == pytest.approx(
        ap3_gaussian(before, after, sigma.diag())
    )


def test_the_gaussian_divergence_lies_between_the_extreme_eigenvalues_times_half_of_ap2():
    before, after, root = normal(6), normal(6), normal(6, 6)
    sigma = root @ root.T + 0.1 * torch.eye(6)
    eigenvalues = torch.linalg.eigvalsh(sigma.inverse())
    half = ap2(before, after) / 2
    assert eigenvalues[0] * half <= ap3_gaussian(before, after, sigma) <= eigenvalues[-1] * half


def test_what_scales_swaps_and_permutes():
    before, after, order = normal(40, 30), normal(40, 30), torch.randperm(1200)
    assert ap2(before, before) == ap3_gaussian(before, before) == 0
    assert ap3_student(before, before).value <= 1e-12
    assert ap2(3 * before, 3 * after) == pytest.approx(9 * ap2(before, after))
    assert ap3_gaussian(3 * before, 3 * after) == pytest.approx(9 * ap3_gaussian(before, after))
    assert ap2_relative(3 * before, 3 * after) == pytest.approx(ap2_relative(before, after))
    assert ap3_gaussian(before, after) == pytest.approx(ap3_gaussian(after, before))
    shuffled = before.flatten()[order], after.flatten()[order]
    assert ap2(*shuffled) == pytest.approx(ap2(before, after))
    near = before + 0.01 * after  # a move small enough for the formula, which draws nothing
    assert ap3_student(before, near) == ap3_student(near, before)
    assert (
        ap3_student(before.flatten()[order], near.flatten()[order]).value != ap3_student(before, near).value
    )


@pytest.mark.parametrize(
    ("covariance", "says"),
    [
        (0.0, "above 0, got 0"),
        (-1.0, "above 0, got -1"),
        (math.nan, "above 0, got nan"),
        (torch.tensor([1.0, 0.0]), "above 0, got 0"),
        (torch.ones(3), "2 rows"),
        (torch.eye(3), "2 rows"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "smallest eigenvalue of -1"),
    ],
)
def test_what_is_no_covariance_is_refused(covariance, says):
    with pytest.raises(ValueError, match=says):
        ap3_gaussian(torch.zeros(2), torch.ones(2), covariance)


def test_weights_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(lay the smaller out among zeros first\)"):
        ap2(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="finite"):
        ap2(torch.zeros(2), torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="give its diagonal"):
        ap3_gaussian(torch.zeros(5000), torch.ones(5000), torch.eye(2))
    assert math.isnan(ap2_relative(torch.zeros(3), torch.ones(3)))


# ---------------------------------------------------------------------------------------- Student-t

ONE_DIMENSION = {  # nu -> divergence at shifts 0.1, 0.5, 1, 2
    1: (0.002497, 0.060625, 0.223144, 0.693147),
    4: (0.003570, 0.088120, 0.339299, 1.184990),
    10: (0.004229, 0.104967, 0.410574, 1.510693),
    10_000: (0.004999, 0.124973, 0.499875, 1.999201),
}


def by_quadrature(shift, dimensions, nu):
    """The divergence without draws: over the squared length, which is F-distributed, and the angle."""
    if dimensions == 1:
        ratio = lambda z: stats.t.logpdf(z, nu) - stats.t.logpdf(z - shift, nu)  # noqa: E731
        return integrate.quad(lambda z: stats.t.pdf(z, nu) * ratio(z), -np.inf, np.inf, limit=500)[0]
    normaliser = special.beta(0.5, (dimensions - 1) / 2)

    def inner(squared):
        def term(angle):
            far = squared - 2 * math.sqrt(squared) * shift * math.cos(angle) + shift**2
            return math.log1p(far / nu) * math.sin(angle) ** (dimensions - 2)

        return integrate.quad(term, 0, math.pi)[0] / normaliser - math.log1p(squared / nu)

    outer = integrate.quad(lambda q: inner(dimensions * stats.f.ppf(q, dimensions, nu)), 0, 1, limit=200)[0]
    return (nu + dimensions) / 2 * outer


@pytest.mark.parametrize("nu", ONE_DIMENSION)
def test_one_dimensional_divergences_are_those_of_the_table(nu):
    for shift, expected in zip((0.1, 0.5, 1.0, 2.0), ONE_DIMENSION[nu], strict=True):
        assert by_quadrature(shift, 1, nu) == pytest.approx(expected, abs=2e-6)
        value, error = student_divergence(shift, 1, nu, 400_000)
        assert value == pytest.approx(expected, rel=5e-3, abs=4 * error)
        assert error < 0.01 * expected


@pytest.mark.parametrize("nu", [1.0, 4.0])
@pytest.mark.parametrize("dimensions", [2, 100])
def test_draws_in_many_dimensions_agree_with_quadrature(dimensions, nu):
    for shift in (0.3, 1.0, 3.0):
        value, error = student_divergence(shift, dimensions, nu, 200_000)
        assert abs(value - by_quadrature(shift, dimensions, nu)) < 4 * error
        assert 0 < error < 0.01 * value


def test_small_shifts_follow_the_formula_and_need_no_draws():
    assert student_divergence(0.1, 100) == (pytest.approx(0.004906, abs=1e-6), 0)
    state = torch.get_rng_state()
    for shift in (0.0, 0.1, 0.29):
        exact = by_quadrature(shift, 100, 4) if shift else 0
        assert student_divergence(shift, 100) == (pytest.approx(exact, rel=1e-3), 0)
    assert torch.equal(torch.get_rng_state(), state)
    value, error = student_divergence(1.0, 100, 4, 200_000)
    assert abs(value - 0.4862) < 4 * math.hypot(error, 0.0023)  # an independent run of 2e5 draws


def test_antithetic_pairs_are_worth_more_than_twice_as_many_draws():
    torch.manual_seed(1)
    z = torch.distributions.StudentT(4.0).sample((200_000,)).double()
    plain = 2.5 * (((z - 1) ** 2 / 4).log1p() - (z**2 / 4).log1p())
    assert student_divergence(1.0, 1, 4, 100_000).error < plain.std().item() / math.sqrt(200_000)


def test_with_many_degrees_of_freedom_it_is_the_gaussian_divergence_of_the_group_means():
    before, after = normal(50, 40), normal(50, 40)
    means = group_means(before, 100), group_means(after, 100)
    for scale in (1.0, 0.25):
        assert ap3_student(before, after, 1e7, scale, pairs=200_000).value == pytest.approx(
            ap3_gaussian(*means, scale), rel=0.02
        )


def test_groups_are_consecutive_and_the_last_may_be_shorter():
    assert group_means(torch.arange(10.0), 4).tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert group_means(torch.arange(10.0), 3).tolist() == [1, 4, 7, 9]
    for groups in (0, 11):
        with pytest.raises(ValueError, match=r"groups must lie in \[1, 10\]"):
            group_means(torch.arange(10.0), groups)


def test_impossible_latent_spaces_are_refused():
    for nu in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="nu must be above 0"):
            student_divergence(1.0, 2, nu)
    with pytest.raises(ValueError, match="scale must be above 0"):
        ap3_student(torch.zeros(4), torch.ones(4), scale=0.0, groups=2)


# ---------------------------------------------------------------------------- curvature, correlation


def test_curvature_is_the_largest_eigenvalue_of_the_hessian_that_torch_computes():
    images, labels, weight = normal(50, 5), torch.arange(50) % 3, normal(3, 5)

    def loss(weight):
        return F.cross_entropy(images @ weight.T, labels)

    hessian = torch.autograd.functional.hessian(loss, weight).reshape(15, 15)
    assert largest_curvature(loss, weight, 100) == pytest.approx(
        torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-3
    )


@pytest.mark.parametrize(
    ("eigenvalues", "largest"), [((1.0, 3.0), 3.0), ((-5.0, 2.0), 2.0), ((-3.0, -1.0), -1.0), ((0, 0), 0)]
)
def test_curvature_is_the_largest_eigenvalue_and_not_the_furthest_from_zero(eigenvalues, largest):
    matrix = torch.tensor(eigenvalues, dtype=torch.float64)
    found = largest_curvature(lambda w: (matrix * w**2).sum() / 2, torch.ones(2, dtype=torch.float64), 100)
    assert found == pytest.approx(largest, abs=1e-6)


def test_a_straight_line_is_not_curved_and_the_bound_is_reached_along_the_steepest_direction():
    assert largest_curvature(lambda w: 2 * w.sum(), torch.ones(3)) == 0
    loss = lambda w: (torch.tensor([1.0, 4.0]) * w**2).sum() / 2  # noqa: E731
    for move in (torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])):
        bound = curvature_bound(4.0, ap2(torch.zeros(2), move))
        assert loss(move) <= bound
        assert (loss(move) == bound) == (move[0] == 0)
    assert curvature_bound(-1.0, 3.0) == 0


def test_rank_correlation_is_scipys():
    x, y = pd.Series([1.0, 2, 2, 5, 7]), pd.Series([3.0, 1, 4, 4, 9])
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(rank_correlation(x, 0 * y))


# -------------------------------------------------------------------------------------------- rules


def test_independent_gaussian_weights_lose_the_energy_that_order_statistics_give():
    weight = torch.randn(1000, 100)
    expected = {"lowest": (0.0005, 0.0146, 0.0713, 0.3502), "highest": (0.4393, 0.7833, 0.9287, 0.9958)}
    expected["random"] = (0.1, 0.3, 0.5, 0.8)
    for rule, values in expected.items():
        for sparsity, value in zip((0.1, 0.3, 0.5, 0.8), values, strict=True):
            mask = rule_mask(weight, rule, sparsity)
            assert (~mask).sum() == round(sparsity * weight.numel())
            assert ap2_relative(weight, weight * mask) == pytest.approx(value, abs=0.01)


def test_masks_are_nested_whole_rows_go_and_survivors_are_not_touched():
    weight = torch.randn(8, 3, 3, 3)
    for rule in set(RULES) - {"random"}:
        masks = [rule_mask(weight, rule, sparsity) for sparsity in (0, 0.25, 0.5, 0.9)]
        assert masks[0].all()
        assert all((a >= b).all() for a, b in itertools.pairwise(masks))
        distances = [ap2(weight, weight * mask) for mask in masks]
        assert distances == sorted(distances)
        assert distances[2] == pytest.approx(weight[~masks[2]].double().square().sum().item())
    rows = rule_mask(weight, "structured", 0.5).flatten(1)
    assert (rows.all(1) | ~rows.any(1)).all()
    assert rows.any(1).tolist() == [
        norm > weight.abs().flatten(1).sum(1).median() for norm in weight.abs().flatten(1).sum(1)
    ]
    for sparsity in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="sparsity must lie in"):
            rule_mask(weight, "lowest", sparsity)
    with pytest.raises(ParameterError, match="lowest"):
        rule_mask(weight, "lowst", 0.5)


# --------------------------------------------------------------------------------------- diagnostic


def test_the_table_has_the_removed_energy_of_every_layer(tiny_model, setting):
    after = compress(tiny_model, setting, Recipe((PruneWeights(sparsity=0.6),))).model
    table = LatentDistance(scale=0.25, groups=10).measure(tiny_model, after, setting, Run())
    for row in table.itertuples():
        old, new = (prunable(model)[row.layer].weight for model in (tiny_model, after))
        removed = sum(
            w * w for w, kept in zip(old.flatten().tolist(), new.flatten().tolist(), strict=True) if not kept
        )
        assert row.weights == old.numel()
        assert row.ap2 == pytest.approx(removed, rel=1e-6)
        assert row.ap2_relative == pytest.approx(removed / old.square().sum().item(), rel=1e-5)
        assert row.ap3_gaussian == pytest.approx(2 * removed, rel=1e-6)
        assert row.ap3_student == ap3_student(old, new, scale=0.25, groups=10).value or row.ap3_student_error
    squared, divergence = LatentDistance(scale=0.25).figures(table)
    assert table.loc[table.ap2_relative.idxmax()].layer in squared.finding
    assert "lambda = 0.25" in divergence.finding


def test_layers_of_another_shape_have_no_distance_and_networks_that_did_not_move_say_so(tiny_model, setting):
    after = compress(tiny_model, setting, Recipe((PruneFilters(sparsity=0.5),))).model
    table = LatentDistance().measure(tiny_model, after, setting, Run()).set_index("layer")
    for name, layer in prunable(tiny_model).items():
        alike = prunable(after)[name].weight.shape == layer.weight.shape
        assert table.loc[name].drop("weights").notna().all() == alike
        assert table.loc[name].drop("weights").notna().any() == alike
    (still,) = LatentDistance().figures(LatentDistance().measure(tiny_model, tiny_model, setting, Run()))
    assert still.finding == "No weight moved."


def test_a_factorised_layer_is_as_far_as_the_singular_values_that_were_cut(tiny_model, setting):
    after = copy.deepcopy(tiny_model)
    after.linear = factorised(after.linear, (2, 2))
    table = LatentDistance().measure(tiny_model, after, setting, Run()).set_index("layer")
    cut = torch.linalg.svdvals(tiny_model.linear.weight.double())[2:].square().sum().item()
    assert table.ap2["linear"] == pytest.approx(cut, rel=1e-5)
    assert not table.ap2.drop("linear").any()


def test_weights_that_are_not_numbers_are_refused_by_layer(tiny_model, setting):
    broken = copy.deepcopy(tiny_model)
    broken.linear.weight.data[0, 0] = math.inf
    with pytest.raises(UnsupportedModelError, match="layer linear: weight must be finite"):
        LatentDistance().measure(tiny_model, broken, setting, Run())


# --------------------------------------------------------------------------- differential evolution


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 0.95)), min_size=1, max_size=8), st.floats(0, 1))
@settings(deadline=None)
def test_exactly_as_many_weights_stay_as_should_in_the_proportions_asked_for(layers, share):
    sizes, genes = (np.array(column) for column in zip(*layers, strict=True))
    stay = round(share * int(sizes.sum()))
    counts = apportion(genes, sizes, stay)
    assert counts.sum() == stay
    assert (counts >= 0).all()
    assert (counts <= sizes).all()
    low, high = 0.0, 1 / (1 - genes).min()  # the slow, obvious way to the common factor
    for _ in range(200):
        middle = (low + high) / 2
        enough = (sizes * np.minimum(middle * (1 - genes), 1)).sum() >= stay
        low, high = (low, middle) if enough else (middle, high)
    assert np.abs(counts - sizes * np.minimum(high * (1 - genes), 1)).max() < 1 + 1e-6


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def mlp():
    return load_model("mlp", "digits").module


def loss_of(model, split):
    return evaluate(model, split).loss


def test_exactly_the_target_goes_and_small_weights_first(mlp, digits):
    setting = Setting(digits.train, digits.validation, mlp)
    for sparsity in (0.0, 0.37, 0.9, 1.0):
        step = DifferentialEvolution(sparsity=sparsity, steps=1, population=5, images=50)
        layers = prunable(compress(mlp, setting, Recipe((step,))).model)
        zeros = sum(int((layer.weight == 0).sum()) for layer in layers.values())
        assert zeros == round(sparsity * sum(layer.weight.numel() for layer in layers.values()))
        for name, layer in layers.items():
            old, kept = prunable(mlp)[name].weight.abs(), layer.weight != 0
            assert torch.equal(layer.weight[kept], prunable(mlp)[name].weight[kept])
            if kept.any() and not kept.all():
                assert old[~kept].max() <= old[kept].min()


def test_a_try_is_the_loss_of_the_network_that_is_made_of_it(mlp, digits):
    trials = Trials(mlp, digits.validation, 0.8)
    uniform, threshold = trials.known
    setting = Setting(digits.train, digits.validation, mlp)
    for genes, scope in ((uniform, "layer"), (threshold, "global")):
        model = compress(mlp, setting, Recipe((PruneWeights(sparsity=0.8, scope=scope),))).model
        masks = trials.masks(genes)
        differing = sum(int(((prunable(model)[n].weight != 0) ^ keep).sum()) for n, keep in masks.items())
        assert differing <= 2 * len(masks)  # rounding, and equal magnitudes
        assert trials.loss(genes) == pytest.approx(loss_of(model, digits.validation), rel=0.01)


def test_what_is_found_beats_the_same_sparsity_everywhere_and_generations_never_get_worse(mlp, digits):
    setting = Setting(digits.train, digits.validation, mlp)
    uniform = compress(mlp, setting, Recipe((PruneWeights(sparsity=0.9),))).model
    for seed in range(3):
        step = DifferentialEvolution(sparsity=0.9)  # 512 pictures: all of the validation part
        result = compress(mlp, setting, Recipe((step,), seed), figures=True)
        assert loss_of(result.model, digits.test) < 0.6 * loss_of(uniform, digits.test)
        best = [record["best_loss"] for record in result.records]
        assert len(best) == step.steps + 1
        assert best == sorted(best, reverse=True)
        assert best[-1] == pytest.approx(loss_of(result.model, digits.validation), rel=1e-4)
        assert result.records[0]["uniform_loss"] == pytest.approx(
            loss_of(uniform, digits.validation), rel=0.01
        )
        sparsities, generations = result.figures[0]
        assert sparsities.table.layer.nunique() == 3
        assert list(generations.table.best_loss) == best


def test_a_run_that_does_not_know_the_generations_still_shows_the_sparsities(tiny_model, setting):
    step = DifferentialEvolution(steps=1, population=5)
    after = compress(tiny_model, setting, Recipe((step,))).model
    assert [figure.title for figure in step.figures(tiny_model, after, setting, Run())] == [
        "Sparsity by layer"
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("when", [1, 7, 30])
def test_it_stops_at_once_with_what_the_front_end_raises(error, when, mlp, digits):
    calls = []

    def stop(progress):
        calls.append(progress.fraction)
        if len(calls) == when:
            raise error("stop")

    step = DifferentialEvolution(images=50)
    with pytest.raises(error, match="stop"):
        compress(mlp, Setting(digits.train, digits.validation, mlp), Recipe((step,)), Run(on_progress=stop))
    assert len(calls) == when


def test_the_pruned_network_is_saved_and_loads_again(mlp, digits, tmp_path):
    step = DifferentialEvolution(steps=1, population=5, images=50)
    model = compress(mlp, Setting(digits.train, digits.validation, mlp), Recipe((step,))).model
    save_model(model, tmp_path / "pruned.safetensors", MODELS["mlp"](), digits, {})
    again = read_model(tmp_path / "pruned.safetensors").module
    assert torch.equal(again(digits.test.images), model(digits.test.images))


# --------------------------------------------------------------------------------------------- labs


def test_running_the_last_layer_alone_gives_the_logits_of_the_whole_network(tiny_model, plain_model, setting):
    for network, last, inner in ((tiny_model, "linear", "conv1"), (plain_model, "linear2", "linear1")):
        for name in (last, inner):
            answers, is_last = answers_of(network, name, setting.validation)
            assert is_last == (name == last)
            changed = copy.deepcopy(network)
            weight = changed.get_submodule(name).weight
            weight.data = weight * (weight > 0)
            expected = changed(setting.validation.images)
            assert torch.allclose(answers(weight), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_squared_distance_ranks_the_damage_of_the_papers_twelve_cells(seed, mlp, digits):
    with seeded(seed):
        table, curvature = DistanceAndDamage(seeds=3).grid(
            Setting(digits.train, digits.validation, mlp), Run()
        )
    assert set(table.layer) == {"linear"}
    twelve = cells(table)
    assert len(twelve) == 12
    assert rank_correlation(twelve.ap2_relative, twelve.loss_difference) > 0.9
    assert curvature > 0
    for amount in ("10%", "30%", "50%", "80%"):
        at = twelve.xs(amount, level="amount").loc[["lowest", "random", "highest"]]
        assert at.ap2_relative.is_monotonic_increasing
        assert at.loss_difference.is_monotonic_increasing


def test_the_lab_names_the_layers_that_there_are(tiny_model, setting):
    with pytest.raises(ParameterError, match=r"layer must lie in \[0, 7\] for this network, got 8"):
        DistanceAndDamage(layer=8).figures(setting, Run())
    table, _ = DistanceAndDamage(layer=7, images=10, seeds=1).grid(setting, Run())
    assert set(table.layer) == {"conv1"}


def test_a_layer_of_zeros_is_refused_and_a_dead_one_has_no_loss_to_show(plain_model, setting):
    pictures = Setting(setting.train, setting.validation, plain_model)
    plain_model.linear2.weight.data.zero_()  # nothing that happens before it matters
    dead = DistanceAndDamage(layer=1, seeds=1).figures(pictures, Run())
    assert [figure.title for figure in dead] == ["Accuracy and distance"]
    assert "undefined" in dead[0].finding
    with pytest.raises(UnsupportedModelError, match="must have a weight in linear2, got zeros only"):
        DistanceAndDamage().figures(pictures, Run())


def test_an_unused_layer_is_refused(plain_model, setting):
    plain_model.linear1.forward = lambda x: x[:, :7]
    plain_model.linear1.register_forward_hook(lambda *_: None)
    unused = nn.Sequential(plain_model)
    unused.append(nn.Identity())
    unused.spare = nn.Linear(2, 2)
    unused.forward = lambda x: plain_model(x)
    with pytest.raises(UnsupportedModelError, match="must use spare, got one that does not"):
        answers_of(unused, "spare", setting.validation)


@pytest.mark.parametrize("rule", RULES)
def test_the_triangle_is_right_angled_so_that_fine_tuning_only_adds_distance(rule):
    with seeded(0):
        stories = FineTuningTriangle(rule=rule, epochs=3).stories(Run())
    for story in stories.values():
        original, pruned, tuned = story.corners.values()
        assert not tuned[~story.keep].any()
        assert torch.equal(pruned, original * story.keep)
        assert not torch.equal(tuned, pruned)
        sides = ap2(original, pruned), ap2(pruned, tuned), ap2(original, tuned)
        assert sides[2] == pytest.approx(sides[0] + sides[1], rel=1e-12)
        assert (story.epochs.ap2_relative[1:] > story.epochs.ap2_relative[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["random", "highest"])
@pytest.mark.parametrize("everything", [False, True])
def test_fine_tuning_repairs_what_pruning_cost_in_every_cell(rule, everything):
    for seed in range(3):
        with seeded(seed):
            stories = FineTuningTriangle(rule=rule, everything=everything).stories(Run())
        for sparsity, story in stories.items():
            if sparsity > 0.1:
                assert story.epochs.loss_difference.iloc[-1] < story.epochs.loss_difference.iloc[0]


def test_only_the_pruned_layers_weight_is_trained_unless_everything_is(digits):
    network = MODELS["mlp"](depth=1).build(digits.shape, 10)
    fine_tuning_triangle._last_weight_loss(
        network, digits.train.images[:8], digits.train.labels[:8]
    ).backward()
    assert [name for name, value in network.named_parameters() if value.grad is not None] == ["linear.weight"]
