"""Where feature maps are found, and that what is tapped is what flows."""

import pytest
import torch
from tiny import TinyResNet, plain_network
from torch import nn

from core.layers import apply_mask
from core.taps import feature_layers, tapped


def test_the_last_module_of_every_size_is_found_in_order():
    images = torch.rand(2, 3, 16, 16)
    assert feature_layers(TinyResNet(), images) == ["layer1", "layer2"]
    assert feature_layers(plain_network(), images) == ["relu1", "relu2"]


def test_a_single_pixel_is_no_map_and_a_network_of_vectors_has_none():
    images = torch.rand(1, 3, 4, 4)
    network = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    assert feature_layers(network, images) == ["1"]
    assert feature_layers(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), images) == []


def test_masks_are_no_feature_maps():
    network, images = TinyResNet(), torch.rand(2, 3, 16, 16)
    for layer in (network.conv1, network.layer2[1].conv2):
        apply_mask(layer, torch.ones_like(layer.weight, dtype=torch.bool))
    assert feature_layers(network, images) == ["layer1", "layer2"]


def test_finding_leaves_modes_statistics_and_hooks_alone():
    network = TinyResNet().train()
    network.bn1.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    feature_layers(network, torch.rand(2, 3, 16, 16))
    assert network.training
    assert not network.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_what_is_tapped_is_in_the_graph_and_nothing_stays_behind():
    network, images = TinyResNet(), torch.rand(2, 3, 16, 16)
    with tapped(network, ["layer1", "layer2"]) as seen:
        logits = network(images)
        assert seen["layer1"].shape == (2, 8, 16, 16)
        slope = torch.autograd.grad(logits.sum(), seen["layer2"])[0]
    assert torch.allclose(network.linear(network.pool(seen["layer2"]).flatten(1)), logits)
    assert torch.allclose(slope[0, :, 0, 0], network.linear.weight.sum(0) / 64, atol=1e-6)
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(AttributeError), tapped(network, ["nowhere"]):
        pass
