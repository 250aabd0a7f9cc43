"""Plans: values that can be keys, short texts that survive junk, code that does the same."""

import ast
import contextlib
import copy
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core import listing
from core.bundles import MODELS, ModelBundle, Setting, Split
from core.coupling import groups, output_layers
from core.criterion import CRITERIA, Ranking
from core.errors import ParameterError, RecipeError, UnsupportedModelError
from core.layers import prunable
from core.plan import PRESETS, QUESTIONS, Plan, preset
from core.recipe import Recipe, compress

SLIDERS = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "linear")
PERCENTS = st.integers(0, 100).map(lambda n: n / 100)


def bundled(model: nn.Module) -> ModelBundle:
    return ModelBundle(model, MODELS["small-cnn"](), "cluttered-digits")


def small(name: str, **parameters) -> nn.Module:
    """A shipped architecture for 32 x 32 pictures with batch norms that differ by channel."""
    torch.manual_seed(0)
    model = MODELS[name](**parameters).build((3, 32, 32), 10).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(std=0.3)
            layer.running_mean.normal_(std=0.3)
            layer.running_var.uniform_(0.5, 1.5)
    return model


def pictures(n: int, side: int = 32) -> Split:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=random)
    return Split(pixels, torch.arange(n) % 4, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


# values


def test_each_question_brings_its_own_criterion_and_says_what_it_means():
    for question, meaning in QUESTIONS.items():
        assert Plan(question).criterion == CRITERIA[meaning.criterion]()
        assert meaning.label
        assert meaning.help


def test_equal_plans_are_equal_keys_however_they_were_written():
    one = Plan("zero", sparsities=(("b", 0.5), ("a", 0.1), ("c", 0.0)))
    other = Plan("zero", CRITERIA["filter-l2"](), {"a": 0.1, "b": 0.5})
    assert one == other
    assert hash(one) == hash(other)
    assert one.sparsities == (("a", 0.1), ("b", 0.5))


def test_sparsities_are_whole_percents_so_that_a_text_holds_them_exactly():
    assert Plan(sparsities={"a": 1 / 3}).sparsity("a") == 0.33
    assert Plan(sparsities={"a": 0.004}) == Plan()


def test_moving_one_slider_leaves_the_plan_and_the_other_sliders_alone():
    plan = Plan(sparsities={"a": 0.2, "b": 0.4})
    moved = plan.with_sparsity("a", 0.9)
    assert (moved.sparsity("a"), moved.sparsity("b"), moved.sparsity("c")) == (0.9, 0.4, 0.0)
    assert plan.sparsity("a") == 0.2
    assert moved.with_sparsity("a", 0.0).sparsities == (("b", 0.4),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("remov",), "plan: no question is called 'remov'; did you mean 'remove'?"),
        (("remove", "filter-l3"), "filter-l"),
        (("remove", None, {"a": 1.01}), r"plan: of layer a must lie in \[0.0, 1.0\], got 1.01"),
        (("remove", None, {"a": float("nan")}), "must lie in"),
        (("remove", None, {"a": "half"}), "must be a number"),
        (("remove", None, 3), "must map"),
        (("weights", "filter-l2"), "plan: criterion must score single weights, got filter-l2"),
    ],
)
def test_a_wrong_plan_is_refused_with_one_sentence(arguments, message):
    with pytest.raises(ParameterError, match=message):
        Plan(*arguments)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_plan_is_one_step_of_a_recipe_and_survives_its_json(question):
    recipe = Plan(question, sparsities={"conv1": 0.5, "conv2": 0.25}).recipe(seed=3)
    assert len(recipe.steps) == 1
    assert recipe.seed == 3
    assert Recipe.from_json(recipe.to_json()) == recipe


# text


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (Plan(), "remove:filter-l2"),
        (Plan("weights", sparsities={"conv1": 1.0}), "weights:magnitude:1"),
        (Plan(sparsities=dict.fromkeys(SLIDERS, 0.5)), "remove:filter-l2:.5x5"),
        (Plan("silence", sparsities={"layer2.0.conv1": 0.07}), "silence:filter-l2:0x3,.07"),
        (Plan("zero", CRITERIA["taylor"](images=64), {"conv1": 0.1}), "zero:taylor~images=64:.1"),
    ],
)
def test_texts_are_short_and_read_back(plan, text):
    assert plan.to_text(SLIDERS) == text
    assert Plan.from_text(text, SLIDERS) == plan


CRITERIA_USED = st.sampled_from(["filter-l1", "filter-l2", "magnitude", "random"]).map(
    lambda name: CRITERIA[name]()
)


@settings(deadline=None)
@given(
    st.sampled_from(["remove", "silence", "zero"]),
    CRITERIA_USED | st.integers(1, 10000).map(lambda n: CRITERIA["taylor"](images=n)),
    st.lists(PERCENTS, min_size=5, max_size=5),
)
def test_every_plan_survives_its_text(question, criterion, values):
    plan = Plan(question, criterion, dict(zip(SLIDERS, values, strict=True)))
    text = plan.to_text(SLIDERS)
    assert Plan.from_text(text, SLIDERS) == plan
    assert set(text) <= set(string.ascii_letters + string.digits + ":,.~=-%_")


def test_sliders_may_depend_on_the_question():
    def sliders(question: str):
        return ("a", "b") if question == "remove" else ("c",)

    assert Plan.from_text("remove:filter-l2:0,.5", sliders) == Plan("remove", sparsities={"b": 0.5})
    assert Plan.from_text("zero:filter-l2:.5", sliders) == Plan("zero", sparsities={"c": 0.5})


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "::", "remove", "remove:", "remove:nothing", "revome:filter-l2", "weights:filter-l2:.5"),
        *("remove:filter-l2:.5x6", "remove:filter-l2:.5x99999", "remove:filter-l2:.5x999999999999999999"),
        *("remove:filter-l2:2", "remove:filter-l2:-1", "remove:filter-l2:.123", "remove:filter-l2:nan"),
        *("remove:filter-l2:.5,,", "remove:filter-l2:٣", "remove:filter-l2:.5x", "remove:filter-l2:1e9"),
        *("remove:taylor~images=0", "remove:taylor~images=[", "remove:taylor~x=1", "remove:taylor~images"),
        *("remove:taylor~images=" + "[" * 5000, "remove:filter-l2:" + ",".join(["0"] * 9999), "x" * 10**6),
        *("remove:filter-l2:.5:.5", "<script>", "\x00", "remove:filter-l2:.5\n"),
    ],
)
def test_junk_is_refused_with_one_sentence(text):
    with pytest.raises(RecipeError, match=r"^plan: ") as refusal:
        Plan.from_text(text, SLIDERS)
    assert len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [None, 3, b"remove:filter-l2", ["remove"]])
def test_what_is_no_text_is_refused_too(value):
    with pytest.raises(RecipeError):
        Plan.from_text(value, SLIDERS)


@settings(deadline=None)
@given(st.text(max_size=60) | st.text(alphabet='removewights:filt-l2taylor~=.,x0159[]{}%"', max_size=60))
def test_no_text_whatever_raises_anything_else(text):
    for start in ("", "remove:", "remove:filter-l2:", "zero:taylor~", "zero:taylor~images="):
        with contextlib.suppress(RecipeError):
            assert Plan.from_text(start + text, SLIDERS).question in QUESTIONS


def test_a_slider_that_the_model_lacks_cannot_be_written():
    with pytest.raises(RecipeError, match=r"no slider is called 'conv9'; did you mean 'conv1'\?"):
        Plan(sparsities={"conv9": 0.5}).to_text(SLIDERS)


# presets


def test_presets_set_all_sliders_as_they_say():
    assert preset("uniform", SLIDERS, sparsity=0.3) == Plan(sparsities=dict.fromkeys(SLIDERS, 0.3))
    assert preset("spare-ends", SLIDERS, "zero") == Plan("zero", sparsities=dict.fromkeys(SLIDERS[1:-1], 0.5))
    assert preset("break-it", SLIDERS, "weights") == Plan("weights", sparsities=dict.fromkeys(SLIDERS, 0.95))
    random = preset("random", SLIDERS, "remove", "filter-l1")
    assert random == Plan("remove", "random", dict.fromkeys(SLIDERS, 0.5))


def test_the_global_preset_takes_the_lowest_scores_wherever_they_are():
    ranking = Ranking({"low": torch.arange(10.0), "high": 100 + torch.arange(30.0)})
    plan = preset("global", ("low", "high"), sparsity=0.5, ranking=ranking)
    assert plan.sparsity("low") == 1.0
    assert plan.sparsity("high") == round(10 / 30, 2)


def test_presets_say_what_they_need():
    with pytest.raises(ParameterError, match="did you mean 'global'"):
        preset("globl", SLIDERS)
    with pytest.raises(ParameterError, match="must be given a ranking"):
        preset("global", SLIDERS)
    assert all(chosen.label and chosen.help for chosen in PRESETS.values())


def test_presets_manage_a_model_with_one_slider():
    assert preset("spare-ends", ("only",)) == Plan()
    assert preset("break-it", ("only",)).sparsity("only") == 0.95


# code


def run(code: str, model: nn.Module, example: torch.Tensor) -> nn.Module:
    """What a stranger gets who has torch and the listing, but not this program."""
    imported = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported <= {"torch", "numpy", "base64", "zlib"}
    names: dict = {}
    exec(compile(code, "listing", "exec"), names)
    return names["compress"](copy.deepcopy(model), example)


def sliders_of(model: nn.Module, question: str, example: torch.Tensor) -> list[str]:
    if question == "remove":
        return [group.name for group in groups(model, example)]
    kept = () if question == "weights" else output_layers(model, example)
    return [name for name in prunable(model) if name not in kept]


def check(
    model: nn.Module, split: Split, question: str, criterion: str | None, levels=(0.5, 0.3, 0.0, 0.8)
) -> str:
    """The listing's network equals the engine's; returns the listing."""
    setting, images = Setting(split, split, model), split.images
    names = sliders_of(model, question, images[:1])
    plan = Plan(question, criterion, {name: levels[i % len(levels)] for i, name in enumerate(names)})
    code = plan.code(bundled(model), setting)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ours = compress(model, setting, plan.recipe()).model
    theirs = run(code, model, images[:1])
    with torch.no_grad():
        assert torch.allclose(theirs(images), ours(images), atol=1e-4, rtol=0)
        assert not torch.allclose(model(images), ours(images), atol=1e-3)
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (theirs, ours)]
    assert shapes[0] == shapes[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return code


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", ["tiny", "plain"])
def test_code_reproduces_every_question(question, name, request):
    check(request.getfixturevalue(f"{name}_model"), pictures(12, side=16), question, None)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("small-cnn", {}), ("mlp", {"hidden": 20}), ("resnet20", {}), ("vgg11-bn", {"width": 0.125})],
)
def test_code_reproduces_every_question_on_the_shipped_architectures(question, name, parameters):
    check(small(name, **parameters), pictures(6), question, None)


@pytest.mark.parametrize(
    ("question", "criterion"),
    [
        ("weights", "snip"),
        ("weights", "random"),
        ("remove", "taylor"),
        ("silence", "random"),
        ("zero", "magnitude"),
    ],
)
def test_code_needs_no_data_even_when_the_criterion_looked_at_some(question, criterion, tiny_model):
    check(tiny_model, pictures(12, side=16), question, criterion)


@pytest.mark.parametrize("question", QUESTIONS)
def test_code_of_a_plan_that_takes_everything_it_may(question, tiny_model):
    check(tiny_model, pictures(6, side=16), question, None, levels=(1.0,))


def test_code_of_a_plan_that_does_nothing_does_nothing(tiny_model):
    images = pictures(4, side=16).images
    for question in QUESTIONS:
        code = Plan(question).code(bundled(tiny_model), Setting(pictures(4, 16), pictures(4, 16), tiny_model))
        assert torch.equal(run(code, tiny_model, images[:1])(images), tiny_model(images))


def test_code_is_readable(tiny_model):
    code = check(tiny_model, pictures(12, side=16), "weights", None)
    assert "conv1: 50%" in code
    assert "argsort" in code
    assert "MASKS" not in code
    assert max(map(len, code.splitlines())) <= 200


def test_code_of_a_removal_that_rebuilds_the_network_is_refused():
    with pytest.raises(UnsupportedModelError, match="code: "):
        listing.removed_channels(small("mlp"), lambda model: nn.Sequential(*model))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_code_reproduces_any_removal(data):
    model = small("small-cnn", width=4)
    levels = tuple(data.draw(st.lists(PERCENTS, min_size=4, max_size=4)))
    split = pictures(3)
    setting, images = Setting(split, split, model), split.images
    names = sliders_of(model, "remove", images[:1])
    plan = Plan("remove", None, dict(zip(names, levels, strict=True)))
    theirs = run(plan.code(bundled(model), setting), model, images[:1])
    ours = compress(model, setting, plan.recipe()).model
    assert torch.allclose(theirs(images), ours(images), atol=1e-4, rtol=0)
