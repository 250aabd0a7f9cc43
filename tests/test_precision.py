"""Less precision, the same answers; half-way results that are never mixed up."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_whatif import data, engine, model  # noqa: F401 (fixtures)
from tiny import TinyResNet, vary
from torch import nn

from core import precision
from core.bundles import Split
from core.evaluation import answered, logits
from core.memory import PrefixMemory, before, fork
from core.plan import QUESTIONS, Plan
from core.precision import Calls, doubt, race, settle
from core.steps import Whole
from core.weights import load_dataset, load_model
from core.whatif import WhatIf

IMAGES = 400


@pytest.fixture
def reduced(monkeypatch):
    """bfloat16 wins every race that it enters."""
    monkeypatch.setattr(precision, "WORTHWHILE", 0.0)


def split() -> Split:
    return load_dataset("cluttered-digits").test.take(slice(0, IMAGES))


@pytest.fixture
def trained(reduced) -> WhatIf:
    """A trained network in bfloat16, whatever this processor would choose."""
    found = WhatIf(load_model("small-cnn", "cluttered-digits"), load_dataset("cluttered-digits"), split())
    assert found.words.startswith("bfloat16")
    return found


# close calls


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.001, 0.3), scale=st.floats(0.01, 30))
def test_after_settling_every_image_has_the_class_of_the_exact_logits(seed, noise, scale):
    random = torch.Generator().manual_seed(seed)
    exact = scale * torch.randn(300, 10, generator=random)
    error = scale * noise * (2 * torch.rand(exact.shape, generator=random) - 1)
    fast = exact + error
    calls, some = Calls.of(fast), torch.arange(50)
    asked = [torch.empty(0, dtype=torch.int64)]
    answers = fast.argmax(1)
    for index, found in settle(calls, lambda i: asked.append(i) or exact[i], doubt(calls, some, exact[some])):
        answers[index] = found.argmax(1)
    assert torch.equal(answers, exact.argmax(1))
    asked = torch.cat(asked)
    assert len(asked.unique()) == len(asked)


def test_what_is_not_a_number_is_a_close_call():
    fast, exact = torch.randn(5, 3), torch.randn(5, 3)
    fast[2] = torch.nan
    ((index, found),) = settle(Calls.of(fast), lambda index: exact[index], 0.0)
    assert index.tolist() == [2]
    assert torch.equal(found, exact[2:3])


def test_calls_answer_as_evaluation_does():
    logits = torch.randn(6, 4)
    logits[1, 2] = torch.nan
    assert torch.equal(
        Calls.of(logits).answers == -1, torch.tensor([False, True, False, False, False, False])
    )
    usual = [0, 2, 4, 5]
    assert torch.equal(Calls.of(logits).answers[usual], answered(logits)[usual])


def test_where_errors_turn_out_larger_more_calls_are_close():
    exact = torch.tensor([[0.0, 0.1], [0.0, -0.4], [0.0, -9.0]])
    fast = torch.tensor([[0.1, 0.0], [-0.3, 0.0], [0.0, -9.0]])  # the first two are wrong
    calls = Calls.of(fast)
    assert calls.margins.tolist() == pytest.approx([0.1, 0.3, 9.0])
    assert calls.size == pytest.approx((0.1 + 0.3 + 9.0) / 6)
    settled = list(settle(calls, lambda index: exact[index], 0.11 / calls.size))
    assert [index.tolist() for index, _ in settled] == [[0], [1]]  # 0.2 off, so 0.3 is close, too


def test_calls_of_parts_together_are_those_of_the_whole():
    logits = torch.randn(50, 7)
    whole, joined = Calls.of(logits), Calls.join([Calls.of(part) for part in logits.split(13)])
    assert torch.equal(whole.values, joined.values)
    assert torch.equal(whole.classes, joined.classes)
    assert whole.size == pytest.approx(joined.size)
    assert Calls.of(logits[:, :1]).margins.isinf().all()


# the race


def test_a_network_that_cannot_be_cut_runs_as_it_is_and_says_so(data):  # noqa: F811
    class Branching(TinyResNet):
        def forward(self, x):
            return super().forward(x if x.mean() > -100 else -x)

    torch.manual_seed(0)
    branching = vary(Branching()).eval().requires_grad_(False)
    found = engine(branching, data, precisions=precision.PRECISIONS)
    assert found.words == "as it is, in one piece"
    for question in QUESTIONS:
        plan = Plan(question, None, {"layer1.0.conv1": 0.5})
        wanted = logits(found.model(plan), data.test)
        assert torch.allclose(found.exact(plan).logits, wanted, atol=1e-4)


def test_a_network_whose_steps_would_answer_differently_runs_as_it_is():
    class Suspicious(nn.Module):
        """Behaves while it is being followed."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.layer(x).mean((2, 3)) * (2 if isinstance(x, torch.Tensor) else 1)

    forms = race(Suspicious(), torch.randn(4, 3, 8, 8))
    assert isinstance(forms.exact.steps[0], Whole)
    assert forms.fast is forms.exact


def test_a_precision_that_leaves_too_many_calls_open_does_not_enter(model, data, reduced):  # noqa: F811
    """Logits that are small differences of large numbers."""
    assert engine(model, data, precisions=precision.PRECISIONS).words.startswith("float32")


def test_a_precision_without_kernels_does_not_enter(monkeypatch, reduced):
    def missing(*args):
        raise RuntimeError("no kernel for this precision")

    model = load_model("small-cnn", "cluttered-digits").module  # noqa: F811
    images = split().take(slice(0, 50)).images
    assert race(model, images).fast.dtype == torch.bfloat16
    monkeypatch.setattr(precision, "fused_works", lambda dtype: False)
    plain = precision.Plain
    monkeypatch.setattr(
        precision, "Plain", lambda *args: missing() if args[-1] == torch.bfloat16 else plain(*args)
    )
    assert race(model, images).fast.dtype == torch.float32


# the engine in less precision


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_number_that_stays_is_the_float32_number(question, trained):
    random = torch.Generator().manual_seed(0)
    for _ in range(10):
        levels = {
            slider.name: torch.rand(1, generator=random).item() ** 2
            for slider in trained.sliders(question)
            if torch.rand(1, generator=random) < 0.5
        }
        plan = Plan(question, None, levels)
        wanted = logits(trained.model(plan), split())
        found = trained.exact(plan)
        assert torch.equal(found.logits.argmax(1), wanted.argmax(1))
        assert found.accuracy == int((wanted.argmax(1) == split().labels).sum()) / len(wanted)


def test_the_original_is_the_float32_networks(trained):
    wanted = logits(trained.model(Plan()), split())
    assert torch.equal(trained.original.logits.argmax(1), wanted.argmax(1))


def test_only_the_settled_answer_is_called_exact(trained):
    answers = list(trained.answer(Plan("zero", None, {trained.sliders("zero")[0].name: 0.5})))
    assert [(answer.n, answer.exact) for answer in answers][-2:] == [(IMAGES, False), (IMAGES, True)]


# prefixes


def test_an_answer_from_a_remembered_prefix_has_the_same_bits_as_one_from_scratch(model, data):  # noqa: F811
    random, walked = torch.Generator().manual_seed(1), engine(model, data)
    levels: dict[str, float] = {}
    for _ in range(25):
        sliders = walked.sliders("silence")
        name = sliders[int(torch.randint(len(sliders), (1,), generator=random))].name
        levels = levels | {name: round(torch.rand(1, generator=random).item(), 2)}
        plan = Plan("silence", None, levels)
        assert torch.equal(walked.exact(plan).logits, engine(model, data).exact(plan).logits)
    assert walked.engine._prefixes.size_bytes > 0


def test_a_drag_recomputes_only_what_follows_the_dragged_layer(model, data, monkeypatch):  # noqa: F811
    whatif = engine(model, data)
    plan = Plan("zero", None, {"conv1": 0.5, "layer2.1.conv1": 0.25})
    whatif.exact(plan)
    whatif.exact(plan.with_sparsity("layer2.1.conv1", 0.5))  # leaves the path here: remembered
    steps = whatif.engine._forms.fast
    ran = set()
    run = type(steps).run

    def watched(self, values, start, stop, changed):
        ran.update(range(start, stop))
        return run(self, values, start, stop, changed)

    monkeypatch.setattr(type(steps), "run", watched)
    whatif.exact(plan.with_sparsity("layer2.1.conv1", 0.75))
    dragged = next(i for i, step in enumerate(steps.steps) if "layer2.1.conv1" in step.modules)
    assert ran == set(range(dragged, len(steps)))


def test_prefixes_are_found_by_the_path_that_led_there_alone():
    memory = PrefixMemory(1000)
    path = ((2, b"a"), (5, b"b"))
    memory.put(0, 4, path, {"x": torch.zeros(10)})
    assert memory.nearest(0, 4, path)[0] == 4
    assert memory.nearest(0, 9, ((2, b"a"), (7, b"c")))[0] == 4  # the same up to step 4
    assert memory.nearest(0, 3, path) is None
    assert memory.nearest(1, 4, path) is None
    assert memory.nearest(0, 4, ((2, b"z"), (5, b"b"))) is None
    assert memory.nearest(0, 4, ()) is None
    memory.put(0, 6, path, {"x": torch.ones(10)})
    assert memory.nearest(0, 9, path)[0] == 6


def test_a_full_memory_of_prefixes_gives_up_another_path_and_never_parts_of_its_own():
    memory, block = PrefixMemory(100), {"x": torch.zeros(10, dtype=torch.float32)}  # 40 bytes
    for chunk in range(2):
        memory.put(chunk, 1, (), block)
    memory.put(0, 3, (), block)
    assert memory.nearest(0, 1, ()) is None
    assert memory.nearest(0, 3, ())[0] == 3
    for chunk in range(5):
        memory.put(chunk, 3, (), block)
    assert memory.size_bytes == 80
    assert [memory.nearest(chunk, 3, ()) is not None for chunk in range(5)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_paths_fork_where_they_first_differ():
    path = ((2, b"a"), (5, b"b"))
    assert fork(path, path) is None
    assert fork(path, ()) == 2
    assert fork(path, ((2, b"a"), (5, b"c"))) == 5
    assert fork(path, ((2, b"a"), (4, b"c"), (5, b"b"))) == 4
    assert before(path, 5) == ((2, b"a"),)


def test_readers_who_walk_the_same_paths_at_once_share_prefixes_and_agree(model, data):  # noqa: F811
    shared = engine(model, data)
    plans = [Plan("zero", None, {"conv1": 0.5, "layer2.0.conv2": s / 10}) for s in range(1, 10)]
    found: dict = {}

    def read(which: int) -> None:
        for plan in plans[which:] + plans[:which]:
            found[which, plan] = shared.exact(plan).logits

    readers = [threading.Thread(target=read, args=(which,)) for which in (0, 3, 6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for plan in plans:
        alone = engine(model, data).exact(plan).logits
        assert all(torch.equal(found[which, plan], alone) for which in (0, 3, 6))
