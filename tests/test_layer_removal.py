"""Residual blocks that become the identity: which can, which do, and what is left."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.bundles import MODELS, Setting
from core.cost import layer_macs
from core.errors import ParameterError, UnsupportedModelError
from core.methods.layer_removal import LayerRemoval, remove_blocks, residual_blocks, sensitivities
from core.recipe import Recipe, compress
from core.run import Run


def pruned(model: nn.Module, setting: Setting, *steps) -> nn.Module:
    return compress(model, setting, Recipe(steps)).model


def removed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is nn.Identity]


@pytest.fixture
def resnet20(tiny_data):
    torch.manual_seed(0)
    model = MODELS["resnet20"]().build((3, 16, 16), 4).eval()
    return model, Setting(tiny_data.train, tiny_data.validation, model)


EXAMPLE = torch.randn(1, 3, 32, 32)


def test_all_blocks_but_the_two_that_change_shape_can_go_from_resnet20():
    model = MODELS["resnet20"]().build((3, 32, 32), 10).eval()
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    names.remove("layer2.0")
    names.remove("layer3.0")
    assert residual_blocks(model, EXAMPLE) == names


def test_inverted_residuals_with_a_shortcut_can_go_and_the_others_not():
    model = MODELS["mobilenetv2"]().build((3, 32, 32), 10).eval()
    with_shortcut = [name for name, module in model.named_modules() if getattr(module, "residual", False)]
    assert residual_blocks(model, EXAMPLE) == with_shortcut
    assert with_shortcut


@pytest.mark.parametrize("name", ["small-cnn", "mlp", "vgg11-bn"])
def test_plain_networks_have_no_such_block_and_are_refused(name, tiny_data):
    model = MODELS[name]().build((3, 16, 16), 4).eval()
    with pytest.raises(UnsupportedModelError, match="layer-removal: the model must have a residual block"):
        pruned(model, Setting(tiny_data.train, tiny_data.validation, model), LayerRemoval())


def test_equal_shapes_alone_do_not_make_a_block():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(3072, 2),
    )
    assert residual_blocks(model, EXAMPLE) == []


def test_the_identity_gives_what_a_branch_of_zeros_gives(resnet20):
    model, setting = resnet20
    silent = copy.deepcopy(model)
    for name in ("layer1.1", "layer3.2"):
        norm = silent.get_submodule(f"{name}.bn2")
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)
    remove_blocks(model, ["layer1.1", "layer3.2"])
    images = setting.validation.images
    with torch.no_grad():
        assert torch.equal(model(images), silent(images))


def test_macs_fall_by_those_of_the_blocks(resnet20):
    model, setting = resnet20
    example = setting.train.images[:1]
    after = pruned(model, setting, LayerRemoval(sparsity=0.0, blocks={"layer2.1": 1, "layer3.1": 1}))
    before = layer_macs(model, example)
    gone = sum(macs for name, macs in before.items() if name.startswith(("layer2.1.", "layer3.1.")))
    assert sum(layer_macs(after, example).values()) == sum(before.values()) - gone
    assert gone > 0.2 * sum(before.values())


def test_sensitivity_is_the_rise_of_the_loss_when_the_block_alone_is_skipped(resnet20):
    model, setting = resnet20
    names = ["layer1.0", "layer2.2"]
    with torch.no_grad():
        images, labels = setting.validation.images, setting.validation.labels
        before = F.cross_entropy(model(images), labels)
        for name, rise in sensitivities(model, names, setting.validation, Run()).items():
            skipped = copy.deepcopy(model)
            skipped.get_submodule(name).forward = lambda x: x
            assert rise == pytest.approx((F.cross_entropy(skipped(images), labels) - before).item(), abs=1e-4)


def test_the_blocks_of_least_sensitivity_go(resnet20):
    model, setting = resnet20
    names = residual_blocks(model, setting.train.images[:1])
    rises = sensitivities(model, names, setting.validation, Run())
    after = pruned(model, setting, LayerRemoval(sparsity=0.4))
    gone = [name for name in removed(after) if name in names]
    assert sorted(gone) == sorted(sorted(names, key=rises.__getitem__)[:3])  # round(0.4 * 7)


def test_the_blocks_of_smallest_filters_go(resnet20):
    model, setting = resnet20
    for layer in (model.layer2[2].conv1, model.layer2[2].conv2):
        layer.weight.data *= 1e-3
    after = pruned(model, setting, LayerRemoval(sparsity=0.15, importance="criterion"))
    assert [name for name in removed(after) if name.count(".") == 1] == ["layer2.2"]


def test_blocks_are_settled_by_hand_by_their_name_or_that_of_a_layer(resnet20):
    model, setting = resnet20
    names = residual_blocks(model, setting.train.images[:1])
    rest = dict.fromkeys(names, 0.0)
    step = LayerRemoval(sparsity=1.0, blocks=rest | {"layer1.1": 1.0, "layer3.1": 1.0})
    assert [n for n in removed(pruned(model, setting, step)) if n in names] == ["layer1.1", "layer3.1"]
    step = LayerRemoval(sparsity=0.0, blocks={"layer3.2.conv1": 1.0})
    assert [n for n in removed(pruned(model, setting, step)) if n in names] == ["layer3.2"]


def test_at_100_percent_every_removable_block_goes_and_the_network_answers(resnet20):
    model, setting = resnet20
    names = residual_blocks(model, setting.train.images[:1])
    after = pruned(model, setting, LayerRemoval(sparsity=1.0))
    assert set(names) <= set(removed(after))
    assert after(setting.validation.images).isfinite().all()
    assert residual_blocks(after, setting.train.images[:1]) == []


def test_finding_and_measuring_leave_the_model_alone(resnet20):
    model, setting = resnet20
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    names = residual_blocks(model, setting.train.images[:1])
    sensitivities(model, names, setting.validation, Run())
    assert list(model.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in modules)


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        ({"layer2.0": 1.0}, "no removable block is called 'layer2.0'; did you mean"),
        ({"linear": 1.0}, "no removable block is called 'linear'"),
        ({"layer1.1": 1.0, "layer1.1.conv1": 0.0}, "layer1.1 must be settled once, got 0 and 1"),
    ],
)
def test_blocks_that_cannot_be_settled_so_are_refused(blocks, sentence, resnet20):
    model, setting = resnet20
    with pytest.raises(ParameterError, match=sentence):
        pruned(model, setting, LayerRemoval(blocks=blocks))


def test_half_a_block_cannot_go():
    with pytest.raises(ParameterError, match=r"layer1\.1 must be 0 .* or 1 .*, got 0\.5"):
        LayerRemoval(blocks={"layer1.1": 0.5})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 5), ("convnext_tiny", 18), ("mobilenet_v3_small", 6), ("swin_t", 12)]
)
def test_torchvisions_residual_networks_lose_blocks_too(name, count):
    from torchvision.models import get_model

    model = get_model(name, weights=None).eval()
    names = residual_blocks(model, torch.randn(1, 3, 64, 64))
    assert len(names) == count
    remove_blocks(model, names[:2])
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
