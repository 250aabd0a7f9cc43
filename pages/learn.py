"""Learn: what do the words mean? Small experiments, made on the spot."""
# ruff: noqa: E402 (the frame is drawn before the engine is imported)

from view import frame

frame.require()

import streamlit as st

from view import charts

QUESTION = "What do the words mean?"
st.html(
    charts.heading(QUESTION, "small experiments by the same engine; change a setting and it is made again")
)

from view import engine, labs

scene = engine.scene()
asks, shows = st.columns([3, 9], gap="large")
with asks:
    labs.controls()
with shows:
    labs.results(scene)
