"""Collapsed attribution maps, and how far those of two networks lie apart: what attribution matching trains.

A map is collapsed over the channels of one layer, so that networks of different width can be compared.
Maps of one picture are compared by their pattern alone, at unit length.

Source: Park, Yang, Hwang and Yang, "Attribution Preservation in Network Compression for Reliable Network
Interpretation", NeurIPS 2020, arXiv:2010.15054, and the authors' code.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ParameterError, UnsupportedModelError
from core.taps import feature_layers

Kind = Literal["EWA", "SWA", "SSWA"]
KINDS: tuple[Kind, ...] = ("EWA", "SWA", "SSWA")
SHORTEST = 1e-12  # length of a map below which it is not scaled to 1
ROUNDING = 1e-9  # 0.29 of 100 channels are 29


def tap_of(who: str, model: nn.Module, images: Tensor, tap: int) -> str:
    """The layer that gives the last feature map; with `tap` 2 that of the size before, as far as there are.

    Raises:
        UnsupportedModelError: `model` has no feature map.
    """
    layers = feature_layers(model, images)
    if not layers:
        raise UnsupportedModelError(
            f"{who}: the model must have feature maps of more than one pixel, got none"
        )
    return layers[-min(tap, len(layers))]


def view(
    model: nn.Module,
    layer: str,
    images: Tensor,
    kind: Kind,
    targets: Tensor | None = None,
    *,
    rate: float = 0.0,
    graph: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, K), classes (N,) and their maps (N, H, W) at the output of `layer`, for `images`.

    The class is the one `model` answers where `targets` names none. With `graph` the maps can be
    differentiated, the slopes in them too. `rate` is that of `drop_channels`. `model` may be frozen.
    """
    seen: list[Tensor] = []

    def open_up(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if not output.requires_grad:  # nothing before is trained: slopes begin here
            output = output.detach().requires_grad_().clone()  # a copy, which may be overwritten
        seen.append(output)
        return output

    handle = model.get_submodule(layer).register_forward_hook(open_up)
    try:
        with torch.enable_grad():
            logits = model(images)
            targets = logits.argmax(dim=1) if targets is None else targets
            channels, slopes = seen[-1], None
            if kind != "EWA":
                slopes = sensitivity(logits, channels, targets, graph=graph)
            maps = collapse(drop_channels(channels, rate).float(), kind, slopes)
    finally:
        handle.remove()
    return logits, targets, maps if graph else maps.detach()


def sensitivity(logits: Tensor, channels: Tensor, targets: Tensor, *, graph: bool = False) -> Tensor:
    """How much each channel raises the logit of `targets` (N,): summed slopes (N, C).

    `logits` (N, K) were computed from `channels` (N, C, H, W); only what lies between the two is
    traversed. With `graph` the slopes can be differentiated in their turn.

    Raises:
        UnsupportedModelError: the logits do not depend on `channels`.
    """
    if logits.requires_grad and channels.requires_grad:
        chosen = logits.gather(1, targets[:, None]).sum()
        (slopes,) = torch.autograd.grad(
            chosen, channels, create_graph=graph, retain_graph=True, allow_unused=True
        )
        if slopes is not None:
            return slopes.sum(dim=(2, 3))
    raise UnsupportedModelError(
        "attribution matching: the tapped layer must have a gradient from the class score, got none"
    )


def collapse(channels: Tensor, kind: Kind, slopes: Tensor | None = None) -> Tensor:
    """One map (N, H, W), nowhere negative, of `channels` (N, C, H, W).

    "EWA" is the mean square over the channels. "SWA" and "SSWA" add the channels up, weighted by
    `slopes` (N, C), the `sensitivity`, and keep what is positive; they differ in the channels that
    they are given (`drop_channels`).
    """
    if kind not in KINDS:
        raise ParameterError(f"collapse: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "EWA":
        return channels.square().mean(dim=1)
    if slopes is None or slopes.shape != channels.shape[:2]:
        got = None if slopes is None else tuple(slopes.shape)
        raise ParameterError(f"collapse: slopes must be {tuple(channels.shape[:2])} for {kind}, got {got}")
    return (slopes[:, :, None, None] * channels).sum(dim=1).relu()


def drop_channels(channels: Tensor, rate: float) -> Tensor:
    """`channels` (N, C, H, W) with floor(rate C) of them zero, the same for every picture, drawn anew.

    A rate that drops no channel draws no random number.
    """
    if not 0 <= rate < 1:
        raise ParameterError(f"drop_channels: rate must lie in [0, 1), got {rate}")
    count = int(rate * channels.shape[1] + ROUNDING)
    if not count:
        return channels
    gone = torch.randperm(channels.shape[1])[:count].to(channels.device)
    return channels.index_fill(1, gone, 0.0)


def cosine(teacher: Tensor, student: Tensor) -> Tensor:
    """Cosine (N,) of the maps (N, H, W), in [0, 1]; 0 where one of them is zero everywhere."""
    return (_unit(teacher) * _unit(student)).sum(dim=1)


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Half the squared distance (N,) of the maps (N, H, W) at unit length: 1 - cosine.

    It is 1/2, without a slope, where exactly one of the two is zero everywhere.
    """
    return (_unit(teacher) - _unit(student)).square().sum(dim=1) / 2


def _unit(maps: Tensor) -> Tensor:
    return F.normalize(maps.flatten(1), dim=1, eps=SHORTEST)


def dead(maps: Tensor) -> Tensor:
    """Which maps (N, H, W) are zero everywhere, (N,) bool: nothing speaks for the class."""
    return (maps == 0).flatten(1).all(dim=1)


def matching_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean `distance` over the pictures whose teacher map is alive; 0 where there is none.

    A picture whose teacher sees nothing gives no aim: it would only pull the student to nothing.
    """
    alive = ~dead(teacher)
    return (distance(teacher, student) * alive).sum() / alive.sum().clamp(min=1)


def published_weight(weight: float, positions: int) -> float:
    """The beta of the authors' code for which beta L_match is `weight` times the mean of 1 - cosine.

    Their L_match is the mean squared difference of unit maps over pictures and H W `positions`, so it
    is 2 (1 - cosine) / (H W), and one beta means another strength on every size of map.
    """
    return weight * positions / 2
