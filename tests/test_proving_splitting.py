"""Splitting boxes of inputs: bounds that hold, verdicts of brute force, proofs that are used again."""

import itertools

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from core.errors import ParameterError, Stopped
from core.proving import splitting
from core.proving.bounds import crown
from core.proving.instance import rounded, thinned
from core.proving.lines import causes, lines, relaxations, shares_of
from core.proving.network import ReluNetwork
from core.proving.proof import Answer, Proof
from core.proving.question import TOLERANCE, Deadline, Question
from core.proving.splitting import cover, split


def rows(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(seed: int, widths: tuple[int, ...] = (3, 8, 8, 2), shift: float = 0.0) -> Question:
    """A random network on the box from -1 to 1; outputs are raised by `shift`."""
    random = torch.Generator().manual_seed(seed)
    pairs = itertools.pairwise(widths)
    weights = tuple(torch.randn(b, a, generator=random, dtype=torch.float64) / a**0.5 for a, b in pairs)
    biases = [0.3 * torch.randn(b, generator=random, dtype=torch.float64) for b in widths[1:]]
    biases[-1] = biases[-1] + shift
    one = torch.ones(widths[0], dtype=torch.float64)
    return Question(ReluNetwork(weights, tuple(biases)), -one, one)


def sampled(low: Tensor, high: Tensor, count: int, seed: int = 0) -> Tensor:
    """(count, B, I) points of boxes (B, I)."""
    random = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, *low.shape, dtype=torch.float64, generator=random)


def small_boxes(question: Question, count: int, share: float) -> tuple[Tensor, Tensor]:
    width = (question.high - question.low) * share
    low = sampled(question.low[None], question.high[None] - width, count)[:, 0]
    return low, low + width


def exact(question: Question) -> float:
    """The smallest value of the largest margin: a linear program for every pattern of phases."""
    network, best = question.network, float("inf")
    inputs, widths = network.inputs, network.widths
    for pattern in itertools.product((0.0, 1.0), repeat=sum(widths)):
        matrix, offset = torch.eye(inputs, dtype=torch.float64), torch.zeros(inputs, dtype=torch.float64)
        sides, ends, start = [], [], 0
        for k, width in enumerate(widths):
            matrix, offset = network.weights[k] @ matrix, network.weights[k] @ offset + network.biases[k]
            on = torch.tensor(pattern[start : start + width], dtype=torch.float64)
            sign = (1 - 2 * on)[:, None]  # active: -z <= 0
            sides.append(sign * matrix)
            ends.append(-sign[:, 0] * offset)
            matrix, offset, start = on[:, None] * matrix, on * offset, start + width
        last = network.weights[-1] @ matrix, network.weights[-1] @ offset + network.biases[-1]
        above = torch.cat([last[0], -torch.ones(len(last[0]), 1, dtype=torch.float64)], 1)  # margin <= t
        sides = [torch.cat([side, torch.zeros(len(side), 1, dtype=torch.float64)], 1) for side in sides]
        found = linprog(
            [0.0] * inputs + [1.0],
            A_ub=torch.cat([above, *sides]).numpy(),
            b_ub=torch.cat([-last[1], *ends]).numpy(),
            bounds=[*zip(question.low.tolist(), question.high.tolist(), strict=True), (None, None)],
        )
        if found.status == 0:
            best = min(best, found.fun)
    return best


def ask(question: Question, old: Proof | None = None, seconds: float = 20.0) -> Answer:
    return split(question, Deadline(seconds), old)


def assert_proof(answer: Answer, question: Question) -> None:
    """The boxes lie in the question's, fill it, and crown's own bounds or samples agree with every one."""
    lows, highs = answer.proof.boxes
    assert (lows >= question.low).all()
    assert (highs <= question.high).all()
    assert (highs - lows).prod(1).sum().item() == pytest.approx((question.high - question.low).prod().item())
    found = cover(question.low, question.high, answer.proof.boxes)
    assert found[2].all()
    assert len(found[0]) == len(lows)
    margins = question.margin(sampled(lows, highs, 20).flatten(0, 1))
    assert margins.min() >= answer.bound - 1e-9
    assert answer.bound > TOLERANCE


# --------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_lines_lie_below_the_margins(seed, share):
    question = drawn(seed, (4, 12, 10, 9, 3))
    low, high = small_boxes(question, 40, share)
    relaxed = relaxations(question.network, low, high)
    found = lines(question.network, relaxed, len(low))
    points = sampled(low, high, 200)  # (S, B, I)
    below = torch.einsum("bri,sbi->sbr", found.slopes, points) + found.offsets
    margins = question.network(points.flatten(0, 1)).view_as(below)
    assert (below <= margins + 1e-9).all()
    assert (found.least(low, high) <= below.amin(0) + 1e-9).all()
    shares = shares_of(found, low, high)
    assert (shares >= 0).all()
    assert torch.allclose(shares.sum(1), torch.ones(len(low), dtype=torch.float64))
    mixed = lines(question.network, relaxed, len(low), shares)
    value = torch.einsum("bri,sbi->sbr", mixed.slopes, points)[..., 0] + mixed.offsets[:, 0]
    assert (value <= (margins * shares).sum(2) + 1e-9).all()


def test_ends_of_neurons_hold():
    question = drawn(1, (4, 12, 10, 9, 3))
    low, high = small_boxes(question, 40, 0.3)
    points = sampled(low, high, 300)
    inside = question.network.preactivations(points.flatten(0, 1))
    for hidden, z in zip(relaxations(question.network, low, high), inside, strict=False):
        z, lines_ = z.view(300, len(low), -1), hidden.lines
        assert (lines_.flat * z <= z.relu() + 1e-9).all()
        assert (z.relu() <= lines_.steep * z + lines_.lift + 1e-9).all()
        assert (z.relu() - lines_.flat * z <= hidden.slack + 1e-9).all()


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_bounds_are_about_as_good_as_those_of_crown(share):
    """Thrift costs little: on average less than a tenth of the distance to what samples show."""
    question = drawn(3, (4, 20, 20, 20, 2))
    low, high = small_boxes(question, 60, share)
    found = lines(question.network, relaxations(question.network, low, high), 60).least(low, high)
    wanted = crown(question.network, low, high).margins
    reached = question.network(sampled(low, high, 300).flatten(0, 1)).view(300, 60, 2).amin(0)
    assert ((wanted - found).mean() <= 0.1 * (reached - wanted).mean() + 1e-9).item()


def test_the_mean_of_margins_is_the_best_there_is():
    """Against a linear program: the largest of the lines, where it is smallest."""
    question = drawn(4, (3, 10, 10, 4))
    low, high = small_boxes(question, 30, 0.4)
    found = lines(question.network, relaxations(question.network, low, high), 30)
    single = found.least(low, high).max(1).values
    value = found.mixed(shares_of(found, low, high)).least(low, high)[:, 0]
    best = torch.empty(30, dtype=torch.float64)
    for box in range(30):
        sides = torch.cat([found.slopes[box], -torch.ones(4, 1, dtype=torch.float64)], 1)
        ends = [*zip(low[box].tolist(), high[box].tolist(), strict=True), (None, None)]
        best[box] = linprog(
            [0, 0, 0, 1], A_ub=sides.numpy(), b_ub=-found.offsets[box].numpy(), bounds=ends
        ).fun
    assert (value <= best + 1e-9).all()
    assert (value >= single - 1e-12).all()
    assert (value - single).sum() > 0.8 * (best - single).sum() > 0


def test_shortfalls_are_put_down_to_inputs_that_cause_them():
    """An input that no open ReLU feels has no share, and all shares together bound the shortfall."""
    network = ReluNetwork(
        (rows([1.0, 0.0, 0.0], [0.0, 1.0, 1.0]), rows([-1.0, 1.0])), (rows(0.0, 9.0), rows(0.0))
    )
    low, high = -torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    due = causes(network, relaxations(network, low, high), torch.ones(1, 1, dtype=torch.float64))
    assert torch.allclose(due, rows([0.5, 0.0, 0.0]))


# ------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("seed", range(25))
def test_verdicts_are_those_of_brute_force(seed):
    """Every pattern of phases as a linear program, on questions whose answer is close."""
    question = drawn(seed, (2, 4, 3, 1 + seed % 3))
    least = exact(question)
    for shift, status in ((-least - 0.02, "refuted"), (-least + 0.02, "proved")):
        near = drawn(seed, (2, 4, 3, 1 + seed % 3), shift)
        answer = ask(near)
        assert answer.status == status
        assert answer.bound <= 0.02 + 1e-6
        if status == "proved":
            assert_proof(answer, near)
        else:
            assert near.violated_by(answer.counterexample)


@pytest.mark.parametrize("seed", range(10))
def test_many_boxes_prove_what_samples_suggest(seed):
    base = drawn(seed, (4, 16, 16, 2))
    least = base.margin(sampled(base.low[None], base.high[None], 20_000)[:, 0]).min().item()
    question = drawn(seed, (4, 16, 16, 2), 0.2 - least)
    answer = ask(question)
    assert answer.status != "unknown"
    if answer.status == "proved":
        assert answer.work["boxes"] > 1
        assert_proof(answer, question)


def test_margins_that_only_touch_zero_are_not_proved():
    """relu(x) - x / 2 is 0 at 0 alone: a counterexample, found; raised by half the tolerance: not known."""
    weights = (rows([1.0], [1.0], [-1.0]), rows([1.0, -0.5, 0.5]))
    for lift, status in ((0.0, "refuted"), (TOLERANCE / 2, "unknown"), (1e-3, "proved")):
        network = ReluNetwork(weights, (rows(0.0, 0.0, 0.0), rows(lift)))
        answer = ask(Question(network, rows(-1.0), rows(1.0)))
        assert answer.status == status
        assert (status == "unknown") == ("within 1e-06 of 0" in answer.reason)


def test_a_box_that_is_a_point_is_answered():
    question = drawn(0)
    for shift in (10.0, -10.0):
        network = drawn(0, shift=shift).network
        answer = ask(Question(network, question.low, question.low))
        assert answer.status == ("proved" if shift > 0 else "refuted")


def test_time_over_is_not_known():
    answer = ask(drawn(2, (6, 40, 40, 40, 1), shift=3.0), seconds=0.0)
    assert (answer.status, answer.reason) == ("unknown", "time is over")
    assert answer.proof.counterexample is None


def test_a_reader_who_leaves_is_heard():
    def leave(fraction, words):
        raise Stopped

    with pytest.raises(Stopped):
        split(drawn(2), Deadline(10.0, leave))


# ---------------------------------------------------------------------------------------------- reuse


def proved(seed: int) -> tuple[Question, Answer]:
    base = drawn(seed, (4, 16, 16, 2))
    least = base.margin(sampled(base.low[None], base.high[None], 20_000)[:, 0]).min().item()
    question = drawn(seed, (4, 16, 16, 2), 0.25 - least)
    answer = ask(question)
    assert answer.status == "proved"
    return question, answer


def test_the_same_network_needs_every_box_once_and_no_other():
    question, first = proved(3)
    again = ask(question, first.proof)
    parts = len(first.proof.boxes[0])
    assert again.status == "proved"
    assert (again.reuse.parts, again.reuse.valid, again.reuse.new) == (parts, parts, 0)
    assert again.work["boxes"] == parts < first.work["boxes"]
    assert again.reuse.rate == 1.0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "change", [lambda n: rounded(n, 8), lambda n: rounded(n, 4), lambda n: thinned(n, 0.3)]
)
def test_old_boxes_change_no_verdict(seed, change):
    question, first = proved(seed)
    changed = Question(change(question.network), question.low, question.high)
    helped, alone = ask(changed, first.proof), ask(changed)
    assert helped.status == alone.status != "unknown"
    reuse = helped.reuse
    assert reuse.parts == len(first.proof.boxes[0]) == reuse.valid + reuse.broken + reuse.unchecked
    if helped.status == "proved":
        assert_proof(helped, changed)


def test_a_smaller_box_starts_from_the_parts_inside_it():
    question, first = proved(3)
    inner = Question(question.network, question.low * 0.7, question.high * 0.4)
    answer = ask(inner, first.proof)
    assert answer.status == "proved"
    assert answer.reuse.parts == answer.reuse.valid < len(first.proof.boxes[0])


def test_a_proof_about_a_smaller_box_is_refused():
    """Its boxes would leave something out."""
    question, first = proved(3)
    for low, high in ((question.low * 1.1, question.high), (question.low, question.high + 1e-9)):
        with pytest.raises(ParameterError, match="a radius at least as large"):
            ask(Question(question.network, low, high), first.proof)


def test_what_an_unfinished_proof_leaves_out_is_proved_all_the_same():
    """Nothing is taken on trust: with some boxes lost, the rest of the question is covered anew."""
    question, first = proved(3)
    keep = torch.arange(len(first.proof.boxes[0])) % 7 != 0
    torn = Proof(question, boxes=tuple(side[keep] for side in first.proof.boxes))
    answer = ask(question, torn)
    assert answer.status == "proved"
    assert answer.reuse.valid == keep.sum()
    assert answer.reuse.new >= (~keep).sum()
    assert_proof(answer, question)
    low = drawn(3, (4, 16, 16, 2), -5.0)
    assert ask(low, torn).status == "refuted"


@pytest.mark.parametrize(
    "boxes", [(torch.zeros(0, 4), torch.zeros(0, 4)), (rows([0.1] * 4), rows([0.7] * 4))]
)
def test_boxes_that_cover_nothing_help_nothing(boxes):
    question, _ = proved(3)
    answer = ask(question, Proof(question, boxes=tuple(side.double() for side in boxes)))
    assert answer.status == "proved"
    assert_proof(answer, question)


def test_covers_leave_nothing_out():
    """Whatever boxes are given, every point of the box is in a part, and parts of theirs are theirs."""
    random = torch.Generator().manual_seed(0)
    for trial in range(20):
        low, high = -torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        boxes = [(low, high)]
        for _ in range(40):
            a, b = boxes.pop(int(torch.randint(len(boxes), (1,), generator=random)))
            axis = int(torch.randint(3, (1,), generator=random))
            middle = (a[axis] + b[axis]) / 2
            boxes += [
                (a, torch.where(torch.arange(3) == axis, middle, b)),
                (torch.where(torch.arange(3) == axis, middle, a), b),
            ]
        kept = [box for box in boxes if trial == 0 or torch.rand((), generator=random) < 0.8]
        if trial > 10:  # and some that come from no cutting
            kept.append((rows(-0.3, -0.2, -0.1), rows(0.5, 0.5, 0.9)))
        given = tuple(torch.stack(side) for side in zip(*kept, strict=True))
        lows, highs, theirs = cover(low, high, given)
        points = sampled(low[None], high[None], 500, trial)  # (500, 1, 3)
        assert ((points >= lows) & (points <= highs)).all(2).any(1).all()
        assert (highs - lows).prod(1).sum().item() == pytest.approx(8.0)
        for a, b in zip(lows[theirs], highs[theirs], strict=True):
            assert ((given[0] <= a) & (given[1] >= b)).all(1).any()
        if trial == 0:
            assert theirs.all()
            assert len(lows) == len(boxes)


def test_proofs_that_are_too_long_are_not_kept(monkeypatch):
    question, first = proved(3)
    monkeypatch.setattr(splitting, "MOST_KEPT", len(first.proof.boxes[0]) - 1)
    again = ask(question)
    assert again.status == "proved"
    assert again.proof.boxes is None


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ParameterError, match="bits must lie between 2 and 16"):
        rounded(drawn(0).network, bits)


def test_copies_are_what_they_say():
    network = drawn(0).network
    for weight, changed in zip(network.weights, rounded(network, 4).weights, strict=True):
        steps = changed / (weight.abs().max() / 7)
        assert torch.allclose(steps, steps.round())
        assert (changed - weight).abs().max() <= weight.abs().max() / 14 + 1e-12
    for weight, changed in zip(network.weights, thinned(network, 0.25).weights, strict=True):
        assert (changed == 0).sum() == round(0.25 * weight.numel())
        assert weight[changed == 0].abs().max() <= changed[changed != 0].abs().min()
