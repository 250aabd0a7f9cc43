"""Gates on channels and blocks: what they cost, how they move, and that what closes can go unnoticed."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny import TinyResNet, quadrants, vary
from torch import nn

from bench.gates import RAW, SLOW, measured, reference
from core.blocks import Block, carriers, shortcut_blocks
from core.bundles import MODELS, Setting
from core.cost import cost
from core.errors import Stopped, TrainingError, UnsupportedModelError
from core.gates import (
    CLOSED,
    FALL,
    LEAP,
    Costs,
    Gates,
    Tariff,
    find_sites,
    recalibrate,
)
from core.labs.gate_portrait import Toy
from core.labs.gate_prices import best_prior, expectation, prior_cost
from core.layers import ChannelShortcut, prunable
from core.methods.complexity_aware import ComplexityAware
from core.methods.prune_weights import PruneWeights
from core.recipe import Recipe, compress
from core.run import Run
from core.weights import read_model, save_model

EXAMPLE = torch.zeros(1, 3, 16, 16)
TARIFF = Tariff(strength=1.0, layer_share=0.5, compute_share=0.5, initial=0.9, updates=100)


class Projecting(nn.Module):
    """A block whose shortcut is a convolution with batch norm, and in its branch a squeeze-and-excitation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Linear(6, 3), nn.Linear(3, 6)
        self.conv2, self.bn2 = nn.Conv2d(6, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        scale = self.excite(self.squeeze(y.mean((2, 3))).relu()).sigmoid()
        return (self.bn2(self.conv2(y * scale[:, :, None, None])) + self.downsample(x)).relu()


class Attentive(nn.Module):
    """Such a block, and behind it a depthwise convolution between two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()
        self.block = Projecting(5, 7)
        self.expand, self.bn1 = nn.Conv2d(7, 12, 1), nn.BatchNorm2d(12)
        self.depthwise, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.project = nn.Conv2d(12, 6, 1)
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        x = self.bn1(self.expand(self.block(self.relu(self.conv1(x))))).relu()
        return self.linear(self.project(self.bn2(self.depthwise(x)).relu()).mean((2, 3)))


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name == "tiny":
        return vary(TinyResNet()).eval(), EXAMPLE
    if name == "attentive":
        return vary(Attentive()).eval(), EXAMPLE
    side = 8 if name == "mlp" else 32
    example = torch.zeros(1, 3, side, side)
    options = {"width": 0.25} if name == "vgg11-bn" else {}
    return vary(MODELS[name](**options).build(tuple(example.shape[1:]), 4)).eval(), example


def gates_of(model: nn.Module, example: torch.Tensor, tariff: Tariff = TARIFF) -> Gates:
    sites = find_sites(model, example)
    return Gates(sites, Costs(model, example, sites), tariff)


# ------------------------------------------------------------------------------------ the mathematics


def test_the_mean_over_gates_is_linear_in_each_and_least_at_a_corner():
    table = torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for corner in itertools.product((0.0, 1.0), repeat=4):
        found = expectation(table, torch.tensor(corner, dtype=torch.float64))
        assert found == table[tuple(int(c) for c in corner)]
    steps = torch.linspace(0, 1, 11, dtype=torch.float64)
    grid = min(
        expectation(table, torch.stack(odds)).item() for odds in itertools.product(steps, repeat=4)
    )  # 11^4
    assert grid == pytest.approx(table.min().item(), abs=1e-12)
    odds = torch.tensor([0.3, 0.8, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(expectation(table, odds), odds)
    for gate in range(4):
        ends = [odds.detach().clone() for _ in range(2)]
        ends[0][gate], ends[1][gate] = 0.0, 1.0
        difference = expectation(table, ends[1]) - expectation(table, ends[0])
        assert slope[gate].item() == pytest.approx(difference.item(), abs=1e-6)


@pytest.mark.parametrize("gamma", [1.5, 2.0, 10.0])
@pytest.mark.parametrize("odds", [0.1, 0.5, 0.9])
def test_the_flattening_prior_makes_the_price_of_being_open_constant(odds, gamma):
    from scipy.optimize import minimize_scalar

    chance = torch.tensor(odds, dtype=torch.float64)
    found = minimize_scalar(
        lambda prior: prior_cost(chance, torch.tensor(prior, dtype=torch.float64), gamma).item(),
        bounds=(1e-9, 1 - 1e-9),
        method="bounded",
        options={"xatol": 1e-12},
    )
    assert found.fun == pytest.approx(odds * math.log(gamma), abs=1e-5)
    assert found.x == pytest.approx(best_prior(chance, gamma).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("price", "start", "end"),
    [(0.2, (0.0, 0.5), (1 / 1.1, 1.0)), (0.2, (0.02, 0.02), (0.0, 0.0)), (0.4, (0.0, 0.5), (0.0, 0.0))],
)
def test_the_toy_flows_where_it_is_known_to(price, start, end):
    last = Toy(price, 0.1).path(torch.tensor(start), 150)[-1]
    assert last.tolist() == pytest.approx(end, abs=1e-3)


def test_at_a_price_of_0_4_the_toy_closes_though_open_is_better():
    toy = Toy(0.4, 0.1)
    weight, gate = (torch.tensor(value) for value in toy.open)
    assert toy.objective(weight, gate) < toy.objective(torch.tensor(0.0), torch.tensor(0.0)) == 0.5
    assert toy.price < toy.worth == pytest.approx(0.4545, abs=1e-4)


def test_the_saddle_separates_what_stays_from_what_closes():
    toy = Toy(0.2, 0.1)
    assert toy.saddle == pytest.approx((0.2254, 0.0291), abs=1e-4)
    saddle = torch.tensor(toy.saddle, dtype=torch.float64)
    assert toy.downhill(saddle).abs().max() < 1e-12
    ends = toy.path(torch.stack([saddle + 0.02, saddle - 0.02]), 100)[-1]
    assert ends[:, 1].tolist() == [1.0, 0.0]
    line = toy.separatrix()
    assert torch.cdist(line, saddle[None]).min() < 1e-3
    beside = torch.stack([line[::60] + 0.01, (line[::60] - 0.01).clamp(min=0)])
    ends = toy.path(beside, 100)[-1]
    assert ends[0, :, 1].eq(1).all()
    assert ends[1, :, 1].eq(0).all()


def test_the_toy_goes_downhill_and_no_price_above_one_half_is_ever_worth_it():
    toy = Toy(0.2, 0.1)
    state = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(toy.objective(*state), state)
    assert torch.allclose(toy.downhill(state), -slope)
    assert Toy(0.5, 0.1).saddle is None
    assert Toy(0.49, 0.5).saddle is None  # it would lie at a gate above 1


# ---------------------------------------------------------------------------------- where and how much


def test_inner_channels_of_all_blocks_have_gates_and_stem_shortcut_and_classifier_none():
    model, example = network("resnet20")
    sites = find_sites(model, example)
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert list(sites.groups) == [f"{name}.conv1" for name in names]
    assert list(sites.readers.values()) == [f"{name}.conv2" for name in names]
    assert [block.name for block in sites.blocks] == names
    assert sites.units == 3 * (16 + 32 + 64)
    assert {b.name: b.shortcut for b in sites.blocks if b.shortcut} == {
        "layer2.0": "shortcut",
        "layer3.0": "shortcut",
    }
    assert sites.carrying == set(sites.groups)


def test_a_chain_has_gates_behind_its_first_layer(plain_model):
    sites = find_sites(plain_model, EXAMPLE)
    assert sites.readers == {"conv2": "linear1", "linear1": "linear2"}
    assert sites.blocks == ()


def test_a_network_in_which_nothing_can_close_is_refused():
    model = MODELS["mlp"](depth=1).build((1, 8, 8), 4).eval()
    with pytest.raises(
        UnsupportedModelError, match=r"gates: the model must have a residual block, or .*, got"
    ):
        find_sites(model, torch.zeros(1, 1, 8, 8))


def test_a_projection_is_a_shortcut_that_stays_with_the_relu_behind_the_sum():
    model, example = network("attentive")
    (block,) = shortcut_blocks(model, example)
    assert block == Block("block", "downsample", rectified=True)
    x = torch.randn(2, 5, 16, 16)
    assert torch.equal(block.bypass(model.block)(x), model.block.downsample(x).relu())
    assert block.holds("block.conv2")
    assert not block.holds("block.downsample.0")


def test_a_branch_is_a_constant_without_its_channels_but_not_without_those_that_scale_them():
    model, example = network("attentive")
    found = carriers(model, example, shortcut_blocks(model, example), ["block.conv2", "block.excite"])
    assert list(found) == ["block.conv2"]


def test_the_costs_of_resnet20_are_the_known_ones():
    model = MODELS["resnet20"]().build((3, 32, 32), 10).eval()
    gates = gates_of(model, torch.zeros(1, 3, 32, 32))
    costs, everything = gates.costs, torch.ones(gates.sites.count)
    assert costs.full.tolist() == [40_551_040, 269_722]
    per_gate = {
        share: costs.prices(everything, share) * costs.prunable[int(share == 0)] for share in (0.0, 1.0)
    }
    for stage, macs, weights in ((1, 294_912, 288), (2, 147_456, 576), (3, 73_728, 1152)):
        unit = gates.sites.groups[f"layer{stage}.1.conv1"].start
        assert per_gate[1.0][unit].item() == pytest.approx(macs)
        assert per_gate[0.0][unit].item() == pytest.approx(weights + 2)  # and two of the batch norm
        block = gates.sites.gate(gates.sites.blocks[3 * stage - 2])
        assert per_gate[1.0][block].item() == pytest.approx(4_718_592)


@pytest.mark.parametrize("name", ["tiny", "attentive"])
def test_complexity_is_1_with_all_gates_open_0_with_none_and_between_the_mean_over_networks(name):
    gates = gates_of(*network(name))
    costs, count = gates.costs, gates.sites.count
    assert costs.complexity(torch.ones(count), 0.3).item() == pytest.approx(1)
    assert costs.complexity(torch.zeros(count), 0.3).item() == pytest.approx(0)
    random = torch.Generator().manual_seed(0)
    odds, drawn = torch.rand(count, generator=random, dtype=torch.float64), torch.arange(count) < 8
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=min(count, 8))), dtype=torch.float64)
    corners = corners @ torch.eye(count, dtype=torch.float64)[drawn] + (~drawn) * odds
    chances = torch.where(corners > 0, odds, 1 - odds)[:, drawn].prod(1)
    expected = sum(
        chance * costs.complexity(corner, 0.3) for chance, corner in zip(chances, corners, strict=True)
    )
    assert costs.complexity(odds, 0.3).item() == pytest.approx(expected.item())


def test_the_order_of_prices_turns_with_what_is_counted():
    model = MODELS["resnet20"]().build((3, 32, 32), 10).eval()
    example = torch.zeros(1, 3, 32, 32)
    sites = find_sites(model, example)
    costs = Costs(model, example, sites)
    first, last = (sites.groups[name].start for name in ("layer1.1.conv1", "layer3.1.conv1"))
    by_macs, by_weights = (costs.prices(torch.ones(sites.count), share) for share in (1.0, 0.0))
    assert (by_macs[first] / by_macs[last]).item() == pytest.approx(4)
    assert (by_weights[last] / by_weights[first]).item() == pytest.approx(1154 / 290)


@pytest.mark.parametrize(("share", "paying"), [(0.0, "units"), (1.0, "blocks")])
def test_who_pays_nothing_is_open_and_stays_so(share, paying):
    model, example = network("tiny")
    gates = gates_of(model, example, Tariff(1.0, share, 0.5, 0.9, 100))
    units = torch.arange(gates.sites.count) < gates.sites.units
    pays = units if paying == "units" else ~units
    assert ((gates.prices() > 0) == pays).all()
    gates.values.grad = torch.randn(gates.sites.count, generator=torch.Generator().manual_seed(0))
    gates.advance()
    assert (gates.values[~pays] == 1).all()
    assert (gates.values[pays] != 0.9).all()


# --------------------------------------------------------------------------------- gates in a network


@pytest.mark.parametrize("name", ["tiny", "attentive", "resnet20", "mlp", "vgg11-bn"])
def test_what_is_closed_can_be_cut_without_a_trace_and_saves_what_was_said(name):
    model, example = network(name)
    gates, images = gates_of(model, example), torch.randn(3, *example.shape[1:])
    random = torch.Generator().manual_seed(1)
    for _ in range(2):  # what is left is cut again
        drawn = torch.rand(gates.sites.count, generator=random, dtype=torch.float64) > 0.4
        gates._set(drawn.double())
        with torch.no_grad(), gates.attached(model):
            expected = model(images)
        if (cut := gates.cut()) is not None:
            cut(model)
        with torch.no_grad():
            assert torch.allclose(model(images), expected, atol=1e-5)
        found = cost(model, example)
        said = gates.costs.expected(gates.open)
        assert said.round().tolist() == [found.macs, found.parameters]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_gate_multiplies_what_the_reader_reads_behind_norm_and_relu():
    model, _ = network("tiny")
    gates, seen = gates_of(model, EXAMPLE), []
    part = gates.sites.groups["layer1.0.conv1"]
    with torch.no_grad():
        gates.values.fill_(1.0)
        gates.values[part.start + 2] = 0.25
    model.layer1[0].relu1.register_forward_hook(lambda layer, args, output: seen.append(output))
    with torch.no_grad(), gates.attached(model):
        model.layer1[0].conv2.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
        model(torch.randn(2, 3, 16, 16))
    written, read = seen
    odds = torch.ones(8).index_fill(0, torch.tensor(2), 0.25)
    assert torch.equal(read, written * odds[:, None, None])
    assert written[:, 2].any()


def test_in_training_gates_are_drawn_for_every_picture_with_their_probability():
    model, _ = network("tiny")
    gates = gates_of(model, EXAMPLE)
    home = torch.arange(20)
    torch.manual_seed(0)
    drawn = gates._gate(home, 4000, training=True).detach()
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean(0).sub(0.9).abs().max() < 5 * math.sqrt(0.09 / 4000)
    assert torch.corrcoef(drawn.T).sub(torch.eye(20)).abs().max() < 0.1  # channels are drawn apart


def test_the_straight_through_estimate_is_the_difference_where_the_loss_is_linear_in_the_gate():
    model, _ = network("tiny")
    model.layer2[1].relu2 = nn.Identity()  # from the last sum to the logits all is linear
    gates, images = gates_of(model, EXAMPLE), torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        gates.values.fill_(1.0)
    block, channel = gates.sites.count - 1, gates.sites.groups["layer2.1.conv1"].start + 3
    weights = torch.randn(5, 4)
    with gates.attached(model):
        for gate in (block, channel):
            gates.values.grad = None
            (model(images) * weights).sum().backward()
            slope = gates.values.grad[gate].item()
            ends = []
            for value in (0.0, 1.0):
                with torch.no_grad():
                    gates.values[gate] = value
                    ends.append((model(images) * weights).sum().item())
            assert slope == pytest.approx(ends[1] - ends[0], rel=1e-4, abs=1e-4)


def test_a_useless_gate_of_the_highest_price_closes_after_the_promised_share_of_the_training():
    model, _ = network("tiny")
    gates = gates_of(model, EXAMPLE, Tariff(0.3, 0.0, 0.5, 0.9, 100))
    steps = 0
    while gates.open[: gates.sites.units].all():
        gates.values.grad = torch.zeros(gates.sites.count)
        gates.advance()
        steps += 1
    assert steps == pytest.approx(FALL * 100 * (1 - CLOSED / 0.9), abs=1)


def test_noise_moves_a_gate_by_three_such_steps_at_most():
    model, _ = network("tiny")
    gates = gates_of(model, EXAMPLE, Tariff(0.01, 0.5, 0.5, 0.9, 100))
    gates.values.grad = torch.full((gates.sites.count,), 100.0)
    gates.advance()
    assert torch.allclose(gates.values.detach(), torch.tensor(0.9 - LEAP * 0.9 / (FALL * 100)))


def test_gates_stay_in_the_unit_interval_and_what_has_closed_stays_closed():
    model, _ = network("tiny")
    gates, random = gates_of(model, EXAMPLE, Tariff(1.0, 0.5, 0.5, 0.9, 100, step=1.0)), torch.Generator()
    closed = torch.zeros(gates.sites.count, dtype=torch.bool)
    for _ in range(60):
        gates.values.grad = torch.randn(gates.sites.count, generator=random) / 10
        gates.advance()
        assert ((gates.values >= 0) & (gates.values <= 1)).all()
        assert (gates.values[closed] == 0).all()
        closed |= gates.values.detach() == 0
    assert closed.any()


def test_a_block_without_channels_goes_and_takes_its_channels_with_it():
    model, _ = network("tiny")
    gates = gates_of(model, EXAMPLE)
    wanted = torch.ones(gates.sites.count, dtype=torch.float64)
    wanted[gates.sites.groups["layer1.0.conv1"]] = 0.0
    wanted[gates.sites.gate(gates.sites.blocks[2])] = 0.0
    gates._set(wanted)
    gates.cut()(model)
    kinds = [type(m).__name__ for m in (model.layer1[0], model.layer2[0], model.layer2[1])]
    assert kinds == ["Identity", "BasicBlock", "Identity"]
    assert (gates.values[gates.sites.groups["layer2.1.conv1"]] == 0).all()


def test_the_last_channel_of_a_chain_stays(plain_model):
    gates = gates_of(plain_model, EXAMPLE)
    wanted = torch.zeros(gates.sites.count, dtype=torch.float64)
    wanted[3] = CLOSED / 2  # the largest of conv2
    gates._set(wanted)
    gates.cut()(plain_model)
    assert gates.values[:5].tolist() == [0, 0, 0, 1, 0]
    assert [len(layer.weight) for layer in prunable(plain_model).values()] == [6, 1, 1, 4]
    assert gates.collapsed()


def test_with_everything_closed_the_network_runs_on_stem_shortcuts_and_classifier():
    model, example = network("resnet20")
    gates = gates_of(model, example)
    gates._set(torch.zeros(gates.sites.count, dtype=torch.float64))
    gates.cut()(model)
    assert list(prunable(model)) == ["conv1", "linear"]
    assert model(torch.randn(2, *example.shape[1:])).isfinite().all()
    assert gates.collapsed()


def test_recalibrated_norms_have_the_statistics_of_the_pictures():
    data = quadrants(40, seed=1)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 4))
    recalibrate(model, data)
    assert torch.allclose(model[0].running_mean, data.images.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(model[0].running_var, data.images.var((0, 2, 3)), atol=1e-3)
    assert not model[0].training
    assert model[0].momentum == 0.1


# ----------------------------------------------------------------------------------------- the method


def trained(setting: Setting, run: Run | None = None, **options) -> nn.Module:
    given = {"batch_size": 8, "crop": 0, "epochs": 6} | options
    return compress(setting.teacher, setting, Recipe((ComplexityAware(**given),)), run).model


def test_what_is_handed_back_is_plain_and_costs_what_was_recorded(setting):
    run = Run()
    model = trained(setting, run, strength=2.0, gate_step=1.0, optimizer="adamw", ema=0.5)
    found = cost(model, EXAMPLE)
    last = run.records[-1]
    assert (last["macs"], last["parameters"]) == (found.macs, found.parameters)
    macs = [row["macs"] for row in run.records]
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] < cost(setting.teacher, EXAMPLE).macs
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gates_wait_for_the_end_of_the_warm_up(setting):
    run = Run()
    trained(setting, run, warm_up=0.5, layer_share=0.5)
    gates = [row["gate of layer1.0"] for row in run.records[:-1]]
    assert gates[:3] == pytest.approx([0.9] * 3)
    assert gates[3] != pytest.approx(0.9)


def test_without_a_price_nothing_closes_and_a_price_far_too_high_closes_everything(setting):
    run = Run()
    model = trained(setting, run, strength=0.0)
    assert cost(model, EXAMPLE).macs == cost(setting.teacher, EXAMPLE).macs
    assert run.records[-1]["collapsed"] == 0
    model = trained(setting, run, strength=2.0, gate_step=10.0, warm_up=0.0, layer_share=1.0)
    assert list(prunable(model)) == ["conv1", "linear"]
    assert run.records[-1]["collapsed"] == 1


@pytest.mark.parametrize("start", ["pretrained", "scratch"])
def test_what_an_earlier_step_pruned_stays_pruned(setting, start):
    steps = (PruneWeights(sparsity=0.5), ComplexityAware(epochs=2, batch_size=8, strength=0.0, start=start))
    model = compress(setting.teacher, setting, Recipe(steps)).model
    zeros = compress(setting.teacher, setting, Recipe(steps[:1])).model
    for name, layer in prunable(zeros).items():
        assert torch.equal(layer.weight == 0, model.get_submodule(name).weight == 0)
    cuts = replace(steps[1], epochs=4, strength=1.0, gate_step=1.0)
    cut = compress(setting.teacher, setting, Recipe((steps[0], cuts))).model
    assert cost(cut, EXAMPLE).macs < cost(setting.teacher, EXAMPLE).macs
    assert cost(cut, EXAMPLE).sparsity > 0.4


def test_a_training_that_is_stopped_leaves_what_it_had_without_its_gates(setting):
    seen = []

    def stop(progress):
        seen.append(progress.fraction)
        if progress.fraction > 0.5:
            raise Stopped

    result = compress(
        setting.teacher,
        setting,
        Recipe((ComplexityAware(batch_size=8, gate_step=1.0),)),
        Run(on_progress=stop),
    )
    assert not result.finished
    assert result.model(setting.validation.images).isfinite().all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.model.modules())


def test_a_training_that_diverges_says_so(setting):
    with pytest.raises(TrainingError, match=r"training: .* became"):
        trained(setting, learning_rate=10.0, batch_size=48, schedule="constant", weight_decay=0.1, epochs=60)


def test_a_fresh_start_forgets_the_weights(setting):
    step = ComplexityAware(start="scratch", strength=0.0, learning_rate=1e-6, epochs=1)
    model = compress(setting.teacher, setting, Recipe((step,), seed=5)).model
    assert not torch.allclose(model.conv1.weight, setting.teacher.conv1.weight, atol=0.01)
    kept = trained(setting, strength=0.0, learning_rate=1e-6)
    assert torch.allclose(kept.conv1.weight, setting.teacher.conv1.weight, atol=1e-3)


def test_a_network_without_channels_and_blocks_is_saved_and_read(tiny_data, tmp_path):
    architecture = MODELS["resnet20"]()
    model = vary(architecture.build(tiny_data.shape, len(tiny_data.classes))).eval()
    gates = gates_of(model, EXAMPLE)
    wanted = (torch.rand(gates.sites.count, generator=torch.Generator().manual_seed(2)) > 0.4).double()
    wanted[gates.sites.units :] = torch.tensor([1, 0, 1, 0, 1, 1, 1, 1, 0])
    gates._set(wanted)
    gates.cut()(model)
    save_model(model, tmp_path / "a.safetensors", architecture, tiny_data)
    again, images = read_model(tmp_path / "a.safetensors").module, tiny_data.test.images
    assert isinstance(again.layer2[0], ChannelShortcut)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


# -------------------------------------------------------------------------------------- what it brings


@pytest.fixture(scope="module")
def noisy_digits():
    return reference(0)


QUICK = SLOW | {"epochs": 8, "images": 512}


def test_a_higher_price_leaves_less_of_the_network(noisy_digits):
    low, high = (measured(*noisy_digits, 0, QUICK | {"strength": nu}) for nu in (0.03, 1.0))
    assert low["macs"] > 0.9
    assert high["macs"] < 0.75
    assert high["accuracy"] > 0.5  # a tenth by chance


@pytest.mark.parametrize(("share", "step"), [(0.0, 4.0), (1.0, 0.4)])
def test_with_raw_steps_channels_alone_or_blocks_alone_go(share, step, noisy_digits):
    given = QUICK | RAW | {"strength": 0.5, "layer_share": share, "gate_step": step}
    channels = [int(count) for count in measured(*noisy_digits, 0, given)["channels"].split()]
    assert sum(channels) < 60
    assert all(channels) if share == 0 else set(channels) <= {0, 16}
