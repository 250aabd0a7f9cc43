"""SAP, lottery ticket, one shot: what is taken, what is set back, and what the PQ index does meanwhile."""

import copy
import math

import pytest
import torch
from tiny import TinyResNet, vary
from torch import nn
from torch.nn.utils import prune

from core.bundles import DATASETS, MODELS, Setting
from core.compressibility import gini, pq_index
from core.criterion import sample
from core.errors import Stopped
from core.evaluation import evaluate
from core.labs.sap_phases import SapPhases
from core.layers import apply_mask, bake, prunable
from core.methods.prune_filters import PruneFilters
from core.methods.prune_weights import PruneWeights
from core.methods.sap import WATCHED, Sap
from core.recipe import Recipe, compress
from core.run import Run, seeded
from core.training import Classification, Schedule, fit

QUICK = {"epochs": 1, "learning_rate": 0.05, "batch_size": 16}


def run_sap(model: nn.Module, data, seed: int = 0, **parameters):
    setting = Setting(data.train, data.validation, model)
    return compress(model, setting, Recipe((Sap(**QUICK | parameters),), seed))


def zeros(model: nn.Module) -> list[torch.Tensor]:
    return [layer.weight == 0 for layer in prunable(model).values()]


@pytest.mark.parametrize("rule", ["lottery", "one-shot"])
def test_two_iterations_are_those_of_the_method_written_out(rule, tiny_model, tiny_data):
    """Global scope: torch's own pruning cuts the masks, and everything else is set back."""
    found = run_sap(tiny_model, tiny_data, rule=rule, iterations=2, share=0.3).model
    network, masks = copy.deepcopy(tiny_model), {}
    schedule = Schedule(schedule="cosine", crop=0, flip=False, **QUICK)
    with seeded(0):
        train = sample(tiny_data.train, len(tiny_data.train))
        sample(tiny_data.validation, WATCHED)
        for iteration in range(3):
            network = copy.deepcopy(tiny_model)
            for name, keep in masks.items():
                apply_mask(network.get_submodule(name), keep)
            fit(network, train, Classification(), schedule, Run())
            bake(network)
            if iteration == 0 or rule == "lottery":
                judged = copy.deepcopy(network)
            for layer in prunable(judged).values():
                prune.custom_from_mask(layer, "weight", layer.weight != 0)
            left = sum(int(layer.weight_mask.sum()) for layer in prunable(judged).values())
            layers = [(layer, "weight") for layer in prunable(judged).values()]
            prune.global_unstructured(layers, prune.L1Unstructured, amount=math.floor(0.3 * left))
            masks = {name: layer.weight_mask.bool() for name, layer in prunable(judged).items()}
            for layer, tensor in layers:
                prune.remove(layer, tensor)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize(("p", "ratio"), [(1.0, 2.0), (0.5, 2.0)])
def test_every_iteration_takes_what_the_index_of_its_trained_weights_says(p, ratio, tiny_model, tiny_data):
    result = run_sap(tiny_model, tiny_data, iterations=3, p=p, ratio=ratio)
    every = sum(layer.weight.numel() for layer in prunable(tiny_model).values())
    left = every
    for record in result.records:
        assert record["remaining"] == left / every
        left = math.ceil(left * (1 - record["pq_index"]) ** (p * ratio / (ratio - 1)) - 1e-6)
    weights = torch.cat([layer.weight.flatten() for layer in prunable(result.model).values()])
    weights = weights[weights != 0]
    last = result.records[-1]
    assert [record["iteration"] for record in result.records] == [0, 1, 2, 3]
    assert last["remaining"] == len(weights) / every
    assert last["pq_index"] == pytest.approx(pq_index(weights, p, p * ratio).item())
    assert last["gini"] == pytest.approx(gini(weights).item())
    assert last["validation_accuracy"] == evaluate(result.model, tiny_data.validation).accuracy


def test_slack_and_gamma_take_more_and_beta_sets_the_limit(tiny_model, tiny_data):
    def left(**parameters):
        return run_sap(tiny_model, tiny_data, iterations=1, **parameters).records[1]["remaining"]

    plain, index = left(), run_sap(tiny_model, tiny_data, iterations=1).records[0]["pq_index"]
    assert left(slack=0.1) == pytest.approx((1 - index) ** 2 / 1.1**2, abs=1e-3)
    assert left(gamma=1.5) == pytest.approx(1 - 1.5 * (1 - plain), abs=1e-3)
    assert left(gamma=10.0) == pytest.approx(0.1, abs=1e-3)
    assert left(gamma=10.0, beta=0.4) == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("rule", ["sap", "lottery", "one-shot"])
@pytest.mark.parametrize("scope", ["neuron", "layer", "global"])
def test_masks_are_nested_and_no_group_loses_its_last_weight(rule, scope, tiny_model, tiny_data):
    options = {"rule": rule, "scope": scope, "gamma": 5.0, "share": 0.9}
    before = [torch.zeros_like(layer.weight, dtype=torch.bool) for layer in prunable(tiny_model).values()]
    for iterations in (1, 2, 4):
        after = zeros(run_sap(tiny_model, tiny_data, iterations=iterations, **options).model)
        assert all((a | ~b).all() for a, b in zip(after, before, strict=True))
        groups = {"neuron": [g for z in after for g in z.flatten(1)], "layer": after, "global": after[:0]}
        assert not any(group.all() for group in groups[scope])
        assert not all(z.all() for z in after)
        before = after


def test_neurons_and_layers_are_pruned_by_their_own_index(tiny_model, tiny_data):
    with torch.no_grad():
        for layer in prunable(tiny_model).values():
            layer.weight[::2] = layer.weight[::2].sign() * 0.1  # as even as can be
            layer.weight[1::2] **= 3
    frozen = {"epochs": 1, "learning_rate": 1e-6, "iterations": 1}
    for z in zeros(run_sap(tiny_model, tiny_data, scope="neuron", **frozen).model):
        shares = z.flatten(1).double().mean(1)
        assert shares[::2].max() < 0.02
        assert shares[1::2].min() > 0.3


def test_what_is_zero_at_the_beginning_stays_zero_and_does_not_count(tiny_model, tiny_data):
    setting = Setting(tiny_data.train, tiny_data.validation, tiny_model)
    for start in ("given", "fresh"):
        steps = (
            PruneFilters(effect="silence", sparsity=0.5),
            PruneWeights(sparsity=0.5, layers={"linear": 1.0}),
        )
        sparse = compress(tiny_model, setting, Recipe(steps)).model
        result = compress(tiny_model, setting, Recipe((*steps, Sap(start=start, iterations=1, **QUICK))))
        assert all((a | ~b).all() for a, b in zip(zeros(result.model), zeros(sparse), strict=True))
        silent = sparse.bn1.weight == 0
        assert silent.any()
        assert not result.model.bn1.weight[silent].any()
        assert not result.model.linear.weight.any()
        first = result.records[0]["remaining"]
        counts = [int((~z).sum()) for z in zeros(sparse)]
        assert first == sum(counts) / sum(z.numel() for z in zeros(sparse))


def test_a_fresh_start_depends_on_the_seed_and_not_on_the_weights(tiny_model, tiny_data):
    torch.manual_seed(9)
    other = vary(TinyResNet(), 5).eval().requires_grad_(False)
    first, second, third = (
        run_sap(model, tiny_data, seed, start="fresh", iterations=1).model
        for model, seed in ((tiny_model, 3), (other, 3), (tiny_model, 4))
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, third.conv1.weight)
    given = run_sap(other, tiny_data, 3, iterations=1).model
    assert not torch.equal(first.conv1.weight, given.conv1.weight)


def test_a_network_of_zeros_is_trained_without_a_crash_and_shows_nothing(plain_model, tiny_data):
    setting = Setting(tiny_data.train, tiny_data.validation, plain_model)
    for rule in ("sap", "lottery"):
        for scope in ("neuron", "layer", "global"):
            steps = (PruneWeights(sparsity=1.0), Sap(rule=rule, scope=scope, iterations=1, **QUICK))
            result = compress(plain_model, setting, Recipe(steps), figures=True)
            assert result.model(tiny_data.validation.images).isfinite().all()
            assert result.figures[1] == ()


def test_the_figures_show_this_steps_iterations(tiny_model, tiny_data):
    setting = Setting(tiny_data.train, tiny_data.validation, tiny_model)
    steps = (Sap(iterations=2, **QUICK), Sap(iterations=3, rule="lottery", **QUICK))
    result = compress(tiny_model, setting, Recipe(steps), figures=True)
    first, second = ({f.title: f for f in figures} for figures in result.figures)
    for shown, records in ((first, result.records[:3]), (second, result.records[3:])):
        accuracy = shown["Accuracy by what remains"].table
        assert accuracy.remaining.tolist() == [record["remaining"] for record in records]
        index = shown["How uneven the remaining weights are"].table
        assert index[index["index"] == "Gini index"].value.tolist() == [r["gini"] for r in records]


def test_when_stopped_the_last_whole_iteration_is_what_there_is(tiny_model, tiny_data):
    def stop_in_the_third(progress):
        if len(run.records) == 2 and "Epoch" in progress.message:
            raise Stopped

    run = Run(stop_in_the_third)
    setting = Setting(tiny_data.train, tiny_data.validation, tiny_model)
    stopped = compress(tiny_model, setting, Recipe((Sap(**QUICK),)), run)
    assert not stopped.finished
    whole = run_sap(tiny_model, tiny_data, iterations=1).model
    assert all(torch.equal(a, b) for a, b in zip(stopped.model.parameters(), whole.parameters(), strict=True))


# ----------------------------------------------------------------------------- what the paper reports


@pytest.fixture(scope="module")
def digits():
    """The 8 x 8 digits and a network 64-128-10."""
    data = DATASETS["digits"]().load()
    torch.manual_seed(0)
    return MODELS["mlp"](hidden=128, depth=1).build(data.shape, 10).eval(), data


def protocol(digits, seed: int, iterations: int = 4, **parameters):
    model, data = digits
    step = Sap(start="fresh", epochs=15, learning_rate=0.1, images=5000, iterations=iterations, **parameters)
    setting = Setting(data.train, data.validation, model)
    return compress(model, setting, Recipe((step,), seed))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_index_of_digits_falls_while_the_accuracy_holds(seed, digits):
    halves, ones = (protocol(digits, seed, p=p).records for p in (0.5, 1.0))
    for records in (halves, ones):
        assert records[1]["pq_index"] < 0.7 * records[0]["pq_index"]
        for record in records:
            assert record["remaining"] > 0.2
            assert record["validation_accuracy"] > records[0]["validation_accuracy"] - 0.02
    assert ones[-1]["remaining"] < 0.7 * halves[-1]["remaining"]


def test_a_large_gamma_shows_the_collapse(digits):
    records = protocol(digits, 0, iterations=8, gamma=3.0).records
    assert records[1]["validation_accuracy"] > 0.9
    assert records[-1]["validation_accuracy"] < 0.7
    assert records[-1]["pq_index"] < 0.5 * records[1]["pq_index"]


def test_the_lab_runs_the_method_and_says_what_came_of_it(digits, tiny_model):
    _, data = digits
    lab = SapPhases(iterations=2, epochs=2, seeds=1, p=0.5)
    with seeded(0):
        accuracy, indices = lab.figures(Setting(data.train, data.validation, tiny_model), Run())
    table = accuracy.table
    starts = table[table.iteration == 0]
    assert starts.rule.tolist() == ["SAP", "lottery ticket", "one shot"]
    assert starts.validation_accuracy.nunique() == 1  # equal weights, equally trained
    assert table[table.rule == "lottery ticket"].remaining.tolist() == pytest.approx([1, 0.8, 0.64], abs=1e-3)
    sap = indices.table[(indices.table.rule == "SAP") & (indices.table["index"] == "PQ index")].value.tolist()
    kept = table[table.rule == "SAP"].remaining.tolist()
    assert kept[1] == pytest.approx(1 - sap[0], abs=1e-3)  # (0.5, 1): what goes is the index itself
    assert f"from {sap[0]:.3f} to {sap[1]:.3f}" in indices.finding
