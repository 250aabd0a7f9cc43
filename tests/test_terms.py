"""The formula that a browser evaluates while a slider moves, against networks that are really cut."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_whatif import data, engine  # noqa: F401 (fixtures)
from tiny import CLASSES, SIDE, TinyResNet, plain_network, vary
from torch import nn

from core.bundles import MODELS
from core.layers import prunable
from core.plan import QUESTIONS, Plan


class Joined(nn.Module):
    """A concatenation whose two halves come from different layers, read by one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 10, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(14)
        self.after = nn.Conv2d(14, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.norm(torch.cat([self.left(x), self.right(x)], 1)).relu()
        return self.head(self.after(x).relu().mean((2, 3)))


NETWORKS = {
    "tiny-resnet": TinyResNet,
    "plain": plain_network,
    "joined": Joined,
    "mobilenetv2": lambda: MODELS["mobilenetv2"]().build((3, SIDE, SIDE), CLASSES),
    "resnet20": lambda: MODELS["resnet20"]().build((3, SIDE, SIDE), CLASSES),
}
_engines: dict = {}


def engine_of(name: str, data):  # noqa: F811
    if name not in _engines:
        torch.manual_seed(0)
        model = vary(NETWORKS[name]()).eval().requires_grad_(False)
        _engines[name] = engine(model, data, data.test.take(slice(0, 4)))
    return _engines[name]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10_000))
def test_terms_add_up_to_the_cost_of_the_compressed_network(name, question, data, seed):  # noqa: F811
    whatif, random = engine_of(name, data), torch.Generator().manual_seed(seed)
    sliders = whatif.sliders(question)
    levels = {
        slider.name: round(torch.rand(1, generator=random).item(), 2)
        for slider in sliders
        if torch.rand(1, generator=random) < 0.6
    }
    plan = Plan(question, None, levels)
    kept = [
        slider.kept(question, plan.sparsity(slider.name)) / slider.entries(question) for slider in sliders
    ]
    weights = macs = 0.0
    for term in whatif.cost_terms(question):
        share = 1.0
        for slider in term.sliders:
            share *= kept[slider]
        weights += term.weights * share
        macs += term.macs * share
    cost, network = whatif.cost(plan), whatif.model(plan)
    if question == "remove":
        assert weights == pytest.approx(cost.parameters)
        assert macs == pytest.approx(cost.macs)
    else:
        assert weights == pytest.approx(
            sum(int(m.weight.count_nonzero()) for m in prunable(network).values())
        )
        assert macs == pytest.approx(cost.theoretical_macs)


def test_equal_products_are_one_term(data):  # noqa: F811
    terms = engine_of("resnet20", data).cost_terms("remove")
    assert len({term.sliders for term in terms}) == len(terms)
    assert len(terms) < 60
