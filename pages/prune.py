"""Prune: what do I lose if I remove these weights?"""
# ruff: noqa: E402 (the frame is drawn before the engine is imported)

from view import frame

frame.require()

import streamlit as st

QUESTION = "What do I lose if I remove these weights?"
head, cards = st.empty(), st.empty()
head.html(f'<div class="ps-head"><h2>{QUESTION}</h2></div>')

from view import charts, controls, engine, gallery, latency, live, results
from view import state as states
from view.progress import watched

scene = engine.scene()
stale = results.last(scene)
cards.html(charts.cards(stale))
controls.presets(scene)

asks, shows = st.columns([6, 5], gap="large")
with asks:
    controls.question(scene)
with shows, st.container(horizontal=True, vertical_alignment="bottom"):
    by, plain = controls.bar_width(), controls.plain() or not scene.sliders

if plain:
    left, right = st.columns([5, 7], gap="large")
    with left:
        controls.sliders(scene)
    right.html(charts.bars(results.bars(scene, by), by))
else:
    told = live.bars(scene, by)
    told.html(live.facts(scene, results.measured(scene) or scene.whatif.original))

with st.container(horizontal=True, vertical_alignment="bottom"):
    st.button("Measure latency", icon=":material/timer:", on_click=latency.measure, args=(scene,))
    with st.popover("Export", icon=":material/download:"):
        results.exports(scene)
    frame.goto("pages/attributions.py", "Same reasons?", icon=":material/visibility:")
latency.report(scene)
details = st.expander("The bars as a table, and who shares channels", on_change=states.act, key="table")
if details.open:
    words = "Sparsity, weights and MACs of every slider"
    details.dataframe(results.table(scene), hide_index=True, alt=words)
flipped = st.container()  # keeps the last pictures on screen until there are new ones

run = watched(lambda progress: head.html(charts.heading(QUESTION, results.working(progress))))
for answer in scene.whatif.answer(scene.plan, run):
    states.state().kept["answer"] = (scene.key, answer)
    if not plain:
        told.html(live.facts(scene, answer))
    head.html(charts.heading(QUESTION, results.status(answer)))
    cards.html(charts.cards([results.accuracy(answer), *stale[1:]]))
cards.html(charts.cards([results.accuracy(answer), *results.costs(scene, scene.plan)]))
with flipped:
    gallery.flips(scene, answer)
if not plain:
    live.predict(scene, answer, told)
