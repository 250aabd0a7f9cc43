"""Networks taken apart into steps: equal to the network, wherever they are entered."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import TinyResNet, vary
from torch import nn
from torch.nn import functional as F

from core.bundles import MODELS
from core.errors import UnsupportedModelError
from core.fusion import fuse
from core.kernels import Fused, Geometry, Plain, activation_of, fused_works
from core.layers import ChannelShortcut
from core.steps import Call, Convolution, Shortcut, whole

ACTIVATIONS = [
    (nn.ReLU(), F.relu),
    (nn.ReLU6(), F.relu6),
    (nn.Hardtanh(-0.5, 2.0), lambda x: F.hardtanh(x, -0.5, 2.0)),
    (nn.SiLU(), F.silu),
    (nn.Hardswish(), F.hardswish),
    (nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, 0.2)),
    (nn.Sigmoid(), torch.sigmoid),
    (nn.Tanh(), torch.tanh),
]
KERNELS = [
    pytest.param(Plain, torch.float32, id="plain-float32"),
    pytest.param(Fused, torch.float32, id="fused-float32"),
    pytest.param(Plain, torch.bfloat16, id="plain-bfloat16"),
    pytest.param(Fused, torch.bfloat16, id="fused-bfloat16"),
]


def needs(kernel, dtype) -> None:
    if kernel is Fused and not fused_works(dtype):
        pytest.skip(f"this processor or this torch has no fused convolutions in {dtype}")


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype = torch.float32) -> bool:
    bound = 1e-5 if dtype == torch.float32 else 0.03
    return (found.float() - wanted).abs().max().item() <= bound * max(wanted.abs().max().item(), 1e-3)


# one convolution with what follows it


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
@pytest.mark.parametrize(("module", "function"), ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_a_kernel_is_the_convolution_and_then_the_activation(kernel, dtype, module, function):
    needs(kernel, dtype)
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=4)
    x = torch.randn(3, 8, 9, 7)
    made = kernel(
        layer.weight.detach(),
        layer.bias.detach(),
        Geometry.of(layer, x.shape),
        activation_of(module, added=False),
        dtype,
    )
    with torch.no_grad():
        wanted = function(layer(x))
    assert close(made(x.to(dtype, memory_format=torch.channels_last)), wanted, dtype)


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
@pytest.mark.parametrize("activation", [("none", ()), ("relu", ())])
def test_a_kernel_adds_before_it_activates_and_overwrites_only_when_it_may(kernel, dtype, activation):
    needs(kernel, dtype)
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1)
    x, other = torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6)
    made = kernel(layer.weight.detach(), layer.bias.detach(), Geometry.of(layer, x.shape), activation, dtype)
    with torch.no_grad():
        wanted = layer(x) + other
    wanted = wanted.relu() if activation[0] == "relu" else wanted
    x, other = (value.to(dtype, memory_format=torch.channels_last) for value in (x, other))
    before = other.clone()
    assert close(made(x, other), wanted, dtype)
    assert torch.equal(other, before)
    assert close(made(x, other, True), wanted, dtype)


def test_only_relu_goes_behind_an_addition():
    assert activation_of(nn.ReLU(), added=True) == ("relu", ())
    assert activation_of(nn.ReLU6(), added=True) is None
    assert activation_of(nn.ReLU6(), added=False) == ("hardtanh", (0.0, 6.0))
    assert activation_of(nn.Softmax(1), added=False) is None


# whole networks


class Odd(nn.Module):
    """In-place calls, a value that is read again after an addition, a split, a function without module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.activation = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.third = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.activation(self.norm(self.first(x)))
        y = self.second(x)
        y += x  # both summands live on
        z = F.relu(self.third(y) + y, inplace=True)
        left, right = torch.chunk(z * 0.5, 2, dim=1)
        z = torch.cat([right.abs(), left], 1) - x
        return self.head(self.drop(z).mean((2, 3)))


class Twice(nn.Module):
    """One layer used in two places, and a pre-activation norm that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.stem(torch.relu(self.norm(x)))
        return self.head(F.adaptive_avg_pool2d(self.shared(torch.relu(self.shared(x))), 1).flatten(1))


NETWORKS = {
    "tiny-resnet": (TinyResNet, (3, 16, 16)),
    "odd": (Odd, (3, 16, 16)),
    "twice": (Twice, (3, 16, 16)),
    **{
        name: ((lambda name=name: MODELS[name]().build((3, 32, 32), 10)), (3, 32, 32))
        for name in ("resnet20", "vgg11-bn", "mobilenetv2", "small-cnn", "mlp")
    },
}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    return vary(build()).eval().requires_grad_(False), torch.randn(4, *shape)


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_steps_together_are_the_network(name, kernel, dtype):
    needs(kernel, dtype)
    model, images = network(name)
    before = copy.deepcopy(model.state_dict())
    steps = fuse(model, images, kernel, dtype)
    found = steps.finish(steps.enter(images), 0)
    assert found.dtype == torch.float32
    assert close(found, model(images), dtype)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entered_anywhere_twice_they_give_the_same_bits_and_leave_what_they_were_given(name, dtype):
    kernel = Fused if fused_works(dtype) else Plain
    model, images = network(name)
    steps = fuse(model, images, kernel, dtype)
    wanted = steps.finish(steps.enter(images), 0)
    for place in range(len(steps)):
        values = steps.run(steps.enter(images), 0, place)
        before = {key: value.clone() for key, value in values.items() if isinstance(value, torch.Tensor)}
        assert torch.equal(steps.finish(values, place), wanted)
        assert torch.equal(steps.finish(values, place), wanted)
        assert all(torch.equal(values[key], value) for key, value in before.items())


def test_batch_norm_addition_and_relu_are_folded_into_the_convolution():
    model, images = network("resnet20")
    steps = fuse(model, images, Plain, torch.float32)
    convolutions = [step for step in steps.steps if isinstance(step, Convolution)]
    assert len(convolutions) == 19
    assert all(step.norm is not None and step.activation[0] == "relu" for step in convolutions)
    assert sum(len(step.reads) == 2 for step in convolutions) == 9  # one addition in every block
    assert len(steps) == 19 + 2 + 3  # shortcuts that change the shape; pool, flatten, linear


def test_after_the_last_convolution_everything_is_float32():
    model, images = network("resnet20")
    steps = fuse(model, images, Plain, torch.bfloat16)
    last = max(i for i, step in enumerate(steps.steps) if isinstance(step, Convolution))
    assert [step.float32 for step in steps.steps] == [i > last for i in range(len(steps))]
    assert next(iter(steps.run(steps.enter(images), 0, last).values())).dtype == torch.bfloat16
    assert next(iter(steps.run(steps.enter(images), 0, last + 2).values())).dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet20", "odd", "twice", "mobilenetv2", "mlp"])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000))
def test_masked_steps_are_the_masked_network(name, seed):
    model, images = network(name)
    random = torch.Generator().manual_seed(seed)
    masks = {}
    for path, module in model.named_modules():
        for tensor in ("weight", "bias"):
            value = module._parameters.get(tensor)
            if value is not None and torch.rand(1, generator=random) < 0.4:
                keep = torch.rand(len(value), generator=random) < 0.7
                masks[path, tensor] = keep.view(-1, *[1] * (value.dim() - 1))
    masked = copy.deepcopy(model)
    for (path, tensor), keep in masks.items():
        getattr(masked.get_submodule(path), tensor).mul_(keep)
    steps = fuse(model, images, Plain, torch.float32)
    changed = {index: steps.steps[index].masked(here) for index, here in steps.touched(masks).items()}
    found = steps.run(steps.enter(images), 0, len(steps), changed)[steps.output]
    assert close(found, masked(images))
    first = min(changed, default=0)
    assert torch.equal(steps.finish(steps.run(steps.enter(images), 0, first), first, changed), found)
    again = whole(model)
    changed = {index: again.steps[index].masked(here) for index, here in again.touched(masks).items()}
    assert close(again.finish(again.enter(images), 0, changed), masked(images))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_shortcut_copies_what_its_module_picks(stride):
    sources = ([-1, -1, 0, 1, 2, -1], [2, 0, 1, 1, -1, 2], [-1] * 6, [0, 1, 2, -1, 2, -1])
    for source in map(torch.tensor, sources):
        module = ChannelShortcut(source, stride)
        step = Shortcut("s", ("x",), ("shortcut",), (), False, module)
        x = torch.randn(2, 3, 7, 8).to(memory_format=torch.channels_last)
        assert torch.equal(step.run({"x": x}, set()), module(x))
        keep = torch.tensor([True, True, False, True, True, False])
        masked = step.masked({("shortcut", "source"): keep})
        assert torch.equal(masked.run({"x": x}, set()), module(x) * keep.view(1, -1, 1, 1))


def test_a_layer_that_is_used_twice_changes_both_of_its_steps():
    model, images = network("twice")
    steps = fuse(model, images, Plain, torch.float32)
    masks = {("shared", "weight"): torch.zeros(6, 1, 1, 1, dtype=torch.bool)}
    assert len(steps.touched(masks)) == 2


def test_code_that_depends_on_values_or_goes_behind_a_layers_back_cannot_be_cut():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x if x.sum() > 0 else -x)

    class Behind(Branching):
        def forward(self, x):
            return F.linear(x, self.layer.weight)

    images = torch.randn(3, 4)
    with pytest.raises(UnsupportedModelError, match="cannot be followed"):
        fuse(Branching(), images, Plain, torch.float32)
    with pytest.raises(UnsupportedModelError, match="uses the weight of layer layer behind"):
        fuse(Behind(), images, Plain, torch.float32)


def test_calls_keep_the_modules_they_cannot_fuse():
    model, images = network("twice")
    steps = fuse(model, images, Plain, torch.float32).steps
    assert isinstance(steps[0], Call)
    assert steps[0].modules == ("norm",)
