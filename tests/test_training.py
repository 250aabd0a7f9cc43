"""The one loop: resumable to the bit, augmented as said, at the learning rate said, safe against NaN."""

import copy
import math

import pytest
import torch
from tiny import plain_network, quadrants
from torch import nn
from torch.nn import functional as F

from core.bundles import Setting
from core.cutting import cut
from core.errors import CheckpointError, ParameterError, Stopped, TrainingError
from core.evaluation import evaluate
from core.methods.fine_tuning import FineTuning
from core.methods.prune_weights import PruneWeights
from core.methods.semi_structured import SemiStructured
from core.recipe import Recipe, compress
from core.run import Run, seeded
from core.training import Classification, Minimise, Schedule, Task, _optimizer, _rate, augment, fit

QUICK = {"epochs": 4, "learning_rate": 0.05, "batch_size": 16, "crop": 2}


def train(schedule, run=None, data=None, checkpoint=None, validation=None, task=None):
    run = run or Run()
    with seeded(0):
        model = plain_network()
        fit(
            model,
            quadrants(48, seed=1) if data is None else data,
            task or Classification(schedule.label_smoothing),
            schedule,
            run,
            validation=validation,
            checkpoint=checkpoint,
        )
    return model


def equal(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stop(BaseException):
    """What a front end raises to cancel."""


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, optimizer, ema):
    schedule = Schedule(**QUICK, optimizer=optimizer, ema=ema)
    whole_run = Run()
    whole = train(schedule, whole_run, validation=quadrants(24, seed=2))

    def interrupt(progress):
        if progress.fraction > 0.6:  # in the middle of the third epoch
            raise Stop

    path = tmp_path / "model.ckpt"
    with pytest.raises(Stop):
        train(schedule, Run(on_progress=interrupt), checkpoint=path, validation=quadrants(24, seed=2))
    run = Run()
    resumed = train(schedule, run, checkpoint=path, validation=quadrants(24, seed=2))
    assert equal(resumed, whole)
    assert run.records == whole_run.records
    assert [row["epoch"] for row in run.records] == [1, 2, 3, 4]
    assert equal(train(schedule, checkpoint=path), whole)  # nothing is left to do


def test_a_checkpoint_of_something_else_is_refused_with_a_sentence(tmp_path):
    path = tmp_path / "model.ckpt"
    train(Schedule(**QUICK | {"epochs": 1}), checkpoint=path)
    with pytest.raises(CheckpointError, match="must continue the schedule it was begun with"):
        train(Schedule(**QUICK | {"epochs": 2}), checkpoint=path)
    held = path.read_bytes()
    path.write_bytes(held[: len(held) // 2])
    with pytest.raises(CheckpointError, match="must be a checkpoint of this network, got"):
        train(Schedule(**QUICK | {"epochs": 1}), checkpoint=path)
    path.write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="must be a checkpoint of this network, got"):
        train(Schedule(**QUICK | {"epochs": 1}), checkpoint=path)


def test_equal_seeds_give_equal_weights_and_a_frozen_network_in_eval_mode():
    first, second = (train(Schedule(**QUICK)) for _ in range(2))
    assert equal(first, second)
    assert not any(module.training for module in first.modules())
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert all(parameter.is_contiguous() for parameter in first.parameters())


def test_it_learns_and_records_every_epoch():
    run = Run()
    schedule = Schedule(**QUICK | {"epochs": 20, "crop": 0}, flip=False)
    model = train(schedule, run, validation=quadrants(24, seed=2))
    assert [row["epoch"] for row in run.records] == list(range(1, 21))
    assert run.records[-1]["loss"] < 0.3 < 1.0 < run.records[0]["loss"]
    assert run.records[-1]["validation_accuracy"] == pytest.approx(
        evaluate(model, quadrants(24, seed=2)).accuracy
    )
    assert run.records[-1]["validation_accuracy"] > 0.9


def test_one_plain_step_is_gradient_descent_by_hand():
    data = quadrants(16, seed=1)
    schedule = Schedule(
        epochs=1, learning_rate=0.1, batch_size=16, schedule="constant", weight_decay=0.01, crop=0, flip=False
    )
    with seeded(0):
        model = plain_network()
    expected = copy.deepcopy(model).train()
    F.cross_entropy(expected(data.images), data.labels).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            slope = parameter.grad + (0.01 * parameter if parameter.dim() > 1 else 0)
            parameter -= 0.1 * (slope + 0.9 * slope)  # Nesterov: momentum starts at the first slope
    found = train(schedule, data=data)
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [0, 1, 4])
def test_augmentation_is_a_shift_over_black_and_a_mirror_drawn_for_each_picture(crop, flip):
    pixels = torch.randint(0, 256, (40, 3, 7, 5), dtype=torch.uint8)
    torch.manual_seed(3)
    found = augment(pixels, crop, flip)
    torch.manual_seed(3)
    mirrored = (torch.rand(40, 1) < 0.5)[:, 0] if flip else torch.zeros(40, dtype=torch.bool)
    down = torch.randint(0, 2 * crop + 1, (40, 1))[:, 0] if crop else torch.zeros(40, dtype=torch.int64)
    right = torch.randint(0, 2 * crop + 1, (40, 1))[:, 0] if crop else torch.zeros(40, dtype=torch.int64)
    for n in range(40):
        for row in range(7):
            for column in range(5):
                y = row + down[n].item() - crop
                x = (4 - column if mirrored[n] else column) + right[n].item() - crop
                inside = 0 <= y < 7 and 0 <= x < 5
                expected = pixels[n, :, y, x] if inside else torch.zeros(3, dtype=torch.uint8)
                assert torch.equal(found[n, :, row, column], expected)
    if flip:
        assert 0 < mirrored.sum() < 40
    if crop:
        assert {0, 2 * crop} <= set(down.tolist()) | set(right.tolist())
    assert found.shape == pixels.shape
    assert found.dtype == torch.uint8


def test_without_augmentation_pictures_stay():
    pixels = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    assert torch.equal(augment(pixels, 0, False), pixels)


def test_cosine_falls_from_the_peak_to_nothing():
    factor = _rate(Schedule(epochs=10, schedule="cosine"), steps=10)
    assert factor(0) == 1
    assert factor(50) == pytest.approx(0.5)
    assert factor(25) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert factor(100) == pytest.approx(0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), T_max=100)
    for step in range(100):
        assert factor(step) == pytest.approx(peer.get_last_lr()[0], abs=1e-9)
        peer.optimizer.step()
        peer.step()


def test_one_cycle_climbs_for_a_fifth_and_falls_like_a_cosine():
    factor = _rate(Schedule(epochs=10, schedule="one-cycle"), steps=10)
    assert factor(0) == pytest.approx(0.04)
    assert factor(10) == pytest.approx(0.52)
    assert factor(20) == pytest.approx(1)
    assert factor(60) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0)
    rates = [factor(step) for step in range(101)]
    assert rates.index(max(rates)) == 20


def test_constant_stays():
    factor = _rate(Schedule(epochs=3, schedule="constant"), steps=5)
    assert {factor(step) for step in range(16)} == {1.0}


def test_one_epoch_of_one_step_has_a_learning_rate_in_every_schedule():
    for name in ("one-cycle", "cosine", "constant"):
        assert 0 < _rate(Schedule(epochs=1, schedule=name), steps=1)(0) <= 1


def test_weight_decay_pulls_weights_and_spares_biases_and_batch_norms():
    model = plain_network()
    groups = _optimizer(model, Schedule(weight_decay=0.01)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert names == {"conv1.weight", "conv2.weight", "linear1.weight", "linear2.weight"}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert type(_optimizer(model, Schedule(optimizer="adamw"))) is torch.optim.AdamW


def test_a_loss_that_leaves_the_finite_numbers_stops_and_keeps_the_last_good_state():
    calls, good, model = [], {}, plain_network()

    def spoilt(network, images, labels):
        calls.append(1)
        if len(calls) == 7:  # three steps an epoch: the second epoch has just ended
            good.update(copy.deepcopy(network.state_dict()))
        return F.cross_entropy(network(images), labels) * (math.nan if len(calls) == 9 else 1.0)

    run = Run()
    with pytest.raises(
        TrainingError, match=r"training: the loss became nan in epoch 3; a learning rate below 0.05"
    ):
        fit(model, quadrants(48, seed=1), Minimise(spoilt), Schedule(**QUICK), run)
    assert [row["epoch"] for row in run.records] == [1, 2]
    assert all(torch.equal(value, good[name]) for name, value in model.state_dict().items())
    assert model.bn1.num_batches_tracked == 6
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_that_leave_the_finite_numbers_in_the_very_last_step_are_noticed():
    class Overflow(nn.Linear):
        pass

    model = nn.Sequential(nn.Flatten(), Overflow(768, 4))

    def steep(network, images, labels):
        return (
            F.cross_entropy(network(images), labels)
            + 0 * network[1].weight.sum()
            + (network[1].bias * 1e30).sum() * 1e8
        )

    before = copy.deepcopy(model.state_dict())
    schedule = Schedule(epochs=1, learning_rate=10.0, batch_size=64, schedule="constant", crop=0, flip=False)
    with pytest.raises(TrainingError, match="weights became NaN or infinite in epoch 1"):
        fit(model, quadrants(8, seed=1), Minimise(steep), schedule, Run())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_pictures_are_a_sentence_and_not_a_division_by_zero():
    with pytest.raises(TrainingError, match="there must be pictures to train on, got none"):
        train(Schedule(**QUICK), data=quadrants(0, seed=1))


def test_the_moving_average_is_what_is_left():
    """One picture a step, three steps: the average of the weights after each, started at the first."""
    seen = []

    def watch(model, images, labels):
        seen.append({name: value.clone() for name, value in model.named_parameters()})
        return F.cross_entropy(model(images), labels)

    schedule = Schedule(
        epochs=1, learning_rate=0.05, batch_size=1, ema=0.5, crop=0, flip=False, schedule="constant"
    )
    data = quadrants(4, seed=1)
    averaged = train(schedule, data=data, task=Minimise(watch))
    last = train(Schedule.from_dict(schedule.to_dict() | {"ema": 0.0}), data=data)
    after = [*seen[1:4], dict(last.named_parameters())]
    for name, value in averaged.named_parameters():
        expected = after[0][name].detach()
        for weights in after[1:]:
            expected = 0.5 * expected + 0.5 * weights[name].detach()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------- fine-tuning


@pytest.fixture(scope="module")
def trained():
    return train(Schedule(**QUICK | {"epochs": 20, "crop": 0}, flip=False))


@pytest.fixture
def trained_setting(trained):
    return Setting(quadrants(48, seed=1), quadrants(24, seed=2), trained)


@pytest.mark.parametrize("step", [PruneWeights(sparsity=0.9), SemiStructured(pattern="1:4")])
def test_what_was_pruned_is_exactly_zero_after_fine_tuning_and_the_rest_moved(trained, trained_setting, step):
    cut = compress(trained, trained_setting, Recipe((step,))).model
    tuned = compress(trained, trained_setting, Recipe((step, FineTuning(epochs=3, batch_size=8)))).model
    for name in ("conv1", "conv2", "linear1", "linear2"):
        before, after = cut.get_submodule(name).weight, tuned.get_submodule(name).weight
        assert (after[before == 0] == 0).all()
        assert (after[before != 0] != before[before != 0]).float().mean() > 0.95


def test_fine_tuning_brings_accuracy_back(trained, trained_setting):
    test = quadrants(100, seed=3)
    cut = PruneWeights(sparsity=0.93)
    before = evaluate(compress(trained, trained_setting, Recipe((cut,))).model, test).accuracy
    tuning = FineTuning(epochs=15, learning_rate=0.05, batch_size=8, crop=0)
    result = compress(trained, trained_setting, Recipe((cut, tuning)))
    assert evaluate(result.model, test).accuracy > before + 0.15
    assert [row["epoch"] for row in result.records] == list(range(1, 16))
    assert {"epoch", "loss", "validation_accuracy"} == set(result.records[0])


def test_fine_tuning_sees_only_as_many_pictures_as_it_was_told(trained, trained_setting):
    seen = []
    run = Run(on_progress=lambda progress: seen.append(progress.message))
    compress(trained, trained_setting, Recipe((FineTuning(epochs=1, images=10, batch_size=1),)), run)
    assert seen.count("Epoch 1 of 1") == 10


def test_fine_tuning_is_declared_by_the_schedule_it_follows():
    assert set(Schedule.domains()) | {"images", "objective"} == set(FineTuning.domains())
    with pytest.raises(ParameterError, match="fine-tuning: learning_rate must lie in"):
        FineTuning(learning_rate=0.0)


# ---------------------------------------------------------------------------------- tasks and stops


class Halving(Task):
    """After the first epoch takes half of the first convolution's filters away."""

    def terms(self, model, images, labels):
        loss = F.cross_entropy(model(images), labels)
        return {"loss": loss, "twice": 2 * loss.detach()}

    def passed(self, model, epoch):
        if epoch == 0:
            gone = {("conv1", "out"): torch.arange(3), ("bn1", "out"): torch.arange(3)}
            return lambda network: cut(network, gone | {("conv2", "in"): torch.arange(3)})
        return None

    def observed(self):
        return {"seen": 1.0}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_a_task_cuts_goes_from_weights_average_and_momenta_alike(optimizer):
    """Filters without any influence are cut: the rest trains on as if nothing had happened."""

    def begin():
        with seeded(0):
            model = plain_network()
        for layer, name in (
            (model.conv1, "bias"),
            (model.conv1, "weight"),
            (model.bn1, "weight"),
            (model.bn1, "bias"),
        ):
            getattr(layer, name).data[:3] = 0  # relu(0) has no slope: these never move
        return model

    schedule = Schedule(**QUICK | {"epochs": 3, "crop": 0}, optimizer=optimizer, ema=0.9, flip=False)
    networks = []
    for task in (Classification(), Halving()):
        model, run = begin(), Run()
        with seeded(1):
            fit(model, quadrants(48, seed=1), task, schedule, run)
        networks.append(model)
    whole, halved = networks
    assert halved.conv1.weight.shape[0] == 3
    torch.testing.assert_close(halved.conv1.weight, whole.conv1.weight[3:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(halved.conv2.weight, whole.conv2.weight[:, 3:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(halved.linear2.weight, whole.linear2.weight, rtol=1e-4, atol=1e-6)
    assert run.records[0].keys() == {"epoch", "loss", "twice", "seen"}
    assert run.records[0]["twice"] == pytest.approx(2 * run.records[0]["loss"])


def test_partners_learn_with_the_network_and_are_resumed(tmp_path):
    class Helped(Task):
        def __init__(self):
            super().__init__()
            self.partners.append(nn.Linear(4, 4))

        def terms(self, model, images, labels):
            return {"loss": F.cross_entropy(self.partners[0](model(images)), labels)}

    def helped(checkpoint=None, epochs=3, stop_at=None):
        with seeded(0):
            model, task = plain_network(), Helped()
            before = task.partners[0].weight.detach().clone()

            def interrupt(progress):
                if stop_at and progress.fraction > stop_at:
                    raise Stop

            schedule = Schedule(**QUICK | {"epochs": epochs})
            fit(
                model,
                quadrants(48, seed=1),
                task,
                schedule,
                Run(on_progress=interrupt),
                checkpoint=checkpoint,
            )
        return task.partners[0].weight, before

    learned, before = helped()
    assert not torch.equal(learned, before)
    with pytest.raises(Stop):
        helped(tmp_path / "x.ckpt", stop_at=0.5)
    assert torch.equal(helped(tmp_path / "x.ckpt")[0], learned)


class Scripted(Task):
    """After every epoch all answers are made right or wrong, as if that had been learned."""

    def __init__(self, shares):
        super().__init__()
        self.shares = shares

    def terms(self, model, images, labels):
        return {"loss": 0 * model(images).sum()}

    def passed(self, model, epoch):
        model[1].bias.data = torch.tensor([10.0 * (epoch + 1), 0.0]) * (1 if self.shares[epoch] else -1)


def scripted(shares, stop_after=None, checkpoint=None, **schedule):
    """(network, run) after training on pictures that all are of class 0: accuracy is 1 or 0."""
    data = quadrants(8, seed=1)
    data.labels[:] = 0
    model, run = nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), Run()

    def interrupt(progress):
        if stop_after and progress.fraction > (stop_after + 0.5) / len(shares):
            raise Stopped

    run.on_progress = interrupt
    settings = Schedule(epochs=len(shares), learning_rate=1e-6, batch_size=1, weight_decay=0.0, **schedule)
    try:
        fit(model, data, Scripted(shares), settings, run, validation=data, checkpoint=checkpoint)
    except Stopped:
        assert stop_after
    return model, run


def test_who_stops_gets_the_best_epoch_so_far():
    model, run = scripted([0, 1, 1, 0, 0, 0], stop_after=4)
    assert [row["validation_accuracy"] for row in run.records] == [0, 1, 1, 0]
    assert model[1].bias[0].item() == pytest.approx(
        30
    )  # the third epoch: of equals the one that trained longest


def test_patience_ends_a_training_that_gets_no_better_and_takes_the_best_epoch(tmp_path):
    model, run = scripted([0, 1, 0, 0, 0, 0], patience=2)
    assert len(run.records) == 4
    assert model[1].bias[0].item() == pytest.approx(20)
    assert len(scripted([0, 1, 0, 0, 0, 0], patience=0)[1].records) == 6
    path = tmp_path / "x.ckpt"
    ended = [
        scripted([0, 1, 0, 0, 0, 0], patience=2, checkpoint=path) for _ in range(2)
    ]  # resumed: nothing is left
    assert equal(*(model for model, _ in ended))
    assert [len(run.records) for _, run in ended] == [4, 4]
    with pytest.raises(TrainingError, match="must be validation pictures where patience ends it, got none"):
        train(Schedule(**QUICK, patience=1))
