"""What a plan brings in fact: the network as it was, with zeros, with its channels gone, timed in turns."""

from dataclasses import dataclass

import pandas as pd
from torch import Tensor, nn

from core.cost import cost, latency
from core.errors import UnsupportedModelError
from core.plan import Plan
from core.sliders import Sliders
from core.steps import blanked

ORIGINAL, ZEROS, REMOVED = "original", "zeros only", "removed"


@dataclass(frozen=True, eq=False)
class Realised:
    """Multiply-adds on paper beside milliseconds in fact."""

    table: pd.DataFrame  # a row per form: name, macs, median_ms, low_ms, high_ms, batch, threads
    why: str  # there is no removed form; empty where there is one


def realised(sliders: Sliders, plan: Plan, images: Tensor, rounds: int = 7) -> Realised:
    """Time the forms of `plan` on one batch `images` (N, C, H, W), in turns.

    `macs` are those of one picture that no zero weight takes part in: what is left to do on paper.
    """
    networks, why = forms(sliders, plan)
    table = latency(networks, images, rounds)
    macs = [cost(network, images[:1]).theoretical_macs for network in networks.values()]
    table.insert(1, "macs", macs)
    return Realised(table, why)


def forms(sliders: Sliders, plan: Plan) -> tuple[dict[str, nn.Module], str]:
    """The original, `plan` as zeros in the old shapes, the smaller network; and why that one is missing."""
    original = sliders.model(Plan())
    found = {ORIGINAL: original, ZEROS: blanked(original, sliders.masks(plan))}
    try:
        found[REMOVED] = sliders.model(removal(sliders, plan))
    except UnsupportedModelError as error:
        return found, str(error)
    return found, ""


def removal(sliders: Sliders, plan: Plan) -> Plan:
    """The plan that removes as many filters as `plan` sets to zero.

    Channels leave a network with all the layers that share them, so these must lose equal shares.

    Raises:
        UnsupportedModelError: there is no such plan.
    """
    if plan.question == "remove":
        return plan
    if plan.question == "weights":
        raise UnsupportedModelError(
            "removal: whole filters must go, got single zeros, which leave every channel in place"
        )
    shares = {}
    for group in sliders.sliders("remove"):
        asked = {layer: plan.sparsity(layer) for layer in group.layers}
        if len(set(asked.values())) > 1:
            (one, most), (other, least) = (pick(asked.items(), key=lambda at: at[1]) for pick in (max, min))
            raise UnsupportedModelError(
                "removal: layers that share their channels must lose equal shares, "
                f"got {most:.0%} in {one} and {least:.0%} in {other}"
            )
        shares[group.name] = asked[group.layers[0]]
    return Plan("remove", plan.criterion, shares)
