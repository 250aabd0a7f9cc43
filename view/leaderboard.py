"""The leaderboard of a network: everybody at a glance, the chosen as curves."""

import shlex

import pandas as pd
import streamlit as st

from core.leaderboard import Leaderboard, figures, means_of, shipped
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
    st.html(charts.heading("Which method keeps most?", "measured beforehand, each on its own"))
    board = boards().get(scene.key)
    if board is None:
        words = ["python", "cli.py", "leaderboard", method_to_text(scene.bundle.architecture)]
        st.caption("Nothing was measured for this network yet. In a shell, this does it:")
        st.code(shlex.join([*words, "--data", scene.bundle.dataset]), language="sh", wrap_lines=True)
        return
    about, table = board.about, board.standings()
    st.caption(
        f"Accuracy on {about['n']:,} test pictures; maps of {about['explained']} by integrated gradients; "
        f"{int(table.seeds.max())} seeds."
    )
    names = list(dict.fromkeys(table.contestant))
    means = means_of(table)
    kinds = [name.partition(" · ")[0] for name in means.index]
    chosen = _choose(names, list(means.index[~pd.Series(kinds).duplicated()])[:MOST])
    pictures.show(figures(board, chosen), "leaderboard")


def _choose(names: list[str], best: list[str]) -> list[str]:
    """The contestants drawn as curves: the best of every method until a reader chooses."""
    kept = states.state().kept
    chosen = [name for name in kept.get("contestants", best) if name in names]
    held("contestants", chosen)

    def choose() -> None:
        states.act()
        kept["contestants"] = st.session_state["contestants"]

    st.multiselect("Drawn as curves", names, chosen, key="contestants", max_selections=MOST, on_change=choose)
    return chosen
