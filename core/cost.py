"""What a network costs: stored numbers, multiply-adds, bytes, milliseconds.

Three costs that are easily mixed are kept apart. *Stored*: what lies in the file, zeros included.
*Theoretical*: what would be left if every zero weight were skipped, which ordinary hardware does not
do. *Realised*: what is left once channels have really gone, which is simply the stored cost of the
smaller network.
"""

import copy
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.layers import bake, prunable

ZIP_LEVEL = 6  # what `zip` and zlib use unless told otherwise


@dataclass(frozen=True)
class Metric:
    """How one number is shown."""

    label: str
    format: str  # a format spec, e.g. ".1%"; applied to both ends of an interval
    better: Literal["higher", "lower", "neither"]
    help: str
    unit: str = ""


def metric(label: str, format: str, better: str, help: str, unit: str = "") -> Any:
    """A field with the way to show it."""
    return field(metadata={"metric": Metric(label, format, better, help, unit)})


@dataclass(frozen=True)
class Cost:
    """What one network costs. MACs count convolution and linear layers, and nothing else."""

    parameters: int = metric("Parameters", ",", "lower", "Stored weights and biases, zeros included")
    nonzero_parameters: int = metric("Nonzero parameters", ",", "lower", "Stored numbers that are not zero")
    sparsity: float = metric(
        "Sparsity",
        ".1%",
        "higher",
        "Zero fraction of the convolution and linear weights, biases and norms left out",
    )
    macs: int = metric(
        "MACs",
        ",",
        "lower",
        "Multiply-adds of one image in convolution and linear layers; FLOPs are twice as many. "
        "Falls when channels are removed, not when weights are set to zero",
    )
    theoretical_macs: int = metric(
        "Theoretical MACs",
        ",",
        "lower",
        "The same if every multiplication by a zero weight were skipped, which common hardware does not do",
    )
    size_bytes: int = metric("File size", ",", "lower", "As saved (safetensors), zeros included", "bytes")
    zipped_bytes: int = metric(
        "Zipped size", ",", "lower", "The same file after zip: zeros pay here", "bytes"
    )

    @classmethod
    def metrics(cls) -> dict[str, Metric]:
        """Field name -> how it is shown."""
        return {f.name: f.metadata["metric"] for f in fields(cls)}


def cost(model: nn.Module, example: Tensor) -> Cost:
    """The costs of `model` for an image like `example` (1, C, H, W).

    A model with masks or other parametrizations is measured as it will be saved: with plain weights.
    """
    model = _private(model)
    return cost_at(model, output_positions(model, example))


def cost_at(model: nn.Module, positions: Mapping[str, int]) -> Cost:
    """`cost` where the `output_positions` are known already; pruning does not change them."""
    layers = prunable(model)
    nonzero = {name: int(layer.weight.count_nonzero()) for name, layer in layers.items()}
    weights = sum(layer.weight.numel() for layer in layers.values())
    parameters = list(model.parameters())
    saved = saved_bytes(model)
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        nonzero_parameters=sum(int(p.count_nonzero()) for p in parameters),
        sparsity=1 - sum(nonzero.values()) / weights if weights else 0.0,
        macs=sum(layer.weight.numel() * positions[name] for name, layer in layers.items()),
        theoretical_macs=sum(count * positions[name] for name, count in nonzero.items()),
        size_bytes=len(saved),
        zipped_bytes=zipped_size(saved),
    )


def layer_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Convolution or linear layer -> multiply-adds for an image like `example` (1, C, H, W).

    Every weight is used once at every output position, so a layer's MACs are the number of its
    weights times the number of its output positions. Additions of biases, norms, activations and
    poolings are left out. A layer that is used twice counts twice, an unused one not at all.
    """
    positions = output_positions(model, example)
    return {name: layer.weight.numel() * positions[name] for name, layer in prunable(model).items()}


def output_positions(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Convolution or linear layer -> places at which it computes its outputs, for one image.

    The height times width of a convolution's output; 1 for a linear layer on a flat input.
    """
    model = _private(model)
    found = dict.fromkeys(prunable(model), 0)

    def count(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] += output.numel() // (layer.weight.shape[0] * len(example))

        return hook

    for name, layer in prunable(model).items():
        layer.register_forward_hook(count(name))
    with torch.inference_mode():
        model(example.to(next(iter(model.parameters()), example).device))
    return found


def saved_bytes(model: nn.Module) -> bytes:
    """The weights of `model` in safetensors format; tensors shared by two layers are kept once."""
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return save(tensors)


def zipped_size(content: bytes) -> int:
    """Bytes that `content` takes inside a zip archive (deflate, default level)."""
    packer = zlib.compressobj(ZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return len(packer.compress(content)) + len(packer.flush())


def latency(models: Mapping[str, nn.Module], images: Tensor, rounds: int = 7) -> pd.DataFrame:
    """Measured milliseconds of one batch `images` (N, C, H, W), one row per model.

    The models take turns, so that a busy moment of the machine hits all of them. The middle is the
    median of the rounds; low and high are the fastest and the slowest round (of seven rounds, these
    enclose the true median with 98 % confidence). Zeros do not make a network faster; removed
    channels do.
    """
    models = {name: twin(model).eval() for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for model in models.values():
            model(images)  # the first call allocates and picks kernels
        for _ in range(rounds):
            for name, model in models.items():
                start = time.perf_counter()
                model(images)
                seconds[name].append(time.perf_counter() - start)
    rows = [
        {
            "name": name,
            "median_ms": 1e3 * pd.Series(taken).median(),
            "low_ms": 1e3 * min(taken),
            "high_ms": 1e3 * max(taken),
            "batch": len(images),
            "threads": torch.get_num_threads(),
        }
        for name, taken in seconds.items()
    ]
    return pd.DataFrame(rows, columns=["name", "median_ms", "low_ms", "high_ms", "batch", "threads"])


def twin(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares the tensors: hooks and modes set on it stay off `model`."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _private(model: nn.Module) -> nn.Module:
    """A copy in eval mode with plain weights; its tensors are shared where nothing had to be baked."""
    if any(parametrize.is_parametrized(layer) for layer in model.modules()):
        return bake(copy.deepcopy(model)).eval()
    return twin(model).eval()
