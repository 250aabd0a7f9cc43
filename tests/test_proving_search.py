"""The search over phases, its cores, and what becomes of them on a changed network."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from core.errors import Stopped
from core.proving.bounds import Bounds, crown
from core.proving.changes import CONNECTIONS, KINDS, NUMBERS, REMOVED, UNCHANGED, classify, match, translate
from core.proving.network import ReluNetwork
from core.proving.proof import Answer, Core, Literal, Proof
from core.proving.question import TOLERANCE, Deadline, Question
from core.proving.relaxation import Dials, Found, Relaxation, Sides, lower_bound
from core.proving.search import Certified, _Search, search


def bounds_of(question: Question) -> Bounds:
    return crown(question.network, question.low[None], question.high[None])


def ask(question: Question, old: Proof | None = None, seconds: float = 60.0, **options) -> Answer:
    return search(question, bounds_of(question), Deadline(seconds), old, **options)


def rows(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_hand(bias: float = -0.5, second: float = 1.0) -> Question:
    """Is relu(x) - second * relu(x + bias) below 0.6 for all x between -1 and 1?"""
    network = ReluNetwork((rows([1.0], [1.0]), rows([-1.0, second])), (rows(0.0, bias), rows(0.6)))
    return Question(network, rows(-1.0), rows(1.0))


def drawn(seed: int, widths: tuple[int, ...], radius: float, margin: float) -> Question:
    """A random network whose smallest margin among sampled inputs is about `margin`."""
    random = torch.Generator().manual_seed(seed)
    sizes = list(itertools.pairwise(widths))
    weights = [torch.randn(b, a, generator=random).double() / a**0.5 for a, b in sizes]
    biases = [torch.randn(b, generator=random).double() / 2 for _, b in sizes]
    centre = torch.rand(widths[0], generator=random).double()
    inputs = centre + radius * (2 * torch.rand(4000, widths[0], generator=random).double() - 1)
    network = ReluNetwork(tuple(weights), tuple(biases))
    biases[-1] = biases[-1] - network(inputs).max(1).values.min() + margin
    return Question(ReluNetwork(tuple(weights), tuple(biases)), centre - radius, centre + radius)


def sampled(question: Question, count: int = 10_000) -> Tensor:
    random = torch.Generator().manual_seed(1)
    unit = torch.rand(count, len(question.low), generator=random, dtype=torch.float64)
    return question.low + (question.high - question.low) * unit


def changed(question: Question, seed: int, noise: float) -> Question:
    """The same question about weights with relative noise."""
    random = torch.Generator().manual_seed(seed)
    weights = tuple(
        w * (1 + noise * torch.randn(w.shape, generator=random).double()) for w in question.network.weights
    )
    return Question(ReluNetwork(weights, question.network.biases), question.low, question.high)


HARD = [  # seed, widths, radius, margin
    (2, (6, 8, 8, 1), 0.6, 0.05),
    (10, (6, 8, 8, 1), 0.6, 0.2),
    (1, (10, 12, 1), 0.6, 0.2),
    (5, (10, 12, 1), 0.6, 0.2),
    (5, (5, 7, 7, 7, 2), 0.6, 0.05),
    (7, (5, 7, 7, 7, 2), 0.6, 0.05),
    (2, (6, 10, 10, 1), 0.6, 0.1),
    (5, (6, 10, 10, 1), 0.6, 0.1),
]


@pytest.fixture(scope="module", params=HARD, ids=str)
def hard(request) -> tuple[Question, Answer]:
    """A question that is true and takes several cores, and its answer."""
    question = drawn(*request.param)
    answer = ask(question)
    assert answer.status == "proved"
    assert len(answer.proof.cores) >= 7
    return question, answer


# ------------------------------------------------------------------------------------- the hand example


def test_the_hand_example_has_the_bound_and_the_two_cores_that_were_reckoned_by_hand():
    question = by_hand()
    root = Relaxation(question, bounds_of(question)).value(())
    assert root.value == pytest.approx(0.6 - 0.75)
    assert root.point.tolist() == pytest.approx([0.5])
    answer = ask(question)
    assert (answer.status, answer.bound) == ("proved", pytest.approx(0.1))
    assert set(answer.proof.cores) == {(Literal(0, 0, 1),), (Literal(0, 0, -1),)}


@pytest.mark.parametrize(
    ("new", "status", "valid"),
    [
        (by_hand(-0.55), "proved", 2),
        (by_hand(-0.7), "refuted", 1),
        (by_hand(second=0.0), "refuted", 1),
    ],
    ids=["-0.55", "-0.7", "removed"],
)
def test_the_hand_example_is_compressed(new, status, valid):
    answer = ask(new, ask(by_hand()).proof)
    assert answer.status == status
    assert (answer.reuse.parts, answer.reuse.valid) == (2, valid)
    if status == "refuted":
        assert 0.6 < answer.counterexample.item() <= 1
        assert new.violated_by(answer.counterexample)
    else:
        assert answer.reuse.new == answer.work["lps"] == 0


# -------------------------------------------------------------------------------------------- the program


def definition(question: Question, bounds: Bounds, core: Core) -> float:
    """The least largest output under the phases of `core`, as one writes it down, by scipy; inf: no input."""
    network = question.network
    size, phases = sum(network.widths), {(p.layer, p.neuron): p.phase for p in core}
    inputs = network.inputs
    total = 1 + inputs + 2 * size  # t, x, then z and h of every ReLU
    limits = [(None, None), *zip(question.low.tolist(), question.high.tolist(), strict=True)]
    limits += [(None, None)] * (2 * size)
    equal, less = [], []  # (row, right side)

    def row(entries) -> np.ndarray:
        found = np.zeros(total)
        for column, value in entries:
            found[column] += value
        return found

    before, start = list(range(1, 1 + inputs)), 1 + inputs
    for k, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        for i in range(len(bias)):
            terms = list(zip(before, weight[i].tolist(), strict=True))
            if k == len(network.widths):
                less.append((row([*terms, (0, -1.0)]), -bias[i].item()))
                continue
            z, h = start + i, start + len(bias) + i
            equal.append((row([*terms, (z, -1.0)]), -bias[i].item()))
            low, high = bounds.lows[k][0, i].item(), bounds.highs[k][0, i].item()
            phase = phases.get((k, i), 1 if low >= 0 else -1 if high <= 0 else 0)
            if phase:
                equal.append((row([(h, 1.0), (z, -1.0)] if phase > 0 else [(h, 1.0)]), 0.0))
                less.append((row([(z, -1.0 * phase)]), 0.0))
            else:
                slope = high / (high - low)
                less += [(row([(h, -1.0)]), 0.0), (row([(z, 1.0), (h, -1.0)]), 0.0)]
                less.append((row([(h, 1.0), (z, -slope)]), -slope * low))
        if k < len(network.widths):
            before = list(range(start + len(bias), start + 2 * len(bias)))
            start += 2 * len(bias)
    (a, b), (c, d) = (zip(*part, strict=True) for part in (equal, less))
    found = linprog(row([(0, 1.0)]), np.array(c), np.array(d), np.array(a), np.array(b), limits)
    assert found.status in (0, 2)
    return found.fun if found.status == 0 else np.inf


@pytest.mark.parametrize("seed", range(3))
def test_the_warm_program_says_what_the_definition_says_from_scratch(seed):
    question = drawn(seed, (5, 6, 6, 1 + seed), 0.7, 0.1)
    bounds = bounds_of(question)
    program, sides = Relaxation(question, bounds), Sides(question, bounds)
    random = np.random.default_rng(seed)
    literals = [
        Literal(k, int(i), 1) for k, part in enumerate(sides.layers) for i in np.flatnonzero(sides.open[part])
    ]
    assert len(literals) >= 6
    infeasible = 0
    for _ in range(60):
        size = random.integers(0, len(literals) + 1)
        chosen = sorted(random.choice(len(literals), size, replace=False))
        core = tuple(literals[i]._replace(phase=int(random.choice([-1, 1]))) for i in chosen)
        expected, found = definition(question, bounds, core), program.value(core)
        infeasible += expected == np.inf
        if found.support is None:
            assert found.value == pytest.approx(expected, abs=1e-6)
            assert found.value <= TOLERANCE
        else:  # fewer phases are enough, and have a value of their own
            assert set(found.support) <= set(core)
            assert TOLERANCE < found.value <= definition(question, bounds, found.support) + 1e-6
            assert expected > TOLERANCE
    assert infeasible > 5


def test_any_dials_make_a_bound_that_holds(hard):
    question, _ = hard
    sides, random = Sides(question, bounds_of(question)), np.random.default_rng(0)
    inputs = sampled(question)
    z = torch.cat(question.network.preactivations(inputs)[:-1], 1).numpy()
    outputs = question.network(inputs).numpy()
    checked = 0
    for _ in range(200):
        phases = random.choice([-1, 0, 0, 0, 0, 1], (1, sides.size)).astype(np.int8) * sides.open
        shares = random.dirichlet(np.ones(outputs.shape[1]))[None]
        tilts = random.normal(0.0, 0.1, (1, sides.size)) * random.integers(0, 2)
        dials = Dials(shares, random.normal(0.3, 1.0, (1, sides.size)), tilts)
        bound = lower_bound(sides, phases, dials).values[0]
        there = ((phases == 0) | (phases * z >= 0)).all(1)
        checked += int(there.any())
        assert (outputs[there] @ shares[0] >= bound - 1e-9).all()
    assert checked > 20


# ----------------------------------------------------------------------------------------------- its cores


def test_cores_refute_are_minimal_and_no_input_that_has_their_phases_is_a_counterexample(hard):
    question, answer = hard
    bounds = bounds_of(question)
    program = Relaxation(question, bounds)
    inputs = sampled(question)
    z, margin = question.network.preactivations(inputs), question.margin(inputs)
    for core in answer.proof.cores:
        assert definition(question, bounds, core) > TOLERANCE
        for literal in core:
            assert program.value(tuple(x for x in core if x != literal)).support is None
        there = torch.ones(len(inputs), dtype=torch.bool)
        for literal in core:
            there &= z[literal.layer][:, literal.neuron] * literal.phase >= 0
        assert (margin[there] > 0).all()
    assert (margin >= answer.bound - 1e-9).all()


def test_cores_leave_no_choice_of_phases(hard):
    _, answer = hard
    literals = sorted({(p.layer, p.neuron) for core in answer.proof.cores for p in core})
    assert len(literals) <= 16
    cores = [{(p.layer, p.neuron): p.phase for p in core} for core in answer.proof.cores]
    for phases in itertools.product((-1, 1), repeat=len(literals)):
        chosen = dict(zip(literals, phases, strict=True))
        assert any(all(chosen[place] == phase for place, phase in core.items()) for core in cores)


def test_the_dials_prove_every_core(hard):
    question, answer = hard
    assert isinstance(answer.proof, Certified)
    sides = Sides(question, bounds_of(question))
    bound = lower_bound(sides, sides.phases(answer.proof.cores), answer.proof.dials)
    assert (bound.values > TOLERANCE).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("margin", [0.02, -0.02])
def test_the_answer_is_that_of_all_patterns_one_by_one(seed, margin):
    question = drawn(seed + 20, (4, 5, 4, 1), 0.8, margin)
    bounds = bounds_of(question)
    places = [(k, int(i)) for k, part in enumerate(bounds.unstable()) for i in part[0].nonzero()[:, 0]]
    assert 4 <= len(places) <= 12
    least = min(
        definition(question, bounds, tuple(Literal(*p, s) for p, s in zip(places, phases, strict=True)))
        for phases in itertools.product((-1, 1), repeat=len(places))
    )
    answer = ask(question)
    assert answer.status == ("proved" if least > TOLERANCE else "refuted")
    if answer.status == "proved":
        assert answer.bound <= least + 1e-6
    else:
        assert question.violated_by(answer.counterexample)


def test_slack_makes_cores_that_are_minimal_for_more():
    question = drawn(*HARD[0])
    slack, program = 0.05, Relaxation(question, bounds_of(question))
    answer = ask(question, slack=slack)
    assert answer.status == "proved"
    sturdy = [core for core in answer.proof.cores if program.value(core, slack).value > slack]
    assert sturdy
    for core in sturdy:
        for literal in core:
            found = program.value(tuple(x for x in core if x != literal), 1e9)
            assert found.support is None or found.value <= slack + 1e-6


def test_cores_that_are_not_minimised_cost_less_and_close_every_case_too(hard):
    question, answer = hard
    quick = ask(question, minimal=False)
    assert quick.status == "proved"
    assert quick.work["lps"] <= answer.work["lps"]
    test_cores_leave_no_choice_of_phases((question, quick))


# ----------------------------------------------------------------------------------------- what is reused


def test_the_same_network_reuses_everything_and_solves_nothing(hard):
    question, answer = hard
    again = ask(question, answer.proof)
    assert again.status == "proved"
    assert again.reuse.rate == 1
    assert (again.reuse.new, again.work["lps"]) == (0, 0)
    assert set(again.proof.cores) == set(answer.proof.cores)


def test_cores_alone_without_dials_are_checked_one_by_one(hard):
    question, answer = hard
    again = ask(question, Proof(question, answer.proof.cores))
    assert again.status == "proved"
    assert again.reuse.rate == 1
    assert again.reuse.new == 0
    assert again.work["lps"] <= len(answer.proof.cores) + 2


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_help_changes_no_answer_and_what_it_takes_over_holds(hard, noise):
    question, answer = hard
    for seed in range(3):
        new = changed(question, seed, noise)
        alone, helped = ask(new), ask(new, answer.proof)
        assert helped.status == alone.status
        if helped.status == "proved":
            bounds = bounds_of(new)
            assert all(definition(new, bounds, core) > TOLERANCE for core in helped.proof.cores)
            test_cores_leave_no_choice_of_phases((new, helped))
        reuse = helped.reuse
        assert reuse.parts == len(answer.proof.cores)
        assert reuse.trivial + reuse.valid + reuse.broken + reuse.unchecked == reuse.parts


def test_a_proof_that_is_nonsense_costs_time_and_no_truth(hard):
    question, _ = hard
    sides = Sides(question, bounds_of(question))
    everything = [
        Literal(k, int(i), phase)
        for k, part in enumerate(sides.layers)
        for i in np.flatnonzero(sides.open[part])
        for phase in (-1, 1)
    ]
    wrong = Proof(question, tuple((literal,) for literal in everything))
    outputs = question.network.outputs
    lower = question.network.then(torch.eye(outputs), torch.full((outputs,), 0.5))
    false = Question(lower, question.low, question.high)
    assert ask(question, wrong).status == "proved"
    assert ask(false, wrong).status == "refuted"
    turns = np.random.default_rng(0).normal(size=(len(everything), sides.size))
    for share in (1 / outputs, 0.0, -1.0, 100.0, np.nan):
        dials = Dials(np.full((len(everything), outputs), share), turns, turns)
        assert ask(false, Certified(question, wrong.cores, dials=dials)).status == "refuted"


def test_after_some_broken_cores_in_a_row_the_rest_is_left_alone(monkeypatch):
    monkeypatch.setattr("core.proving.search.PATIENCE", 3)
    question = drawn(*HARD[-1])
    bounds, program = bounds_of(question), Relaxation(question, bounds_of(question))
    places = [(k, int(i)) for k, part in enumerate(bounds.unstable()) for i in part[0].nonzero()[:, 0]]
    pairs = [
        (Literal(*first, phase), Literal(*second, other))
        for first, second in itertools.combinations(places, 2)
        for phase, other in itertools.product((-1, 1), repeat=2)
    ]
    sides = Sides(question, bounds)
    split = [torch.from_numpy(sides.phases(pairs)[:, part]) for part in sides.layers]
    kept = crown(question.network, question.low[None], question.high[None], split).margin > TOLERANCE
    broken = tuple(
        core
        for core, holds in zip(pairs, kept.tolist(), strict=True)
        if not holds and program.value(core).support is None
    )
    assert len(broken) > 100
    answer = ask(question, Proof(question, broken))
    assert answer.status == "proved"
    assert answer.reuse.broken == 3
    assert answer.reuse.unchecked > 90


def test_a_smaller_box_is_proved_from_the_larger_one(hard):
    question, answer = hard
    middle = (question.low + question.high) / 2
    for share in (0.9, 0.5, 0.0):
        low, high = middle + share * (question.low - middle), middle + share * (question.high - middle)
        inner = Question(question.network, low, high)
        assert ask(inner).status == "proved"
        helped = ask(inner, answer.proof)
        assert helped.status == "proved"
        assert helped.reuse.rate == 1


# --------------------------------------------------------------------------------- time, ends, bad inputs


def test_without_time_the_answer_is_unknown_and_says_how_many_relus_there_were():
    question = drawn(*HARD[0])
    answer = ask(question, seconds=0.0)
    opened = sum(int(part.sum()) for part in bounds_of(question).unstable())
    assert answer.status == "unknown"
    assert f"{opened} open ReLUs" in answer.reason


def test_a_margin_of_nothing_is_unknown_and_never_proved():
    network = ReluNetwork((rows([1.0], [1.0]), rows([1.0, -1.0])), (rows(0.0, -0.5), rows(TOLERANCE / 2)))
    answer = ask(Question(network, rows(-1.0), rows(1.0)))
    assert answer.status == "unknown"
    assert "within" in answer.reason


def test_a_search_stops_when_its_reader_leaves():
    def leave(fraction, words):
        raise Stopped

    question = drawn(1, (20, 30, 30, 1), 0.6, 0.5)  # takes longer than anyone waits
    with pytest.raises(Stopped):
        search(question, bounds_of(question), Deadline(30.0, leave))


def test_a_network_without_relus_is_answered_by_one_program():
    for offset, status in ((1.1, "proved"), (0.9, "refuted")):
        network = ReluNetwork((rows([1.0, -1.0]),), (rows(2 * offset),))
        answer = ask(Question(network, rows(-1.0, -1.0), rows(1.0, 1.0)))
        assert (answer.status, answer.work["lps"]) == (status, 1)


# ----------------------------------------------------------------------------------------- what changed


def three() -> ReluNetwork:
    random = torch.Generator().manual_seed(0)
    sizes = ((5, 4), (4, 5), (1, 4))
    return ReluNetwork(
        tuple(torch.randn(*size, generator=random).double() for size in sizes),
        tuple(torch.randn(size[0], generator=random).double() for size in sizes),
    )


def test_neurons_are_classified_by_what_became_of_their_rows():
    before = three()
    weights = [w.clone() for w in before.weights]
    weights[0][1] *= 1.1  # other numbers
    weights[0][2, 3] = 0.0  # a connection
    weights[0][3] = 0.0  # reads nothing
    weights[1][:, 4] = 0.0  # read by nobody
    found = classify(before, ReluNetwork(tuple(weights), before.biases))
    assert found.classes[0].tolist() == [UNCHANGED, NUMBERS, CONNECTIONS, REMOVED, REMOVED]
    assert found.classes[1].tolist() == [CONNECTIONS] * 4
    assert found.counts[0] == dict(zip(KINDS, (1, 1, 1, 2), strict=True))
    assert all(kind == UNCHANGED for layer in classify(before, before).classes for kind in layer)


def without(network: ReluNetwork, layer: int, neuron: int) -> ReluNetwork:
    weights, biases = list(network.weights), list(network.biases)
    kept = [i for i in range(network.widths[layer]) if i != neuron]
    weights[layer], biases[layer] = weights[layer][kept], biases[layer][kept]
    weights[layer + 1] = weights[layer + 1][:, kept]
    return ReluNetwork(tuple(weights), tuple(biases))


def test_a_network_of_another_depth_keeps_no_neuron():
    deep = three()
    flat = ReluNetwork((deep.weights[0], deep.weights[2] @ deep.weights[1]), deep.biases[::2])
    for before, after in ((deep, flat), (flat, deep)):
        counts = classify(before, after).counts
        assert [row["neuron removed"] for row in counts] == list(before.widths)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_removed_neurons_are_found_where_they_are_missing(noise):
    before = three()
    random = torch.Generator().manual_seed(1)
    after = without(without(before, 0, 1), 1, 3)
    after = ReluNetwork(
        tuple(w * (1 + noise * torch.randn(w.shape, generator=random).double()) for w in after.weights),
        after.biases,
    )
    assert [place.tolist() for place in match(before, after)] == [[0, -1, 1, 2, 3], [0, 1, 2, -1]]
    kinds, kept = classify(before, after).classes, NUMBERS if noise else UNCHANGED
    assert kinds[0].tolist() == [kept, REMOVED, kept, kept, kept]
    assert kinds[1].tolist() == [CONNECTIONS] * 3 + [REMOVED]


def test_the_best_match_in_order_is_the_best_of_all():
    random = torch.Generator().manual_seed(2)
    old, new = torch.randn(7, 3, generator=random).double(), torch.randn(4, 3, generator=random).double()
    before, after = (
        ReluNetwork((w, torch.ones(1, len(w)).double()), (torch.zeros(len(w)).double(), rows(0.0)))
        for w in (old, new)
    )

    def distance(chosen: tuple[int, ...]) -> float:
        return (old[list(chosen)] - new).square().sum().item()

    best = min(itertools.combinations(range(7), 4), key=distance)
    places = match(before, after)[0].tolist()
    assert tuple(i for i, place in enumerate(places) if place >= 0) == best
    assert [place for place in places if place >= 0] == [0, 1, 2, 3]


def test_literals_that_go_without_saying_are_dropped_and_impossible_ones_make_a_core_trivial():
    places = (torch.tensor([0, -1, 1]),)
    fixed = [torch.tensor([0, 1])]
    on, off = Literal(0, 0, 1), Literal(0, 0, -1)
    gone, fast = Literal(0, 1, 1), Literal(0, 2, 1)
    cores = [(on,), (off, fast), (fast._replace(phase=-1),), (on, gone._replace(phase=-1)), (gone,)]
    assert translate(cores, places, fixed) == [(on,), (off,), None, (on,), None]


def test_a_proof_survives_neurons_that_were_removed():
    question = drawn(*HARD[0])
    old = ask(question)
    for layer, neuron in itertools.product((0, 1), range(8)):
        new = Question(without(question.network, layer, neuron), question.low, question.high)
        alone, helped = ask(new), ask(new, old.proof)
        assert helped.status == alone.status
        assert helped.reuse.parts == len(old.proof.cores)


def test_a_relu_that_has_its_phase_is_not_tried_again_whatever_the_solver_tolerates():
    question = drawn(*HARD[0])
    state = _Search(question, bounds_of(question), Deadline(1.0), True, TOLERANCE)
    losses = np.zeros(state.sides.size)
    losses[state.places] = np.linspace(1.0, 0.1, state.unstable)  # as if nothing had a phase
    held, found = 0, Found(-1.0, losses=losses)
    for count in range(state.unstable):
        literal = state._choice(held, found)
        assert literal
        assert not literal & (held | state._negated(held))
        held |= literal if count % 2 else state._negated(literal)
    assert state._choice(held, found) == 0
