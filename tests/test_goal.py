"""Goals against trying every strength."""

import pytest
from test_whatif import data, engine, model  # noqa: F401 (fixtures)

from core.errors import ParameterError
from core.goal import LEVELS, Goal
from core.plan import Plan
from core.run import Run

QUESTION = "remove"


@pytest.fixture(scope="module")
def whatif(model, data):  # noqa: F811
    return engine(model, data)


@pytest.fixture(scope="module")
def plan_at(whatif):
    return lambda strength: whatif.preset("uniform", QUESTION, None, strength)


def realised(whatif, plan: Plan) -> float:
    return whatif.cost(plan).macs / whatif.cost(Plan(QUESTION)).macs


@pytest.mark.parametrize("limit", [20, 45, 70, 100])
def test_the_weakest_plan_within_the_macs_is_found(whatif, plan_at, limit):
    found = Goal(keep="macs", limit=limit).seek(plan_at, whatif)
    fits = [k for k in range(LEVELS + 1) if realised(whatif, plan_at(k / LEVELS)) <= limit / 100]
    assert found == plan_at(fits[0] / LEVELS)


@pytest.mark.parametrize("limit", [0, 5, 30])
def test_the_plan_keeps_the_accuracy_and_the_next_stronger_one_does_not(whatif, plan_at, limit):
    found = Goal(keep="accuracy", limit=limit).seek(plan_at, whatif)
    level = next(k for k in range(LEVELS + 1) if plan_at(k / LEVELS) == found)
    lost = [
        -100 * whatif.exact(plan_at(k / LEVELS)).change.difference for k in (level, level + 1) if k <= LEVELS
    ]
    assert lost[0] <= limit
    assert lost[1:] == [] or lost[1] > limit


def test_a_goal_out_of_reach_gives_the_strongest_plan(whatif, plan_at):
    assert Goal(keep="macs", limit=0).seek(plan_at, whatif) == plan_at(1.0)


def test_progress_never_goes_back_and_ends_at_one(whatif, plan_at):
    seen = []
    Goal(keep="accuracy", limit=5).seek(plan_at, whatif, Run(on_progress=lambda p: seen.append(p.fraction)))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_limit_outside_its_domain_is_refused():
    with pytest.raises(ParameterError, match=r"goal: limit must lie in \[0.0, 100.0\], got 101"):
        Goal(limit=101)
