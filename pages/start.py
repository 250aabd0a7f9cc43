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
from view.progress import visible_run, watched

scene = engine.default()
with opening:
    left, right = st.columns([6, 5], gap="large", vertical_alignment="center")
    with left:
        result = st.empty()
        result.html('<p class="ps-lede">Measuring ...</p>')
st.html(
    charts.heading(
        "Training brings the answers back. And the reasons?", "pruned and trained again, in two ways"
    )
)
second = st.container(border=True, key="second")
st.html(charts.heading("Five things to try", "each opens a page; Back returns here"))
lessons.cards(scene)

run = watched(lambda progress: result.html(f'<p class="ps-lede">Measuring: {progress.fraction:.0%}</p>'))
found = findings.finding(scene, run)
result.html(lessons.opening(scene, found))
nouns = lessons.nouns(scene, found)
with left:
    frame.goto(lessons.ATTRIBUTIONS, "See this picture in full", icon=":material/visibility:", **nouns)
right.html(lessons.evidence(scene, found))
with second, visible_run("Comparing two trainings") as run:
    surprise = findings.surprise(scene.key, scene=scene, run=run)
    if surprise:
        words, seen = st.columns([5, 6], gap="large", vertical_alignment="center")
        words.html(lessons.trained(surprise))
        with words:
            look = {"model": scene.key, "plan": "", "image": surprise.place}
            frame.goto(lessons.ATTRIBUTIONS, "Compare both trainings", icon=":material/compare:", **look)
        seen.html(lessons.three(scene, surprise))
