"""Attributions: same answer, same reason?"""
# ruff: noqa: E402 (the frame is drawn before the engine is imported)

from view import frame

frame.require()

import time

import streamlit as st

NOTE = "A is the original network, B the one your plan makes"
st.html(f'<div class="ps-head"><h2>Same answer, same reason?</h2><span>{NOTE}</span></div>')

from view import charts, engine, maps, matched, reasons
from view import state as states
from view.progress import visible_run

SEARCHED = 64  # pictures that the gallery compares
QUICK_S = 1.0  # a method that takes longer for one picture is compared with noise on request only

scene = engine.scene()
method = maps.method()
scale, style = reasons.controls(scene, method)
row = st.container()
with visible_run(method.label()) as run:
    start = time.monotonic()
    pair = maps.pair(scene, method, reasons.target(scene), run)
    quick = time.monotonic() - start < QUICK_S
row.html(reasons.comparison(scene, pair, scale, style))

left, right = st.columns([3, 2], gap="large")
with left:
    st.html(charts.heading("How far do the maps agree?", "between a random network and mere noise"))
    agreed = st.container()
with right:
    st.html(charts.heading("Do they look at the object?"))
    st.html(reasons.on_object(scene, pair))

st.html(charts.heading("While more is removed", "your plan, scaled to this average; all on the scale of A"))
with visible_run("Film strip") as run:
    reasons.strip(scene, method, pair, run)

with agreed:
    diagonal = (scene.data.shape[1] ** 2 + scene.data.shape[2] ** 2) ** 0.5
    bounds = (None, None)
    if quick or st.button("Compare with noise and a random network", on_click=states.act):
        with visible_run("Random floor and noise ceiling") as run:
            bounds = maps.bounds(scene, method, [scene.image], reasons.class_of(pair), run)
    st.html(reasons.scores(pair.agreement, *bounds, diagonal))

with visible_run("Naive and matched") as run:
    matched.show(scene, method, reasons.target(scene), run)

st.html(
    charts.heading("Same answer, most different reason", f"among {SEARCHED} pictures on which A and B agree")
)
searched = (scene.key, scene.plan, method)
if st.button("Search", icon=":material/search:", on_click=states.act, disabled=scene.untouched):
    states.state().kept["searched"] = searched
if scene.untouched:
    st.caption("Both networks are the same: remove something on the Prune page first.")
elif states.state().kept.get("searched") == searched:
    with visible_run("Searching") as run:
        reasons.most_different(scene, method, SEARCHED, run)
