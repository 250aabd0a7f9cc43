"""Time in fact beside multiply-adds on paper: the forms of a plan, and what the chart says of them."""

import json

import pandas as pd
import pytest
import torch
from tiny import TinyResNet, vary

import cli
from core.bundles import MODELS, ModelBundle
from core.cost import cost
from core.plan import Plan
from core.realised import ORIGINAL, REMOVED, ZEROS, Realised, forms, realised, removal
from core.sliders import Sliders
from view.latency import figure, finding


@pytest.fixture(scope="module")
def sliders(tiny_data) -> Sliders:
    torch.manual_seed(0)
    network = vary(TinyResNet()).eval().requires_grad_(False)
    return Sliders(ModelBundle(network, MODELS["resnet20"](), "quadrants"), tiny_data)


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.6, 1.0])
def test_zeros_and_removal_of_the_same_plan_answer_alike_and_have_the_same_work_on_paper(
    sliders, tiny_data, sparsity
):
    found, why = forms(sliders, sliders.preset("uniform", "remove", None, sparsity))
    images = tiny_data.test.images
    assert torch.allclose(found[ZEROS](images), found[REMOVED](images), atol=1e-5)
    assert cost(found[ZEROS], images[:1]).theoretical_macs == cost(found[REMOVED], images[:1]).macs
    assert cost(found[ZEROS], images[:1]).macs == cost(found[ORIGINAL], images[:1]).macs
    assert not why


@pytest.mark.parametrize("question", ["silence", "zero"])
def test_filters_are_removed_where_partners_lose_equal_shares(sliders, tiny_data, question):
    plan = sliders.preset("uniform", question, None, 0.5)
    removed = removal(sliders, plan)
    assert removed == sliders.preset("uniform", "remove", plan.criterion, 0.5)
    found, _ = forms(sliders, plan)
    assert torch.equal(found[ZEROS](tiny_data.test.images), sliders.model(plan)(tiny_data.test.images))
    assert cost(found[REMOVED], tiny_data.test.images[:1]) == sliders.cost(removed)


def test_partners_that_lose_unequal_shares_and_single_zeros_have_no_smaller_form(sliders):
    found, why = forms(sliders, Plan("silence", None, {"conv1": 0.5}))
    assert list(found) == [ORIGINAL, ZEROS]
    assert why == (
        "removal: layers that share their channels must lose equal shares, "
        "got 50% in conv1 and 0% in layer1.0.conv2"
    )
    found, why = forms(sliders, Plan("weights", None, {"conv1": 0.5}))
    assert list(found) == [ORIGINAL, ZEROS]
    assert "single zeros" in why


def test_every_form_is_timed_and_counted(sliders, tiny_data):
    plan = sliders.preset("uniform", "remove", None, 0.5)
    table = realised(sliders, plan, tiny_data.test.images, rounds=3).table
    assert list(table.name) == [ORIGINAL, ZEROS, REMOVED]
    assert list(table.macs) == [sliders.cost(Plan()).macs, *[sliders.cost(plan).macs] * 2]
    assert (table.low_ms > 0).all()
    assert (table.low_ms <= table.median_ms).all()
    assert (table.median_ms <= table.high_ms).all()


def measured(*rows: tuple[str, int, float, float, float], why: str = "") -> Realised:
    table = pd.DataFrame(rows, columns=["name", "macs", "median_ms", "low_ms", "high_ms"])
    return Realised(table.assign(batch=64, threads=1), why)


MEASURED = measured(
    (ORIGINAL, 40_000_000, 100.0, 95.0, 110.0),
    (ZEROS, 10_000_000, 101.0, 96.0, 109.0),
    (REMOVED, 10_000_000, 40.0, 38.0, 44.0),
)


def test_the_finding_says_what_was_measured_and_claims_nothing_inside_the_spread():
    words = finding(MEASURED)
    assert "zeros in the old shapes there are 75 % fewer MACs on paper, and no clear difference" in words
    assert "1 % more, within the spread" in words
    assert "channels removed there are 75 % fewer MACs on paper, and 60 % less time" in words
    slower = measured((ORIGINAL, 40, 100.0, 95.0, 110.0), (ZEROS, 20, 130.0, 120.0, 140.0), why="because")
    assert "and 30 % more time" in finding(slower)
    assert "no smaller network to measure (because)" in finding(slower)
    same = [(name, 40, 100.0, 95.0, 110.0) for name in (ORIGINAL, ZEROS, REMOVED)]
    assert "noise" in finding(measured(*same))


@pytest.mark.parametrize("dark", [False, True])
def test_the_chart_has_every_form_with_its_spread_and_the_line_from_the_origin_through_the_original(dark):
    shown = figure(MEASURED, dark)
    line, *points = shown.data
    assert (line.x[0], line.y[0]) == (0, 0)
    assert line.y[1] / line.x[1] == pytest.approx(100 / 40)
    assert [(p.text[0], p.x[0], p.y[0]) for p in points] == [
        (ORIGINAL, 40, 100),
        (ZEROS, 10, 101),
        (REMOVED, 10, 40),
    ]
    assert [(p.error_y.arrayminus[0], p.error_y.array[0]) for p in points] == [(5, 10), (5, 8), (2, 4)]
    assert "millions" in shown.layout.xaxis.title.text
    assert shown.layout.yaxis.title.text == "ms per batch of 64"
    assert len({p.marker.color for p in points}) == len({p.marker.symbol for p in points}) == 3


def test_the_shell_times_a_plan_as_the_links_carry_it(capsys):
    words = ["latency", "mlp", "--data", "digits", "--batch", "4", "--rounds", "2", "--json"]
    assert cli.main([*words, "--question", "weights"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [form["name"] for form in report["forms"]] == [ORIGINAL, ZEROS]
    assert "single zeros" in report["no_removed_form"]
    assert cli.main([*words, "--plan", report["plan"]]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == report["plan"]
    assert cli.main(["latency", "mlp", "--data", "digits", "--question", "nothing"]) == 2
    assert "no question is called 'nothing'" in capsys.readouterr().err
