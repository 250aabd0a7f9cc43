"""One reader's state: the nouns of every page, their history, and the link that carries them.

The address bar and the widgets both change the nouns. Every widget does so in a callback, through
`change`, which marks the run; a run that no callback marked and whose link differs from the last one
written comes from the address bar, a link or the Back button, and is believed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import streamlit as st

from view.url import Nouns, from_query, to_query

DEPTH = 200  # states that Undo remembers


@dataclass
class History:
    """Undo and redo over values."""

    now: Nouns = field(default_factory=Nouns)
    past: list[Nouns] = field(default_factory=list)
    future: list[Nouns] = field(default_factory=list)

    def record(self, value: Nouns) -> None:
        """Go on to `value`, forgetting what was undone; the value of now is not recorded twice."""
        if value != self.now:
            self.past = [*self.past, self.now][-DEPTH:]
            self.now, self.future = value, []

    def undo(self) -> None:
        if self.past:
            self.future.append(self.now)
            self.now = self.past.pop()

    def redo(self) -> None:
        if self.future:
            self.past.append(self.now)
            self.now = self.future.pop()


@dataclass
class State:
    """Everything kept between two runs of one reader's script."""

    history: History = field(default_factory=History)
    written: dict[str, str] | None = None  # the link's parameters as last written or read
    acted: bool = False  # a widget has spoken since the last run
    notice: str = ""  # said above the page until the reader does something
    amount: int = 50  # per cent, for presets
    locked: frozenset[str] = frozenset()  # sliders that presets leave alone
    plain: bool = False  # the sliders of Prune are plain ones, not live bars
    kept: dict[str, Any] = field(default_factory=dict)  # the last result of each kind, shown dimmed meanwhile

    @property
    def nouns(self) -> Nouns:
        return self.history.now


def state() -> State:
    return st.session_state.setdefault("state", State())


def act() -> None:
    """Callback of a widget that changes no noun: the next run is no visit by link."""
    state().acted, state().notice = True, ""


def change(**nouns: Any) -> None:
    """Go to the present nouns with `nouns` replaced; Undo comes back."""
    act()
    state().history.record(replace(state().nouns, **nouns))


def undo() -> None:
    act()
    state().history.undo()


def redo() -> None:
    act()
    state().history.redo()


def reset() -> None:
    """Back to the untouched network; model, image and method stay."""
    change(plan="", seed=0)


def synchronise(query: Mapping[str, str]) -> dict[str, str] | None:
    """Bring state and link together; returns the parameters to write, None where the link is right."""
    held, query = state(), dict(query)
    if held.acted:
        held.acted = False
        held.written = to_query(held.nouns)
        return held.written if held.written != query else None
    if query != held.written:
        nouns, problems = from_query(query)
        if held.written is None:
            held.history.now = nouns
        else:
            held.history.record(nouns)
        held.written, held.notice = query, ""
        if problems:
            held.notice = (
                f"This link could not be read in full ({', '.join(problems)}); the rest is as it was sent."
            )
    return None
