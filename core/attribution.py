"""Which pixels an answer rests on: the methods, and how they are run."""

import contextlib
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from core.errors import ParameterError, UnsupportedModelError
from core.method import Method, choice
from core.preparation import prepare
from core.prepared import Prepared
from core.registry import Registry
from core.run import Run, seeded

__all__ = [
    "ATTRIBUTIONS",
    "AttributionMethod",
    "Completeness",
    "answers",
    "completeness",
    "explain",
    "prepare",
]

# Captum warns of hooks that it removes itself, and of inputs that did not ask for gradients.
warnings.filterwarnings("ignore", module=r"captum\..*")


class AttributionMethod(Method):
    """Explains one logit per image. Start methods through `explain`."""

    random: ClassVar[bool] = False  # draws random numbers: every image is explained from the same seed
    chunk: ClassVar[int] = 16  # images at a time; has no influence on the maps
    complete: ClassVar[Literal["", "exactly", "in expectation"]] = ""  # do attributions add up to `promise`?

    def attribute(self, model: Prepared, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        """Signed attributions (N, C, H, W) of the logits `targets` (N,) to `images` (N, C, H, W).

        `model` answers with logits and gradients, and lends private copies to whoever puts hooks on
        layers. A method that cannot tell channels apart repeats its map in every channel, as Captum
        does. A random one draws the same numbers for each of several images, or has a `chunk` of 1.
        """
        raise NotImplementedError

    def promise(self, model: Prepared, images: Tensor, targets: Tensor) -> Tensor:
        """What attributions add up to, (N,), where the method is `complete`."""
        raise NotImplementedError

    def total(self, maps: Tensor) -> Tensor:
        """The sum (N,) that completeness speaks of, of maps (N, C, H, W)."""
        return maps.double().sum(dim=(1, 2, 3))


ATTRIBUTIONS: Registry[type[AttributionMethod]] = Registry("core.attributions", "attribution method")


def explain(
    model: nn.Module,
    method: AttributionMethod,
    images: Tensor,
    targets: Tensor,
    run: Run | None = None,
    seed: int = 0,
) -> Tensor:
    """Signed maps (N, C, H, W), float32 on the CPU, of the logits `targets` (N,).

    `model` is shared: it is neither changed nor hooked. It is prepared once, and maps and gradients
    that were computed before are remembered. Random methods start from `seed` for every image, so a
    map depends neither on the batch nor on the thread, and two networks meet the same noise. An image
    whose logits are not finite has a map of NaN.

    Raises:
        ParameterError: images or targets do not fit each other or the network.
        UnsupportedModelError: the network has nothing the method can work through.
    """
    run = run or Run()
    if images.dim() != 4 or targets.shape != images.shape[:1]:
        raise ParameterError(
            f"{method.name}: images must be (N, C, H, W) with one target each, "
            f"got {tuple(images.shape)} and {tuple(targets.shape)}"
        )
    if not len(images):
        return torch.empty(images.shape)
    with torch.inference_mode(False), torch.enable_grad():  # a caller's inference mode ends here
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        images = images.detach().clone().to(device, torch.float32, memory_format=torch.channels_last)
        targets = targets.detach().clone().to(device, torch.int64)
        network = Prepared.of(model, images[:1])
        usable = _usable(network, method.name, images, targets)

        def compute(index: Tensor) -> Tensor:
            maps = torch.full((len(index), *images.shape[1:]), torch.nan)
            parts = usable[index].nonzero().flatten().split(method.chunk)
            for part in run.track(parts, method.label()):
                here = index[part]
                maps[part] = _explain_part(network, method, images[here], targets[here], run, seed)
            return maps

        maps = network.remember((method, seed if method.random else None), images, targets, compute)
    run.report(1.0, method.label())
    return maps


def _explain_part(
    network: Prepared, method: AttributionMethod, images: Tensor, targets: Tensor, run: Run, seed: int
) -> Tensor:
    with seeded(seed, run) if method.random else contextlib.nullcontext():
        maps = method.attribute(network, images, targets, run)
    return maps.detach().cpu().contiguous()


def _usable(network: Prepared, who: str, images: Tensor, targets: Tensor) -> Tensor:
    """Which of the images have finite logits, (N,) bool, after a check of what the network answers."""
    logits = network.remember(
        "logits", images, torch.zeros_like(targets), lambda index: network(images[index])
    )
    if logits.dim() != 2:
        raise UnsupportedModelError(
            f"{who}: the network must answer (N, K) logits, got {tuple(logits.shape)}"
        )
    if not ((targets >= 0) & (targets < logits.shape[1])).all():
        raise ParameterError(
            f"{who}: targets must lie in [0, {logits.shape[1] - 1}], got {targets.min()} to {targets.max()}"
        )
    return logits.isfinite().all(dim=1).cpu()


def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K) of `images` (N, C, H, W), remembered like maps."""
    if not len(images):
        raise ParameterError("answers: there must be at least one image, got none")
    return _answers(Prepared.of(model, images[:1]), images)


def _answers(network: Prepared, images: Tensor) -> Tensor:
    no_target = torch.zeros(len(images), dtype=torch.int64)
    return network.remember("logits", images, no_target, lambda index: network(images[index]))


def target_logits(model: Prepared, images: Tensor, targets: Tensor) -> Tensor:
    """The explained logit of every image, (N,)."""
    return model(images).gather(1, targets[:, None]).squeeze(1)


def channel_sum(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W): what a picture of a map shows."""
    return maps.sum(dim=1)


# What stands for "nothing there".


def baseline_choice() -> str:
    """The field of methods that compare a picture with one that shows nothing."""
    return choice("mean", "blur", "dark", help="What a pixel is replaced by: mean colour, blurred or darkest")


def baseline(images: Tensor, kind: str) -> Tensor:
    """Pictures like `images` (N, C, H, W, normalised) that show nothing.

    "mean" is zero, the data set's mean colour; "blur" a Gaussian blur over an eighth of the picture;
    "dark" the smallest value of each channel of the picture.
    """
    if kind == "blur":
        from torchvision.transforms.functional import gaussian_blur  # takes seconds to load

        side = min(images.shape[2:])
        return gaussian_blur(images, kernel_size=2 * (side // 4) + 1, sigma=max(side / 8, 0.1))
    if kind == "dark":
        return images.amin(dim=(2, 3), keepdim=True).expand_as(images).contiguous()
    return torch.zeros_like(images)


# Does a method keep its promise?


@dataclass(frozen=True, eq=False)
class Completeness:
    """What the attributions of N images should add up to, and what they do add up to."""

    promised: Tensor  # (N,) float64, logits
    total: Tensor  # (N,) float64
    kept: str  # "exactly" or "in expectation", up to the method's own approximation

    @property
    def errors(self) -> Tensor:
        """|total - promised| / |promised|, (N,); large where the promise itself is close to zero."""
        return (self.total - self.promised).abs() / self.promised.abs().clamp(min=1e-9)

    @property
    def error(self) -> float:
        """Of all images together: the sum of |total - promised| over the sum of |promised|."""
        return ((self.total - self.promised).abs().sum() / self.promised.abs().sum().clamp(min=1e-9)).item()


def completeness(
    model: nn.Module, method: AttributionMethod, images: Tensor, targets: Tensor, maps: Tensor
) -> Completeness | None:
    """Compare `maps`, which `explain` made, with what the method promises; None if it promises nothing."""
    if not method.complete:
        return None
    images = images.detach().clone().to(torch.float32, memory_format=torch.channels_last)
    promised = method.promise(Prepared.of(model, images[:1]), images, targets)
    return Completeness(promised.double(), method.total(maps), method.complete)
