"""Prune: what do I lose if I remove these weights?"""

from view import frame

frame.require()

import streamlit as st

from view import charts, controls, engine, gallery, results
from view import state as states

scene = engine.scene()
head, cards = st.empty(), st.empty()
head.html(charts.heading("What do I lose if I remove these weights?"))
controls.presets(scene)

left, right = st.columns([5, 7], gap="large")
with left:
    controls.question(scene)
    controls.sliders(scene)

with right:
    by = st.segmented_control(
        "Width of a bar",
        ["weights", "MACs"],
        default="weights",
        key="width",
        required=True,
        on_change=states.act,
    )
    st.html(charts.bars(results.bars(scene, by), by))
    details = st.expander(
        "The bars as a table, with the layers that share channels", on_change=states.act, key="table"
    )
    if details.open:
        details.dataframe(
            results.table(scene), hide_index=True, alt="Sparsity, weights and MACs of every slider"
        )
    flipped = st.container()  # keeps the last pictures on screen until there are new ones
    with st.container(horizontal=True):
        st.button("Measure latency", icon=":material/timer:", on_click=results.measure_latency, args=(scene,))
        with st.popover("Export", icon=":material/download:"):
            results.exports(scene)
        frame.goto("pages/attributions.py", "Same reasons? See the maps", icon=":material/visibility:")

before = states.state().kept.get("answer")
if before and before[0] == scene.key:  # keep the last number, dimmed, while the new one is computed
    cards.html(charts.cards(results.cards(scene, before[1]), dim=True))

for answer in scene.whatif.answer(scene.plan):
    cards.html(charts.cards(results.cards(scene, answer)))
    head.html(charts.heading("What do I lose if I remove these weights?", results.status(answer)))
    states.state().kept["answer"] = (scene.key, answer)
    if answer.exact:
        with flipped:
            gallery.flips(scene, answer)
