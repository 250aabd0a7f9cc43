"""Every method that can meet a sparsity, side by side on one network: what each keeps, and what it costs.

Those that train have a race of their own: they start from what pruning alone has left.

Results are lines of JSON in a file: the first says what was compared on what, every other one is a
network that was measured. A run that was stopped goes on where it was.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from core.agreement import agreement, noise_ceiling, random_floor
from core.attribution import ATTRIBUTIONS, explain
from core.bundles import DatasetBundle, ModelBundle, Setting
from core.criterion import Criterion, ScoreMemory
from core.errors import CheckpointError, UnsupportedModelError, UserError
from core.evaluation import evaluate, logits, wilson
from core.layers import digest
from core.localisation import localisation
from core.method import Choice, Nested, brief, from_dict
from core.recipe import COMPRESSORS, Compressor, Recipe, compress
from core.run import Run

FORMAT = 1
SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "leaderboards"
PRUNED = {"method": "prune-weights", "scope": "global"}  # what is trained again
LOOK = {"method": "integrated-gradients", "steps": 16}  # by which agreement is measured
AGREEMENT = ("spearman", "overlap")
LOCALISATION = ("auc", "pointing_game", "mass_inside")
COSTS = ("macs", "parameters", "nonzero_parameters", "zipped_bytes", "sparsity")


@dataclass(frozen=True)
class Contestant:
    """A method, and what else tells it from its like."""

    label: str
    step: Compressor  # has a sparsity
    after: Compressor | None = None  # trains what the step has left


def contestants(trained: bool = False) -> list[Contestant]:
    """Every method that has a sparsity to meet, with every option that it calls a variant.

    One-shot methods, or those that are `trained`: methods that train while they prune, and methods
    that have no sparsity of their own behind `PRUNED`, which then stands there alone, too.
    """
    found = []
    for name in COMPRESSORS:
        cls = COMPRESSORS[name]
        if cls.trains() is trained and "sparsity" in cls.domains():
            found += [Contestant(_label(cls, words), step) for words, step in _variants(cls())]
        elif trained and cls.trains() and "objective" in cls.variants:
            pruned = from_dict(COMPRESSORS, PRUNED)
            found += [Contestant(_label(cls, words), pruned, step) for words, step in _variants(cls())]
    return [Contestant("Pruned alone", from_dict(COMPRESSORS, PRUNED)), *found] if trained else found


def _label(cls: type[Compressor], words: Sequence[str]) -> str:
    return " · ".join([cls.label(), *words])


def _variants(step: Compressor) -> Iterable[tuple[list[str], Compressor]]:
    """(what sets it apart, the method) for every combination of the options it calls variants."""
    found: list[tuple[list[str], Compressor]] = [([], step)]
    for name in step.variants:
        match step.domains()[name]:
            case Nested(registry=registry):
                options = {registry[option].label(): option for option in registry}
            case Choice(options=options):
                options = {option: option for option in options}
        found = [
            ([*words, label], made)
            for words, each in found
            for label, option in options.items()
            if (made := _with(each, name, option)) is not None
        ]
    return found


def _with(step: Compressor, name: str, option: str) -> Compressor | None:
    """The method with that option, if the two go together: weights cannot be ranked by scores of filters."""
    try:
        return replace(step, **{name: option})
    except UserError:
        return None


@dataclass(eq=False)
class Leaderboard:
    """What was measured of one network, in a file."""

    path: Path
    about: dict[str, Any]  # model, data, n, the original's measures, what they lie between
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Leaderboard":
        """What a file holds; a last line that was cut short is left out.

        Raises:
            CheckpointError: it is no leaderboard.
        """
        try:
            whole = _whole_lines(path.read_text(encoding="utf-8"))
            about, *rows = map(json.loads, whole.splitlines())
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path.name}: must be a leaderboard, got {brief(str(error))}") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise CheckpointError(f"{path.name}: must be a leaderboard of format {FORMAT}, got another file")
        return cls(path, about, rows)

    @property
    def table(self) -> pd.DataFrame:
        """One row per network; accuracy's interval (Wilson) holds the pictures' chance, not the seeds'."""
        rows = [row | _interval(row) for row in self.rows if not row["refused"]]
        return pd.DataFrame(rows).drop(columns=["step", "after", "network", "refused"], errors="ignore")

    def standings(self) -> pd.DataFrame:
        """One row per contestant and sparsity: means over seeds, the interval around all of them."""
        if (table := self.table).empty:
            return table
        ways = dict.fromkeys(table.columns.difference(["contestant", "asked", "seed"]), "mean")
        ways |= {"low": "min", "high": "max", "seconds": "median"}
        whole = table.groupby(["contestant", "asked"], sort=False)
        found = whole.agg(ways).assign(seeds=whole.seed.nunique()).reset_index()
        return found.sort_values("asked", kind="stable", ignore_index=True)  # in the order of a curve

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more row, in the file at once."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def shipped() -> dict[str, Leaderboard]:
    """Key of the network ("resnet20--cifar10") -> the leaderboard that comes with the program."""
    return {path.stem: Leaderboard.read(path) for path in sorted(SHIPPED.glob("*.jsonl"))}


class Race:
    """Measures contestants on one network and writes them into a leaderboard."""

    def __init__(
        self, bundle: ModelBundle, data: DatasetBundle, path: Path, images: int, explained: int
    ) -> None:
        """Opens `path`, or begins it, for the first `images` test pictures, `explained` of them.

        Raises:
            CheckpointError: the file is of another network, or of other pictures.
        """
        self._bundle = bundle
        self._setting = Setting(data.train, data.validation, bundle.module)
        self._test = data.test.take(slice(images))
        self._seen = data.test.take(slice(explained))
        self._look = ATTRIBUTIONS[LOOK["method"]].from_dict(LOOK)
        self._targets = logits(bundle.module, self._seen).argmax(1)
        self._maps = self._explain(bundle.module, Run())
        self._memories: dict[tuple[Criterion, int], ScoreMemory] = {}
        about = self._about(data)
        if path.exists():
            self.board = Leaderboard.read(path)
            if differ := [key for key in about if self.board.about.get(key) != about[key]]:
                raise CheckpointError(f"{path.name}: must be of the same {', '.join(differ)}, got another")
            path.write_text(_whole_lines(path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            about |= {"original": self._measure(bundle.module, Run())} | self._bounds()
            self.board = Leaderboard(path, about)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(about) + "\n", encoding="utf-8")

    def go(
        self, entries: Sequence[Contestant], sparsities: Sequence[float], seeds: Sequence[int], run: Run
    ) -> None:
        """Measure what is not in the file yet."""
        done = {_key(row) for row in self.board.rows}
        asked = [
            (entry, replace(entry.step, sparsity=sparsity), sparsity, seed)
            for entry in entries
            for seed in seeds
            for sparsity in sparsities
        ]
        for entry, step, sparsity, seed in run.track(asked, "Comparing"):
            row = {"contestant": entry.label, "step": step.to_dict(), "asked": sparsity, "seed": seed}
            if entry.after:
                row["after"] = entry.after.to_dict()
            if _key(row) not in done:
                run.report(0.0, f"{entry.label} at {sparsity:.0%}, seed {seed}")
                self.board.add(row | self._result(step, entry.after, seed, run))

    def _result(self, step: Compressor, after: Compressor | None, seed: int, run: Run) -> dict[str, Any]:
        """What one recipe makes; of a network that was measured before, what was measured then."""
        try:
            with run.step(0, 2):
                network, seconds = self._compress(step, after, seed, run)
        except UnsupportedModelError as error:
            return {"refused": str(error), "network": ""}
        found = {"refused": "", "network": digest(network), "seconds": seconds}
        known_rows = (row for row in self.board.rows if row["network"] == found["network"])
        if (twin := next(known_rows, None)) is not None:
            return {name: value for name, value in twin.items() if name not in _WHO} | found
        with run.step(1, 2):
            return self._measure(network, run) | found

    def _compress(
        self, step: Compressor, after: Compressor | None, seed: int, run: Run
    ) -> tuple[nn.Module, float]:
        """The compressed network, and the seconds it took; scores are computed once for all sparsities."""
        memory = ScoreMemory()
        if "criterion" in step.variants:
            memory = self._memories.setdefault((step.criterion, seed), memory)
            step = replace(step, criterion=memory.behind(step.criterion))
        start, spent = time.perf_counter(), memory.seconds
        recipe = Recipe((step, after) if after else (step,), seed)
        made = compress(self._bundle.module, self._setting, recipe, run).model
        return made, round(time.perf_counter() - start + spent, 3)

    def _measure(self, network: nn.Module, run: Run) -> dict[str, Any]:
        """Accuracy, costs, agreement with the original's maps and, where there are masks, localisation."""
        found = evaluate(network, self._test, answers=logits(network, self._test, run))
        measured = {"n": found.n, "hits": round(found.accuracy * found.n), "accuracy": found.accuracy}
        measured |= {"loss": found.loss} | {name: getattr(found, name) for name in COSTS}
        maps = self._explain(network, run)
        agreed = agreement(self._maps, maps).means()
        measured |= {name: agreed[name] for name in AGREEMENT}
        if self._seen.masks is not None:
            looks = localisation(maps, self._seen.masks).means()
            measured |= {name: looks[name] for name in LOCALISATION}
        return {name: None if value != value else value for name, value in measured.items()}

    def _explain(self, network: nn.Module, run: Run) -> Tensor:
        return explain(network, self._look, self._seen.images, self._targets, run)

    def _bounds(self) -> dict[str, Any]:
        """Agreement of the original with itself under noise, and with random weights."""
        given = (self._bundle.module, self._look, self._seen.images, self._targets)
        ends = {"noise_ceiling": noise_ceiling(*given), "random_floor": random_floor(*given)}
        return {end: {name: found.means()[name] for name in AGREEMENT} for end, found in ends.items()}

    def _about(self, data: DatasetBundle) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self._bundle.architecture.to_dict(),
            "data": data.name,
            "split": "test",
            "n": len(self._test),
            "explained": len(self._seen),
            "attribution": LOOK,
            "network": digest(self._bundle.module),
        }


_WHO = ("contestant", "step", "after", "asked", "seed")


def _key(row: dict[str, Any]) -> str:
    return json.dumps([row["step"], row.get("after"), row["seed"]], sort_keys=True)


def _whole_lines(text: str) -> str:
    """Without a last line that was cut short."""
    return text[: text.rfind("\n") + 1]


def _interval(row: dict[str, Any]) -> dict[str, float]:
    low, high = wilson(row["hits"], row["n"])
    return {"low": low, "high": high}
