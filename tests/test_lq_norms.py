"""How few weights carry a neuron: indices, counts and bounds, and what prunes and shows by them."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import gamma
from scipy.stats import spearmanr
from tiny import plain_network, vary
from torch import nn

from core.bundles import MODELS, Setting
from core.compressibility import (
    gini,
    keep_bound,
    keep_exact,
    keep_index,
    keep_pq,
    largest,
    lq_norm,
    output_changes,
    pq_index,
    sparsity_index,
    stechkin,
    tail_shares,
)
from core.criteria.tail_share import TailShare
from core.criterion import rank
from core.diagnostics.compressibility import Compressibility
from core.errors import ParameterError, UnsupportedModelError
from core.labs.lq_balls import LqBalls
from core.layers import apply_mask, bake, prunable
from core.methods.lq_adaptive import LqAdaptive
from core.methods.prune_weights import PruneWeights
from core.recipe import Recipe, compress
from core.run import Run

EXPONENTS = [(0.5, 1.0), (1.0, 2.0), (0.2, 1.0), (1.0, 1.3), (0.1, 0.4)]
HALVES = 0.5 ** torch.arange(8, dtype=torch.float64)
KNOWN = {  # weights -> I(0.5, 1), I(1, 2), SI_0.5, r(0.5, 1), r(1, 2)
    (1.0,) * 8: (0, 0, 0.125, 8, 8),
    (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0): (0.875, 0.646447, 1, 1, 1),
    (1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0): (0.5, 0.292893, 0.25, 4, 4),
    (1.0, 2.0, 3.0, 4.0): (0.055586, 0.087129, 0.264714, 3.7777, 3.3333),
    tuple(HALVES.tolist()): (0.357159, 0.390015, 0.194449, 5.1427, 2.9767),
}


def random_weights(count: int = 200, size: int = 12) -> torch.Tensor:
    """Rows from nearly flat to nearly one-hot, with some zeros and some ties."""
    torch.manual_seed(0)
    rows = torch.randn(count, size, dtype=torch.float64)
    rows = rows.sign() * rows.abs() ** torch.linspace(0.05, 6, count, dtype=torch.float64)[:, None]
    rows[::3, :2] = 0
    rows[1::3, 3] = rows[1::3, 4]
    return rows


def compressed(model: nn.Module, data, *steps) -> nn.Module:
    return compress(model, Setting(data.train, data.validation, model), Recipe(steps)).model


def kept(model: nn.Module) -> list[torch.Tensor]:
    return [layer.weight.flatten(1).count_nonzero(-1) for layer in prunable(model).values()]


# ------------------------------------------------------------------------------------------- indices


@pytest.mark.parametrize("weights", KNOWN)
def test_the_indices_of_small_vectors_are_those_computed_by_hand(weights):
    w = torch.tensor(weights)
    found = pq_index(w, 0.5, 1), pq_index(w, 1, 2), sparsity_index(w, 0.5)
    assert [value.item() for value in found] == pytest.approx(KNOWN[weights][:3], abs=1e-6)
    counts = [keep_pq(w, p, q).item() for p, q in ((0.5, 1), (1, 2))]
    assert counts == pytest.approx(KNOWN[weights][3:], abs=5e-5)


def test_a_large_gaussian_vector_has_the_indices_of_the_distribution():
    torch.manual_seed(0)
    w = torch.randn(2_000_000)
    half = 2**0.25 * gamma(0.75) / math.sqrt(math.pi)  # E |x|^0.5
    assert pq_index(w, 0.5, 1).item() == pytest.approx(1 - half**2 / math.sqrt(2 / math.pi), abs=1e-3)
    assert pq_index(w, 1, 2).item() == pytest.approx(1 - math.sqrt(2 / math.pi), abs=1e-3)
    assert keep_pq(w, 0.5, 1).item() / len(w) == pytest.approx(0.8472, abs=1e-3)
    assert keep_pq(w, 1, 2).item() / len(w) == pytest.approx(2 / math.pi, abs=1e-3)


@pytest.mark.parametrize(("p", "q"), EXPONENTS)
def test_indices_equal_their_definitions_summed_in_a_loop(p, q):
    for row in random_weights(20):
        w = [abs(v) for v in row.tolist()]
        low, high = (sum(v**e for v in w) ** (1 / e) for e in (p, q))
        assert pq_index(row, p, q).item() == pytest.approx(
            1 - len(w) ** (1 / q - 1 / p) * low / high, abs=1e-12
        )
        apart = sum(abs(a - b) for a in w for b in w) / (2 * len(w) * sum(w))  # mean difference, halved
        assert gini(row).item() == pytest.approx(apart, abs=1e-12)
        if p < 1:
            norm = sum(v**p for v in w) ** (1 / p)
            assert sparsity_index(row, p).item() == pytest.approx(sum(w) / norm, rel=1e-12)
            # both papers measure the same thing
            assert 1 - pq_index(row, p, 1).item() == pytest.approx(len(w) ** (1 - 1 / p) * norm / sum(w))


@pytest.mark.parametrize(("p", "q"), EXPONENTS)
def test_indices_see_neither_scale_nor_sign_nor_order_nor_copies(p, q):
    w = random_weights()
    shuffled = w[:, torch.randperm(w.shape[1])] * -3e-7
    for index in (lambda x: pq_index(x, p, q), gini):
        torch.testing.assert_close(index(shuffled), index(w))
        torch.testing.assert_close(index(torch.cat([w, w], 1)), index(w))
        assert (index(torch.cat([w, torch.zeros(len(w), 1)], 1)) > index(w)).all()
    if p < 1:
        torch.testing.assert_close(sparsity_index(shuffled, p), sparsity_index(w, p))


@pytest.mark.parametrize(("p", "q"), EXPONENTS)
def test_weights_that_come_closer_have_a_lower_index(p, q):
    w = random_weights().abs().sort(1).values
    before, pulled = pq_index(w, p, q), w.clone()
    assert (pq_index(w + 0.1, p, q) < before).all()
    step = 0.25 * (w[:, -1] - w[:, 0])  # from the largest to the smallest
    pulled[:, -1] -= step
    pulled[:, 0] += step
    assert (pq_index(pulled, p, q) < before).all()
    assert (gini(pulled) < gini(w)).all()


def test_only_weights_that_are_left_count():
    w = random_weights()
    keep = torch.rand(w.shape) < 0.6
    keep[:, 5] = True
    for row, left in zip(w, keep, strict=True):
        assert pq_index(row, 0.5, 1, left).item() == pytest.approx(
            pq_index(row[left], 0.5, 1).item(), nan_ok=True
        )
        assert gini(row, left).item() == pytest.approx(gini(row[left]).item(), nan_ok=True)
        assert keep_pq(row, 1, 2, 0.1, left).item() == pytest.approx(
            keep_pq(row[left], 1, 2, 0.1).item(), nan_ok=True
        )


def test_zeros_have_no_index_and_keep_nothing():
    zeros = torch.zeros(3, 5)
    assert pq_index(zeros, 0.5, 1).isnan().all()
    assert gini(zeros).isnan().all()
    assert sparsity_index(zeros, 0.5).isnan().all()
    none = torch.zeros(3, dtype=torch.int64)
    assert keep_exact(tail_shares(zeros), 0.3).equal(none)
    assert keep_bound(sparsity_index(zeros, 0.5), none, 0.5, 0.3).equal(none)
    assert keep_index(sparsity_index(zeros, 0.5), none, 0.5, 2).equal(none)


def test_a_small_exponent_and_many_weights_do_not_overflow():
    w = torch.full((100_000,), 1e-30)
    assert math.log10(lq_norm(w, 0.1).item()) == pytest.approx(50 - 30)
    assert pq_index(w, 0.1, 1).item() == pytest.approx(0, abs=1e-9)
    assert sparsity_index(w * 1e-8, 0.1).log10().item() == pytest.approx(-45, abs=1e-6)


# -------------------------------------------------------------------------------- how many to keep


@pytest.mark.parametrize(("tolerance", "bound", "exact"), [(0.3, 5, 2), (0.1, 8, 4), (0.05, 8, 5)])
def test_halving_weights_are_kept_as_computed_by_hand(tolerance, bound, exact):
    assert keep_bound(sparsity_index(HALVES, 0.5), torch.tensor(8), 0.5, tolerance).item() == bound
    assert keep_exact(tail_shares(HALVES), tolerance).item() == exact


def test_stechkins_constant_is_never_exceeded_and_is_reached():
    assert [stechkin(q) for q in (0.25, 0.5, 0.75)] == pytest.approx([0.10547, 0.25, 0.47247], abs=1e-5)
    w, places = random_weights(), torch.arange(1, 13, dtype=torch.float64)
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        tails = tail_shares(w)[:, 1:] * w.abs().sum(1, keepdim=True)
        limit = stechkin(q) * places ** (1 - 1 / q) * lq_norm(w, q)[:, None]
        assert (tails <= limit * (1 + 1e-9) + 1e-12).all()
    flat = torch.ones(12, dtype=torch.float64)  # reached where the share 1 - q of equal weights is kept
    for q, m in ((0.25, 9), (0.5, 6), (0.75, 3)):
        assert stechkin(q) * m ** (1 - 1 / q) * lq_norm(flat, q).item() == pytest.approx(12 - m)


@pytest.mark.parametrize("tolerance", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_the_exact_count_is_the_first_that_will_do_and_no_bound_is_below_it(tolerance):
    w = torch.cat([random_weights(), torch.full((1, 12), 0.1)])
    exact = keep_exact(tail_shares(w), tolerance)
    for row, count in zip(w, exact.tolist(), strict=True):
        sizes = sorted((abs(v) for v in row.tolist()), reverse=True)
        allowed = tolerance * math.fsum(sizes) * (1 + 1e-9)
        assert count == next(m for m in range(1, 13) if math.fsum(sizes[m:]) <= allowed)
    nonzero = w.count_nonzero(-1)
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        bound = keep_bound(sparsity_index(w, q), nonzero, q, tolerance)
        assert (bound >= exact).all()
        assert (bound <= nonzero).all()


@pytest.mark.parametrize(("p", "q"), EXPONENTS)
def test_no_count_below_the_pq_bound_holds_all_but_the_slack(p, q):
    """Theorem 2 of the SAP paper, at every r, with the slack that the r largest weights really have."""
    w = random_weights()
    sizes = w.abs().sort(1, descending=True).values ** p
    for r in range(1, 12):
        head, tail = sizes[:, :r].sum(1), sizes[:, r:].sum(1)
        for row, slack in zip(w, (tail / head).tolist(), strict=True):
            assert keep_pq(row, p, q, slack).item() <= r + 1e-9
    least = keep_pq(w, p, q)
    assert (least >= 1 - 1e-9).all()
    assert (least <= 12 + 1e-9).all()


@pytest.mark.parametrize(("p", "q", "index", "left"), [(0.5, 1, 0.30, 0.70), (1, 2, 0.4523, 0.30)])
def test_the_first_step_of_sap_leaves_what_the_published_curves_show(p, q, index, left):
    w = (torch.arange(1000) < 1000 * left).double()
    assert pq_index(w, p, q).item() == pytest.approx(index, abs=1e-4)
    assert keep_pq(w, p, q).item() == pytest.approx(1000 * left)


def test_the_index_rule_by_hand():
    index, counts = (
        sparsity_index(torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [9, 1, 0, 0]]), 0.5),
        torch.tensor([4, 1, 2]),
    )
    # flat: nothing is superfluous; one weight: nothing to take; (9, 1): the share 1 - (16 / 10) / 2 = 0.2 is
    assert keep_index(index, counts, 0.5, 1).tolist() == [4, 1, 2]
    assert keep_index(index, counts, 0.5, 2.5).tolist() == [4, 1, 1]
    halves = sparsity_index(HALVES, 0.5)  # 1 - 5.1427 / 8 = 0.3572 of 8
    assert [keep_index(halves, torch.tensor(8), 0.5, s).item() for s in (1, 2, 100)] == [6, 3, 1]


def test_of_equal_sizes_the_first_are_the_largest():
    w = torch.tensor([[2.0, -3, 2, -2, 0], [1, 1, 1, 1, 1]])
    expected = [[True, True, False, False, False], [True, True, True, False, False]]
    assert largest(w, torch.tensor([2, 3])).tolist() == expected
    left = torch.tensor([[True, False, True, True, True]] * 2)
    expected = [[True, False, True, False, False], [True, False, True, True, False]]
    assert largest(w, torch.tensor([2, 3]), left).tolist() == expected
    assert largest(w, torch.tensor([9, 0]), left).tolist() == [left[0].tolist(), [False] * 5]


@pytest.mark.parametrize("call", [
    lambda w: sparsity_index(w, 1.0), lambda w: sparsity_index(w, 0.0), lambda w: stechkin(1.5),
    lambda w: pq_index(w, 1, 1), lambda w: pq_index(w, 0, 1), lambda w: pq_index(w, 2, 1),
    lambda w: lq_norm(w, 0), lambda w: keep_pq(w, 1, 2, -0.1), lambda w: keep_pq(w, 1, 2, math.nan),
    lambda w: gini(w, torch.ones(4)), lambda w: gini(w, torch.ones(5, dtype=torch.bool)),
])  # fmt: skip
def test_wrong_exponents_and_masks_are_refused(call):
    with pytest.raises(ValueError, match=r"must .*, got "):
        call(torch.ones(4))


# -------------------------------------------------------------------------------- the output bound


def masked(model: nn.Module, share: float) -> nn.Module:
    pruned = copy.deepcopy(model)
    for layer in prunable(pruned).values():
        apply_mask(layer, torch.rand(layer.weight.shape) < share)
    return pruned


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["mlp", "small-cnn", "vgg11-bn:width=0.0625", "plain"])
def test_no_output_moves_further_than_the_bound(name, share, tiny_data):
    torch.manual_seed(0)
    family, _, width = name.partition(":width=")
    options = {"width": float(width)} if width else {}
    model = plain_network() if name == "plain" else MODELS[family](**options).build((3, 16, 16), 4)
    model = vary(model).eval().requires_grad_(False)
    images = tiny_data.validation.images
    table = output_changes(model, masked(model, share), images)
    assert list(table.layer) == list(prunable(model))
    assert (table.measured <= table.bound * (1 + 1e-9)).all()
    assert (table.bound > 0).all()
    pruned = bake(masked(model, share))  # other masks: what is measured are the logits, in float64
    again = output_changes(model, pruned, images).measured.iloc[-1]
    change = (model.double()(images.double()) - pruned.double()(images.double())).abs().max().item()
    assert again == pytest.approx(change, rel=1e-5)


def test_the_bound_by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    model[2].weight.copy_(torch.tensor([[5.0, 6.0]]))
    model[0].bias.zero_()
    pruned = copy.deepcopy(model)
    pruned[0].weight[0, 0] = 0
    pruned[2].weight[0, 1] = 0
    images = torch.tensor([[1.0, 1.0], [2.0, -1.0]])
    # first layer: largest inputs (2, 1), so (2, 0); activations at most (3, 10): 5 * 2 + 6 * 10
    assert output_changes(model, pruned, images).bound.tolist() == pytest.approx([2, 70])
    assert output_changes(model, pruned, images).measured.tolist() == pytest.approx([2, 60])
    assert output_changes(model, model, images).bound.tolist() == [0, 0]
    pruned[2].bias += 0.5  # what is no mask is bounded as well
    assert output_changes(model, pruned, images).bound.tolist() == pytest.approx([2, 70.5])


def test_networks_without_a_bound_are_refused(tiny_model, plain_model, tiny_data):
    images = tiny_data.validation.images
    with pytest.raises(UnsupportedModelError, match=r"must be one chain .*, got one that branches"):
        output_changes(tiny_model, tiny_model, images)
    norm = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.BatchNorm1d(4)).eval()
    with pytest.raises(UnsupportedModelError, match=r"must be one chain .*, got BatchNorm1d"):
        output_changes(norm, norm, images)
    other = copy.deepcopy(plain_model)
    other.linear2 = nn.Linear(7, 5)
    with pytest.raises(UnsupportedModelError, match="must have equal layers, got different"):
        output_changes(plain_model, other, images)


# --------------------------------------------------------------------------- lq-adaptive, tail-share


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.77, 0.89])
@pytest.mark.parametrize("rule", ["bound", "exact", "index"])
def test_exactly_the_asked_number_of_weights_goes_and_every_neuron_keeps_its_largest(
    rule, sparsity, tiny_model, tiny_data
):
    model = compressed(tiny_model, tiny_data, LqAdaptive(sparsity=sparsity, rule=rule))
    before, after = prunable(tiny_model), prunable(model)
    every = sum(layer.weight.numel() for layer in before.values())
    assert sum(int((layer.weight == 0).sum()) for layer in after.values()) == round(sparsity * every)
    for name, layer in after.items():
        for old, new in zip(before[name].weight.flatten(1), layer.weight.flatten(1), strict=True):
            there = new != 0
            assert torch.equal(old[there], new[there])
            assert there.any()
            assert not (~there).any() or old[~there].abs().max() <= old[there].abs().min()


@pytest.mark.parametrize("rule", ["bound", "exact"])
def test_with_a_tolerance_every_neuron_gives_up_no_more_than_that(rule, tiny_model, tiny_data):
    model = compressed(tiny_model, tiny_data, LqAdaptive(by="tolerance", tolerance=0.2, rule=rule))
    for before, after in zip(prunable(tiny_model).values(), prunable(model).values(), strict=True):
        old, new = (layer.weight.double().abs().flatten(1) for layer in (before, after))
        lost = (old - new).sum(1) / old.sum(1)
        assert (lost <= 0.2 * (1 + 1e-9)).all()
        least = new.masked_fill(new == 0, torch.inf).min(1).values / old.sum(1)
        if rule == "exact":
            assert (lost + least > 0.2).all()  # one more would have been too much


@pytest.mark.parametrize("rule", ["bound", "exact", "index"])
def test_flat_neurons_keep_more_than_peaked_ones(rule, tiny_data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 40)).eval()
    rows = torch.rand(40, 768) ** torch.linspace(0.2, 5, 40)[torch.randperm(40), None]
    model[1].weight.data = rows * torch.logspace(-3, 3, 40)[:, None]
    pruned = compressed(model, tiny_data, LqAdaptive(sparsity=0.6, rule=rule))
    assert spearmanr(sparsity_index(rows, 0.5), kept(pruned)[0]).statistic < -0.9


@pytest.mark.parametrize("rule", ["bound", "exact", "index"])
def test_the_scale_of_a_neuron_does_not_matter_so_batch_norm_may_be_folded_or_not(
    rule, tiny_model, tiny_data
):
    folded = copy.deepcopy(tiny_model)
    for layer in prunable(folded).values():
        factors = 2.0 ** torch.randint(-6, 7, (len(layer.weight),))  # exact in floating point
        layer.weight.data *= factors.view(-1, *[1] * (layer.weight.dim() - 1))
    step = LqAdaptive(sparsity=0.7, rule=rule)
    masks = [
        [layer.weight != 0 for layer in prunable(compressed(m, tiny_data, step)).values()]
        for m in (tiny_model, folded)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_the_exact_rule_is_the_global_order_of_tail_share(tiny_model, tiny_data):
    """Found by bisection of the tolerance here and by sorting scores there."""
    for sparsity in (0.2, 0.5, 0.8):
        rule = compressed(tiny_model, tiny_data, LqAdaptive(sparsity=sparsity, rule="exact"))
        order = PruneWeights(sparsity=sparsity, scope="global", criterion=TailShare())
        order = compressed(tiny_model, tiny_data, order)
        assert all(torch.equal(a, b) for a, b in zip(rule.parameters(), order.parameters(), strict=True))


def test_tail_share_by_hand(tiny_data):
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].weight.data = torch.tensor([[1.0, -2, 3, 4], [0, 5, 0, -5], [0, 0, 0, 0]])
    scores = rank(TailShare(), model, None).scores["0"]
    expected = [[0.1, 0.3, 0.6, 1.0], [0, 0.5, 0, 1.0], [0, 0, 0, 0]]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


def test_neurons_of_equal_weights_lose_exact_numbers_too(tiny_data):
    """All counts change at one tolerance; what is left over goes to the first neurons."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).eval()
    nn.init.constant_(model[1].weight, 0.3)
    counts = kept(compressed(model, tiny_data, LqAdaptive(sparsity=0.9, rule="bound")))[0]
    assert counts.sum() == 768
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)
    assert counts.min() >= 1


def test_weights_that_are_gone_already_count_and_empty_neurons_stay_empty(tiny_model, tiny_data):
    tiny_model.layer1[0].conv1.weight.data[2] = 0
    sparse = compressed(tiny_model, tiny_data, PruneWeights(sparsity=0.6))
    again = compressed(sparse, tiny_data, LqAdaptive(sparsity=0.5))
    assert all(torch.equal(a, b) for a, b in zip(sparse.parameters(), again.parameters(), strict=True))
    more = compressed(sparse, tiny_data, LqAdaptive(sparsity=0.8))
    every = sum(layer.weight.numel() for layer in prunable(more).values())
    assert sum(int(c.sum()) for c in kept(more)) == every - round(0.8 * every)
    assert not more.layer1[0].conv1.weight[2].any()


def test_what_cannot_be_reached_is_refused_with_what_can(plain_model, tiny_data):
    neurons, every = 6 + 5 + 7 + 4, 6 * 27 + 5 * 54 + 7 * 80 + 4 * 7
    with pytest.raises(
        UnsupportedModelError, match=f"sparsity must be at most {1 - neurons / every:.4f}, .*, got 0.99"
    ):
        compressed(plain_model, tiny_data, LqAdaptive(sparsity=0.99))
    with pytest.raises(
        UnsupportedModelError, match=r"sparsity must be at most 0.8\d+, .* 'index' .*, got 0.95"
    ):
        compressed(plain_model, tiny_data, LqAdaptive(sparsity=0.95, rule="index"))
    with pytest.raises(
        ParameterError, match='lq-adaptive: rule must be "bound" or "exact" where a tolerance'
    ):
        LqAdaptive(by="tolerance", rule="index")


def test_the_figures_say_what_the_masks_are(plain_model, tiny_model, tiny_data):
    shown = {}
    for model in (plain_model, tiny_model):
        setting = Setting(tiny_data.train, tiny_data.validation, model)
        figures = compress(model, setting, Recipe((LqAdaptive(sparsity=0.6),)), figures=True).figures[0]
        shown[model] = {figure.title: figure for figure in figures}
    assert "Change of the outputs" not in shown[tiny_model]  # it branches
    figures = shown[plain_model]
    pruned = compressed(plain_model, tiny_data, LqAdaptive(sparsity=0.6))
    by_layer = figures["Kept weights by layer"].table.set_index("layer").kept
    for count, (name, layer) in zip(kept(pruned), prunable(pruned).items(), strict=True):
        assert by_layer[name] == pytest.approx(np.quantile(count / layer.weight[0].numel(), 0.5))
    outputs = figures["Change of the outputs"].table.pivot_table(
        index="layer", columns="what", values="change"
    )
    expected = output_changes(plain_model, pruned, tiny_data.validation.images).set_index("layer")
    assert outputs.bound.to_dict() == pytest.approx(expected.bound.to_dict())
    assert outputs.measured.to_dict() == pytest.approx(expected.measured.to_dict())


# --------------------------------------------------------------------------- compressibility, lq-balls


def test_the_table_has_the_indices_of_the_nonzero_weights():
    before = nn.Sequential(nn.Linear(4, 1), nn.Linear(8, 2))
    before[0].weight.data = torch.tensor([[1.0, -2, 3, 4]])
    before[1].weight.data = torch.stack([HALVES.float(), torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])])
    after = copy.deepcopy(before)
    after[0].weight.data.zero_()
    table = Compressibility().measure(before, after, None, Run()).set_index("layer")
    first = table.loc["0"]
    assert first.weights_before == 4
    assert [first.pq_half_one_before, first.pq_one_two_before, first.gini_before] == pytest.approx(
        [0.055586, 0.087129, 0.25], abs=1e-6
    )
    assert first.keep_exact_before == 2 / 4  # 1 + 2 of 10 is 30 %
    assert first.weights_after == 0
    assert math.isnan(first.pq_half_one_after)
    second = table.loc["1"]
    assert second.weights_before == 12
    assert second.keep_exact_before == (2 + 3) / 12
    assert second.keep_bound_before == (5 + 4) / 12
    every = torch.cat([layer.weight.flatten() for layer in before])
    assert table.loc["all layers"].pq_one_two_before == pytest.approx(
        pq_index(every[every != 0], 1, 2).item()
    )
    assert table.loc["all layers"].keep_exact_before == (2 + 2 + 3) / 16


def test_the_balls_have_the_areas_that_calculus_gives(plain_model, tiny_data):
    setting = Setting(tiny_data.train, tiny_data.validation, plain_model)
    for q in (0.2, 0.5, 0.8):
        table = LqBalls(q=q).figures(setting, Run())[0].table
        for exponent in (q, 1.0, 2.0):
            x, y = (table[table.ball == f"q = {exponent:g}"][axis].to_numpy() for axis in "xy")
            np.testing.assert_allclose(abs(x) ** exponent + abs(y) ** exponent, 1, rtol=1e-9)
            area = abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
            assert area == pytest.approx(4 * gamma(1 + 1 / exponent) ** 2 / gamma(1 + 2 / exponent), rel=2e-3)


def test_the_lab_shows_the_neuron_that_was_asked_for(plain_model, tiny_data):
    setting = Setting(tiny_data.train, tiny_data.validation, plain_model)
    _, order, tails = LqBalls(layer=3, neuron=4, tolerance=0.2).figures(setting, Run())
    weights = plain_model.linear1.weight[3].double().abs()
    np.testing.assert_allclose(order.table["size"], weights.sort(descending=True).values)
    exact = int(keep_exact(tail_shares(weights), 0.2))
    assert (order.table.weight == "kept").sum() == exact
    assert f"the {exact} largest" in order.finding
    curves = tails.table.pivot_table(index="kept", columns="tail", values="share")
    assert (curves["T_m, exact"] <= curves["l_q bound, q = 0.5"] * (1 + 1e-9))[1:].all()


def test_a_layer_or_neuron_that_is_not_there_or_empty_is_refused(plain_model, tiny_data):
    setting = Setting(tiny_data.train, tiny_data.validation, plain_model)
    with pytest.raises(ParameterError, match=r"lq-balls: layer must be at most 4, .* got 5"):
        LqBalls(layer=5).figures(setting, Run())
    with pytest.raises(ParameterError, match="lq-balls: neuron must be at most 6 in conv1, got 7"):
        LqBalls(neuron=7).figures(setting, Run())
    plain_model.conv1.weight.data[1] = 0
    with pytest.raises(UnsupportedModelError, match="must have a nonzero weight in neuron 2 of conv1"):
        LqBalls(neuron=2).figures(setting, Run())
