"""Residual blocks: which of a network's modules are one, and what is left of it without its branch.

Both are found by trial, so they hold for any network whose blocks are modules of one input.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.layers import private_copy, prunable


@dataclass(frozen=True)
class Block:
    """A residual block: without its branch it returns what its shortcut returns."""

    name: str
    shortcut: str = ""  # the child that takes the input past the branch; "": none, the input itself
    rectified: bool = False  # behind the sum is a ReLU that the shortcut's output needs, too

    def holds(self, layer: str) -> bool:
        """Is `layer` a part of the branch, or the block itself?"""
        beside = f"{self.name}.{self.shortcut}." if self.shortcut else None
        return f"{layer}.".startswith(f"{self.name}.") and not (beside and f"{layer}.".startswith(beside))

    def bypass(self, block: nn.Module) -> nn.Module:
        """What stays of `block`, the module, without its branch."""
        if not self.shortcut:
            return nn.Identity()
        shortcut = block.get_submodule(self.shortcut)
        return nn.Sequential(shortcut, nn.ReLU()) if self.rectified else shortcut


def residual_blocks(model: nn.Module, images: Tensor) -> list[str]:
    """The blocks of `model` that can become the identity, in order of definition; `images` (N, C, H, W).

    Decided by trial: a module with layers in it, called with one tensor, is such a block if with
    all its parameters at zero it returns any non-negative input of that shape unchanged. Of nested
    modules, such as a stage of nothing but such blocks, the innermost count.
    """
    return _innermost([name for name, block, inputs in _candidates(model, images) if _returns(block, inputs)])


def shortcut_blocks(model: nn.Module, images: Tensor) -> list[Block]:
    """The blocks of `model` whose branch can go, those that change the shape of their input included.

    A shortcut that changes the shape is a child of the block, a projection or channels laid out
    among zeros: with the parameters of the rest at zero the block returns what this child returns.
    """
    found = [_block(name, block, inputs) for name, block, inputs in _candidates(model, images)]
    blocks = {block.name: block for block in found if block}
    return [blocks[name] for name in _innermost(blocks)]


def _block(name: str, block: nn.Module, inputs: Tensor) -> Block | None:
    if _returns(block, inputs):
        return Block(name)
    for child, module in block.named_children():
        if len(prunable(module)) < len(prunable(block)):  # there is a branch beside it
            for rectified in (False, True):
                if _returns(block, inputs, child, rectified):
                    return Block(name, child, rectified)
    return None


def _innermost(names: Iterable[str]) -> list[str]:
    names = list(names)
    return [name for name in names if not any(inner.startswith(f"{name}.") for inner in names)]


def _candidates(model: nn.Module, images: Tensor) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Modules of a private copy of `model` that may be blocks, each with a non-negative input to try."""
    network = private_copy(model, next(model.parameters()).device.type)
    for name, shape in _input_shapes(network, images).items():
        block = network.get_submodule(name)
        inputs = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        yield name, block, inputs.to(next(block.parameters()))


def _input_shapes(network: nn.Module, images: Tensor) -> dict[str, torch.Size]:
    """Module -> the shape of its only input, of modules with layers in them that are called once."""
    shapes: dict[str, torch.Size] = {}
    calls: Counter[str] = Counter()

    def entered(name: str):
        def hook(module, args, kwargs):
            calls[name] += 1
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                shapes[name] = args[0].shape

        return hook

    composed = {name: m for name, m in network.named_modules() if name and any(True for _ in m.children())}
    handles = [
        module.register_forward_pre_hook(entered(name), with_kwargs=True)
        for name, module in composed.items()
        if prunable(module)
    ]
    value = next(network.parameters())
    with torch.no_grad():
        network(images.to(value.device, value.dtype))
    for handle in handles:
        handle.remove()
    return {name: shapes[name] for name in composed if name in shapes and calls[name] == 1}


@torch.no_grad()
def _returns(block: nn.Module, inputs: Tensor, child: str = "", rectified: bool = False) -> bool:
    """With all parameters outside `child` at zero, is the output that of the bypass?"""
    block = copy.deepcopy(block)
    kept = set(block.get_submodule(child).parameters()) if child else set()
    for value in set(block.parameters()) - kept:
        value.zero_()
    output = block(inputs.clone())
    try:
        expected = Block("", child, rectified).bypass(block)(inputs.clone())
    except RuntimeError:
        return False  # this child takes no such input: it is a part of the branch
    return isinstance(output, Tensor) and output.shape == expected.shape and torch.equal(output, expected)


@torch.no_grad()
def carriers(
    model: nn.Module, images: Tensor, blocks: Iterable[Block], layers: Iterable[str]
) -> dict[str, Block]:
    """Layer -> the block of whose branch nothing but a constant is left where the layer reads zeros.

    Decided by trial, with every bias and shift at zero: then the block returns what its bypass does.
    """
    network = private_copy(model, next(model.parameters()).device.type)
    shapes, found = _input_shapes(network, images), {}
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if name.endswith(("bias", "running_mean")):
            value.zero_()
    for block in blocks:
        module = network.get_submodule(block.name)
        inputs = torch.rand(shapes[block.name], generator=torch.Generator().manual_seed(0))
        inputs = inputs.to(next(module.parameters()))
        expected = block.bypass(module)(inputs.clone())
        for layer in (name for name in layers if block.holds(name)):
            reader = network.get_submodule(layer)
            handle = reader.register_forward_pre_hook(lambda reader, args: (torch.zeros_like(args[0]),))
            if torch.equal(module(inputs.clone()), expected):
                found[layer] = block
            handle.remove()
    return found
