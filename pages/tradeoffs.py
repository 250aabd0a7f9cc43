"""Trade-offs: where is the cliff, and which layer is to blame?"""
# ruff: noqa: E402 (the frame is drawn before the engine is imported)

from view import frame

frame.require()

import streamlit as st

from view import charts

QUESTION = "Where is the cliff, and which layer is to blame?"
st.html(charts.heading(QUESTION, "every slider alone, at nine sparsities; press a cell to make it the plan"))

from view import atlas as atlases
from view import controls, engine, leaderboard, surveys
from view import state as states

scene = engine.scene()
controls.question(scene)
survey = surveys.survey(scene.key, scene.plan)
survey.go_on()


def press() -> None:
    """Make the cell that was pressed the plan."""
    states.act()
    if pressed := st.session_state["atlas"].selection.point_indices:
        controls.save(scene, survey.atlas.plan(*atlases.cell(survey.atlas, pressed[0])))


@surveys.watching(survey)
def atlas() -> None:
    """The newest atlas, drawn again while it grows."""
    if states.state().nouns.plan != drawn or surveys.survey(scene.key, scene.plan) is not survey:
        st.rerun(scope="app")  # a cell was pressed, or the survey begun again: the whole page must follow
    with st.container(horizontal=True, vertical_alignment="center", key="survey"):
        st.html(surveys.status(survey, len(scene.split)), width="content")
        if survey.running:
            st.button("Stop", icon=":material/stop:", on_click=survey.stop)
        elif not (survey.problem or (survey.atlas and survey.atlas.exact)):
            args = (scene.key, scene.plan)
            st.button("Begin again", icon=":material/play_arrow:", on_click=surveys.again, args=args)
    if survey.atlas is None:
        return
    words = atlases.finding(survey.atlas)
    st.markdown(words)
    shown = atlases.figure(survey.atlas, st.context.theme.type == "dark")
    options = {"displayModeBar": False}
    st.plotly_chart(shown, alt=words, key="atlas", on_select=press, selection_mode="points", config=options)
    details = st.expander("The atlas as a table", on_change=states.act, key="atlas-table")
    if details.open:
        details.dataframe(atlases.table(survey.atlas).style.format("{:.1%}"), alt=words)


drawn = states.state().nouns.plan
atlas()
leaderboard.show(scene)
