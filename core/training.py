"""The one training loop: training, fine-tuning, distillation and gates differ in their loss only."""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.bundles import Split
from core.errors import CheckpointError, Stopped, TrainingError
from core.method import Method, brief, choice, flag, number
from core.run import Run

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # model, images (N, C, H, W), labels -> scalar


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


def classification_loss(smoothing: float = 0.0) -> Loss:
    """Cross-entropy of the model's logits."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels, label_smoothing=smoothing)

    return loss


def fit(
    model: nn.Module,
    train: Split,
    loss: Loss,
    schedule: Schedule,
    run: Run,
    *,
    validation: Split | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Minimise the mean of `loss` over `train`, in place.

    Records one row per epoch: epoch, loss and, with `validation`, its accuracy. Random numbers are
    torch's. With `checkpoint`, the state is written after every epoch and an existing file is
    resumed; equal seeds give equal weights, resumed or not. `model` is left in eval mode, frozen,
    its weights the moving average where `schedule.ema` asks for one.

    Raises:
        TrainingError: there are no pictures, or loss or weights are not finite; `model` then holds
            the last good epoch's state, in eval mode, frozen.
        Stopped: `run` was stopped; likewise.
        CheckpointError: `checkpoint` is of another network or schedule.
    """
    if not len(train):
        raise TrainingError("training: there must be pictures to train on, got none")
    device = torch.device(run.device)
    model.to(device, memory_format=torch.channels_last).train().requires_grad_(True)
    steps = math.ceil(len(train) / schedule.batch_size)
    optimizer = _optimizer(model, schedule)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(schedule, steps))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema), use_buffers=True)
    parts = {"model": model, "average": average, "optimizer": optimizer, "rate": rate}
    done = _resume(checkpoint, parts, schedule, run)
    good = _snapshot(model)
    try:
        for epoch in run.track(range(done, schedule.epochs), "Training"):
            mean = _epoch(model, train, loss, schedule, run, parts, epoch)
            if not all(value.isfinite().all() for value in model.state_dict().values()):
                raise _diverged("weights became NaN or infinite", epoch, schedule)
            good = _snapshot(model)
            row = {"epoch": epoch + 1, "loss": mean}
            if validation is not None:
                row["validation_accuracy"] = _accuracy(average.module if schedule.ema else model, validation)
            run.record(**row)
            _save(checkpoint, parts, schedule, run, epoch + 1)
        if schedule.ema:
            model.load_state_dict(average.module.state_dict())
    except (Stopped, TrainingError):
        model.load_state_dict(good)
        raise
    finally:
        model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)


def _epoch(
    model: nn.Module, train: Split, loss: Loss, schedule: Schedule, run: Run, parts: dict, epoch: int
) -> float:
    """One pass over `train`; returns the mean loss.

    Raises:
        TrainingError: the loss is not finite.
    """
    device, total = torch.device(run.device), 0.0
    order = torch.randperm(len(train)).split(schedule.batch_size)
    for step, index in enumerate(order):
        images = augment(train.pixels[index], schedule.crop, schedule.flip).to(device)
        images = train.normalise(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16):
            value = loss(model, images, train.labels[index].to(device))
        parts["optimizer"].zero_grad()
        value.backward()
        parts["optimizer"].step()
        parts["rate"].step()
        if schedule.ema:
            parts["average"].update_parameters(model)
        total += value.item() * len(index)
        if not math.isfinite(total):
            raise _diverged(f"the loss became {value.item()}", epoch, schedule)
        run.report((step + 1) / len(order), f"Epoch {epoch + 1} of {schedule.epochs}")
    return total / len(train)


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


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Weight decay on weights, not on biases and batch-norm parameters."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": schedule.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.learning_rate)
    return torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=0.9, nesterov=True)


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
        for images, labels in split.batches(500)
    ]
    model.train(training)
    return torch.cat(hits).mean().item()


def _diverged(what: str, epoch: int, schedule: Schedule) -> TrainingError:
    advice = f"a learning rate below {schedule.learning_rate:g} may help"
    return TrainingError(f"training: {what} in epoch {epoch + 1}; {advice}")


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _save(path: Path | None, parts: dict, schedule: Schedule, run: Run, epoch: int) -> None:
    if path is None:
        return
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"epoch": epoch, "random": torch.get_rng_state(), "records": run.records}
    state["schedule"] = schedule.to_dict()
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path | None, parts: dict, schedule: Schedule, run: Run) -> int:
    """Load the state written by `_save`; returns the number of epochs already done."""
    if path is None or not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        if state.get("schedule", schedule.to_dict()) != schedule.to_dict():
            raise CheckpointError(f"{path}: must continue the schedule it was begun with, got another one")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (
        RuntimeError,
        ValueError,
        LookupError,
        AttributeError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: must be a checkpoint of this network, got {brief(str(error))}"
        ) from None
    torch.set_rng_state(state["random"])
    run.records[:] = state["records"]
    return state["epoch"]
