"""Feature maps on their way: which layers give them, and what they are in one forward pass."""

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn


def feature_layers(model: nn.Module, images: Tensor) -> list[str]:
    """For every size of feature map, the module whose output is the last of that size, in order.

    A feature map is (N, C, H, W) with more than one pixel. Of modules with the same output the outermost
    is named: of a ResNet "layer3", which is there whatever happens to its blocks. The last of the list
    is what a classifier's head reads.
    """
    last: dict[tuple[int, int], tuple[int, str]] = {}  # size -> (when, name)
    finished = 0

    def finish(name: str):
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal finished
            finished += 1
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
                last[output.shape[2], output.shape[3]] = finished, name

        return hook

    training = {module: module.training for module in model.modules()}
    layers = {
        name: module for name, module in model.named_modules() if name and ".parametrizations" not in name
    }
    handles = [module.register_forward_hook(finish(name)) for name, module in layers.items()]
    try:
        model.eval()
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, was in training.items():
            module.training = was
    return [name for _, name in sorted(last.values())]


@contextlib.contextmanager
def tapped(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Inside, every forward pass leaves the outputs of the modules `names` in the dictionary.

    The tensors are those of the autograd graph: what is computed from them trains the network.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
