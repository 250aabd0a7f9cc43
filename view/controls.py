"""What a person moves on the Prune page: question, criterion, presets, locks and sliders."""

from dataclasses import replace

import streamlit as st

from core.criterion import CRITERIA
from core.errors import UserError
from core.goal import Goal
from core.plan import PRESETS, QUESTIONS, Plan
from core.whatif import Slider
from view import charts, forms
from view import state as states
from view.engine import Scene, rehearsal
from view.progress import visible_run

VIEWS = ["Live bars", "Plain sliders"]


def save(scene: Scene, plan: Plan) -> None:
    """Make `plan` the present one."""
    states.change(plan=plan.to_text(scene.whatif.sliders), model=scene.key)


def current(scene: Scene) -> Plan:
    """The plan as it is now: callbacks of one run may have changed it since `scene` was made."""
    text = states.state().nouns.plan
    return Plan.from_text(text, scene.whatif.sliders) if text else Plan()


def question(scene: Scene) -> None:
    """What a slider means, and which criterion says what goes first."""
    asks, first = st.columns(2)
    forms.held("question", scene.plan.question)
    asks.selectbox(
        "A slider means",
        list(QUESTIONS),
        format_func=lambda name: QUESTIONS[name].label,
        key="question",
        on_change=lambda: _ask(scene, st.session_state["question"]),
    )
    names = [
        name for name in CRITERIA if scene.plan.question != "weights" or CRITERIA[name].grain == "weight"
    ]
    forms.held("criterion", scene.plan.criterion.name)
    first.selectbox(
        "Lowest goes first",
        names,
        format_func=lambda name: CRITERIA[name].label(),
        key="criterion",
        on_change=lambda: save(
            scene, replace(current(scene), criterion=CRITERIA[st.session_state["criterion"]]())
        ),
        help=scene.plan.criterion.summary(),
    )
    st.caption(QUESTIONS[scene.plan.question].help + ".")


def _ask(scene: Scene, asked: str) -> None:
    """Another question: the sliders that both have keep their place."""
    plan, names = current(scene), {slider.name for slider in scene.whatif.sliders(asked)}
    kept = tuple((name, level) for name, level in plan.sparsities if name in names)
    fits = asked != "weights" or plan.criterion.grain == "weight"
    save(scene, Plan(asked, plan.criterion if fits else None, kept))


def presets(scene: Scene) -> None:
    """Whole plans at one press; locked sliders stay where they are."""
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom", key="presets"):
        for name, chosen in PRESETS.items():
            st.button(
                chosen.label, key=f"preset.{name}", help=chosen.help, on_click=_preset, args=(scene, name)
            )
        forms.held("amount", states.state().amount)
        st.slider(
            "Sparsity of presets", 5, 95, step=5, format="%d %%", key="amount", on_change=_amount, width=190
        )
        with st.popover(f"Locks ({len(states.state().locked)})", icon=":material/lock:"):
            locks(scene)
        with st.popover("Goal", icon=":material/flag:"):
            goal(scene)


def goal(scene: Scene) -> None:
    """The strongest plan for an affordable loss, or the weakest for a saving."""
    st.caption("All sliders move together until the goal is met, on validation pictures; locked ones stay.")
    kept = states.state().kept
    forms.configure(lambda: kept.get("goal", Goal()), lambda changed: kept.update(goal=changed), key="goal")
    shape = st.segmented_control(
        "Shape of the plan",
        ["uniform", "global"],
        default="uniform",
        format_func=lambda name: PRESETS[name].label,
        key="shape",
        required=True,
        on_change=states.act,
    )
    if st.button("Find the plan", type="primary", key="goal.find", on_click=states.act):
        plan = current(scene)
        with visible_run("Seeking") as run:
            found = kept.get("goal", Goal()).seek(
                lambda strength: _made(scene, plan, shape, strength), rehearsal(scene.key), run
            )
        save(scene, found)
        st.rerun()


def _amount() -> None:
    states.act()
    states.state().amount = st.session_state["amount"]


def _preset(scene: Scene, name: str) -> None:
    plan = current(scene)
    fixed = PRESETS[name].sparsity if name == "break-it" else states.state().amount / 100
    try:
        save(scene, _made(scene, plan, name, fixed))
    except UserError as error:
        states.state().notice = str(error)


def _made(scene: Scene, plan: Plan, name: str, strength: float) -> Plan:
    """Preset `name` at that strength, with the locked sliders as `plan` has them."""
    made = scene.whatif.preset(name, plan.question, plan.criterion, strength)
    for slider in scene.sliders:
        if slider.name in states.state().locked:
            made = made.with_sparsity(slider.name, plan.sparsity(slider.name))
    return made


def locks(scene: Scene) -> None:
    """Which sliders presets leave alone."""
    names = [slider.name for slider in scene.sliders]
    forms.held("locks", [name for name in names if name in states.state().locked])
    st.multiselect("Locked for presets", names, key="locks", on_change=_lock, placeholder="None")


def _lock() -> None:
    states.act()
    states.state().locked = frozenset(st.session_state["locks"])


def sliders(scene: Scene) -> None:
    """One slider per layer or group, in two columns that read downwards."""
    half = -(-len(scene.sliders) // 2)
    with st.container(height=470, border=True, key="sliders"):
        columns = st.columns(2, gap="medium")
        for index, slider in enumerate(scene.sliders):
            with columns[index // half]:
                _slider(scene, index + 1, slider)


def _slider(scene: Scene, index: int, slider: Slider) -> None:
    key = f"slider.{scene.key}.{scene.plan.question}.{slider.name}"
    level = scene.plan.sparsity(slider.name)
    forms.held(key, round(100 * level))
    asked = scene.plan.question
    unit = "weights" if asked == "weights" else "channels"
    shared = f", in {len(slider.layers)} layers" if len(slider.layers) > 1 else ""
    locked = " :material/lock:" if slider.name in states.state().locked else ""
    kept = f"{charts.count(slider.kept(asked, level))} of {charts.count(slider.entries(asked))} {unit}"
    st.slider(
        f"{index} · {slider.name} · {kept}{shared}{locked}",
        0,
        100,
        step=1,
        format="%d %%",
        key=key,
        on_change=lambda: save(scene, current(scene).with_sparsity(slider.name, st.session_state[key] / 100)),
        help="Layers: " + ", ".join(slider.layers) if len(slider.layers) > 1 else None,
    )


def bar_width() -> str:
    """What the width of a bar stands for: "weights" or "MACs"."""
    return st.segmented_control(
        "Width of a bar",
        ["weights", "MACs"],
        default="weights",
        key="width",
        required=True,
        on_change=states.act,
    )


def plain() -> bool:
    """Whether the reader wants plain sliders in place of the live bars."""
    forms.held("view", VIEWS[states.state().plain])
    st.segmented_control("Show", VIEWS, key="view", required=True, on_change=_view)
    return states.state().plain


def _view() -> None:
    states.act()
    states.state().plain = st.session_state["view"] == VIEWS[True]
