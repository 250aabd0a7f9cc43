"""Accuracy that is certified: of how many pictures is the answer proved, at which radius?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import nn

from core.bundles import Split
from core.certificate import NETWORKS
from core.evaluation import wilson
from core.run import Run
from core.verification import Property

STATUSES = ("proved", "refuted", "unknown")


def certify_many(
    check: Property,
    networks: Sequence[nn.Module],
    pictures: Split,
    radii: Sequence[float],
    run: Run,
) -> None:
    """Record for every picture, network and radius whether it is proved, refuted or unknown.

    Networks after the first are helped by its proofs. What was not proved at a radius is not asked about
    at larger ones and counts as before: what is refuted stays so, and what is unknown was not shown.
    A run that is stopped keeps whole pictures; `standing` counts them.
    """
    for index in run.track(range(len(pictures)), "Certifying"):
        picture, rows = pictures.take(slice(index, index + 1)), []
        last = ["proved"] * len(networks)
        for radius in sorted(radii):
            proof = None
            for number, network in enumerate(networks):
                if last[number] == "proved":
                    verdict = replace(check, radius=radius).check(network, picture, run, proof)
                    last[number], proof = verdict.status, proof or verdict.proof
                said = {status: int(last[number] == status) for status in STATUSES}
                rows.append({"picture": index, "network": number, "radius": radius, **said})
        for row in rows:
            run.record(**row)


def standing(rows: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """Row by network and radius of what `certify_many` recorded: counts, share proved with its interval."""
    table = pd.DataFrame([row for row in rows if "radius" in row])
    if table.empty:
        return table
    found = table.groupby(["network", "radius"])[list(STATUSES)].sum().astype(int).reset_index()
    found["n"] = found[list(STATUSES)].sum(axis=1)
    found["network"] = [NETWORKS[int(index)] for index in found.network]
    found["certified"] = found.proved / found.n
    ends = [wilson(row.proved, row.n) for row in found.itertuples()]
    return found.assign(low=[low for low, _ in ends], high=[high for _, high in ends])


def drawn(count: int, most: int) -> list[int]:
    """Positions of at most `most` of `count` pictures, always the same ones, at random."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(order[:most].tolist())
