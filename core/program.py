"""Networks of one's own as exported programs: for whoever starts the program, never for its readers."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from core.bundles import Architecture, DatasetBundle, ModelBundle
from core.errors import CheckpointError


@dataclass(frozen=True)
class Program(Architecture):
    """A network that torch.export wrote: it can be measured and explained, and has no layers to compress."""

    name: ClassVar[str] = "exported-program"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        raise CheckpointError(f"{self.name}: has no architecture to build; name its .pt2 file")


class _Exported(nn.Module):
    """An exported network; it has no modes, so that `train` and `eval` have nothing to change."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def train(self, mode: bool = True) -> "_Exported":
        self.training = mode
        return self

    def __deepcopy__(self, memo: dict) -> "_Exported":
        return _Exported(copy.deepcopy(self.network, memo))


def load_program(path: Path, data: DatasetBundle) -> ModelBundle:
    """The network in a .pt2 file, tried on two pictures of `data`.

    Such a file describes computations. Load only files that you trust.

    Raises:
        CheckpointError: it cannot be read, or does not turn pictures of `data` into its classes.
    """
    try:
        network = _Exported(torch.export.load(path).module()).requires_grad_(False)
    except Exception as error:  # whatever a broken archive makes of torch's reader
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(
            f"{path.name}: must be a file that torch.export.save wrote ({reason})"
        ) from error
    wanted = (2, len(data.classes))
    try:
        with torch.inference_mode():
            answer = network.eval()(data.test.take(slice(0, 2)).images)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path.name}: must take any number of pictures of {data.shape} (export it with a dynamic batch "
            f"dimension); two fail: {str(error).strip().splitlines()[0][:160]}"
        ) from error
    if not isinstance(answer, Tensor) or answer.shape != wanted:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise CheckpointError(f"{path.name}: must give logits of shape {wanted} for two pictures, got {got}")
    return ModelBundle(network, Program(), data.name, {"file": path.name})
