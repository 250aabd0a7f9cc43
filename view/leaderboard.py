"""The leaderboard of a network: everybody at a glance, the chosen as curves."""

import shlex

import pandas as pd
import streamlit as st

from core.leaderboard import Leaderboard, shipped
from core.standings import figures, means_of
from view import charts
from view import figures as pictures
from view import state as states
from view.engine import Scene
from view.forms import held
from view.shared import shared
from view.url import method_to_text

MOST = 8  # curves that can be told apart


@shared()
def boards() -> dict[str, Leaderboard]:
    """Key of a network -> its leaderboard, of those that come with the program."""
    return shipped()


def show(scene: Scene) -> None:
    """The methods measured on this network; the command that measures them where none were."""
    _board(scene, "Which method keeps most?", "measured beforehand, each on its own", "")
    _board(scene, "What does training bring back?", "after the same pruning, measured beforehand", "trained")


def _board(scene: Scene, question: str, note: str, kind: str) -> None:
    st.html(charts.heading(question, note))
    board = boards().get(f"{scene.key}--{kind}" if kind else scene.key)
    if board is None:
        words = ["python", "cli.py", "leaderboard", method_to_text(scene.bundle.architecture)]
        words += ["--data", scene.bundle.dataset, *([f"--{kind}"] if kind else [])]
        st.caption("Nothing was measured for this network yet. In a shell, this does it:")
        st.code(shlex.join(words), language="sh", wrap_lines=True)
        return
    about, table = board.about, board.standings()
    st.caption(
        f"Accuracy on {about['n']:,} test pictures; maps of {about['explained']} by integrated gradients; "
        f"{int(table.seeds.max())} seeds."
    )
    names = list(dict.fromkeys(table.contestant))
    means = means_of(table)
    kinds = [name.partition(" · ")[0] for name in means.index]
    best = list(means.index) if kind else list(means.index[~pd.Series(kinds).duplicated()])
    chosen = _choose(names, best[:MOST], f"contestants{kind}")
    pictures.show(figures(board, chosen), f"leaderboard{kind}")


def _choose(names: list[str], best: list[str], key: str) -> list[str]:
    """The contestants drawn as curves: the best of every method until a reader chooses."""
    kept = states.state().kept
    chosen = [name for name in kept.get(key, best) if name in names]
    held(key, chosen)

    def choose() -> None:
        states.act()
        kept[key] = st.session_state[key]

    st.multiselect("Drawn as curves", names, chosen, key=key, max_selections=MOST, on_change=choose)
    return chosen
