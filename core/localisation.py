"""Do attributions lie on the object? For data with masks of it."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from core.agreement import ranks, state
from core.attribution import channel_sum
from core.cost import Metric, metric
from core.errors import ParameterError


@dataclass(frozen=True, eq=False)
class Localisation:
    """Of N maps against N masks. NaN where there is no answer: see `excluded` and `dead`."""

    auc: Tensor = metric(
        "AUC",
        ".3f",
        "higher",
        "Probability that a pixel of the object is stronger than one outside; 0.5 is chance",
    )
    pointing_game: Tensor = metric(
        "Pointing game", ".1%", "higher", "Share of images whose strongest pixel lies on the object"
    )
    mass_inside: Tensor = metric(
        "Mass inside",
        ".1%",
        "higher",
        "Share of the map's magnitude on the object; compare with the object's area",
    )
    area: Tensor = metric(
        "Object area", ".1%", "neither", "Share of the picture that the object takes: what a blind map scores"
    )
    excluded: int  # images whose mask is empty or full, for which the question makes no sense
    dead: int  # further images whose map is zero or not finite

    @classmethod
    def metrics(cls) -> dict[str, Metric]:
        """Measure -> how it is shown."""
        return {f.name: f.metadata["metric"] for f in fields(cls) if "metric" in f.metadata}

    def means(self) -> dict[str, float]:
        """Measure -> mean over the images that have an answer; NaN if there is none."""
        return {name: getattr(self, name).nanmean().item() for name in self.metrics()}


def localisation(maps: Tensor, masks: Tensor) -> Localisation:
    """Compare maps (N, C, H, W) with masks (N, H, W), True on the object.

    The strength of a pixel is the magnitude of the channel sum: evidence for or against the class is
    a look at that pixel either way. A constant map is chance: AUC 0.5.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016,
    arXiv:1608.00507, section 4.2 (pointing game); Arras, Osman and Samek, "CLEVR-XAI", Information
    Fusion 2022, arXiv:2003.07258, section 3 (mass inside).
    """
    if maps.dim() != 4 or masks.shape != (maps.shape[0], *maps.shape[2:]):
        raise ParameterError(
            f"localisation: masks must be (N, H, W) of maps (N, C, H, W), got {tuple(masks.shape)} "
            f"and {tuple(maps.shape)}"
        )
    strength = channel_sum(maps.double()).abs().flatten(1)  # (N, H W)
    inside = masks.bool().flatten(1)
    counts = inside.sum(dim=1)
    excluded = (counts == 0) | (counts == inside.shape[1])
    gone = torch.tensor([state(m) in ("zero", "not finite") for m in maps], dtype=torch.bool)
    peaks = strength == strength.amax(dim=1, keepdim=True)

    def settle(values: Tensor, blank: Tensor) -> Tensor:
        return values.double().masked_fill(blank, torch.nan)

    blank = excluded | gone
    return Localisation(
        auc=settle(_auc(strength, inside), blank),
        pointing_game=settle((peaks & inside).sum(1) / peaks.sum(1), blank),
        mass_inside=settle((strength * inside).sum(1) / strength.sum(1), blank),
        area=settle(counts / inside.shape[1], blank),
        excluded=int(excluded.sum()),
        dead=int((gone & ~excluded).sum()),
    )


def _auc(strength: Tensor, inside: Tensor) -> Tensor:
    """Area under the ROC curve, row by row, from rank sums; ties count half."""
    n_in = inside.sum(dim=1).double()
    n_out = inside.shape[1] - n_in
    return ((ranks(strength) * inside).sum(dim=1) - n_in * (n_in + 1) / 2) / (n_in * n_out)
