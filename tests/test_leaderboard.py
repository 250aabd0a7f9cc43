"""The leaderboard: what it says of a network is what that network does, and nothing is measured twice."""

import time
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd
import pytest
import torch
from torch import nn

from core.agreement import agreement
from core.attribution import ATTRIBUTIONS, explain
from core.bundles import MODELS, ModelBundle
from core.criterion import CRITERIA
from core.errors import CheckpointError, UnsupportedModelError
from core.evaluation import evaluate, logits, wilson
from core.layers import digest
from core.leaderboard import LOOK, Contestant, Leaderboard, Race, contestants, shipped
from core.localisation import localisation
from core.method import number
from core.objective import OBJECTIVES
from core.recipe import COMPRESSORS, Compressor, Recipe, compress
from core.run import Run
from core.standings import figures, means_of
from core.weights import load_model
from core.weights import shipped as networks


@pytest.fixture
def bundle(tiny_model):
    return ModelBundle(tiny_model, MODELS["small-cnn"](), "quadrants")


@pytest.fixture
def race(bundle, tiny_data, tmp_path):
    return lambda images=24, explained=6: Race(bundle, tiny_data, tmp_path / "board.jsonl", images, explained)


def weights(criterion: str) -> Contestant:
    step = COMPRESSORS["prune-weights"](criterion=criterion)
    return Contestant(f"Prune weights · {CRITERIA[criterion].label()}", step)


class Stop(BaseException):
    pass


def test_every_one_shot_method_with_a_sparsity_competes_under_a_label_of_its_own():
    found = contestants()
    labels = [entry.label for entry in found]
    assert len(set(labels)) == len(labels)
    assert {entry.step.name for entry in found} == {
        name
        for name in COMPRESSORS
        if "sparsity" in COMPRESSORS[name].domains() and not COMPRESSORS[name].trains()
    }
    filters = {entry.step.criterion.name for entry in found if entry.step.name == "prune-filters"}
    assert filters == set(CRITERIA)
    single = {entry.step.criterion.name for entry in found if entry.step.name == "prune-weights"}
    assert single == {name for name in CRITERIA if CRITERIA[name].grain == "weight"}


def test_what_trains_competes_apart_behind_the_same_pruning_or_while_it_prunes():
    found = contestants(trained=True)
    assert len({entry.label for entry in found}) == len(found)
    alone, *others = found
    assert (alone.label, alone.after) == ("Pruned alone", None)
    assert all(entry.step == alone.step or entry.step.trains() for entry in others)
    assert all(entry.after is None or entry.after.trains() for entry in others)
    tuned = {entry.after.objective.name for entry in others if entry.after}
    assert tuned == set(OBJECTIVES)
    assert {entry.step.name for entry in others if not entry.after} == {
        name
        for name in COMPRESSORS
        if "sparsity" in COMPRESSORS[name].domains() and COMPRESSORS[name].trains()
    }


def test_a_trained_row_is_the_pruned_network_trained_on(race, tiny_model, tiny_data, setting):
    race = race()
    entry = next(e for e in contestants(trained=True) if e.label == "Fine tuning · Labels")
    race.go([contestants(trained=True)[0], entry], [0.5], [3], Run())
    alone, tuned = race.board.rows
    steps = replace(entry.step, sparsity=0.5), entry.after
    network = compress(tiny_model, setting, Recipe(steps, 3)).model
    assert (tuned["network"], tuned["after"]) == (digest(network), entry.after.to_dict())
    assert alone["network"] != tuned["network"]
    race.go([entry], [0.5], [3], Run())
    assert len(race.board.rows) == 2


def test_a_row_is_what_its_recipe_makes(race, tiny_model, tiny_data, setting):
    race = race()
    entry = next(e for e in contestants() if e.label == "Prune filters · Taylor")
    race.go([entry], [0.5], [3], Run())
    (row,) = race.board.rows
    network = compress(
        tiny_model, setting, Recipe((COMPRESSORS["prune-filters"](criterion="taylor"),), 3)
    ).model
    found, test = evaluate(network, tiny_data.test), tiny_data.test
    assert row["step"] == race.board.rows[0]["step"] == entry.step.to_dict()
    assert row["network"] == digest(network)
    assert (row["accuracy"], row["macs"], row["loss"]) == (found.accuracy, found.macs, found.loss)
    seen = test.take(slice(0, 6))
    targets = logits(tiny_model, seen).argmax(1)
    look = ATTRIBUTIONS[LOOK["method"]](steps=LOOK["steps"])
    maps = [explain(each, look, seen.images, targets) for each in (tiny_model, network)]
    assert row["spearman"] == pytest.approx(agreement(*maps).means()["spearman"], abs=1e-6)
    expected = localisation(maps[1], seen.masks).means()
    assert row["mass_inside"] == pytest.approx(expected["mass_inside"], abs=1e-6)
    assert row["seconds"] > 0


def test_scores_are_computed_once_and_the_networks_are_those_of_the_plain_recipes(
    race, tiny_model, setting, monkeypatch
):
    race, calls = race(), []
    plain = CRITERIA["random"].scores
    monkeypatch.setattr(
        CRITERIA["random"], "scores", lambda self, *given: calls.append(1) or plain(self, *given)
    )
    race.go([weights("random")], [0.3, 0.6], [0, 1], Run())
    assert len(calls) == 2  # once for each seed
    for row in race.board.rows:
        step = COMPRESSORS["prune-weights"](criterion="random", sparsity=row["asked"])
        assert digest(compress(tiny_model, setting, Recipe((step,), row["seed"])).model) == row["network"]


def test_every_row_tells_the_seconds_of_scoring_once(race, monkeypatch):
    race, plain = race(), CRITERIA["magnitude"].scores
    slow = lambda self, *given: time.sleep(0.3) or plain(self, *given)  # noqa: E731
    monkeypatch.setattr(CRITERIA["magnitude"], "scores", slow)
    step = COMPRESSORS["prune-filters"](criterion="magnitude")  # asks for filters, which asks for weights
    race.go([Contestant("Prune filters · Magnitude", step)], [0.3, 0.6], [0], Run())
    assert all(0.3 <= row["seconds"] < 0.59 for row in race.board.rows)


def test_equal_networks_are_measured_once(race, monkeypatch):
    race, measured = race(), []
    plain = Race._measure
    monkeypatch.setattr(Race, "_measure", lambda self, *given: measured.append(1) or plain(self, *given))
    race.go([weights("magnitude")], [0.5], [0, 1, 2], Run())
    first, *others = race.board.rows
    assert len(measured) == 1
    for other in others:
        assert other["accuracy"] == first["accuracy"]
        assert other["seed"] != first["seed"]


def test_a_stopped_race_goes_on_where_it_was(race, tmp_path):
    entries, whole = [weights("magnitude"), weights("random")], []

    def stop_in_the_middle(progress):
        if len(stopped.board.rows) == 3:
            raise Stop

    stopped = race()
    with pytest.raises(Stop):
        stopped.go(entries, [0.3, 0.6], [0, 1], Run(on_progress=stop_in_the_middle))
    path = tmp_path / "board.jsonl"
    path.write_text(path.read_text() + '{"contestant": "cut sh')  # the machine went off while it wrote
    again = race()
    assert len(again.board.rows) == 3
    again.go(entries, [0.3, 0.6], [0, 1], Run())
    whole = Leaderboard.read(path)
    path.unlink()
    fresh = race()
    fresh.go(entries, [0.3, 0.6], [0, 1], Run())
    for row in (*whole.rows, *fresh.board.rows):
        row.pop("seconds")
    assert whole.rows == fresh.board.rows
    assert len(whole.rows) == 8


def test_a_file_of_other_pictures_or_another_network_is_refused(race, plain_model, tiny_data, tmp_path):
    race()
    with pytest.raises(CheckpointError, match=r"board.jsonl: must be of the same n, got another"):
        race(images=12)
    other = ModelBundle(plain_model, MODELS["small-cnn"](), "quadrants")
    with pytest.raises(CheckpointError, match=r"must be of the same network, got another"):
        Race(other, tiny_data, tmp_path / "board.jsonl", 24, 6)
    (tmp_path / "board.jsonl").write_text("[]\n")
    with pytest.raises(CheckpointError, match=r"must be a leaderboard of format 1"):
        race()
    (tmp_path / "board.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"must be a leaderboard"):
        race()


@dataclass(frozen=True)
class Picky(Compressor):
    """Refuses everything."""

    name: ClassVar[str] = "picky"
    sparsity: float = number(0.5, 0.0, 1.0, 0.1, help="Not that it mattered")

    def apply(self, model: nn.Module, setting, run) -> nn.Module:
        raise UnsupportedModelError("picky: the model must be another, got this one")


def test_a_refusal_is_kept_with_its_reason_and_is_no_result(race):
    race = race()
    race.go([Contestant("Picky", Picky()), weights("magnitude")], [0.5], [0], Run())
    assert race.board.rows[0]["refused"] == "picky: the model must be another, got this one"
    assert list(race.board.table.contestant) == ["Prune weights · Magnitude"]


def test_standings_are_means_over_seeds_inside_all_their_intervals(race):
    race = race()
    race.go([weights("random")], [0.5], [0, 1, 2], Run())
    (row,) = race.board.standings().itertuples()
    each = [row["accuracy"] for row in race.board.rows]
    assert row.seeds == 3
    assert row.accuracy == pytest.approx(sum(each) / 3)
    assert row.low == pytest.approx(min(wilson(round(24 * a), 24)[0] for a in each))
    assert row.high == pytest.approx(max(wilson(round(24 * a), 24)[1] for a in each))


def test_who_does_not_reach_a_sparsity_is_not_ahead_for_it():
    rows = [("a", 0.1, 0.9), ("a", 0.9, 0.2), ("b", 0.1, 0.8), ("b", 0.9, 0.1), ("c", 0.1, 0.95)]
    means = means_of(pd.DataFrame(rows, columns=["contestant", "asked", "accuracy"]))
    assert list(means.index) == ["a", "c", "b"]
    assert means.tolist() == pytest.approx([0.55, 0.475, 0.45])


def test_figures_show_everybody_and_the_chosen_as_curves(race):
    race = race()
    assert figures(race.board) == []
    race.go([weights("magnitude"), weights("random")], [0.9, 0.3, 0.6], [0, 1], Run())
    assert race.board.standings().asked.is_monotonic_increasing  # in whatever order they were measured
    everybody, chosen = figures(race.board), figures(race.board, ["Prune weights · Random"])
    assert {figure.mark for figure in everybody} == {"heat"}
    assert len(everybody[0].table) == 6
    curves = [figure for figure in chosen if figure.mark == "line"]
    assert [figure.x for figure in curves] == [
        "asked",
        "asked",
    ]  # zeros save no multiply-adds: no curve of those
    assert all(set(figure.table.contestant) == {"Prune weights · Random"} for figure in curves)
    at_half = curves[0].table.set_index("asked").accuracy
    assert f"{at_half[0.6]:.1%}" in curves[0].finding


def test_shipped_leaderboards_are_of_the_shipped_networks():
    files = {each.path.stem: each for each in networks()}
    for key, board in shipped().items():
        file = files[key.removesuffix("--trained")]
        loaded = load_model(file.model, file.dataset, file.path)
        assert board.about["network"] == digest(loaded.module)
        assert len(board.table) > 50
        assert torch.isfinite(torch.tensor(board.table.accuracy.tolist())).all()
