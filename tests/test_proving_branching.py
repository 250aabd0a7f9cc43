"""Optimised bounds lie between CROWN's and the truth; branching over phases agrees with brute force."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from core.proving.bounds import crown
from core.proving.branching import branch, holes
from core.proving.network import ReluNetwork
from core.proving.proof import Core, Literal, Proof
from core.proving.question import TOLERANCE, Deadline, Question
from core.proving.slopes import Slopes, alive, lines, optimised, ranges, tightened

POINTS = 10_000


def random_question(seed: int, widths=(3, 5, 5), outputs: int = 1, radius: float = 0.6) -> Question:
    random = torch.Generator().manual_seed(seed)
    sizes = [*widths, outputs]
    weights = [torch.randn(b, a, generator=random).double() for a, b in itertools.pairwise(sizes)]
    biases = [0.5 * torch.randn(b, generator=random).double() for b in sizes[1:]]
    middle = torch.randn(widths[0], generator=random).double()
    return Question(ReluNetwork(tuple(weights), tuple(biases)), middle - radius, middle + radius)


def shifted(question: Question, by: float) -> Question:
    """The same with all margins larger by so much."""
    outputs = question.network.outputs
    network = question.network.then(torch.eye(outputs), torch.full((outputs,), -by))
    return Question(network, question.low, question.high)


def root(question: Question):
    return crown(question.network, question.low[None], question.high[None])


def answer(question: Question, old: Proof | None = None, seconds: float = 60.0):
    return branch(question, root(question), Deadline(seconds), old)


def sample(question: Question, count: int = POINTS) -> Tensor:
    random = torch.Generator().manual_seed(1)
    share = torch.rand(count, len(question.low), generator=random, dtype=torch.float64)
    share[: count // 2] = share[: count // 2].round()  # corners, too: extremes lie there
    return question.low + share * (question.high - question.low)


def inside(question: Question, phases: Tensor, x: Tensor) -> Tensor:
    """(X,) bool: all hidden inputs are in `phases` (N,)."""
    z = torch.cat(question.network.preactivations(x)[:-1], 1)
    return (z * phases >= 0).all(1)


def least(question: Question, phases: np.ndarray | None = None) -> float:
    """The smallest of the largest margins, by a linear program for every choice of phases."""
    network = question.network
    weights, biases = ([v.numpy() for v in side] for side in (network.weights, network.biases))
    total = sum(network.widths)
    found = np.inf
    for signs in itertools.product((-1, 1), repeat=total):
        signs = np.array(signs)
        if phases is not None and (signs * phases < 0).any():
            continue
        matrix, offset = np.eye(network.inputs), np.zeros(network.inputs)
        rows, sides, at = [], [], 0
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            matrix, offset = weight @ matrix, weight @ offset + bias
            sign = signs[at : at + len(bias)]
            rows.append(-sign[:, None] * matrix)  # sign * z >= 0
            sides.append(sign * offset)
            matrix, offset = matrix * (sign > 0)[:, None], offset * (sign > 0)
            at += len(bias)
        matrix, offset = weights[-1] @ matrix, weights[-1] @ offset + biases[-1]
        rows = np.concatenate(
            [*(np.pad(r, ((0, 0), (0, 1))) for r in rows), np.pad(matrix, ((0, 0), (0, 1)))]
        )
        rows[-len(matrix) :, -1] = -1.0
        box = [*zip(question.low.tolist(), question.high.tolist(), strict=True), (None, None)]
        cost = np.eye(1, rows.shape[1], rows.shape[1] - 1)[0]
        solved = linprog(cost, A_ub=rows, b_ub=np.concatenate([*sides, -offset]), bounds=box)
        if solved.status == 0:
            found = min(found, solved.fun)
    return found


def literals(question: Question, core: Core) -> np.ndarray:
    starts = np.cumsum([0, *question.network.widths])
    phases = np.zeros(starts[-1])
    for literal in core:
        phases[starts[literal.layer] + literal.neuron] = literal.phase
    return phases


def leave_nothing(cores: tuple[Core, ...]) -> bool:
    """Is there no choice of phases without a core? Asked of z3."""
    z3 = pytest.importorskip("z3")
    solver = z3.Solver()
    for core in cores:
        names = [z3.Bool(f"{x.layer} {x.neuron}") for x in core]
        solver.add(z3.Or([z3.Not(n) if x.phase > 0 else n for n, x in zip(names, core, strict=True)]))
    return solver.check() == z3.unsat


# ------------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize("seed", range(6))
def test_no_slopes_and_multipliers_are_unsound(seed):
    question = random_question(seed, widths=(4, 8, 8, 6), outputs=2)
    random = torch.Generator().manual_seed(seed)
    x = sample(question)
    margins = question.network(x)
    for _ in range(20):
        phases = torch.randint(-1, 2, (1, 22), generator=random)
        phases[:, torch.rand(22, generator=random) < 0.7] = 0
        here = inside(question, phases[0], x)
        ways = lines(question.network, question.low, question.high, ranges(root(question)), phases)
        size = 10 ** (4 * torch.rand(1, generator=random).item() - 2)
        alpha = torch.rand(2, 22, generator=random, dtype=torch.float64)
        beta = size * torch.rand(2, 22, generator=random, dtype=torch.float64)
        each = torch.zeros(2, dtype=torch.long)
        for found in (ways, ways.refreshed()):
            value = found.take(each).bound(3, torch.eye(2).double(), Slopes(alpha, beta)).value
            assert (margins[here] >= value - 1e-9).all()
            z = torch.cat(question.network.preactivations(x)[:-1], 1)[here]
            assert (z >= found.below - 1e-9).all()
            assert (z <= found.above + 1e-9).all()


def test_the_gradient_is_that_of_automatic_differentiation():
    question = random_question(3, widths=(4, 9, 7), outputs=2)
    random = torch.Generator().manual_seed(0)
    phases = torch.randint(-1, 2, (2, 16), generator=random)
    ways = lines(question.network, question.low, question.high, ranges(root(question)), phases)
    alpha = torch.rand(2, 16, generator=random, dtype=torch.float64).requires_grad_(True)
    beta = torch.rand(2, 16, generator=random, dtype=torch.float64).requires_grad_(True)
    line = ways.bound(2, torch.eye(2).double(), Slopes(alpha, beta))
    slopes = torch.autograd.grad(line.value.sum(), (alpha, beta))
    open_ = (ways.below < 0) & (ways.above > 0)
    assert open_.any()
    assert (phases != 0).any()
    torch.testing.assert_close(slopes[0], (line.pull.clamp(min=0) * line.guess * open_).detach())
    torch.testing.assert_close(slopes[1], (-phases * line.guess).detach())


@pytest.mark.parametrize("seed", range(4))
def test_optimised_bounds_lie_between_crown_and_the_truth(seed):
    question = random_question(seed, widths=(3, 4, 4))
    random = torch.Generator().manual_seed(seed)
    phases = torch.randint(-1, 2, (6, 8), generator=random).to(torch.int8)
    phases[0] = 0
    before = crown(question.network, question.low[None], question.high[None])
    found, slopes = optimised(
        question.network, question.low, question.high, before, phases.split([4, 4], 1), 40
    )
    assert found.shape == (6, 1)
    assert slopes.alpha.shape == (6, 8)
    assert (found >= before.margins - 1e-12).all()
    assert (found[1:] > before.margins).any()  # phases and steps are of use
    for row, value in zip(phases.numpy(), found[:, 0].tolist(), strict=True):
        assert value <= least(question, row) + 1e-7


def test_tightened_ranges_hold_and_are_never_wider():
    gained = 0.0
    for seed in range(5):
        question = random_question(seed, widths=(6, 20, 20, 20, 20), radius=0.15)
        before = root(question)
        after = tightened(question.network, question.low, question.high, before, 15)
        for low, high, less, more, z in zip(
            after.lows,
            after.highs,
            before.lows,
            before.highs,
            question.network.preactivations(sample(question)),
            strict=False,
        ):
            assert (low >= less).all()
            assert (high <= more).all()
            assert (z >= low - 1e-9).all()
            assert (z <= high + 1e-9).all()
            gained += ((more - less) - (high - low)).sum().item()
        assert (after.margins >= before.margins - 1e-12).all()
        small, _, kept = alive(question.network, after)
        assert small.widths == tuple(len(index) for index in kept)
        torch.testing.assert_close(small(sample(question)), question.network(sample(question)))
    assert gained > 0


# ------------------------------------------------------------------------------------------ the verdicts


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_verdicts_are_those_of_brute_force(seed, outputs):
    question = random_question(seed, widths=(3, 4, 4), outputs=outputs)
    truth = least(question)
    for distance in (0.02, 0.3):
        proved = answer(shifted(question, distance - truth))
        assert proved.status == "proved"
        assert TOLERANCE < proved.bound <= distance + 1e-7
        assert leave_nothing(proved.proof.cores)
        wrong = shifted(question, -distance - truth)
        refuted = answer(wrong)
        assert refuted.status == "refuted"
        assert wrong.violated_by(refuted.counterexample)
        x = sample(wrong)
        x = x[wrong.margin(x) <= 0]
        for core in refuted.proof.cores:  # no counterexample has the phases of one
            assert not inside(wrong, torch.from_numpy(literals(wrong, core)), x).any()


@pytest.mark.parametrize("seed", range(3))
def test_cores_are_cases_without_counterexamples_and_leave_no_choice(seed):
    question = random_question(seed, widths=(6, 16, 16, 12), radius=0.25)
    middle = question.margin(sample(question)).min().item()
    question = shifted(question, 0.1 - middle)
    found = answer(question)
    assert found.status == "proved"
    assert len(found.proof.cores) > 5
    assert leave_nothing(found.proof.cores)
    assert not leave_nothing(found.proof.cores[1:]) or not leave_nothing(found.proof.cores[2:])
    assert (question.margin(sample(question)) >= found.bound).all()
    assert found.work["cores"] == len(found.proof.cores)
    assert found.work["bounds"] > 0


def test_a_margin_too_close_to_0_is_neither_proved_nor_refuted():
    one = torch.ones(1, 1, dtype=torch.float64)
    twice = torch.cat([one, -one])  # |x| + 5e-7, least at 0
    network = ReluNetwork((twice, torch.ones(1, 2).double()), (torch.zeros(2).double(), one[0] * 5e-7))
    found = answer(Question(network, -one[0], one[0]))
    assert found.status == "unknown"
    assert "of 0" in found.reason
    assert found.bound <= 5e-7 + 1e-12


def test_equal_questions_have_equal_answers():
    question = shifted(random_question(1, widths=(6, 16, 16, 12), radius=0.25), 2.0)
    first, second = answer(question), answer(question)
    assert (first.status, first.bound, first.work) == (second.status, second.bound, second.work)
    assert first.proof.cores == second.proof.cores


def test_without_time_nothing_is_said():
    question = shifted(random_question(0), 1000.0)  # easily proved, with time
    assert answer(question).status == "proved"
    found = answer(question, seconds=0.0)
    assert found.status == "unknown"
    assert "time" in found.reason


def test_a_reader_who_leaves_stops_the_search():
    def leave(fraction: float, words: str) -> None:
        raise KeyboardInterrupt

    question = random_question(0)
    with pytest.raises(KeyboardInterrupt):
        branch(question, root(question), Deadline(10.0, leave))


# -------------------------------------------------------------------------------------------- old cores


def example(bias: float) -> Question:
    """relu(x) - relu(x + bias) <= 0.6 for x in [-1, 1]."""
    weights = (torch.ones(2, 1).double(), torch.tensor([[-1.0, 1.0]]).double())
    network = ReluNetwork(weights, (torch.tensor([0.0, bias]).double(), torch.tensor([0.6]).double()))
    return Question(network, -torch.ones(1).double(), torch.ones(1).double())


def test_the_example_by_hand():
    first = answer(example(-0.5))
    assert first.status == "proved"
    assert leave_nothing(first.proof.cores)
    again = answer(example(-0.55), first.proof)
    assert again.status == "proved"
    assert again.reuse.valid == again.reuse.parts
    assert again.reuse.new == 0
    wrong = answer(example(-0.7), first.proof)
    assert wrong.status == "refuted"
    assert 0.6 < wrong.counterexample.item() <= 1.0


@pytest.mark.parametrize("seed", range(4))
def test_old_cores_change_no_verdict(seed):
    question = random_question(seed, widths=(6, 16, 16, 12), radius=0.25)
    question = shifted(question, 0.15 - question.margin(sample(question)).min().item())
    old = answer(question).proof
    same = answer(question, old)
    assert same.status == "proved"
    assert same.reuse.rate >= 0.95  # bounded anew from other slopes, a core may miss by a little
    assert same.work["nodes"] <= 0.1 * answer(question).work["nodes"]
    random = torch.Generator().manual_seed(seed)
    for size in (0.003, 0.03, 0.3):
        noise = [torch.randn(w.shape, generator=random) for w in question.network.weights]
        weights = tuple(w + size * n.double() for w, n in zip(question.network.weights, noise, strict=True))
        changed = Question(ReluNetwork(weights, question.network.biases), question.low, question.high)
        with_old, without = answer(changed, old), answer(changed)
        assert with_old.status == without.status
        reuse = with_old.reuse
        assert reuse.trivial + reuse.valid + reuse.broken + reuse.unchecked == reuse.parts == len(old.cores)
        if with_old.status == "proved":
            assert leave_nothing(with_old.proof.cores)


def test_cores_of_an_unfinished_proof_or_of_nonsense_are_hints_only():
    question = random_question(2, widths=(6, 16, 16, 12), radius=0.25)
    question = shifted(question, 0.15 - question.margin(sample(question)).min().item())
    done = answer(question).proof
    nonsense = tuple((Literal(0, i, 1), Literal(1, i, -1)) for i in range(5))
    for cores in (done.cores[: len(done.cores) // 2], nonsense, ((Literal(2, 0, 1),),)):
        found = answer(question, Proof(question, cores))
        assert found.status == "proved"
        assert leave_nothing(found.proof.cores)
    wrong = shifted(question, -0.5)
    assert answer(wrong, done).status == "refuted"


def test_old_cores_go_along_when_neurons_are_taken_out():
    question = random_question(5, widths=(6, 16, 16, 12), radius=0.25)
    question = shifted(question, 0.2 - question.margin(sample(question)).min().item())
    old = answer(question).proof
    weights, biases = list(question.network.weights), list(question.network.biases)
    kept = torch.tensor([i for i in range(16) if i != weights[2].abs().sum(0).argmin()])
    weights[1], biases[1], weights[2] = weights[1][kept], biases[1][kept], weights[2][:, kept]
    smaller = Question(ReluNetwork(tuple(weights), tuple(biases)), question.low, question.high)
    assert answer(smaller, old).status == answer(smaller).status


@pytest.mark.parametrize("seed", range(20))
def test_holes_are_what_no_core_is_about(seed):
    random = torch.Generator().manual_seed(seed)
    cores = torch.randint(-1, 2, (seed, 6), generator=random).to(torch.int8)
    cores[torch.rand(seed, 6, generator=random) < 0.4] = 0
    left = holes(cores, 1000)
    for signs in itertools.product((-1, 1), repeat=6):
        signs = torch.tensor(signs, dtype=torch.int8)
        in_core, in_hole = (bool((part * signs >= 0).all(1).any()) for part in (cores, left))
        assert in_core or in_hole
        assert not (in_core and in_hole)
    assert holes(cores[:0], 1000).tolist() == [[0] * 6]
    assert holes(torch.eye(6, dtype=torch.int8), 0) is None
