"""Kernel spectrum: what the classifier gets to see, as the eigenvalues of its inputs' kernel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from core.bundles import Setting, Split
from core.conjugate import alignment, conjugate_kernel, overlaps, relative_distance
from core.diagnosis import DIAGNOSTICS, Diagnostic
from core.errors import UnsupportedModelError
from core.figure import Figure
from core.layers import private_copy, prunable, require_prunable
from core.method import number
from core.run import Run

BATCH = 250  # pictures in one forward pass


@DIAGNOSTICS.register
@dataclass(frozen=True)
class KernelSpectrum(Diagnostic):
    """How pictures relate to each other just before the classifier: eigenvalues, before and after.

    The conjugate kernel holds the inner product of every two pictures' last hidden features: what
    the layer that runs last reads, averaged over positions where it is a convolution. Features are
    centred over the pictures and divided by the root of their number, so that the kernels of a
    narrower network stay comparable. A row is an eigenvalue, largest first; `overlap` says how far
    the spaces of the largest so many eigenvectors agree, 1 for equal. Four numbers of the pair as a
    whole are repeated in every row: the distance of the kernels in operator and Frobenius norm,
    relative to the kernel before; `cka`, which is 1 where one is a multiple of the other; and the
    number of pictures. What is not defined, for features that are all the same, is NaN.

    Source: Gu et al., "'Lossless' Compression of Deep Neural Networks", NeurIPS 2022,
    arXiv:2403.00258 (conjugate kernel and its spectrum); Kornblith et al., "Similarity of Neural
    Network Representations Revisited", ICML 2019, arXiv:1905.00414, section 3 (CKA).
    """

    name: ClassVar[str] = "kernel-spectrum"

    images: int = number(500, 2, 2000, 1, help="Validation pictures, the first ones")

    def measure(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> pd.DataFrame:
        split = setting.validation.take(slice(0, self.images))
        kernels = []
        for model in run.track((before, after), "Comparing kernels"):
            features = last_features(model, split, run).double()
            kernels.append(conjugate_kernel(features - features.mean(0)))
        old, new = kernels
        known = old.any() and new.any()
        values = [torch.linalg.eigvalsh(kernel).flip(0).clamp(min=0) for kernel in kernels]
        return pd.DataFrame(
            {
                "index": range(1, len(old) + 1),
                "before": values[0].tolist(),
                "after": values[1].tolist(),
                "overlap": overlaps(old, new, len(old)).tolist() if known else float("nan"),
                "distance_operator": relative_distance(old, new) if old.any() else float("nan"),
                "distance_frobenius": relative_distance(old, new, "frobenius") if old.any() else float("nan"),
                "cka": alignment(old, new),
                "pictures": len(old),
            }
        )

    def figures(self, table: pd.DataFrame) -> Sequence[Figure]:
        first = table.iloc[0]
        shown = table.melt(["index"], ["before", "after"], "network", "eigenvalue")
        shown = shown[shown.eigenvalue > 1e-6 * max(first.before, first.after)]
        if shown.empty:
            return ()  # both networks give the same features for all pictures
        ranks = {name: _directions(table[name]) for name in ("before", "after")}
        words = f"The variance lies in {ranks['before']:.1f} directions before and {ranks['after']:.1f} after"
        spectrum = Figure(
            "Spectrum of the last features",
            f"{words} (participation ratio); the kernels differ by {first.distance_operator:.0%} in operator "
            f"norm, and their CKA is {first.cka:.3f}, from {first.pictures:.0f} pictures.",
            shown,
            "index",
            "eigenvalue",
            colour="network",
            log=frozenset({"index", "eigenvalue"}),
        )
        top = table[table["index"] <= min(50, len(table))]
        if top.overlap.isna().all():
            return (spectrum,)
        tenth = table.iloc[min(10, len(table)) - 1]
        overlap = Figure(
            "Agreement of the leading directions",
            f"The top {tenth['index']:.0f} eigenvectors before and after span spaces that overlap by "
            f"{tenth.overlap:.1%}; the first ones by {first.overlap:.1%}.",
            top,
            "index",
            "overlap",
            percent=frozenset({"overlap"}),
            labels={"index": "number of leading eigenvectors"},
        )
        return (spectrum, overlap)


def _directions(values: pd.Series) -> float:
    """How many equal eigenvalues would be as spread out as these: (sum)^2 / sum of squares."""
    total = (values**2).sum()
    return values.sum() ** 2 / total if total else 0.0


@torch.no_grad()
def last_features(model: nn.Module, split: Split, run: Run) -> Tensor:
    """(N, I) on the CPU: what enters the layer that runs last, averaged over positions where it has any."""
    require_prunable(model)
    network = private_copy(model, run.device)
    entered: list[Tensor] = []
    for layer in prunable(network).values():
        layer.register_forward_pre_hook(lambda layer, args: entered.append(args[0]))
    parts = []
    for images, _ in split.batches(BATCH):
        entered.clear()
        network(images.to(run.device))
        if not entered:
            raise UnsupportedModelError("kernel-spectrum: the model must use a layer, got one that uses none")
        features = entered[-1].cpu()
        if features.dim() == 4:
            features = features.mean((2, 3))
        parts.append(features.flatten(1))
    return torch.cat(parts)
