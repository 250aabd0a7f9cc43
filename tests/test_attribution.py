"""Attribution maps: what they promise, against Captum's own calls and against definitions."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from captum import attr
from torch import Tensor, nn
from torch.nn import functional as F

from core import prepared
from core.attribution import ATTRIBUTIONS, baseline, completeness, explain, prepare
from core.bundles import MODELS
from core.errors import ParameterError, UnsupportedModelError
from core.preparation import rewrite
from core.requirements import require_own_relus
from core.run import Run
from core.superpixels import grid, sum_over_superpixels

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:captum"),  # of hooks it removes itself
    pytest.mark.usefixtures("forgetful"),
]

# Small settings, so that every method takes a blink.
CHEAP = {
    "integrated-gradients": {"steps": 8},
    "smooth-grad": {"samples": 6},
    "gradient-shap": {"samples": 6},
    "kernel-shap": {"samples": 40, "side": 3},
    "lime": {"samples": 40, "side": 3, "alpha": 0.001},
    "feature-ablation": {"side": 4},
}


def cheap(name: str):
    return ATTRIBUTIONS[name](**CHEAP.get(name, {}))


@pytest.fixture(params=list(ATTRIBUTIONS))
def method(request):
    return cheap(request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets() -> Tensor:
    return torch.tensor([2, 0, 3])


class Functional(nn.Module):
    """ReLUs of every troublesome kind: a function, a tensor method, in place, and a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(i, 6, 3, padding=1) for i in (3, 6, 6))
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        y = self.relu(self.conv2(x))
        y = self.relu(self.conv3(y) + x)
        y += x
        return self.linear(F.max_pool2d(y.relu(), 2).flatten(1))


class Modular(nn.Module):
    """The same function as `Functional`, written as Captum wants it, with the same parameter names."""

    def __init__(self, like: Functional) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.linear = like.conv1, like.conv2, like.conv3, like.linear
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(4))
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        # A copy after each ReLU: Captum's hooks of two activations must not meet on one tensor.
        x = self.pools[0](self.relus[0](self.conv1(x)).clone())
        y = self.relus[1](self.conv2(x))
        y = self.relus[2](self.conv3(y) + x)
        y = y + x
        return self.linear(self.pools[1](self.relus[3](y).clone()).flatten(1))


@pytest.fixture
def functional() -> Functional:
    torch.manual_seed(0)
    return Functional().eval()


class Untraceable(nn.Module):
    """A network whose path depends on the values: torch.fx gives up."""

    def __init__(self, relu: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.relu, self.linear = nn.Conv2d(3, 4, 3), relu, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = -x
        x = self.conv(x)
        x = self.relu(x) if self.relu else F.relu(x)
        return self.linear(x.mean(dim=(2, 3)))


class LinearSum(nn.Module):
    """A residual sum that no ReLU follows, as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(768, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((self.conv(x) + x).flatten(1))


# The contract of every method.


def test_maps_have_the_shape_of_the_images_and_are_finite(method, tiny_model, images, targets):
    maps = explain(tiny_model, method, images, targets)
    assert maps.shape == images.shape
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert maps.abs().max() > 0


def test_the_shared_module_and_the_images_stay_as_they_were(method, tiny_model, images, targets):
    weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    pictures, answers = images.clone(), tiny_model(images)
    explain(tiny_model, method, images, targets)
    for module in tiny_model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        assert not any(hooks)
        assert not module._backward_pre_hooks
    assert all(torch.equal(value, weights[name]) for name, value in tiny_model.state_dict().items())
    assert torch.equal(tiny_model(images), answers)
    assert torch.equal(images, pictures)
    assert not images.requires_grad


def test_a_map_does_not_depend_on_the_other_images_of_the_batch(method, tiny_model, images, targets):
    together = explain(tiny_model, method, images, targets)
    alone = torch.cat([explain(tiny_model, method, images[i : i + 1], targets[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-5 * together.abs().max().item())


def test_the_seed_decides_the_map_and_the_callers_random_numbers_do_not(method, tiny_model, images, targets):
    torch.manual_seed(5)
    first = explain(tiny_model, method, images, targets, seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    assert torch.equal(explain(tiny_model, method, images, targets, seed=3), first)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)  # explaining drew nothing from the caller's stream
    other = explain(tiny_model, method, images, targets, seed=4)
    assert torch.equal(other, first) != method.random


def test_methods_work_inside_inference_mode(method, tiny_model, images, targets):
    outside = explain(tiny_model, method, images, targets)
    with torch.inference_mode():
        assert torch.equal(explain(tiny_model, method, images.clone(), targets.clone()), outside)


def test_hyperparameters_change_the_map(method, tiny_model, images, targets):
    other = {
        "integrated-gradients": {"steps": 30},
        "smooth-grad": {"noise": 0.5},
        "gradient-shap": {"samples": 20},
        "grad-cam": {"layer": 2},
        "guided-grad-cam": {"layer": 2},
        "occlusion": {"window": 0.5},
        "feature-ablation": {"side": 2},
        "kernel-shap": {"side": 2},
        "lime": {"alpha": 0.1},
        "deep-lift": {"baseline": "dark"},
        "lrp": {"rule": "alpha1-beta0"},
    }
    if method.name not in other:
        assert not method.domains()
        return
    changed = type(method)(**CHEAP.get(method.name, {}) | other[method.name])
    maps = [explain(tiny_model, each, images, targets) for each in (method, changed)]
    assert not torch.allclose(*maps, rtol=1e-3)


def test_two_threads_explaining_at_once_get_right_answers(tiny_model, images, targets):
    names = ["guided-backprop", "deep-lift", "deconvolution", "grad-cam", "saliency"]
    expected = {name: explain(tiny_model, cheap(name), images, targets) for name in names}
    fresh = copy.deepcopy(tiny_model)  # not prepared yet: the threads trace it at the same time

    def work(order: list[str]) -> None:
        for name in order * 4:
            assert torch.equal(explain(fresh, cheap(name), images, targets), expected[name])

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work, order) for order in (names, names[::-1], names[2:])]:
            done.result()


def test_networks_work_in_other_threads_while_one_is_traced(tiny_model, images):
    expected, stop = tiny_model(images), threading.Event()

    def use() -> int:
        rounds = 0
        while not stop.is_set() or not rounds:
            assert torch.equal(tiny_model(images), expected)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(3) as pool:
        users = [pool.submit(use) for _ in range(2)]
        tracers = [pool.submit(prepare, copy.deepcopy(tiny_model)) for _ in range(10)]
        try:
            results = [tracer.result() for tracer in tracers]
        finally:
            stop.set()
        assert all(user.result() > 0 for user in users)
    assert nn.Module.__call__.__name__ != "module_call_wrapper"
    assert all(torch.allclose(result(images), expected, atol=1e-5) for result in results)


# Against Captum's own calls, on a network that is written as Captum wants it.


def captum_call(name: str, model: nn.Module, layer: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    mask = grid(x, CHEAP.get(name, {}).get("side", 8))
    match name:
        case "saliency":
            return attr.Saliency(model).attribute(x, target=t, abs=False)
        case "input-x-gradient":
            return attr.InputXGradient(model).attribute(x, target=t)
        case "integrated-gradients":
            return attr.IntegratedGradients(model).attribute(x, target=t, n_steps=8)
        case "guided-backprop":
            return attr.GuidedBackprop(model).attribute(x, target=t)
        case "deconvolution":
            return attr.Deconvolution(model).attribute(x, target=t)
        case "deep-lift":
            return attr.DeepLift(model).attribute(x, target=t)
        case "grad-cam":
            coarse = attr.LayerGradCam(model, layer).attribute(x, target=t)
            return attr.LayerAttribution.interpolate(coarse, (16, 16), "bilinear").expand_as(x)
        case "guided-grad-cam":
            return attr.GuidedGradCam(model, layer).attribute(x, target=t, interpolate_mode="bilinear")
        case "occlusion":
            return attr.Occlusion(model).attribute(x, (3, 4, 4), strides=(3, 2, 2), target=t)
        case "feature-ablation":
            return attr.FeatureAblation(model).attribute(x, target=t, feature_mask=mask)
    raise KeyError(name)


@pytest.mark.parametrize(
    "name", [name for name in ATTRIBUTIONS if not ATTRIBUTIONS[name].random and name != "lrp"]
)
@pytest.mark.parametrize("which", ["plain_model", "functional"])
def test_maps_equal_captums_own_call_where_that_is_right(name, which, images, targets, request):
    model = request.getfixturevalue(which)
    twin = Modular(model).eval() if which == "functional" else model
    layer = twin.conv3 if which == "functional" else twin.conv2
    expected = captum_call(name, twin, layer, images.clone(), targets).detach()
    maps = explain(model, cheap(name), images, targets)
    assert torch.allclose(maps, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["smooth-grad", "gradient-shap", "kernel-shap", "lime"])
def test_random_methods_equal_captums_own_call_with_the_same_random_numbers(
    name, plain_model, images, targets, monkeypatch
):
    import numpy
    from captum._utils.models.linear_model import SkLearnLasso

    x, t = images[:1], targets[:1]
    spread = (x.max() - x.min()).item()
    mask = grid(x, 3)
    torch.manual_seed(7)
    match name:
        case "smooth-grad":
            tunnel = attr.NoiseTunnel(attr.Saliency(plain_model))
            expected = tunnel.attribute(
                x, nt_samples=6, nt_samples_batch_size=6, stdevs=0.15 * spread, target=t, abs=False
            )
        case "gradient-shap":
            monkeypatch.setattr(numpy.random, "uniform", lambda low, high, n: torch.rand(n).numpy())
            expected = attr.GradientShap(plain_model).attribute(
                x, torch.zeros_like(x), n_samples=6, stdevs=0.05 * spread, target=t
            )
        case "kernel-shap":
            expected = attr.KernelShap(plain_model).attribute(x, target=t, feature_mask=mask, n_samples=40)
        case "lime":
            lime = attr.Lime(plain_model, interpretable_model=SkLearnLasso(alpha=0.001))
            expected = lime.attribute(x, target=t, feature_mask=mask, n_samples=40)
    maps = explain(plain_model, cheap(name), x, t, seed=7)
    assert torch.allclose(maps, expected.detach(), rtol=1e-3, atol=1e-4 * expected.abs().max().item())


# Completeness.


@pytest.mark.parametrize("name", [name for name in ATTRIBUTIONS if ATTRIBUTIONS[name].complete])
@pytest.mark.parametrize("which", ["tiny_model", "plain_model", "functional"])
def test_methods_that_promise_completeness_add_up(name, which, images, targets, request):
    model = request.getfixturevalue(which)
    settings = {
        "integrated-gradients": {"steps": 200},
        "gradient-shap": {"samples": 500, "noise": 0.0},
        "lrp": {"rule": "alpha1-beta0"},
    }
    method = ATTRIBUTIONS[name](**CHEAP.get(name, {}) | settings.get(name, {}))
    maps = explain(model, method, images, targets)
    result = completeness(model, method, images, targets, maps)
    allowed = {"integrated-gradients": 0.02, "gradient-shap": 0.2, "lrp": 0.05}.get(name, 1e-3)
    assert result.error < allowed
    expected = model(images).gather(1, targets[:, None])[:, 0]
    if name != "lrp":
        expected = expected - model(torch.zeros_like(images)).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(result.promised.float(), expected.detach(), atol=1e-4)


def test_completeness_is_none_where_nothing_is_promised(tiny_model, images, targets):
    assert completeness(tiny_model, cheap("saliency"), images, targets, images) is None


def test_completeness_notices_a_map_that_does_not_add_up(tiny_model, images, targets):
    method = cheap("deep-lift")
    maps = explain(tiny_model, method, images, targets)
    assert completeness(tiny_model, method, images, targets, 2 * maps).error == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "resnet18"])
def test_deep_lift_adds_up_on_networks_with_in_place_relus_relu6_and_overlapping_pools(name):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    x, t = torch.randn(1, 3, 64, 64), torch.tensor([7])
    method = cheap("deep-lift")
    maps = explain(model.eval(), method, x, t)
    assert completeness(model, method, x, t, maps).error < 1e-3


def test_integrated_gradients_of_a_quadratic_are_known_by_hand():
    class Quadratic(nn.Module):
        """f(x) = sum of x^2 for class 0, 3 x1 for class 1: IG is x^2, and 3 x1."""

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return torch.stack([(flat**2).sum(1), 3 * flat[:, 0]], dim=1)

    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    maps = explain(Quadratic(), ATTRIBUTIONS["integrated-gradients"](), x, torch.tensor([0, 1]))
    assert torch.allclose(maps[0], x[0] ** 2, atol=1e-4)
    assert torch.allclose(maps[1].flatten(), torch.tensor([3.0, 0, 0, 0]), atol=1e-4)


# Layer-wise relevance propagation.


def alpha_beta(a: Tensor, weight: Tensor, relevance: Tensor, alpha: float, beta: float) -> Tensor:
    """Bach et al., equation 60, for one image and one linear layer, written out: R_i from R_j."""
    z = weight * a  # (O, I), the contribution of input i to output j
    positive, negative = z.clamp(min=0), z.clamp(max=0)
    positive, negative = (part / part.sum(1, keepdim=True) for part in (positive, negative))
    return relevance @ (alpha * positive.nan_to_num(0) - beta * negative.nan_to_num(0))  # no part: no share


@pytest.mark.parametrize(("rule", "alpha", "beta"), [("alpha2-beta1", 2, 1), ("alpha1-beta0", 1, 0)])
def test_lrp_equals_its_matrix_form(rule, alpha, beta):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    net = net.double()
    x = torch.randn(1, 3, 2, 2)
    first, second, last = (net[i] for i in (1, 3, 5))
    a0 = x.double().flatten(1)[0]
    a1 = first(a0).relu()
    a2 = second(a1).relu()
    target = int(last(a2).argmax())
    z = last.weight[target] * a2
    relevance = z / z.sum() * last(a2)[target]  # epsilon rule without bias
    relevance = alpha_beta(a1, second.weight, relevance, alpha, beta)
    relevance = alpha_beta(a0, first.weight, relevance, alpha, beta)
    maps = explain(net.float(), ATTRIBUTIONS["lrp"](rule=rule), x, torch.tensor([target]))
    assert torch.allclose(maps.flatten().double(), relevance, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rule", ["alpha2-beta1", "alpha1-beta0"])
def test_lrp_conserves_relevance_on_resnet20(rule):
    torch.manual_seed(0)
    model = MODELS["resnet20"]().build((3, 32, 32), 10)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(16, 3, 32, 32))
    x, t = torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 5, 9])
    method = ATTRIBUTIONS["lrp"](rule=rule)
    maps = explain(model.eval(), method, x, t)
    assert completeness(model, method, x, t, maps).error < 1e-3


def test_lrp_refuses_what_it_has_no_rule_for(images, targets):
    gelu = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(784, 4)).eval()
    with pytest.raises(UnsupportedModelError, match="lrp: there is no relevance rule for GELU"):
        explain(gelu, cheap("lrp"), images, targets)
    with pytest.raises(UnsupportedModelError, match=r"lrp: .*cannot be traced"):
        explain(Untraceable(nn.ReLU()).eval(), cheap("lrp"), images, targets)
    with pytest.raises(UnsupportedModelError, match="residual sum without a ReLU"):
        explain(LinearSum().eval(), cheap("lrp"), images, targets)


# Preparation.


def test_prepared_copies_compute_the_same_function(functional, images):
    twin = prepare(functional, images)
    assert torch.allclose(twin(images), functional(images), atol=1e-5)


def test_every_relu_of_a_prepared_copy_is_a_module_used_once_and_not_in_place(functional, images):
    twin = prepare(functional)
    relus = [m for m in twin.modules() if isinstance(m, nn.ReLU)]
    assert len(relus) == 4
    assert not any(m.inplace for m in relus)
    require_own_relus("test", twin, images[:1])
    with pytest.raises(UnsupportedModelError):
        require_own_relus("test", functional, images[:1])


def test_layers_keep_their_names_in_a_prepared_copy(tiny_model):
    names = [
        n for n, m in tiny_model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
    ]
    twin = prepare(tiny_model)
    assert all(type(twin.get_submodule(name)) is type(tiny_model.get_submodule(name)) for name in names)


def test_a_later_reader_of_an_in_place_result_still_sees_it():
    class Overwrites(nn.Module):
        """Pre-activation with an in-place ReLU: the shortcut carries the rectified signal."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            y = self.conv(self.relu(x))
            return (y + x).mean(dim=(2, 3))

    torch.manual_seed(0)
    model, x = Overwrites().eval(), torch.randn(2, 3, 6, 6)
    assert torch.allclose(prepare(model)(x), model(x.clone()), atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_overlapping_max_pools_are_unrolled_without_a_change(stride, ceil_mode):
    pool = nn.MaxPool2d(3, stride, padding=1, ceil_mode=ceil_mode)
    x = torch.randn(2, 4, 14, 13) - 5  # negative, so that padding would show
    assert torch.equal(prepare(nn.Sequential(pool))(x), pool(x))


def test_relu6_is_split_into_a_relu_and_a_ceiling():
    x = torch.linspace(-3, 9, 25).view(1, 1, 5, 5)
    twin = prepare(nn.Sequential(nn.ReLU6(inplace=True)))
    assert torch.equal(twin(x), F.relu6(x))
    assert sum(isinstance(m, nn.ReLU) for m in twin.modules()) == 1


@pytest.mark.parametrize("name", ["guided-backprop", "deconvolution", "deep-lift", "guided-grad-cam"])
def test_networks_that_cannot_be_traced_are_refused_if_a_functional_relu_remains(name, images, targets):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match=f"{name}: "):
        explain(Untraceable(None).eval(), cheap(name), images, targets)
    maps = explain(Untraceable(nn.ReLU(inplace=True)).eval(), cheap(name), images, targets)
    assert maps.abs().max() > 0
    assert explain(Untraceable(None).eval(), cheap("saliency"), images, targets).abs().max() > 0


@pytest.mark.parametrize("name", ["guided-backprop", "deconvolution", "guided-grad-cam"])
def test_guided_methods_refuse_rectifiers_without_a_rule(name, images, targets):
    def network(activation: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Flatten(), nn.Linear(784, 4)).eval()

    with pytest.raises(UnsupportedModelError, match="Hardswish"):
        explain(network(nn.Hardswish()), cheap(name), images, targets)
    with pytest.raises(UnsupportedModelError, match="none"):
        explain(network(nn.Identity()), cheap(name), images, targets)
    assert explain(network(nn.ReLU6()), cheap(name), images, targets).isfinite().all()


def test_a_network_is_rewritten_once_for_all_methods_and_again_when_a_weight_changes(
    tiny_model, images, targets, monkeypatch
):
    calls: list[int] = []
    monkeypatch.setattr(prepared, "rewrite", lambda *given: calls.append(1) or rewrite(*given))
    before = explain(tiny_model, cheap("saliency"), images, targets)
    for name in ATTRIBUTIONS:
        explain(tiny_model, cheap(name), images, targets)
    assert len(calls) == 1
    with torch.no_grad():
        tiny_model.conv1.weight.mul_(2)
    after = explain(tiny_model, cheap("saliency"), images, targets)
    assert len(calls) == 2
    assert not torch.allclose(before, after)


def test_an_error_inside_a_method_leaves_no_hooked_copy_behind(tiny_model, images, targets):
    def stop(progress) -> None:
        raise KeyboardInterrupt

    expected = explain(tiny_model, cheap("guided-backprop"), images, targets)
    with pytest.raises(KeyboardInterrupt):
        explain(tiny_model, cheap("guided-backprop"), images, targets, Run(on_progress=stop))
    assert torch.equal(explain(tiny_model, cheap("guided-backprop"), images, targets), expected)


# Bad input.


def test_images_whose_logits_are_not_finite_have_maps_of_nan(method, tiny_model, images, targets):
    images[1] = torch.nan
    maps = explain(tiny_model, method, images, targets)
    assert maps[1].isnan().all()
    assert maps[[0, 2]].isfinite().all()


def test_no_images_give_no_maps(method, tiny_model, images, targets):
    assert explain(tiny_model, method, images[:0], targets[:0]).shape == (0, 3, 16, 16)


def test_wrong_targets_and_shapes_are_refused(tiny_model, images, targets):
    saliency = cheap("saliency")
    with pytest.raises(ParameterError, match=r"saliency: targets must lie in \[0, 3\]"):
        explain(tiny_model, saliency, images, targets + 4)
    with pytest.raises(ParameterError, match="one target each"):
        explain(tiny_model, saliency, images, targets[:2])


def test_grad_cam_needs_a_convolution_that_exists(tiny_model, images, targets):
    mlp = MODELS["mlp"]().build((3, 16, 16), 4).eval()
    with pytest.raises(UnsupportedModelError, match="grad-cam: needs a convolution"):
        explain(mlp, cheap("grad-cam"), images, targets)
    with pytest.raises(ParameterError, match=r"grad-cam: layer must lie in \[1, 7\]"):
        explain(tiny_model, ATTRIBUTIONS["grad-cam"](layer=99), images, targets)


# Baselines and superpixels.


def test_baselines_show_nothing_of_the_picture(images):
    assert not baseline(images, "mean").any()
    dark = baseline(images, "dark")
    assert torch.equal(dark[1, 2], images[1, 2].min().expand(16, 16))
    assert baseline(images, "blur").std() < 0.3 * images.std()


@pytest.mark.parametrize(("size", "side"), [((16, 16), 4), ((7, 10), 3), ((4, 4), 8)])
def test_superpixels_cover_the_picture_in_a_grid(size, side):
    numbers = grid(torch.zeros(1, 1, *size), side)[0, 0]
    rows, columns = (min(side, length) for length in size)
    assert numbers.unique().tolist() == list(range(rows * columns))
    assert numbers.flatten().bincount().max() <= -(-size[0] // rows) * -(-size[1] // columns)


def test_the_sum_over_superpixels_counts_each_once():
    images = torch.zeros(1, 3, 7, 10)
    values = torch.randn(9)
    maps = values[grid(images, 3)].expand(1, 3, 7, 10)
    assert sum_over_superpixels(maps, 3).item() == pytest.approx(values.sum().item(), abs=1e-5)
