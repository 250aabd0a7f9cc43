"""How few of its weights carry a neuron: indices of sparsity, how many to keep, and what the rest can do.

Weights are (..., K): the last dimension holds the weights of one neuron, or of whatever else is looked at
as one group, and all groups are answered at once, in float64. Where some weights are gone, `keep` (..., K)
is True for those that are left, and d counts only them. A group without a nonzero weight has no index
(NaN) and keeps nothing.
"""

from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from core.errors import ParameterError, UnsupportedModelError
from core.layers import PRUNABLE, private_copy
from core.preparation import fold, rewrite

ROUNDING = 1e-9  # relative; what lies this close to a whole number is that number
LARGEST_RATIO = 0.9  # of a neuron's weights that the index rule takes at most


def lq_norm(weights: Tensor, q: float) -> Tensor:
    """(sum |w|^q)^(1/q): a norm where q >= 1, and below that a measure that favours few large weights.

    Raises:
        ParameterError: q is not above 0.
    """
    if not q > 0:
        raise ParameterError(f"l_q norm: q must be above 0, got {q:g}")
    sizes = weights.double().abs()
    largest = sizes.amax(-1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
    return largest.squeeze(-1) * (sizes / largest).pow(q).sum(-1).pow(1 / q)


def sparsity_index(weights: Tensor, q: float) -> Tensor:
    """||w||_1 / ||w||_q, in [d^(1 - 1/q), 1]: 1 for a single nonzero weight, least where all are equal.

    Raises:
        ParameterError: q does not lie between 0 and 1.
    """
    _require_below_one(q)
    return lq_norm(weights, 1) / lq_norm(weights, q)


def pq_index(weights: Tensor, p: float, q: float, keep: Tensor | None = None) -> Tensor:
    """1 - d^(1/q - 1/p) ||w||_p / ||w||_q, in [0, 1 - d^(1/q - 1/p)]: 0 where all are equal in size.

    Scale does not matter, nor whether every weight is there once or twice.

    Raises:
        ParameterError: p does not lie between 0 and q, or `keep` is no mask of these weights.
    """
    if not 0 < p < q:
        raise ParameterError(f"PQ index: p must lie between 0 and q, got p {p:g} and q {q:g}")
    keep = _mask(weights, keep)
    left = weights * keep
    return 1 - keep.sum(-1).double().pow(1 / q - 1 / p) * lq_norm(left, p) / lq_norm(left, q)


def gini(weights: Tensor, keep: Tensor | None = None) -> Tensor:
    """How unequal the sizes are: 0 where all are equal, 1 - 1/d for a single nonzero weight.

    Source: Hurley and Rickard, "Comparing Measures of Sparsity", IEEE Transactions on Information
    Theory 55, 2009, arXiv:0811.4706.
    """
    keep = _mask(weights, keep)
    sizes = (weights.double().abs() * keep).sort().values  # what is gone comes first, as zeros
    count = keep.sum(-1, keepdim=True).double()
    place = torch.arange(1, sizes.shape[-1] + 1, device=sizes.device) - sizes.shape[-1] + count  # 1 ... d
    shares = sizes / sizes.sum(-1, keepdim=True)
    return 1 - 2 * (shares * (count - place + 0.5) / count).sum(-1)


# How many weights to keep.


def stechkin(q: float) -> float:
    """The least C for which all but the m largest weights sum to at most C m^(1 - 1/q) ||w||_q, always.

    Raises:
        ParameterError: q does not lie between 0 and 1.
    """
    _require_below_one(q)
    return q * (1 - q) ** (1 / q - 1)


def tail_shares(weights: Tensor) -> Tensor:
    """(..., K + 1): the share of ||w||_1 that all but the m largest have, m = 0 ... K; zeros for zeros."""
    sums = F.pad(weights.double().abs().sort().values.cumsum(-1), (1, 0)).flip(-1)
    return (sums / sums[..., :1]).nan_to_num()


def keep_exact(shares: Tensor, tolerance: float) -> Tensor:
    """The fewest weights whose tail has at most `tolerance` of ||w||_1, from the `tail_shares`; int64."""
    above = (shares > tolerance * (1 + ROUNDING)).sum(-1)
    return above.maximum((shares[..., 0] > 0).long())


def keep_bound(index: Tensor, counts: Tensor, q: float, tolerance: float) -> Tensor:
    """The same as far as Stechkin's bound knows it, from the `sparsity_index`; never fewer, int64.

    `counts` are the nonzero weights: no group keeps more, and none but an empty one keeps nothing.
    """
    least = (stechkin(q) / (tolerance * index)).pow(q / (1 - q)).ceil()
    return least.nan_to_num(0).clamp(min=1).minimum(counts.double()).long()


def keep_index(index: Tensor, counts: Tensor, q: float, strength: float) -> Tensor:
    """What stays where each group loses `strength` times the share that its index calls superfluous.

    `counts` are the nonzero weights; at most 90 % of them go. int64.
    """
    superfluous = 1 - index.pow(-q / (1 - q)) / counts
    gone = counts * (strength * superfluous).clamp(0, LARGEST_RATIO)
    return counts - (gone.nan_to_num(0) + ROUNDING).floor().long()


def keep_pq(weights: Tensor, p: float, q: float, slack: float = 0.0, keep: Tensor | None = None) -> Tensor:
    """The least number r of weights that can have all but `slack` of what counts, by the PQ index.

    No r weights leave out less than `slack` times their own sum of |w|^p unless r is at least
    d (1 + slack)^(-q / (q - p)) (1 - I)^(pq / (q - p)). A real number, in [1, d] where slack is 0.

    Raises:
        ParameterError: p does not lie between 0 and q, slack is below 0, or `keep` is no mask.
    """
    if not slack >= 0:
        raise ParameterError(f"PQ index: slack must be at least 0, got {slack:g}")
    even = 1 - pq_index(weights, p, q, keep)
    count = _mask(weights, keep).sum(-1).double()
    return count * (1 + slack) ** (-q / (q - p)) * even.pow(p * q / (q - p))


def largest(weights: Tensor, counts: Tensor, keep: Tensor | None = None) -> Tensor:
    """The mask (..., K) of the `counts` largest sizes of every group among those left; ties by position."""
    keep = _mask(weights, keep)
    order = weights.abs().masked_fill(~keep, -1).argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(order.shape[-1], device=order.device) < counts[..., None]
    return torch.zeros_like(keep).scatter_(-1, order, first) & keep


def _require_below_one(q: float) -> None:
    if not 0 < q < 1:
        raise ParameterError(f"sparsity index: q must lie between 0 and 1, got {q:g}")


def _mask(weights: Tensor, keep: Tensor | None) -> Tensor:
    """`keep`, or that everything is kept."""
    if keep is None:
        return torch.ones_like(weights, dtype=torch.bool)
    if keep.dtype != torch.bool or keep.shape != weights.shape:
        raise ParameterError(
            f"mask: must be true or false for weights {tuple(weights.shape)}, "
            f"got {str(keep.dtype).removeprefix('torch.')} {tuple(keep.shape)}"
        )
    return keep


# What the whole network can do.

# Of one input, without weights, and |f(a) - f(b)| <= f(|a - b|).
_GENTLE = (
    nn.ReLU, nn.ReLU6, nn.Identity, nn.Dropout, nn.Flatten,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
)  # fmt: skip


@torch.no_grad()
def output_changes(before: nn.Module, after: nn.Module, images: Tensor) -> pd.DataFrame:
    """How far each layer's outputs move on `images` (N, C, H, W) at most: measured, and by a bound.

    One row per convolution and linear layer: layer, measured, bound. With W' the weights after, R
    what they lack of those before, B the largest |input| over the images, all entrywise and with
    batch norm folded, the bound grows from layer to layer as e <- |W'| e + |R| B (+ |change of
    the bias|), and ReLU and pooling do not enlarge it. It holds for any masks, and for any other
    weights.

    Raises:
        UnsupportedModelError: the networks are not one chain of such layers, or not the same chain.
    """
    old, new = _chain(before), _chain(after)
    if [(name, repr(layer)) for name, layer in old] != [(name, repr(layer)) for name, layer in new]:
        raise UnsupportedModelError("output bound: the networks must have equal layers, got different ones")
    was = now = images.double()
    error, rows = torch.zeros_like(was[:1]), []
    for (name, layer), (_, pruned) in zip(old, new, strict=True):
        if isinstance(layer, PRUNABLE):
            change = (layer.weight - pruned.weight).abs()
            error = _linear(layer, error, pruned.weight.abs())
            error += _linear(layer, was.abs().amax(0, keepdim=True), change)
            if layer.bias is not None:
                shift = (layer.bias - pruned.bias).abs()
                error += shift if isinstance(layer, nn.Linear) else shift.view(-1, *[1] * (error.dim() - 2))
        else:
            error = layer(error)
        was, now = layer(was), pruned(now)
        if isinstance(layer, PRUNABLE):
            measured = (was - now).abs().max().item()
            rows.append({"layer": name, "measured": measured, "bound": error.max().item()})
    return pd.DataFrame(rows)


def _chain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of `model` with their names, which read each the one before; batch norm folded, float64."""
    network = fold(rewrite(private_copy(model).double()))
    nodes = list(network.graph.nodes) if isinstance(network, fx.GraphModule) else []
    layers = [(n.target, network.get_submodule(n.target)) for n in nodes if n.op == "call_module"]
    straight = all(node.all_input_nodes == [last] for last, node in pairwise(nodes))
    kinds = {type(layer).__name__ for _, layer in layers if not isinstance(layer, (*PRUNABLE, *_GENTLE))}
    if kinds or not straight or len(layers) != len(nodes) - 2:
        got = ", ".join(sorted(kinds)) or "one that branches or calls functions"
        raise UnsupportedModelError(
            "output bound: the model must be one chain of convolutions and linear layers, ReLU and pooling, "
            f"got {got}"
        )
    return layers


def _linear(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """`layer` without bias and with another weight."""
    return F.linear(x, weight) if isinstance(layer, nn.Linear) else layer._conv_forward(x, weight, None)
