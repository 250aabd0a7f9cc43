"""What readers share: computed once, kept for all, bounded."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import streamlit as st

from core.plan import Plan
from core.recipe import Recipe

F = TypeVar("F", bound=Callable)


def shared(most: int | None = None) -> Callable[[F], F]:
    """Decorator: keep the last `most` results of a function, for all readers.

    Plans and recipes are told apart by all they say. Left to itself, Streamlit takes a dataclass for
    its values alone, and two criteria without hyper-parameters for the same.
    """
    by_words = {Plan: repr, Recipe: repr}
    return st.cache_resource(max_entries=most, show_spinner=False, hash_funcs=by_words)


def computed(most: int) -> Callable[[F], F]:
    """The same for a function that draws how far it is; its keyword arguments tell no results apart.

    Streamlit would record what it draws, and fail when it plays that back on another page.
    """

    def decorate(function: F) -> F:
        held: OrderedDict[str, Any] = OrderedDict()
        lock = threading.Lock()

        @wraps(function)
        def call(*asked: Any, **others: Any) -> Any:
            key = repr(asked)
            with lock:
                if key in held:
                    held.move_to_end(key)
                    return held[key]
            found = function(*asked, **others)
            with lock:
                held[key] = found
                while len(held) > most:
                    held.popitem(last=False)
            return found

        return call

    return decorate
