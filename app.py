"""The front door: one page, inside the frame."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded: idle threads must not spin

import streamlit as st

from view import frame

st.set_page_config("Prunescope", "assets/icon.png", layout="wide", initial_sidebar_state="collapsed")

page = st.navigation(
    [st.Page(path, title=title, default=title == "Start") for title, path in frame.PAGES.items()],
    position="hidden",  # the frame draws links that carry the state
)

with frame.around(page):
    page.run()
