"""Start: what is this, what do I touch first?"""
# ruff: noqa: E402 (the frame is drawn before the engine is imported)

from view import frame

frame.require()

import streamlit as st

st.html(
    '<p class="ps-lede">Prunescope removes parts of a trained neural network and shows, at once, '
    "<b>what it loses</b>, <b>what it saves</b>, and <b>whether it still looks at the same pixels</b>.</p>"
)
opening = st.container(border=True, key="opening")

from view import charts, engine, findings, lessons
from view.progress import watched

scene = engine.default()
with opening:
    left, right = st.columns([6, 5], gap="large", vertical_alignment="center")
    with left:
        result = st.empty()
        result.html('<p class="ps-lede">Measuring ...</p>')
st.html(charts.heading("Four things to try", "each opens a page; Back returns here"))
lessons.cards(scene)

run = watched(lambda progress: result.html(f'<p class="ps-lede">Measuring: {progress.fraction:.0%}</p>'))
found = findings.finding(scene, run)
result.html(lessons.opening(scene, found))
nouns = lessons.nouns(scene, found)
with left:
    frame.goto(lessons.ATTRIBUTIONS, "See this picture in full", icon=":material/visibility:", **nouns)
right.html(lessons.evidence(scene, found))
