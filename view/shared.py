"""What readers share: computed once, kept for all, bounded."""

from collections.abc import Callable
from typing import TypeVar

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
