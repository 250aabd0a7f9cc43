"""The layers that methods work on, the mask that keeps pruned weights at zero, a shortcut without weights."""

import copy
from hashlib import blake2b

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.errors import ParameterError, UnsupportedModelError
from core.registry import unknown

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified name -> every convolution and linear layer, in order of definition; may be empty."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, PRUNABLE)}


def require_prunable(model: nn.Module) -> dict[str, nn.Module]:
    """`prunable`, of a model that must have such a layer.

    Raises:
        UnsupportedModelError: it has none.
    """
    found = prunable(model)
    if not found:
        raise UnsupportedModelError("the model has no convolution or linear layer to compress")
    return found


def require_layers(model: nn.Module, names: object) -> None:
    """Check that every one of `names` is a prunable layer of `model`.

    Raises:
        ParameterError: one is not; the message names the nearest layer.
    """
    layers = require_prunable(model)
    for name in names:
        if name not in layers:
            raise ParameterError(unknown("layer", name, layers))


def require_finite(model: nn.Module) -> None:
    """Check that no weight, bias or batch-norm statistic is NaN or infinite.

    Raises:
        UnsupportedModelError: one is; the message names its layer.
    """
    statistics = [(n, b) for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    for name, value in [*model.named_parameters(), *statistics]:
        if value.is_floating_point() and not (finite := value.isfinite()).all():
            layer, _, tensor = name.replace("parametrizations.", "").removesuffix(".original").rpartition(".")
            wrong = int((~finite).sum())
            raise UnsupportedModelError(
                f"layer {layer or 'model'}: {tensor} must be finite, "
                f"got {wrong} NaN or infinite of {value.numel()} values"
            )


def private_copy(model: nn.Module, device: str = "cpu") -> nn.Module:
    """A copy to measure on, with hooks and gradients of one's own: plain weights, in eval mode."""
    return bake(copy.deepcopy(model)).to(device).eval().requires_grad_(False)


def draw_again(model: nn.Module) -> None:
    """New numbers, in place, for every layer that can draw them, from torch's generator."""
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()


def digest(network: nn.Module) -> str:
    """The same for the same layers with the same numbers."""
    found = blake2b(str(network).encode(), digest_size=12)
    for name, value in network.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def following_batch_norms(model: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    """Prunable layer -> the batch norm that its output enters directly; layers without one are absent.

    Found by running `images` (N, C, H, W) through `model`, a private copy in eval mode, so that the
    order of execution decides and not the order of names. A layer whose output is changed before it
    enters a batch norm, as by an addition or a concatenation, has none.
    """
    made_by: dict[int, str] = {}  # id of an output -> layer
    outputs: list[Tensor] = []  # held, so that no id is used twice
    found: dict[str, nn.Module] = {}

    def made(name: str):
        def hook(layer, inputs, output):
            outputs.append(output)
            made_by[id(output)] = name

        return hook

    def entered(norm, inputs):
        if id(inputs[0]) in made_by:
            found[made_by[id(inputs[0])]] = norm

    handles = [layer.register_forward_hook(made(name)) for name, layer in prunable(model).items()]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles += [norm.register_forward_pre_hook(entered) for norm in norms]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in prunable(model) if name in found}


class Mask(nn.Module):
    """Parametrization w -> w * keep: pruned weights stay zero while the rest is trained."""

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.keep


class ChannelShortcut(nn.Module):
    """Skip pixels, and lay the input channels out among zeros: a shortcut without weights.

    Output channel o is input channel `source[o]`, or zeros where `source[o]` is -1; of the pixels
    every `stride`-th in both directions is taken.
    """

    def __init__(self, source: Tensor, stride: int) -> None:
        super().__init__()
        self.register_buffer("source", source, persistent=False)  # (O,) int64
        self.stride = stride

    @classmethod
    def padding(cls, inputs: int, outputs: int, stride: int) -> "ChannelShortcut":
        """The published form: zero channels added in equal number on both sides."""
        source = torch.full((outputs,), -1)
        before = (outputs - inputs) // 2
        source[before : before + inputs] = torch.arange(inputs)
        return cls(source, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        present = (self.source >= 0).view(1, -1, 1, 1)
        return x[:, self.source.clamp(min=0)] * present.to(x.dtype)


def apply_mask(layer: nn.Module, keep: Tensor, tensor: str = "weight") -> None:
    """Hold `layer.<tensor>` at zero where `keep`, of the same shape, is False."""
    parametrize.register_parametrization(layer, tensor, Mask(keep.to(getattr(layer, tensor).device)))


def bake(model: nn.Module) -> nn.Module:
    """Turn every parametrization into plain weights, in place, so the model can be saved and compared.

    Deep copies share the class that carries a parametrization, and `remove_parametrizations` would
    take it from all of them; here only the layers of `model` change.
    """
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer):
            values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}
            steps = layer.parametrizations
            trained = {name: any(p.requires_grad for p in steps[name].parameters()) for name in values}
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            for name, value in values.items():
                setattr(layer, name, nn.Parameter(value, trained[name]))
    return model
