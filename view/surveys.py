"""Atlases made in the background for predictions: one for each network, question and criterion."""

from concurrent.futures import ThreadPoolExecutor, wait

import streamlit as st

from core import workers
from core.atlas import Atlas
from core.plan import Plan
from core.whatif import WhatIf
from view import engine

ENOUGH = 400  # images, where there are more: adding up sliders errs by more than so few images do

_POOL = ThreadPoolExecutor(1, "survey")  # one after the other, and only while nobody waits for other work


class Survey:
    """An atlas that becomes finer while it is used."""

    def __init__(self, whatif: WhatIf, about: Plan) -> None:
        self.latest: Atlas | None = None  # of which every cell is known
        self._work = _POOL.submit(self._make, whatif, about)

    def _make(self, whatif: WhatIf, about: Plan) -> None:
        with workers.background():
            for atlas in whatif.atlas(about.question, about.criterion):
                self.latest = atlas if atlas.complete else None
                if ENOUGH <= atlas.n < whatif.original.n:
                    return

    def finished(self, seconds: float) -> bool:
        """Whether it is as fine as it will be, waiting at most so long; what went wrong is raised here."""
        if not wait([self._work], seconds).done:
            return False
        self._work.result()
        return True


@st.cache_resource(max_entries=32, show_spinner=False)
def survey(key: str, about: Plan) -> Survey:
    """The survey of a network for the question and criterion of `about`; begun when first asked for."""
    return Survey(engine.whatif(key), about)
