"""Learning from feature maps: factors, attention and hints, against numbers worked out by hand."""

import copy
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import TinyResNet, quadrants
from torch import nn
from torch.nn import functional as F

from bench.transfer import table
from core import paraphraser
from core.bundles import DATASETS, MODELS, Setting
from core.cost import cost
from core.errors import ParameterError, TrainingError, UnsupportedModelError
from core.lab import LABS
from core.labs.paraphraser import linear_codes
from core.memory import Memory
from core.methods.fine_tuning import FineTuning
from core.objective import OBJECTIVES
from core.objectives.fitnet import explained, regressor
from core.paraphraser import (
    ENOUGH,
    Paraphraser,
    Paraphrasing,
    factor_channels,
    paraphrase,
    paraphrase_of,
    translator,
)
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run, seeded
from core.training import Classification, Schedule, fit
from core.transfer import Taught, attention, factor_cosine, factor_distance, shared_layers

QUICK = {"epochs": 2, "batch_size": 16, "crop": 0}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Paraphrasers of other tests are not remembered."""
    monkeypatch.setattr(paraphraser, "_PARAPHRASES", Memory(limit=16))


def maps(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).view(1, -1, 1, 1)


def noise(count, channels, side, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, side, side, generator=random, dtype=dtype)


def count(module):
    return sum(p.numel() for p in module.parameters())


# ------------------------------------------------------------------------------------- the distance


@pytest.mark.parametrize(
    ("first", "second", "l1", "l2"),
    [
        ((3, 4), (4, 3), 0.2, 0.04),
        ((3, 4, 0, 0), (0, 0, 1, 0), 0.6, 0.5),
        ((3, 4, 0, 0), (-3, -4, 0, 0), 0.7, 1.0),
        ((3, 4, 0, 0), (21, 28, 0, 0), 0.0, 0.0),
        ((0, 0), (3, 4), 0.7, 0.5),
    ],
)
def test_factor_distances_that_were_worked_out_by_hand(first, second, l1, l2):
    for norm, expected in (("l1", l1), ("l2", l2)):
        assert factor_distance(maps(*first), maps(*second), norm).item() == pytest.approx(expected, abs=1e-12)
        assert factor_distance(maps(*second), maps(*first), norm).item() == pytest.approx(expected, abs=1e-12)


def test_independent_factors_of_2048_numbers_are_0_0249_apart():
    first, second = noise(64, 32, 8, 0), noise(64, 32, 8, 1)
    assert factor_distance(first, second).item() == pytest.approx(2 / math.sqrt(math.pi * 2048), abs=5e-4)
    assert 2 / math.sqrt(math.pi * 2048) == pytest.approx(0.0249, abs=5e-5)


@pytest.mark.parametrize(("norm", "bound"), [("l1", lambda d: 2 / math.sqrt(d)), ("l2", lambda d: 4 / d)])
def test_factor_distances_ignore_strength_and_are_bounded(norm, bound):
    first, second = noise(5, 3, 4, 2), noise(5, 3, 4, 3)
    found = factor_distance(first, second, norm)
    scaled = factor_distance(0.01 * first, torch.arange(1, 6).view(5, 1, 1, 1) * second, norm)
    assert scaled.item() == pytest.approx(found.item())
    assert 0 < found.item() < bound(48)
    worst = torch.sign(first)
    assert factor_distance(worst, -worst, norm).item() == pytest.approx(bound(48))
    assert factor_distance(first, 7 * first, norm).item() == pytest.approx(0, abs=1e-15)


def test_its_gradient_is_that_of_finite_differences():
    target, start = noise(2, 2, 3, 4), noise(2, 2, 3, 5).requires_grad_()
    for norm in ("l1", "l2"):
        assert torch.autograd.gradcheck(lambda x, n=norm: factor_distance(target, x, n), start, eps=1e-6)


def test_factors_of_zeros_have_no_direction_and_break_nothing():
    zeros = torch.zeros(2, 3, 4, 4, requires_grad=True)
    distance = factor_distance(noise(2, 3, 4, dtype=torch.float32), zeros)
    distance.backward()
    assert distance.isfinite()
    assert zeros.grad.isfinite().all()
    assert factor_cosine(zeros, zeros).tolist() == [0.0, 0.0]
    assert factor_cosine(maps(3, 4), maps(4, 3)).item() == pytest.approx(0.96)


# ---------------------------------------------------------------------------- the shapes of modules


@pytest.mark.parametrize(
    ("channels", "rate", "parameters"),
    [
        (64, 0.5, 129_312),
        (64, 0.75, 170_832),
        (64, 1.0, 221_568),
        (64, 2.0, 516_672),
        (64, 4.0, 1_549_248),
        (512, 0.5, 8_259_840),
    ],
)
def test_paraphrasers_have_the_parameters_of_the_published_ones(channels, rate, parameters):
    with torch.device("meta"):
        made = Paraphraser(channels, factor_channels(channels, rate))
    assert count(made) == parameters


def test_every_layer_has_the_parameters_of_the_published_ones():
    made = Paraphraser(64, 32)
    assert [count(layer) for layer in made.encoder[::2]] == [36_928, 18_464, 9_248]
    assert [count(layer) for layer in made.decoder[::2]] == [9_248, 18_496, 36_928]
    assert [count(layer) for layer in translator(64, 32)[::2]] == [36_928, 18_464, 9_248]
    assert all(layer.negative_slope == 0.1 for layer in (*made.encoder[1::2], *made.decoder[1::2]))
    assert len(made.encoder) == len(made.decoder) == 6  # also behind the last


def test_maps_keep_their_size_and_factors_have_their_channels():
    assert [factor_channels(64, rate) for rate in (0.5, 0.75, 4.0, 0.001)] == [32, 48, 256, 1]
    made, x = Paraphraser(6, 3), noise(2, 6, 5, dtype=torch.float32)
    assert made.factors(x).shape == (2, 3, 5, 5)
    assert made(x).shape == x.shape
    assert translator(4, 3)(x[:, :4]).shape == (2, 3, 5, 5)


def test_signals_keep_their_size_through_fresh_convolutions():
    """With torch's own weights, which are uniform, less than a twentieth of it comes out."""
    with seeded(0):
        made, x = Paraphraser(64, 32), torch.randn(4, 64, 8, 8)

        def comes_out():
            return (made(x).std() / x.std()).item()

        assert 0.3 < comes_out() < 3
        for layer in (*made.encoder[::2], *made.decoder[::2]):
            layer.reset_parameters()
        assert comes_out() < 0.05


# ---------------------------------------------------------------------------------- the paraphraser


def sparse(n, channels=8, side=6, seed=0):
    """Maps with structure: two patterns over the channels, mostly zeros, as behind a ReLU."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.rand(2, channels, generator=torch.Generator().manual_seed(9))
    amounts = F.relu(torch.randn(n, 2, side, side, generator=random) - 0.8)
    return torch.einsum("npij,pc->ncij", amounts, patterns)


def test_a_paraphraser_learns_what_fits_through_and_says_so():
    with seeded(0):
        made = paraphrase(sparse(256), sparse(32, seed=1), Paraphrasing(epochs=12), Run())
    assert made.trained
    assert made.error < 0.5 < made.errors[0]
    assert made.error == made.errors[-1]
    assert len(made.errors) == 13
    assert "under-trained" not in made.verdict
    assert not any(p.requires_grad for p in made.paraphraser.parameters())


def test_a_paraphraser_that_stays_at_zeros_is_called_under_trained():
    with seeded(0):
        made = paraphrase(
            sparse(64),
            sparse(32, seed=1),
            Paraphrasing(reconstruction="l1", optimizer="sgd", epochs=2),
            Run(),
        )
    assert made.zeros > 1
    assert made.error > 0.9
    assert not made.trained
    assert made.verdict.startswith("Paraphraser under-trained")


def test_on_sparse_maps_zeros_look_good_in_absolute_errors_and_never_in_squared_ones():
    """Why the error that decides is squared: of maps that are 0 or 1 a share p is 1. Zeros miss p, means
    miss 2 p (1 - p) in absolute errors, which is more than p / 0.6 for p below a sixth."""
    x = (torch.rand(200, 1, 10, 10, generator=torch.Generator().manual_seed(0)) < 0.1).double()
    p = x.mean()
    absolute = (x.abs().mean() / (x - p).abs().mean()).item()
    assert absolute == pytest.approx(1 / (2 * (1 - p.item())))
    assert absolute < ENOUGH
    squared = paraphraser._share(torch.zeros_like(x), x, x)
    assert squared == pytest.approx(1 / (1 - p.item()))
    assert squared > 1


def test_errors_are_relative_to_the_means_of_channels():
    x = noise(20, 3, 4) + torch.tensor([5.0, 0.0, -2.0]).view(1, 3, 1, 1)
    assert paraphraser._share(x.mean((0, 2, 3), keepdim=True), x, x) == pytest.approx(1)
    assert paraphraser._share(x, x, x) == 0
    assert paraphraser._share(x[:1], x[:1] * 0 + 1, x * 0 + 1) == 1  # nothing varies


def test_paraphrasers_read_no_labels_and_take_no_random_number_of_the_callers(setting):
    def train(of):
        paraphraser._PARAPHRASES.__init__(limit=16)
        with seeded(3):
            torch.rand(1)
            state = torch.get_rng_state()
            made = paraphrase_of(of.teacher, "layer2", of, Paraphrasing(epochs=2), Run())
            assert torch.equal(torch.get_rng_state(), state)
        return made

    shuffled = replace(setting.train, labels=setting.train.labels.flip(0))
    first, second = train(setting), train(replace(setting, train=shuffled))
    assert first is not second
    assert first.errors == second.errors
    for a, b in zip(first.paraphraser.parameters(), second.paraphraser.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_paraphraser_is_trained_once_for_a_network_its_pictures_and_a_seed(setting):
    def ask(seed=0, **how):
        with seeded(seed):
            return paraphrase_of(setting.teacher, "layer2", setting, Paraphrasing(epochs=1, **how), Run())

    first = ask()
    assert ask() is first
    assert ask(seed=1) is not first
    assert ask(rate=0.25) is not first
    setting.teacher.linear.bias.data += 1
    assert ask() is not first


def test_maps_that_are_not_finite_are_refused_with_a_sentence():
    broken = sparse(20)
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingError, match="training: the loss became nan in epoch 1"):
        paraphrase(broken, sparse(4), Paraphrasing(epochs=1), Run())


def test_a_translator_alone_can_learn_the_factors_of_one_batch():
    with seeded(0):
        made, teach = Paraphraser(8, 4), translator(6, 4)
        taught, own = made.factors(sparse(32)).detach(), F.relu(noise(32, 6, 6, dtype=torch.float32))
        optimizer = torch.optim.Adam(teach.parameters(), 0.003)
        losses = []
        for _ in range(300):
            losses.append(factor_distance(taught, teach(own)))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


# -------------------------------------------------------------------------- attention and hints


def test_attention_says_where_channels_are_strong_whichever_they_are():
    x = torch.tensor([[[[3.0, 0.0]], [[0.0, -4.0]]]])  # two channels, two places: squares 9 and 16
    norm = math.hypot(9, 16)
    assert attention(x)[0].tolist() == pytest.approx([9 / norm, 16 / norm])
    assert attention(x, 1.0)[0].tolist() == pytest.approx([3 / 5, 4 / 5])
    y = noise(4, 5, 6)
    assert torch.allclose(attention(y), attention(y[:, [3, 1, 4, 0, 2]] * 7))
    published = F.normalize(y.pow(2).mean(1).flatten(1))  # of the authors' code
    assert torch.allclose(attention(y), published)
    assert torch.equal(attention(torch.zeros(1, 2, 3, 3)), torch.zeros(1, 9))


def test_attention_transfer_sums_the_mean_squared_differences_of_layers(setting):
    objective, images = OBJECTIVES["attention-transfer"]().preset("paper"), setting.train.images
    with seeded(0):
        student = TinyResNet(width=4).eval()
        task = objective.bind(student, setting, Schedule(), Run())
        terms = task.terms(student, images, setting.train.labels)
    x = {}
    for name, network in (("teacher", setting.teacher), ("student", student)):
        first = network.layer1(network.relu(network.bn1(network.conv1(images))))
        x[name] = [F.normalize(a.pow(2).mean(1).flatten(1)) for a in (first, network.layer2(first))]
    expected = sum((t - s).pow(2).mean() for t, s in zip(x["teacher"], x["student"], strict=True))
    assert terms["transfer"].item() == pytest.approx(1000 * expected.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx((terms["transfer"] + terms["supervised"]).item())
    assert terms["supervised"].item() == pytest.approx(
        F.cross_entropy(student(images), setting.train.labels).item(), rel=1e-5
    )


def test_hints_are_relative_errors_of_a_regressor(setting):
    images = setting.train.take(slice(0, 32)).images
    objective = OBJECTIVES["fitnet"](weight=3.0, hint="last")
    with seeded(0):
        student = TinyResNet(width=4).eval()
        task = objective.bind(student, setting, Schedule(), Run())
        before = task.partners[0][0].weight.clone()
        terms = task.terms(student, images, setting.train.labels[:32])
        nn.init.zeros_(task.partners[0][0].weight)
        nn.init.zeros_(task.partners[0][0].bias)
        nothing = task.terms(student, images, setting.train.labels[:32])
    assert nothing["transfer"].item() == pytest.approx(3.0, rel=1e-4)
    assert terms["transfer"].item() != pytest.approx(3.0, rel=1e-3)
    assert before.shape == (16, 8, 1, 1)
    assert isinstance(task.partners[0][1], nn.ReLU)
    assert len(regressor(3, noise(1, 2, 2))) == 1  # maps that may be negative


def test_what_a_linear_reading_explains_is_what_least_squares_explains():
    own = noise(40, 3, 4)
    mixing = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
    exact = torch.einsum("nchw,kc->nkhw", own, mixing) + 5
    half = torch.cat([exact[:, :1], exact[:, 1:] + math.sqrt(2) * noise(40, 1, 4, seed=1)], dim=1)
    found = explained(own, torch.cat([half, noise(40, 1, 4, seed=2), torch.ones(40, 1, 4, 4)], dim=1))
    assert found[0].item() == pytest.approx(1)
    assert found[1].item() == pytest.approx(0.5, abs=0.1)
    assert found[2].item() == pytest.approx(0, abs=0.02)
    assert found[3].item() == 0


# ------------------------------------------------------------------------------------- the training


def test_layers_are_paired_by_the_size_of_their_maps(setting):
    images = setting.train.images[:2]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))
    assert shared_layers("x", setting.teacher, TinyResNet(width=2), images) == [
        ("layer1", "layer1"),
        ("layer2", "layer2"),
    ]
    assert shared_layers("x", setting.teacher, plain, images) == [("layer2", "1")]
    training = TinyResNet().train()
    before = copy.deepcopy(training.state_dict())
    shared_layers("x", setting.teacher, training, images)
    assert training.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in training.state_dict().items())
    odd = nn.Sequential(nn.Conv2d(3, 4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 4))
    with pytest.raises(
        UnsupportedModelError, match=r"^x: the model must have feature maps of a size .*, got \["
    ):
        shared_layers("x", setting.teacher, odd, images)


@pytest.mark.parametrize("name", ["attention-transfer", "fitnet", "factor-transfer"])
def test_with_weight_zero_it_is_plain_training_bit_for_bit(name, setting):
    steps = [COMPRESSORS["student"](width=0.5)]
    plain, taught = (
        compress(setting.teacher, setting, Recipe((*steps, FineTuning(**QUICK, objective=objective)))).model
        for objective in (OBJECTIVES["labels"](), OBJECTIVES[name](weight=0.0))
    )
    for key, value in plain.state_dict().items():
        assert torch.equal(value, taught.state_dict()[key]), key


def test_with_share_zero_answers_are_not_listened_to(setting):
    plain, taught = (
        compress(setting.teacher, setting, Recipe((FineTuning(**QUICK, objective=objective),))).model
        for objective in (OBJECTIVES["labels"](), OBJECTIVES["distillation"](share=0.0))
    )
    assert all(torch.equal(v, taught.state_dict()[k]) for k, v in plain.state_dict().items())


def test_a_copy_with_the_paraphrasers_encoder_has_nothing_to_learn_from_factors(setting):
    with seeded(0):
        task = OBJECTIVES["factor-transfer"]().bind(setting.teacher, setting, Schedule(), Run())
    made = task._made.paraphraser

    class Scaled(nn.Module):
        def forward(self, x):
            return made.factors(x)

    task.partners[0] = Scaled()
    student = copy.deepcopy(setting.teacher)
    terms = task.terms(student, setting.train.images, setting.train.labels)
    assert terms["transfer"].item() == pytest.approx(0, abs=1e-4)
    assert task._match(student) == pytest.approx(1, abs=1e-5)


def test_the_weight_means_the_same_for_factors_of_any_size(setting):
    """layer2 has 16 maps of 8 x 8: D is 512 at rate 0.5, a quarter of what the weight was chosen for."""
    with seeded(0):
        task = OBJECTIVES["factor-transfer"](weight=500.0).bind(setting.teacher, setting, Schedule(), Run())
        one = OBJECTIVES["factor-transfer"](rate=2.0).bind(setting.teacher, setting, Schedule(), Run())
    assert task.weight == pytest.approx(250)
    assert one.weight == pytest.approx(500)


def test_teacher_and_paraphraser_stay_as_they_are_and_leave_nothing_behind(setting):
    with seeded(0):
        student, run = TinyResNet(width=4), Run()
        task = OBJECTIVES["factor-transfer"]().bind(student, setting, Schedule(**QUICK), run)
        frozen = {"teacher": task.teacher, "paraphraser": task._made.paraphraser}
        before = {name: copy.deepcopy(network.state_dict()) for name, network in frozen.items()}
        learns = copy.deepcopy(task.partners.state_dict())
        fit(student, setting.train, task, Schedule(**QUICK), run)
    for name, network in frozen.items():
        assert all(torch.equal(v, before[name][k]) for k, v in network.state_dict().items()), name
        assert all(p.grad is None for p in network.parameters())
        assert not any(module.training for module in network.modules())
    assert not torch.equal(task.partners.state_dict()["0.0.weight"], learns["0.0.weight"])
    assert not any(module._forward_hooks for module in student.modules())
    assert cost(student, setting.train.images[:1]).parameters == count(TinyResNet(width=4))


def test_records_say_how_well_factors_match_and_whether_they_are_worth_it(setting):
    run = Run()
    objective = OBJECTIVES["factor-transfer"](
        reconstruction="l1", paraphraser_optimizer="sgd", paraphraser_epochs=1, paraphraser_images=16
    )
    recipe = Recipe((COMPRESSORS["student"](), FineTuning(**QUICK, objective=objective)))
    figures = compress(setting.teacher, setting, recipe, run, figures=True).figures[-1]
    assert [row["epoch"] for row in run.records] == [1, 2]
    assert all(row["paraphraser_under_trained"] == 1.0 for row in run.records)
    assert run.records[0]["paraphraser_error"] >= ENOUGH
    (curve,) = [figure for figure in figures if figure.title.startswith("Reconstruction")]
    assert curve.finding.startswith("Paraphraser under-trained")
    (match,) = [figure for figure in figures if figure.title == "Factor match"]
    assert match.table.factor_cosine.tolist() == [
        run.records[0]["factor_cosine_before"],
        *(row["factor_cosine"] for row in run.records),
    ]


@pytest.mark.parametrize("name", ["distillation", "attention-transfer", "fitnet", "factor-transfer"])
def test_a_student_that_learned_is_nearer_to_the_original_in_the_objectives_own_figure(name):
    """Half a trained network's channels, on data that both can learn."""
    data = quadrants(192, seed=1)
    with seeded(0):
        teacher = TinyResNet()
        fit(teacher, data, Classification(), Schedule(epochs=3, batch_size=16, crop=0, flip=False), Run())
    setting = Setting(data, quadrants(64, seed=2), teacher)
    step = FineTuning(epochs=3, batch_size=16, crop=0, learning_rate=0.05, objective=OBJECTIVES[name]())
    run = Run()
    shown = compress(teacher, setting, Recipe((COMPRESSORS["student"](), step)), run, figures=True).figures[
        -1
    ]
    if name == "factor-transfer":
        last = run.records[-1]
        assert last["factor_cosine"] >= last["factor_cosine_before"] + 0.3
        return
    table = shown[0].table
    column = {"distillation": "apart", "attention-transfer": "cosine", "fitnet": "explained"}[name]
    means = table.groupby("network")[column].mean()
    better = means["before"] - means["after"] if name == "distillation" else means["after"] - means["before"]
    assert better > 0


def test_taught_without_layers_only_listens_to_answers(setting):
    images, labels = setting.train.images[:4], setting.train.labels[:4]
    task = Taught(setting.teacher, share=1.0, temperature=4.0, smoothing=0.0)
    assert task.terms(setting.teacher, images, labels)["loss"].item() == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("field", "value"),
    [("rate", 0.0), ("rate", math.nan), ("weight", -1.0), ("weight", math.inf), ("norm", "l3")],
)
def test_wrong_parameters_are_refused_with_a_sentence(field, value):
    with pytest.raises(ParameterError, match=rf"^factor-transfer: {field} must .*, got "):
        OBJECTIVES["factor-transfer"](**{field: value})


# ------------------------------------------------------------------------------------------- the lab


def test_linear_codes_are_principal_components():
    """Against the singular values of the centred places."""
    x = noise(30, 5, 4) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1]).view(1, 5, 1, 1).double() + 1
    places = x.movedim(1, -1).flatten(0, 2)
    s = torch.linalg.svdvals(places - places.mean(0)).square()
    expected = 1 - torch.cat([s.new_zeros(1), s.cumsum(0)]) / s.sum()
    assert torch.allclose(linear_codes(x, x), expected, atol=1e-10)


def test_the_lab_shows_a_good_paraphraser_beside_a_collapsed_one():
    """On a small network for the digits, trained here."""
    data = DATASETS["digits"]().load()
    with seeded(0):
        network = MODELS["small-cnn"](width=4).build(data.shape, len(data.classes))
        few = data.train.take(slice(0, 512))
        fit(network, few, Classification(), Schedule(epochs=3, crop=0, flip=False), Run())
        shown = LABS["paraphraser"]().figures(Setting(data.train, data.validation, network), Run())
    errors = shown[0].table.groupby("code").error.min()
    assert errors["yours"] < ENOUGH < errors["L1 with SGD"]


def test_the_lab_needs_feature_maps(setting):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    with pytest.raises(
        UnsupportedModelError, match="paraphraser: the model must have feature maps, got none"
    ):
        LABS["paraphraser"]().figures(replace(setting, teacher=flat), Run())


# ------------------------------------------------------------------------------------ the comparison


def test_the_comparison_counts_gains_over_plain_training_seed_by_seed():
    accuracies = {"CE": (0.5, 0.6), "FT": (0.6, 0.8)}
    rows = [
        {"way": way, "seed": seed, "accuracy": value, "seconds": 1.0}
        for way, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    found = table(pd.DataFrame(rows)).loc["FT"]
    assert found.accuracy == pytest.approx(0.7)
    assert found.spread == pytest.approx(0.1 * math.sqrt(2))
    assert found.gain == pytest.approx(0.15)
    assert found.gain_spread == pytest.approx(0.05 * math.sqrt(2))
