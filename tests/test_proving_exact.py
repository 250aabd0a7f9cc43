"""Verdicts against a judge in exact arithmetic that shares nothing with the programs it judges."""

import itertools
from collections import Counter
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bench.proofs import marabou, shell
from core.proving.bounds import crown
from core.proving.exact import exactly, margins
from core.proving.network import ReluNetwork
from core.proving.proof import Answer, Proof
from core.proving.question import Deadline, Question
from core.proving.relaxation import Relaxation
from core.proving.search import search

NETWORKS = 520
GRID = 2**-10  # numbers are multiples of this, so that rational arithmetic stays quick
SECONDS = 60.0  # nothing here takes a second


def rational(values: Tensor) -> Tensor:
    return (values.double() / GRID).round() * GRID


def drawn(seed: int) -> Question:
    """2 to 4 inputs, 1 to 3 layers of 2 to 4 ReLUs, one or two outputs; true or false, narrowly."""
    random = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=random))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    widths = [integer(2, 4) for _ in range(1 + integer(1, 3))]
    sizes = [*itertools.pairwise(widths), (widths[-1], integer(1, 2))]
    weights = tuple(rational(normal(b, a)) for a, b in sizes)
    biases = [rational(normal(b) / 2) for _, b in sizes]
    centre, radius = rational(normal(widths[0])), rational(2 * torch.rand(1, generator=random) + GRID)
    box = centre - radius, centre + radius
    inputs = box[0] + 2 * radius * torch.rand(1000, widths[0], generator=random, dtype=torch.float64)
    least = ReluNetwork(weights, tuple(biases))(inputs).max(1).values.min()
    biases[-1] = rational(biases[-1] - least + 0.1 + 0.2 * normal(1))
    return Question(ReluNetwork(weights, tuple(biases)), *box)


def noisy(network: ReluNetwork, random: torch.Generator) -> ReluNetwork:
    weights = (w + 0.03 * torch.randn(w.shape, generator=random).double() for w in network.weights)
    return ReluNetwork(tuple(map(rational, weights)), network.biases)


def quantised(network: ReluNetwork, random: torch.Generator) -> ReluNetwork:
    steps = (w.abs().max().clamp(min=GRID) / 15 for w in network.weights)
    weights = (rational((w / s).round() * s) for w, s in zip(network.weights, steps, strict=True))
    return ReluNetwork(tuple(weights), network.biases)


def pruned(network: ReluNetwork, random: torch.Generator) -> ReluNetwork:
    weights = (torch.where(w.abs() <= w.abs().quantile(0.25), 0.0, w) for w in network.weights)
    return ReluNetwork(tuple(weights), network.biases)


def removed(network: ReluNetwork, random: torch.Generator) -> ReluNetwork:
    layer = int(torch.randint(len(network.widths), (1,), generator=random))
    gone = int(torch.randint(network.widths[layer], (1,), generator=random))
    kept = torch.arange(network.widths[layer]) != gone
    weights, biases = list(network.weights), list(network.biases)
    weights[layer], biases[layer] = weights[layer][kept], biases[layer][kept]
    weights[layer + 1] = weights[layer + 1][:, kept]
    return ReluNetwork(tuple(weights), tuple(biases))


CHANGES = (noisy, quantised, pruned, removed)


def ask(question: Question, old: Proof | None = None) -> Answer:
    bounds = crown(question.network, question.low[None], question.high[None])
    return search(question, bounds, Deadline(SECONDS), old)


def agree(question: Question, answer: Answer) -> str:
    """The judge's verdict, which must be the answer's; counterexamples are looked at exactly, too."""
    verdict, point = exactly(question, SECONDS)
    assert answer.status == verdict, (answer.reason, answer.bound)
    if verdict == "refuted":
        assert all(margin <= 0 for margin in margins(question, point))
        seen = margins(question, [Fraction(value) for value in answer.counterexample.tolist()])
        assert max(seen) <= Fraction(1, 10**9)
    return verdict


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_search_search_with_an_old_proof_and_exact_arithmetic_never_differ(change):
    found = Counter()
    for seed in range(CHANGES.index(change), NETWORKS, len(CHANGES)):
        question = drawn(seed)
        answer = ask(question)
        before = agree(question, answer)
        random = torch.Generator().manual_seed(seed)
        new = Question(change(question.network, random), question.low, question.high)
        helped, alone = ask(new, answer.proof), ask(new)
        after = agree(new, helped)
        assert alone.status == helped.status
        found[before, after] += 1
        found["searched"] += len(answer.proof.cores) > 1
        if helped.reuse:
            found["held"] += helped.reuse.valid + helped.reuse.trivial
            found["broken"] += helped.reuse.broken
    # The draw is such that every kind of case comes up often.
    assert found["proved", "proved"] > 30
    assert found["refuted", "refuted"] > 20
    assert found["proved", "refuted"] + found["refuted", "proved"] > 1
    assert found["searched"] > 10
    assert found["held"] > 30


def by_hand(bias: Fraction, second: int = 1) -> Question:
    network = ReluNetwork(
        (torch.tensor([[1.0], [1.0]]).double(), torch.tensor([[-1.0, second]]).double()),
        (torch.tensor([0.0, float(bias)]).double(), torch.tensor([0.6]).double()),
    )
    return Question(network, torch.tensor([-1.0]).double(), torch.tensor([1.0]).double())


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (by_hand(Fraction(-1, 2)), "proved"),
        (by_hand(Fraction(-11, 20)), "proved"),
        (by_hand(Fraction(-7, 10)), "refuted"),
        (by_hand(Fraction(-1, 2), second=0), "refuted"),
    ],
    ids=["-0.5", "-0.55", "-0.7", "removed"],
)
def test_the_hand_example_has_its_four_verdicts(question, expected):
    verdict, point = exactly(question, SECONDS)
    assert verdict == expected
    if point:
        assert Fraction(6, 10) - Fraction(1, 10**15) < point[0] <= 1
        assert margins(question, point)[0] <= 0


def test_the_judge_counts_equality_as_a_counterexample_and_sees_what_rounding_hides():
    one, box = torch.ones(1, 1).double(), (torch.zeros(1).double(), torch.ones(1).double())
    for offset, expected in ((0.0, ("refuted", [0])), (1e-300, ("proved", None))):
        biases = torch.zeros(1).double(), torch.full((1,), offset, dtype=torch.float64)
        assert exactly(Question(ReluNetwork((one, one), biases), *box), SECONDS) == expected


def test_exact_margins_are_the_networks():
    for seed in range(5):
        question = drawn(seed)
        x = rational(question.low + (question.high - question.low) / 3)
        seen = margins(question, [Fraction(value) for value in x.tolist()])
        assert [float(value) for value in seen] == pytest.approx(question.network(x[None])[0].tolist())


def test_without_time_the_judge_does_not_guess():
    random = torch.Generator().manual_seed(0)
    sizes = [(12, 20), (20, 20), (20, 1)]
    network = ReluNetwork(
        tuple(torch.randn(b, a, generator=random).double() for a, b in sizes),
        tuple(torch.randn(b, generator=random).double() for _, b in sizes),
    )
    box = torch.full((12,), -1.0).double(), torch.full((12,), 1.0).double()
    network = network.then(torch.eye(1), torch.tensor([-60.0]))
    assert exactly(Question(network, *box), 0.05) == ("unknown", None)


def test_whole_assignments_refuted_one_after_the_other_end_alike():
    for seed in range(0, 120, 4):
        question = drawn(seed)
        assert shell(question, Deadline(SECONDS))[0] == ask(question).status


def test_marabou_says_the_same():
    pytest.importorskip("maraboupy", reason="needs requirements-bench.txt")
    for seed in range(1, 120, 4):
        question = drawn(seed)
        assert marabou(question, int(SECONDS))[0] == ask(question).status


def test_a_linear_program_knows_at_least_what_bounds_know():
    for seed in (*range(200), 5267):  # in the last one the end of an input's range matters
        question = drawn(seed)
        bounds = crown(question.network, question.low[None], question.high[None])
        found = Relaxation(question, bounds).value(())
        assert found.support is not None or found.value >= bounds.margin.item() - 1e-7
