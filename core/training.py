"""The one training loop: training, fine-tuning, distillation and gates differ in their task only."""

import copy
import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.bundles import Split
from core.errors import CheckpointError, Stopped, TrainingError
from core.method import Method, brief, choice, flag, number
from core.run import Run

Cut = Callable[[nn.Module], None]  # takes the same channels away, in place, from any network of one structure
MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # what optimisers remember, weight by weight
MEASURED = 500  # pictures per batch where accuracy is counted


@dataclass(frozen=True)
class Schedule(Method):
    """How a network is trained: optimiser, learning rate over time, augmentation.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv:1608.03983 (cosine); Smith and Topin,
    "Super-Convergence", 2018, arXiv:1708.07120 (one-cycle).
    """

    name: ClassVar[str] = "schedule"

    epochs: int = number(30, 1, 500, 1, help="Passes over the training pictures")
    learning_rate: float = number(0.2, 1e-6, 10.0, 1e-6, scale="log", help="Peak learning rate")
    schedule: str = choice("one-cycle", "cosine", "constant", help="Learning rate over time")
    optimizer: str = choice("sgd", "adamw", help="SGD has Nesterov momentum 0.9")
    batch_size: int = number(128, 1, 4096, 1, help="Pictures per step")
    weight_decay: float = number(5e-4, 0.0, 0.1, 1e-5, help="Pull of every weight towards zero")
    label_smoothing: float = number(0.0, 0.0, 0.5, 0.01, help="Share of the target spread evenly")
    crop: int = number(4, 0, 16, 1, unit="pixels", help="Random shift by up to this many pixels")
    flip: bool = flag(True, help="Mirror half of the pictures")
    ema: float = number(0.0, 0.0, 0.9999, 0.0001, help="Keep a moving average of the weights; 0: off")
    bfloat16: bool = flag(False, help="Convolutions in bfloat16: faster where the processor has it")
    patience: int = number(0, 0, 500, 1, help="Stop after so many epochs without a better accuracy; 0: never")


class Task:
    """What `fit` minimises. It may hold state: one is made for every training.

    `partners` are modules that are trained along with the network and thrown away afterwards.
    """

    def __init__(self) -> None:
        self.partners = nn.ModuleList()

    def terms(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Scalars of one batch: "loss" is minimised, the means of all are recorded every epoch."""
        raise NotImplementedError

    def stepped(self, model: nn.Module) -> None:
        """Called after every step of the optimiser."""

    def passed(self, model: nn.Module, epoch: int) -> Cut | None:
        """Called after every epoch, from 0, with `model` in training mode.

        What it returns is applied to the network, to the moving average of its weights and to their
        momenta, so that training goes on with what is left.
        """

    def observed(self) -> dict[str, float]:
        """More of what is to be recorded of the epoch that has just passed."""
        return {}


class Minimise(Task):
    """One function: model, images (N, C, H, W), labels (N,) -> scalar."""

    def __init__(self, loss: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._loss = loss

    def terms(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self._loss(model, images, labels)}


class Classification(Minimise):
    """Cross-entropy of the model's logits."""

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__(
            lambda model, images, labels: F.cross_entropy(model(images), labels, label_smoothing=smoothing)
        )


def fit(
    model: nn.Module,
    train: Split,
    task: Task,
    schedule: Schedule,
    run: Run,
    *,
    validation: Split | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Minimise the mean of `task`'s loss over `train`, in place.

    Records one row per epoch: epoch, the task's terms and, with `validation`, its accuracy. Random
    numbers are torch's. With `checkpoint`, the state is written after every epoch and an existing
    file is resumed; equal seeds give equal weights, resumed or not. `model` is left in eval mode,
    frozen, its weights the moving average where `schedule.ema` asks for one, and those of the epoch
    with the best accuracy where `schedule.patience` is over.

    Raises:
        TrainingError: there are no pictures, or loss or weights are not finite; `model` then holds
            the last good epoch's state, in eval mode, frozen.
        Stopped: `run` was stopped; `model` then holds the epoch with the best accuracy, without
            `validation` the last whole one.
        CheckpointError: `checkpoint` is of another network or schedule.
    """
    if not len(train):
        raise TrainingError("training: there must be pictures to train on, got none")
    if schedule.patience and validation is None:
        raise TrainingError("training: there must be validation pictures where patience ends it, got none")
    model.to(run.device, memory_format=torch.channels_last).train().requires_grad_(True)
    task.partners.to(run.device).train().requires_grad_(True)
    training = _Training(model, task, schedule, math.ceil(len(train) / schedule.batch_size), run)
    training.resume(checkpoint)
    try:
        for epoch in run.track(range(training.done, schedule.epochs), "Training"):
            if training.out_of_patience():
                break
            training.end_epoch(epoch, training.epoch(train, epoch), validation)
            training.save(checkpoint)
        if training.out_of_patience():
            model.load_state_dict(training.best.state)
        elif schedule.ema:
            model.load_state_dict(training.average.module.state_dict())
    except Stopped:
        model.load_state_dict(training.best.state)
        raise
    except TrainingError:
        model.load_state_dict(training.good)
        raise
    finally:
        model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)


@dataclass
class _Best:
    """The best epoch of the network in its present structure."""

    state: dict[str, Tensor]
    epoch: int = 0
    accuracy: float = -1.0


class _Training:
    """The moving parts of one call of `fit`."""

    def __init__(self, model: nn.Module, task: Task, schedule: Schedule, steps: int, run: Run) -> None:
        self.model, self.task, self.schedule, self.run = model, task, schedule, run
        self.optimizer = _optimizer((model, task.partners), schedule)
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _rate(schedule, steps))
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema), use_buffers=True)
        self.done = 0  # whole epochs
        self.good = _snapshot(model)
        self.best = _Best(self.good)

    @property
    def measured(self) -> nn.Module:
        """The network that training is for: its weights' moving average, where one is kept."""
        return self.average.module if self.schedule.ema else self.model

    def epoch(self, train: Split, epoch: int) -> dict[str, float]:
        """One pass over `train`; returns the means of the task's terms.

        Raises:
            TrainingError: the loss or a weight is not finite.
        """
        schedule, device, totals = self.schedule, torch.device(self.run.device), {}
        order = torch.randperm(len(train)).split(schedule.batch_size)
        for step, index in enumerate(order):
            images = augment(train.pixels[index], schedule.crop, schedule.flip).to(device)
            images = train.normalise(images).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16):
                terms = self.task.terms(self.model, images, train.labels[index].to(device))
            self._step(terms["loss"])
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(index)
            if not math.isfinite(totals["loss"]):
                raise _diverged(f"the loss became {terms['loss'].item()}", epoch, schedule)
            self.run.report((step + 1) / len(order), f"Epoch {epoch + 1} of {schedule.epochs}")
        if not all(value.isfinite().all() for value in self.model.state_dict().values()):
            raise _diverged("weights became NaN or infinite", epoch, schedule)
        return {name: total / len(train) for name, total in totals.items()}

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.rate.step()
        self.task.stepped(self.model)
        if self.schedule.ema:
            self.average.update_parameters(self.model)

    def end_epoch(self, epoch: int, means: dict[str, float], validation: Split | None) -> None:
        """Cut what the task wants cut, measure, remember, record."""
        if (cut := self.task.passed(self.model, epoch)) is not None:
            self._cut(cut)
        self.done, self.good = epoch + 1, _snapshot(self.measured)
        row = {"epoch": epoch + 1} | means
        if validation is None:
            self.best = _Best(self.good, epoch)
        else:
            row["validation_accuracy"] = accuracy = _accuracy(self.measured, validation)
            if accuracy >= self.best.accuracy or cut is not None:
                self.best = _Best(self.good, epoch, accuracy)
        self.run.record(**row | self.task.observed())

    def out_of_patience(self) -> bool:
        """Has accuracy not risen for so many epochs?"""
        waited = self.done - 1 - self.best.epoch
        return 0 < self.schedule.patience <= waited

    def _cut(self, cut: Cut) -> None:
        """Take channels from the network, from its average and from the optimiser's moments."""
        parameters = list(self.model.parameters())
        held = {id(p): self.optimizer.state.pop(p) for p in parameters if p in self.optimizer.state}
        twins = {name: self._twin(name, parameters, held) for name in MOMENTS}
        for network in (self.model, self.average.module, *filter(None, twins.values())):
            cut(network)
        left = list(self.model.parameters())
        steps = next((state["step"] for state in held.values() if "step" in state), None)
        for name, twin in twins.items():
            for parameter, moment in zip(left, twin.parameters() if twin else (), strict=bool(twin)):
                self.optimizer.state[parameter][name] = moment.detach()
                if steps is not None:
                    self.optimizer.state[parameter]["step"] = steps.clone()
        for group, members in zip(
            self.optimizer.param_groups, _by_decay((self.model, self.task.partners)), strict=True
        ):
            group["params"] = members
        self.model.to(memory_format=torch.channels_last)

    def _twin(self, name: str, parameters: list[Tensor], held: dict[int, dict]) -> nn.Module | None:
        """A network whose weights are the moments called `name`; None where the optimiser has none."""
        if not any(name in state for state in held.values()):
            return None
        twin = copy.deepcopy(self.model)
        for mine, parameter in zip(twin.parameters(), parameters, strict=True):
            moment = held.get(id(parameter), {}).get(name)
            mine.data = torch.zeros_like(parameter) if moment is None else moment
        return twin

    def save(self, path: Path | None) -> None:
        """Write what `resume` reads."""
        if path is None:
            return
        state = {name: part.state_dict() for name, part in self._parts()}
        state |= {"epoch": self.done, "random": torch.get_rng_state(), "records": self.run.records}
        state |= {"schedule": self.schedule.to_dict(), "best": vars(self.best)}
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path | None) -> None:
        """Go on where `save` was called, if it was.

        Raises:
            CheckpointError: the file is of another network or schedule.
        """
        if path is None or not path.exists():
            return
        mine = self.schedule.to_dict()
        try:
            state = torch.load(path, weights_only=True)
            if state.get("schedule", mine) != mine:
                raise CheckpointError(
                    f"{path}: must continue the schedule it was begun with, got another one"
                )
            for name, part in self._parts():
                part.load_state_dict(state[name])
            self.best = _Best(**state["best"])
        except (
            RuntimeError,
            ValueError,
            LookupError,
            AttributeError,
            EOFError,
            OSError,
            TypeError,
            pickle.UnpicklingError,
        ) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{path}: must be a checkpoint of this network, got {brief(str(error))}"
            ) from None
        torch.set_rng_state(state["random"])
        self.run.records[:] = state["records"]
        self.done, self.good = state["epoch"], _snapshot(self.measured)

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """What has a state of its own."""
        yield from {
            "model": self.model,
            "partners": self.task.partners,
            "average": self.average,
            "optimizer": self.optimizer,
            "rate": self.rate,
        }.items()


def augment(pixels: Tensor, crop: int, flip: bool) -> Tensor:
    """Shift every picture of (N, C, H, W) by up to `crop` pixels and mirror half of them."""
    count, _, height, width = pixels.shape
    rows, columns = torch.arange(height).expand(count, -1), torch.arange(width).expand(count, -1)
    if flip:
        mirrored = torch.rand(count, 1) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    if crop:
        pixels = F.pad(pixels, (crop,) * 4)
        rows = rows + torch.randint(0, 2 * crop + 1, (count, 1))
        columns = columns + torch.randint(0, 2 * crop + 1, (count, 1))
    picture = torch.arange(count)[:, None, None]
    return pixels.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _optimizer(networks: Iterable[nn.Module], schedule: Schedule) -> torch.optim.Optimizer:
    """Weight decay on weights, not on biases and batch-norm parameters."""
    weights, others = _by_decay(networks)
    groups = [
        {"params": weights, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.learning_rate)
    return torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=0.9, nesterov=True)


def _by_decay(networks: Iterable[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(weights, which decay; biases and the like, which do not)."""
    parameters = [p for network in networks for p in network.parameters()]
    return [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]


def _rate(schedule: Schedule, steps: int) -> Callable[[int], float]:
    """Step -> fraction of the peak learning rate."""
    total = schedule.epochs * steps
    warm_up = {"one-cycle": 0.2 * total, "cosine": 0.0, "constant": 0.0}[schedule.schedule]

    def factor(step: int) -> float:
        if schedule.schedule == "constant":
            return 1.0
        if step < warm_up:
            return 0.04 + 0.96 * step / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(total - warm_up, 1)))

    return factor


@torch.no_grad()
def _accuracy(model: nn.Module, split: Split) -> float:
    training, device = model.training, next(model.parameters()).device
    model.eval()
    hits = [
        (model(images.to(device, memory_format=torch.channels_last)).argmax(1).cpu() == labels).float()
        for images, labels in split.batches(MEASURED)
    ]
    model.train(training)
    return torch.cat(hits).mean().item()


def _diverged(what: str, epoch: int, schedule: Schedule) -> TrainingError:
    advice = f"a learning rate below {schedule.learning_rate:g} may help"
    return TrainingError(f"training: {what} in epoch {epoch + 1}; {advice}")


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
