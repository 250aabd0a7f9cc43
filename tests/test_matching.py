"""Attribution matching against numbers computed by hand, Captum, finite differences and plain training."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tiny import CLASSES, TinyResNet
from torch import Tensor, nn

from bench.matching import SHAPES, differences, made_shapes
from core.bundles import Setting
from core.drift import SHIPPED, drift, look, shipped, shipped_network, summary
from core.errors import ParameterError, Stopped, UnsupportedModelError
from core.evaluation import evaluate
from core.layers import private_copy, prunable
from core.matching import (
    collapse,
    cosine,
    dead,
    distance,
    drop_channels,
    matching_loss,
    published_weight,
    sensitivity,
    tap_of,
    view,
)
from core.objective import OBJECTIVES
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run
from core.weights import load_dataset, load_model

CHANNELS = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[0.0, 1.0], [3.0, 0.0]]]])  # (1, 2, 2, 2)
SLOPES = torch.tensor([[2.0, -1.0]])  # 0.5 and -0.25 at each of four places
ONES = torch.ones(1, 2, 2)


def published(teacher: Tensor, student: Tensor) -> float:
    """The loss of the authors' code: the mean squared difference of unit maps."""
    return (2 / teacher[0].numel() * distance(teacher, student)).mean().item()


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def matching(**values):
    return {"method": "attribution-matching", **values}


def tuned(setting: Setting, objective, seed: int = 3, run: Run | None = None, **schedule) -> nn.Module:
    values = {"epochs": 2, "batch_size": 16, "crop": 1} | schedule
    step = COMPRESSORS["fine-tuning"](objective=objective, **values)
    return compress(setting.teacher, setting, Recipe((step,), seed), run).model


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


# ------------------------------------------------------------------------------------- the maths


@pytest.mark.parametrize(
    ("kind", "gone", "expected", "loss"),
    [
        ("EWA", None, [0.5, 2.5, 4.5, 0.5], 0.115100),
        ("SWA", None, [2.0, 3.0, 0.0, 2.0], 0.075563),
        ("SSWA", 1, [2.0, 4.0, 0.0, 2.0], 0.091752),
        ("SSWA", 0, [0.0, 0.0, 0.0, 0.0], 0.250000),
    ],
)
def test_a_map_of_two_channels_is_the_one_computed_by_hand(kind, gone, expected, loss):
    channels = CHANNELS.clone()
    if gone is not None:
        channels[:, gone] = 0
    found = collapse(channels, kind, SLOPES)
    assert found.flatten().tolist() == expected
    assert published(found, ONES) == pytest.approx(loss, abs=1e-6)


def test_maps_that_share_no_place_are_as_far_apart_as_maps_can_be():
    first, second = torch.eye(4).view(4, 2, 2)[:1], torch.eye(4).view(4, 2, 2)[1:2]
    assert published(first, second) == 0.5
    assert distance(first, second).item() == 1


def test_distance_is_one_minus_the_cosine_and_knows_neither_scale_nor_order():
    first, second = random_maps(6, 5, 7), random_maps(6, 5, 7, seed=1)
    assert torch.allclose(distance(first, second), 1 - cosine(first, second), atol=1e-6)
    by_hand = nn.functional.cosine_similarity(first.flatten(1), second.flatten(1))
    assert torch.allclose(cosine(first, second), by_hand, atol=1e-6)
    assert torch.equal(distance(first, second), distance(second, first))
    assert torch.allclose(distance(1e3 * first, 1e-3 * second), distance(first, second), atol=1e-6)
    assert distance(first, 7 * first).abs().max() < 1e-12
    assert ((distance(first, second) >= 0) & (distance(first, second) <= 1)).all()


def test_channels_may_be_permuted_together_with_their_slopes():
    channels, slopes, order = random_maps(3, 6, 4, 4), random_maps(3, 6) - 0.5, torch.randperm(6)
    for kind in ("EWA", "SWA"):
        there, back = (collapse(channels[:, o], kind, slopes[:, o]) for o in (slice(None), order))
        assert torch.allclose(there, back, atol=1e-6)


def test_the_authors_beta_at_their_size_is_the_weight_that_their_commands_mean():
    assert published_weight(200 / 49, 49) == pytest.approx(100)
    assert published_weight(4.0, 64) == 128
    first, second = random_maps(6, 4, 4), random_maps(6, 4, 4, seed=1)
    ours = 4.0 * distance(first, second).mean().item()
    assert published_weight(4.0, 16) * published(first, second) == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize("kind", ["ewa", "none", ""])
def test_an_unknown_kind_of_map_is_refused_with_the_known_ones(kind):
    with pytest.raises(ParameterError, match="must be one of EWA, SWA, SSWA, got"):
        collapse(CHANNELS, kind, SLOPES)
    with pytest.raises(ParameterError, match=r"slopes must be \(1, 2\) for SWA, got None"):
        collapse(CHANNELS, "SWA")


def test_dropped_channels_are_exactly_so_many_the_same_for_all_pictures_and_new_every_time():
    channels = torch.ones(5, 100, 2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = drop_channels(channels, 0.29), drop_channels(channels, 0.29)
        torch.manual_seed(0)
        assert torch.equal(drop_channels(channels, 0.29), first)
        state = torch.get_rng_state()
        assert drop_channels(channels, 0.009) is channels
        assert torch.equal(torch.get_rng_state(), state)
    for dropped in (first, second):
        gone = (dropped == 0).all(dim=(2, 3))
        assert (gone.sum(1) == 29).all()
        assert (gone == gone[:1]).all()
    assert not torch.equal(first, second)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ParameterError, match=r"rate must lie in \[0, 1\), got"):
            drop_channels(channels, rate)


def test_a_picture_without_an_aim_counts_for_nothing_and_pulls_nowhere():
    teacher, student = random_maps(4, 3, 3), random_maps(4, 3, 3, seed=1).requires_grad_()
    teacher[1] = 0
    assert dead(teacher).tolist() == [False, True, False, False]
    loss = matching_loss(teacher, student)
    assert loss.item() == pytest.approx(distance(teacher, student)[[0, 2, 3]].mean().item())
    loss.backward()
    assert not student.grad[1].any()
    assert student.grad[0].any()
    assert matching_loss(torch.zeros(2, 3, 3), random_maps(2, 3, 3)).item() == 0


# ------------------------------------------------------------------------------ maps of networks


def test_a_map_is_captums_grad_cam_with_its_relu_times_the_places(tiny_model, tiny_data):
    from captum.attr import LayerGradCam

    images = tiny_data.test.images
    logits, classes, maps = view(tiny_model, "layer2", images, "SWA")
    model = private_copy(tiny_model)
    theirs = LayerGradCam(model, model.layer2).attribute(images, target=classes, relu_attributions=True)
    assert torch.equal(classes, logits.argmax(1))
    assert torch.allclose(maps, 64 * theirs[:, 0], rtol=1e-5, atol=1e-6)
    assert maps.max() > 0


def test_behind_global_pooling_the_slopes_are_the_weights_of_the_class(tiny_model, tiny_data):
    images, seen = tiny_data.test.images, {}
    model = private_copy(tiny_model)
    model.layer2.register_forward_hook(lambda module, inputs, output: seen.update(channels=output))
    _, classes, maps = view(model, "layer2", images, "SWA")
    slopes = model.linear.weight[classes]
    assert torch.allclose(maps, collapse(seen["channels"], "SWA", slopes), atol=1e-5)


@pytest.mark.parametrize("kind", ["EWA", "SWA"])
def test_the_slope_of_the_loss_is_that_of_finite_differences_through_the_slopes_in_the_map(kind):
    """Behind a nonlinear head, so that the sensitivities move with the weights, too."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Softplus())
    head = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    body.double(), head.double()
    images, wanted = torch.randn(3, 1, 6, 6).double(), torch.rand(3, 6, 6).double()
    classes, weight = torch.tensor([0, 1, 1]), body[0].weight

    def loss() -> Tensor:
        channels = body(images)
        slopes = sensitivity(head(channels), channels, classes, graph=True)
        return matching_loss(wanted, collapse(channels, kind, slopes))

    (found,) = torch.autograd.grad(loss(), weight)
    for index in range(0, weight.numel(), 5):
        ends = []
        for step in (1e-6, -1e-6):
            moved = torch.zeros(weight.numel()).double()
            moved[index] = step
            with torch.no_grad():
                weight += moved.view_as(weight)
            ends.append(loss().item())
            with torch.no_grad():
                weight -= moved.view_as(weight)
        assert found.flatten()[index].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_a_layer_that_the_class_does_not_depend_on_is_refused():
    channels = torch.ones(2, 3, 4, 4, requires_grad=True)
    for logits in (torch.ones(2, 5), torch.ones(2, 5, requires_grad=True)):
        with pytest.raises(
            UnsupportedModelError, match="must have a gradient from the class score, got none"
        ):
            sensitivity(logits, channels, torch.tensor([0, 1]))


def test_an_activation_that_overwrites_the_tapped_map_changes_nothing(tiny_data):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    )
    hasty = copy.deepcopy(plain)
    hasty[1].inplace = True
    for model in (plain, hasty):
        model.eval().requires_grad_(False)
    images = tiny_data.test.images
    for expected, found in zip(view(plain, "1", images, "SWA"), view(hasty, "0", images, "SWA"), strict=True):
        assert torch.allclose(expected, found, atol=1e-6)


def test_taps_are_counted_from_the_output(tiny_model, plain_model, tiny_data):
    image = tiny_data.test.images[:1]
    assert [tap_of("who", tiny_model, image, tap) for tap in (1, 2, 8)] == ["layer2", "layer1", "layer1"]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    with pytest.raises(UnsupportedModelError, match=r"^who: the model must have feature maps .*, got none"):
        tap_of("who", flat, image, 1)


# --------------------------------------------------------------------------------- the objective


def test_without_weight_or_variant_it_is_plain_training_bit_for_bit(setting):
    plain = tuned(setting, "labels")
    for objective in (matching(weight=0.0), matching(variant="none")):
        assert same(plain, tuned(setting, objective))
    assert not same(plain, tuned(setting, matching()))


def test_dropping_no_channel_is_the_plain_sensitivity_map_bit_for_bit(setting):
    plain = tuned(setting, matching(variant="SWA"))
    assert same(plain, tuned(setting, matching(variant="SSWA", drop=0.05)))  # of 16 channels: none
    assert not same(plain, tuned(setting, matching(variant="SSWA", drop=0.5)))


def test_a_copy_of_the_teacher_in_eval_mode_is_at_the_aim(setting):
    step = COMPRESSORS["fine-tuning"]()
    for variant in ("EWA", "SWA", "none"):
        task = OBJECTIVES["attribution-matching"](variant=variant).bind(setting.teacher, setting, step, Run())
        model = private_copy(setting.teacher).requires_grad_(True)
        terms = task.terms(model, setting.train.images, setting.train.labels)
        assert terms["matching_loss"].item() < 1e-10
        assert terms["map_cosine"].item() == pytest.approx(1, abs=1e-6)
        assert terms["loss"].item() == pytest.approx(terms["task_loss"].item(), abs=1e-6)


def test_the_task_loss_mixes_labels_and_soft_answers(setting):
    student = private_copy(TinyResNet()).requires_grad_(True)
    images, labels = setting.train.images, setting.train.labels
    bound = {
        share: OBJECTIVES["attribution-matching"](variant="none", share=share, temperature=4.0).bind(
            student, setting, COMPRESSORS["fine-tuning"](), Run()
        )
        for share in (0.0, 0.9, 1.0)
    }
    losses = {share: task.terms(student, images, labels)["task_loss"].item() for share, task in bound.items()}
    logits = [(net(images) / 4).log_softmax(1) for net in (student, setting.teacher)]
    soft = 16 * nn.functional.kl_div(*logits, reduction="batchmean", log_target=True).item()
    hard = nn.functional.cross_entropy(student(images), labels).item()
    assert losses[0.0] == pytest.approx(hard, rel=1e-5)
    assert losses[1.0] == pytest.approx(soft, rel=1e-4)
    assert losses[0.9] == pytest.approx(0.1 * hard + 0.9 * soft, rel=1e-4)


def test_pictures_without_an_aim_and_dead_maps_are_counted(setting):
    silent = copy.deepcopy(setting.teacher)
    silent.linear.weight.data.fill_(-1)  # nothing ever speaks for a class
    run = Run()
    tuned(replace(setting, teacher=silent), matching(), run=run)
    first = run.records[0]
    assert first["pictures_without_aim"] == len(setting.train)
    assert first["matching_loss"] == 0
    assert first["loss"] == first["task_loss"]
    run = Run()
    tuned(setting, matching(), run=run)
    assert run.records[0]["pictures_without_aim"] < len(setting.train)
    assert {"task_loss", "matching_loss", "map_cosine", "dead_maps"} <= run.records[0].keys()


def test_networks_that_cannot_be_matched_are_refused(setting, tiny_data):
    def bind(model: nn.Module, teacher: nn.Module = setting.teacher):
        step = COMPRESSORS["fine-tuning"]()
        OBJECTIVES["attribution-matching"]().bind(model, replace(setting, teacher=teacher), step, Run())

    with pytest.raises(UnsupportedModelError, match=r"must have classes of \(4,\) .*, got \(5,\)"):
        bind(TinyResNet(classes=5))
    coarse = TinyResNet()
    coarse.conv1.stride = (2, 2)
    with pytest.raises(UnsupportedModelError, match=r"must have feature maps of \(8, 8\) .*, got \(4, 4\)"):
        bind(coarse)
    with pytest.raises(UnsupportedModelError, match=r"must have feature maps .*, got none"):
        bind(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)))
    bind(TinyResNet(width=4))  # fewer channels are what collapsing is for


def test_bfloat16_training_still_compares_maps_in_float32(setting):
    run = Run()
    tuned(setting, matching(), run=run, bfloat16=True)
    assert 0 < run.records[0]["matching_loss"] < 1


# ------------------------------------------------------------------------------ what became of it


def test_a_network_has_not_drifted_from_itself(setting, tiny_data):
    original = look(setting.teacher, tiny_data.test)
    table = drift(original, look(setting.teacher, tiny_data.test, original.classes), tiny_data.test)
    found = summary(table)
    assert found["cosine"] == pytest.approx(1)
    assert found["same_answer"] == 1
    assert found["accuracy"] == found["accuracy_before"]
    for name in ("auc", "pointing_game", "mass_inside"):
        assert found[name] == found[f"{name}_before"] or found["pairs"] == 0


def test_maps_are_judged_on_the_pictures_that_both_answer_rightly(tiny_data):
    split = tiny_data.test.take(slice(0, 4))
    inside = torch.nn.functional.avg_pool2d(split.masks[:, None].float(), 2)[:, 0]  # (4, 8, 8)
    right = torch.eye(CLASSES)[split.labels]
    wrong = right.roll(1, dims=1)
    before = SimpleNamespace(logits=right, classes=split.labels, maps=inside)
    after = SimpleNamespace(
        logits=torch.cat([right[:3], wrong[3:]]),
        classes=split.labels,
        maps=torch.stack([inside[0], 1 - inside[1], torch.zeros(8, 8), inside[3]]),
    )
    table = drift(before, after, split)
    found = summary(table)
    assert table.cosine.tolist() == pytest.approx([1, 0, 0, 1])
    assert (found["accuracy"], found["pairs"], found["dead"]) == (0.75, 3, 0.25)
    assert found["pointing_game"] == 0.5  # one of the two that have a map
    assert found["auc_before"] > 0.95
    before.maps[3] = 0
    assert summary(drift(before, after, split))["cosine"] == pytest.approx(1 / 3)
    assert summary(drift(before, after, split))["without_aim"] == 1


# ---------------------------------------------------------------------------- pruning in rounds


def rounds(setting: Setting, run: Run | None = None, **values):
    step = COMPRESSORS["iterative-pruning"](**{"epochs": 1, "batch_size": 16, "crop": 1} | values)
    return compress(setting.teacher, setting, Recipe((step,), 3), run).model


def convolutions(model: nn.Module) -> Tensor:
    found = [layer.weight.flatten() for layer in prunable(model).values() if isinstance(layer, nn.Conv2d)]
    return torch.cat(found)


def test_every_round_takes_the_same_share_of_what_is_left(setting):
    run, total = Run(), convolutions(setting.teacher).numel()
    model = rounds(setting, run, sparsity=1 - 0.8**4, rounds=4)
    assert [row["sparsity"] for row in run.records] == pytest.approx([0.2, 0.36, 0.488, 0.5904])
    assert [row["round"] for row in run.records] == [1, 2, 3, 4]
    assert int((convolutions(model) == 0).sum()) == round((1 - 0.8**4) * total)
    assert model.linear.weight.all()


def test_what_is_gone_stays_gone_through_momentum_decay_and_later_rounds(setting):
    """Equal beginnings: the first rounds of a longer recipe are the shorter one."""
    sparsities = (0.3, 0.6, 0.9)
    steps = [
        COMPRESSORS["iterative-pruning"](
            sparsity=s, rounds=1, epochs=2, batch_size=16, weight_decay=0.1, learning_rate=0.1
        )
        for s in sparsities
    ]
    left = [
        convolutions(compress(setting.teacher, setting, Recipe(tuple(steps[: n + 1]))).model) != 0
        for n in range(3)
    ]
    for sparsity, mask in zip(sparsities, left, strict=True):
        assert int((~mask).sum()) == round(sparsity * mask.numel())
    assert not (left[1] & ~left[0]).any()
    assert not (left[2] & ~left[1]).any()


def test_steps_carried_out_one_by_one_make_what_one_recipe_makes(setting):
    """So the networks on the way have recipes, too: step t of a recipe has the seed of the recipe + t."""
    steps = [
        COMPRESSORS["iterative-pruning"](sparsity=s, rounds=1, epochs=1, batch_size=16, objective=matching())
        for s in (0.5, 0.8)
    ]
    model = setting.teacher
    for index, step in enumerate(steps):
        model = compress(model, setting, Recipe((step,), 5 + index)).model
    assert same(model, compress(setting.teacher, setting, Recipe(tuple(steps), 5)).model)


def test_one_threshold_serves_all_convolutions_and_the_smallest_go(setting):
    model = rounds(setting, sparsity=0.4, rounds=1, learning_rate=1e-6)
    old, new = convolutions(setting.teacher).abs(), convolutions(model)
    assert old[new == 0].max() <= old[new != 0].min()
    shares = {name: (layer.weight == 0).float().mean() for name, layer in prunable(model).items()}
    assert max(shares.values()) > min(shares.values())
    everything = rounds(setting, sparsity=0.4, rounds=1, scope="everything")
    assert not everything.linear.weight.all()


def test_nothing_asked_for_is_plain_training(setting):
    plain = tuned(setting, "labels", epochs=1)
    assert same(plain, rounds(setting, sparsity=0.0, rounds=1))


def test_a_layer_without_weights_is_reported(setting):
    teacher = copy.deepcopy(setting.teacher)
    teacher.layer1[0].conv2.weight.data *= 1e-9
    silent = replace(setting, teacher=teacher)
    step, run = COMPRESSORS["iterative-pruning"](sparsity=0.9, rounds=2, epochs=1), Run()
    result = compress(teacher, silent, Recipe((step,)), run, figures=True)
    assert run.records[-1]["empty_layers"] >= 1
    assert "have no weight left, layer1.0.conv2" in result.figures[0][0].finding
    assert result.figures[0][0].table.set_index("layer").weights["layer1.0.conv2"] == 0


def test_a_stopped_round_keeps_what_there_is(setting):
    def stop(progress):
        if progress.fraction > 0.6:
            raise Stopped

    step = COMPRESSORS["iterative-pruning"](sparsity=0.9, rounds=2, epochs=2)
    result = compress(setting.teacher, setting, Recipe((step,)), Run(on_progress=stop))
    gone = (convolutions(result.model) == 0).float().mean().item()
    assert not result.finished
    assert gone == pytest.approx(0.9, abs=1e-3)  # the second round had begun


def test_the_preset_is_the_schedule_of_the_paper():
    step = COMPRESSORS["iterative-pruning"](objective="attribution-matching").preset("paper")
    assert (step.rounds, step.epochs, step.learning_rate) == (16, 30, 0.001)
    assert (1 - step.sparsity) ** (1 / 16) == pytest.approx(0.8)


def test_a_network_without_convolutions_is_refused(setting):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES)).eval().requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match="must have convolutions to prune, got no convolution"):
        rounds(replace(setting, teacher=flat))
    pruned = rounds(replace(setting, teacher=flat), scope="everything", sparsity=0.5)
    assert (pruned[1].weight == 0).float().mean().item() == pytest.approx(0.5, abs=1e-3)


# ------------------------------------------------------------------------------------- the point


@pytest.mark.slow
def test_matched_networks_keep_the_originals_maps_and_naive_ones_do_not():
    data, bundle = load_dataset("cluttered-digits"), load_model("small-cnn", "cluttered-digits")
    setting, test = Setting(data.train, data.validation, bundle.module), data.test.take(slice(0, 300))
    original, found = look(bundle.module, test), {}
    for variant in ("none", "SWA"):
        step = COMPRESSORS["iterative-pruning"](
            sparsity=0.9, rounds=2, images=1024, learning_rate=0.1, objective=matching(variant=variant)
        )
        model = compress(bundle.module, setting, Recipe((step,))).model
        found[variant] = summary(drift(original, look(model, test, original.classes), test))
    assert found["SWA"]["cosine"] > found["none"]["cosine"] + 0.05
    assert found["SWA"]["auc"] > found["none"]["auc"] + 0.01
    assert min(each["accuracy"] for each in found.values()) > 0.6


# ---------------------------------------------------------------------- what comes with the program


def test_shipped_networks_are_those_of_their_records():
    table = shipped()
    assert set(table.training) == {"original", "naive", "matched"}
    for training in ("naive", "matched"):
        rows = table[table.training == training]
        assert rows.sparsity.tolist() == [0.5, 0.75, 0.9, 0.97]
        for row in rows.itertuples():
            bundle = shipped_network(training, row.sparsity)
            assert bundle is shipped_network(training, row.sparsity)  # read once
            assert (bundle.architecture.name, bundle.dataset) == (row.model, row.data)
            assert bundle.provenance["compressed_by"] == row.recipe
            assert Recipe.from_json(json.dumps(row.recipe)).steps[-1].sparsity == row.sparsity
            gone = (convolutions(bundle.module) == 0).double().mean().item()
            assert gone == pytest.approx(row.sparsity, abs=1e-3)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1.5e6


def test_shipped_networks_measure_what_their_records_say():
    """The pair that had most to lose: accuracy on all test pictures, maps on some of them."""
    table, data = shipped().set_index(["training", "sparsity"]), load_dataset("cluttered-digits")
    some = data.test.take(slice(0, 150))
    original = look(load_model("resnet20", "cluttered-digits").module, some)
    for training in ("naive", "matched"):
        row, network = table.loc[training, 0.97], shipped_network(training, 0.97).module
        assert evaluate(network, data.test).accuracy == pytest.approx(row.accuracy, abs=2e-3)
        found = summary(drift(original, look(network, some, original.classes), some))
        assert found["cosine"] == pytest.approx(row.cosine, abs=0.03)


def test_shipped_pairs_differ_in_their_maps_rather_than_in_their_answers():
    table = shipped().set_index(["training", "sparsity"])
    for sparsity in (0.9, 0.97):
        naive, matched = table.loc["naive", sparsity], table.loc["matched", sparsity]
        assert abs(naive.accuracy - matched.accuracy) < 0.02
        assert matched.cosine > naive.cosine
        assert matched.auc > naive.auc


# ------------------------------------------------------------------------------------ measurements


def test_made_shapes_are_bright_where_their_masks_are():
    pictures, labels, masks = made_shapes(60, 32, torch.Generator().manual_seed(0))
    assert labels.unique().tolist() == list(range(len(SHAPES)))
    sizes = masks.flatten(1).sum(1)
    assert ((sizes > 12) & (sizes < 14**2)).all()
    inside, outside = ((pictures * m).flatten(1).sum(1) / m.flatten(1).sum(1) for m in (masks, ~masks))
    assert ((inside - outside) > 0.3).float().mean() > 0.95


def test_differences_are_those_of_the_pictures_that_all_answer_rightly():
    base = {
        "label": [0, 1, 0, 1],
        "answer_before": [0, 1, 0, 0],
        "mass_after": [0.5] * 4,
        "hit_after": [1.0] * 4,
    }
    first = pd.DataFrame(
        base | {"answer_after": [0, 1, 1, 1], "auc_after": [0.5, 0.7, 0.9, 0.9], "cosine": 0.5}
    )
    second = pd.DataFrame(
        base | {"answer_after": [0, 1, 0, 1], "auc_after": [0.6, 0.9, 0.1, 0.1], "cosine": 0.7}
    )
    found = differences(first, second)
    assert found["pairs"] == 2
    assert found["accuracy"] == 0.25
    assert found["auc"] == pytest.approx(0.15)
    assert found["auc_within"] == pytest.approx(1.96 * 0.05)
    assert found["cosine"] == pytest.approx(0.2)
