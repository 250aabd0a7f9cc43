"""The image classifiers of torchvision."""

import copy
import itertools
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from core.bundles import MODELS, Architecture
from core.errors import UnsupportedModelError
from core.method import choice

# Written out because importing torchvision takes seconds; a test compares it with torchvision's list.
# fmt: off
NETWORKS = (
    "alexnet", "convnext_base", "convnext_large", "convnext_small", "convnext_tiny", "densenet121",
    "densenet161", "densenet169", "densenet201", "efficientnet_b0", "efficientnet_b1",
    "efficientnet_b2", "efficientnet_b3", "efficientnet_b4", "efficientnet_b5", "efficientnet_b6",
    "efficientnet_b7", "efficientnet_v2_l", "efficientnet_v2_m", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "mobilenet_v2",
    "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_16gf", "regnet_x_1_6gf", "regnet_x_32gf",
    "regnet_x_3_2gf", "regnet_x_400mf", "regnet_x_800mf", "regnet_x_8gf", "regnet_y_128gf",
    "regnet_y_16gf", "regnet_y_1_6gf", "regnet_y_32gf", "regnet_y_3_2gf", "regnet_y_400mf",
    "regnet_y_800mf", "regnet_y_8gf", "resnet101", "resnet152", "resnet18", "resnet34", "resnet50",
    "resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "squeezenet1_0", "squeezenet1_1",
    "swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t", "vgg11", "vgg11_bn", "vgg13",
    "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "vit_b_16", "vit_b_32", "vit_h_14",
    "vit_l_16", "vit_l_32", "wide_resnet101_2", "wide_resnet50_2",
)
# fmt: on
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers that only training uses
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # in torchvision's published files


@MODELS.register
@dataclass(frozen=True)
class TorchvisionClassifier(Architecture):
    """An image classifier of torchvision, for weights of your own or torchvision's published files.

    Most of them halve a picture five times: give them pictures of 64 pixels or more, 224 as published.

    Source: torchvision maintainers and contributors, "TorchVision: PyTorch's Computer Vision library",
    2016, https://github.com/pytorch/vision; each network's paper is named in its documentation.
    """

    name: ClassVar[str] = "torchvision"
    title: ClassVar[str] = "Torchvision"

    network: str = choice(*NETWORKS, default="resnet18", help="Torchvision's name of the network")

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        from torchvision.models import get_model

        options: dict[str, object] = {"weights": None, "num_classes": classes}
        if self.network in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": False, "transform_input": False}
        if self.network.startswith("vit_"):
            options["image_size"] = shape[1]
        if self.network == "maxvit_t":
            options["input_size"] = shape[1:]
        try:
            network = get_model(self.network, **options)
            tensors = itertools.chain(network.parameters(), network.buffers())
            outline = copy.deepcopy(network, {id(tensor): tensor.detach().to("meta") for tensor in tensors})
            outline.eval()(torch.empty(1, *shape, device="meta"))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UnsupportedModelError(
                f"{self.network}: cannot read pictures of {' x '.join(map(str, shape))} "
                f"({(str(error) or 'wrong size').splitlines()[0]})"
            ) from error
        return network

    def tensor_name(self, name: str) -> str | None:
        if name.startswith(AUXILIARY):
            return None
        return OLD_DENSENET.sub(r"\1\2", name)
