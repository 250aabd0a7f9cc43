"""What surrounds every page: which pages exist, where you are, and the nouns model, plan and image."""

import contextlib
import runpy
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from html import escape
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.errors import UserError
from view import state as states
from view.url import Nouns, to_query

ROOT = Path(__file__).parent.parent
PAGES = {
    "Start": "pages/start.py",
    "Prune": "pages/prune.py",
    "Attributions": "pages/attributions.py",
    "Trade-offs": "pages/tradeoffs.py",
    "Methods": "pages/methods.py",
    "Prove": "pages/prove.py",
    "Learn": "pages/learn.py",
}
_inside: ContextVar[bool] = ContextVar("inside", default=False)


def require() -> None:
    """First line of every page: run the front door around it, should it have been opened alone.

    A fresh server whose first request names a page runs that file by itself, because there is a
    folder called pages; from the second request on `st.navigation` is known.
    """
    if not _inside.get():
        runpy.run_path(str(ROOT / "app.py"))
        st.stop()


@contextlib.contextmanager
def around(page: st.Page) -> Iterator[None]:
    """Draw the frame, then let the page run inside it; what a reader can put right is said in a sentence."""
    st.html(ROOT / "assets" / "style.css")
    written = states.synchronise(st.query_params)
    if written is not None:
        st.query_params.from_dict(written)
    token = _inside.set(True)
    try:
        _draw(page)
        notice = st.empty()
        _say(notice)
        yield
        _say(notice)  # the page may have found something unknown in the link, too
    except UserError as error:
        st.error(str(error), icon=":material/error:")
    finally:
        _inside.reset(token)


def _draw(page: st.Page) -> None:
    with st.container(key="frame"):
        _links(page)
        nouns = st.empty()
        if "torch" not in sys.modules:  # a fresh server: show something before the engine is loaded
            words = f"{_words(states.state().nouns)}: loading the engine"
            nouns.html(f'<div class="ps-loading" role="status">{words}</div>')
            time.sleep(0.05)  # lets the server send it
        from view import nouns as controls

        with nouns.container():
            controls.draw()


def _say(place: DeltaGenerator) -> None:
    """What the reader should know before looking at the page."""
    if notice := states.state().notice:
        place.info(notice, icon=":material/link_off:")


def _links(page: st.Page) -> None:
    """The pages, as links that carry the present state."""
    query = to_query(states.state().nouns)
    with st.container(horizontal=True, vertical_alignment="center", key="links"):
        st.html('<div class="ps-brand">Prunescope</div>', width="content")
        for title, path in PAGES.items():
            st.page_link(path, label=title, query_params=query)


def _words(nouns: Nouns) -> str:
    return escape(" · ".join(filter(None, [nouns.model or "Default network", f"picture #{nouns.image}"])))


def goto(path: str, label: str, *, icon: str | None = None, width: str = "content", **nouns) -> None:
    """A link to another page with some nouns replaced."""
    target = replace(states.state().nouns, **nouns)
    st.page_link(path, label=label, icon=icon, width=width, query_params=to_query(target))
