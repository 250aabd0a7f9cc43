"""Start."""

from view import frame

frame.require()

import streamlit as st

st.title("start")
