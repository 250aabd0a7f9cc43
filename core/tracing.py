"""Turning a network's code into a graph while other threads go on using networks."""

import threading
from typing import Any

from torch import fx, nn

_ONE_AT_A_TIME = threading.Lock()


class _Tracer(fx.Tracer):
    """Records the calls of its own thread.

    While torch.fx traces, it patches `nn.Module` itself, so that calls of every thread come through
    here; those of other threads are passed on as they are.
    """

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def trace(model: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """`model` as a graph of calls, with its own submodules under their names.

    Modules of torch itself and of the classes `leaves` are one call each.

    Every use of torch.fx's tracing in a server belongs here: two traces at once would leave
    `nn.Module` patched for good.

    Raises:
        Exception: of any kind, where the code cannot be traced; it is run on symbols.
    """
    with _ONE_AT_A_TIME:
        return fx.GraphModule(model, _Tracer(leaves).trace(model))
