"""The game that the filters of a layer play: what a network is worth when only some of them are present.

An absent filter is silent, with its bias and the batch norm behind it (`surgery.silence`). Worth is a
mean over pictures, so a filter's Shapley value is the mean of its values in the games of single
pictures; these can have coalitions of their own, since the engine switches filters off picture by picture.
"""

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import shapley
from core.bundles import Split
from core.cost import layer_macs
from core.coupling import following_norms
from core.cutting import width_of
from core.engine import Engine
from core.errors import ParameterError
from core.evaluation import correct
from core.layers import private_copy, require_prunable
from core.run import Run

CHUNK = 50  # pictures that go through the network together, at most
CHUNK_MACS = 2.5e9  # ... and the multiply-adds that they take
PIECE_MACS = 2e10  # of one piece of work, between two looks at whether it is still wanted
PIECE = 256  # coalitions in one piece, at most

Worth = Callable[[Tensor, Tensor], Tensor]  # logits (M, K), labels (M,) -> what the answers are worth (M,)


def _minus_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(logits, labels, reduction="none")


WORTHS: dict[str, Worth] = {"accuracy": correct, "loss": _minus_loss}


class Coalitions:
    """One network and the N pictures on which coalitions of its filters are judged."""

    def __init__(
        self, model: nn.Module, split: Split, worth: str = "accuracy", run: Run | None = None
    ) -> None:
        """Runs `model` once over `split`; worth is the "accuracy", or the "loss" with its sign turned.

        Raises:
            ParameterError: there are no pictures.
        """
        if not len(split):
            raise ParameterError("shapley: there must be validation pictures, got none")
        network = private_copy(model)
        example = split.take(slice(0, 1)).images
        self.widths = {name: width_of(layer) for name, layer in require_prunable(network).items()}
        macs = layer_macs(network, example)
        self._tails = {name: sum(list(macs.values())[place:]) for place, name in enumerate(macs)}
        self._norms = following_norms(network, example)
        self._worth = WORTHS[worth]
        chunk = int(min(max(CHUNK_MACS // max(sum(macs.values()), 1), 1), CHUNK))
        with torch.no_grad():
            classes = network(example).shape[1]
        # float32 even where less is faster: which is, a race decides, and equal seeds are to give equal bits
        self._engine = Engine(network, split, classes, chunk, run or Run(), (torch.float32,))
        self._labels = self._engine.labels
        self._full = self._worth(self._engine.original[self._engine.order], self._labels).double()

    def work(self, layer: str) -> float:
        """Multiply-adds, roughly, that one order of the layer's filters takes for one picture."""
        return self.widths[layer] * self._tails[layer]

    def game(self, layer: str, run: Run | None = None) -> shapley.Game:
        """The game of the layer's filters on all pictures, each coalition played by all of them."""
        run = run or Run()

        def payoff(coalitions: Tensor) -> Tensor:
            total = torch.zeros(len(coalitions), dtype=torch.float64)
            played = self._play(
                layer,
                len(self._labels),
                len(coalitions),
                lambda rows, turns: coalitions[turns, None].expand(-1, len(rows), -1),
                run,
            )
            for _, turns, _, worth in played:
                total[turns] += worth.sum(1)
            return total / len(self._labels)

        return shapley.Game(payoff, self.widths[layer])

    def leave_one_out(self, layer: str, run: Run) -> Tensor:
        """What is lost when one filter alone is absent: (O,)."""
        alone = ~torch.eye(self.widths[layer], dtype=torch.bool)
        return self._full.mean() - self.game(layer, run)(alone)

    def permutation(self, layer: str, pairs: int, group: int, run: Run) -> tuple[Tensor, Tensor]:
        """Shapley value (O,) and standard error (O,), see `shapley.permutation`.

        Every pair of orders is played by `group` pictures, the next pair by the next pictures.
        """
        n, group = self.widths[layer], min(group, len(self._labels))
        ranks = shapley.paired_ranks(pairs, n).repeat_interleave(group, 0)  # (R, 2, O)
        worth = torch.empty(len(ranks), 2, n + 1, dtype=torch.float64)
        worth[:, :, 0], worth[:, :, n] = (ends[:, None] for ends in self._ends(layer, len(ranks)))
        direction = torch.arange(2).repeat_interleave(n - 1)
        gone = torch.arange(1, n).repeat(2)

        def coalitions(rows: Tensor, turns: Tensor) -> Tensor:
            return ranks[rows][:, direction[turns]].transpose(0, 1) >= gone[turns, None, None]

        for rows, turns, _, found in self._play(layer, len(ranks), len(gone), coalitions, run):
            worth[rows[:, None], direction[turns], gone[turns]] = found.T
        samples = shapley.gains(worth, ranks).mean(1)  # (R, O)
        return shapley.mean_and_error(samples.view(pairs, group, n).mean(1))

    def kernel(self, layer: str, rows: int, run: Run) -> Tensor:
        """Shapley value (O,), see `shapley.kernel`: each of `rows` pictures has O pairs of coalitions."""
        n = self.widths[layer]
        full, nothing = self._ends(layer, rows)
        moments, products = torch.zeros(n, n).double(), torch.zeros(n).double()

        def coalitions(rows: Tensor, turns: Tensor) -> Tensor:
            pairs = shapley.kernel_coalitions(len(turns) * len(rows), n)
            return pairs.transpose(0, 1).reshape(-1, len(rows), n)

        for here, _, some, worth in self._play(layer, rows, n if n > 1 else 0, coalitions, run):
            present = some.double()
            excess = worth - nothing[here] - present.mean(2) * (full - nothing)[here]
            moments += torch.einsum("tmi,tmj->ij", present, present)
            products += torch.einsum("tmi,tm->i", present, excess)
        return shapley.nearest_additive(moments, products) + (full - nothing).mean() / n

    def _ends(self, layer: str, rows: int) -> tuple[Tensor, Tensor]:
        """What the pictures of `rows` are worth with all filters of the layer, and with none: (R,) each."""
        nothing = torch.empty(rows, dtype=torch.float64)
        nobody = torch.zeros(1, 1, self.widths[layer], dtype=torch.bool)
        for here, _, _, worth in self._play(
            layer, rows, 1, lambda r, t: nobody.expand(-1, len(r), -1), Run()
        ):
            nothing[here] = worth[0]
        return self._full[torch.arange(rows) % len(self._full)], nothing

    def _play(
        self, layer: str, rows: int, turns: int, coalitions: Callable[[Tensor, Tensor], Tensor], run: Run
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(rows (m,), turns (t,), coalitions (T, m, O), worth (T, m)) until each of `rows` had all `turns`.

        Row r is played by the picture r mod N. `coalitions` says who is present in some turns of some rows.
        """
        size, count = self._engine.chunk, len(self._labels)
        together = int(min(max(PIECE_MACS // max(self._tails[layer] * size, 1), 1), PIECE))
        parts = [part for round_ in torch.arange(rows).split(count) for part in round_.split(size)]
        pieces = [(part, some) for part in parts for some in torch.arange(turns).split(together) if len(some)]
        waiting: deque[Tensor] = deque()

        def plays() -> Iterator[tuple[int, Tensor]]:
            for here, some in pieces:
                waiting.append(coalitions(here, some))
                first = int(here[0]) % count
                images = min(size, count - first)  # the last row may not need all images of a chunk
                yield first // size, F.pad(waiting[-1], (0, 0, 0, images - len(here)))

        modules = {layer, self._norms.get(layer, layer)}
        for number, logits in enumerate(self._engine.gated(modules, plays())):
            here, some = pieces[number]
            answers = logits[:, : len(here)].flatten(0, 1)
            labels = self._labels[here % count].repeat(len(logits))
            worth = self._worth(answers, labels).double().view(len(logits), -1)
            yield here, some, waiting.popleft(), worth
            run.report((number + 1) / len(pieces), f"Playing coalitions of {layer}")
