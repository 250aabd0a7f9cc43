"""Architectures: the published sizes, the published wiring, any picture a data set has."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from core.bundles import MODELS
from core.errors import UnknownNameError, UnsupportedModelError
from core.models.torchvision_classifiers import NETWORKS

CIFAR = (3, 32, 32)
ONE_PER_FAMILY = """
    alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
    mobilenet_v3_small regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 swin_t
    swin_v2_t vgg11 vit_b_32 wide_resnet50_2
    """
OWN = [name for name in MODELS if name != "torchvision"]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20", 269_722),  # the four: counted with option A, as published
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("small-cnn", 16 * 27 + 32 * 144 + 32 * 288 + 64 * 288 + 2 * (16 + 32 + 32 + 64) + 650),
        ("mlp", 3072 * 128 + 128 + 128 * 128 + 128 + 1290),
    ],
)
def test_parameters_are_as_published_or_counted_by_hand(name, expected):
    assert parameters(MODELS[name]().build(CIFAR, 10)) == expected


@pytest.mark.parametrize(("name", "peer"), [("vgg11-bn", "vgg11_bn"), ("vgg16-bn", "vgg16_bn")])
def test_vgg_has_the_convolutions_of_torchvision(name, peer):
    ours = MODELS[name]().outline(CIFAR, 10)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(peer, num_classes=10)
    shapes = [
        [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        for model in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]
    biases = sum(shape[0] for shape in shapes[0])  # ours has none in front of batch norm
    assert parameters(ours.features) == parameters(theirs.features) - biases


def test_mobilenetv2_equals_that_of_torchvision_with_smaller_strides():
    torch.manual_seed(0)
    ours = MODELS["mobilenetv2"]().build(CIFAR, 10).eval()
    theirs = torchvision.models.mobilenet_v2(num_classes=10).eval()
    theirs.features[0][0].stride = (1, 1)
    theirs.features[2].conv[1][0].stride = (1, 1)
    state = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))  # in the same order
    theirs.load_state_dict(state)
    images = torch.randn(2, *CIFAR)
    with torch.inference_mode():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)
    assert parameters(ours) == 2_236_682


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75, 1.5])
def test_mobilenetv2_widths_are_those_of_torchvision(width):
    ours = MODELS["mobilenetv2"](width=width).outline(CIFAR, 10)
    assert parameters(ours) == parameters(torchvision.models.mobilenet_v2(num_classes=10, width_mult=width))


def test_residual_network_computes_what_the_paper_writes():
    """ResNet-20, layer by layer from its weights with plain functions."""
    torch.manual_seed(0)
    model = MODELS["resnet20"]().build(CIFAR, 10).eval()
    images = torch.randn(2, *CIFAR)
    function = torch.nn.functional

    def norm(x, layer):
        return function.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    with torch.inference_mode():
        x = norm(function.conv2d(images, model.conv1.weight, padding=1), model.bn1).relu()
        for stage in (model.layer1, model.layer2, model.layer3):
            for index, block in enumerate(stage):
                stride = 2 if index == 0 and stage is not model.layer1 else 1
                y = norm(function.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1).relu()
                y = norm(function.conv2d(y, block.conv2.weight, padding=1), block.bn2)
                if stride == 2:  # option A: every second pixel, zero channels on both sides
                    quarter = x.shape[1] // 2
                    x = function.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
                x = (y + x).relu()
        expected = function.linear(x.mean((2, 3)), model.linear.weight, model.linear.bias)
        assert torch.allclose(model(images), expected, atol=1e-4)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 33, 47)])
def test_every_model_reads_pictures_of_every_data_set(name, shape):
    model = MODELS[name]().build(shape, 7).eval()
    with torch.inference_mode():
        assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", [*OWN, "torchvision"])
def test_an_outline_has_the_tensors_of_the_network_and_no_numbers(name):
    method = MODELS[name]()
    outline, network = method.outline((3, 64, 64), 5), method.build((3, 64, 64), 5)
    shapes = [
        {key: tensor.shape for key, tensor in model.state_dict().items()} for model in (outline, network)
    ]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in outline.parameters())


def test_the_list_of_networks_is_that_of_torchvision():
    assert set(torchvision.models.list_models(module=torchvision.models)) == set(NETWORKS)


@pytest.mark.slow
@pytest.mark.parametrize("network", ONE_PER_FAMILY.split())
def test_networks_of_torchvision_have_their_published_size(network):
    outline = MODELS["torchvision"](network=network).outline((3, 224, 224), 1000)
    published = torchvision.models.get_model_weights(network).DEFAULT.meta["num_params"]
    if network in ("googlenet", "inception_v3"):  # the files hold classifiers that only training uses
        assert 0.8 * published < parameters(outline) <= published  # and are counted with them or without
    else:
        assert parameters(outline) == published


def test_torchvision_networks_equal_those_built_without_us():
    torch.manual_seed(0)
    ours = MODELS["torchvision"](network="squeezenet1_1").build((3, 64, 64), 10).eval()
    theirs = torchvision.models.squeezenet1_1(num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("network", "shape"), [("alexnet", (3, 32, 32)), ("resnet18", (1, 64, 64)), ("vit_b_16", (3, 30, 30))]
)
def test_pictures_that_a_network_cannot_read_are_a_sentence(network, shape):
    with pytest.raises(
        UnsupportedModelError, match=f"{network}: cannot read pictures of {shape[0]} x"
    ) as error:
        MODELS["torchvision"](network=network).build(shape, 10)
    assert "\n" not in str(error.value)


def test_names_in_published_files_are_translated():
    architecture = MODELS["torchvision"](network="densenet121")
    old = "features.denseblock1.denselayer2.norm.1.weight"
    assert architecture.tensor_name(old) == "features.denseblock1.denselayer2.norm1.weight"
    assert architecture.tensor_name("features.norm0.weight") == "features.norm0.weight"
    assert architecture.tensor_name("aux1.fc1.weight") is None


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'resnet20'"):
        MODELS["resnet-20"]


def test_shortcuts_survive_a_copy():
    model = MODELS["resnet20"]().build(CIFAR, 10).eval()
    images = torch.randn(1, *CIFAR)
    assert torch.equal(model(images), copy.deepcopy(model)(images))
