"""Networks prepared for attributions: what is shared, what is remembered, and that nothing else changes."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from captum import attr
from tiny import TinyResNet, plain_network, vary
from torch import Tensor, nn

from core import prepared, workers
from core.attribution import ATTRIBUTIONS, AttributionMethod, explain
from core.memory import Memory
from core.preparation import fold, rewrite
from core.prepared import Prepared
from core.run import Run
from core.weights import load_dataset, load_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")  # of hooks it removes itself


@dataclass(frozen=True)
class Counting(AttributionMethod):
    """The gradient, and a note of how many images it was asked for at a time."""

    name: ClassVar[str] = "counting"
    asked: ClassVar[list[int]] = []

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        self.asked.append(len(images))
        return model.gradient(images, targets)


@dataclass(frozen=True)
class CountingAtRandom(Counting):
    name: ClassVar[str] = "counting-at-random"
    random: ClassVar[bool] = True


@pytest.fixture
def asked() -> list[int]:
    Counting.asked.clear()
    return Counting.asked


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets() -> Tensor:
    return torch.tensor([2, 0, 3, 1, 1])


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


# What is remembered.


def test_a_map_is_computed_once_per_image_target_and_method(asked, tiny_model, images, targets):
    first = explain(tiny_model, Counting(), images[:3], targets[:3])
    again = explain(tiny_model, Counting(), images[:3], targets[:3])
    assert asked == [3]
    assert torch.equal(first, again)
    explain(tiny_model, Counting(), images, targets)  # two new images among five
    assert asked == [3, 2]
    explain(tiny_model, Counting(), images[:1], targets[:1] - 1)
    assert asked == [3, 2, 1]


def test_a_map_of_changed_weights_or_pixels_is_computed_anew(asked, tiny_model, images, targets):
    before = explain(tiny_model, Counting(), images, targets)
    other = images.clone()
    other[0, 0, 0, 0] += 1e-3
    explain(tiny_model, Counting(), other, targets)
    assert asked == [5, 1]
    with torch.no_grad():
        tiny_model.linear.weight.mul_(2)
    after = explain(tiny_model, Counting(), images, targets)
    assert asked == [5, 1, 5]
    assert relative(after, 2 * before) < 1e-5


def test_the_seed_counts_for_random_methods_only(asked, tiny_model, images, targets):
    for seed in (0, 1):
        explain(tiny_model, Counting(), images, targets, seed=seed)
    assert asked == [5]
    for seed in (0, 1, 0):
        explain(tiny_model, CountingAtRandom(), images, targets, seed=seed)
    assert asked == [5, 5, 5]


def test_writing_into_a_map_leaves_what_is_remembered_alone(tiny_model, images, targets):
    first = explain(tiny_model, Counting(), images, targets)
    kept = first.clone()
    first.zero_()
    assert torch.equal(explain(tiny_model, Counting(), images, targets), kept)


def test_what_is_remembered_is_bounded_and_still_right_beyond_the_bound(
    asked, tiny_model, images, targets, monkeypatch
):
    monkeypatch.setattr(prepared, "_REMEMBERED", Memory(2 * images[0].nbytes, lambda each: each.nbytes))
    expected = explain(tiny_model, Counting(), images, targets)
    assert torch.equal(explain(tiny_model, Counting(), images, targets), expected)
    assert asked[0] == 5
    assert asked[1] >= 3  # two at most were still known


def test_two_networks_never_share_a_map(tiny_model, images, targets):
    twice = copy.deepcopy(tiny_model)
    with torch.no_grad():
        twice.linear.weight.mul_(2)
    for _ in range(2):
        one, two = (explain(model, Counting(), images, targets) for model in (tiny_model, twice))
        assert relative(two, 2 * one) < 1e-5


def test_a_network_that_is_gone_leaves_no_prepared_copy_behind(images, targets):
    model = vary(TinyResNet()).eval()
    explain(model, ATTRIBUTIONS["guided-backprop"](), images, targets)
    copies = weakref.ref(Prepared.of(model, images[:1]))
    del model
    gc.collect()
    assert copies() is None


# What is shared.


def test_saliency_and_input_x_gradient_differentiate_once(tiny_model, images, targets, monkeypatch):
    passes: list[int] = []
    differentiate = Prepared._gradient

    def noted(self: Prepared, points: Tensor, wanted: Tensor) -> Tensor:
        passes.append(len(points))
        return differentiate(self, points, wanted)

    monkeypatch.setattr(Prepared, "_gradient", noted)
    saliency = explain(tiny_model, ATTRIBUTIONS["saliency"](), images, targets)
    product = explain(tiny_model, ATTRIBUTIONS["input-x-gradient"](), images, targets)
    assert sum(passes) == len(images)
    assert torch.equal(product, images * saliency)


def test_threads_that_meet_a_new_network_at_once_prepare_it_once(tiny_model, images, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(prepared, "rewrite", lambda *given: calls.append(1) or rewrite(*given))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Prepared.of(tiny_model, images[:1]), range(8)))
    assert len(calls) == 1
    assert len({id(each) for each in found}) == 1


def test_copies_lent_at_the_same_time_differ_and_share_their_weights(tiny_model, images):
    network = Prepared.of(tiny_model, images[:1])
    with network.private() as one, network.private() as two:
        assert not {id(m) for m in one.modules()} & {id(m) for m in two.modules()}
        assert all(a is b for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 16, 33, 50, 800])
@pytest.mark.parametrize("side", [16, 32, 224])
def test_passes_fit_the_cache_and_are_alike_for_all_workers(count, side):
    size = prepared._batch(count, torch.empty(1, 3, side, side))
    largest = max(prepared.BATCH_PIXELS // side**2, prepared.SMALLEST_BATCH)
    rounds = -(-count // (workers.COUNT * largest))
    assert 1 <= size <= largest
    assert -(-count // size) <= rounds * workers.COUNT  # no worker has more of them than another needs
    assert (size - 1) * rounds * workers.COUNT < count  # and none is larger than that asks for


def test_gradients_are_those_of_every_place_in_order(plain_model, images, targets):
    network = Prepared.of(plain_model, images[:1])
    places = [0.1 * step for step in range(17)]
    found = list(network.gradients(lambda place: place * images, places, targets, Run()))
    for place, gradient in zip(places, found, strict=True):
        x = (place * images).requires_grad_()
        chosen = plain_model(x).gather(1, targets[:, None]).sum()
        assert relative(gradient, torch.autograd.grad(chosen, x)[0]) < 1e-5


def test_gradients_report_and_can_be_stopped_between_passes(plain_model, images, targets):
    class StopError(Exception):
        pass

    seen: list[float] = []

    def stop(progress) -> None:
        seen.append(progress.fraction)
        if len(seen) == 2:
            raise StopError

    network, places = Prepared.of(plain_model, images[:1]), [0.01 * step for step in range(400)]
    with pytest.raises(StopError):
        list(network.gradients(lambda place: place * images, places, targets, Run(on_progress=stop)))
    assert 0 < seen[0] < seen[1] < 1


# Batch norm folded.


class Twice(nn.Module):
    """One convolution read by two batch norms, and one that is called twice, each time with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called, self.plain = (nn.Conv2d(i, 4, 3, padding=1) for i in (3, 4, 4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        x = self.norms[0](x) + self.norms[1](x)
        x = self.norms[3](self.called(self.norms[2](self.called(x)).relu()))
        return self.linear(self.norms[4](self.plain(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("build", "left"), [(TinyResNet, 0), (plain_network, 0), (Twice, 4)], ids=["residual", "plain", "twice"]
)
def test_batch_norms_are_folded_where_that_is_right_and_the_function_stays(build, left, images):
    torch.manual_seed(0)
    model = vary(build()).eval()
    folded = fold(rewrite(model, images[:1]))
    called = [folded.get_submodule(node.target) for node in folded.graph.nodes if node.op == "call_module"]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in called) == left
    assert relative(folded(images), model(images)) < 1e-5


def test_batch_norms_without_statistics_and_codes_that_cannot_be_traced_stay(images):
    class ByValue(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x if x.sum() < 1e9 else -x)

    free = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    for model in (free, ByValue(vary(plain_network())).eval()):
        folded = fold(rewrite(model, images[:1]))
        assert any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert relative(folded(images), model(images)) < 1e-6


@pytest.mark.parametrize("name", ["grad-cam", "deep-lift", "guided-grad-cam"])
def test_methods_that_look_at_layers_see_them_with_their_batch_norm_apart(name, images, targets):
    """Grad-CAM reads what a convolution gives out; folded, that would be another tensor."""
    torch.manual_seed(0)
    model = vary(nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(125, 4),
    )).eval()  # fmt: skip
    x, layer = images.clone(), model[3]
    expected = {
        "grad-cam": lambda: attr.LayerAttribution.interpolate(
            attr.LayerGradCam(model, layer).attribute(x, target=targets), (16, 16), "bilinear"
        ).expand_as(x),
        "deep-lift": lambda: attr.DeepLift(model).attribute(x, target=targets),
        "guided-grad-cam": lambda: attr.GuidedGradCam(model, layer).attribute(
            x, target=targets, interpolate_mode="bilinear"
        ),
    }[name]()
    assert relative(explain(model, ATTRIBUTIONS[name](), images, targets), expected.detach()) < 1e-4


# Against Captum called plainly, on a trained network of full size.


@pytest.mark.slow
def test_six_methods_equal_captums_own_on_a_trained_resnet20():
    """To 1e-4 for the median picture.

    A point at which a rectifier's input is zero but for rounding has two gradients, and which one is
    met differs between Captum and Captum in float64 as well: about one point in a hundred here.
    """
    model = load_model("resnet20", "cluttered-digits").module
    data = load_dataset("cluttered-digits").test.take(slice(0, 5))
    x, targets = data.images, model(data.images).argmax(1)
    last = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    coarse = attr.LayerGradCam(model, last).attribute(x.clone(), target=targets)
    expected = {
        "saliency": attr.Saliency(model).attribute(x.clone(), target=targets, abs=False),
        "input-x-gradient": attr.InputXGradient(model).attribute(x.clone(), target=targets),
        "integrated-gradients": attr.IntegratedGradients(model).attribute(x.clone(), target=targets),
        "smooth-grad": torch.cat([smooth_grad(model, x[i : i + 1], targets[i : i + 1]) for i in range(5)]),
        "grad-cam": attr.LayerAttribution.interpolate(coarse, (32, 32), "bilinear").expand_as(x),
        "occlusion": attr.Occlusion(model).attribute(x, (3, 8, 8), strides=(3, 4, 4), target=targets),
    }
    for name, maps in expected.items():
        found = explain(model, ATTRIBUTIONS[name](), x, targets, seed=3)
        off = [relative(one, other.detach()) for one, other in zip(found, maps, strict=True)]
        assert sorted(off)[2] < 1e-4, name


def smooth_grad(model: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """Captum's, of one image (1, C, H, W), from seed 3."""
    torch.manual_seed(3)
    spread = 0.15 * (image.max() - image.min()).item()
    tunnel = attr.NoiseTunnel(attr.Saliency(model))
    return tunnel.attribute(image.clone(), nt_samples=25, stdevs=spread, target=target, abs=False)
