"""Where two networks look, and how far they agree."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to load, and `--help` needs none of it
    from torch import nn

    from core.attribution import AttributionMethod
    from core.bundles import Split
    from core.run import Run


@dataclass(frozen=True)
class Looked:
    """Attribution maps of two networks on the same pictures, and how far they agree."""

    agreement: dict[str, dict[str, Any]]  # attribution method -> means, per image, and their bounds
    maps: dict[str, Any]  # array name -> array, as written to .npz


def look(
    before: "nn.Module",
    after: "nn.Module",
    pictures: "Split",
    chosen: list[int],
    methods: "dict[str, AttributionMethod]",
    target: str,
    seed: int,
    progress: "Run",
    bounds: bool = True,
) -> Looked:
    """Explain `chosen` pictures by both networks, for the same classes.

    The bounds, in which an agreement is read: the original against itself under noise, and against
    its architecture with random weights.
    """
    import torch

    from core.agreement import agreement, noise_ceiling, random_floor
    from core.attribution import explain
    from core.evaluation import logits

    taken = pictures.take(torch.tensor(chosen))
    targets = logits(before, taken).argmax(1) if target == "predicted" else taken.labels
    agreements: dict[str, dict[str, Any]] = {}
    maps: dict[str, Any] = {"images": chosen, "labels": taken.labels.numpy(), "targets": targets.numpy()}
    for name, method in methods.items():
        pair = [explain(m, method, taken.images, targets, progress, seed) for m in (before, after)]
        maps[f"{name}.before"], maps[f"{name}.after"] = (m.numpy() for m in pair)
        agreed = agreement(*pair)
        agreements[name] = {
            "mean": agreed.means(),
            "compared": agreed.compared,
            "per_image": {measure: getattr(agreed, measure) for measure in agreed.metrics()},
            "states": {"before": agreed.before, "after": agreed.after},
        }
        if bounds:
            ends = {"noise_ceiling": noise_ceiling, "random_floor": random_floor}
            for end, measure in ends.items():
                agreements[name][end] = measure(before, method, taken.images, targets, progress, seed).means()
    return Looked(agreements, maps)
