"""Small pictures side by side, each a link to its attributions."""

from collections.abc import Sequence
from html import escape

import numpy as np
import streamlit as st

from core.whatif import Answer
from view import frame, pictures
from view.engine import Scene

SHOWN = 8  # at most, of each kind


def flips(scene: Scene, answer: Answer) -> None:
    """Images lost and gained: what they are, what was said, and a link to why."""
    change = answer.change
    for title, found, none in (
        ("Lost", change.lost, "no picture that was right is now wrong"),
        ("Gained", change.gained, "no picture that was wrong is now right"),
    ):
        where = found.tolist()
        st.markdown(f"**{title}: {len(where):,}**" + (f" (first {SHOWN})" if len(where) > SHOWN else ""))
        if not where:
            st.caption(none[0].upper() + none[1:] + ".")
            continue
        words = [_words(scene, answer, place) for place in where[:SHOWN]]
        thumbs(scene, where[:SHOWN], words, key=title)


def _words(scene: Scene, answer: Answer, place: int) -> str:
    """What picture `place` of an exact answer is, and what both networks say."""
    label = scene.label(place)
    before = scene.data.classes[int(scene.whatif.original.logits[place].argmax())]
    after = scene.data.classes[int(answer.logits[place].argmax())]
    return f"<b>{escape(label)}</b><br>A {mark(before, label)}<br>B {mark(after, label)}"


def mark(said: str, label: str) -> str:
    """The answer, with a cross and the word where it is wrong."""
    return escape(said) if said == label else f'<span class="ps-loss">&#10007; {escape(said)} wrong</span>'


def thumbs(scene: Scene, where: Sequence[int], words: Sequence[str], key: str) -> None:
    """Pictures with a few words of HTML each, and a link to the Attributions page."""
    with st.container(horizontal=True, gap="small", key=f"thumbs-{key}"):
        for place, text in zip(where, words, strict=True):
            with st.container(width=104, gap=None):
                alt = f"picture {place}, labelled {scene.label(place)}"
                st.html(thumb([scene.picture(place)], alt, text))
                frame.goto("pages/attributions.py", f"#{place} why?", image=int(place), model=scene.key)


def thumb(drawn: Sequence[np.ndarray], alt: str, text: str) -> str:
    """One or more small pictures above a few words of HTML."""
    images = "".join(f'<img src="{pictures.source(each, 96)}" alt="{escape(alt)}">' for each in drawn)
    pair = ' class="pair"' if len(drawn) > 1 else ""
    return f'<div class="ps-thumb"><div{pair}>{images}</div><p>{text}</p></div>'
