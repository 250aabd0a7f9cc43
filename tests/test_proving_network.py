"""Unrolled networks answer as the modules do; what cannot be unrolled is refused by name."""

import copy
from dataclasses import replace

import pytest
import torch
from promises import assert_untouched, fingerprint, lightest
from tiny import vary
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import MODELS
from core.errors import UnsupportedModelError
from core.factors import factorised
from core.layers import apply_mask
from core.linearity import MergedChain
from core.proving import unrolling
from core.proving.network import ReluNetwork, unroll
from core.recipe import COMPRESSORS, Recipe, compress

DIGITS = (1, 8, 8)


def assert_same(model: nn.Module, shape: tuple[int, ...], count: int = 20) -> ReluNetwork:
    """The unrolled network answers as the module does in double precision, far from 0, too."""
    network = unroll(model, shape)
    random = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(count, *shape, dtype=torch.float64, generator=random)
    with torch.no_grad():
        wanted = copy.deepcopy(model).double().eval()(x)
    assert (network(x.flatten(1)) - wanted.flatten(1)).abs().max() < 1e-9
    return network


class Called(nn.Module):
    """Everything as functions: activations, one of them in place, pooling, change of shape, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(27, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.max_pool2d(F.relu(self.conv(x)), 2), 2, 1)
        x = self.wide(x.view(x.size(0), -1)).relu_()
        return self.last(x) + self.last(x).relu()


class Twice(nn.Module):
    """One ReLU module in two places, and a value that is read again after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        before = self.relu(self.first(x))
        return before + self.relu(self.second(before))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"hidden": 16}),
        ("mlp", {"depth": 1}),
        ("small-cnn", {"width": 2}),
        ("vgg11-bn", {"width": 0.0625}),
    ],
)
def test_architectures_unroll_to_what_they_are(name, options):
    torch.manual_seed(0)
    assert_same(vary(MODELS[name](**options).build(DIGITS, 10)).eval(), DIGITS)


@pytest.mark.parametrize("model", [Called(), Twice()], ids=["functions", "reused"])
def test_functions_and_reused_modules_unroll(model):
    assert_same(model.eval(), DIGITS if isinstance(model, Called) else (6,))


def norm(kind: type[nn.Module], channels: int) -> nn.Module:
    layer = kind(channels)
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    nn.init.uniform_(layer.weight, -2, 2)
    nn.init.uniform_(layer.bias, -1, 1)
    return layer.eval()


CHAINS = {
    "batch norm 1d": (
        nn.Sequential(nn.Linear(5, 4), norm(nn.BatchNorm1d, 4), nn.ReLU(), nn.Linear(4, 2)),
        (5,),
    ),
    "batch norm first": (
        nn.Sequential(norm(nn.BatchNorm2d, 2), nn.Flatten(), nn.ReLU(), nn.Linear(18, 3)),
        (2, 3, 3),
    ),
    "no ReLU": (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), (4,)),
    "ReLU at both ends": (nn.Sequential(nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.ReLU()), (4,)),
    "average pools": (
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2, 1, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        ),
        (1, 7, 7),
    ),
    "grouped, dilated, strided": (
        nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False), nn.Flatten()
        ),
        (4, 7, 6),
    ),
    "nested": (
        nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU())), nn.Dropout(), nn.Identity()),
        (4,),
    ),
    "factors": (nn.Sequential(factorised(nn.Linear(9, 8), (3, 3)), nn.ReLU(), nn.Linear(8, 2)), (9,)),
    "kernel factors": (
        nn.Sequential(factorised(nn.Conv2d(4, 6, 3), (2, 3)), nn.ReLU(), nn.Flatten()),
        (4, 5, 5),
    ),
    "merged chain": (MergedChain([5, 4, 3, 2], ["0-1", "0-2", "1-2"], [True, False, True]), (5,)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_layers_unroll_to_what_they_are(name):
    model, shape = CHAINS[name]
    assert_same(model.eval(), shape)


def test_residual_blocks_unroll(tiny_model):
    """What goes past a block comes through its ReLUs unchanged; channel shortcuts are refused."""
    block = nn.Conv2d(3, 3, 3, padding=1)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first, self.second = (copy.deepcopy(block) for _ in range(3))
            self.linear = nn.Linear(75, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            x = F.relu(x + self.second(F.relu(self.first(x))))
            return self.linear(x.flatten(1))

    network = assert_same(Residual().eval(), (3, 5, 5))
    assert network.widths == (75, 150, 75)
    with pytest.raises(
        UnsupportedModelError, match=r"^proof: layer2.0.shortcut must be .*, got a call of getitem"
    ):
        unroll(tiny_model, (3, 16, 16))


def pools() -> list[nn.MaxPool2d]:
    return [
        nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
        for kernel, stride, padding, dilation, ceil in (
            (2, 2, 0, 1, False), (3, 2, 1, 1, False), (3, 1, 0, 1, True), ((2, 3), (3, 2), (1, 0), 1, True),
            (2, 3, 1, 2, True), (1, 2, 0, 1, False), (3, 3, 1, 2, False), (2, 2, 1, 1, True),
        )
    ]  # fmt: skip


@pytest.mark.parametrize("pool", pools(), ids=str)
@pytest.mark.parametrize("behind", [nn.ReLU(), nn.Identity()], ids=["behind a ReLU", "of any sign"])
def test_max_pooling_is_relus(pool, behind):
    assert_same(nn.Sequential(nn.Conv2d(1, 2, 1), behind, pool, nn.Flatten()).eval(), (1, 6, 7))


def test_pooling_behind_a_relu_needs_no_second_relu_for_what_it_passes_on():
    """Of four values in a window two differences and two passed on, then one and one."""
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    assert unroll(model, (1, 4, 4)).widths == (16, 16, 8)


def test_masks_count(setting):
    """Parametrized layers unroll with the weights that they answer with."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    apply_mask(model[0], torch.rand(5, 6) < 0.5)
    network = assert_same(model, (6,))
    assert (network.weights[0] == 0).sum() >= (model[0].parametrizations.weight[0].keep == 0).sum()


@pytest.mark.parametrize(
    "name", ["prune-weights", "prune-filters", "low-rank", "linearity", "sap", "semi-structured", "frequency"]
)
def test_what_methods_make_of_a_chain_unrolls(name, plain_model, setting):
    chain = replace(setting, teacher=plain_model)
    made = compress(plain_model, chain, Recipe((lightest(COMPRESSORS[name]),))).model
    assert_same(made.eval(), (3, 16, 16), count=5)


def test_the_model_stays_as_it_is(plain_model):
    before = fingerprint(plain_model)
    unroll(plain_model, (3, 16, 16))
    assert_untouched(plain_model, before)


# ------------------------------------------------------------------------------------------- refusals


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), "1 must be .* got Sigmoid"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "1 must be .* got LayerNorm"),
        (nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Flatten()), "0 must be .* got Unflatten"),
        (Branches(), "code that can be followed .* got Branches"),
    ],
)
def test_what_cannot_be_unrolled_is_named(model, said):
    with pytest.raises(UnsupportedModelError, match=rf"^proof: .*{said}"):
        unroll(model.eval(), (4,))


def test_norms_that_depend_on_the_batch_are_refused():
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(UnsupportedModelError, match=r"0 must be .* got BatchNorm2d"):
        unroll(model.eval(), (2, 3, 3))


def test_products_of_values_are_refused():
    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    with pytest.raises(UnsupportedModelError, match=r"must be .* got a call of mul"):
        unroll(Squared(), (4,))


def test_networks_too_large_are_refused_before_they_are_unrolled(monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 32 * 32, 10)
    )
    with pytest.raises(
        UnsupportedModelError, match=r"at most 40,000,000 numbers once unrolled, got 201,326,592"
    ):
        unroll(model.eval(), (3, 32, 32))
    monkeypatch.setattr(unrolling, "LARGEST_NETWORK", 60)
    with pytest.raises(UnsupportedModelError, match="in a network of at most 60 numbers"):
        unroll(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), (6,))


# --------------------------------------------------------------------------------------- its operations


def test_normalisation_moves_inside(plain_model):
    mean, std = (0.3, 0.4, 0.5), (0.2, 0.1, 0.3)
    pixels = torch.rand(7, 3, 16, 16)
    shaped = [torch.tensor(side).view(1, 3, 1, 1) for side in (mean, std)]
    network = unroll(plain_model, (3, 16, 16))
    wanted = network(((pixels - shaped[0]) / shaped[1]).flatten(1))
    assert torch.allclose(network.behind(mean, std)(pixels.flatten(1)), wanted, atol=1e-4)


def test_outputs_can_be_weighed_and_shifted():
    network = unroll(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), (4,))
    rows, offsets, x = torch.randn(2, 3), torch.randn(2), torch.randn(5, 4)
    wanted = network(x) @ rows.double().T - offsets.double()
    assert torch.allclose(network.then(rows, offsets)(x), wanted, atol=1e-12)


def test_digests_tell_networks_apart():
    first, second = (unroll(nn.Linear(3, 2), (3,)) for _ in range(2))
    assert first.digest != second.digest
    assert first.digest == ReluNetwork(first.weights, first.biases).digest
