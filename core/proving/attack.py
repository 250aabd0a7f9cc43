"""Looking for counterexamples downhill: quick, and often enough."""

import torch
from torch import Tensor

from core.proving.question import Question

STARTS = 20
STEPS = 30


def attack(question: Question, starts: int = STARTS, steps: int = STEPS) -> Tensor | None:
    """A counterexample (I,), or None if none was found.

    Signed gradient steps of falling size from the middle of the box, its corner downhill and random
    points of it; random numbers are of a generator of its own, so that equal questions end alike.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
    arXiv:1706.06083.
    """
    low, high = question.low, question.high
    random = torch.Generator().manual_seed(0)
    x = low + (high - low) * torch.rand(starts, len(low), generator=random, dtype=torch.float64)
    x[0] = (low + high) / 2
    for step in range(steps + 1):
        x.requires_grad_(True)
        with torch.enable_grad():
            margin = question.margin(x)
            (slope,) = torch.autograd.grad(margin.sum(), x)
        found = (margin <= 0).nonzero()[:, 0].tolist()
        x = x.detach()
        for index in found:
            if question.violated_by(x[index]):
                return x[index].clone()
        size = (high - low) * (0.5 * (1 - step / (steps + 1)))
        x = (x - slope.sign() * size).clamp(min=low, max=high)
    return None
