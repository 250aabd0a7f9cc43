"""Learning from another network's feature maps: factors, attention and hints.

Maps are (N, C, H, W). Teacher and student are compared where their maps have the same H and W; their
channels need not have anything to do with each other.

Source: Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer",
NeurIPS 2018, arXiv:1802.04977; Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017,
arXiv:1612.03928.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.bundles import Split
from core.cost import twin
from core.distillation import divergence, task_loss
from core.errors import UnsupportedModelError
from core.figure import Figure
from core.method import number
from core.run import Run
from core.taps import feature_layers, tapped
from core.training import Task

Outer = Literal["l1", "l2"]
Pair = tuple[str, str]  # layer of the teacher, layer of the student

REFERENCE = 2048  # numbers in a picture's factors for which the published weight was chosen
WATCHED = 500  # validation pictures on which maps are judged
BATCH = 250  # pictures in one forward pass without gradients


# --------------------------------------------------------------------------------------- the teacher


def share_field(default: float) -> Any:
    """How much of the supervision comes from the teacher's answers."""
    return number(default, 0.0, 1.0, 0.01, help="Share of the teacher's answers, the rest is for the labels")


def temperature_field() -> Any:
    return number(4.0, 1.0, 20.0, 0.5, help="What logits are divided by, so that small answers are heard too")


def shared_layers(who: str, teacher: nn.Module, student: nn.Module, images: Tensor) -> list[Pair]:
    """The layers that give both networks' last feature maps of every size that both have, in order.

    Raises:
        UnsupportedModelError: there is no such size.
    """
    by_size = [_layer_by_size(network, images) for network in (teacher, student)]
    pairs = [(layer, by_size[1][size]) for size, layer in by_size[0].items() if size in by_size[1]]
    if not pairs:
        found = [sorted(sizes, reverse=True) for sizes in by_size]
        raise UnsupportedModelError(
            f"{who}: the model must have feature maps of a size that the original has too, "
            f"got {found[1]} where the original has {found[0]}"
        )
    return pairs


def _layer_by_size(network: nn.Module, images: Tensor) -> dict[tuple[int, int], str]:
    network = twin(network).eval()
    names = feature_layers(network, images)
    every = maps_of(network, names, images)
    return {tuple(maps.shape[2:]): name for name, maps in zip(names, every, strict=True)}


@torch.no_grad()
def maps_of(network: nn.Module, layers: Sequence[str], images: Tensor) -> list[Tensor]:
    """What `layers` give for `images`, with the network in the mode it is in."""
    with tapped(network, layers) as seen:
        network(images)
    return [seen[layer] for layer in layers]


def features(network: nn.Module, layer: str, split: Split, run: Run) -> Tensor:
    """The maps (N, C, H, W) of all pictures of `split`; `network` is in eval mode."""
    batches = split.pixels.split(BATCH)
    parts = [
        maps_of(network, [layer], split.normalise(pixels).to(run.device))[0]
        for pixels in run.track(batches, "Looking at pictures")
    ]
    return torch.cat(parts)


class Taught(Task):
    """Labels, a teacher's answers and, in subclasses, its feature maps: all in one loss."""

    def __init__(
        self,
        teacher: nn.Module,
        *,
        share: float,
        temperature: float,
        smoothing: float,
        pairs: Sequence[Pair] = (),
        weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.teacher = teacher.to(memory_format=torch.channels_last)
        self.pairs, self.weight = pairs, weight
        self._mixing = {"share": share, "temperature": temperature, "smoothing": smoothing}

    def distance(self, taught: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        """How far the student's maps are from the teacher's, one of each for every pair: a scalar."""
        raise NotImplementedError

    def terms(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        theirs, ours = ([pair[side] for pair in self.pairs] for side in (0, 1))
        with torch.no_grad(), tapped(self.teacher, theirs) as given:
            answers = self.teacher(images)
        with tapped(model, ours) as made:
            logits = model(images)
        supervised = task_loss(logits, answers, labels, **self._mixing)
        apart = divergence(logits.detach(), answers, self._mixing["temperature"]).mean()
        if not self.pairs:
            return {"loss": supervised, "divergence": apart}
        pull = self.weight * self.distance([given[n] for n in theirs], [made[n] for n in ours])
        return {
            "loss": supervised + pull,
            "supervised": supervised.detach(),
            "transfer": pull.detach(),
            "divergence": apart,
        }


# ---------------------------------------------------------------------------------- what is compared


def directions(maps: Tensor) -> Tensor:
    """All numbers of a picture (N, C, H, W) as one vector of length 1, (N, D); zeros stay zeros."""
    return F.normalize(maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32)), eps=1e-12)


def factor_distance(first: Tensor, second: Tensor, norm: Outer = "l1") -> Tensor:
    """Mean over pictures and numbers of |u - v| (l1) or (u - v)^2 (l2), u and v the `directions`.

    At most 2 / sqrt(D) for l1 and 4 / D for l2, D the numbers of one picture.
    """
    gap = directions(first) - directions(second)
    return (gap.abs() if norm == "l1" else gap.square()).mean()


def factor_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Of every picture's factors, (N,)."""
    return (directions(first) * directions(second)).sum(1)


def attention(maps: Tensor, power: float = 2.0) -> Tensor:
    """Where the channels of (N, C, H, W) are strong: mean of |a|^power over them, of length 1, (N, H W)."""
    return directions(maps.abs().pow(power).mean(1, keepdim=True))


def strongest(maps: Tensor, count: int) -> list[int]:
    """The channels of maps (1, C, H, W) with the largest mean square, strongest first."""
    power = maps.square().mean((0, 2, 3))
    return power.topk(min(count, len(power))).indices.tolist()


def heat(title: str, finding: str, panels: Mapping[str, Tensor]) -> Figure:
    """Up to six maps (H, W) as pictures."""
    parts = []
    for panel, values in panels.items():
        table = pd.DataFrame(values.double().cpu().numpy()).rename_axis("row").reset_index()
        parts.append(table.melt("row", var_name="column", value_name="value").assign(panel=panel))
    return Figure(title, finding, pd.concat(parts), "column", "row", "heat", panel="panel", value="value")
