"""N:M sparsity against a loop over blocks, PyTorch's sparsifier and its 2:4 compression."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import vary
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from core.bundles import Setting
from core.criteria.filter_l1 import FilterL1
from core.errors import ParameterError
from core.layers import prunable
from core.methods.semi_structured import SemiStructured, block_mask
from core.recipe import Recipe, compress


@pytest.fixture
def network():
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 18, 3, groups=2),
    ]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 64), nn.ReLU(), nn.Linear(64, 32)]
    return vary(nn.Sequential(*convolutions, *head)).eval()


def pruned(network, tiny_data, **parameters):
    setting = Setting(tiny_data.train, tiny_data.validation, network)
    return compress(network, setting, Recipe((SemiStructured(**parameters),))).model


def by_loops(scores, kept, block):
    """The mask of (O, I, H, W): per filter and position, blocks of input channels one after another."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    filters, inputs, height, width = scores.shape
    for o in range(filters):
        for h in range(height):
            for w in range(width):
                for start in range(0, inputs, block):
                    places = range(start, min(start + block, inputs))
                    best = sorted(places, key=lambda i: (scores[o, i, h, w].item(), i))[-kept:]
                    for i in best:
                        mask[o, i, h, w] = True
    return mask


@given(
    st.integers(1, 3),
    st.integers(1, 11),
    st.sampled_from([(2, 4), (1, 2), (1, 4), (6, 8), (4, 16)]),
    st.integers(0, 99),
)
def test_the_mask_is_that_of_the_loop_for_every_number_of_inputs(filters, inputs, pattern, seed):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (filters, inputs, 2, 1), generator=random).float()  # with ties
    assert torch.equal(block_mask(scores, *pattern), by_loops(scores, *pattern))


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_linear_layers_lose_what_pytorchs_sparsifier_takes(network, tiny_data, pattern):
    kept, block = map(int, pattern.split(":"))
    model = pruned(network, tiny_data, pattern=pattern)
    sparsifier = WeightNormSparsifier(1.0, (1, block), zeros_per_block=block - kept)
    sparsifier.prepare(network, [{"tensor_fqn": "9.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    assert torch.equal(model[9].weight, network[9].weight)


def test_a_2_to_4_weight_survives_pytorchs_compressed_form(network, tiny_data):
    weight = pruned(network, tiny_data)[9].weight.detach().half()  # (32, 64)
    compressed, places = sparse_semi_structured_from_dense_cutlass(weight)
    assert compressed.shape == (32, 32)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(compressed, places), weight)


@pytest.mark.parametrize("pattern", SemiStructured.domains()["pattern"].options)
def test_no_block_of_any_layer_keeps_more_than_n(network, tiny_data, pattern):
    kept, block = map(int, pattern.split(":"))
    for layer in prunable(pruned(network, tiny_data, pattern=pattern)).values():
        for part in (layer.weight != 0).movedim(1, -1).split(block, dim=-1):
            assert (part.sum(-1) == min(kept, part.shape[-1])).all()


def test_three_input_channels_are_a_short_block_that_keeps_two(network, tiny_data):
    model = pruned(network, tiny_data, pattern="2:4")
    assert ((model[0].weight != 0).sum(1) == 2).all()
    assert torch.equal(pruned(network, tiny_data, pattern="4:8")[0].weight, network[0].weight)


def test_a_depthwise_convolution_has_one_input_and_stays(tiny_data):
    model = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(588, 4))
    after = pruned(model, tiny_data, pattern="2:4")
    assert torch.equal(after[0].weight, model[0].weight)
    assert (after[3].weight == 0).float().mean() == 0.5


def test_a_criterion_of_filters_is_refused():
    with pytest.raises(
        ParameterError, match="semi-structured: criterion must score single weights, got filter-l1"
    ):
        SemiStructured(criterion=FilterL1())
