"""Methods: what does this paper do to my model?"""
# ruff: noqa: E402 (the frame is drawn before the engine is imported)

from view import frame

frame.require()

import streamlit as st

from view import charts

QUESTION = "What does this method do to my network?"
st.html(charts.heading(QUESTION, "put a recipe together, carry it out, look at what it did"))

from view import engine, outcome, recipes

scene = engine.scene()
asks, shows = st.columns([4, 9], gap="large")
with asks:
    st.button(
        "Carry out",
        icon=":material/play_arrow:",
        type="primary",
        on_click=recipes.ask,
        args=(scene,),
        help="Compress a copy of the network; the original stays as it is",
    )
    recipes.editor(scene)

with shows:
    recipe = recipes.asked(scene)
    if recipe is None:
        st.info("Choose a method and its settings, then press Carry out. Anything you do meanwhile stops it.")
        st.stop()
    found = recipes.carry_out(scene, recipe)
    stale = recipe != recipes.current()
    st.html(charts.cards(outcome.cards(scene, found, dim=stale)))
    if stale:
        st.caption(
            "These numbers belong to the recipe that was carried out last, not to the one on the left."
        )
    with st.popover("Export", icon=":material/download:"):
        outcome.exports(scene, found)
    outcome.steps(found)
    outcome.inside(scene, found)
