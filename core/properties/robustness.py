"""Local robustness: does the answer stay the same whatever happens to every pixel, up to a radius?"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from core.bundles import Split
from core.errors import ParameterError
from core.method import choice, number
from core.proving.bounds import Bounds, crown
from core.proving.network import unroll
from core.proving.proof import Answer, Proof, Status
from core.proving.prove import quickly, thoroughly
from core.proving.question import Deadline, Question
from core.run import Run
from core.verification import PROPERTIES, Property, Verdict


@dataclass(frozen=True, eq=False)
class RobustnessVerdict(Verdict):
    """What was found for every other class that the network might be made to answer.

    `proof` is a mapping from these classes to their proofs. Where the picture itself is answered
    wrongly, it refutes the property, and no class is asked for.
    """

    label: int = 0
    predicted: int = 0
    answers: Mapping[int, Answer] = field(default_factory=dict)  # other class -> what was found
    bounds: Bounds | None = None  # of the whole network over the ball, one box


@PROPERTIES.register
@dataclass(frozen=True)
class Robustness(Property):
    """No change of up to `radius` in every pixel makes the network answer another class.

    Pixels lie in [0, 1] and stay there. For every other class t the largest fall of the right logit
    below that of t is bounded, by intervals and linear bounds, then by linear programs, then case by
    case over the phases of ReLUs; or a picture is found that is answered with t.

    Source: Li and Li, "MUC-G4: Minimal Unsat Core-Guided Incremental Verification for Deep Neural
    Network Compression", 2025, arXiv:2506.04268 (reuse of unsat cores; the algorithm is ours).
    """

    name: ClassVar[str] = "robustness"
    title: ClassVar[str] = "Local robustness"

    radius: float = number(0.03, 0.0, 0.5, 0.001, help="Largest change of a pixel, of 1 from black to white")
    classes: str = choice("all", "runner-up", help="Other classes that it must not be taken for")
    seconds: float = number(10.0, 0.1, 3600.0, 0.1, help="Time for every other class, at most")

    def check(
        self, model: nn.Module, picture: Split, run: Run, proof: Mapping[int, Proof] | None = None
    ) -> RobustnessVerdict:
        start = time.perf_counter()
        network = unroll(model, picture.pixels.shape[1:]).behind(picture.mean, picture.std)
        x, label = pixels(picture), int(picture.labels[0])
        shape = picture.pixels.shape[1:]
        low, high = (x - self.radius).clamp(0, 1), (x + self.radius).clamp(0, 1)
        logits = network(x[None])[0]
        others, predicted = self._others(logits, label), int(logits.argmax())
        # once for all classes: they share the hidden layers
        bounds = crown(network.margins(label, others), low[None], high[None])
        told = {"label": label, "predicted": predicted, "bounds": bounds}
        if predicted != label:
            return RobustnessVerdict("refuted", time.perf_counter() - start, x.view(shape), {}, **told)
        questions = {other: Question(network.margins(label, [other]), low, high) for other in others}
        answers = self._answers(questions, bounds, proof or {}, run)
        found = next((a.counterexample for a in answers.values() if a.counterexample is not None), None)
        return RobustnessVerdict(
            _overall(answers),
            time.perf_counter() - start,
            None if found is None else found.view(shape),
            {other: answer.proof for other, answer in answers.items() if answer.proof is not None},
            answers=answers,
            **told,
        )

    def _answers(
        self, questions: Mapping[int, Question], bounds: Bounds, proof: Mapping[int, Proof], run: Run
    ) -> dict[int, Answer]:
        """Class by class; first what is quickly told, so that nothing is searched where one is refuted."""
        answers, left = {}, {}
        for index, (other, question) in enumerate(questions.items()):
            mine = replace(bounds, margins=bounds.margins[:, index : index + 1])
            found = quickly(question, mine, proof.get(other))
            if found is None:
                left[other] = mine
                continue
            answers[other] = found
            if found.status == "refuted":
                return answers
        for other, mine in run.track(list(left.items()), "Proving"):
            deadline = Deadline(self.seconds, run.report)
            answers[other] = thoroughly(questions[other], mine, deadline, proof.get(other))
            if answers[other].status == "refuted":
                break
        return {other: answers[other] for other in questions if other in answers}

    def _others(self, logits: Tensor, label: int) -> list[int]:
        """Other classes, the likeliest first."""
        order = [other for other in logits.argsort(descending=True).tolist() if other != label]
        return order[:1] if self.classes == "runner-up" else order


def pixels(picture: Split) -> Tensor:
    """(I,) float64 in [0, 1] of a split of one picture."""
    if len(picture) != 1:
        raise ParameterError(f"robustness: must be asked for one picture, got {len(picture)}")
    return picture.pixels[0].flatten().double() / 255


def _overall(answers: Mapping[int, Answer]) -> Status:
    """Refuted if one is, else unknown if one is."""
    said = {answer.status for answer in answers.values()}
    return "refuted" if "refuted" in said else "unknown" if "unknown" in said else "proved"
