"""Proofs by cutting the box of inputs to pieces: for networks with few inputs.

A box whose margins have a positive lower bound is done; another one is cut in two, along the input to which
its bound's shortfall is due most. The pieces that were enough are a proof, and for a network that differs a
little most of them still are.

Source: Wang et al., "Formal Security Analysis of Neural Networks using Symbolic Intervals" (ReluVal), USENIX
Security 2018, arXiv:1804.10829; reuse: Ugare et al., "Incremental Verification of Neural Networks", PLDI
2023, arXiv:2304.01874, in whose sense the boxes are the leaves of the old search.
"""

import torch
from torch import Tensor

from core.proving.lines import causes, lines, relaxations, shares_of
from core.proving.proof import Answer, Proof, Reuse, inside
from core.proving.question import TOLERANCE, Deadline, Question

BATCH = 192  # boxes at once
MOST_KEPT = 1_000_000  # boxes of a proof that is kept
SMALL = 1e-4  # of the question's box: what is smaller, and has next to no margin in the middle, is given up
TRIED = 4  # points of a batch from which a counterexample is looked for further downhill
STEPS = 12
STARTS, MOST_STARTS = 100, 20_000  # random points for every round so far, whenever their number has doubled


def split(question: Question, deadline: Deadline, old: Proof | None = None) -> Answer:
    """Whether some margin is positive all over the box, by splitting it; "unknown" when time is over.

    With `old`, the boxes of an earlier proof are where it starts: those that hold on this network are done.

    Raises:
        ParameterError: `old` is about something else, as a smaller box.
    """
    if old is not None:
        old.require_about(question)
    search = _Search(question, deadline)
    search.begin(old)
    while search.pending and not deadline.over and search.counterexample is None:
        deadline.tell(search.words)
        search.round()
    return search.answer()


class _Search:
    def __init__(self, question: Question, deadline: Deadline) -> None:
        self._question, self._deadline = question, deadline
        self.pending: list[tuple[Tensor, ...]] = []  # low, high (B, I), bound (B,), is of the old proof (B,)
        self.counterexample: Tensor | None = None
        self._done: list[tuple[Tensor, Tensor]] = []
        self._bound = torch.inf
        self._stuck = 0
        self._rounds = 0
        self._random = torch.Generator().manual_seed(0)
        self._counts = {"boxes": 0, "proved": 0, "old": 0, "valid": 0, "broken": 0}

    @property
    def words(self) -> str:
        return f"{self._counts['proved']:,} boxes proved, {sum(len(p[0]) for p in self.pending):,} left"

    def begin(self, old: Proof | None) -> None:
        low, high = self._question.low[None], self._question.high[None]
        lows, highs, mine = low, high, torch.zeros(1, dtype=torch.bool)
        if old is not None and old.boxes is not None:
            lows, highs, mine = cover(old.question.low, old.question.high, old.boxes)
            keep = (torch.maximum(lows, low) <= torch.minimum(highs, high)).all(1)
            mine = mine[keep]
            lows, highs = inside(low[0], high[0], (lows, highs))
        self._counts["old"] = int(mine.sum())
        self.pending.append((lows, highs, torch.full((len(lows),), -torch.inf, dtype=torch.float64), mine))

    def round(self) -> None:
        """Bound some boxes; cut those that have no positive bound."""
        self._rounds += 1
        low, high, _, mine = self._next()
        network = self._question.network
        relaxed = relaxations(network, low, high)
        found = lines(network, relaxed, len(low))
        least = found.least(low, high)
        shares = shares_of(found, low, high)
        mixed = lines(network, relaxed, len(low), shares) if network.outputs > 1 else found
        margin = torch.maximum(least.max(1).values, mixed.least(low, high)[:, 0])
        proved = margin > TOLERANCE
        self._count(low, high, margin, proved, mine)
        if not proved.all():
            due = causes(network, relaxed, shares)
            self._cut(*(part[~proved] for part in (low, high, margin, mixed.slopes[:, 0], due)))

    def _next(self) -> tuple[Tensor, ...]:
        taken, count = [], 0
        while self.pending and count < BATCH:
            part = self.pending.pop()
            if (room := BATCH - count) < len(part[0]):
                self.pending.append(tuple(side[:-room] for side in part))
                part = tuple(side[-room:] for side in part)
            taken.append(part)
            count += len(part[0])
        return tuple(torch.cat(sides) for sides in zip(*taken, strict=True))

    def _count(self, low: Tensor, high: Tensor, margin: Tensor, proved: Tensor, mine: Tensor) -> None:
        counts = self._counts
        counts["boxes"] += len(low)
        counts["valid"] += int((proved & mine).sum())
        counts["broken"] += int((~proved & mine).sum())
        if proved.any():
            self._bound = min(self._bound, margin[proved].min().item())
            counts["proved"] += int(proved.sum())
            if counts["proved"] <= MOST_KEPT:
                self._done.append((low[proved], high[proved]))

    def _cut(self, low: Tensor, high: Tensor, margin: Tensor, slopes: Tensor, due: Tensor) -> None:
        """Halve every box along the input that the bound's shortfall is due to most."""
        self._try(low, high, slopes)
        axis = torch.where(high > low, due, -1.0).argmax(1, keepdim=True)
        middle = (low.gather(1, axis) + high.gather(1, axis)) / 2
        uncut = ((middle <= low.gather(1, axis)) | (middle >= high.gather(1, axis)))[:, 0]
        reach = self._question.high - self._question.low
        small = ((high - low) <= SMALL * reach).all(1)
        stuck = uncut | (small & (self._question.margin((low + high) / 2) <= TOLERANCE))
        if stuck.any():
            self._stuck += int(stuck.sum())
            self._bound = min(self._bound, margin[stuck].min().item())
            low, high, margin, axis, middle = (part[~stuck] for part in (low, high, margin, axis, middle))
        order = margin.argsort(descending=True)  # the worst is taken up first
        low, high, margin, axis, middle = (part[order] for part in (low, high, margin, axis, middle))
        lows = torch.stack([low, low.scatter(1, axis, middle)], 1).flatten(0, 1)
        highs = torch.stack([high.scatter(1, axis, middle), high], 1).flatten(0, 1)
        mine = torch.zeros(len(lows), dtype=torch.bool)
        if len(lows):
            self.pending.append((lows, highs, margin.repeat_interleave(2), mine))

    def _try(self, low: Tensor, high: Tensor, slopes: Tensor) -> None:
        """Look for a counterexample in middles, in corners downhill, and downhill from the best of them."""
        question = self._question
        middle = (low + high) / 2
        points = torch.cat([middle, torch.where(slopes > 0, low, high)])
        values, uphill = self._uphill(points)
        self._look(points, values)
        corners = torch.where(uphill[: len(low)] > 0, low, high)
        self._look(corners, question.margin(corners))
        if self.counterexample is None:
            self._descend(points[values.argsort()[:TRIED]], 0.1)
        if self.counterexample is None and self._rounds.bit_count() == 1 and self._rounds >= 4:
            count = min(STARTS * self._rounds, MOST_STARTS)
            random = torch.rand(count, len(question.low), dtype=torch.float64, generator=self._random)
            self._descend(question.low + (question.high - question.low) * random, 0.3)

    def _descend(self, x: Tensor, size: float) -> None:
        """Steps downhill within the question's box, of falling size."""
        question = self._question
        reach = question.high - question.low
        for step in range(STEPS):
            values, uphill = self._uphill(x)
            if self._look(x, values):
                return
            scaled = uphill * reach
            scaled = scaled / scaled.abs().amax(1, keepdim=True).clamp(min=1e-300)
            x = (x - scaled * reach * (size * 0.75**step)).clamp(min=question.low, max=question.high)

    def _uphill(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Margins (N,) and their gradients (N, I)."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            values = self._question.margin(x)
            (uphill,) = torch.autograd.grad(values.sum(), x)
        return values.detach(), uphill

    def _look(self, points: Tensor, values: Tensor) -> bool:
        """Keep a counterexample among the points."""
        for index in (values <= 0).nonzero()[:, 0].tolist():
            if self.counterexample is None and self._question.violated_by(points[index]):
                self.counterexample = points[index].clone()
        return self.counterexample is not None

    def answer(self) -> Answer:
        question, counts = self._question, self._counts
        work = {"boxes": counts["boxes"], "bounds": counts["boxes"]}
        boxes = None
        if self._done and counts["proved"] <= MOST_KEPT:
            boxes = tuple(torch.cat(side) for side in zip(*self._done, strict=True))
        new = counts["proved"] - counts["valid"]
        unchecked = counts["old"] - counts["valid"] - counts["broken"]
        reuse = (
            Reuse(counts["old"], 0, counts["valid"], counts["broken"], unchecked, new)
            if counts["old"]
            else None
        )
        proof = Proof(question, boxes=boxes, counterexample=self.counterexample)
        spent = self._deadline.spent
        if self.counterexample is not None:
            bound = question.margin(self.counterexample[None]).item()
            return Answer("refuted", spent, bound, self.counterexample, proof, reuse, work)
        bound = min([self._bound, *(part[2].min().item() for part in self.pending)])
        if self.pending:
            return Answer("unknown", spent, bound, None, proof, reuse, work, "time is over")
        if self._stuck:
            reason = f"the smallest margin lies within {TOLERANCE:g} of 0"
            return Answer("unknown", spent, bound, None, proof, reuse, work, reason)
        return Answer("proved", spent, bound, None, proof, reuse, work)


def cover(low: Tensor, high: Tensor, boxes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that cover the box (I,) for certain, whatever `boxes` are; (B,) bool says which are of them.

    `boxes` come from cutting in the middle, again and again. The cuts are found once more, level by level: a
    box is cut where that goes through none of those inside it. What cannot be cut so, or has none of them
    inside, is taken whole.
    """
    lows, highs = low[None], high[None]  # of the nodes of a level
    leaf_low, leaf_high = inside(low, high, boxes)
    node = torch.zeros(len(leaf_low), dtype=torch.long)  # in which node each of `boxes` lies
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(lows):
        whole = ((leaf_low <= lows[node]) & (leaf_high >= highs[node])).all(1)
        settled = torch.zeros(len(lows), dtype=torch.bool)
        settled[node[whole]] = True
        found.append((lows[settled], highs[settled], torch.ones(int(settled.sum()), dtype=torch.bool)))
        middle = (lows + highs) / 2
        through = ((leaf_low < middle[node]) & (leaf_high > middle[node])).double()
        crossed = torch.zeros_like(lows).index_add_(0, node, through)
        held = torch.bincount(node, minlength=len(lows))
        can = (crossed == 0) & (lows < middle) & (middle < highs) & (held > 0)[:, None]
        cut = can.any(1) & ~settled
        rest = ~cut & ~settled
        found.append((lows[rest], highs[rest], torch.zeros(int(rest.sum()), dtype=torch.bool)))
        axis = can.double().argmax(1)
        number = torch.cumsum(cut, 0) - 1
        keep = cut[node]
        leaf_low, leaf_high, node = leaf_low[keep], leaf_high[keep], node[keep]
        rows = torch.arange(len(node))
        upper = leaf_low[rows, axis[node]] >= middle[node, axis[node]]
        lows, highs, axis, middle = lows[cut], highs[cut], axis[cut][:, None], middle[cut]
        at = middle.gather(1, axis)
        node = 2 * number[node] + upper
        lows, highs = (
            torch.stack([lows, lows.scatter(1, axis, at)], 1).flatten(0, 1),
            torch.stack([highs.scatter(1, axis, at), highs], 1).flatten(0, 1),
        )
    return tuple(torch.cat(side) for side in zip(*found, strict=True))
