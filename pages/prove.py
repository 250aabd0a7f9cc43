"""Prove: does the compressed network still deserve the certificate?"""
# ruff: noqa: E402 (the frame is drawn before the engine is imported)

from view import frame

frame.require()

import streamlit as st

from view import charts

QUESTION = "Does the compressed network still deserve the certificate?"
st.html(charts.heading(QUESTION, "is the answer the same for every picture that lies this close?"))

from view import engine, proofs, prove

scene = engine.scene()
if prove.ready(scene):
    asks, shows = st.columns([4, 9], gap="large")
    with asks:
        prove.controls(scene)
    with shows:
        found = proofs.answer(scene)
        st.html(charts.heading("What do bounds know at once?", "of every ReLU, for all pictures this close"))
        proofs.every_relu(scene, found)
        if found is not None:
            proofs.in_detail(scene, found)
        proofs.accuracy(scene)
