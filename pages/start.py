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

scene = engine.default()
with opening:
    left, right = st.columns([1, 1], gap="large", vertical_alignment="center")
    with left:
        result = st.empty()
        result.html('<p class="ps-lede">Measuring ...</p>')
st.html(charts.heading("Four things to try", "each opens a page; Back returns here"))
lessons.cards(scene)

found = findings.finding(scene.key, scene)
result.html(lessons.opening(scene, found))
with left:
    plan = found.plan.to_text(scene.whatif.sliders)
    frame.goto(
        lessons.ATTRIBUTIONS,
        "See this picture in full",
        icon=":material/visibility:",
        model=scene.key,
        plan=plan,
        image=found.place,
    )
right.html(lessons.evidence(scene, found))
