"""NTK "lossless": moments, kernels, ternary twins against integrals, exact kernels and published tables."""

import copy
import math
import re
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from torch import nn
from torch.nn import functional as F

from core.bundles import MODELS, Setting
from core.conjugate import (
    Mixture,
    alignment,
    conjugate_kernel,
    equivalents,
    overlaps,
    relative_distance,
    relu_kernels,
)
from core.cost import cost
from core.diagnosis import DIAGNOSTICS
from core.errors import ParameterError, UnsupportedModelError
from core.evaluation import correct, evaluate
from core.lab import LABS
from core.layers import private_copy
from core.moments import (
    SIGN,
    MomentsNotMatchedError,
    Steps,
    coefficients,
    five_steps,
    moments,
    propagate,
    quantised,
    require_attainable,
    three_steps,
)
from core.random_features import (
    Standard,
    StepActivation,
    entropy,
    final_run,
    gaussian,
    memory,
    paper_bits,
    pruned,
    pruned_gaussian,
    random_head,
    random_layers,
    ridge_readout,
    sharpness,
    ternary,
    twin_activations,
)
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run, seeded
from core.weights import load_dataset, load_model, read_model, save_model

FOUR_STEPS = Steps((-1.1, 0.2, 0.9, 2.0), (0.5, -1.0, 0.3, 0.0, 2.0))


def integral(function, tau: float, breaks=()) -> float:
    """E[function(tau xi, xi)] by adaptive quadrature between the jumps."""
    edges = [-12.0, *(t / tau for t in sorted(breaks)), 12.0]
    return sum(
        integrate.quad(lambda x: function(tau * x, x) * stats.norm.pdf(x), a, b, epsabs=1e-13, limit=200)[0]
        for a, b in pairwise(edges)
    )


def scalar(activation):
    return lambda x: activation(torch.tensor([x], dtype=torch.float64)).item()


# ---------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("tau", [0.4, 1.0, 2.5])
@pytest.mark.parametrize(
    ("activation", "breaks"),
    [
        (F.relu, (0.0,)),
        (SIGN, (0.0,)),
        (FOUR_STEPS, FOUR_STEPS.thresholds),
        (torch.tanh, ()),
        (lambda x: x * x + x, ()),
    ],
    ids=["relu", "sign", "steps", "tanh", "square"],
)
def test_moments_are_the_integrals_that_define_them(activation, breaks, tau):
    found, s = moments(activation, tau), scalar(activation)
    mean = integral(lambda t, x: s(t), tau, breaks)
    assert found.mean == pytest.approx(mean, abs=1e-8)
    assert found.a1 == pytest.approx(integral(lambda t, x: x * s(t), tau, breaks) / tau, abs=1e-8)
    assert found.a2 == pytest.approx(
        integral(lambda t, x: (x * x - 1) * s(t), tau, breaks) / tau**2, abs=1e-8
    )
    fourth = integral(lambda t, x: (x * x - 1) * (s(t) - mean) ** 2, tau, breaks) / tau**2
    assert found.a4 == pytest.approx(fourth, abs=1e-8)
    assert found.tau**2 == pytest.approx(integral(lambda t, x: (s(t) - mean) ** 2, tau, breaks), abs=1e-8)


def test_the_slope_is_the_mean_square_of_the_derivative():
    assert moments(F.relu, 1.3).slope == 0.5
    expected = integral(lambda t, x: (1 - math.tanh(t) ** 2) ** 2, 0.7)
    assert moments(torch.tanh, 0.7).slope == pytest.approx(expected, abs=1e-9)
    assert moments(SIGN, 1.0).slope == math.inf


def test_coefficients_of_relu_are_the_known_table():
    found = coefficients(propagate((F.relu,) * 3))
    table = [
        (0.25, 0.039789, 0.079577, 0.340845, 0.583819),
        (0.0625, 0.023509, 0.034486, 0.116175, 0.340845),
        (0.015625, 0.010500, 0.011297, 0.039598, 0.198992),
    ]
    for layer, expected in zip(found, table, strict=True):
        assert (*layer.alpha, layer.tau) == pytest.approx(expected, abs=1e-6)
        assert layer.tau**2 - layer.alpha[0] - layer.alpha[2] >= 0  # the diagonal


def test_a_linear_activation_has_the_kernel_of_its_inputs():
    layer = coefficients(propagate((lambda x: x,) * 3))[-1]
    assert layer.alpha[:3] == pytest.approx((1, 0, 0), abs=1e-10)
    assert layer.tau**2 - layer.alpha[0] - layer.alpha[2] == pytest.approx(0, abs=1e-10)


def test_sign_has_no_even_moment():
    found = moments(SIGN, 0.8)
    assert (found.a2, found.a4) == (0, 0)
    assert found.a1 == pytest.approx(math.sqrt(2 / math.pi) / 0.8)
    assert found.share == pytest.approx(2 / math.pi)


def test_scaling_input_and_steps_together_leaves_a1_and_a4_and_divides_a2():
    small = moments(Steps((-0.3, 0.8), (1.7, 0.0, 1.7)), 0.9)
    large = moments(Steps((-0.9, 2.4), (5.1, 0.0, 5.1)), 2.7)
    assert large.a1 == pytest.approx(small.a1, rel=1e-12)
    assert large.a4 == pytest.approx(small.a4, rel=1e-12)
    assert large.a2 == pytest.approx(small.a2 / 3, rel=1e-12)


def test_three_steps_have_the_published_closed_form():
    """m = a P, a4 = (a - 2 m) a2, tau^2 = a^2 P (1 - P), as in the authors' program."""
    low, high, value, tau = -0.3, 0.8, 1.7, 0.9
    found = moments(Steps((low, high), (value, 0.0, value)), tau)
    u, v = low / tau, high / tau
    part = 1 - stats.norm.cdf(v) + stats.norm.cdf(u)
    a1 = value * (stats.norm.pdf(v) - stats.norm.pdf(u)) / tau
    a2 = value * (v * stats.norm.pdf(v) - u * stats.norm.pdf(u)) / tau**2
    expected = (value * part, a1, a2, (value - 2 * value * part) * a2, value * math.sqrt(part * (1 - part)))
    assert (found.mean, found.a1, found.a2, found.a4, found.tau) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("activation", [F.relu, SIGN, FOUR_STEPS, torch.tanh])
def test_signal_is_at_most_all_of_the_variance(activation):
    assert 0 < moments(activation, 1.3).share <= 1


def test_refuses_a_spread_that_is_not_positive():
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tau must be a positive number"):
            moments(F.relu, tau)


def test_refuses_thresholds_out_of_order_and_missing_levels():
    for thresholds, levels in (((1.0, 0.0), (0.0, 1.0, 2.0)), ((0.0,), (1.0,))):
        with pytest.raises(ValueError, match="rising thresholds"):
            Steps(thresholds, levels)


# ----------------------------------------------------------------------- activations of few values


def test_three_steps_for_relu_are_the_known_solutions():
    tau = 1.0
    known = [
        (0.9995, 2.2125, -2.4087, 0.8489),
        (-2.0223, 0.7300, 1.6824, 0.6773),
        (-1.1622, 0.4402, 1.4633, 0.6712),
    ]
    for target, (low, high, value, spread) in zip(propagate((F.relu,) * 3), known, strict=True):
        steps = three_steps(target.a1, target.a2, target.a4, tau)
        found = moments(steps, tau)
        assert (*steps.thresholds, steps.levels[0], found.tau) == pytest.approx(
            (low, high, value, spread), abs=6e-5
        )
        assert (found.a1, found.a2, found.a4) == pytest.approx((target.a1, target.a2, target.a4), abs=1e-9)
        tau = found.tau


def test_mirror_images_have_the_same_kernel():
    steps = three_steps(0.5, 0.4, 0.68, 1.0)
    low, high = steps.thresholds
    mirrored = moments(Steps((-high, -low), steps.levels), 1.0)
    found = moments(steps.times(-1), 1.0)
    assert (mirrored.a1, mirrored.a2, mirrored.a4) == pytest.approx((-0.5, 0.4, 0.68), abs=1e-9)
    assert (found.a1, found.a2, found.a4) == pytest.approx((-0.5, -0.4, 0.68), abs=1e-9)


def test_says_which_moments_no_three_steps_have():
    with pytest.raises(MomentsNotMatchedError, match=r"a1 0.5, a2 0, a4 3 at tau 1, got "):
        three_steps(0.5, 0.0, 3.0, 1.0)


def test_no_function_of_two_or_three_values_has_relus_moments_and_spread():
    """ReLU's signal alone spreads more: its share is 0.97; two values reach 0.67 at best, three 0.83."""
    relu = moments(F.relu, 1.0)
    require_attainable("test", relu, relu.tau)
    least = relu.tau * math.sqrt(relu.share)
    with pytest.raises(ValueError, match="no activation attains it"):
        require_attainable("test", relu, least * 0.999)
    x = stats.norm.ppf((np.arange(3000) + 0.5) / 3000)

    def best_share(values: int) -> float:
        """Of all functions of so many values: the best quantiser of a polynomial, over its angle."""
        polynomials = [np.cos(t) * x + np.sin(t) * (x**2 - 1) / 2**0.5 for t in np.linspace(0, np.pi / 2, 13)]
        fits = [KMeans(values, n_init=2, random_state=0).fit(p[:, None]) for p in polynomials]
        return max(1 - fit.inertia_ / 3000 / p.var() for fit, p in zip(fits, polynomials, strict=True))

    best = {values: best_share(values) for values in (2, 3)}
    assert best[2] == pytest.approx(0.665, abs=3e-3)
    assert best[3] == pytest.approx(0.833, abs=3e-3)
    assert best[3] < relu.share
    shares = [moments(quantised(F.relu, levels), 1.0).share for levels in (2, 3, 4, 8)]
    assert shares == pytest.approx([0.66, 0.82, 0.88, 0.95], abs=6e-3)
    assert shares[0] <= best[2] + 1e-3
    assert shares[1] <= best[3] + 1e-3


def test_the_authors_last_layer_misses_relus_moments_by_as_much_as_known():
    """0.018 after one layer, 0.95 after three: the spread of three steps is too large by then."""
    tau = 1.0
    for number, target in enumerate(propagate((F.relu,) * 3), 1):
        if number != 2:
            steps, error = five_steps(target.a1, target.a2, target.a4, target.tau, tau)
            assert error == pytest.approx({1: 0.0179, 3: 0.947}[number], rel=0.01)
            assert steps.levels[0] == pytest.approx(
                math.sqrt((target.a4 / target.a2) ** 2 + 4 * target.tau**2)
            )
        tau = moments(three_steps(target.a1, target.a2, target.a4, tau), tau).tau
    with pytest.raises(ValueError, match="odd"):
        five_steps(0.8, 0.0, 0.0, 1.0, 1.0)


def test_the_quantiser_of_a_gaussian_is_the_published_one():
    """Max, "Quantizing for minimum distortion", 1960: thresholds, and levels before they are scaled."""
    published = {2: ((0.0,), (0.7980,)), 3: ((0.6120,), (0.0, 1.224)), 4: ((0.0, 0.9816), (0.4528, 1.510))}
    for count, (cuts, levels) in published.items():
        found = quantised(lambda x: x, count)
        assert [t for t in found.thresholds if t > -1e-3] == pytest.approx(cuts, abs=1e-3)
        upper = np.array([level for level in found.levels if level > -1e-3])
        assert upper / upper[-1] == pytest.approx(np.array(levels) / levels[-1], abs=1e-3)
        assert moments(found, 1.0).tau == pytest.approx(1)


def test_the_quantiser_scales_with_its_inputs():
    one, other = quantised(F.relu, 4), quantised(F.relu, 4, tau=2.0)
    assert np.array(other.thresholds) == pytest.approx(2 * np.array(one.thresholds), rel=1e-6)
    assert other.levels == pytest.approx(one.levels, rel=1e-6)


# ---------------------------------------------------------------------------------------- kernels


def mixture(dimensions: int) -> Mixture:
    """Two classes that differ in means and in variances by as much as can just be told apart."""
    mean = 3 * torch.randn(dimensions) / math.sqrt(dimensions)
    spread = 2 / math.sqrt(dimensions)
    variances = torch.ones(2, dimensions) * torch.tensor([[1 - spread], [1 + spread]])
    return Mixture(torch.stack([mean, -mean]), variances)


def test_equivalents_come_closer_to_exact_kernels_as_pictures_and_dimensions_grow():
    layers = coefficients(propagate((F.relu,) * 3))
    errors = []
    for count in (100, 200, 400):
        with seeded(0):
            classes = mixture(count)
            points, labels = classes.sample(count)
        exact = relu_kernels(points @ points.T, 3)
        errors.append(
            [
                relative_distance(kernel, equivalent)
                for pair, layer in zip(exact, layers, strict=True)
                for kernel, equivalent in zip(pair, equivalents(layer, classes, points, labels), strict=True)
            ]
        )
    errors = np.array(errors)  # by count; CK and NTK of every layer
    assert (np.diff(errors, axis=0) < 0).all()
    assert (errors[-1, :2] < 0.10).all()  # one layer
    assert (errors[-1] < 0.20).all()


def test_the_exact_kernel_is_the_limit_of_wide_networks():
    with seeded(0):
        points, _ = mixture(60).sample(20)
        layers, standard = (F.relu,) * 2, Standard(torch.zeros(60), 1.0)
        exact, errors = relu_kernels(points @ points.T, 2)[-1][0], []
        for width in (500, 5000):
            features = random_layers(gaussian, layers, width, standard)(points.float()).detach()
            errors.append(relative_distance(exact, conjugate_kernel(features, propagate(layers)[-1].mean)))
    assert errors[1] < 0.1
    assert errors[1] < 0.5 * errors[0]


def test_the_exact_tangent_kernel_is_that_of_gradients():
    """The NTK by its definition, of one wide hidden layer: inner products of the gradients."""
    with seeded(1):
        points = mixture(30).sample(6)[0]
        weight = torch.randn(40_000, 30, dtype=torch.float64, requires_grad=True)
        readout = torch.randn(40_000, dtype=torch.float64, requires_grad=True)
    mean = moments(F.relu, 1.0).mean
    gradients = []
    for point in points:
        answer = readout @ (F.relu(weight @ point) - mean) / math.sqrt(len(weight))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(answer, (weight, readout))]))
    by_definition = torch.stack(gradients) @ torch.stack(gradients).T
    assert torch.allclose(relu_kernels(points @ points.T, 1)[0][1], by_definition, atol=0.03)


@pytest.mark.slow
def test_matched_moments_give_the_same_kernel_up_to_a_known_multiple_of_the_identity():
    """Ternary weights change it as little as another Gaussian draw does."""
    count, width, draws = 200, 4000, 2
    with seeded(0):
        points, _ = mixture(count).sample(count)
        standard = Standard(torch.zeros(count), 1.0)
        for depth in (1, 2):

            def kernel(draw, mode, depth=depth):
                activations = twin_activations(mode, depth)
                mean = propagate(activations)[-1].mean
                networks = (random_layers(draw, activations, width, standard) for _ in range(draws))
                return sum(conjugate_kernel(net(points.float()).detach(), mean) for net in networks) / draws

            dense = kernel(gaussian, "weights-only")
            same = relative_distance(dense, kernel(gaussian, "paper"))
            few = kernel(partial(ternary, zeros=0.5), "paper")
            spreads = [propagate(twin_activations(m, depth))[-1].tau ** 2 for m in ("paper", "weights-only")]
            delta = spreads[0] - spreads[1]
            assert (few - dense).diagonal().mean().item() == pytest.approx(delta, rel=0.03)
            raw = relative_distance(dense, few)
            assert raw == pytest.approx(same, rel=0.1)
            assert relative_distance(dense, few - delta * torch.eye(count)) < 0.6 * raw


def test_an_overlap_is_one_for_the_same_space_and_zero_for_another():
    basis = torch.linalg.qr(
        torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    values = torch.arange(12, 0, -1, dtype=torch.float64)
    kernel = basis @ values.diag() @ basis.T
    turned = basis @ values.flip(0).diag() @ basis.T
    assert overlaps(kernel, kernel, 5).tolist() == pytest.approx([1] * 5)
    assert overlaps(kernel, turned, 6).tolist() == pytest.approx([0] * 6, abs=1e-9)
    assert overlaps(kernel, turned, 12)[-1].item() == pytest.approx(1)
    angles = torch.linalg.svdvals(basis[:, :3].T @ torch.linalg.eigh(kernel).eigenvectors.flip(1)[:, :3])
    assert overlaps(kernel, kernel, 3)[-1].item() == pytest.approx(angles.square().mean().item())


def test_distances_are_torchs_norms():
    with seeded(0):
        one, other = (torch.cov(torch.randn(9, 20, dtype=torch.float64)) for _ in range(2))
    for name, order in (("operator", 2), ("frobenius", "fro")):
        expected = torch.linalg.matrix_norm(other - one, order) / torch.linalg.matrix_norm(one, order)
        assert relative_distance(one, other, name) == pytest.approx(expected.item())
    assert alignment(one, 3 * one) == pytest.approx(1)
    assert alignment(one, other) < 0.99


def test_refuses_more_pictures_than_a_kernel_is_for():
    with pytest.raises(ValueError, match="at most 4000 pictures, got 4001"):
        conjugate_kernel(torch.zeros(4001, 2))


# ---------------------------------------------------------------------------- weights and networks


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 0.97])
def test_ternary_weights_are_centred_of_variance_one_and_exactly_counted(zeros):
    with seeded(0):
        weights = ternary(300, 200, zeros)
    value = (1 - zeros) ** -0.5
    each = round((1 - zeros) / 2 * weights.numel())
    assert weights[weights != 0].abs().unique().tolist() == pytest.approx([value])
    assert int((weights > 0).sum()) == int((weights < 0).sum()) == each
    assert weights.mean().item() == pytest.approx(0, abs=1e-6)
    assert weights.var().item() == pytest.approx(1, abs=1e-3)
    columns = weights.mean(0)  # shuffled: no column has more than chance gives it
    assert columns.abs().max().item() < 5 / math.sqrt(300)


def test_refuses_weights_that_leave_units_without_inputs():
    for zeros, inputs in ((1.0, 100), (-0.1, 100), (math.nan, 100), (0.95, 16)):
        with pytest.raises(ValueError, match="zeros must"):
            ternary(8, inputs, zeros)


def test_pruned_weights_are_the_largest_and_keep_their_variance():
    with seeded(0):
        weights = gaussian(50, 40)
    found = pruned(weights, 0.9)
    kept = found != 0
    assert int(kept.sum()) == 200
    assert weights.abs()[kept].min() >= weights.abs()[~kept].max()
    assert found.square().mean().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mode", ["share", "weights-only", "paper", "released"])
def test_layers_are_the_formula(mode):
    """h = (sigma(W h) - mean) / sqrt(d), written out in float64, with the weights that were drawn."""
    drawn = []

    def draw(outputs, inputs):
        drawn.append(ternary(outputs, inputs, 0.5))
        return drawn[-1]

    with seeded(0):
        inputs = 3 + 2 * torch.randn(40, 30)
        activations = twin_activations(mode, 2)
        network = random_layers(draw, activations, 200, Standard.of(inputs))
    h = (inputs - inputs.mean(0)).double()
    h = h / h.square().sum(1).mean().sqrt()
    for activation, layer, weight in zip(activations, propagate(activations), drawn, strict=True):
        raw = activation(h @ weight.double().T)
        h = (raw - layer.mean) / math.sqrt(len(weight))
    same = torch.isclose(network(inputs).double(), raw, atol=1e-4)
    assert same.double().mean().item() > 0.999  # a threshold may be met from the other side in float32
    assert h.square().sum(1).mean().item() == pytest.approx(propagate(activations)[-1].tau ** 2, rel=0.15)


def test_refuses_inputs_that_are_all_the_same_or_not_finite():
    for inputs in (torch.ones(5, 3), torch.full((5, 3), torch.nan)):
        with pytest.raises(ValueError, match="finite and differ"):
            Standard.of(inputs)


def test_a_step_module_is_its_function_and_passes_the_mean_slope_back():
    steps = quantised(F.relu, 4)
    module = StepActivation.of(steps, 1.0)
    x = torch.linspace(-3, 3, 101).requires_grad_()
    values = module(x)
    assert torch.equal(values, steps(x.detach()))
    assert len(values.unique()) == 4
    values.sum().backward()
    assert x.grad.unique().tolist() == pytest.approx([moments(steps, 1.0).a1])
    assert module(torch.tensor([torch.nan])).isnan().all()  # not a level, as if nothing had happened


@pytest.mark.parametrize("count", [40, 300])
def test_the_readout_is_scikit_learns_ridge(count):
    with seeded(0):
        features, labels = torch.randn(count, 60) * torch.rand(60) + 1, torch.randint(0, 4, (count,))
    found = ridge_readout(features, labels, 4, 0.1)
    variance = (features - features.mean(0)).square().sum().item() / 60
    expected = Ridge(alpha=0.1 * variance).fit(features.double(), F.one_hot(labels, 4).double())
    assert found.weight.numpy() == pytest.approx(expected.coef_, abs=1e-5)
    assert found.bias.numpy() == pytest.approx(expected.intercept_, abs=1e-5)


def test_scores_are_scaled_to_the_lowest_cross_entropy():
    with seeded(0):
        scores = torch.randn(200, 5, dtype=torch.float64)
        labels = (3 * scores).softmax(1).multinomial(1)[:, 0]
    best = sharpness(scores, labels)
    losses = [F.cross_entropy(factor * best * scores, labels).item() for factor in (0.99, 1.0, 1.01)]
    assert losses[1] == min(losses)
    assert best == pytest.approx(3, rel=0.2)


# ----------------------------------------------------------------------------------------- memory


def test_the_papers_count_of_its_example_is_far_from_what_can_be_packed():
    """512-400-400-200-2: 314 and 614 times on paper; with a readout of 32 bits and positions, 48 and 73."""
    widths = (512, 400, 400, 200, 2)
    for zeros, on_paper, coded in ((0.9, 314, 47.9), (0.95, 614, 73.4)):
        with seeded(0):
            layers = [nn.Linear(*pair) for pair in pairwise(widths)]
            for layer in layers[:-1]:
                layer.weight.data = ternary(*layer.weight.shape, zeros)
        found = memory(layers)
        assert paper_bits(widths) / paper_bits(widths, zeros) == pytest.approx(on_paper, abs=0.5)
        assert paper_bits(widths) / found.paper == pytest.approx(on_paper, abs=0.5)
        assert paper_bits(widths) / found.entropy == pytest.approx(coded, abs=0.1)
        assert 0.8 * coded < paper_bits(widths) / found.packed < coded


def test_entropies_are_the_known_ones():
    found = [entropy(zeros) for zeros in (0.5, 0.8, 0.9, 0.95, 0.97)]
    assert found == pytest.approx([1.50, 0.92, 0.569, 0.336, 0.224], abs=2e-3)
    assert entropy(0.0) == 1
    assert entropy(0.9) == pytest.approx(stats.entropy([0.9, 0.05, 0.05], base=2))


def test_memory_counts_every_weight_once_and_packs_what_it_says():
    with seeded(0):
        inputs, labels = torch.randn(50, 40), torch.randint(0, 3, (50,))
        heads = {
            name: random_head(draw, (F.relu,) * 2, 128, inputs, labels, 3, 0.1)
            for name, draw in {
                "dense": gaussian,
                "pruned": partial(pruned_gaussian, sparsity=0.9),
                "ternary": partial(ternary, zeros=0.9),
            }.items()
        }
    found = {name: memory(head) for name, head in heads.items()}
    hidden, units = 128 * 40 + 128 * 128, 128 + 128 + 3
    assert found["dense"].paper == found["dense"].entropy == 32 * (hidden + 3 * 128 + units)
    assert found["ternary"].paper == pytest.approx(0.1 * (hidden + 3 * 128) + units, rel=1e-3)
    plain = 32 * (3 * 128 + units)
    assert found["ternary"].entropy == pytest.approx(plain + entropy(0.9) * hidden, rel=1e-3)
    places = stats.entropy([0.9, 0.1], base=2)
    assert found["pruned"].entropy == pytest.approx(plain + (3.2 + places) * hidden, rel=1e-3)
    for bits in found.values():  # noise does not become shorter than its entropy, but for exponents of floats
        assert 0.85 * bits.entropy < bits.packed < 1.1 * bits.entropy
    assert found["ternary"].paper < found["ternary"].entropy < found["pruned"].entropy


# --------------------------------------------------------------------------------- in a network


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def mlp(digits):
    return load_model("mlp", "digits").module


def twin(model, setting, seed=0, **values):
    return compress(model, setting, Recipe((COMPRESSORS["ntk-lossless"](**values),), seed=seed)).model


@pytest.fixture(scope="module")
def own(mlp, digits):
    return Setting(digits.train, digits.validation, mlp)


@pytest.mark.parametrize("mode", ["share", "weights-only", "paper", "released"])
def test_hidden_weights_take_three_values_and_are_counted_as_layers(mode, mlp, digits, own):
    found = twin(mlp, own, mode=mode, depth=2, width=64, zeros=0.75)
    linear = [layer for layer in found.modules() if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(64, 64), (64, 64), (10, 64)]
    for layer in linear[:-1]:
        assert len(layer.weight.unique()) == 3
        assert (layer.weight == 0).double().mean().item() == pytest.approx(0.75, abs=1e-3)
    spent = cost(found, digits.train.take(slice(0, 1)).images)
    assert spent.macs == 64 * 64 * 2 + 640
    assert spent.theoretical_macs == pytest.approx(64 * 64 * 2 / 4 + 640, rel=2e-3)


def test_the_readout_alone_is_trained(mlp, digits, own):
    found = twin(mlp, own, width=64, mode="share")
    head = found.linear
    assert [type(layer).__name__ for layer in head] == ["Linear", "StepActivation", "Linear"]
    assert all(
        isinstance(getattr(found, name), nn.Identity) for name in ("linear1", "relu1", "linear2", "relu2")
    )
    features = head[:-1](digits.train.images.flatten(1))
    readout = ridge_readout(features, digits.train.labels, 10, 0.1)
    ratio = head[-1].weight / readout.weight
    assert ratio.std().item() < 1e-2 * ratio.mean().item()  # the same but for one positive factor


def test_digits_are_read_as_well_as_before_with_four_levels(mlp, digits, own):
    before, after = (evaluate(model, digits.test) for model in (mlp, twin(mlp, own, mode="share")))
    assert after.accuracy > before.accuracy - 0.03
    assert after.loss < 0.3  # logits, not scores of a regression
    assert after.zipped_bytes < 0.5 * before.zipped_bytes


def test_the_trunk_of_a_network_with_convolutions_stays(plain_model, tiny_data):
    setting = Setting(tiny_data.train, tiny_data.validation, plain_model)
    found = twin(plain_model, setting, width=32, zeros=0.5)
    assert final_run("test", plain_model) == ["linear1", "relu3", "linear2"]
    for name in ("conv1", "bn1", "conv2"):
        assert torch.equal(found.get_submodule(name).weight, plain_model.get_submodule(name).weight)
    assert isinstance(found.linear1, nn.Identity)
    assert found.linear2[0].in_features == 80
    before = plain_model(tiny_data.validation.images)
    head = nn.Sequential(plain_model.linear1, plain_model.relu3, plain_model.linear2)
    found.linear2 = head
    assert torch.allclose(found(tiny_data.validation.images), before, atol=1e-5)


def test_a_head_of_few_inputs_gets_at_least_one_weight_per_unit(tiny_model, setting):
    found = twin(tiny_model, setting, zeros=0.99, width=64)
    weight = found.linear[0].weight
    assert weight.shape == (64, 16)
    assert int((weight != 0).sum()) == 64


def test_a_run_ends_at_functions_shortcuts_and_layers_used_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
            self.act, self.drop = nn.ReLU(), nn.Dropout()

    class Functional(Net):
        def forward(self, x):
            return self.c(self.drop(self.act(self.b(torch.relu(self.a(x.flatten(1)))))))

    class Shortcut(Net):
        def forward(self, x):
            y = self.a(x.flatten(1))
            return self.c(self.b(y) + y)

    class Twice(Net):
        def forward(self, x):
            return self.c(self.b(self.b(x.flatten(1))))

    class Dead(Net):
        def forward(self, x):
            return torch.relu(self.c(x.flatten(1)))

    assert final_run("test", Functional()) == ["b", "act", "drop", "c"]
    assert final_run("test", Shortcut()) == ["c"]
    assert final_run("test", Twice()) == ["c"]
    with pytest.raises(UnsupportedModelError, match="must end in a Linear layer, got"):
        final_run("test", Dead())


def test_refuses_networks_without_a_last_linear_layer_or_with_constant_features(tiny_model, setting):
    ending = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten())
    with pytest.raises(
        UnsupportedModelError, match=r"^ntk-lossless: the model must end in a Linear layer, got"
    ):
        twin(ending, setting)
    dead = copy.deepcopy(tiny_model)
    for layer in (dead.layer2[1].bn2, dead.layer2[1].bn1, dead.layer2[0].bn2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for name, layer in dead.layer2[0].named_modules():
        if "shortcut" in name or "downsample" in name:
            for value in layer.parameters(recurse=False):
                nn.init.zeros_(value)
    nn.init.zeros_(dead.conv1.weight)
    with pytest.raises(UnsupportedModelError, match=r"^ntk-lossless: .* must differ between pictures, got"):
        twin(dead, setting)
    with pytest.raises(ParameterError, match="zeros must lie in"):
        COMPRESSORS["ntk-lossless"](zeros=1.0)


@pytest.mark.parametrize("mode", ["share", "weights-only"])
def test_later_training_keeps_the_ternary_weights_and_moves_the_trunk(mode, tiny_model, setting):
    twinned = COMPRESSORS["ntk-lossless"](width=32, zeros=0.5, mode=mode)
    steps = (twinned, COMPRESSORS["fine-tuning"](epochs=1))
    with_training = compress(tiny_model, setting, Recipe(steps)).model
    without = compress(tiny_model, setting, Recipe(steps[:1])).model
    assert torch.equal(with_training.linear[0].weight, without.linear[0].weight)
    assert not torch.equal(with_training.linear[-1].weight, without.linear[-1].weight)
    assert not torch.equal(with_training.conv1.weight, without.conv1.weight)


@pytest.mark.parametrize("mode", ["share", "weights-only"])
def test_filters_of_the_new_head_can_be_removed(mode, mlp, own):
    steps = (COMPRESSORS["ntk-lossless"](width=64, mode=mode), COMPRESSORS["prune-filters"](sparsity=0.5))
    found = compress(mlp, own, Recipe(steps)).model
    assert [layer.out_features for layer in found.modules() if isinstance(layer, nn.Linear)] == [32, 10]
    again = compress(found, own, Recipe((COMPRESSORS["ntk-lossless"](width=48),))).model  # and replaced
    assert [layer.out_features for layer in again.modules() if isinstance(layer, nn.Linear)] == [48, 10]


@pytest.mark.slow
@pytest.mark.parametrize("other", COMPRESSORS)
def test_steps_compose_with_every_other_method(other, tiny_model, setting):
    """The contract tests try the default, which has no steps."""
    steps = COMPRESSORS["ntk-lossless"](mode="share", width=32), COMPRESSORS[other]()
    for recipe in (Recipe(steps), Recipe(steps[::-1])):
        refusal = None
        try:
            logits = compress(tiny_model, setting, recipe).model(setting.validation.images)
        except UnsupportedModelError as error:
            refusal = str(error)
        if refusal is not None:
            assert re.search(r"must .*, got ", refusal)
            continue
        assert logits.shape == (len(setting.validation), 4)
        assert logits.isfinite().all()


@pytest.mark.parametrize("mode", ["share", "weights-only"])
def test_a_twin_can_be_saved_and_read_again(mode, mlp, digits, own, tmp_path):
    found = twin(mlp, own, mode=mode, depth=2, width=32)
    save_model(found, tmp_path / "twin.safetensors", MODELS["mlp"](), digits, {})
    again = read_model(tmp_path / "twin.safetensors").module
    images = digits.test.take(slice(0, 50)).images
    assert torch.equal(again(images), found(images))


def test_figures_tell_what_the_network_is(mlp, digits, own):
    step = COMPRESSORS["ntk-lossless"](mode="paper", depth=2, width=64, images=400)
    result = compress(mlp, own, Recipe((step,)), figures=True)
    figures = {figure.title: figure for figure in result.figures[0]}
    shown = figures["Accuracy and memory of the last layers"].table
    measured = correct(result.model(digits.validation.images), digits.validation.labels).double().mean()
    assert shown[shown.network == "ternary twin"].accuracy.iloc[0] == pytest.approx(measured.item())
    bars = figures["Moments of the activations"].table
    kept = bars[bars.activation.isin(["ReLU", "three steps"])]
    for moment in ("a1", "a2", "a4"):
        for _, pair in kept[kept.moment == moment].groupby("layer"):
            assert pair["size"].iloc[0] == pytest.approx(pair["size"].iloc[1], rel=1e-4)
    shares = figures["Signal in the variance"].table.set_index(["activation", "layer"]).share
    assert shares["three steps", "layer 1"] == pytest.approx(0.457, abs=1e-3)
    values = figures["The activations"].table
    steps = values[(values.activation == "three steps") & (values.layer == "layer 1")].output
    assert steps.nunique() == 2
    assert steps.max() - steps.min() == pytest.approx(2.4087 / 0.8489, abs=1e-3)
    assert "Spectra of the kernels" in figures


def test_layers_without_bias_are_replaced_and_shown_like_others(tiny_data):
    with seeded(0):
        layers = nn.Linear(768, 6, bias=False), nn.Linear(6, 12, bias=False), nn.Linear(12, 4, bias=False)
        model = nn.Sequential(nn.Flatten(), *layers).eval().requires_grad_(False)
    setting = Setting(tiny_data.train, tiny_data.validation, model)
    result = compress(model, setting, Recipe((COMPRESSORS["ntk-lossless"](width=16),)), figures=True)
    shown = result.figures[0][0].table
    before = shown[shown.network == "the network before"].bytes
    assert before.max() == 4 * (
        768 * 6 + 6 * 12 + 12 * 4 + 6 + 12 + 4
    )  # a number per unit, as the paper counts


# ------------------------------------------------------------------- kernel spectrum, ternary twin


def test_equal_networks_have_equal_spectra_which_are_the_features_variances(tiny_model, setting):
    same = DIAGNOSTICS["kernel-spectrum"]().measure(tiny_model, private_copy(tiny_model), setting, Run())
    assert len(same) == len(setting.validation)
    assert same.before.equals(same.after)
    assert (same.distance_operator == 0).all()
    assert same.cka.iloc[0] == pytest.approx(1)
    assert same.overlap.iloc[:16].min() == pytest.approx(1)
    hooked = []
    handle = tiny_model.linear.register_forward_pre_hook(lambda layer, args: hooked.append(args[0]))
    tiny_model(setting.validation.images)
    handle.remove()
    centred = (hooked[0] - hooked[0].mean(0)).double()
    variances = torch.linalg.svdvals(centred) ** 2 / centred.shape[1]
    assert same.before.iloc[:16].to_numpy() == pytest.approx(variances.numpy()[:16], rel=1e-6)


def test_features_of_twice_the_size_change_eigenvalues_alone(plain_model, setting):
    louder = private_copy(plain_model)
    louder.linear1.weight.mul_(2)
    louder.linear1.bias.mul_(2)
    table = DIAGNOSTICS["kernel-spectrum"]().measure(plain_model, louder, setting, Run())
    assert table.after.iloc[:5].to_numpy() == pytest.approx(4 * table.before.iloc[:5].to_numpy(), rel=1e-4)
    assert (table.distance_operator.iloc[0], table.cka.iloc[0]) == pytest.approx((3, 1), rel=1e-4)
    assert table.overlap.iloc[:5].to_numpy() == pytest.approx(1, abs=1e-4)


def test_constant_features_have_no_overlap(tiny_model, setting):
    dead = private_copy(tiny_model)
    for layer in dead.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.zeros_(layer.weight)
    table = DIAGNOSTICS["kernel-spectrum"]().measure(tiny_model, dead, setting, Run())
    assert (table.after == 0).all()
    assert table[["overlap", "cka"]].isna().all(axis=None)
    assert (table.distance_operator == 1).all()
    assert DIAGNOSTICS["kernel-spectrum"]().figures(table)


@pytest.mark.slow
def test_what_counts_is_the_share_of_signal_and_it_counts_more_with_depth():
    """The digits table: two seeds, 1,200 digits to learn from, 597 to be measured on."""
    lab = LABS["ternary-twin"]()
    with seeded(0):
        accuracy, signal, _ = lab.figures(Setting(None, None, None), Run())
    found = accuracy.table.set_index(["network", "layers"]).accuracy
    for layers in (1, 2, 3):
        dense = found["dense, ReLU", layers]
        assert found["ternary, ReLU", layers] > dense - 0.01
        assert found["ternary, levels", layers] > dense - 0.03
        assert found["dense, pruned", layers] > dense - 0.02
    assert found["ternary, paper", 1] > found["dense, ReLU", 1] - 0.04
    assert found["ternary, paper", 3] < found["ternary, levels", 3] - 0.15
    assert found["ternary, released", 3] < found["ternary, sign", 3] - 0.15
    from scipy.stats import spearmanr

    assert spearmanr(signal.table.signal, signal.table.accuracy).statistic > 0.9
