"""Widgets drawn from declarations: no page ever names a hyper-parameter.

A form shows a method and hands every change to `save` at once. It reads the method it changes
through `get` when the change happens, so that two changes in one breath both count.

Every widget gets its value twice, as its default and, where it must change, through the session: a
form in a closed popover does not exist in the browser yet, and learns its value from the default.
"""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from core.errors import UserError
from core.method import Choice, Domain, Flag, Method, Nested, Number, PerLayer
from core.registry import Registry
from core.tuning import Tuning
from view.state import state

PRESETS = {  # name -> button, and what it is for
    "paper": (
        "As in the paper",
        "The settings of the source: far more work than the defaults, which finish in minutes",
    ),
    "fresh-weights": ("Fresh weights", "For a student that knows nothing yet: minutes as well"),
}
FINEST = 1000  # steps of a slider; beyond that a field to type in is easier to hit


def pick(
    label: str, registry: Registry, get: Callable[[], Method], save: Callable[[Method], None], key: str
) -> None:
    """A select box over everything in `registry`; another choice starts at its defaults."""
    names, now = list(registry), get().name
    held(key, now)
    st.selectbox(
        label,
        names,
        names.index(now),
        format_func=lambda name: registry[name].label(),
        key=key,
        on_change=lambda: _guarded(save, lambda: registry[st.session_state[key]]()),
    )


def about(method: Method) -> None:
    """Its first line, and behind a button the rule and where it comes from."""
    st.caption(method.summary())
    first, *rest = inspect.getdoc(type(method)).split("\n\n")
    with st.popover("The rule and its source", icon=":material/menu_book:"):
        for paragraph in rest or [first]:
            st.markdown(re.sub(r"([*_$<\[\]~`])", r"\\\1", paragraph))


def configure(
    get: Callable[[], Method], save: Callable[[Method], None], key: str, layers: Sequence[str] = ()
) -> None:
    """One widget per hyper-parameter of the method `get()`; `layers` are offered for per-layer values."""
    method = get()
    own, of_training = _parts(method)
    _presets(get, save, f"{key}.{method.name}")

    def field(name: str, domain: Domain) -> None:
        def store(value: Any) -> None:
            _guarded(save, lambda: replace(get(), **{name: value}))

        widget(
            _label(name, domain),
            domain,
            getattr(method, name),
            store,
            key=f"{key}.{method.name}.{name}",
            get=lambda: getattr(get(), name),
            layers=layers,
        )

    for name, domain in own.items():
        field(name, domain)
    if of_training:
        with st.expander("How it is trained", icon=":material/fitness_center:", key=f"{key}.training"):
            for name, domain in of_training.items():
                field(name, domain)


def _parts(method: Method) -> tuple[dict[str, Domain], dict[str, Domain]]:
    """(what makes the method, how it is trained): of the latter a schedule has a dozen."""
    domains = method.domains()
    told = set(Tuning.domains()) if isinstance(method, Tuning) else set()
    changed = ("epochs", "learning_rate") if told else ()  # by people: these stay in sight
    own = [*(name for name in domains if name not in told), *changed]
    return {name: domains[name] for name in own}, {name: domains[name] for name in domains if name not in own}


def _presets(get: Callable[[], Method], save: Callable[[Method], None], key: str) -> None:
    """A button for the defaults and one for every preset of the method."""
    if not get().presets:
        return
    with st.container(horizontal=True, gap="small"):
        for name in get().presets:
            words, why = PRESETS.get(name, (name.replace("-", " ").capitalize(), "Settings for this case"))
            st.button(
                words,
                key=f"{key}.preset.{name}",
                on_click=lambda name=name: _guarded(save, lambda: get().preset(name)),
                help=why,
            )
        st.button(
            "Quick",
            key=f"{key}.preset",
            on_click=lambda: _guarded(save, lambda: _quick(get())),
            help="The defaults: minutes on two processor cores",
        )


def _quick(method: Method) -> Method:
    """The method with the defaults of all that a preset changes."""
    defaults, changed = type(method)(), set(Tuning.domains()).union(*method.presets.values())
    return replace(method, **{name: getattr(defaults, name) for name in changed & set(method.domains())})


def widget(
    label: str,
    domain: Domain,
    value: Any,
    store: Callable[[Any], None],
    key: str,
    get: Callable[[], Any] | None = None,
    layers: Sequence[str] = (),
) -> None:
    """The widget of one declared value; `store` gets what it was changed to."""
    if isinstance(domain, Nested):
        with st.container(border=True):
            pick(label, domain.registry, get, store, key)
            st.caption(value.summary())
            configure(get, store, key, layers)
        return
    if isinstance(domain, PerLayer):
        _per_layer(label, domain, dict(value), store, key, layers)
        return
    held(key, value)
    common = {"key": key, "help": domain.help, "on_change": lambda: store(st.session_state[key])}
    match domain:
        case Number(scale="log"):
            st.select_slider(label, log_steps(domain, value), value, lambda v: f"{v:g}", **common)
        case Number(low, high, step) if (high - low) / step <= FINEST:
            st.slider(label, low, high, value, step, format=_format(step), **common)
        case Number(low, high, step):
            st.number_input(label, low, high, value, step, format=_format(step), **common)
        case Choice(options):
            st.selectbox(label, options, options.index(value), **common)
        case Flag():
            st.toggle(label, value, **common)


def log_steps(domain: Number, value: float) -> list[float]:
    """1, 2, 5, 10 ... within the domain, with its ends and `value`: what a logarithmic slider stops at."""
    low = domain.low or domain.step
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(domain.high)) + 1)
    stops = {float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)}
    kept = {stop for stop in stops if domain.low <= stop <= domain.high} | {domain.low, domain.high, value}
    return sorted({int(stop) for stop in kept if stop == int(stop)} if domain.whole else map(float, kept))


def held(key: str, value: Any) -> None:
    """Make the widget `key` show `value`, without disturbing one that already does."""
    if st.session_state.get(key) != value:
        st.session_state[key] = value


def _per_layer(
    label: str, domain: PerLayer, values: dict[str, float], store: Callable, key: str, layers: Sequence[str]
) -> None:
    """Choose layers, then one slider for each."""
    held(key, list(values))

    def choose() -> None:
        store({layer: values.get(layer, domain.low) for layer in st.session_state[key]})

    options = list(dict.fromkeys([*layers, *values]))  # a link may name layers of another network
    st.multiselect(label, options, list(values), key=key, help=domain.help, on_change=choose)
    entry = Number(domain.low, domain.high, domain.step, f"{domain.help}: this layer")
    for layer, value in values.items():
        widget(layer, entry, value, lambda v, layer=layer: store(values | {layer: v}), f"{key}.{layer}")


def _guarded(save: Callable[[Any], None], value: Callable[[], Any]) -> None:
    """Save what `value` makes; where it may not be, say so above the page and change nothing."""
    try:
        save(value())
    except UserError as error:
        state().acted = True
        state().notice = str(error)


def _label(name: str, domain: Domain) -> str:
    unit = getattr(domain, "unit", "")
    label = name.replace("_", " ")
    return f"{label[0].upper()}{label[1:]}" + f" ({unit})" * bool(unit)


def _format(step: float) -> str:
    """Digits enough to show one step."""
    return "%d" if isinstance(step, int) else f"%.{max(0, -math.floor(math.log10(step) + 1e-9))}f"
