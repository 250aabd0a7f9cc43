"""The measurements measure what they say: same question, same pictures, medians, honest agreement."""

import json
import mmap
import os
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import TinyResNet
from torch import nn

from bench import __main__ as command
from bench import atlas, ceiling, coverage, machine, memory, prediction, removal, table
from bench.peers import Peers
from bench.plans import random_plans
from bench.process import PeerProcess
from bench.settings import setting
from bench.sliders import Agreement, Sliders, classes, fresh_plans, release, removed_filters, spread, summary
from bench.subjects import SUBJECTS, Subject, settle, start, untie
from bench.timing import medians, turns
from core.bundles import DatasetBundle, ModelBundle
from core.plan import Plan
from core.prediction import Anchor, Prediction
from core.strata import Strata

PROMISED = (
    "slider_ratio",
    "slider_ms",
    "atlas_ratio",
    "atlas_s",
    "naive_atlas_s",
    "ceiling_fraction",
    "prediction_error",
    "agreement_with_plain",
)


@pytest.fixture
def subject(tiny_data: DatasetBundle) -> Subject:
    """A network whose answers differ from picture to picture, so that agreement means something."""
    torch.manual_seed(0)
    bundle = ModelBundle(settle(TinyResNet(), tiny_data.train), None, tiny_data.name)
    return Subject("tiny", bundle, tiny_data, tiny_data.test)


class Neighbour:
    """A peer in this process, which takes as long as it is told and may get one picture wrong."""

    def __init__(self, subject: Subject, seconds: float = 1.0, wrong: bool = False) -> None:
        self._peers, self._seconds, self._wrong = Peers(subject.bundle.module, subject.split), seconds, wrong

    def ask(self, way: str, *arguments: object) -> tuple[float, np.ndarray]:
        found = getattr(self._peers, way)(*arguments)
        if self._wrong:
            found[0] = -1
        return self._seconds, found


def test_the_plain_way_zeroes_the_filters_that_the_engine_zeroes(subject):
    engine, peers = start(subject), Peers(subject.bundle.module, subject.split)
    sliders = engine.sliders("zero")
    plan = Plan("zero", None, {sliders[1].name: 0.13, sliders[4].name: 0.25})
    found = peers.plain(removed_filters(plan, sliders))
    assert (found == classes(engine, plan)).all()
    assert len(set(found)) > 1


def test_torch_pruning_removes_the_channels_that_the_engine_removes(subject):
    engine, peers = start(subject), Peers(subject.bundle.module, subject.split)
    for slider in removal.alone(engine):
        for removed in (1, slider.width - 1):
            plan = Plan("remove", None, {slider.name: round(removed / slider.width, 2)})
            assert removed_filters(plan, [slider]) == {slider.name: removed}
            assert (peers.smaller(slider.name, removed) == classes(engine, plan)).all()


def test_a_wrong_answer_lowers_the_agreement_by_one_picture_per_plan(subject):
    engine = start(subject)
    for wrong in (False, True):
        peers = {"plain": Neighbour(subject, wrong=wrong), "one thread": Neighbour(subject)}
        found = Sliders(engine.sliders("zero")[:3], peers)
        found.round(engine, 0, 1)
        assert found.agreement.plans == 3
        assert found.agreement.share == 1 - wrong / len(subject.split)


def test_a_release_waits_for_the_exact_answer_and_tells_when_the_first_came(subject):
    engine = start(subject)
    plan = Plan("zero", None, {"layer1.0.conv1": 0.5})
    found = release(engine, plan)
    assert (found.classes == engine.exact(plan).logits.argmax(1).numpy()).all()
    assert 0 < found.first_s <= found.seconds
    assert 0 <= found.recheck_s < found.seconds
    assert 0 < found.first_images <= len(subject.split)


def test_agreement_without_plans_is_not_claimed():
    assert np.isnan(Agreement().share)


def test_every_layer_meets_the_peers_once_and_our_engine_every_round(subject):
    peers = {"plain": Neighbour(subject), "one thread": Neighbour(subject)}
    found = Sliders(start(subject).sliders("zero"), peers)
    for number in range(2):
        found.round(start(subject), number, 2)
    assert found.agreement.plans == len(found.plain["plain"]) == len(found.chosen)
    for kind in ("first touch", "warm", "first answer", "recheck"):
        assert {name: len(taken) for name, taken in found.ours[kind].items()} == {
            slider.name: 2 for slider in found.chosen
        }


def test_ratios_are_ratios_of_medians():
    quick, slow = [0.009, 0.010, 9.0], [0.5, 0.04, 0.05]
    ours = {
        "warm": {"a": quick, "b": slow, "c": quick},
        "first touch": {"a": slow, "b": slow, "c": slow},
        "first answer": {"a": quick, "b": quick, "c": quick},
        "recheck": {"a": quick, "b": quick, "c": quick},
    }
    found = summary(ours, {"plain": [0.9, 1.0, 7.0], "one thread": [2.0]})
    assert found["slider_ms"] == pytest.approx(10)
    assert found["slider_ratio"] == pytest.approx(100)
    assert found["slider_ratio_one_thread"] == pytest.approx(200)
    assert found["slider_ratio_first_touch"] == pytest.approx(20)
    assert [layer["ratio"] for layer in found["layers"]] == pytest.approx([100, 20, 100])
    assert found["layers"][1]["layer"] == "b"


def test_no_plan_of_a_slider_repeats_another(subject):
    for question in ("zero", "remove"):
        for slider in start(subject).sliders(question):
            plans = fresh_plans(slider, 6, seed=1, question=question)
            counts = {removed_filters(plan, [slider])[slider.name] for plan in plans}
            assert len(counts) == 6
            assert 0 < min(counts) <= max(counts) < slider.width


def test_sliders_are_spread_from_the_first_to_the_last():
    assert spread(list("abcdefghi"), 3) == ["a", "e", "i"]
    assert spread(list("abc"), 1) == ["a"]
    assert spread(list("abc"), None) == spread(list("abc"), 5) == ["a", "b", "c"]


def test_another_contestant_begins_every_round():
    begun = []

    def contestant(name: str):
        return lambda: (begun.append(name), ({"a": 3.0, "b": 1.0}[name], None))[1]

    assert turns({"a": contestant("a"), "b": contestant("b")}, 1) == {"b": (1.0, None), "a": (3.0, None)}
    assert begun == ["b", "a"]
    assert medians({"a": contestant("a"), "b": contestant("b")}, 3) == {"a": 3.0, "b": 1.0}
    assert begun[4:] == ["a", "b", "b", "a", "a", "b"]


def test_a_survey_is_exact_and_finds_nothing_on_disk(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNESCOPE_CACHE", str(tmp_path))
    found = atlas.survey(subject)
    assert not list(tmp_path.iterdir())
    assert os.environ["PRUNESCOPE_CACHE"] == str(tmp_path)
    assert found.atlas.exact
    assert 0 < found.first_s <= found.s
    engine = start(subject)
    for row, column in ((0, 8), (3, 4)):
        answer = engine.exact(found.atlas.plan(row, column))
        assert int(found.atlas.hits[row, column]) == round(answer.accuracy * len(subject.split))


def test_a_wrong_cell_is_found_out(subject):
    found, sliders = atlas.survey(subject).atlas, start(subject).sliders("zero")
    labels, peer = subject.split.labels, Neighbour(subject)
    assert atlas.equal_cells(found, sliders, peer, labels, 4) == 4
    found.hits[:] += 1
    assert atlas.equal_cells(found, sliders, peer, labels, 4) == 0


def test_the_plain_atlas_is_scaled_from_one_evaluation_per_layer():
    cells = SimpleNamespace(hits=torch.zeros(19, 9))
    surveys = [atlas.Survey(cells, 100, 1.0, seconds) for seconds in (4.0, 5.0, 60.0)]
    found = atlas.summary(surveys, plain=[0.5, 1.5, 1.0], one_thread=[2.0])
    assert (found["atlas_s"], found["naive_atlas_s"]) == (5.0, 171.0)
    assert (found["atlas_ratio"], found["atlas_ratio_one_thread"]) == (34.2, 68.4)


def test_predictions_are_held_against_what_is_measured(subject):
    engine, known = start(subject), atlas.survey(subject).atlas
    guesser, original = Prediction.of(known), Anchor(Plan("zero"), engine.original.accuracy)
    cell = known.plan(2, 6)  # alone, it is predicted as it was measured
    truth = engine.exact(cell).accuracy
    assert prediction.guess(guesser, Anchor(cell, truth), original) == (pytest.approx(0, abs=1e-9), True)
    assert prediction.guess(guesser, Anchor(cell, truth - 0.5), original) == (pytest.approx(0.5), False)
    found = prediction.measure(engine, known, plans=3)
    expected = [
        abs(guesser.predict(plan, original)[0] - engine.exact(plan).accuracy)
        for plan in random_plans(engine.sliders("zero"), 3, "zero")
    ]
    assert found["prediction_error"] == pytest.approx(100 * np.mean(expected))


def test_random_plans_move_several_sliders_a_little_or_a_lot(subject):
    sliders = start(subject).sliders("remove")
    plans = random_plans(sliders, 100, "remove")
    assert len(set(plans)) > 90
    largest = [max(value for _, value in plan.sparsities) for plan in plans]
    assert min(largest) < 0.1 < 0.7 < max(largest)
    assert {len(plan.sparsities) for plan in plans} == set(range(2, len(sliders) + 1))


def test_coverage_counts_the_orders_in_which_the_interval_holds_the_accuracy(subject):
    labels, random = subject.split.labels, torch.Generator().manual_seed(0)
    logits = torch.randn(len(labels), 4, generator=random)
    right = torch.rand(3, len(labels), generator=random) < torch.tensor([[0.1], [0.5], [0.9]])
    found = coverage.covered_in_orders(logits, labels, right, 6, orders=20)
    for plan in range(3):
        held = 0
        for seed in range(20):
            strata = Strata(logits, labels, seed)
            low, high = strata.remaining(right[plan][strata.order][:6])
            held += low <= right[plan].double().mean() <= high
        assert found[plan].item() == pytest.approx(held / 20)


def test_coverage_is_told_by_the_accuracy_lost():
    def sample(exact: float, low: float, high: float) -> coverage.Sample:
        return coverage.Sample(SimpleNamespace(remaining=(low, high)), SimpleNamespace(accuracy=exact))

    samples = [sample(0.9, 0.8, 0.95), sample(0.895, 0.9, 1.0), sample(0.6, 0.5, 0.7)]
    assert coverage.by_drop(samples, 0.9) == {"below 1": (0.5, 2), "20 to 100": (1, 1)}


def test_coverage_is_measured_on_a_network(subject, monkeypatch, capsys):
    monkeypatch.setitem(SUBJECTS, "resnet20", lambda: subject)
    command.main(["coverage", "--plans", "3", "--orders", "2", "--question", "zero", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["cells"] == 9 * len(start(subject).sliders("zero"))
    assert 0 <= found["worst_cell_coverage"] <= found["coverage_of_cells"] <= 1


def test_a_setting_holds_inside_and_is_undone_outside(monkeypatch):
    monkeypatch.setenv("PRUNESCOPE_CACHE", "before")
    monkeypatch.delenv("PRUNESCOPE_NOTHING", raising=False)
    with setting("PRUNESCOPE_CACHE", "inside"), setting("PRUNESCOPE_NOTHING", 1):
        assert (os.environ["PRUNESCOPE_CACHE"], os.environ["PRUNESCOPE_NOTHING"]) == ("inside", "1")
    assert os.environ["PRUNESCOPE_CACHE"] == "before"
    assert "PRUNESCOPE_NOTHING" not in os.environ


def test_a_peer_has_a_process_and_threads_of_its_own(subject, monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores + 1))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    with PeerProcess(subject) as peer, PeerProcess(subject, threads=1) as single:
        assert peer.threads != cores + 1
        assert single.threads == 1
        seconds, found = peer.ask("plain", {"conv1": 3})
        assert seconds > 0
        assert (found == Peers(subject.bundle.module, subject.split).plain({"conv1": 3})).all()


def test_a_peer_that_dies_is_noticed(subject):
    with PeerProcess(subject, threads=1) as peer, pytest.raises(RuntimeError, match="has ended"):
        peer.ask("plain", {"no such layer": 1})


def test_onnxruntime_answers_as_torch_does(subject):
    pytest.importorskip("onnxruntime", reason="`make bench` installs it")
    peers = Peers(subject.bundle.module, subject.split)
    assert (peers.onnx() == peers.plain({})).all()


def test_both_libraries_multiply_one_matrix_with_the_transposed_other():
    torch.manual_seed(0)
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    for multiply in ceiling.libraries():
        torch.testing.assert_close(multiply(left, right), left @ right.t(), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_whole_network_is_measured_and_told_in_json_and_as_a_table(subject, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="`make bench` installs it")
    monkeypatch.setitem(SUBJECTS, "resnet20", lambda: subject)
    monkeypatch.setattr(ceiling, "SIDES", (64,))
    monkeypatch.setattr(ceiling, "FLOPS", 1e6)
    command.main(["whatif", "--rounds", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(PROMISED) <= set(found)
    assert found["agreement_with_plain"] == found["agreement_with_torch_pruning"] == 1
    assert found["atlas_cells_equal"] == found["atlas_cells_checked"] > 0
    assert found["slider_ratio"] == pytest.approx(
        np.median([found["plain_ms"] / layer["ms"] for layer in found["layers"]])
    )
    flops = found["images_per_second_fp32"] * found["mflops_per_image"] / 1e3
    assert found["ceiling_fraction_fp32"] == pytest.approx(flops / found["gemm_fp32_gflops"])
    shown = table.markdown({"networks": [found], "machine": found["machine"]})
    assert f"| {table.times(found['slider_ratio'])} |" in shown
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {5}


def test_moved_sliders_are_counted_and_move_one_at_a_time(subject, monkeypatch, capsys):
    monkeypatch.setitem(SUBJECTS, "resnet20", lambda: subject)
    command.main(["memory", "--moves", "4", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["moves"] == 4
    assert abs(found["memory_growth_last_half_mb"]) <= abs(found["memory_growth_mb"]) + 100
    plans = memory.random_moves(start(subject), 30, "remove")
    for before, after in pairwise(plans):
        assert len(set(dict(before.sparsities).items()) ^ set(dict(after.sparsities).items())) <= 2


def test_sliders_are_timed_with_a_job_paused_and_running(subject, monkeypatch, capsys):
    monkeypatch.setitem(SUBJECTS, "resnet20", lambda: subject)
    command.main(["jobs", "--rounds", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    for answer in ("first", "exact"):
        alone, beside = found[f"{answer} alone"], found[f"{answer} beside a job"]
        assert min(alone, beside) > 0
        assert found[f"{answer} slower by"] == pytest.approx(beside / alone)


def test_resident_memory_sees_what_is_held():
    before = machine.resident_bytes()
    with mmap.mmap(-1, 64 << 20) as held:  # new memory, whatever this process has given back before
        held.write(b"1" * len(held))
        assert machine.resident_bytes() - before > 50e6


def test_a_random_network_is_settled_so_that_its_answers_differ(tiny_data):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    logits = settle(network, tiny_data.train)(tiny_data.train.images)
    assert not network.training
    torch.testing.assert_close(logits.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    assert len(logits.argmax(1).unique()) > 1
    assert logits.std(0).mean() == pytest.approx(10, rel=0.01)


def test_equal_filters_are_told_apart_without_a_change_that_matters():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 4)).requires_grad_(False)
    network[0].weight[:] = network[0].weight[:1]
    untied = untie(network)[0].weight
    assert len(untied.flatten(1).norm(dim=1).unique()) == 6
    assert len(network[0].weight.flatten(1).norm(dim=1).unique()) == 1
    torch.testing.assert_close(untied, network[0].weight, rtol=2e-4, atol=0)


def test_the_machine_is_described_with_its_settings(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    found = machine.describe()
    assert found["settings"]["OMP_WAIT_POLICY"] == "passive"
    assert found["torch"] == torch.__version__
    assert f"{found['cores']} cores" in machine.sentence(found)
