"""The linear RNN against gradients by autograd, trials run step by step, and the paper's theory."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import ParameterError
from core.labs.linear_rnn import NETWORK, SCALINGS, LinearRNN, draw, learn, shuffled_output, theory
from core.run import Run, seeded
from core.spectra import participation_ratio, singular_values

TIME, SIZE, SHUFFLED = SCALINGS


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def identity(units: int) -> torch.Tensor:
    return torch.eye(units, dtype=torch.float64)


def ends(gains: tuple[float, ...], goal: float, units: int, rate: float, seeds: int = 3) -> pd.DataFrame:
    """Gain -> what the lab's networks came to, medians; the strengths are not the lab's own."""
    lab = LinearRNN(goal=goal, units=units, rate=rate)
    rows = []
    for seed in range(seeds):
        with seeded(seed):
            noise, enter, leave = draw(units)
            for gain in gains:
                scaled = rate * (1 - gain**2) ** 2
                learned = learn(gain * noise, enter, leave, goal, scaled, lab.steps)
                rows.append({"gain": gain} | lab._end(learned, scaled, enter, leave))
    return pd.DataFrame(rows).groupby("gain").median()


def test_vectors_have_their_lengths_and_are_orthogonal():
    noise, enter, leave = draw(100)
    assert noise.var().item() == pytest.approx(1 / 100, rel=0.05)
    assert enter.norm().item() == pytest.approx(10)
    assert leave.norm().item() == pytest.approx(1 / 10)
    assert (enter @ leave).item() == pytest.approx(0, abs=1e-12)


def test_learning_is_gradient_descent_on_the_loss_of_the_settled_network():
    noise, enter, leave = draw(24)
    start, goal, rate, steps = 0.5 * noise, 0.7, 0.02, 25
    learned = learn(start, enter, leave, goal, rate, steps)
    w, outputs = start.clone().requires_grad_(True), []
    for _ in range(steps + 1):
        z = leave @ torch.linalg.solve(identity(24) - w, enter)
        outputs.append(z.item())
        (gradient,) = torch.autograd.grad((z - goal) ** 2 / 2, w)
        last = w.detach().clone()
        w = (w - rate * gradient).detach().requires_grad_(True)
    assert learned.outputs == pytest.approx(outputs, rel=1e-9)
    assert learned.change.numpy() == pytest.approx((last - start).numpy(), abs=1e-11)
    assert learned.values[steps] == pytest.approx(singular_values(learned.change)[:5])
    assert learned.stable


def test_the_settled_network_is_what_a_long_trial_ends_at():
    noise, enter, leave = draw(64)
    start = 0.5 * noise
    state = torch.zeros(64, dtype=torch.float64)
    for _ in range(100):
        state = 0.5 * state + 0.5 * (start @ state + enter)
    first = learn(start, enter, leave, 0.5, 0.01, 24).outputs[0]
    assert (leave @ state).item() == pytest.approx(first, abs=1e-6)


def test_the_change_after_k_steps_has_rank_k_at_most():
    noise, enter, leave = draw(40)
    learned = learn(0.6 * noise, enter, leave, 0.5, 0.05, 24)
    for step, s in learned.values.items():
        assert (s[min(step, 5) :] < 1e-12).all()
    assert torch.linalg.matrix_rank(learned.change) <= 24


def test_without_initial_weights_the_theory_is_exact_to_third_order():
    """What is missing is of fourth order in time: half the time leaves a sixteenth of it."""
    _, enter, leave = draw(30)
    missing, steps, goal = {}, 4000, 0.8
    for time in (0.1, 0.05):
        learned = learn(torch.zeros(30, 30, dtype=torch.float64), enter, leave, goal, time / steps, steps)
        expected = theory(np.array([time]), goal, 0.0).iloc[0]
        s1, s2 = singular_values(learned.change)[:2]
        output = goal * (1 - math.sqrt(expected.loss))
        missing[time] = np.array([learned.outputs[-1] - output, s1 - expected.s1, s2 - expected.s2])
    assert missing[0.1] / missing[0.05] == pytest.approx([16, 16, 16], rel=0.08)


def test_early_learning_follows_the_theory_for_many_units():
    noise, enter, leave = draw(400)
    for gain in (0.0, 0.6):
        found = learn(gain * noise, enter, leave, 0.5, 0.00022 * (1 - gain**2) ** 2, 200)
        expected = theory(np.array([0.044]), 0.5, gain).iloc[0]
        assert found.values[200][0] == pytest.approx(expected.s1, rel=0.08)


def test_theory_ends_where_it_would_pass_the_goal():
    table = theory(np.linspace(0, 3, 301), 0.5, 0.6)
    assert table.time.iloc[0] == 0
    assert table.loss.iloc[0] == 1
    assert 0.5 < table.time.iloc[-1] < 2.9
    assert (np.diff(table.loss) < 0).all()


def test_a_small_goal_is_learned_along_one_direction_and_scales_as_the_theory_says():
    """The paper's scalings, three networks of 256 units for every strength."""
    found = ends((0.0, 0.3, 0.6, 0.8), 0.5, 256, 0.03)
    assert (found.participation_ratio < 1.1).all()
    assert found.s1.to_numpy() == pytest.approx(
        [0.43, 0.39, 0.27, 0.15], abs=0.04
    )  # paper: 0.45, 0.27 at 0.6
    assert (found.s2 < 0.012).all()
    for name in (TIME, SIZE):
        assert found[name].is_monotonic_decreasing
        relative = found[name] / found[name][0.0]
        assert relative.to_numpy() == pytest.approx([SCALINGS[name](g) for g in found.index], rel=0.4)
    assert found[SHUFFLED].is_monotonic_increasing
    assert found[SHUFFLED].to_numpy() == pytest.approx([SCALINGS[SHUFFLED](g) for g in found.index], abs=0.2)


def test_a_large_goal_is_learned_so_too_but_only_the_direction_of_the_theory_holds():
    found = ends((0.0, 0.6, 0.8), 2.0, 128, 0.003)
    assert (found.participation_ratio < 1.1).all()
    assert found[TIME].is_monotonic_decreasing
    assert found[SIZE].is_monotonic_decreasing
    assert found[SHUFFLED].is_monotonic_increasing
    assert found.s1[0.0] == pytest.approx(0.85, abs=0.05)
    assert found[SHUFFLED][0.0] < 1e-3


def test_a_learning_rate_that_is_too_large_raises_the_rank_or_ends_the_learning():
    """Six networks at g = 0.8, for a goal of 2."""
    harmed = {}
    for rate in (0.003, 0.02):
        found = []
        for seed in range(6):
            with seeded(seed):
                noise, enter, leave = draw(128)
            learned = learn(0.8 * noise, enter, leave, 2.0, rate * (1 - 0.8**2) ** 2, 200)
            ratio = participation_ratio(singular_values(learned.change))
            found.append(not learned.stable or ratio > 1.12)
        harmed[rate] = sum(found)
    assert harmed[0.003] == 0
    assert harmed[0.02] >= 4


def test_where_an_eigenvalue_reaches_1_learning_stops_and_its_history_stays():
    noise, enter, leave = draw(64)
    learned = learn(0.8 * noise, enter, leave, 3.0, 0.1, 200)
    assert not learned.stable
    assert 1 <= len(learned.outputs) < 201
    assert np.isfinite(learned.outputs).all()
    assert torch.linalg.eigvals(learned.start + learned.change).real.max() < 1
    unsettled = learn(1.5 * noise, enter, leave, 0.5, 0.01, 200)  # has no state to settle at to begin with
    assert not unsettled.stable
    assert len(unsettled.outputs) == 1


def test_shuffling_keeps_the_entries_of_the_initial_weights_and_the_change():
    noise, enter, leave = draw(32)
    learned = learn(0.0 * noise, enter, leave, 0.5, 0.05, 200)
    assert shuffled_output(learned, enter, leave) == pytest.approx(learned.outputs[-1])  # nothing to shuffle
    learned = learn(0.6 * noise, enter, leave, 0.5, 0.05, 200)
    assert abs(shuffled_output(learned, enter, leave) - 0.5) > 0.05


def test_strengths_from_1_on_are_refused():
    with pytest.raises(ParameterError, match=r"linear-rnn: gain must lie in \[0.1, 0.9\], got 1"):
        LinearRNN(gain=1.0)


def test_figures_show_networks_beside_theory_at_every_strength():
    with seeded(0):
        shown = LinearRNN(units=64, seeds=1, steps=150).figures(None, Run())
    losses, values, scalings = (figure.table for figure in shown)
    assert sorted(losses.gain.unique()) == pytest.approx([0, 0.3, 0.6, 0.8])
    network = losses[(losses.curve == NETWORK) & (losses.gain == 0)]
    assert network.time.iloc[-1] == pytest.approx(0.03 * 150)
    assert network.loss.iloc[-1] < 1e-3
    assert {"s1", "s2", "s1, theory", "s2, theory"} <= set(values.value)
    assert set(scalings.quantity) == set(SCALINGS)


def test_figures_of_networks_that_all_stop_say_so():
    with seeded(0):
        shown = LinearRNN(units=64, seeds=1, goal=3.0, rate=0.1, gain=0.9).figures(None, Run())
    assert "4 networks stopped" in shown[0].finding
    assert "a smaller learning rate" in shown[2].finding
