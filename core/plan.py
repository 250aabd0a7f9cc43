"""What the sliders say: one question, one criterion, one sparsity per slider; as text, recipe and code."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Any, Self
from urllib.parse import quote, unquote

from torch import nn

from core import listing
from core.bundles import DATASETS, ModelBundle, Setting
from core.criterion import CRITERIA, Criterion, Ranking, ScoreMemory, Scores, rank, require_weight_scores
from core.cutting import TensorMasks
from core.errors import ParameterError, RecipeError, UserError
from core.layers import bake, private_copy
from core.method import Choice, Nested, PerLayer
from core.recipe import COMPRESSORS, Compressor, Recipe
from core.registry import unknown
from core.run import Run

LONGEST = 20_000  # characters of a plan's text that are looked at


@dataclass(frozen=True)
class Question:
    """What a slider means."""

    label: str
    help: str
    criterion: str  # name of the criterion that answers it unless another is named


QUESTIONS: dict[str, Question] = {
    "remove": Question(
        "Remove channels",
        "Channels leave the whole coupled group, with biases, batch norm and all partners: the network "
        "is smaller and faster",
        "filter-l2",
    ),
    "weights": Question(
        "Zero single weights",
        "Single weights become zero: the shapes stay, and with them the time",
        "magnitude",
    ),
    "silence": Question(
        "Silence this layer's filters",
        "Filters of this layer become zero with their bias and batch norm; layers that share the "
        "channels are untouched",
        "filter-l2",
    ),
    "zero": Question(
        "Zero filter weights only",
        "Filter weights become zero as in torch.nn.utils.prune; biases and batch norm stay, and batch "
        "norm turns the zeros into a constant",
        "filter-l2",
    ),
}

Sliders = Sequence[Any]  # each a slider with a `name`, or the name itself
SlidersOf = Sliders | Callable[[str], Sliders]  # question -> sliders, such as `WhatIf.sliders`


@dataclass(frozen=True)
class Plan:
    """One setting of all sliders. Equal plans are equal values, so that a plan can be a key.

    Sparsities are kept in whole percents, sorted by slider; a slider at zero is left out.
    """

    question: str = "remove"
    criterion: Criterion | None = None  # None: the question's own; never None afterwards
    sparsities: tuple[tuple[str, float], ...] = ()  # slider -> fraction; a mapping is taken too

    def __post_init__(self) -> None:
        if self.question not in QUESTIONS:
            raise ParameterError(f"plan: {unknown('question', self.question, QUESTIONS)}")
        named = QUESTIONS[self.question].criterion if self.criterion is None else self.criterion
        try:
            criterion = Nested(CRITERIA, "").read(named)
            pairs = PerLayer(0.0, 1.0, 0.01, "").read(self.sparsities)
        except UserError as error:
            raise ParameterError(f"plan: {error}") from None
        if self.question == "weights":
            require_weight_scores("plan", criterion)
        rounded = tuple((name, round(value, 2)) for name, value in pairs)
        object.__setattr__(self, "criterion", criterion)
        object.__setattr__(self, "sparsities", tuple((name, value) for name, value in rounded if value > 0))

    def sparsity(self, name: str) -> float:
        """What the slider `name` says, 0 by default."""
        return dict(self.sparsities).get(name, 0.0)

    def with_sparsity(self, name: str, value: float) -> Self:
        """The plan with one slider moved."""
        return replace(self, sparsities=tuple((dict(self.sparsities) | {name: value}).items()))

    def recipe(self, seed: int = 0) -> Recipe:
        """One step that does what the plan says."""
        return Recipe((self._step(),), seed)

    def _step(self) -> Compressor:
        shared = {"sparsity": 0.0, "scope": "layer", "criterion": self.criterion, "layers": self.sparsities}
        if self.question == "weights":
            return COMPRESSORS["prune-weights"](**shared)
        return COMPRESSORS["prune-filters"](effect=self.question, **shared)

    def scores(self, model: nn.Module, setting: Setting, run: Run | None = None, seed: int = 0) -> Scores:
        """What its criterion says of `model`, as the recipe with this seed would see it."""
        grain = "weight" if self.question == "weights" else "filter"
        return rank(self.criterion, private_copy(model), setting, run, grain=grain, seed=seed).scores

    def apply(self, model: nn.Module, setting: Setting, scores: Scores) -> nn.Module:
        """A copy of `model` compressed as the recipe does it, from `scores` computed before."""
        step = self._knowing(scores)
        return bake(step.apply(private_copy(model), setting, Run()).eval()).requires_grad_(False)

    def tensor_masks(self, model: nn.Module, setting: Setting, ranking: Ranking) -> TensorMasks:
        """The same in the old shapes: (layer, tensor) -> what stays. `ranking` is of `scores`."""
        if self.question == "weights":
            masks = ranking.masks(dict(self.sparsities))
            return {(name, "weight"): keep for name, keep in masks.items()}
        return self._knowing(ranking.scores).tensor_masks(model, setting, Run())

    def _knowing(self, scores: Scores) -> Compressor:
        memory = ScoreMemory({"scores": scores, "filter_scores": scores})
        return replace(self._step(), criterion=memory.behind(self.criterion))

    def code(self, bundle: ModelBundle, setting: Setting | None = None, scores: Scores | None = None) -> str:
        """Plain PyTorch that does the same to the same architecture: `compress(model, example)`.

        It needs nothing of this program, and no data: what is not decided by the weights alone is
        spelled out as indices. `setting` and `scores`, where they are at hand, save reading the data
        set and computing the scores again.

        Raises:
            UnsupportedModelError: removal changes more of the network than the sizes of its layers.
        """
        if setting is None:
            data = DATASETS[bundle.dataset]().load()
            setting = Setting(data.train, data.validation, bundle.module)
        if scores is None:
            scores = self.scores(bundle.module, setting)
        if self.question == "weights":
            body = listing.zeroed_weights(bundle.module, Ranking(scores), dict(self.sparsities))
        elif self.question == "remove":
            body = listing.removed_channels(bundle.module, lambda model: self.apply(model, setting, scores))
        else:
            body = listing.zeroed_filters(bundle.module, self.apply(bundle.module, setting, scores))
        return f'"""{self._heading(bundle)}"""\n\n{body}'

    def _heading(self, bundle: ModelBundle) -> str:
        question = QUESTIONS[self.question]
        table = "\n".join(f"    {name}: {value:.0%}" for name, value in self.sparsities) or "    none"
        title = f"{question.label}, chosen by {self.criterion.name}, in a trained {bundle.architecture.name}."
        return f"{title}\n\n{fill(question.help, 100)}.\n\nSparsities:\n{table}\n"

    def to_text(self, sliders: SlidersOf) -> str:
        """Short text for an address, such as "remove:filter-l2:0x3,.5x6": sparsities in slider order.

        Equal neighbours are counted, trailing zeros are left out.

        Raises:
            RecipeError: the plan moves a slider that is not among `sliders`.
        """
        names = _names(sliders, self.question)
        for name, _ in self.sparsities:
            if name not in names:
                raise RecipeError(f"plan: {unknown('slider', name, names)}")
        values = [self.sparsity(name) for name in names]
        while values and values[-1] == 0:
            values.pop()
        runs: list[list] = []
        for value in values:
            if runs and runs[-1][0] == value:
                runs[-1][1] += 1
            else:
                runs.append([value, 1])
        levels = ",".join(_short(value) + (f"x{count}" if count > 1 else "") for value, count in runs)
        return f"{self.question}:{_criterion_text(self.criterion)}" + (f":{levels}" if levels else "")

    @classmethod
    def from_text(cls, text: str, sliders: SlidersOf) -> Self:
        """Read what `to_text` wrote; `sliders` may be a function of the question.

        Raises:
            RecipeError: it is no such text, names something unknown, or has more numbers than sliders.
        """
        if not isinstance(text, str) or len(text) > LONGEST:
            raise RecipeError("plan: the text is not one of a plan")
        question, _, rest = text.partition(":")
        criterion, _, levels = rest.partition(":")
        if question not in QUESTIONS:
            raise RecipeError(f"plan: {unknown('question', question[:40], QUESTIONS)}")
        try:
            plan = cls(question, _read_criterion(criterion))
            names = _names(sliders, question)
            return replace(plan, sparsities=tuple(zip(names, _read_levels(levels, len(names)), strict=False)))
        except RecipeError:
            raise
        except UserError as error:
            raise RecipeError(str(error) if str(error).startswith("plan:") else f"plan: {error}") from None


# text


def _names(sliders: SlidersOf, question: str) -> list[str]:
    found = sliders(question) if callable(sliders) else sliders
    return [slider if isinstance(slider, str) else slider.name for slider in found]


def _short(value: float) -> str:
    """0.5 -> ".5", 0 -> "0", 1 -> "1"."""
    return f"{value:.2f}".rstrip("0").rstrip(".").removeprefix("0") or "0"


def _read_levels(text: str, count: int) -> list[float]:
    values: list[float] = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"(0|1|0?\.[0-9]{1,2})(?:x([0-9]{1,5}))?", part)
        if not match:
            raise RecipeError(f"plan: a sparsity must look like 0, .25 or .5x3, got {part[:20]!r}")
        repeat = int(match[2] or 1)
        if len(values) + repeat > count:
            raise RecipeError(f"plan: the model has {count} sliders, got more sparsities")
        values += [float(match[1])] * repeat
    return values


def _criterion_text(criterion: Criterion) -> str:
    """The name, and after "~" every hyper-parameter that is not at its default."""
    default, parts = type(criterion)(), [criterion.name]
    for name, domain in criterion.domains().items():
        value = getattr(criterion, name)
        if value != getattr(default, name):
            written = value if isinstance(domain, Choice) else json.dumps(domain.write(value))
            parts.append(f"{name}={quote(written, safe='')}")
    return "~".join(parts)


def _read_criterion(text: str) -> Criterion:
    name, *parts = text.split("~")
    kind = CRITERIA[name[:60]]
    values: dict[str, Any] = {}
    for part in parts:
        field, _, written = part.partition("=")
        domain = kind.domains().get(field)
        try:
            values[field] = unquote(written) if isinstance(domain, Choice) else json.loads(unquote(written))
        except (ValueError, RecursionError):
            raise RecipeError(f"plan: {name}: {field[:40]} cannot be read from {written[:40]!r}") from None
    return kind.from_dict(values)


# presets


@dataclass(frozen=True)
class Preset:
    """A plan for all sliders at once."""

    label: str
    help: str
    sparsity: float  # where it starts
    levels: Callable[[list[str], float, Ranking | None], Mapping[str, float]]
    criterion: str | None = None  # name, where the preset brings its own
    ranked: bool = False  # whether it needs scores of the sliders' entries


def _uniform(names: list[str], sparsity: float, ranking: Ranking | None) -> Mapping[str, float]:
    return dict.fromkeys(names, sparsity)


def _spare_ends(names: list[str], sparsity: float, ranking: Ranking | None) -> Mapping[str, float]:
    return dict.fromkeys(names[1:-1], sparsity)


def _global(names: list[str], sparsity: float, ranking: Ranking | None) -> Mapping[str, float]:
    found = ranking.global_sparsities(sparsity)
    return {name: found[name] for name in names}


PRESETS: dict[str, Preset] = {
    "uniform": Preset("Uniform", "Every slider at the same sparsity", 0.5, _uniform),
    "spare-ends": Preset("Spare first and last", "Uniform, but first and last stay", 0.5, _spare_ends),
    "global": Preset(
        "Global", "One threshold for all: unimportant layers lose more", 0.5, _global, ranked=True
    ),
    "random": Preset("Random", "Uniform, chosen by lot: what a ranking must beat", 0.5, _uniform, "random"),
    "break-it": Preset("Break it", "95 % everywhere", 0.95, _uniform),
}


def preset(
    name: str,
    sliders: SlidersOf,
    question: str = "remove",
    criterion: Criterion | str | None = None,
    sparsity: float | None = None,
    ranking: Ranking | None = None,
) -> Plan:
    """The plan that preset `name` makes of `sliders`; "global" needs the `ranking` of their entries.

    Raises:
        ParameterError: there is no such preset, or it lacks its ranking.
    """
    if name not in PRESETS:
        raise ParameterError(f"plan: {unknown('preset', name, PRESETS)}")
    chosen = PRESETS[name]
    if chosen.ranked and ranking is None:
        raise ParameterError(f"plan: preset {name} must be given a ranking, got none")
    levels = chosen.levels(
        _names(sliders, question), chosen.sparsity if sparsity is None else sparsity, ranking
    )
    return Plan(question, chosen.criterion or criterion, tuple(levels.items()))
