"""A recipe is a list of compressors and a seed; `compress` carries it out."""

import copy
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Self

from torch import nn

from core.bundles import Setting
from core.errors import RecipeError, Stopped, UserError
from core.figure import Figure
from core.layers import bake, private_copy, require_finite
from core.method import Method, brief, from_dict
from core.registry import Registry
from core.run import Run, seeded

FORMAT = 1


class Compressor(Method):
    """Turns a network into a smaller one."""

    variants: ClassVar[tuple[str, ...]] = ()  # fields whose options count as methods when methods compete

    @classmethod
    def trains(cls) -> bool:
        """Does it take gradient steps? Then it takes its time, and leaves a good state when it is stopped."""
        return "epochs" in cls.domains()

    def apply(self, model: nn.Module, setting: Setting, run: Run) -> nn.Module:
        """Compress `model`, a private copy that may be changed in place, and return it.

        Random numbers come from torch's global generator, which is already seeded. Loops that
        take longer than a blink go through `run.track`.
        """
        raise NotImplementedError

    def figures(self, before: nn.Module, after: nn.Module, setting: Setting, run: Run) -> Sequence[Figure]:
        """What is worth seeing of what this step made of `before`; neither network may be changed.

        `before` is the network as the step found it, in eval mode with plain weights, and so is
        `after`. Random numbers are torch's, already seeded.
        """
        return ()


COMPRESSORS: Registry[type[Compressor]] = Registry("core.methods", "method")


@dataclass(frozen=True)
class Recipe:
    """Steps applied in order. On one device and thread count, equal recipes give equal bits."""

    steps: tuple[Compressor, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if not whole or not 0 <= self.seed < 2**31:
            raise RecipeError(
                f"recipe: seed must be a whole number in [0, 2147483647], got {brief(self.seed)}"
            )

    def trains(self) -> bool:
        """Does one of its steps?"""
        return any(step.trains() for step in self.steps)

    def to_json(self) -> str:
        steps = [step.to_dict() for step in self.steps]
        return json.dumps({"format": FORMAT, "seed": self.seed, "steps": steps}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            RecipeError: it is no JSON of that form, or names a method or parameter unknown here.
        """
        try:
            saved = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise RecipeError(f"recipe: must be JSON, got {brief(text)} ({error})") from None
        if not isinstance(saved, dict) or not isinstance(saved.get("steps"), list):
            raise RecipeError(f"recipe: must be an object with a list of steps, got {brief(saved)}")
        if saved.get("format") != FORMAT:
            raise RecipeError(f"recipe: format must be {FORMAT}, got {brief(saved.get('format'))}")
        try:
            steps = tuple(from_dict(COMPRESSORS, step) for step in saved["steps"])
        except UserError as error:
            raise RecipeError(f"recipe: {error}") from error
        seed = saved.get("seed", 0)
        return cls(steps, seed)


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """What a recipe made of a model."""

    model: nn.Module  # eval mode, plain weights, frozen
    recipe: Recipe
    records: tuple[dict[str, float], ...] = field(default=())  # what methods recorded, e.g. loss per epoch
    figures: tuple[tuple[Figure, ...], ...] = field(default=())  # of every step, where they were asked for
    finished: bool = True  # False: stopped, and `model` is what there was by then


def compress(
    model: nn.Module, setting: Setting, recipe: Recipe, run: Run | None = None, *, figures: bool = False
) -> CompressionResult:
    """Apply `recipe` to a copy of `model`; the caller's model and random state are left as they are.

    With `figures`, every step also shows what it did; the network is the same with and without. Where
    `run` is stopped (`Stopped`), the result is what the steps before made, and of a step that trains
    its last whole epoch.

    Raises:
        UnsupportedModelError: a weight is NaN or infinite, or a step cannot work on this model.
    """
    run = run or Run()
    require_finite(model)
    recorded = len(run.records)
    compressed, shown, finished = copy.deepcopy(model).to(run.device).eval(), [], True
    for index, step in enumerate(recipe.steps):
        seed, before = recipe.seed + index, private_copy(compressed, run.device) if figures else None
        kept = None if step.trains() else copy.deepcopy(compressed)
        with run.step(index, len(recipe.steps)):
            try:
                with run.step(0, 2) if figures else nullcontext(), seeded(seed, run):
                    compressed = step.apply(compressed, setting, run).eval()
            except Stopped:
                compressed, finished = kept or compressed, False
                break
            try:
                if before is not None:
                    after = private_copy(compressed, run.device)
                    with run.step(1, 2), seeded(seed, run):
                        shown.append(tuple(step.figures(before, after, setting, run)))
                run.report(1.0, step.label())
            except Stopped:
                finished = False
                break
    network = bake(compressed).requires_grad_(False).to("cpu")
    return CompressionResult(network, recipe, tuple(run.records[recorded:]), tuple(shown), finished)
