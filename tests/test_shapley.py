"""Shapley values of filters: known games, axioms, and payoffs against networks that are really silenced."""

import copy
import math

import pytest
import torch
from scipy.stats import spearmanr
from tiny import CLASSES, SIDE, TinyResNet, plain_network, quadrants, vary
from torch import Tensor, nn

from core import shapley, surgery
from core.bundles import DATASETS, MODELS, Setting, Split
from core.coalitions import Coalitions
from core.criterion import CRITERIA, rank
from core.engine import Engine
from core.errors import ParameterError, UnsupportedModelError
from core.lab import LABS
from core.run import Run, seeded
from core.shapley import Game
from core.training import Classification, Schedule, fit

CLOSE = {"atol": 1e-9, "rtol": 0}


def game(worth, players: int) -> Game:
    """A game by the worth of its coalitions, in order of bitmasks."""
    worth = torch.as_tensor(worth, dtype=torch.float64)
    return Game(lambda coalitions: worth[shapley.bitmasks(coalitions)], players)


def random_game(players: int, seed: int) -> Tensor:
    return torch.rand(2**players, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def equal(found: Tensor, wanted) -> bool:
    return torch.allclose(found, torch.as_tensor(wanted, dtype=torch.float64), **CLOSE)


TOY = [0, 1, 2, 2, 2, 5, 5, 6]  # of the author code; players 1, 2, 3 are bits 0, 1, 2
GLOVES = [float(bool(mask & 1 and mask & 6)) for mask in range(8)]
TWINS = [10 * bool(mask & 3) + 4 * bool(mask & 4) for mask in range(16)]


# games whose values are known


def test_the_toy_game_of_the_author_code_has_the_known_values():
    assert equal(shapley.exact(game(TOY, 3)), [7 / 6, 5 / 3, 19 / 6])
    assert equal(shapley.leave_up_to(game(TOY, 3), 1), [1 / 3, 1 / 3, 4 / 3])
    assert equal(shapley.leave_up_to(game(TOY, 3), 2), [5 / 6, 1, 5 / 2])
    assert equal(shapley.uniform_regression(game(TOY, 3)), [1.5, 2, 3.5])


def test_in_the_glove_game_the_only_left_glove_is_worth_two_thirds():
    assert equal(shapley.exact(game(GLOVES, 3)), [2 / 3, 1 / 6, 1 / 6])


def test_leaving_one_out_calls_twins_worthless_and_the_shapley_value_halves_their_worth():
    assert equal(shapley.exact(game(TWINS, 4)), [5, 5, 4, 0])
    assert equal(shapley.leave_up_to(game(TWINS, 4), 1, scaled=True), [0, 0, 4, 0])
    assert equal(shapley.leave_up_to(game(TWINS, 4), 2, scaled=True), [5 / 3, 5 / 3, 4, 0])
    assert equal(shapley.kernel(game(TWINS, 4)), [5, 5, 4, 0])


def test_agrees_with_captums_exact_values():
    from captum.attr import ShapleyValues

    for seed in range(3):
        worth = random_game(5, seed)
        forward = lambda present, worth=worth: worth[shapley.bitmasks(present > 0.5)]  # noqa: E731
        theirs = ShapleyValues(forward).attribute(torch.ones(1, 5), torch.zeros(1, 5))
        assert torch.allclose(theirs[0].double(), shapley.exact(game(worth, 5)), atol=1e-6)


# axioms


@pytest.mark.parametrize("players", [1, 2, 3, 5, 8])
def test_values_add_up_to_what_all_players_earn(players):
    worth = random_game(players, players)
    earned = (worth[-1] - worth[0]).item()
    estimates = [
        shapley.exact(game(worth, players)),
        shapley.kernel(game(worth, players)),
        shapley.permutation(game(worth, players), 1)[0],
        shapley.permutation(game(worth, players), 7)[0],
        shapley.permutation(game(worth, players), 7, truncate=0.3)[0],
        shapley.kernel(game(worth, players), 100 * players),
    ]
    for values in estimates:
        assert values.sum().item() == pytest.approx(earned, abs=1e-9)


@pytest.mark.parametrize("players", [1, 2, 3, 5, 8])
def test_leaving_out_everybody_and_regressing_on_everything_are_exact(players):
    worth = random_game(players, players + 10)
    values = shapley.exact(game(worth, players))
    assert equal(shapley.leave_up_to(game(worth, players), players), values)
    assert equal(shapley.leave_up_to(game(worth, players), players, scaled=True), values)
    assert equal(shapley.kernel(game(worth, players)), values)


def test_leaving_one_out_is_the_drop_when_one_leaves():
    worth = random_game(6, 0)
    drops = [worth[63] - worth[63 - 2**player] for player in range(6)]
    assert equal(shapley.leave_up_to(game(worth, 6), 1) * 6, drops)
    assert equal(shapley.leave_up_to(game(worth, 6), 1, scaled=True), drops)


def test_values_are_additive_in_the_game():
    first, second = random_game(5, 1), random_game(5, 2)
    together = shapley.exact(game(first + second, 5))
    assert equal(together, shapley.exact(game(first, 5)) + shapley.exact(game(second, 5)))


def test_every_estimator_solves_an_additive_game():
    shares = torch.tensor([0.3, -1.0, 2.0, 0.0, 5.5]).double()
    added = Game(lambda coalitions: coalitions.double() @ shares + 3, 5)
    assert equal(shapley.exact(added), shares)
    assert equal(shapley.leave_up_to(added, 2, scaled=True), shares)
    assert equal(shapley.permutation(added, 1)[0], shares)
    assert equal(shapley.kernel(added, 60), shares)
    assert equal(shapley.uniform_regression(added, 60), shares)


def test_one_pair_of_orders_solves_a_game_of_pairs():
    """In a reversed order everybody meets exactly those whom it has not met before."""
    bonds = torch.triu(torch.rand(6, 6, generator=torch.Generator().manual_seed(0)).double())
    bonded = Game(lambda coalitions: ((coalitions.double() @ bonds) * coalitions).sum(1), 6)
    assert equal(shapley.permutation(bonded, 1)[0], shapley.exact(bonded))


def test_equal_players_get_the_same_and_idle_ones_nothing():
    both = lambda c: c[:, 0].double() + c[:, 1] + 3 * (c[:, 0] & c[:, 2]) + 3 * (c[:, 1] & c[:, 2])  # noqa: E731
    values = shapley.exact(Game(both, 4))
    assert values[0] == values[1]
    assert values[3] == 0
    assert shapley.permutation(Game(both, 4), 3)[0][3] == 0


# estimates


def test_errors_of_the_permutation_estimate_are_as_large_as_it_says():
    worth = random_game(6, 3)
    wanted, misses = shapley.exact(game(worth, 6)), []
    for seed in range(100):
        torch.manual_seed(seed)
        values, errors = shapley.permutation(game(worth, 6), 20)
        misses.append((values - wanted) / errors)
    misses = torch.stack(misses)
    assert 0.9 < misses.square().mean().sqrt() < 1.2
    assert misses.mean(0).abs().max() < 0.4  # no bias: four standard errors of a mean of 100


def test_more_orders_and_more_coalitions_come_closer():
    worth = random_game(8, 4)
    wanted = shapley.exact(game(worth, 8))

    def miss(estimate) -> float:
        total = 0.0
        for seed in range(10):
            torch.manual_seed(seed)
            total += (estimate() - wanted).abs().sum().item()
        return total

    orders = [miss(lambda pairs=pairs: shapley.permutation(game(worth, 8), pairs)[0]) for pairs in (2, 8, 32)]
    drawn = [miss(lambda count=count: shapley.kernel(game(worth, 8), count)) for count in (40, 160, 640)]
    assert orders[0] > orders[1] > orders[2]
    assert drawn[0] > drawn[1] > drawn[2]


def test_the_uniform_regression_does_not_tend_to_the_shapley_value():
    worth = random_game(8, 5)
    values, limit = shapley.exact(game(worth, 8)), shapley.uniform_regression(game(worth, 8))
    torch.manual_seed(0)
    drawn = shapley.uniform_regression(game(worth, 8), 100_000)
    assert (drawn - limit).abs().max() < 0.01
    assert (limit - values).abs().max() > 0.03
    assert (shapley.kernel(game(worth, 8), 100_000) - values).abs().max() < 0.01


def test_kernel_coalitions_are_drawn_by_weight_and_come_with_their_complements():
    torch.manual_seed(0)
    pairs = shapley.kernel_coalitions(20_000, 5)
    assert torch.equal(pairs[:, 0], ~pairs[:, 1])
    sizes = torch.bincount(pairs[:, 0].sum(1), minlength=6)[1:5].double()
    mass = torch.tensor([1 / (s * (5 - s)) for s in range(1, 5)]).double()
    assert torch.allclose(sizes / sizes.sum(), mass / mass.sum(), atol=0.015)
    assert torch.allclose(pairs[:, 0].double().mean(0), torch.tensor(0.5).double(), atol=0.02)


def test_truncation_asks_for_less_and_is_off_by_default():
    worth = torch.tensor([float(mask.bit_count() >= 5) for mask in range(64)])  # nothing until five are there
    torch.manual_seed(0)
    plain = game(worth, 6)
    values, _ = shapley.permutation(plain, 10)
    torch.manual_seed(0)
    cut = game(worth, 6)
    found, _ = shapley.permutation(cut, 10, truncate=0.01)
    assert cut.evaluations < plain.evaluations
    assert equal(found, values)  # without bias here, since what is cut off is worth nothing


def test_a_game_asks_once_about_every_coalition():
    asked = []
    counted = Game(lambda coalitions: asked.append(len(coalitions)) or coalitions.sum(1).double(), 4)
    shapley.exact(counted)
    shapley.leave_up_to(counted, 2)
    shapley.permutation(counted, 5)
    assert counted.evaluations == sum(asked) == 16
    assert Game(counted, 4)(shapley.every(4)).tolist() == counted(shapley.every(4)).tolist()
    single = game(TWINS, 4)
    shapley.leave_up_to(single, 2)
    assert single.evaluations == 1 + 4 + 6


def test_bitmasks_number_all_coalitions_and_tell_wide_ones_apart():
    assert shapley.bitmasks(shapley.every(5)) == list(range(32))
    wide = torch.eye(100, dtype=torch.bool)
    assert shapley.bitmasks(wide) == [2**player for player in range(100)]


# the best coalitions


def test_the_oracle_is_the_best_set_of_every_size_and_ties_go_to_the_lower_bitmask():
    worth = random_game(6, 6)
    sets = shapley.oracle(worth)
    for size, best in enumerate(sets):
        assert best.sum() == size
        rivals = [worth[mask].item() for mask in range(64) if mask.bit_count() == size]
        assert worth[shapley.bitmasks(best[None])[0]].item() == max(rivals)
    tied = shapley.oracle(torch.zeros(16))
    assert shapley.bitmasks(tied) == [0b0, 0b1, 0b11, 0b111, 0b1111]


def test_the_counting_rank_reproduces_nested_sets():
    shares = torch.tensor([3.0, 1.0, 4.0, 2.0]).double()
    sets = shapley.oracle(shapley.every(4).double() @ shares)
    order = shapley.oracle_order(sets, shares)
    assert order.tolist() == [2, 0, 3, 1]
    assert shapley.nested(sets) == (2, 2)
    assert shapley.agreement(order, sets) == shapley.agreement(order, sets, side="remove") == 1.0
    assert shapley.agreement(order.flip(0), sets, most=1) == 0.0
    assert shapley.agreement(order.flip(0), sets, most=3) == pytest.approx((0 + 0 + 2) / 6)


def test_ties_of_the_counting_rank_go_by_value():
    sets = torch.tensor([[False] * 3, [True, False, False], [False, True, True], [True] * 3])
    assert shapley.oracle_order(sets, torch.tensor([0.1, 0.2, 0.3])).tolist() == [2, 1, 0]
    assert shapley.nested(sets) == (0, 1)


# bad inputs


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: shapley.exact(game(torch.zeros(1), 17)), r"at most 16 .* got 17, .*131,072"),
        (lambda: shapley.exact(game(torch.zeros(1), 21), force=True), r"at most 20 .* got 21"),
        (lambda: shapley.leave_up_to(game(TOY, 3), 0), r"most must lie in \[1, 3\], got 0"),
        (lambda: shapley.leave_up_to(game(TOY, 3), 4), r"most must lie in \[1, 3\], got 4"),
        (lambda: shapley.permutation(game(TOY, 3), 0), "pairs must be at least 1, got 0"),
        (lambda: shapley.kernel(game(TWINS, 4), 2), "need more coalitions"),
        (lambda: shapley.kernel(game(TWINS, 4), 0), "need more coalitions"),
        (lambda: shapley.uniform_regression(game(TWINS, 4), 3), "need more coalitions"),
        (lambda: shapley.exact(game([0, 1, math.nan, 2], 2)), r"coalition \[1\] must be finite, got nan"),
        (lambda: shapley.exact(game([0, 1, 1, math.inf], 2)), r"coalition \[0, 1\] must be finite, got inf"),
        (
            lambda: Coalitions(plain_network(), quadrants(4, 0).take(slice(0, 0))),
            "must be .*pictures, got none",
        ),
    ],
)
def test_says_what_is_wrong(ask, words):
    with pytest.raises(ParameterError, match=words) as caught:
        ask()
    assert isinstance(caught.value, ValueError)


# the payoff of a network


class Wandering(nn.Module):
    """Its code cannot be followed: which way it goes depends on the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=4)
        self.norm = nn.BatchNorm2d(5)
        self.linear = nn.Linear(80, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.linear((x.relu() if x.sum() > -1e9 else x).flatten(1))


class Twice(nn.Module):
    """One layer in two places, a norm that cannot be folded, smooth activations, a linear layer per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.token = nn.Linear(6, 7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x) * 1.0).sigmoid()
        x = (self.again(x).sigmoid() + self.again(x + 1)).movedim(1, -1)
        return self.head(self.token(x).tanh().mean((1, 2)))


NETWORKS = {"residual": TinyResNet, "plain": plain_network, "wandering": Wandering, "twice": Twice}
LAYERS = [
    ("residual", "conv1"),
    ("residual", "layer1.0.conv1"),
    ("residual", "layer2.0.conv2"),
    ("residual", "linear"),
    ("plain", "conv1"),
    ("plain", "conv2"),
    ("plain", "linear1"),
    ("wandering", "conv"),
    ("wandering", "linear"),
    ("twice", "stem"),
    ("twice", "again"),
    ("twice", "token"),
]


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return vary(NETWORKS[kind]()).eval().requires_grad_(False)


def silenced(model: nn.Module, layer: str, keep: Tensor) -> nn.Module:
    model = copy.deepcopy(model)
    surgery.silence(model, {layer: keep}, torch.zeros(1, 3, SIDE, SIDE))
    return model


def engine(model: nn.Module, split: Split) -> Engine:
    return Engine(model, split, CLASSES, 10, Run(), (torch.float32,))


@pytest.mark.parametrize(("kind", "layer"), LAYERS)
def test_gates_do_picture_by_picture_what_silencing_does(kind, layer):
    model, split = network(kind), quadrants(24, 5)
    runner = engine(model, split)
    norms = {
        "conv1": "bn1",
        "layer1.0.conv1": "layer1.0.bn1",
        "layer2.0.conv2": "layer2.0.bn2",
        "conv": "norm",
    }
    width = len(model.get_submodule(layer).weight)
    random = torch.Generator().manual_seed(1)
    gates = torch.rand(3, 10, width, generator=random) < 0.6
    modules = {layer, norms.get(layer, layer)}
    plays = [(2, gates[:, :4]), (0, gates), (2, gates[:1, :4])]  # the last chunk has four images
    found = list(runner.gated(modules, plays))
    assert [len(logits) for logits in found] == [3, 3, 1]
    for (chunk, some), logits in zip(plays, found, strict=True):
        images = split.take(runner.order[chunk * 10 : chunk * 10 + 10]).images
        for turn, row in enumerate(some):
            for place, keep in enumerate(row):
                wanted = silenced(model, layer, keep)(images[place : place + 1])[0]
                assert torch.allclose(
                    logits[turn, place], wanted, atol=1e-5 * max(1, wanted.abs().max().item())
                )


def test_gates_leave_what_is_remembered_for_others_as_it_was(tiny_model, tiny_data):
    runner = engine(tiny_model, tiny_data.validation)
    masks = surgery.silence_masks(
        tiny_model, {"layer2.1.conv1": torch.arange(16) > 4}, tiny_data.validation.take(slice(0, 1)).images
    )
    before = torch.cat(list(runner.forward(runner.route(masks), 0, 24)))
    gates = torch.rand(2, 10, 16) < 0.5
    list(runner.gated({"layer2.0.conv2", "layer2.0.bn2"}, [(0, gates), (1, gates)]))
    assert torch.equal(torch.cat(list(runner.forward(runner.route(masks), 0, 24))), before)
    fresh = engine(tiny_model, tiny_data.validation)
    assert torch.equal(torch.cat(list(fresh.forward(fresh.route(masks), 0, 24))), before)


@pytest.mark.parametrize(
    ("kind", "layer"), [("plain", "conv1"), ("plain", "linear1"), ("residual", "layer2.1.conv1")]
)
def test_absent_filters_might_as_well_have_been_removed(kind, layer):
    model, split = network(kind), quadrants(10, 5)
    runner = engine(model, split)
    keep = (
        torch.rand(len(model.get_submodule(layer).weight), generator=torch.Generator().manual_seed(3)) < 0.5
    )
    keep[0] = True
    removed = surgery.remove_groups(model, {layer: keep}, split.take(slice(0, 1)).images)
    wanted = removed(split.take(runner.order).images)
    modules = {layer, {"conv1": "bn1", "layer2.1.conv1": "layer2.1.bn1"}.get(layer, layer)}
    (logits,) = runner.gated(modules, [(0, keep.expand(1, 10, -1))])
    assert torch.allclose(logits[0], wanted, atol=1e-5)


@pytest.mark.parametrize("worth", ["accuracy", "loss"])
@pytest.mark.parametrize(
    ("kind", "layer"), [("residual", "layer2.0.conv1"), ("plain", "conv1"), ("wandering", "conv")]
)
def test_a_payoff_is_what_the_silenced_network_scores(worth, kind, layer):
    model, split = network(kind), quadrants(61, 5)  # a whole chunk, and a part of one
    judged = Coalitions(model, split, worth)
    width = judged.widths[layer]
    coalitions = torch.rand(6, width, generator=torch.Generator().manual_seed(2)) < 0.5
    found = judged.game(layer)(coalitions)
    for keep, value in zip(coalitions, found.tolist(), strict=True):
        logits = silenced(model, layer, keep)(split.images)
        score = {
            "accuracy": (logits.argmax(1) == split.labels).double().mean().item(),
            "loss": -nn.functional.cross_entropy(logits, split.labels).item(),
        }[worth]
        assert value == pytest.approx(score, abs=1e-5)


def test_a_filter_nobody_reads_is_worth_nothing_and_its_copies_are_worth_the_same(plain_model):
    second = plain_model.conv2
    second.weight[:, 2] = 0  # nobody reads filter 2 of conv1
    for value in (plain_model.conv1.weight, plain_model.conv1.bias):
        value[1] = value[0]
    for value in (plain_model.bn1.weight, plain_model.bn1.bias, plain_model.bn1.running_mean):
        value[1] = value[0]
    plain_model.bn1.running_var[1] = plain_model.bn1.running_var[0]
    second.weight[:, 1] = second.weight[:, 0]
    judged = Coalitions(plain_model, quadrants(60, 4), "loss")
    values = shapley.exact(judged.game("conv1"))
    assert values[2].item() == pytest.approx(0, abs=1e-7)
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-6)
    assert values.abs().max() > 1e-3


def test_orders_that_all_pictures_play_are_the_plain_permutation_estimate(tiny_model):
    judged = Coalitions(tiny_model, quadrants(61, 5), "loss")
    torch.manual_seed(0)
    values, errors = judged.permutation("layer2.0.conv1", 3, 61, Run())
    torch.manual_seed(0)
    wanted, theirs = shapley.permutation(judged.game("layer2.0.conv1"), 3)
    assert torch.allclose(values, wanted, atol=1e-9)
    assert torch.allclose(errors, theirs, atol=1e-9)
    torch.manual_seed(0)
    assert torch.equal(
        judged.permutation("layer2.0.conv1", 3, 1000, Run())[0], values
    )  # no more than there are


@pytest.mark.parametrize("group", [1, 6, 30])
def test_pictures_that_take_turns_estimate_the_value_on_all_of_them_without_bias(group):
    judged = Coalitions(network("plain"), quadrants(60, 4), "loss")
    wanted = shapley.exact(judged.game("conv2"))
    estimates = []
    for seed in range(20):
        torch.manual_seed(seed)
        values, errors = judged.permutation("conv2", 120 // group, group, Run())
        estimates.append(values)
        assert errors.isfinite().all()
    found = torch.stack(estimates)
    misses = (found.mean(0) - wanted) / (found.std(0) / math.sqrt(20) + 1e-9)
    assert misses.abs().max() < 4


def test_every_picture_once_adds_up_to_what_the_layer_is_worth(plain_model):
    judged = Coalitions(plain_model, quadrants(60, 4))
    table = shapley.table(judged.game("linear1"))
    earned = (table[-1] - table[0]).item()
    for estimate in (
        judged.permutation("linear1", 60, 1, Run())[0],
        judged.permutation("linear1", 6, 10, Run())[0],
        judged.kernel("linear1", 120, Run()),
    ):
        assert estimate.sum().item() == pytest.approx(earned, abs=1e-9)


def test_the_kernel_estimate_of_pictures_tends_to_the_exact_value(plain_model):
    judged = Coalitions(plain_model, quadrants(60, 4), "loss")
    wanted = shapley.exact(judged.game("conv2"))
    torch.manual_seed(0)
    few, many = (judged.kernel("conv2", rows, Run()) for rows in (60, 6000))
    assert (many - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert (many - wanted).norm() < (few - wanted).norm()


def test_leaving_one_out_of_a_network_is_one_coalition_per_filter(plain_model):
    judged = Coalitions(plain_model, quadrants(60, 4))
    found = judged.leave_one_out("conv1", Run())
    assert equal(found, shapley.leave_up_to(judged.game("conv1"), 1, scaled=True))


def test_a_layer_of_one_filter_is_worth_all_that_the_layer_is_worth():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(196, CLASSES)).eval()
    judged = Coalitions(model, quadrants(60, 4), "loss")
    table = shapley.table(judged.game("0"))
    for estimate in (judged.permutation("0", 60, 1, Run())[0], judged.kernel("0", 60, Run())):
        assert estimate.tolist() == pytest.approx([(table[1] - table[0]).item()], abs=1e-6)


# the criterion


def test_the_criterion_is_the_estimate_of_every_layer(tiny_model, setting):
    chosen = CRITERIA["shapley"](permutations=4, group=3, images=20, payoff="loss")
    found = rank(chosen, tiny_model, setting, seed=3).scores
    with seeded(3):
        pictures = setting.validation.take(torch.randperm(24)[:20])
        judged = Coalitions(tiny_model, pictures, "loss")
        for layer, score in found.items():
            assert torch.equal(score, judged.permutation(layer, 2, 3, Run())[0].float())


def test_the_criterion_finds_a_filter_that_does_nothing_least_important_where_all_others_help(setting):
    torch.manual_seed(0)
    model = plain_network()
    with seeded(0):
        fit(
            model,
            setting.train,
            Classification(),
            Schedule(epochs=60, crop=0, flip=False, learning_rate=0.05),
            Run(),
        )
    model.conv2.weight[:, 3] = 0
    scores = rank(CRITERIA["shapley"](estimator="leave-one-out"), model, setting).scores["conv1"]
    assert scores[3] == 0
    exact = shapley.exact(Coalitions(model, setting.validation).game("conv1"))
    assert exact[3].item() == pytest.approx(0, abs=1e-12)
    assert exact.argmin() == 3


def test_a_network_that_cannot_be_followed_is_scored_as_it_is():
    setting = Setting(quadrants(24, 1), quadrants(24, 2), network("wandering"))
    for estimator in ("permutation", "kernel", "leave-one-out"):
        scores = rank(CRITERIA["shapley"](estimator=estimator), network("wandering"), setting).scores
        assert {name: len(score) for name, score in scores.items()} == {"conv": 5, "linear": CLASSES}
        assert all(score.isfinite().all() for score in scores.values())


def test_a_layer_that_takes_no_part_scores_zero(plain_model, tiny_data):
    class WithSpare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = plain_model, nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = WithSpare().eval().requires_grad_(False)
    setting = Setting(tiny_data.train, tiny_data.validation, model)
    scores = rank(CRITERIA["shapley"](payoff="loss"), model, setting).scores
    assert not scores["spare"].any()
    assert scores["used.conv1"].any()


# the labs


def shown(name: str, setting: Setting | None = None, **fields):
    with seeded(0):
        return {figure.title: figure for figure in LABS[name](**fields).figures(setting, Run())}


def test_the_game_lab_shows_the_known_values():
    figures = shown("shapley-game", filter0=False)
    values = figures["What each filter is worth"].table.pivot(
        index="filter", columns="estimator", values="value"
    )
    assert values["exact"].tolist() == pytest.approx([5, 5, 4, 0])
    assert values["permutation"].tolist() == pytest.approx([5, 5, 4, 0])
    assert values["leave one out"].tolist() == pytest.approx([0, 0, 4, 0])
    inspected = figures["One coalition"].table  # without its twin, filter 1 is worth all
    assert inspected.gain.tolist() == pytest.approx([0, 10, 4, 0])
    assert inspected.state.tolist() == ["absent", "present", "present", "present"]
    assert "5, 5, 4 and 0 points" in figures["What each filter is worth"].finding


def test_nothing_beats_the_oracle_in_the_ranks_lab(plain_model, tiny_data):
    setting = Setting(tiny_data.train, tiny_data.validation, plain_model)
    figures = shown("shapley-ranks", setting, layer=2, images=24)
    kept = figures["What rankings keep"].table.pivot(index="kept", columns="ranking", values="accuracy")
    assert (kept.drop(columns="oracle").sub(kept.oracle, axis=0) <= 1e-9).all(axis=None)
    bars = figures["What each filter is worth"].table
    wanted = shapley.exact(Coalitions(plain_model, tiny_data.validation).game("conv2"))
    assert bars[bars.estimator == "exact"].value.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    costs = figures["What an estimate costs and earns"].table
    assert costs[costs.estimator == "exact"].coalitions.tolist() == [2**5]
    assert (costs.coalitions <= 2**5).all()


def test_the_ranks_lab_says_that_many_filters_have_no_oracle(tiny_model, setting):
    figures = shown("shapley-ranks", setting, units=13, images=10, permutations=4)
    assert "oracle" not in set(figures["What rankings keep"].table.ranking)
    assert "the best sets are not known" in figures["What rankings keep"].finding
    few = shown("shapley-ranks", setting, units=5, images=10, permutations=4)
    assert few["What each filter is worth"].table["filter"].nunique() == 5


def test_the_ranks_lab_refuses_what_it_cannot_show(setting):
    with pytest.raises(ParameterError, match=r"layer must lie in \[1, 7\], got 8"):
        shown("shapley-ranks", setting, layer=8)
    lonely = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES)).eval()
    with pytest.raises(UnsupportedModelError, match="must have a layer in front of its logits, got none"):
        shown("shapley-ranks", Setting(setting.train, setting.validation, lonely))
    narrow = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(392, CLASSES)).eval()
    with pytest.raises(UnsupportedModelError, match="must have at least 3 filters, got 2"):
        shown("shapley-ranks", Setting(setting.train, setting.validation, narrow))


# what the paper shows, in small


SHAPLEY_LIKE = ("exact", "leave 2", "permutation 20", "kernel 200", "oracle rank")


@pytest.mark.slow
def test_estimates_of_small_layers_against_exact_values_and_the_best_sets(capsys):
    """Prints the tables of docs/methods/shapley.md: layers of ten filters, four trainings."""
    data = DATASETS["digits"]().load()
    rows: dict[str, dict[str, list[list[float]]]] = {"conv2": {}, "conv3": {}}
    for seed in range(4):
        with seeded(seed):
            model = MODELS["small-cnn"](width=5).build(data.shape, 10)
            schedule = Schedule(epochs=20, crop=0, flip=False, batch_size=64, learning_rate=0.05)
            fit(model, data.train, Classification(), schedule, Run())
            for layer, table in rows.items():
                setting = Setting(data.train, data.validation, model)
                for name, row in _compared(model, layer, setting, data.test).items():
                    table.setdefault(name, []).append(row)
    for layer, table in rows.items():
        means = {name: torch.tensor(found).double().mean(0).tolist() for name, found in table.items()}
        with capsys.disabled():
            print(f"\n| {layer} | coalitions | Spearman | overlap | mean accuracy | with 5 of 10 |")
            for name, (asked, spearman, overlap, accuracy, half) in means.items():
                print(
                    f"| {name} | {asked:.0f} | {spearman:.2f} | {overlap:.2f} | {accuracy:.1%} | {half:.1%} |"
                )
        assert means["exact"][1] == pytest.approx(1)
        assert means["permutation 20"][1] > means["permutation 4"][1]
        assert means["kernel 200"][1] > means["kernel 50"][1]
        for name in SHAPLEY_LIKE:
            assert means["random"][3] + 0.05 < means[name][3] < means["oracle sets"][3], name


def _compared(model: nn.Module, layer: str, setting: Setting, test: Split) -> dict[str, list[float]]:
    """Ranking -> coalitions, Spearman with exact, overlap with the oracle, test accuracy (mean, half-way)."""
    judged, reported = (Coalitions(model, split).game(layer) for split in (setting.validation, test))
    n, worth = judged.players, shapley.table(judged)
    sets, exact = shapley.oracle(worth), shapley.of_table(worth)
    estimators = {
        "exact": shapley.exact,
        "leave 1": lambda game: shapley.leave_up_to(game, 1),
        "leave 2": lambda game: shapley.leave_up_to(game, 2),
        "permutation 4": lambda game: shapley.permutation(game, 2)[0],
        "permutation 20": lambda game: shapley.permutation(game, 10)[0],
        "kernel 50": lambda game: shapley.kernel(game, 50),
        "kernel 200": lambda game: shapley.kernel(game, 200),
        "uniform regression 200": lambda game: shapley.uniform_regression(game, 200),
    }
    found = {}
    for name, estimator in estimators.items():
        asked = Game(judged, n)
        found[name] = estimator(asked), asked.evaluations
    found["oracle rank"] = -shapley.oracle_order(sets, exact).argsort().double(), 2**n
    for name in ("filter-l1", "filter-l2", "taylor"):
        found[name] = CRITERIA[name]().filter_scores(model, setting, Run())[layer].double(), 0

    def row(scores: Tensor, asked: int) -> list[float]:
        order = shapley.order_of(scores)
        accuracy = reported(order.argsort() < torch.arange(1, n)[:, None])
        spearman = spearmanr(exact, scores).statistic
        overlap = shapley.agreement(order, sets, n - 1)
        return [asked, spearman, overlap, accuracy.mean().item(), accuracy[n // 2 - 1].item()]

    table = {name: row(*some) for name, some in found.items()}
    table["random"] = torch.tensor([row(torch.rand(n), 0) for _ in range(20)]).double().mean(0).tolist()
    best = reported(sets[1:-1])
    return table | {"oracle sets": [2**n, math.nan, 1.0, best.mean().item(), best[n // 2 - 1].item()]}
