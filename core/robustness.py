"""Is the compressed network still provably robust? Original and compressed side by side, picture by picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn

from core.bundles import Split
from core.evaluation import wilson
from core.proving.proof import Reuse
from core.run import Run
from core.verification import PROPERTIES, Property, Verdict

Check = Property  # one that tells of its classes: `core.properties.robustness`


@dataclass(frozen=True, eq=False)
class Comparison:
    """One picture, one radius: the original, the compressed network with the original's proof, and without."""

    original: Verdict
    compressed: Verdict
    scratch: Verdict | None = None

    @property
    def reuse(self) -> Reuse | None:
        """What became of the original's proof, over all classes; None where nothing was to be reused."""
        parts = [answer.reuse for answer in self.compressed.answers.values() if answer.reuse is not None]
        if not parts:
            return None
        names = Reuse.__dataclass_fields__
        return Reuse(**{name: sum(getattr(part, name) for part in parts) for name in names})

    @property
    def speed_up(self) -> float | None:
        """Seconds from scratch for every second with the old proof."""
        return None if self.scratch is None else self.scratch.seconds / self.compressed.seconds


def compare(
    check: Check, original: nn.Module, compressed: nn.Module, picture: Split, run: Run, scratch: bool = False
) -> Comparison:
    """Prove `original`, then `compressed` with what the first proof left; and without, if `scratch`."""
    parts = 3 if scratch else 2
    with run.step(0, parts):
        first = check.check(original, picture, run)
    with run.step(1, parts):
        second = check.check(compressed, picture, run, first.proof)
    if not scratch:
        return Comparison(first, second)
    with run.step(2, parts):
        return Comparison(first, second, check.check(compressed, picture, run))


def certified(
    check: Check, networks: dict[str, nn.Module], pictures: Split, radii: Sequence[float], run: Run
) -> pd.DataFrame:
    """Row by network and radius: how many pictures are proved, refuted, unknown; n, share proved, interval.

    Networks after the first are helped by its proofs. A picture that was not proved at a radius is not
    asked about at a larger one: what is refuted stays refuted, and what is unknown is counted as unknown.
    """
    names, radii = list(networks), sorted(radii)
    found: dict[tuple[str, float], list[str]] = {(name, r): [] for name in names for r in radii}
    asked = [pictures.take(slice(i, i + 1)) for i in range(len(pictures))]
    for picture in run.track(asked, "Proving"):
        last = dict.fromkeys(names, "proved")
        for radius in radii:
            proof = None
            for name in names:
                if last[name] == "proved":
                    verdict = replace(check, radius=radius).check(networks[name], picture, run, proof)
                    last[name] = verdict.status
                    proof = proof or verdict.proof
                found[name, radius].append(last[name])
    return pd.DataFrame([_row(name, radius, said) for (name, radius), said in found.items()])


def _row(name: str, radius: float, said: list[str]) -> dict[str, object]:
    proved = said.count("proved")
    low, high = wilson(proved, len(said))
    return {
        "network": name,
        "radius": radius,
        "n": len(said),
        "proved": proved,
        "refuted": said.count("refuted"),
        "unknown": said.count("unknown"),
        "certified": proved / len(said),
        "low": low,
        "high": high,
    }
