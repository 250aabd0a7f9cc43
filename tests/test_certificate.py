"""Certificates: plain values that say what was found, come back from a file, and survive a cancel."""

import json
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny import SIDE, quadrants
from torch import nn

from core.certificate import Certificate, certify, phases
from core.certified import NETWORKS, STATUSES, certify_many, drawn, standing
from core.errors import CheckpointError, Stopped
from core.evaluation import wilson
from core.fates import CoreLine, fate, fates, related, shortest, tally
from core.proving.bounds import crown
from core.proving.network import unroll
from core.proving.proof import Literal, Reuse
from core.proving.question import Deadline, Question
from core.proving.search import search
from core.run import Run
from core.verification import PROPERTIES


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """A small network that has learned the quadrants, and the same with coarser weights."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    )
    data, optimizer = quadrants(96, seed=1), torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(data.images), data.labels).backward()
        optimizer.step()
    coarse = nn.Sequential(*network).requires_grad_(False).eval()
    copy = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    )
    copy.load_state_dict({name: (value * 64).round() / 64 for name, value in network.state_dict().items()})
    return coarse, copy.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def pictures():
    return quadrants(24, seed=3)


def picture(pictures, index: int):
    return pictures.take(slice(index, index + 1))


def check(radius: float):
    return PROPERTIES["robustness"](radius=radius, seconds=2.0)


def robust_at(networks, pictures, wanted: str) -> tuple[float, int]:
    """(radius, picture) whose original verdict is `wanted`."""
    for radius in (0.001, 0.005, 0.02, 0.1, 0.5):
        for index in range(8):
            if check(radius).check(networks[0], picture(pictures, index), Run()).status == wanted:
                return radius, index
    raise AssertionError(f"nothing is {wanted}")


def test_a_certificate_says_what_the_property_says_and_comes_back_from_its_file(networks, pictures, tmp_path):
    radius, index = robust_at(networks, pictures, "proved")
    found = certify(check(radius), networks, picture(pictures, index), Run(), scratch=True)
    for side, network in ((found.original, networks[0]), (found.compressed, networks[1])):
        verdict = check(radius).check(network, picture(pictures, index), Run())
        assert side.status == verdict.status
        assert [each.other for each in side.findings] == list(verdict.answers)
    assert found.scratch.status == found.compressed.status
    assert found.speed_up == pytest.approx(found.scratch.seconds / found.compressed.seconds)
    assert found.finished
    found.save(tmp_path)
    assert Certificate.read(tmp_path) == found
    assert json.loads((tmp_path / "certificate.json").read_text())["check"]["radius"] == radius


@pytest.mark.parametrize("text", [None, "", "{}", '{"check": 3}', "[]"])
def test_a_damaged_file_is_refused_with_a_sentence(text, tmp_path):
    if text is not None:
        (tmp_path / "certificate.json").write_text(text)
    with pytest.raises(CheckpointError, match="must be the folder of a certificate, got"):
        Certificate.read(tmp_path)


def test_a_counterexample_lies_in_the_ball_and_both_networks_were_asked_about_it(networks, pictures):
    radius, index = robust_at(networks, pictures, "refuted")
    one = picture(pictures, index)
    found = certify(check(radius), networks, one, Run())
    broken = found.original.counterexample
    x = torch.tensor(broken.pixels, dtype=torch.float64)
    moved = (x - one.pixels[0].flatten().double() / 255).abs().max().item()
    assert broken.distance == moved <= radius + 1e-12
    assert 0 <= x.min() <= x.max() <= 1
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (one.mean, one.std))
    shown = (x.view(1, 3, SIDE, SIDE) - mean) / std
    for name, network in zip(NETWORKS, networks, strict=True):
        slow = shown.flatten(1)
        for layer in list(network)[1:]:
            slow = (
                slow.clamp(min=0)
                if isinstance(layer, nn.ReLU)
                else slow @ layer.weight.double().T + layer.bias
            )
        assert torch.tensor(broken.logits[name]).allclose(slow[0].float(), atol=1e-5)
    logits = torch.tensor(broken.logits["original"])
    assert logits[found.label] <= logits[[k for k in range(4) if k != found.label]].max()


def test_a_relu_that_is_called_on_or_off_is_so_on_every_sampled_picture(networks, pictures):
    radius, one = 0.02, picture(pictures, 0)
    found = certify(check(radius), networks, one, Run())
    x = one.pixels[0].flatten().double() / 255
    random = torch.Generator().manual_seed(0)
    near = (x + radius * (2 * torch.rand(4000, len(x), generator=random, dtype=torch.float64) - 1)).clamp(
        0, 1
    )
    decided = 0
    for side, network in ((found.original, networks[0]), (found.compressed, networks[1])):
        seen = unroll(network, one.pixels.shape[1:]).behind(one.mean, one.std).preactivations(near)
        for told, inputs in zip(side.phases, seen, strict=False):
            sign = torch.tensor(told)
            assert (inputs[:, sign == 1] >= 0).all()
            assert (inputs[:, sign == -1] <= 0).all()
            decided += int((sign != 0).sum())
    assert decided > 4


class Talking:
    """A property that says how far it is before and after its work."""

    def __init__(self, of):
        self.of, self.to_dict = of, of.to_dict

    def check(self, model, picture, run, proof=None):
        run.report(0.1, "before")
        found = self.of.check(model, picture, run, proof)
        run.report(0.9, "after")
        return found


@pytest.mark.parametrize(("reports", "whole"), [(1, 0), (2, 0), (4, 1), (5, 1), (7, 2), (99, 3)])
def test_a_run_that_is_stopped_keeps_whole_verdicts_and_calls_the_rest_unknown(
    reports, whole, networks, pictures
):
    radius, index = robust_at(networks, pictures, "refuted")  # found at once: no reports but those above
    left = [reports]

    def stop(progress) -> None:
        left[0] -= 1
        if not left[0]:
            raise Stopped

    found = certify(Talking(check(radius)), networks, picture(pictures, index), Run(stop), scratch=True)
    sides = [found.original, found.compressed, found.scratch]
    for place, side in enumerate(sides):
        if place < whole:
            assert side.predicted is not None
            assert (side.status == "refuted") == (side.counterexample is not None)
        else:
            assert side is None or (side.status, side.findings) == ("unknown", ())
    assert found.finished == (whole == 3)
    assert found.original.status == ("refuted" if whole else "unknown")
    assert Certificate.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def on(*neurons: int):
    return tuple(Literal(0, neuron, 1) for neuron in neurons)


@pytest.mark.parametrize(
    ("moved", "held", "reuse", "status"),
    [
        (None, False, Reuse(3, trivial=1), "trivial"),
        (on(0, 1), True, Reuse(3, valid=1), "valid"),
        (on(0), False, Reuse(3, broken=1), "broken"),
        (on(0), False, Reuse(3, unchecked=1), "unchecked"),
        (on(0), False, Reuse(3, broken=1, unchecked=1), "dropped"),
    ],
)
def test_what_became_of_a_core(moved, held, reuse, status):
    assert fate(moved, held, reuse) == status


def test_a_core_holds_where_a_part_of_it_is_known_to():
    random = torch.Generator().manual_seed(0)

    def some(most: int):
        size = int(torch.randint(0, most, (), generator=random))
        return on(*sorted(torch.randperm(6, generator=random)[:size].tolist()))

    for _ in range(200):
        moved = [some(6) if torch.rand((), generator=random) < 0.9 else None for _ in range(12)]
        known = [some(4) for _ in range(8) if torch.rand((), generator=random) < 0.7]
        held, fresh = related(moved, known)
        slow = {
            i for i, core in enumerate(moved) if core is not None and any(set(k) <= set(core) for k in known)
        }
        assert held == slow
        assert fresh == [
            k for k in known if not any(core is not None and set(k) <= set(core) for core in moved)
        ]


def test_thousands_of_cores_are_told_apart_in_seconds_and_the_shortest_written_down():
    random = torch.Generator().manual_seed(0)
    cores = [on(*torch.randperm(200, generator=random)[:20].tolist()) for _ in range(6000)]
    began = time.monotonic()
    held, fresh = related(cores[:4000], cores[2000:])
    assert held >= set(range(2000, 4000))
    assert fresh == cores[4000:]
    assert time.monotonic() - began < 20
    lines = [CoreLine(k % 2, core[: 1 + k % 19], "valid") for k, core in enumerate(cores)]
    kept = shortest(lines, 50)
    assert tally(lines) == {"0": {"valid": 3000}, "1": {"valid": 3000}}
    assert tally(kept) == {"0": {"valid": 50}, "1": {"valid": 50}}
    assert max(len(line.literals) for line in kept) == 1
    assert [line for line in lines if line in kept][:3] == list(kept[:3])


def test_fates_that_are_told_afterwards_are_those_that_the_search_counted():
    torch.manual_seed(3)
    seen = Counter()
    low, high = -torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for _ in range(12):
        layers = [nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 1)]
        network = unroll(nn.Sequential(nn.Flatten(), *layers).double(), (4,))
        corners = torch.rand(4000, 4, dtype=torch.float64) * 2 - 1
        network.biases[-1].add_(0.02 - network(corners).min())  # barely positive: bounds alone are too loose
        changed = replace(network, weights=tuple(w + 0.01 * torch.randn_like(w) for w in network.weights))
        first, old = Question(network, low, high), crown(network, low[None], high[None])
        second, new = Question(changed, low, high), crown(changed, low[None], high[None])
        before = search(first, old, Deadline(20.0))
        after = search(second, new, Deadline(20.0), before.proof)
        if after.reuse is None or not any(before.proof.cores) or after.status != "proved":
            continue
        said = Counter(line.status for line in fates({1: before}, {1: after}, phases(new)))
        assert said["trivial"] == after.reuse.trivial
        assert said["valid"] == after.reuse.valid
        assert (
            said["broken"] + said["unchecked"] + said["dropped"] == after.reuse.broken + after.reuse.unchecked
        )
        seen += said
    assert seen["valid"] > 5
    assert seen["broken"] > 0


def test_without_reuse_no_core_counts_as_reused(networks, pictures):
    radius, index = robust_at(networks, pictures, "proved")
    found = certify(check(radius), networks, picture(pictures, index), Run(), reuse=False)
    assert found.reuse is None
    assert {line.status for line in found.cores} <= {"not used", "new"}


def test_certified_counts_are_those_of_single_verdicts(networks, pictures):
    radii, run = [0.1, 0.001, 0.01], Run()
    few = pictures.take(slice(6))
    certify_many(check(0.0), networks, few, radii, run)
    assert len(run.records) == 6 * 2 * 3
    table = standing(run.records).set_index(["network", "radius"])
    for name, network in zip(NETWORKS, networks, strict=True):
        for radius in radii:
            said = [check(radius).check(network, picture(few, i), Run()).status for i in range(6)]
            row = table.loc[name, radius]
            assert [row[status] for status in STATUSES] == [said.count(status) for status in STATUSES]
            assert (row.n, row.certified) == (6, said.count("proved") / 6)
            assert (row.low, row.high) == wilson(said.count("proved"), 6)


def test_nothing_recorded_is_an_empty_standing_and_records_of_a_training_do_not_count():
    assert standing([]).empty
    assert standing([{"epoch": 1, "loss": 0.3}]).empty


def test_the_pictures_drawn_are_always_the_same_and_none_comes_twice():
    assert drawn(360, 20) == drawn(360, 20) == sorted(set(drawn(360, 20)))
    assert drawn(5, 20) == [0, 1, 2, 3, 4]
    assert max(drawn(360, 200)) < 360


def test_a_network_of_another_depth_has_a_certificate_too_and_no_changes(networks, pictures, tmp_path):
    torch.manual_seed(1)
    shallow = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4), nn.ReLU(), nn.Linear(4, 4))
    found = certify(check(0.005), (networks[0], shallow.eval()), picture(pictures, 0), Run())
    assert [len(layer) for layer in found.compressed.phases] == [4]
    assert found.changes == ()
    found.save(tmp_path)
    assert Certificate.read(tmp_path) == found
