"""Methods: what does this paper do to my model?"""
# ruff: noqa: E402 (the frame is drawn before the engine is imported)

from view import frame

frame.require()

import streamlit as st

from view import charts

QUESTION = "What does this method do to my network?"
st.html(charts.heading(QUESTION, "put a recipe together, carry it out, look at what it did"))

from view import engine, jobs, outcome, recipes

scene = engine.scene()
asks, shows = st.columns([4, 9], gap="large")
with asks:
    st.button(
        "Carry out",
        icon=":material/play_arrow:",
        type="primary",
        on_click=recipes.begin,
        args=(scene,),
        help="Compress a copy of the network; the original stays as it is",
    )
    recipes.editor(scene)
    recipes.seed()
    jobs.device()
    jobs.recipes(scene)
with shows:
    found = recipes.outcome(scene)
    if found is not None:
        outcome.show(scene, found, stale=found.recipe != recipes.current())
