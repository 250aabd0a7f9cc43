"""The live engine against slow, obvious computations, and readers against each other."""

import copy
import math
import threading
from dataclasses import replace

import pytest
import torch
from tiny import TinyResNet, quadrants, vary
from torch import nn

from core.bundles import MODELS, DatasetBundle, ModelBundle, Setting, Split
from core.cost import cost
from core.criteria.filter_l2 import FilterL2
from core.criterion import CRITERIA
from core.errors import ParameterError, UnsupportedModelError
from core.evaluation import change, evaluate, paired_interval, wilson
from core.memory import Memory
from core.plan import PRESETS, QUESTIONS, Plan
from core.recipe import compress
from core.run import Progress, Run
from core.sliders import _Scoring
from core.strata import STRATA, Strata, tier_ends
from core.whatif import EVALUATING, WhatIf

N = 420  # test images: two tiers


def read_out(model: nn.Module, split: Split) -> nn.Module:
    """Fit the last layer by least squares, so that the network is right now and then."""
    features = []
    handle = model.linear.register_forward_hook(lambda layer, inputs, output: features.append(inputs[0]))
    model(split.images)
    handle.remove()
    wanted = nn.functional.one_hot(split.labels, 4).float() - 0.25
    ones = torch.cat([features[0], torch.ones(len(split), 1)], 1)
    found = torch.linalg.lstsq(ones, wanted).solution  # (features + 1, 4)
    model.linear.weight.copy_(20 * found[:-1].T)
    model.linear.bias.copy_(20 * found[-1])
    return model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return read_out(vary(TinyResNet()).eval().requires_grad_(False), noisy(96, seed=7))


def noisy(count: int, seed: int) -> Split:
    """Quadrants that are sometimes hard to see."""
    split = quadrants(count, seed)
    random = torch.Generator().manual_seed(seed)
    fade = torch.rand(count, 1, 1, 1, generator=random)
    return replace(split, pixels=(split.pixels - 80 * fade * split.masks[:, None]).clamp(0).to(torch.uint8))


@pytest.fixture(scope="module")
def data(request) -> DatasetBundle:
    return replace(request.getfixturevalue("tiny_data"), test=noisy(N, seed=3))


def engine(model, data, split: Split | None = None, precisions=(torch.float32,)) -> WhatIf:
    bundle = ModelBundle(model, MODELS["small-cnn"](), "cluttered-digits")
    return WhatIf(bundle, data, data.test if split is None else split, precisions=precisions)


@pytest.fixture
def whatif(model, data) -> WhatIf:
    return engine(model, data)


def uniform(whatif: WhatIf, question: str, sparsity: float = 0.5) -> Plan:
    return whatif.preset("uniform", question, sparsity=sparsity)


def plain_loop(model: nn.Module, split: Split) -> torch.Tensor:
    """Logits (N, K), one image at a time."""
    with torch.no_grad():
        return torch.cat([model(image[None]) for image in split.images])


def reference(model, data, plan: Plan) -> nn.Module:
    """What the recipe makes of the model."""
    return compress(model, Setting(data.train, data.validation, model), plan.recipe()).model


# answers


def test_the_original_is_what_evaluate_says(whatif, model, data):
    expected = evaluate(model, data.test)
    original = whatif.original
    assert 0.4 < original.accuracy < 1.0
    assert (original.n, original.accuracy, original.interval) == (N, expected.accuracy, expected.interval)
    assert original.exact
    assert original.chance == 0.25
    for name in ("parameters", "macs", "theoretical_macs", "sparsity", "size_bytes", "zipped_bytes"):
        assert getattr(original.cost, name) == getattr(expected, name)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_exact_answer_is_that_of_the_recipes_network_in_a_plain_loop(question, whatif, model, data):
    plan = uniform(whatif, question)
    compressed = reference(model, data, plan)
    expected = plain_loop(compressed, data.test)
    answer = whatif.exact(plan)
    assert (answer.logits - expected).abs().max() <= 1e-4 + 1e-5 * expected.abs().max()
    hits = sum(int(row.argmax() == label) for row, label in zip(expected, data.test.labels, strict=True))
    assert answer.accuracy == hits / N
    assert answer.interval == wilson(hits, N)
    assert answer.index.tolist() == list(range(N))
    found = change(plain_loop(model, data.test), expected, data.test.labels)
    assert found.difference != 0
    for name in ("gained", "lost", "changed"):
        assert torch.equal(getattr(answer.change, name).sort().values, getattr(found, name))
    assert answer.change.difference == pytest.approx(found.difference)
    assert answer.change.interval == paired_interval(len(found.gained), len(found.lost), N)
    assert answer.cost == cost(compressed, data.test.images[:1])


@pytest.mark.parametrize("question", QUESTIONS)
def test_zero_everywhere_is_the_original_bit_for_bit(question, whatif):
    (answer,) = whatif.answer(uniform(whatif, question, 0.0))
    assert answer.exact
    assert answer.plan.question == question
    assert torch.equal(answer.logits, whatif.original.logits)
    assert answer.change.difference == 0.0
    assert [len(t) for t in (answer.change.gained, answer.change.lost, answer.change.changed)] == [0, 0, 0]
    assert answer.cost == whatif.original.cost


def test_answers_tighten_and_every_one_says_which_images_it_rests_on(whatif, data):
    answers = list(whatif.answer(uniform(whatif, "zero")))
    assert [(a.n, a.exact) for a in answers] == [(100, False), (200, False), (N, True)]
    first, second, last = answers
    assert len(first.index.unique()) == 100
    assert torch.equal(first.index, second.index[:100])
    assert torch.allclose(first.logits, last.logits[first.index], atol=1e-5)
    hits = (first.logits.argmax(1) == data.test.labels[first.index]).sum().item()
    assert first.accuracy == hits / 100
    assert first.interval == wilson(hits, 100)
    assert first.remaining[0] < first.accuracy < first.remaining[1]
    assert last.remaining == (pytest.approx(last.accuracy), pytest.approx(last.accuracy))
    assert set(first.change.lost.tolist()) <= set(last.change.lost.tolist())
    assert set(first.change.gained.tolist()) <= set(last.change.gained.tolist())
    assert last.interval[1] - last.interval[0] < first.interval[1] - first.interval[0]


def test_an_answer_given_once_is_remembered(whatif, monkeypatch):
    plan = uniform(whatif, "remove")
    last = whatif.exact(plan)
    monkeypatch.setattr(whatif.engine, "forward", None)
    monkeypatch.setattr(whatif, "model", None)
    (again,) = whatif.answer(plan)
    assert again.exact
    assert again.logits is last.logits


def test_plans_that_take_the_same_filters_are_one_plan_to_the_engine(whatif, monkeypatch):
    """Of 8 filters, 50 % and 52 % both take 4."""
    last = whatif.exact(Plan("zero", None, {"conv1": 0.5}))
    monkeypatch.setattr(whatif.engine, "forward", None)
    plan = Plan("zero", None, {"conv1": 0.52})
    (again,) = whatif.answer(plan)
    assert again.plan == plan
    assert again.logits is last.logits


def test_closing_the_iterator_ends_the_work_and_what_was_done_is_not_done_again(whatif):
    seen = []
    forward = whatif.engine.forward
    whatif.engine.forward = lambda route, begin, end: seen.append(end - begin) or forward(route, begin, end)
    plan = uniform(whatif, "zero")
    answers = whatif.answer(plan)
    first = next(answers)
    answers.close()
    assert sum(seen) == 100
    resumed = list(whatif.answer(plan))
    assert sum(seen) == N
    assert resumed[0].logits is first.logits
    assert torch.equal(resumed[-1].logits, engine(whatif._module, whatif_data(whatif)).exact(plan).logits)


def whatif_data(whatif: WhatIf) -> DatasetBundle:
    """A data bundle with the engine's own splits."""
    setting, classes = whatif._setting, ("a", "b", "c", "d")
    return DatasetBundle("same", setting.train, setting.validation, whatif._split, classes, "", "")


def test_scores_that_take_their_time_are_told_and_can_be_stopped(whatif):
    class SupersededError(Exception):
        pass

    def newer(progress):
        if progress.message.startswith("Playing coalitions"):
            raise SupersededError

    criterion, messages = CRITERIA["shapley"](images=8, permutations=4, group=2), []
    plan = replace(uniform(whatif, "silence"), criterion=criterion)
    with pytest.raises(SupersededError):
        list(whatif.answer(plan, Run(newer)))
    *_, answer = whatif.answer(plan, Run(lambda progress: messages.append(progress.message)))
    assert answer.exact
    assert any(message.startswith("Playing coalitions") for message in messages)
    assert EVALUATING in messages


def test_who_waits_for_scores_that_another_reader_computes_can_be_stopped(whatif):
    class SupersededError(Exception):
        pass

    def newer(progress):
        assert progress == Progress(0.25, "Half of a half")
        raise SupersededError

    plan = replace(uniform(whatif, "silence"), criterion=CRITERIA["shapley"](images=9, permutations=4))
    scoring = whatif._scoring.setdefault((False, plan.criterion), _Scoring())
    scoring.tell(Run()).report(0.25, "Half of a half")
    with scoring.lock, pytest.raises(SupersededError):
        list(whatif.answer(plan, Run(newer)))
    assert not scoring.lock.locked()


def test_a_newer_request_stops_an_older_one_within_a_chunk(whatif):
    class SupersededError(Exception):
        pass

    seen = []

    def newer(progress):
        seen.append(progress.fraction)
        if len(seen) == 2:
            raise SupersededError

    plan = uniform(whatif, "silence")
    with pytest.raises(SupersededError):
        list(whatif.answer(plan, Run(newer)))
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(2 * whatif.engine.chunk / N)
    assert whatif.exact(plan).n == N


@pytest.mark.parametrize("question", QUESTIONS)
def test_everything_at_100_percent_still_has_an_answer(question, whatif):
    answer = whatif.exact(uniform(whatif, question, 1.0))
    assert answer.logits.isfinite().all()
    assert answer.at_chance or answer.accuracy > 0.25
    assert answer.cost.parameters > 0


def test_a_network_that_gives_one_class_to_all_is_called_chance(whatif):
    answer = whatif.exact(uniform(whatif, "weights", 1.0))
    assert answer.accuracy == 0.25
    assert answer.at_chance
    assert not whatif.original.at_chance


# costs and models


def test_the_three_costs_are_never_mixed(whatif):
    was = whatif.original.cost
    zeroed, removed = (whatif.cost(uniform(whatif, question)) for question in ("weights", "remove"))
    assert zeroed.macs == was.macs
    assert zeroed.parameters == was.parameters
    assert zeroed.size_bytes == was.size_bytes
    assert zeroed.theoretical_macs == pytest.approx(was.macs / 2, rel=0.01)
    assert zeroed.sparsity == pytest.approx(0.5, abs=0.01)
    assert removed.macs < 0.35 * was.macs
    assert removed.parameters < 0.35 * was.parameters
    assert removed.sparsity < 0.01
    assert removed.theoretical_macs == pytest.approx(removed.macs, rel=0.01)


def test_a_cost_is_known_without_running_the_network(whatif, monkeypatch):
    monkeypatch.setattr(whatif.engine, "forward", None)
    assert whatif.cost(uniform(whatif, "remove")).macs < whatif.original.cost.macs


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_network_handed_out_is_private(question, whatif, model):
    plan = uniform(whatif, question)
    before = whatif.exact(plan).logits.clone()
    mine = whatif.model(plan)
    assert not mine.training
    assert not any(p.requires_grad for p in mine.parameters())
    for tensor in (*mine.parameters(), *mine.buffers()):
        tensor.zero_()
    assert torch.equal(engine(model, whatif_data(whatif)).exact(plan).logits, before)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("criterion", ["random", "taylor", "geometric-median", "snip"])
def test_every_kind_of_criterion_gives_the_recipes_network(question, criterion, whatif, model, data):
    if question == "weights" and criterion in ("taylor", "geometric-median"):
        pytest.skip("scores filters only")
    plan = Plan(question, criterion, uniform(whatif, question).sparsities)
    expected = reference(model, data, plan).state_dict()
    found = whatif.model(plan).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_scores_are_computed_once_for_all_plans_and_readers(whatif, monkeypatch):
    calls = []
    scores = FilterL2.scores
    monkeypatch.setattr(FilterL2, "scores", lambda *args: calls.append(1) or scores(*args))
    plans = [uniform(whatif, question, s / 10) for question in ("zero", "silence") for s in (1, 5, 9)]
    readers = [threading.Thread(target=whatif.model, args=(plan,)) for plan in plans]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    whatif.model(uniform(whatif, "remove"))
    assert len(calls) == 1


def test_code_of_a_plan_can_be_had_without_its_scores_being_computed_again(whatif, monkeypatch):
    plan = uniform(whatif, "remove")
    whatif.model(plan)
    monkeypatch.setattr(FilterL2, "scores", None)
    assert "def compress(model, example):" in whatif.code(plan)


# sliders and presets


def test_sliders_are_the_layers_or_the_groups_with_their_share_of_the_network(whatif, model):
    layers = {slider.name: slider for slider in whatif.sliders("weights")}
    assert list(layers) == [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(slider.weights for slider in layers.values()) == sum(
        p.numel() for n, p in model.named_parameters() if p.dim() > 1
    )
    assert sum(slider.macs for slider in layers.values()) == whatif.original.cost.macs
    assert layers["layer2.0.conv1"].macs == 8 * 16 * 9 * 64
    assert layers["layer2.0.conv1"].width == 16


def test_the_layer_that_makes_the_logits_has_no_filter_slider(whatif):
    for question in ("silence", "zero", "remove"):
        assert all("linear" not in slider.layers for slider in whatif.sliders(question))


def test_a_group_slider_shows_all_layers_that_share_its_channels(whatif, model):
    first, *others = whatif.sliders("remove")
    assert first.layers == ("conv1", "layer1.0.conv2")
    assert first.width == 8
    assert first.weights == sum(model.get_submodule(name).weight.numel() for name in first.layers)
    assert [slider.name for slider in others] == [
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer2.1.conv1",
    ]


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_preset_fits_its_question_and_survives_the_link(question, whatif):
    for name in PRESETS:
        plan = whatif.preset(name, question)
        assert plan.question == question
        assert Plan.from_text(plan.to_text(whatif.sliders), whatif.sliders) == plan


@pytest.mark.parametrize("question", ["weights", "remove"])
def test_the_global_preset_takes_about_the_share_it_names(question, whatif):
    plan = whatif.preset("global", question, sparsity=0.4)
    sliders = whatif.sliders(question)
    sizes = [slider.weights if question == "weights" else slider.width for slider in sliders]
    taken = sum(size * plan.sparsity(slider.name) for size, slider in zip(sizes, sliders, strict=True))
    assert taken / sum(sizes) == pytest.approx(0.4, abs=0.01)
    assert len({level for _, level in plan.sparsities}) > 1


# several readers


def test_readers_at_the_same_time_get_the_answers_they_would_get_alone(model, data):
    shared = engine(model, data)
    plans = [uniform(shared, question, s / 10) for question in QUESTIONS for s in (3, 6)]
    alone = {plan: engine(model, data).exact(plan).logits for plan in plans}
    found: dict = {}

    def read(which: int) -> None:
        for plan in plans[which:] + plans[:which]:
            found[which, plan] = shared.exact(plan).logits

    readers = [threading.Thread(target=read, args=(which,)) for which in (0, 1, 4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(found) == 3 * len(plans)
    assert all(torch.equal(logits, alone[plan]) for (_, plan), logits in found.items())


def test_nothing_that_a_reader_does_changes_the_shared_network(model, data):
    before = copy.deepcopy(model.state_dict())
    shared = engine(model, data)
    for question in QUESTIONS:
        shared.exact(uniform(shared, question, 0.9))
    shared.exact(Plan("remove", "taylor", {"conv1": 0.5}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for layer in model.modules():
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks
        assert not layer.training
    assert not any(p.requires_grad for p in model.parameters())


def test_memory_forgets_what_was_not_used_for_longest_once_it_is_full():
    memory = Memory(10, len)
    for word in ("aaaa", "bbbb"):
        memory.put(word, word)
    assert memory.get("aaaa") == "aaaa"
    memory.put("c", "cccc")
    assert memory.get("bbbb") is None
    assert memory.get("aaaa") == "aaaa"
    memory.put("aaaa", "a")
    memory.put("d", "ddddd")
    assert memory.get("c") == "cccc"
    memory.put("big", "e" * 100)
    assert memory.get("big") == "e" * 100
    assert memory.get("d") is None


# odd input


def test_a_slider_that_the_model_lacks_is_named(whatif):
    with pytest.raises(ParameterError, match=r"no slider is called 'conv9'; did you mean 'conv1'\?"):
        list(whatif.answer(Plan(sparsities={"conv9": 0.5})))
    with pytest.raises(ParameterError, match=r"no slider is called 'layer1\.0\.conv2'"):
        list(whatif.answer(Plan(sparsities={"layer1.0.conv2": 0.5})))  # a partner in conv1's group


@pytest.mark.parametrize("n", [0, 1, 30])
def test_few_or_no_images_get_one_exact_answer(n, model, data):
    few = engine(model, data, data.test.take(slice(0, n)))
    (answer,) = few.answer(uniform(few, "remove"))
    assert answer.exact
    assert answer.n == n
    assert answer.logits.shape == (n, 4)
    assert math.isnan(answer.accuracy) == (n == 0)
    assert answer.cost.macs < few.original.cost.macs


def test_a_class_without_images_does_not_matter(model, data):
    two = data.test.take((data.test.labels < 2).nonzero()[:, 0])
    found = engine(model, data, two)
    assert found.exact(uniform(found, "zero")).n == len(two)


def test_a_model_without_prunable_layers_is_refused_with_a_sentence(data):
    with pytest.raises(UnsupportedModelError, match="no convolution or linear layer"):
        engine(nn.Flatten(), data)


def test_nan_weights_are_shown_as_no_answers_and_plans_are_refused_with_a_sentence(model, data):
    broken = copy.deepcopy(model)
    broken.layer1[0].conv1.weight[0, 0, 0, 0] = math.nan
    found = engine(broken, data)
    assert found.original.accuracy == 0.0
    for question in QUESTIONS:
        with pytest.raises(UnsupportedModelError, match=r"layer1\.0\.conv1: weight must be finite"):
            found.exact(Plan(question, sparsities={"conv1": 0.5}))


def test_a_layer_with_one_filter_keeps_it(data):
    torch.manual_seed(0)
    narrow = engine(vary(TinyResNet(width=1)).eval().requires_grad_(False), data)
    answer = narrow.exact(Plan("remove", sparsities={"conv1": 1.0, "layer1.0.conv1": 1.0}))
    assert answer.cost.parameters == narrow.original.cost.parameters
    assert answer.change.difference == 0.0


# the order in which images are looked at


@pytest.mark.parametrize("n", [0, 1, 49, 50, 51, 500, 1077])
def test_the_order_is_one_of_all_images_and_always_the_same(n):
    torch.manual_seed(0)
    logits, labels = torch.randn(n, 4), torch.randint(0, 4, (n,))
    order = Strata(logits, labels).order
    assert order.sort().values.tolist() == list(range(n))
    assert torch.equal(order, Strata(logits, labels).order)


def test_every_fifty_images_hold_one_of_each_band_of_the_margin():
    torch.manual_seed(0)
    logits, labels = torch.randn(1000, 4), torch.randint(0, 4, (1000,))
    margins = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        margins.append(row[label] - max(value for k, value in enumerate(row) if k != label))
    band = torch.tensor(margins).argsort().argsort() // (1000 // STRATA)
    for part in Strata(logits, labels).order.split(STRATA):
        assert band[part].sort().values.tolist() == list(range(STRATA))


@pytest.mark.parametrize(("noise", "bound"), [(0.3, 0.6), (1.0, 0.85)])
def test_a_beginning_predicts_the_whole_better_than_a_random_sample_and_its_intervals_hold(noise, bound):
    """A network that got worse by added noise; many orders of the same 1,077 images."""
    torch.manual_seed(0)
    labels = torch.randint(0, 10, (1077,))
    before = torch.randn(1077, 10) + 3 * nn.functional.one_hot(labels, 10)
    after = before + noise * torch.randn(1077, 10)
    whole = change(before, after, labels)
    accuracy = (after.argmax(1) == labels).float().mean().item()
    errors: dict[str, list[float]] = {"strata": [], "random": []}
    held = held_change = held_remaining = 0
    for seed in range(300):
        strata = Strata(before, labels, seed)
        first = strata.order[:250]
        random = torch.randperm(1077)[:250]
        for name, index in (("strata", first), ("random", random)):
            errors[name].append((after[index].argmax(1) == labels[index]).float().mean().item() - accuracy)
        hits = int((after[first].argmax(1) == labels[first]).sum())
        low, high = wilson(hits, 250)
        held += low <= accuracy <= high
        low, high = strata.remaining(after[first].argmax(1) == labels[first])
        held_remaining += low <= accuracy <= high
        low, high = change(before[first], after[first], labels[first]).interval
        held_change += low <= whole.difference <= high
    spread = {name: torch.tensor(found).square().mean().sqrt() for name, found in errors.items()}
    assert spread["strata"] < bound * spread["random"]
    assert held >= 0.95 * 300
    assert held_change >= 0.95 * 300
    assert held_remaining >= 0.92 * 300


def test_tiers_double_and_the_last_but_one_is_never_nearly_everything():
    assert tier_ends(0) == [0]
    assert tier_ends(149) == [149]
    assert tier_ends(151) == [100, 151]
    assert tier_ends(1_000) == [100, 200, 400, 1_000]
    assert tier_ends(10_000) == [100, 200, 400, 800, 1600, 3200, 6400, 10_000]
    assert tier_ends(1_000, 8) == [104, 200, 400, 1_000]


@pytest.mark.parametrize("question", ["weights", "silence", "remove"])
@pytest.mark.parametrize("sparsity", [0.0, 0.03, 0.5, 0.94, 1.0])
def test_a_slider_says_how_much_the_engine_keeps(model, data, question, sparsity):
    whatif = engine(model, data)
    for slider in whatif.sliders(question):
        layer = whatif.model(Plan(question, None, {slider.name: sparsity})).get_submodule(slider.name)
        alive = layer.weight != 0 if question == "weights" else layer.weight.flatten(1).any(1)
        before = model.get_submodule(slider.name).weight  # may hold zeros of its own, which go first
        nonzero = int(before.count_nonzero()) if question == "weights" else slider.width
        assert int(alive.sum()) == min(slider.kept(question, sparsity), nonzero)
