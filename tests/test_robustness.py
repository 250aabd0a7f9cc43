"""Robustness of a picture, its bounds and its attack, against samples, the network itself and brute force."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from core.bundles import Split
from core.errors import ParameterError, Stopped
from core.properties.robustness import Robustness, pixels
from core.proving import branching
from core.proving.attack import attack
from core.proving.bounds import crown, intervals
from core.proving.network import ReluNetwork, unroll
from core.proving.prove import prove
from core.proving.question import Deadline, Question
from core.proving.slopes import tightened
from core.run import Run
from core.weights import load_dataset, load_model

SAMPLES = 10_000
SLOP = 1e-9  # of sums in double precision


def random_network(seed: int, widths=(3, 5, 4, 2)) -> ReluNetwork:
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    weights = tuple(numbers(o, i) for i, o in itertools.pairwise(widths))
    return ReluNetwork(weights, tuple(numbers(o) for o in widths[1:]))


def sampled(low: torch.Tensor, high: torch.Tensor, count: int = SAMPLES) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return low + (high - low) * torch.rand(count, low.shape[-1], generator=random, dtype=torch.float64)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def model(digits) -> nn.Module:
    return load_model("mlp:hidden=24", digits).module


def picture(digits, index: int) -> Split:
    return digits.test.take(slice(index, index + 1))


# ------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bound", [intervals, crown])
def test_bounds_hold_for_every_sampled_input_of_every_box(seed, bound):
    network, random = random_network(seed), torch.Generator().manual_seed(seed)
    centre = torch.randn(4, 3, generator=random, dtype=torch.float64)
    low, high = centre - 0.4, centre + 0.4
    found = bound(network, low, high)
    for box in range(4):
        *hidden, margins = network.preactivations(sampled(low[box], high[box]))
        for z, least, most in zip(hidden, found.lows, found.highs, strict=True):
            assert (z >= least[box] - SLOP).all()
            assert (z <= most[box] + SLOP).all()
        assert (margins >= found.margins[box] - SLOP).all()


@pytest.mark.parametrize("seed", range(5))
def test_linear_bounds_are_never_wider_than_intervals_and_shrink_with_the_box(seed):
    network, centre = random_network(seed), torch.zeros(1, 3, dtype=torch.float64)
    wide, narrow = (crown(network, centre - r, centre + r) for r in (0.5, 0.3))
    plain = intervals(network, centre - 0.5, centre + 0.5)
    for tight, loose in zip((*narrow.lows, narrow.margins), (*wide.lows, wide.margins), strict=True):
        assert (tight >= loose - SLOP).all()
    for tight, loose in zip((*wide.lows, wide.margins), (*plain.lows, plain.margins), strict=True):
        assert (tight >= loose - SLOP).all()
    for tight, loose in zip(wide.highs, plain.highs, strict=True):
        assert (tight <= loose + SLOP).all()


def test_a_box_that_is_a_point_is_bounded_by_what_the_network_answers():
    network, x = random_network(0), torch.randn(1, 3, dtype=torch.float64)
    found = crown(network, x, x)
    *hidden, margins = network.preactivations(x)
    assert torch.allclose(found.margins, margins)
    assert all(torch.allclose(low, z) for low, z in zip(found.lows, hidden, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_bounds_under_phases_hold_for_the_inputs_that_have_them_and_emptiness_is_no_accident(seed):
    network = random_network(seed, (2, 3, 3, 1))
    low, high = torch.full((1, 2), -1.0).double(), torch.full((1, 2), 1.0).double()
    x = sampled(low[0], high[0])
    *hidden, margins = network.preactivations(x)
    choices = torch.tensor(list(itertools.product((-1, 0, 1), repeat=6)), dtype=torch.int8)
    found = crown(network, low, high, choices.split(3, dim=1))
    for row, choice in enumerate(choices):
        signs = torch.cat(hidden, 1).sign()
        fits = ((choice == 0) | (signs == choice)).all(1)
        assert not (fits.any() and found.empty[row])
        assert (margins[fits] >= found.margins[row] - SLOP).all()
        for z, least, most in zip(hidden, found.lows, found.highs, strict=True):
            assert (z[fits] >= least[row] - SLOP).all()
            assert (z[fits] <= most[row] + SLOP).all()
    assert found.empty.any()
    assert torch.isinf(found.margin[found.empty]).all()


# ------------------------------------------------------------------------------------ counterexamples


def test_an_attack_finds_what_sampling_finds_and_only_counterexamples():
    found = 0
    for seed in range(40):
        network = random_network(seed, (3, 6, 6, 1))
        question = Question(network, torch.full((3,), -1.0).double(), torch.full((3,), 1.0).double())
        seen = attack(question)
        by_chance = (question.margin(sampled(question.low, question.high)) <= 0).any()
        assert seen is not None or not by_chance
        if seen is not None:
            found += 1
            assert question.violated_by(seen)
    assert 5 < found < 40


def test_an_input_outside_the_box_is_no_counterexample():
    network = ReluNetwork((torch.ones(1, 1).double(),), (torch.zeros(1).double(),))
    question = Question(network, torch.tensor([0.5]).double(), torch.tensor([1.0]).double())
    assert not question.violated_by(torch.tensor([-1.0]).double())
    assert prove(question, Deadline(5.0)).status == "proved"


# ---------------------------------------------------------------------------------------- the property


@pytest.mark.parametrize("index", range(8))
def test_a_verdict_is_that_of_samples_and_of_every_smaller_radius(model, digits, index):
    here, last = picture(digits, index), "proved"
    for radius in (0.0, 0.03, 0.06, 0.1, 0.2):
        verdict = Robustness(radius=radius).check(model, here, Run())
        assert verdict.status != "unknown"
        assert last == "proved" or verdict.status == "refuted"
        last, x = verdict.status, pixels(here)
        if verdict.status == "proved":
            near = sampled((x - radius).clamp(0, 1), (x + radius).clamp(0, 1), 2000)
            shown = ((near - digits.test.mean[0]) / digits.test.std[0]).view(-1, 1, 8, 8).float()
            assert (model(shown).argmax(1) == here.labels[0]).all()
            assert len(verdict.answers) == 9
        else:
            broken = verdict.counterexample
            assert (broken - x.view_as(broken)).abs().max() <= radius + 1e-12
            assert broken.min() >= 0
            assert broken.max() <= 1
            shown = ((broken - digits.test.mean[0]) / digits.test.std[0])[None].float()
            assert model(shown).argmax(1) != here.labels[0]


def test_a_picture_that_is_answered_wrongly_is_its_own_counterexample(model, digits):
    wrong = next(i for i in range(360) if model(picture(digits, i).images).argmax() != digits.test.labels[i])
    verdict = Robustness(radius=0.0).check(model, picture(digits, wrong), Run())
    assert verdict.status == "refuted"
    assert verdict.predicted != verdict.label
    assert torch.equal(verdict.counterexample.flatten(), pixels(picture(digits, wrong)))
    assert verdict.answers == {}


def test_the_runner_up_alone_is_asked_about_on_request(model, digits):
    here = picture(digits, 3)
    order = model(here.images)[0].argsort(descending=True).tolist()
    verdict = Robustness(radius=0.03, classes="runner-up").check(model, here, Run())
    assert list(verdict.answers) == [order[1]]
    assert order[0] == verdict.label


def test_questions_of_single_classes_have_the_margins_of_the_network(model, digits):
    network = unroll(model, digits.shape).behind(digits.test.mean, digits.test.std)
    x = pixels(picture(digits, 0))[None]
    logits = model(picture(digits, 0).images)[0].double()
    expected = torch.stack([logits[2] - logits[other] for other in (7, 1)])
    assert torch.allclose(network.margins(2, [7, 1])(x)[0], expected, atol=1e-4)


def test_the_proof_of_one_network_helps_with_another_and_must_be_about_the_same_ball(model, digits):
    torch.manual_seed(0)
    other = unroll(model, digits.shape)
    changed = nn.Sequential(nn.Flatten(), *_layers(other, 0.01)).eval()
    check, here = Robustness(radius=0.08), picture(digits, 4)
    first = check.check(model, here, Run())
    helped, alone = (check.check(changed, here, Run(), proof) for proof in (first.proof, None))
    assert helped.status == alone.status == "proved"
    assert sum(a.reuse.valid for a in helped.answers.values() if a.reuse) > 0
    assert all(a.reuse is None for a in alone.answers.values())
    assert replace(check, radius=0.05).check(changed, here, Run(), first.proof).status == "proved"
    with pytest.raises(ParameterError, match="a radius at least as large"):
        replace(check, radius=0.1).check(changed, here, Run(), first.proof)
    with pytest.raises(ParameterError, match="about the same picture"):
        check.check(changed, picture(digits, 5), Run(), first.proof)


def _layers(network: ReluNetwork, noise: float) -> list[nn.Module]:
    layers = []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        layer = nn.Linear(*weight.shape[::-1])
        layer.weight.data = (weight + noise * torch.randn_like(weight)).float()
        layer.bias.data = bias.float()
        layers += [layer, nn.ReLU()]
    return layers[:-1]


def test_an_old_counterexample_is_tried_before_anything_else(model, digits):
    check, here = Robustness(radius=0.12), picture(digits, 2)
    first = check.check(model, here, Run())
    again = check.check(model, here, Run(), first.proof)
    assert torch.equal(again.counterexample, first.counterexample)


def test_without_time_a_verdict_is_unknown_where_bounds_do_not_tell(digits):
    model = load_model("mlp", digits).module
    verdict = Robustness(radius=0.08, seconds=0.1).check(model, picture(digits, 10), Run())
    assert verdict.status in ("unknown", "proved")
    question = next(a.proof.question for a in verdict.answers.values() if a.work)
    assert prove(question, Deadline(0.0)).status == "unknown"


def test_ranges_are_looked_for_once_for_all_classes_of_a_picture(digits, monkeypatch):
    asked = []

    def counted(*given):
        asked.append(given)
        return tightened(*given)

    monkeypatch.setattr(branching, "tightened", counted)
    verdict = Robustness(radius=0.08).check(load_model("mlp", digits).module, picture(digits, 1), Run())
    assert sum(answer.work.get("nodes", 0) > 0 for answer in verdict.answers.values()) > 1
    assert len(asked) == 1


def test_a_reader_who_leaves_is_heard_in_the_middle_of_a_search(digits):
    def leave(progress):
        raise Stopped

    model = load_model("mlp", digits).module
    with pytest.raises(Stopped):
        Robustness(radius=0.08, seconds=30.0).check(model, picture(digits, 10), Run(leave))


def test_more_than_one_picture_is_refused(model, digits):
    with pytest.raises(ParameterError, match="robustness: must be asked for one picture, got 2"):
        Robustness().check(model, digits.test.take(slice(0, 2)), Run())


@pytest.mark.parametrize(("low", "high"), [([0.0], [float("nan")]), ([float("inf")], [1.0]), ([1.0], [0.0])])
def test_a_box_must_be_one(low, high):
    network = ReluNetwork((torch.ones(1, 1).double(),), (torch.zeros(1).double(),))
    with pytest.raises(ParameterError, match="proof: the box must"):
        Question(network, torch.tensor(low).double(), torch.tensor(high).double())
