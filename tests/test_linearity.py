"""Linear neurons folded into the next layer: worked examples, exactness, counts, and where it must refuse."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CLASSES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_linear_bn_eval

from core.attribution import ATTRIBUTIONS, explain
from core.bundles import MODELS, Setting
from core.cost import cost
from core.diagnostics.activation_rates import ActivationRates, activation_rates
from core.errors import CheckpointError, ParameterError, UnsupportedModelError
from core.evaluation import answered, correct, logits
from core.labs.linear_neurons import LinearNeurons
from core.layers import prunable
from core.linearity import (
    Affine,
    MergedChain,
    Rule,
    Sizes,
    always_active,
    decide,
    merge,
    merge_chain,
    observe,
    preactivations,
    require_chains,
)
from core.methods.linearity import Linearity
from core.methods.prune_filters import PruneFilters
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run, seeded
from core.tracing import trace
from core.training import Classification, Schedule, fit
from core.weights import load_dataset, read_model, save_model

NO_RULE = Rule("any")


def affine(weight: list[list[float]], bias: list[float], number: int) -> Affine:
    return Affine({number: torch.tensor(weight).double()}, torch.tensor(bias).double())


def chain(*widths: int, seed: int = 0) -> list[Affine]:
    """Random layers in float64."""
    random = torch.Generator().manual_seed(seed)
    return [
        Affine(
            {number: torch.randn(outputs, inputs, generator=random, dtype=torch.float64) / inputs**0.5},
            torch.randn(outputs, generator=random, dtype=torch.float64),
        )
        for number, (inputs, outputs) in enumerate(pairwise(widths))
    ]


def masks(layers: list[Affine], *counts: int) -> list[Tensor]:
    """True for the first so many neurons of every hidden layer."""
    return [torch.arange(len(layer.bias)) < count for layer, count in zip(layers, counts, strict=False)]


def nothing(linear: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(mask) for mask in linear]


def merged(layers: list[Affine], linear: list[Tensor], rule: Rule = NO_RULE) -> list[Affine]:
    counts = [int(mask.sum()) for mask in linear]
    sizes, decisions = decide(Sizes.of(layers), counts, [0] * len(counts), rule)
    found = merge_chain(layers, linear, nothing(linear), decisions)
    assert Sizes.of(found).stored == sizes.stored
    return found


def outputs(layers: list[Affine], x: Tensor) -> Tensor:
    return preactivations(layers, x)[-1]


def numbers(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(*widths[:2]))
    for size in pairwise(widths[1:]):
        network.extend([nn.ReLU(), nn.Linear(*size)])
    return network.eval().requires_grad_(False)


@pytest.fixture
def pictures(tiny_data) -> Setting:
    return Setting(tiny_data.train, tiny_data.validation, nn.Identity())


def applied(model: nn.Module, setting: Setting, **parameters) -> nn.Module:
    return compress(model, setting, Recipe((Linearity(**parameters),))).model


# ------------------------------------------------------------------------------------- the algebra


class TestAlgebra:
    @pytest.fixture
    def worked(self) -> list[Affine]:
        """Two inputs, three neurons, two outputs, small enough to do by hand."""
        first = affine([[1, 2], [1, -1], [-2, 1]], [1, 0.5, 0], 0)
        second = affine([[1, -1, 2], [0, 3, -1]], [0.5, -1], 1)
        return [first, second]

    def test_by_hand(self, worked):
        found = merged(worked, masks(worked, 1))
        assert found[1].weights[0].tolist() == [[1, 2], [0, 0]]
        assert found[1].bias.tolist() == [1.5, -1]
        active, negative = torch.tensor([[1.0, 2]]).double(), torch.tensor([[-1.0, -1]]).double()
        assert outputs(worked, active).tolist() == outputs(found, active).tolist() == [[6.5, -1]]
        assert outputs(worked, negative).tolist() == [[2, -0.5]]
        assert outputs(found, negative).tolist() == [[0, -0.5]]

    def test_exact_where_neurons_are_always_active_one_layer_wholly(self):
        """9, 8 and all 16 neurons of 12-20-18-16-5 have no negative weight, bias or input."""
        layers = chain(12, 20, 18, 16, 5)
        linear = masks(layers, 9, 8, 16)
        for number, mask in enumerate(linear):
            for tensor in (layers[number].weights[number], layers[number].bias):
                tensor[mask] = tensor[mask].abs()
        x = torch.rand(500, 12, dtype=torch.float64)
        assert all((a[:, m] > 0).all() for a, m in zip(preactivations(layers, x), linear, strict=False))
        found = merged(layers, linear)
        assert (outputs(found, x) - outputs(layers, x)).abs().max() < 1e-12
        module = MergedChain.of(found)
        assert (module(x) - outputs(layers, x)).abs().max() < 1e-12
        assert Sizes.of(layers).stored == 1027
        assert Sizes.of(found).stored == numbers(module) == 553

    def test_a_chain_of_linear_neurons_is_the_product_of_its_layers(self):
        layers = chain(6, 9, 7, 8, 3)
        (found,) = merged(layers, masks(layers, 9, 7, 8))
        product, bias = torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        for layer in layers:
            (weight,) = layer.weights.values()
            product, bias = weight @ product, weight @ bias + layer.bias
        torch.testing.assert_close(found.weights[0], product)
        torch.testing.assert_close(found.bias, bias)

    def test_a_merged_neuron_passes_on_exactly_what_relu_cut_off(self):
        layers = chain(6, 9, 7)
        mask = torch.arange(9) == 4
        x = torch.randn(200, 6, dtype=torch.float64)
        cut_off = preactivations(layers, x)[0][:, 4].clamp(max=0)
        assert (cut_off < 0).any()
        change = outputs(merged(layers, [mask]), x) - outputs(layers, x)
        torch.testing.assert_close(change, cut_off[:, None] * layers[1].weights[1][:, 4])

    def test_a_dead_neuron_gives_way_to_zero(self):
        layers = chain(6, 9, 7)
        dead, none = torch.arange(9) >= 5, torch.zeros(9) > 0
        x = torch.randn(50, 6, dtype=torch.float64)
        found = list(merge(dict(enumerate(layers)), 0, none, dead).values())
        assert Sizes.of(found).widths == (6, 5, 7)
        assert not Sizes.of(found).shortcuts
        torch.testing.assert_close(outputs(found, x), slowly(layers, [none], [dead], x))
        (constant,) = merge(dict(enumerate(layers)), 0, none, ~none).values()
        torch.testing.assert_close(outputs([constant], x), layers[1].bias.expand(50, 7))

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_what_is_counted_is_stored(self, data):
        """Sizes known in advance equal those of the tensors and of the module, whatever goes where."""
        widths = data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=6))
        layers = [replace(layer, biased=data.draw(st.booleans())) for layer in chain(*widths)]
        layers = [replace(layer, bias=layer.bias * layer.biased) for layer in layers]
        kinds = [data.draw(kinds_of(m)) for m in widths[1:-1]]
        x = torch.randn(5, widths[0], dtype=torch.float64)
        for _ in range(2):  # the second time layers have shortcuts already
            linear, dead = [kind == 1 for kind in kinds], [kind == 2 for kind in kinds]
            counts = ([int(mask.sum()) for mask in found] for found in (linear, dead))
            sizes, decisions = decide(Sizes.of(layers), *counts, NO_RULE)
            expected = slowly(layers, linear, dead, x)
            layers = merge_chain(layers, linear, dead, decisions)
            module = MergedChain.of(layers)
            assert numbers(module) == Sizes.of(layers).stored == sizes.stored
            past = sum(part.weight.numel() for part in module.past.values())
            assert past == Sizes.of(layers).shortcuts == sizes.shortcuts
            torch.testing.assert_close(outputs(layers, x), expected)
            torch.testing.assert_close(module(x), expected)
            kinds = [data.draw(kinds_of(len(layer.bias))) for layer in layers[:-1]]

    @pytest.mark.parametrize(
        ("inputs", "outputs", "count"),
        [(128, 128, 64), (64, 128, 43), (256, 256, 128), (784, 256, 193), (256, 10, 10)],
    )
    def test_best_merges_from_break_even_on(self, inputs, outputs, count):
        """The published rule: n (p + q + 1) - p q > 0."""
        width = 400
        sizes = plain_sizes(inputs, width, outputs)
        for linear in range(width):
            after, (decision,) = decide(sizes, [linear], [0], Rule("best"))
            assert decision.merged == (linear >= count) == (linear > decision.break_even)
            saved = linear * (inputs + outputs + 1) - inputs * outputs
            assert sizes.stored - after.stored == (saved if decision.merged else 0)

    def test_rules(self):
        merges = {
            rule: [
                n for n in range(10) if decide(plain_sizes(8, 10, 8), [n], [0], Rule(rule, 0.3))[1][0].merged
            ]
            for rule in ("any", "share", "best")
        }
        assert merges["any"] == list(range(1, 10))
        assert merges["share"] == list(range(4, 10))  # more than 30 % of 10
        assert merges["best"] == list(range(4, 10))  # 8 * 8 / 17 = 3.8

    def test_inputs_carried_past_a_layer_count_for_the_next(self):
        _, (first, second) = decide(plain_sizes(12, 20, 18, 5), [9, 8], [0, 0], NO_RULE)
        assert first.break_even == 12 * 18 / (12 + 18 + 1)
        assert second.break_even == (11 + 12) * 5 / (11 + 12 + 5 + 1)

    def test_bounds_never_claim_what_a_sample_contradicts_and_find_what_cannot_fail(self):
        layers = chain(6, 30, 20, 4, seed=1)
        layers[0].bias[:10] += 3
        layers[1].bias[:5] += 9
        low, high = torch.zeros(6).double(), torch.ones(6).double()
        corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
        seen = [
            (a > 0).all(0) for a in preactivations(layers, torch.cat([corners, torch.rand(2000, 6).double()]))
        ]
        proved = always_active(layers, low, high)
        assert (proved[0] == (preactivations(layers, corners)[0] > 0).all(0)).all()  # exact for one layer
        assert proved[0].sum() > 5
        assert proved[1].any()
        for claim, sample in zip(proved, seen, strict=False):
            assert not (claim & ~sample).any()
        carried = merged(layers, [torch.arange(30) < 10, torch.zeros(20) > 0])
        assert set(carried[1].weights) == {0, 1}
        assert not (always_active(carried, low, high)[1] & ~seen[1]).any()


def plain_sizes(*widths: int) -> Sizes:
    layers = len(widths) - 1
    return Sizes(widths, tuple(frozenset({layer}) for layer in range(layers)), (True,) * layers)


def kinds_of(width: int):
    """For every neuron: 0 stays, 1 is linear, 2 is dead."""
    return st.lists(st.integers(0, 2), min_size=width, max_size=width).map(torch.tensor)


def slowly(layers: list[Affine], linear: list[Tensor], dead: list[Tensor], x: Tensor) -> Tensor:
    """The definition: no ReLU for linear neurons, zero for dead ones."""
    values = [x]
    for index, layer in enumerate(layers):
        x = layer.bias + sum(values[value] @ weight.T for value, weight in layer.weights.items())
        if index < len(linear):
            values.append(torch.where(linear[index], x, x.relu()) * ~dead[index])
    return x


# --------------------------------------------------------------------------- chains inside networks


class Forked(nn.Module):
    """Two chains side by side, whose outputs are added; a third linear layer reads the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(768, 6), nn.ReLU(), nn.Linear(6, 5))
        self.right = nn.Sequential(nn.Linear(768, 7), nn.ReLU(), nn.Linear(7, 5))
        self.last = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(self.left(x) + self.right(x))


class Functional(nn.Module):
    """ReLU as a function, which no module can be put in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(768, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x.flatten(1))))


class Twice(nn.Module):
    """One ReLU module for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(768, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.relu(self.second(self.relu(self.first(x.flatten(1))))))


def unsuitable() -> dict[str, nn.Module]:
    flat, end = nn.Flatten(), nn.Linear(6, CLASSES)
    return {
        "one layer": nn.Sequential(flat, nn.Linear(768, CLASSES)),
        "no activation": nn.Sequential(flat, nn.Linear(768, 6), end),
        "sigmoid": nn.Sequential(flat, nn.Linear(768, 6), nn.Sigmoid(), end),
        "gelu": nn.Sequential(flat, nn.Linear(768, 6), nn.GELU(), end),
        "norm behind the relu": nn.Sequential(flat, nn.Linear(768, 6), nn.ReLU(), nn.BatchNorm1d(6), end),
        "norm of the batch": nn.Sequential(
            flat, nn.Linear(768, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), end
        ),
        "a function": Functional(),
        "used twice": Twice(),
    }


class TestChains:
    @pytest.mark.parametrize("kind", unsuitable())
    def test_refuses_networks_without_one(self, kind, pictures):
        with pytest.raises(
            UnsupportedModelError, match=r"^linearity: the model must have two linear layers .*, got none"
        ):
            applied(unsuitable()[kind].eval(), pictures)

    def test_refuses_code_that_cannot_be_followed(self, pictures):
        class Branching(Functional):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x if x.sum() > 0 else -x)

        with pytest.raises(
            UnsupportedModelError, match=r"must have code that can be followed, got TraceError"
        ):
            applied(Branching().eval(), pictures)

    def test_batch_norm_and_dropout_between_layers_belong_to_it(self, pictures):
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(768, 9, bias=False), nn.Dropout(), nn.BatchNorm1d(9), nn.ReLU()]
        model = nn.Sequential(
            *layers, nn.Dropout(), nn.Linear(9, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU()
        )
        model.extend([nn.Linear(8, CLASSES), nn.ReLU()])
        for _ in range(3):
            model.train()(pictures.train.images)  # statistics, and scales
        nn.init.normal_(model[3].weight)
        nn.init.normal_(model[3].bias)
        model.eval()
        (found,) = require_chains("test", model)
        assert (found.name, found.hidden) == ("1", ("1", "6"))
        assert found.others == tuple("23456789")
        assert found.parameters == numbers(model)
        twin = fuse_linear_bn_eval(model[1], model[3])
        torch.testing.assert_close(found.layers[0].weights[0].float(), twin.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.layers[0].bias.float(), twin.bias, rtol=1e-5, atol=1e-6)
        expected = model(pictures.validation.images)
        found.put(model, found.layers)
        assert [type(layer) for layer in model[2:10]] == [nn.Identity] * 8
        torch.testing.assert_close(model(pictures.validation.images), expected, rtol=1e-5, atol=1e-5)

    def test_norms_alone_are_left_where_nothing_is_merged(self, pictures):
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(768, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, CLASSES)
        )
        after = applied(model.eval(), pictures, sparsity=0.01, threshold=1.0)
        assert isinstance(after[2], nn.BatchNorm1d)

    def test_several_chains_share_one_threshold(self, pictures):
        model = Forked().eval()
        found = require_chains("test", model)
        assert [(c.name, c.others) for c in found] == [
            ("left.0", ("left.1", "left.2")),
            ("right.0", ("right.1", "right.2")),
        ]
        after = applied(model, pictures, sparsity=1.0, threshold=0.05, rule="any")
        assert isinstance(after.left[0], MergedChain)
        assert isinstance(after.right[0], MergedChain)
        assert isinstance(after.last, nn.Linear)

    def test_the_classifier_of_a_convolutional_network_is_one(self, plain_model, pictures):
        after = applied(plain_model, pictures, sparsity=1.0, threshold=0.05, rule="any")
        assert isinstance(after.linear1, MergedChain)
        assert isinstance(after.linear2, nn.Identity)
        assert after.conv2.weight.shape == plain_model.conv2.weight.shape

    def test_positions_are_watched_like_pictures(self, pictures):
        """A chain on the last axis of (N, L, I) does the same at each of L positions."""
        torch.manual_seed(0)
        tokens = [
            nn.Flatten(2),
            nn.Linear(256, 9),
            nn.ReLU(),
            nn.Linear(9, 5),
            nn.Flatten(),
            nn.Linear(15, CLASSES),
        ]
        model = nn.Sequential(*tokens).eval().requires_grad_(False)
        (found,) = require_chains("test", model)
        (activity,) = observe("test", model, [found], pictures.validation, Run())
        before = model[:2](pictures.validation.images)
        torch.testing.assert_close(activity.rates[0], (before > 0).double().mean((0, 1)))
        after = applied(model, pictures, sparsity=1.0, threshold=0.05, rule="any")
        linear = activity.rates[0] >= 0.05
        slow = model[3:](torch.where(linear, before, before.relu()))
        torch.testing.assert_close(after(pictures.validation.images), slow, rtol=1e-4, atol=1e-5)

    def test_rates_and_box_are_those_of_the_pictures(self, pictures):
        model = mlp(768, 30, 20, CLASSES)
        chains = require_chains("test", model)
        (activity,) = observe("test", model, chains, pictures.validation, Run())
        x = pictures.validation.images.flatten(1)
        first, second = model[1](x), model[3](model[1](x).relu())
        torch.testing.assert_close(activity.rates[0], (first > 0).double().mean(0))
        torch.testing.assert_close(activity.rates[1], (second > 0).double().mean(0))
        assert torch.equal(activity.low, x.amin(0).double())
        assert torch.equal(activity.high, x.amax(0).double())

    def test_refuses_to_watch_nothing_or_what_is_not_finite(self, pictures):
        model = mlp(768, 30, CLASSES)
        none = replace(pictures, validation=pictures.validation.take(slice(0, 0)))
        with pytest.raises(ParameterError, match=r"^linearity: there must be pictures .*, got none"):
            applied(model, none)

        class Broken(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x / 0

        with pytest.raises(UnsupportedModelError, match=r"what enters layer 1\.1 must be finite"):
            applied(nn.Sequential(Broken(), model), pictures)


# ---------------------------------------------------------------------------------------- the method


class TestLinearity:
    @pytest.fixture(scope="class")
    def trained(self) -> Setting:
        """A network that knows its digits."""
        data = load_dataset("digits")
        with seeded(0):
            model = mlp(64, 40, 56, 48, 10)
            schedule = Schedule(
                epochs=6, learning_rate=0.003, optimizer="adamw", batch_size=32, crop=0, flip=False
            )
            fit(model, data.train, Classification(), schedule, Run())
        return Setting(data.train, data.validation, model)

    def test_nothing_goes_at_sparsity_0(self, trained):
        unchanged(trained.teacher, applied(trained.teacher, trained, sparsity=0.0, dead=True, rule="any"))

    def test_nothing_goes_without_linear_neurons(self, pictures):
        """Neurons come in opposite pairs, so none is active, or not, on all pictures."""
        model, half = mlp(768, 40, CLASSES), torch.randn(20, 768) / 28
        model[1].weight.copy_(torch.cat([half, -half]))
        model[1].bias.zero_()
        unchanged(model, applied(model, pictures, sparsity=1.0, threshold=1.0, dead=True, rule="any"))

    def test_answers_on_the_calibration_pictures_stay_at_threshold_1(self, trained):
        after = applied(trained.teacher, trained, sparsity=1.0, threshold=1.0, rule="any", dead=True)
        assert any(isinstance(module, MergedChain) for module in after.modules())
        before, now = logits(trained.teacher, trained.validation), logits(after, trained.validation)
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-4)
        assert torch.equal(answered(now), answered(before))

    def test_best_never_stores_more(self, trained):
        sizes = {
            (rule, t): numbers(applied(trained.teacher, trained, sparsity=1.0, threshold=t, rule=rule))
            for rule in ("best", "any")
            for t in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.05)
        }
        assert max(size for (rule, _), size in sizes.items() if rule == "best") <= numbers(trained.teacher)
        assert max(size for (rule, _), size in sizes.items() if rule == "any") > numbers(trained.teacher)

    def test_the_threshold_falls_no_further_than_it_must(self, trained):
        model, before = trained.teacher, numbers(trained.teacher)
        steps = [round(1 - 0.01 * step, 2) for step in range(60)]
        by_threshold = [numbers(applied(model, trained, sparsity=1.0, threshold=t)) for t in steps]
        for sparsity in (0.1, 0.3, 0.5):
            after = numbers(applied(model, trained, sparsity=sparsity))
            assert after <= (1 - sparsity) * before
            assert after == next(size for size in by_threshold if size <= (1 - sparsity) * before)

    def test_what_cannot_be_reached_stops_at_the_threshold(self, trained):
        lowest = applied(trained.teacher, trained, sparsity=1.0, threshold=0.8)
        stopped = applied(trained.teacher, trained, sparsity=0.95, threshold=0.8)
        assert numbers(stopped) == numbers(lowest) > 0.05 * numbers(trained.teacher)

    def test_what_is_merged_again_is_one_chain_still(self, trained):
        once = applied(trained.teacher, trained, sparsity=1.0, threshold=0.8, rule="any")
        (found,) = require_chains("test", once)
        assert found.parameters == numbers(once)
        assert Sizes.of(found.layers).shortcuts
        same = applied(once, trained, sparsity=0.0)
        assert torch.equal(logits(same, trained.validation), logits(once, trained.validation))
        twice = applied(once, trained, sparsity=1.0, threshold=0.5)
        assert numbers(twice) < numbers(once)
        wholly = applied(trained.teacher, trained, sparsity=1.0, threshold=0.05)
        assert applied(wholly, trained, sparsity=1.0)(trained.validation.images).isfinite().all()

    @pytest.mark.parametrize(
        "first", [COMPRESSORS["prune-weights"](sparsity=0.6), PruneFilters(sparsity=0.3, effect="silence")]
    )
    def test_what_is_held_at_zero_stays_zero_when_trained_on(self, first, trained):
        steps = (first, Linearity(sparsity=0.4))
        before, after = (
            merged_chain(compress(trained.teacher, trained, Recipe(steps + more)).model)
            for more in ((), (COMPRESSORS["fine-tuning"](),))
        )
        zeros = [(layer.weight == 0, layer.bias == 0) for layer in before.layers]
        assert any(weight.any() for weight, _ in zeros)
        for (weight, bias), layer in zip(zeros, after.layers, strict=True):
            assert torch.equal(layer.weight == 0, weight)
            assert torch.equal(layer.bias == 0, bias)
        changed = [
            not torch.equal(a.weight, b.weight) for a, b in zip(before.layers, after.layers, strict=True)
        ]
        assert any(changed)

    def test_what_is_merged_can_be_pruned_with_all_its_shortcuts(self, trained):
        after = applied(trained.teacher, trained, sparsity=1.0, threshold=0.8, rule="any")
        fat = merged_chain(after)
        assert fat.shortcuts == ("0-1", "0-2", "1-2", "0-3", "1-3", "2-3")
        thin = merged_chain(compress(after, trained, Recipe((PruneFilters(sparsity=0.3),))).model)
        assert all(0 < now < then for then, now in zip(fat.widths[1:-1], thin.widths[1:-1], strict=True))
        again = MergedChain(thin.widths, thin.shortcuts, thin.biases)
        again.load_state_dict(thin.state_dict())
        x = trained.validation.images.flatten(1)
        torch.testing.assert_close(again.eval()(x), thin(x))

    def test_costs_count_the_shortcuts(self, trained):
        after = applied(trained.teacher, trained, sparsity=1.0, threshold=0.8, rule="any")
        found = cost(after, trained.validation.images[:1])
        assert found.parameters == numbers(after)
        assert found.macs == sum(layer.weight.numel() for layer in prunable(after).values())

    def test_figures_say_what_happened(self, trained):
        step = Linearity(sparsity=0.5)
        shown = compress(trained.teacher, trained, Recipe((step,)), figures=True)
        rates, even, sizes, errors = shown.figures[0]
        assert rates.table.groupby("layer").share.sum().tolist() == pytest.approx([1.0] * 3)
        assert set(even.table.layer) == {"1", "3", "5"}
        total = sizes.table[sizes.table.part == "all"].set_index("network").parameters
        assert total.to_dict() == {"before": numbers(trained.teacher), "after": numbers(shown.model)}
        past = [part.weight.numel() for part in merged_chain(shown.model).past.values()]
        shortcuts = sizes.table[(sizes.table.part == "shortcuts") & (sizes.table.network == "after")]
        assert shortcuts.parameters.tolist() == [sum(past)]
        exact = errors.table[errors.table.lowest == 0]
        assert (errors.table.lowest <= 0).all()
        assert (exact.change < 1e-4).all()
        assert errors.table.change.max() > 0.01

    def test_a_wholly_merged_chain_still_has_figures(self, trained):
        steps = (Linearity(sparsity=1.0, rule="any"),) * 3
        shown = compress(trained.teacher, trained, Recipe(steps), figures=True)
        assert all(shown.figures)


def merged_chain(model: nn.Module) -> MergedChain:
    (found,) = (module for module in model.modules() if isinstance(module, MergedChain))
    return found


def unchanged(before: nn.Module, after: nn.Module) -> None:
    assert not any(isinstance(module, MergedChain) for module in after.modules())
    assert all(torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True))


# ------------------------------------------------------------------------- beside the rest of Prunescope


class TestBesideTheRest:
    @pytest.fixture(scope="class")
    def exact(self) -> tuple[nn.Sequential, nn.Sequential, Tensor]:
        """A network on digits whose first neurons never switch off there, itself merged, and pictures."""
        data = load_dataset("digits")
        model = mlp(64, 40, 30, 10)
        for layer in (model[1], model[3]):
            layer.bias[:25] += 40
        setting = Setting(data.train, data.validation, model)
        after = applied(model, setting, sparsity=1.0, threshold=1.0, rule="any")
        assert any(isinstance(module, MergedChain) for module in after.modules())
        return model, after, data.test.images[:5]

    @pytest.mark.parametrize("name", ["saliency", "integrated-gradients", "deep-lift"])
    def test_attributions_are_the_same_where_the_merge_is_exact(self, name, exact):
        model, after, images = exact
        before, now = (
            explain(m, ATTRIBUTIONS[name](), images, model(images).argmax(1)) for m in (model, after)
        )
        torch.testing.assert_close(now, before, rtol=1e-3, atol=1e-4 * before.abs().max().item())

    def test_is_saved_and_read(self, exact, tmp_path):
        data = load_dataset("digits")
        torch.manual_seed(0)
        architecture = MODELS["mlp"](hidden=20, depth=3)
        model = architecture.build(data.shape, 10).eval()
        setting = Setting(data.train, data.validation, model)
        for parameters in ({"sparsity": 0.6}, {"threshold": 0.9, "sparsity": 1.0, "rule": "any"}):
            after = applied(model, setting, **parameters)
            assert isinstance(after.linear1, MergedChain)
            save_model(after, tmp_path / "a.safetensors", architecture, "digits")
            again = read_model(tmp_path / "a.safetensors").module
            assert again.linear1.shortcuts == after.linear1.shortcuts
            assert torch.equal(logits(again, data.test), logits(after, data.test))

    def test_what_a_later_step_put_inside_cannot_be_saved_and_says_so(self, exact, tmp_path):
        data, architecture = load_dataset("digits"), MODELS["mlp"](hidden=20)
        model = architecture.build(data.shape, 10).eval()
        after = applied(model, Setting(data.train, data.validation, model), sparsity=0.6)
        after.linear1.layers[0] = nn.Sequential(after.linear1.layers[0])
        with pytest.raises(CheckpointError, match=r"layers of a merged chain must be linear"):
            save_model(after, tmp_path / "a.safetensors", architecture, "digits")
        with pytest.raises(UnsupportedModelError, match="got none"):
            applied(after, Setting(data.train, data.validation, model))

    def test_code_can_be_followed(self, exact):
        _, after, images = exact
        torch.testing.assert_close(trace(after)(images), after(images))


# ------------------------------------------------------------------------- what the source saw, in small


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_network_for_digits_first_grows_and_then_loses_half_of_its_numbers(seed):
    """64-64-128-128-256-256-10, pixels in [0, 1]: at 70 % less than 55 % of it is left, as good as before."""
    data = load_dataset("digits")
    train, validation, test = (
        replace(part, mean=(0.0,), std=(1.0,)) for part in (data.train, data.validation, data.test)
    )
    with seeded(seed):
        model = mlp(64, 64, 128, 128, 256, 256, 10, seed=seed)
        schedule = Schedule(
            epochs=10,
            learning_rate=1e-3,
            schedule="constant",
            optimizer="adamw",
            batch_size=32,
            crop=0,
            flip=False,
        )
        fit(model, train, Classification(), schedule, Run())
    setting = Setting(train, validation, model)
    accuracy = correct(logits(model, test), test.labels).float().mean()
    after = applied(model, setting, sparsity=1.0, threshold=0.7)
    assert 0.4 < numbers(after) / numbers(model) < 0.55
    assert correct(logits(after, test), test.labels).float().mean() > accuracy - 0.02
    humps = [
        numbers(applied(model, setting, sparsity=1.0, threshold=t, rule="any")) for t in (1.0, 0.95, 0.9)
    ]
    assert max(humps) > 1.5 * numbers(model)
    exact = applied(model, setting, sparsity=1.0, threshold=1.0, rule="any")
    assert torch.equal(logits(exact, validation).argmax(1), logits(model, validation).argmax(1))


def test_the_lab_trains_a_network_where_the_chosen_one_has_no_chain(setting):
    with seeded(0):
        sizes, accuracies, errors, orders = LinearNeurons(epochs=3).figures(setting, Run())
    best, every = (sizes.table[sizes.table.rule == rule] for rule in ("best", "any"))
    assert best["size"].max() <= 1 < every["size"].max()
    assert best["size"].iloc[-1] < 0.5
    assert errors.table.error.iloc[0] < 1e-4  # at a threshold of 100 %
    assert set(orders.table.order) == {"merge", "prune", "prune, then merge", "merge, then prune"}
    assert orders.table["size"].between(0, 1).all()
    assert accuracies.table.original.iloc[0] > 0.5


class TestActivationRates:
    def test_rates_are_those_of_a_hook_on_every_relu(self, plain_model, tiny_data):
        split, seen = tiny_data.validation, {}
        for name in ("relu1", "relu2", "relu3"):
            hook = lambda m, inputs, out, name=name: seen.update({name: (inputs[0] > 0).double()})  # noqa: E731
            plain_model.get_submodule(name).register_forward_hook(hook)
        plain_model(split.images)
        rates = activation_rates(plain_model, split, Run())
        assert list(rates) == ["conv1", "conv2", "linear1"]  # what was computed last before the ReLU
        for name, active in zip(rates, seen.values(), strict=True):
            torch.testing.assert_close(rates[name], active.mean([0, *range(2, active.dim())]))

    @pytest.mark.parametrize(
        "relu", [F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, nn.ReLU(inplace=True), F.relu6]
    )
    def test_sees_every_way_to_call_it(self, relu, tiny_data):
        class Called(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(768, 6)
                self.relu = relu if isinstance(relu, nn.Module) else None

            def forward(self, x: Tensor) -> Tensor:
                return relu(relu(100 * self.linear(x.flatten(1))))

        torch.manual_seed(0)
        model, split = Called().eval(), tiny_data.validation
        values = 100 * model.linear(split.images.flatten(1))
        passed = (values > 0) & (values <= 6) if relu is F.relu6 else values > 0
        rates = activation_rates(model, split, Run())
        assert list(rates) == ["linear", "linear (2)"]
        torch.testing.assert_close(rates["linear"], passed.double().mean(0))

    def test_shares_add_up_and_merged_layers_have_rows_of_their_own(self, tiny_data, pictures):
        model = mlp(768, 30, 20, CLASSES)
        after = applied(model, pictures, sparsity=1.0, threshold=0.5, rule="any")
        table = ActivationRates(threshold=0.5).measure(model, after, pictures, Run()).set_index("layer")
        assert list(table.index) == ["1", "3", "1.layers.0", "1.layers.1"]
        for network, rows in (("before", ["1", "3"]), ("after", ["1.layers.0", "1.layers.1"])):
            shares = table.loc[rows, [f"{kind}_{network}" for kind in ("dead", "mixed", "linear")]]
            assert shares.sum(axis=1).tolist() == pytest.approx([1.0, 1.0])
        assert table.loc["1.layers.0", "linear_after"] == 0
        assert table.neurons_after.sum() < table.neurons_before.sum()

    def test_refuses_networks_without_relu(self, pictures):
        with pytest.raises(UnsupportedModelError, match=r"must have ReLUs, got none"):
            ActivationRates().measure(nn.Flatten(), nn.Flatten(), pictures, Run())
