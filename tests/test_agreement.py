"""Agreement, localisation and faithfulness, against scipy, scikit-learn and definitions written out."""

import math

import numpy
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from core.agreement import agreement, noise_ceiling, random_floor, randomised, ranks, ssim, state
from core.attribution import ATTRIBUTIONS, explain
from core.errors import ParameterError
from core.faithfulness import curve, faithfulness, infidelity, sensitivity
from core.localisation import localisation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")


def maps_like(count: int = 4, side: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def one(plane: list[list[float]]) -> Tensor:
    """A single-channel map of one image."""
    return torch.tensor(plane)[None, None]


# Agreement.


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_identical_maps_agree_exactly(scale):
    maps = maps_like().double() * scale
    result = agreement(maps, maps.clone())
    assert result.means() == {"spearman": 1.0, "cosine": 1.0, "overlap": 1.0, "peak_shift": 0.0, "ssim": 1.0}
    assert f"{result.means()['spearman']:.17g}" == "1"


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_equals_scipys(ties):
    a, b = maps_like(seed=1), maps_like(seed=2) + maps_like(seed=1)
    if ties:
        a, b = a.round(), b.round()
    expected = [
        stats.spearmanr(x.sum(0).abs().flatten().numpy(), y.sum(0).abs().flatten().numpy()).statistic
        for x, y in zip(a, b, strict=True)
    ]
    assert agreement(a, b).spearman.tolist() == pytest.approx(expected, abs=1e-6)


def test_ranks_equal_scipys():
    values = torch.randint(0, 5, (3, 40), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(ranks(values), torch.from_numpy(stats.rankdata(values.numpy(), axis=1)))


def test_cosine_is_signed_and_equals_its_definition():
    a, b = maps_like(seed=1), maps_like(seed=2)
    x, y = a.double().sum(1).flatten(1), b.double().sum(1).flatten(1)
    expected = [float(p @ q / p.norm() / q.norm()) for p, q in zip(x, y, strict=True)]
    assert agreement(a, b).cosine.tolist() == pytest.approx(expected, abs=1e-9)
    assert agreement(a, -a).cosine.tolist() == pytest.approx([-1.0] * 4)
    assert agreement(a, -a).spearman.tolist() == pytest.approx([1.0] * 4)  # the same places, other signs


def test_overlap_is_the_shared_share_of_the_strongest_tenth():
    a, b = maps_like(seed=1), maps_like(seed=1) + 0.5 * maps_like(seed=2)
    expected = []
    for x, y in zip(a.sum(1).abs().flatten(1), b.sum(1).abs().flatten(1), strict=True):
        top = [set(numpy.argsort(-v.numpy())[:26].tolist()) for v in (x, y)]  # 10 % of 256 pixels
        expected.append(len(top[0] & top[1]) / 26)
    assert agreement(a, b).overlap.tolist() == pytest.approx(expected)


def test_ties_at_the_edge_of_the_strongest_tenth_share_what_is_left():
    a = one([[9.0] + [1.0] * 19])  # two of twenty pixels count: the 9, and 1/19 of each other one
    b = one([[9.0, 8.0] + [1.0] * 18])
    assert agreement(a, b).overlap.item() == pytest.approx((1 + 1 / 19) / 2)


def test_peak_shift_is_a_distance_in_pixels():
    a, b = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    a[0, 0, 1, 2], b[0, 0, 4, 6] = 1.0, -3.0
    assert agreement(a, b).peak_shift.item() == pytest.approx(5.0)
    b[0, 0, 4, 6], b[0, 0, 0, 0], b[0, 0, 2, 0] = 0.0, 3.0, 3.0  # a tie: its centre (1, 0) counts
    assert agreement(a, b).peak_shift.item() == pytest.approx(2.0)


def plain_ssim(a: numpy.ndarray, b: numpy.ndarray) -> float:
    """Wang et al. 2004, one window after the other."""
    side, data_range = min(11, *(n - (n + 1) % 2 for n in a.shape)), 2 * max(abs(a).max(), abs(b).max())
    line = numpy.exp(-((numpy.arange(side) - side // 2) ** 2) / (2 * 1.5**2))
    w = numpy.outer(line, line) / numpy.outer(line, line).sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(a.shape[0] - side + 1):
        for j in range(a.shape[1] - side + 1):
            x, y = a[i : i + side, j : j + side], b[i : i + side, j : j + side]
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
            cov = (w * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + c1) * (2 * cov + c2) / (mx**2 + my**2 + c1) / (vx + vy + c2))
    return float(numpy.mean(values))


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (4, 4)])
def test_ssim_equals_its_plain_definition(size):
    random = torch.Generator().manual_seed(0)
    a = torch.randn(3, *size, generator=random).double()
    b = 0.4 * a + 0.3 * torch.randn(3, *size, generator=random).double()
    expected = [plain_ssim(x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-9)


def test_ssim_sees_a_weaker_map_where_the_other_measures_do_not():
    maps = maps_like()
    weaker = agreement(maps, maps / 20).means()
    assert weaker["cosine"] == pytest.approx(1)
    assert weaker["spearman"] == pytest.approx(1)
    assert weaker["ssim"] < 0.5


@pytest.mark.parametrize(
    ("map_", "expected"),
    [
        (torch.zeros(3, 4, 4), "zero"),
        (torch.full((3, 4, 4), 0.3), "constant"),
        (torch.full((3, 4, 4), torch.nan), "not finite"),
        (torch.tensor([[[1.0, torch.inf]]]), "not finite"),
        (torch.tensor([[[-1.0, -2.0]]]), "no positive evidence"),
        (torch.tensor([[[-1.0, 2.0]]]), "ok"),
        (torch.stack([torch.ones(2, 2), -torch.ones(2, 2)]), "zero"),  # channels cancel: nothing to see
        (torch.tensor([[-1.0, 2.0]]), "ok"),  # already summed
    ],
)
def test_dead_maps_have_named_states(map_, expected):
    assert state(map_) == expected


def test_dead_maps_leave_the_means_and_are_named():
    a = maps_like()
    b = a.clone()
    b[0], b[1], b[2] = 0, torch.nan, 0.7
    result = agreement(a, b)
    assert result.after == ("zero", "not finite", "constant", "ok")
    assert result.before == ("ok",) * 4
    for name in result.metrics():
        assert getattr(result, name).isnan().tolist() == [True, True, True, False]
    assert result.compared == 1
    assert result.means()["cosine"] == 1.0


def test_two_zero_maps_are_identical_and_two_maps_of_nan_are_not():
    zero, nan = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), torch.nan)
    assert agreement(zero, zero).means()["ssim"] == 1.0
    assert math.isnan(agreement(nan, nan).means()["ssim"])


def test_no_maps_have_no_agreement():
    empty = torch.zeros(0, 3, 8, 8)
    assert all(math.isnan(value) for value in agreement(empty, empty).means().values())


def test_maps_of_different_shapes_are_refused():
    with pytest.raises(ParameterError, match="agreement: both maps must be"):
        agreement(maps_like(), maps_like(side=8))


# Bounds.


@pytest.fixture
def images(tiny_data) -> Tensor:
    return tiny_data.test.images[:4]


@pytest.fixture
def targets(tiny_data) -> Tensor:
    return tiny_data.test.labels[:4]


@pytest.mark.parametrize("name", ["integrated-gradients", "smooth-grad"])
def test_the_noise_ceiling_lies_above_the_random_floor(name, tiny_model, images, targets):
    method = ATTRIBUTIONS[name]()
    ceiling = noise_ceiling(tiny_model, method, images, targets).means()
    floor = random_floor(tiny_model, method, images, targets).means()
    assert ceiling["cosine"] > floor["cosine"] + 0.3
    assert ceiling["overlap"] > floor["overlap"]
    assert ceiling["cosine"] < 1


def test_randomising_goes_from_the_output_to_the_input(tiny_model):
    names = [n for n, m in tiny_model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    before = tiny_model.state_dict()
    for layers in (0, 1, 3, len(names)):
        after = randomised(tiny_model, seed=1, layers=layers).state_dict()
        changed = [n for n in names if not torch.equal(before[f"{n}.weight"], after[f"{n}.weight"])]
        assert changed == names[len(names) - layers :]
    every = randomised(tiny_model, seed=1)
    assert torch.equal(every.conv1.weight, randomised(tiny_model, seed=1, layers=len(names)).conv1.weight)
    assert torch.equal(every.conv1.weight, randomised(tiny_model, seed=1).conv1.weight)
    assert not torch.equal(every.conv1.weight, randomised(tiny_model, seed=2).conv1.weight)
    assert every.bn1.running_var.unique().numel() == 1
    correlation = numpy.corrcoef(every.conv1.weight.flatten(), tiny_model.conv1.weight.flatten())[0, 1]
    assert abs(correlation) < 0.2
    assert every.conv1.weight.std().item() == pytest.approx(tiny_model.conv1.weight.std().item(), rel=0.2)


def test_randomising_leaves_the_shared_model_alone_and_refuses_too_many_layers(tiny_model, images):
    answers = tiny_model(images)
    randomised(tiny_model)
    assert torch.equal(tiny_model(images), answers)
    with pytest.raises(ParameterError, match="randomised: layers must lie in"):
        randomised(tiny_model, layers=99)


# Localisation.


@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_scikit_learns(ties):
    maps = maps_like().round() if ties else maps_like()
    masks = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(3)) > 0.7
    expected = [
        roc_auc_score(mask.flatten().numpy(), map_.sum(0).abs().flatten().numpy())
        for map_, mask in zip(maps, masks, strict=True)
    ]
    assert localisation(maps, masks).auc.tolist() == pytest.approx(expected)


def test_localisation_by_hand():
    maps = one([[4.0, 1.0], [-3.0, 2.0]])
    result = localisation(maps, torch.tensor([[[True, False], [True, False]]]))
    assert result.auc.item() == 1.0
    assert result.pointing_game.item() == 1.0
    assert result.mass_inside.item() == pytest.approx(0.7)
    assert result.area.item() == 0.5
    result = localisation(maps, torch.tensor([[[False, True], [True, False]]]))
    assert result.auc.item() == 0.25  # of four pairs, 3 against 2 alone is won
    assert result.pointing_game.item() == 0.0


def test_empty_and_full_masks_are_excluded_and_counted():
    masks = torch.zeros(4, 16, 16, dtype=torch.bool)
    masks[1] = True
    masks[2:, :4] = True
    maps = maps_like()
    maps[3] = 0
    result = localisation(maps, masks)
    assert (result.excluded, result.dead) == (2, 1)
    assert result.auc.isnan().tolist() == [True, True, False, True]
    assert not math.isnan(result.means()["mass_inside"])


def test_a_constant_map_is_chance():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0] = True
    result = localisation(torch.ones(1, 1, 4, 4), mask)
    assert (result.auc.item(), result.pointing_game.item(), result.mass_inside.item()) == (0.5, 0.25, 0.25)


def test_masks_of_another_size_are_refused():
    with pytest.raises(ParameterError, match="localisation: masks must be"):
        localisation(maps_like(), torch.zeros(4, 8, 8, dtype=torch.bool))


# Faithfulness.


class Counts(nn.Module):
    """Logit 0 is the sum of the left half, logit 1 is 0."""

    def forward(self, x: Tensor) -> Tensor:
        left = x[:, :, :, : x.shape[3] // 2].sum(dim=(1, 2, 3))
        return torch.stack([left, torch.zeros_like(left)], dim=1)


def test_deletion_curve_equals_a_plain_loop():
    image, map_ = torch.rand(1, 1, 4, 4), maps_like(1, 4)[:, :1]
    result = curve(Counts(), image, torch.tensor([0]), map_, "deletion", steps=4)
    order = map_[0, 0].flatten().argsort(descending=True)
    expected = []
    for k in (0, 4, 8, 12, 16):
        changed = image.clone().flatten()
        changed[order[:k]] = 0
        expected.append(Counts()(changed.view(1, 1, 4, 4)).softmax(1)[0, 0].item())
    assert result.probabilities[0].tolist() == pytest.approx(expected)
    assert result.auc.item() == pytest.approx(numpy.trapezoid(expected, dx=0.25))


def test_a_true_map_deletes_faster_and_inserts_sooner_than_its_opposite():
    image, targets = torch.rand(2, 1, 8, 8), torch.tensor([0, 0])
    truth = torch.zeros(2, 1, 8, 8)
    truth[..., :4] = image[..., :4]
    for kind, sign in (("deletion", -1), ("insertion", 1)):
        right, wrong = (curve(Counts(), image - 0.4, targets, m, kind).auc for m in (truth, -truth))
        assert (sign * (right - wrong) > 0).all()


def test_infidelity_is_nil_for_the_gradient_of_a_linear_network():
    image, targets = torch.rand(2, 1, 8, 8), torch.tensor([0, 0])
    gradient = explain(Counts(), ATTRIBUTIONS["saliency"](), image, targets)
    assert infidelity(Counts(), image, targets, gradient).abs().max() < 1e-6
    assert infidelity(Counts(), image, targets, 7 * gradient).abs().max() < 1e-6  # scaled to fit
    assert infidelity(Counts(), image, targets, maps_like(2, 8)[:, :1]).min() > 1e-3


def test_sensitivity_is_nil_for_the_gradient_of_a_linear_network_and_not_for_others(
    tiny_model, images, targets
):
    saliency = ATTRIBUTIONS["saliency"]()
    assert sensitivity(Counts(), saliency, torch.rand(1, 1, 8, 8), torch.tensor([0])).item() == 0
    assert sensitivity(tiny_model, saliency, images[:1], targets[:1], samples=3).item() > 0


def test_faithfulness_of_a_network_has_all_scores_and_repeats(tiny_model, images, targets):
    first, second = (
        faithfulness(
            tiny_model, ATTRIBUTIONS["smooth-grad"](samples=4), images[:2], targets[:2], samples=3
        ).means()
        for _ in range(2)
    )
    assert first == second
    assert set(first) == {"deletion_auc", "insertion_auc", "infidelity", "sensitivity"}
    assert all(math.isfinite(value) for value in first.values())


def test_dead_maps_have_no_faithfulness():
    image, targets = torch.rand(1, 1, 4, 4), torch.tensor([0])
    dead = torch.zeros(1, 1, 4, 4)
    assert curve(Counts(), image, targets, dead, "deletion").auc.isnan().all()
    assert infidelity(Counts(), image, targets, dead).isnan().all()
