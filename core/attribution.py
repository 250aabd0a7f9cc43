"""Which pixels an answer rests on: the methods, and how they are run."""

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from core.errors import ParameterError, UnsupportedModelError
from core.method import Method, choice
from core.preparation import prepare, prepared
from core.registry import Registry
from core.run import Run, seeded

__all__ = ["ATTRIBUTIONS", "AttributionMethod", "Completeness", "completeness", "explain", "prepare"]

# Captum warns of hooks that it removes itself, and of inputs that did not ask for gradients.
warnings.filterwarnings("ignore", module=r"captum\..*")


class AttributionMethod(Method):
    """Explains one logit per image.

    Methods run on a private, prepared copy: start them through `explain`, never on a shared module.
    """

    random: ClassVar[bool] = False  # draws random numbers: each image is explained from the same seed
    chunk: ClassVar[int] = 16  # images at a time; has no influence on the maps
    complete: ClassVar[Literal["", "exactly", "in expectation"]] = ""  # do attributions add up to `promise`?

    def attribute(self, model: nn.Module, images: Tensor, targets: Tensor, run: Run) -> Tensor:
        """Signed attributions (N, C, H, W) of the logits `targets` (N,) to `images` (N, C, H, W).

        `model` is prepared (see `prepare`): hooks are welcome if they are removed again. A method that
        cannot tell channels apart repeats its map in every channel, as Captum does.
        """
        raise NotImplementedError

    def promise(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
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

    `model` is shared: it is neither changed nor hooked. Random methods start from `seed` for every
    image, so a map depends neither on the batch nor on the thread, and two networks meet the same
    noise. An image whose logits are not finite has a map of NaN.

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
    with torch.inference_mode(False), torch.enable_grad():  # a caller's inference mode ends here
        maps = torch.full(images.shape, torch.nan)
        if not len(images):
            return maps
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        images = images.detach().clone().to(device, torch.float32, memory_format=torch.channels_last)
        targets = targets.detach().clone().to(device, torch.int64)
        with prepared(model, images[:1]) as network:
            usable = _usable(network, method.name, images, targets)
            parts = usable.split(1 if method.random else method.chunk)
            for index in run.track(parts, method.label()):
                maps[index.cpu()] = _explain_part(network, method, images[index], targets[index], run, seed)
    return maps


def _explain_part(
    network: nn.Module, method: AttributionMethod, images: Tensor, targets: Tensor, run: Run, seed: int
) -> Tensor:
    if method.random:
        with seeded(seed, run):
            maps = method.attribute(network, images, targets, run)
    else:
        maps = method.attribute(network, images, targets, run)
    return maps.detach().cpu().contiguous()


def _usable(network: nn.Module, who: str, images: Tensor, targets: Tensor) -> Tensor:
    """Indices of the images with finite logits, after a check of what the network answers."""
    logits = _logits(network, images)
    if logits.dim() != 2:
        raise UnsupportedModelError(
            f"{who}: the network must answer (N, K) logits, got {tuple(logits.shape)}"
        )
    if not ((targets >= 0) & (targets < logits.shape[1])).all():
        raise ParameterError(
            f"{who}: targets must lie in [0, {logits.shape[1] - 1}], got {targets.min()} to {targets.max()}"
        )
    return logits.isfinite().all(dim=1).nonzero().flatten()


def _logits(network: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(batch)])


def target_logits(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The explained logit of every image, (N,)."""
    return _logits(model, images).gather(1, targets[:, None]).squeeze(1)


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
    with prepared(model, images[:1]) as network:
        promised = method.promise(network, images, targets)
    return Completeness(promised.double(), method.total(maps), method.complete)
