"""What the sliders of one network move, what that costs, and the network that it makes."""

import threading
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from core.bundles import DatasetBundle, ModelBundle, Setting
from core.cost import Cost, cost_at, output_positions
from core.coupling import groups, output_layers
from core.criterion import Criterion, Ranking
from core.cutting import TensorMasks
from core.errors import ParameterError
from core.groups import group_scores, normalised
from core.layers import private_copy, require_prunable
from core.memory import Memory
from core.plan import QUESTIONS, Plan, preset
from core.registry import unknown
from core.run import Progress, Run
from core.terms import Term, group_terms, layer_terms

PATIENCE_S = 0.2  # between two looks at whether scores that somebody else computes are still wanted


@dataclass(frozen=True)
class Slider:
    """What one slider moves: a layer, or the layers that share their channels."""

    name: str
    layers: tuple[str, ...]
    width: int  # filters, or removable units of the group; for single weights: filters of the layer
    weights: int  # numbers in the weight tensors of `layers`
    macs: int  # multiply-adds of `layers` for one image

    def entries(self, question: str) -> int:
        """How many things it can take away: single weights, or filters."""
        return self.weights if question == "weights" else self.width

    def kept(self, question: str, sparsity: float) -> int:
        """How many of them stay; of filters, the best always does."""
        whole = self.entries(question)
        return max(whole - round(sparsity * whole), 0 if question == "weights" else 1)


@dataclass(eq=False)
class _Scoring:
    """Scores in the making, and how far they are."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    progress: Progress = field(default_factory=lambda: Progress(0.0, "Scoring"))

    def tell(self, run: Run) -> Run:
        """`run` whose progress others can see, too."""

        def report(progress: Progress) -> None:
            self.progress = progress
            run.on_progress(progress)

        return replace(run, on_progress=report)


class Sliders:
    """The sliders of one network; safe to share between threads, since nothing shared is changed."""

    def __init__(self, bundle: ModelBundle, dataset: DatasetBundle) -> None:
        self._module = bundle.module
        self._bundle = bundle
        self._setting = Setting(dataset.train, dataset.validation, bundle.module)
        self._example = dataset.train.normalise(torch.zeros(1, *dataset.shape, dtype=torch.uint8))
        self._layers = require_prunable(bundle.module)
        self._positions = output_positions(bundle.module, self._example)
        self._lock = threading.Lock()
        self._scoring: dict[tuple[bool, Criterion], _Scoring] = {}
        self._sliders: Memory[tuple[Slider, ...]] = Memory(len(QUESTIONS))
        self._rankings: Memory[Ranking] = Memory(8)
        self._costs: Memory[Cost] = Memory(1000)

    def sliders(self, question: str) -> tuple[Slider, ...]:
        """The sliders of a question: one per coupled group for "remove", else one per layer.

        The layer that makes the logits keeps its filters, so it has a slider for single weights only.

        Raises:
            UnsupportedModelError: the channels of the model cannot be followed.
        """
        found = self._sliders.get(question) or self._make_sliders(question)
        self._sliders.put(question, found)
        return found

    def model(self, plan: Plan) -> nn.Module:
        """The compressed network, in eval mode and frozen; it belongs to the caller."""
        if not plan.sparsities:
            return private_copy(self._module)
        ranking = self._scored(plan)
        if plan.question != "weights":
            return plan.apply(self._module, self._setting, ranking.scores)
        model = private_copy(self._module)
        for (name, tensor), keep in self.masks(plan).items():
            getattr(model.get_submodule(name), tensor).detach().mul_(keep)
        return model

    def masks(self, plan: Plan, run: Run | None = None) -> TensorMasks:
        """The plan in the old shapes: (layer, tensor) -> what stays. It gives the logits of `model`.

        Scores that are not known yet are computed, and `run` is told.

        Raises:
            ParameterError: the plan moves a slider that this network does not have.
        """
        names = [slider.name for slider in self.sliders(plan.question)]
        for name, _ in plan.sparsities:
            if name not in names:
                raise ParameterError(f"plan: {unknown('slider', name, names)}")
        if not plan.sparsities:
            return {}
        found = plan.tensor_masks(self._module, self._setting, self._scored(plan, run))
        return {place: keep for place, keep in found.items() if not keep.all()}

    def cost(self, plan: Plan) -> Cost:
        """What the compressed network costs, without running it."""
        plan = plan if plan.sparsities else Plan()  # all questions start from the same network
        found = self._costs.get(plan) or cost_at(self.model(plan), self._positions)
        self._costs.put(plan, found)
        return found

    def cost_terms(self, question: str) -> tuple[Term, ...]:
        """What any plan leaves of the network's weights and MACs, as a sum of products; see `Term`.

        For "remove": the stored parameters and MACs. For the others, which keep the shapes: the
        nonzero weights of convolution and linear layers, and the theoretical MACs.
        """
        names = [slider.name for slider in self.sliders(question)]
        if question == "remove":
            found = groups(self._module, self._example)
            return group_terms(self._module, found, self._positions)
        return layer_terms(self._layers, names, self._positions)

    def code(self, plan: Plan) -> str:
        """Plain PyTorch that repeats the plan; see `Plan.code`."""
        return plan.code(self._bundle, self._setting, self._scored(plan).scores)

    def preset(
        self,
        name: str,
        question: str,
        criterion: Criterion | str | None = None,
        sparsity: float | None = None,
    ) -> Plan:
        """One of `plan.PRESETS` for this model."""
        plan = Plan(question, criterion)
        ranking = self._ranking(plan) if name == "global" else None
        return preset(name, self.sliders, question, plan.criterion, sparsity, ranking)

    def _make_sliders(self, question: str) -> tuple[Slider, ...]:
        if question == "remove":
            found = groups(self._module, self._example)
            return tuple(self._slider(group.name, group.layers, group.width) for group in found)
        kept = output_layers(self._module, self._example) if question in ("silence", "zero") else ()
        names = [name for name in self._layers if name not in kept]
        return tuple(self._slider(name, (name,), len(self._layers[name].weight)) for name in names)

    def _slider(self, name: str, layers: tuple[str, ...], width: int) -> Slider:
        weights = {layer: self._layers[layer].weight.numel() for layer in layers}
        macs = sum(count * self._positions[layer] for layer, count in weights.items())
        return Slider(name, layers, width, sum(weights.values()), macs)

    def _scored(self, plan: Plan, run: Run | None = None) -> Ranking:
        """The scores of the plan's criterion: of single weights, or of filters; computed once."""
        run = run or Run()
        key = (plan.question == "weights", plan.criterion)
        with self._lock:
            scoring = self._scoring.setdefault(key, _Scoring())
        while not scoring.lock.acquire(timeout=PATIENCE_S):  # of all who ask for the same scores, one works
            run.report(scoring.progress.fraction, scoring.progress.message)
        try:
            told = scoring.tell(run)
            found = self._rankings.get(key) or Ranking(plan.scores(self._module, self._setting, told))
            self._rankings.put(key, found)
        finally:
            scoring.lock.release()
        return found

    def _ranking(self, plan: Plan) -> Ranking:
        """Scores of what the sliders of the plan's question move, comparable between sliders."""
        scores = self._scored(plan).scores
        if plan.question == "remove":
            return Ranking(group_scores(groups(self._module, self._example), normalised(scores)))
        if plan.question == "weights":
            return Ranking(scores)
        return Ranking(
            normalised({slider.name: scores[slider.name] for slider in self.sliders(plan.question)})
        )
