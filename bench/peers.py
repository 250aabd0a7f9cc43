"""What people run instead, each way as its documentation shows it."""

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from core.bundles import Split

BATCH = 250


class Peers:
    """One network and its pictures, normalised and in memory; every way answers with classes (N,)."""

    def __init__(self, model: nn.Module, split: Split) -> None:
        self.model = model
        self.images = split.images  # (N, C, H, W)

    def plain(self, removed: Mapping[str, int]) -> np.ndarray:
        """Deep copy, `ln_structured` with so many filters of each layer, evaluation of all pictures."""
        model = copy.deepcopy(self.model)
        for layer, count in removed.items():
            prune.ln_structured(model.get_submodule(layer), "weight", amount=count, n=2, dim=0)
        return self._classes(model)

    def smaller(self, layer: str, count: int) -> np.ndarray:
        """Deep copy, `count` filters of `layer` removed by Torch-Pruning's pruner, evaluation."""
        import torch_pruning

        model = copy.deepcopy(self.model).requires_grad_(True)  # it follows the autograd graph
        target = model.get_submodule(layer)
        width = len(target.weight)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            self.images[:1],
            importance=torch_pruning.importance.MagnitudeImportance(p=2, group_reduction="first"),
            pruning_ratio=0.0,
            pruning_ratio_dict={target: (count - 0.5) / width},  # it keeps the whole part of the rest
            ignored_layers=[last_layer(model)],
        )
        pruner.step()
        return self._classes(model)

    def onnx(self) -> np.ndarray:
        """The untouched network through onnxruntime, at the better of two batch sizes."""
        session, batch = self._session
        return _run(session, self.images, batch).argmax(1)

    @cached_property
    def _session(self) -> tuple[Any, int]:
        """An onnxruntime session with default options, and the batch size that is faster there."""
        import io
        from time import perf_counter

        import onnxruntime

        file = io.BytesIO()
        torch.onnx.export(
            self.model,
            (self.images[:2],),
            file,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        took = {}
        for batch in (50, BATCH):
            _run(session, self.images[:BATCH], batch)
            start = perf_counter()
            _run(session, self.images[:BATCH], batch)
            took[batch] = perf_counter() - start
        return session, min(took, key=took.get)

    @torch.no_grad()
    def _classes(self, model: nn.Module) -> np.ndarray:
        return torch.cat([model(batch) for batch in self.images.split(BATCH)]).argmax(1).numpy()


def last_layer(model: nn.Module) -> nn.Module:
    *_, last = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    return last


def _run(session: Any, images: Tensor, batch: int) -> np.ndarray:
    """Logits (N, K)."""
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: part.numpy()})[0] for part in images.split(batch)])
