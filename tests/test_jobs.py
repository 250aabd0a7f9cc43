"""Jobs: workers of their own do what `compress` does, say how far they are, stop when asked, and may die."""

import json
import os
import signal
import time
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest
import torch

import cli
from core.bundles import Setting
from core.certificate import Certificate, certify
from core.certified import certify_many, drawn, standing
from core.errors import CheckpointError
from core.evaluation import evaluate
from core.jobs import Job, Jobs, Order, Status
from core.outcome import Outcome
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run
from core.verification import PROPERTIES
from core.weights import load_dataset, load_model, shipped

PATIENCE_S = 120


def order(*steps, seed: int = 0) -> Order:
    found = next(each for each in shipped() if (each.model.name, each.dataset) == ("mlp", "digits"))
    recipe = Recipe(steps, seed).to_json()
    return Order(found.model.to_dict(), {"method": "digits"}, str(found.path), recipe, threads=1)


def tuning(epochs: int, images: int = 200):
    return COMPRESSORS["fine-tuning"](epochs=epochs, images=images, batch_size=32)


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs", most=1)


def until(wanted, seconds: float = PATIENCE_S):
    due = time.monotonic() + seconds
    while not (found := wanted()):
        assert time.monotonic() < due
        time.sleep(0.02)
    return found


def test_equal_seeds_give_equal_networks_and_histories_from_app_shell_and_python(jobs, tmp_path, capsys):
    asked = order(COMPRESSORS["prune-weights"](sparsity=0.8), tuning(3), seed=5)
    job = jobs.submit(asked)
    assert jobs.wait(job, PATIENCE_S).state == "done"
    data, bundle = load_dataset("digits"), load_model("mlp", "digits")
    torch.set_num_threads(1)
    setting = Setting(data.train, data.validation, bundle.module)
    made = compress(bundle.module, setting, asked.read_recipe())
    (tmp_path / "recipe.json").write_text(asked.recipe)
    words = ["run", "mlp", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "shell"), "--threads", "1"]
    assert cli.main([*words, "--json"]) == 0
    outcome, typed = job.outcome(), Outcome.read(tmp_path / "shell")
    for network in (outcome.network, typed.network):
        states = network.state_dict(), made.model.state_dict()
        assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert outcome.after.accuracy == typed.after.accuracy == evaluate(made.model, data.test).accuracy
    assert [row["epoch"] for row in job.history] == [1, 2, 3]
    assert tuple(job.history) == outcome.history == typed.history == made.records
    assert outcome.finished


def proving(task: str, **asks) -> Order:
    """The same network, and what a fifth fewer weights make of it."""
    return replace(order(COMPRESSORS["prune-weights"](sparsity=0.2)), task=task, asks=asks)


def both(asked: Order):
    """(original and compressed network of an order, test pictures)."""
    bundle, data = asked.load()
    setting = Setting(data.train, data.validation, bundle.module)
    return (bundle.module, compress(bundle.module, setting, asked.read_recipe()).model), data.test


def test_a_proof_in_a_worker_is_the_proof_in_this_process(jobs):
    for radius in (0.03, 0.2):
        check = PROPERTIES["robustness"](radius=radius)
        asked = proving("proof", property=check.to_dict(), image=2, reuse=True, scratch=True)
        job = jobs.submit(asked)
        assert jobs.wait(job, PATIENCE_S).state == "done"
        networks, test = both(asked)
        here = certify(check, networks, test.take(slice(2, 3)), Run(), scratch=True)
        found = Certificate.read(job.folder)
        assert found.finished
        assert (found.check, found.label, found.logits) == (here.check, here.label, here.logits)
        for side, same in ((found.original, here.original), (found.compressed, here.compressed)):
            assert (side.status, side.phases) == (same.status, same.phases)
            assert (side.counterexample is None) == (side.status != "refuted")
    assert jobs.submit(asked) == job


def test_many_pictures_are_certified_row_by_row_and_a_cancel_keeps_whole_pictures(jobs):
    check, radii = PROPERTIES["robustness"](seconds=0.2), [0.02, 0.1]
    few = proving("certified", property=check.to_dict(), images=4, radii=radii)
    job = jobs.submit(few)
    assert jobs.wait(job, PATIENCE_S).state == "done"
    networks, test = both(few)
    here = Run()
    certify_many(check, networks, test.take(torch.tensor(drawn(len(test), 4))), radii, here)
    there = standing(job.history)
    assert there[["network", "radius", "n"]].equals(standing(here.records)[["network", "radius", "n"]])
    assert set(there.n) == {4}
    many = jobs.submit(proving("certified", property=check.to_dict(), images=200, radii=radii))
    until(lambda: len(many.history) >= 4)
    many.cancel()
    assert jobs.wait(many, PATIENCE_S).state == "cancelled"
    counts = standing(many.history).n.unique()
    assert len(counts) == 1
    assert 0 < counts[0] < 200


def test_recipes_keep_the_folders_they_had_before_there_were_other_tasks(tmp_path):
    asked = order(COMPRESSORS["prune-weights"]())
    old = {name: value for name, value in vars(asked).items() if name not in ("task", "asks")}
    (tmp_path / "order.json").write_text(json.dumps(old))
    assert Job(tmp_path).order == asked
    saved = blake2b(json.dumps(old, sort_keys=True).encode(), digest_size=8)
    saved.update(Path(asked.weights).read_bytes())
    assert asked.id == saved.hexdigest()
    proof = replace(asked, task="proof", asks={"image": 1})
    assert len({asked.id, proof.id, replace(proof, asks={"image": 2}).id}) == 3


def test_an_equal_order_is_the_same_job_also_for_another_server(jobs):
    asked = order(COMPRESSORS["prune-weights"]())
    first = jobs.submit(asked)
    assert jobs.submit(replace(asked)) == first
    jobs.wait(first, PATIENCE_S)
    began = first.status.began
    other = Jobs(jobs.directory, most=1)  # as after a restart
    assert [job.id for job in other] == [first.id]
    assert other.submit(asked).status.began == began
    assert other.get(order(COMPRESSORS["prune-weights"](sparsity=0.1))) is None


def test_a_directory_that_has_gone_holds_no_jobs(tmp_path):
    jobs = Jobs(tmp_path / "jobs")
    (tmp_path / "jobs").rmdir()
    assert list(jobs) == []


def test_the_same_file_with_other_weights_is_another_order(tmp_path):
    file = tmp_path / "weights.safetensors"
    ids = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        ids.append(replace(order(), weights=str(file)).id)
    assert ids[0] == ids[2] != ids[1]


def test_cancelling_keeps_the_whole_epochs_by_then(jobs):
    job = jobs.submit(order(tuning(500, images=2000)))
    until(lambda: len(job.history) >= 2)
    asked = time.monotonic()
    job.cancel()
    until(lambda: job.status.message.startswith("Stopped") or job.status.over)
    assert time.monotonic() - asked < 5  # one second where the machine has nothing else to do
    status = jobs.wait(job, PATIENCE_S)
    assert status.state == "cancelled"
    outcome = job.outcome()
    assert not outcome.finished
    assert 2 <= len(outcome.history) < 500
    again = jobs.submit(job.order)  # cancelled is not done: it may be begun again
    until(lambda: again.status.over or len(again.history) >= 2)
    assert again.status.state == "running"
    again.cancel()
    assert jobs.wait(again, PATIENCE_S).state == "cancelled"


class Fake:
    """A worker process that goes on until it is killed."""

    def __init__(self):
        self.killed = False

    def poll(self):
        return -9 if self.killed else None

    def kill(self):
        self.killed = True

    def wait(self):
        return -9


@pytest.mark.parametrize(("state", "killed"), [("running", True), ("stopping", False)])
def test_only_a_worker_that_does_not_hear_a_cancel_is_ended(state, killed, jobs):
    job, worker = Job(jobs.directory / "cd34"), Fake()
    job.folder.mkdir()
    job.write(Status(state, asked=1.0, began=1.0))
    (job.folder / "alive").touch()
    (job.folder / "cancel").touch()
    os.utime(job.folder / "cancel", (1.0, 1.0))  # asked long ago
    jobs._workers[job.id] = worker
    assert jobs._runs(job) is not killed
    assert worker.killed is killed
    assert job.status.state == ("cancelled" if killed else state)


def test_while_one_runs_the_next_waits_and_can_be_cancelled_there(jobs):
    first = jobs.submit(order(tuning(500, images=2000)))
    until(lambda: first.status.state == "running")
    second = jobs.submit(order(tuning(499, images=2000)))
    time.sleep(1)
    assert second.status.state == "waiting"
    second.cancel()
    assert until(lambda: second.status.over and second.status.state) == "cancelled"
    with pytest.raises(CheckpointError):
        second.outcome()
    first.cancel()
    jobs.wait(first, PATIENCE_S)


def test_a_killed_worker_is_reported_and_the_next_job_runs(jobs):
    job = jobs.submit(order(tuning(500, images=2000)))
    until(lambda: job.history)
    os.kill(jobs.process(job), signal.SIGKILL)
    status = jobs.wait(job, PATIENCE_S)
    assert status.state == "lost"
    assert "exit status -9" in status.problem
    after = jobs.submit(order(COMPRESSORS["prune-weights"]()))
    assert jobs.wait(after, PATIENCE_S).state == "done"


def test_a_worker_of_a_server_that_is_gone_is_watched_by_its_signs_of_life(tmp_path):
    folder = tmp_path / "jobs" / "ab12"
    folder.mkdir(parents=True)
    Job(folder).write(Status("running", asked=1.0, began=1.0))
    (folder / "alive").touch()
    os.utime(folder / "alive", (1.0, 1.0))
    jobs = Jobs(tmp_path / "jobs")
    status = jobs.wait(Job(folder), PATIENCE_S)
    assert status.state == "lost"
    assert "no sign of life" in status.problem
    jobs.remove(Job(folder))
    assert list(jobs) == []


def test_what_cannot_be_carried_out_fails_with_its_sentence(jobs):
    status = jobs.wait(jobs.submit(order(COMPRESSORS["layer-removal"]())), PATIENCE_S)
    assert status.state == "failed"
    assert "residual block" in status.problem
    broken = jobs.submit(replace(order(), weights="/no/such/file.safetensors"))
    status = jobs.wait(broken, PATIENCE_S)
    assert status.state == "failed"
    assert "not there" in status.problem


def test_a_folder_that_is_no_job_is_left_out(jobs):
    (jobs.directory / "notes").mkdir()
    (jobs.directory / "half").mkdir()
    (jobs.directory / "half" / "state.json").write_text(json.dumps({"state": "running", "no": 1}))
    assert list(jobs) == []


def test_the_time_left_is_said_once_it_is_more_than_a_guess():
    now = time.time()
    assert Status("running", 0.5, began=now - 10).remaining_s == pytest.approx(10, rel=0.05)
    assert Status("running", 0.01, began=now - 10).remaining_s is None
    assert Status("waiting").remaining_s is None
    assert Status("done", 1.0, began=now - 10, ended=now - 4).seconds == pytest.approx(6)
