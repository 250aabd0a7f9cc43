"""Which of torchvision's classifiers lose channels for real, and that the others are refused at once."""

import copy
import time

import pytest
import torch
import torchvision
from test_surgery import random_masks, trained_looking
from torchvision.models import get_model, list_models

from core import coupling, surgery
from core.errors import UnsupportedModelError
from core.layers import prunable

REMOVABLE = {  # one member of every family, and the side of the pictures it is tried on
    "alexnet": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mnasnet1_0": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "squeezenet1_1": 64,
    "vgg16_bn": 32,
}
REFUSED = {  # what the sentence names
    "convnext_tiny": "LayerNorm2d",
    "maxvit_t": "LayerNorm",
    "shufflenet_v2_x1_0": "transposition",
    "swin_t": "LayerNorm",
    "swin_v2_t": "LayerNorm",
    "vit_b_32": "LayerNorm",
}


def build(name: str) -> torch.nn.Module:
    options = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    elif name.startswith("vgg"):
        options = {"init_weights": False}
    return get_model(name, weights=None, num_classes=10, **options).eval().requires_grad_(False)


def family(name: str) -> str:
    """ "regnet_y_400mf" -> "regnet"."""
    return name.removeprefix("wide_").split("_")[0].rstrip("0123456789")


@pytest.mark.slow
@pytest.mark.parametrize("name", REMOVABLE)
def test_masking_and_removing_half_of_every_group_give_the_same_logits(name):
    side = REMOVABLE[name]
    model = trained_looking(build(name))
    double = not name.startswith("vgg")  # which would need gigabytes
    model.to(torch.float64 if double else torch.float32)
    example = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)).to(model_dtype(model))
    masks = random_masks(coupling.groups(model, example))
    removed = surgery.remove_groups(model, masks, example)
    before = model(images)
    assert sum(p.numel() for p in removed.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    surgery.mask_groups(model, masks, example)
    expected, got = model(images), removed(images)
    scale = expected.abs().max()
    assert (expected - before).abs().max() > 1e-2 * scale  # half of the channels mattered
    spread = (expected[0] - expected[1]).abs().max()  # what the pictures decide, in deep networks little
    assert spread > 1e-5 * scale
    assert (got - expected).abs().max() <= (1e-6 * spread if double else 1e-4 * scale)


def model_dtype(model: torch.nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_the_others_are_refused_quickly_by_a_sentence_that_names_the_reason(name):
    model = build(name)
    example = torch.randn(1, 3, 224, 224)
    start = time.process_time()
    with pytest.raises(UnsupportedModelError, match=rf"channel removal: .* must .*{REFUSED[name]}"):
        coupling.groups(model, example)
    assert time.process_time() - start < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_refused_by_name(name):
    model = get_model(name, weights=None, num_classes=10, init_weights=False).eval()
    with pytest.raises(
        UnsupportedModelError, match=r"every layer must take part in a prediction, got [aA]ux"
    ):
        coupling.groups(model, torch.randn(1, 3, 128, 128))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "convnext_tiny"])
def test_silencing_and_zeroing_work_where_removal_is_refused(name):
    model = build(name)
    example = torch.randn(1, 3, 64, 64)
    before = model(example)
    outputs = coupling.output_layers(model, example)
    assert len(outputs) == 1
    layers = [n for n in prunable(model) if n not in outputs][:6]
    masks = {n: torch.arange(len(model.get_submodule(n).weight)) % 2 == 0 for n in layers}
    for effect in (lambda m: surgery.silence(m, masks, example), lambda m: surgery.zero_filters(m, masks)):
        changed = copy.deepcopy(model)
        effect(changed)
        assert not torch.equal(changed(example), before)


def test_every_family_of_torchvision_is_in_the_matrix():
    families = {family(name) for name in list_models(module=torchvision.models)}
    assert families == {family(name) for name in (*REMOVABLE, *REFUSED)}
