"""Recipes as text, and what `compress` owes to the caller."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ROOT
from torch import nn
from torch.nn.utils import parametrize

from core.errors import RecipeError, Stopped, UnsupportedModelError, UserError
from core.layers import apply_mask, bake, private_copy, require_finite, require_layers
from core.methods.fine_tuning import FineTuning
from core.methods.prune_weights import PruneWeights
from core.recipe import Recipe, compress
from core.run import Progress, Run, seeded


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


GOOD = {"format": 1, "seed": 0, "steps": []}


def test_a_recipe_reads_back_as_it_was_and_spells_everything_out():
    recipe = Recipe((PruneWeights(sparsity=0.8, layers={"conv1": 0.1}), FineTuning(epochs=1)), seed=11)
    assert Recipe.from_json(recipe.to_json()) == recipe
    saved = json.loads(recipe.to_json())
    assert saved["format"] == 1
    assert saved["seed"] == 11
    assert saved["steps"][0] == PruneWeights(sparsity=0.8, layers={"conv1": 0.1}).to_dict()


def test_what_a_person_leaves_out_keeps_its_default():
    text = '{"format": 1, "steps": [{"method": "prune-weights", "criterion": "snip"}]}'
    assert Recipe.from_json(text) == Recipe((PruneWeights(criterion="snip"),), seed=0)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "recipes").glob("*.json")), ids=lambda p: p.stem)
def test_the_recipes_of_the_documents_are_carried_out_from_one_untouched_teacher(path, tiny_model, setting):
    recipe = Recipe.from_json(path.read_text())
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    result = compress(tiny_model, setting, recipe)
    assert result.finished
    assert result.model(setting.validation.images).isfinite().all()
    left, had = (sum(int(p.count_nonzero()) for p in m.parameters()) for m in (result.model, tiny_model))
    assert left < had
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "recipe: must be JSON, got ''"),
        ("{", "recipe: must be JSON, got '{'"),
        ("[" * 100_000, "recipe: must be JSON, got '[[["),
        (None, "recipe: must be JSON, got None"),
        ("[]", "recipe: must be an object with a list of steps, got []"),
        ("null", "recipe: must be an object with a list of steps, got None"),
        ('{"format": 1}', "recipe: must be an object with a list of steps, got {'format': 1}"),
        (json.dumps(GOOD | {"steps": {}}), "recipe: must be an object with a list of steps"),
        (json.dumps(GOOD | {"format": 2}), "recipe: format must be 1, got 2"),
        (json.dumps({"steps": []}), "recipe: format must be 1, got None"),
        (json.dumps(GOOD | {"seed": -1}), "recipe: seed must be a whole number in [0, 2147483647], got -1"),
        (
            json.dumps(GOOD | {"seed": True}),
            "recipe: seed must be a whole number in [0, 2147483647], got True",
        ),
        (json.dumps(GOOD | {"seed": 0.5}), "recipe: seed must be a whole number in [0, 2147483647], got 0.5"),
        (json.dumps(GOOD | {"steps": [3]}), "recipe: a method needs a 'method' name, got 3"),
        (
            json.dumps(GOOD | {"steps": [{"method": "prune-weight"}]}),
            "recipe: no method is called 'prune-weight'; did you mean 'prune-weights'?",
        ),
        (
            json.dumps(GOOD | {"steps": [{"method": "prune-weights", "sparsty": 1}]}),
            "recipe: prune-weights: no parameter is called 'sparsty'; did you mean 'sparsity'?",
        ),
        (
            '{"format": 1, "steps": [{"method": "prune-weights", "sparsity": NaN}]}',
            "recipe: prune-weights: sparsity must lie in [0.0, 1.0], got nan",
        ),
    ],
)
def test_what_is_no_recipe_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(text)
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["format", "steps", "method", "sparsity", "criterion"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@given(JSON)
def test_no_json_whatever_it_holds_raises_anything_but_a_sentence(value):
    try:
        recipe = Recipe.from_json(json.dumps({"format": 1, "steps": [value], "seed": 0}))
    except RecipeError:
        return
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_an_empty_recipe_gives_an_equal_network_of_its_own(tiny_model, setting):
    model = compress(tiny_model, setting, Recipe()).model
    assert model is not tiny_model
    assert torch.equal(model(setting.train.images), tiny_model(setting.train.images))
    model.conv1.weight.data.zero_()
    assert tiny_model.conv1.weight.any()


def test_steps_are_carried_out_in_order_under_seeds_of_their_own(tiny_model, setting):
    """The second of two random steps does not repeat the first one's numbers."""
    steps = (PruneWeights(criterion="random", sparsity=0.5), PruneWeights(criterion="random", sparsity=0.5))
    model = compress(tiny_model, setting, Recipe(steps, seed=4)).model
    sparsity = (model.layer2[1].conv2.weight == 0).float().mean().item()
    assert sparsity == pytest.approx(0.75, abs=0.03)


def test_only_what_this_recipe_recorded_is_in_its_result(tiny_model, setting):
    run, recipe = Run(), Recipe((FineTuning(epochs=2),))
    compress(tiny_model, setting, recipe, run)
    second = compress(tiny_model, setting, recipe, run)
    assert [row["epoch"] for row in second.records] == [1, 2]
    assert len(run.records) == 4


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda m: m.conv1.weight.data[0].fill_(torch.nan), "layer conv1: weight must be finite, got 27 NaN"),
        (lambda m: m.linear.bias.data.fill_(torch.inf), "layer linear: bias must be finite, got 4 NaN"),
        (lambda m: m.bn1.running_var.fill_(torch.nan), "layer bn1: running_var must be finite, got 8 NaN"),
    ],
)
def test_broken_weights_are_refused_naming_their_layer(tiny_model, setting, spoil, sentence):
    spoil(tiny_model)
    with pytest.raises(UnsupportedModelError, match=sentence):
        compress(tiny_model, setting, Recipe((PruneWeights(),)))
    apply_mask(tiny_model.linear, torch.ones(4, 16))
    with pytest.raises(UnsupportedModelError, match=sentence):
        require_finite(tiny_model)  # masked layers have the same names


def test_every_error_a_person_can_act_on_is_a_user_error():
    for error in (RecipeError, UnsupportedModelError):
        assert issubclass(error, UserError)


def test_baking_a_copy_leaves_the_original_masked(tiny_model):
    keep = torch.rand_like(tiny_model.conv1.weight) < 0.5
    apply_mask(tiny_model.conv1, keep)
    copied = private_copy(tiny_model)
    assert not parametrize.is_parametrized(copied)
    assert parametrize.is_parametrized(tiny_model, "conv1") or parametrize.is_parametrized(tiny_model.conv1)
    assert torch.equal(copied.conv1.weight, tiny_model.conv1.weight)
    assert type(bake(tiny_model).conv1) is nn.Conv2d


def test_layers_that_do_not_exist_are_named_with_the_nearest(tiny_model):
    with pytest.raises(
        UserError, match=r"no layer is called 'layer3.0.conv1'; did you mean 'layer2.0.conv1'\?"
    ):
        require_layers(tiny_model, ["conv1", "layer3.0.conv1"])


def test_loops_and_steps_inside_one_another_share_the_bar():
    seen: list[Progress] = []
    run = Run(on_progress=seen.append)
    with run.step(1, 2):
        for _ in run.track("ab", "outer"):
            with run.step(0, 2):
                run.report(1.0, "first")
            with run.step(1, 2):
                for _ in run.track(range(2), "inner"):
                    run.report(0.5, "half")
    fractions = [progress.fraction for progress in seen]
    first = [0.625, 0.65625, 0.6875, 0.71875, 0.75, 0.75]
    assert fractions == pytest.approx(first + [f + 0.25 for f in first])


def test_a_run_that_was_stopped_can_be_used_again():
    seen = []
    run = Run(on_progress=lambda progress: seen.append(progress.fraction))

    def fails() -> None:
        with run.step(1, 2):
            for _ in run.track(range(3), "loop"):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    run.report(1.0, "done")
    run.report(7.0, "more than done")
    assert seen == [1.0, 1.0]


def test_seeded_blocks_repeat_and_give_the_callers_numbers_back():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    blocks = []
    for _ in range(2):
        with seeded(5):
            blocks.append(torch.rand(4))
    assert torch.equal(blocks[0], blocks[1])
    assert torch.equal(torch.rand(3), expected)


class TestStopped:
    """A front end that raises `Stopped` keeps what there is by then."""

    def stopping(self, when):
        def look(progress: Progress) -> None:
            if when(progress):
                raise Stopped

        return Run(on_progress=look)

    def test_in_a_step_leaves_what_the_steps_before_made(self, tiny_model, setting):
        first, second = PruneWeights(sparsity=0.5), PruneWeights(sparsity=0.9)
        expected = compress(tiny_model, setting, Recipe((first,))).model
        run = self.stopping(lambda progress: progress.fraction > 0.6)
        result = compress(tiny_model, setting, Recipe((first, second)), run)
        assert not result.finished
        assert_equal(result.model, expected)

    def test_in_training_leaves_the_last_whole_epoch(self, tiny_model, setting):
        step = FineTuning(epochs=3, batch_size=16)
        run = self.stopping(lambda progress: "Epoch 3" in progress.message)
        result = compress(tiny_model, setting, Recipe((step,)), run)
        assert not result.finished
        assert [row["epoch"] for row in result.records] == [1, 2]
        seen = []
        watched = Run(on_progress=lambda progress: seen.append(progress))
        whole = compress(tiny_model, setting, Recipe((step,)), watched)
        assert whole.finished
        assert result.records == whole.records[:2]
        assert not any(module.training for module in result.model.modules())
        with pytest.raises(AssertionError):
            assert_equal(result.model, whole.model)

    def test_while_a_finished_step_shows_itself_keeps_that_step(self, tiny_model, setting):
        expected = compress(tiny_model, setting, Recipe((PruneWeights(sparsity=0.5),))).model
        run = self.stopping(lambda progress: progress.fraction == 1)
        result = compress(tiny_model, setting, Recipe((PruneWeights(sparsity=0.5),)), run, figures=True)
        assert not result.finished
        assert_equal(result.model, expected)
