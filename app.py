"""The front door: which pages exist, in which order."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded: idle threads must not spin

import streamlit as st

from view import frame

st.set_page_config("Prunescope", "assets/icon.png", layout="wide", initial_sidebar_state="collapsed")

page = st.navigation(
    [
        st.Page("pages/start.py", title="Start", default=True),
        st.Page("pages/prune.py", title="Prune"),
        st.Page("pages/attributions.py", title="Attributions"),
    ],
    position="hidden",  # the frame draws links that carry the state
)

with frame.around(page):
    page.run()
