"""What is asked on the Prove page, about which original and which compressed network."""

from dataclasses import replace
from functools import partial

import streamlit as st
from torch import nn

from core.bundles import Split
from core.errors import UnsupportedModelError, UserError
from core.jobs import Job, Order
from core.layers import digest
from core.method import from_dict
from core.proving.network import ReluNetwork, unroll
from core.recipe import COMPRESSORS, Recipe, compress
from core.verification import PROPERTIES, Property
from core.weights import load_dataset
from view import carried, engine, forms, frame, jobs
from view import state as states
from view.engine import Scene
from view.forms import held
from view.progress import visible_run
from view.shared import computed, shared
from view.url import method_from_text, method_to_text, steps_from_text, steps_to_text

PROVE = "pages/prove.py"
FIRST = ("robustness", {"radius": 0.15})  # large enough for cases to be told apart
QUICK = {
    "pruned": (
        "20 % of the weights are zero",
        {"method": "prune-weights", "sparsity": 0.2, "scope": "global"},
    ),
    "int8": ("Weights of 8 bits", {"method": "quantize", "bits": 8}),
    "int4": ("Weights of 4 bits", {"method": "quantize", "bits": 4}),
    "low-rank": ("Low rank: 20 % fewer weights", {"method": "low-rank", "sparsity": 0.2}),
}  # what may be compared where the reader has no plan and no recipe
MANY, MOST = 20, 200  # pictures
RADII = (0.2, 0.4, 0.6, 0.8, 1.0)  # times the present one
EACH_S = 1.0  # of many pictures, for every other class


# ---------------------------------------------------------------------------------------- what is asked


def check() -> Property:
    """The property of the present nouns; the default, and a notice, where they name none."""
    nouns = states.state().nouns
    try:
        return method_from_text(nouns.property, PROPERTIES) if nouns.property else _first()
    except UserError as error:
        states.state().notice = str(error)
        states.state().history.now = replace(nouns, property="")
        return _first()


def _first() -> Property:
    name, settings = FIRST
    return PROPERTIES[name](**settings)


def compressions(scene: Scene) -> dict[str, tuple[str, Recipe]]:
    """What the original may be compared with: name -> (in words, recipe). The reader's own come first."""
    nouns, found = states.state().nouns, {}
    if not scene.untouched:
        found["plan"] = ("Your plan from Prune", scene.plan.recipe(nouns.seed))
    try:
        if steps := steps_from_text(nouns.steps, COMPRESSORS):
            recipe = Recipe(steps, nouns.seed)
            found["steps"] = (f"Your recipe from Methods: {recipe_words(recipe)}", recipe)
    except UserError as error:
        states.state().notice = str(error)
        states.state().history.now = replace(nouns, steps="")
    for name, (words, step) in QUICK.items():
        found[name] = (words, Recipe((from_dict(COMPRESSORS, step),), nouns.seed))
    return found


def recipe_words(recipe: Recipe) -> str:
    return " → ".join(step.label() for step in recipe.steps)


def chosen(scene: Scene) -> str:
    """The name of the compressed network that is looked at."""
    names, named = compressions(scene), states.state().nouns.compressed
    return named if named in names else next(iter(names))


def recipe(scene: Scene) -> Recipe:
    return compressions(scene)[chosen(scene)][1]


def proof(scene: Scene) -> Order:
    """The job that proves the present picture."""
    kept = states.state().kept
    asks = {"property": check().to_dict(), "image": scene.image}
    switches = {"reuse": kept.get("prove.reuse", True), "scratch": kept.get("prove.scratch", False)}
    return jobs.order(scene, recipe(scene), "proof", **asks, **switches)


def many(scene: Scene) -> Order:
    """The job that certifies many pictures, in less time for each."""
    asked, count = check(), states.state().kept.get("prove.images", MANY)
    radii = sorted({round(asked.radius * times, 4) for times in RADII})
    quick = replace(asked, seconds=min(asked.seconds, EACH_S), radius=type(asked)().radius)
    return jobs.order(scene, recipe(scene), "certified", property=quick.to_dict(), images=count, radii=radii)


# --------------------------------------------------------------------------------------------- controls


def controls(scene: Scene) -> None:
    """The buttons, the compressed network and the form of the property."""
    st.button(
        "Prove",
        icon=":material/verified:",
        type="primary",
        on_click=lambda: jobs.begin(proof(engine.scene())),
        help="Original first, then the compressed network; the page may be left meanwhile",
    )
    _compressed(scene)
    forms.configure(check, lambda asked: states.change(property=method_to_text(asked)), "property")
    _switch(
        "prove.reuse", "Reuse the original's proof", True, "What still holds of it need not be found again"
    )
    _switch(
        "prove.scratch", "Also from scratch", False, "A second time without the original's proof, to compare"
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        _images()
        st.button(
            "Certify many",
            icon=":material/playlist_add_check:",
            on_click=lambda: jobs.begin(many(engine.scene())),
            disabled=not check().radius,
            help=f"At {len(RADII)} radii up to this one, with at most {EACH_S:g} s for every other class",
        )
    jobs.earlier(scene, "Proofs", ("proof",), partial(_line, scene), _show)


def _compressed(scene: Scene) -> None:
    names = compressions(scene)
    held("prove.compressed", chosen(scene))
    st.selectbox(
        "Compressed network",
        list(names),
        list(names).index(chosen(scene)),
        format_func=lambda name: names[name][0],
        key="prove.compressed",
        on_change=lambda: states.change(compressed=st.session_state["prove.compressed"]),
        help="Your plan from the Prune page and your recipe from Methods stand here, too, once there is one",
    )


def _switch(key: str, label: str, default: bool, help: str) -> None:
    kept = states.state().kept
    held(key, kept.get(key, default))

    def choose() -> None:
        states.act()
        kept[key] = st.session_state[key]

    st.toggle(label, kept.get(key, default), key=key, help=help, on_change=choose)


def _images() -> None:
    kept = states.state().kept
    held("prove.images", kept.get("prove.images", MANY))

    def choose() -> None:
        states.act()
        kept["prove.images"] = st.session_state["prove.images"]

    st.number_input(
        "Pictures", 5, MOST, kept.get("prove.images", MANY), 5, key="prove.images", on_change=choose
    )


def _line(scene: Scene, job: Job) -> str:
    asks = job.order.asks
    words = f"picture #{asks['image']}, radius {asks['property']['radius']:g}"
    return f"<b>{words}</b> · {jobs.steps(job.order.read_recipe())}"


def _show(order: Order) -> None:
    """Callback: the settings of an earlier proof, and with them its result."""
    recipe, asks = order.read_recipe(), order.asks
    quick = next((n for n, (_, step) in QUICK.items() if recipe.steps == (from_dict(COMPRESSORS, step),)), "")
    own = {"compressed": "steps", "steps": steps_to_text(recipe.steps)}
    text = method_to_text(from_dict(PROPERTIES, asks["property"]))
    states.state().kept |= {f"prove.{name}": asks[name] for name in ("reuse", "scratch")}
    found = {"compressed": quick} if quick else own
    states.change(image=asks["image"], property=text, seed=recipe.seed, **found)


# ---------------------------------------------------------------------------------------------- networks


@shared(8)
def original(key: str) -> ReluNetwork:
    """Network `key` for pixels in [0, 1], as affine layers and ReLUs."""
    bundle = engine.bundle(key)
    return relu_network(bundle.module, load_dataset(bundle.dataset).test)


def relu_network(network: nn.Module, pictures: Split) -> ReluNetwork:
    return unroll(network, pictures.pixels.shape[1:]).behind(pictures.mean, pictures.std)


@shared()
def provable() -> str | None:
    """Of the networks on the shelf that can be reasoned about, the one with the fewest multiply-adds."""
    for key in sorted(engine.shelf(), key=lambda key: engine.shelf()[key].provenance["macs"]):
        try:
            original(key)
        except UserError:
            continue
        return key
    return None


@computed(8)
def _compressed_module(key: str, asked: Recipe, *, run) -> nn.Module:
    with engine.slot():
        return compress(engine.bundle(key).module, carried.setting(key), asked, run).model


@computed(8)
def _unrolled(key: str, of: str, *, network: nn.Module, pictures: Split) -> ReluNetwork:
    return relu_network(network, pictures)


def compressed(scene: Scene) -> ReluNetwork | None:
    """The compressed network likewise; None, and a sentence, where it is not at hand."""
    asked = recipe(scene)
    if asked.trains():
        found = jobs.finished(scene, asked)
        if found is None:
            st.caption("This recipe trains: its ReLUs are shown here once it was carried out on Methods.")
            return None
        module = found.network
    else:
        with visible_run("Compressing") as run:
            module = _compressed_module(scene.key, asked, run=run)
    try:
        return _unrolled(scene.key, digest(module), network=module, pictures=scene.split)
    except UnsupportedModelError as error:
        st.warning(f"The compressed network cannot be reasoned about. {error}.", icon=":material/block:")
        return None


def ready(scene: Scene) -> bool:
    """Can the network be reasoned about? If not, why, and the way to one that can."""
    try:
        original(scene.key)
    except UnsupportedModelError as error:
        st.warning(
            "Nothing can be proved about this network here: proofs take small networks of affine layers "
            f"with ReLUs between them. {str(error)[:1].upper()}{str(error)[1:]}.",
            icon=":material/block:",
        )
        if key := provable():
            nouns = {"model": key, "plan": "", "image": 0, "steps": "", "compressed": ""}
            frame.goto(PROVE, f"Show {engine.title(key)}", icon=":material/visibility:", **nouns)
        return False
    return True
