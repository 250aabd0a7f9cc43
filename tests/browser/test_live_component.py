"""The live bars alone, in a page without a server: what they reckon, draw, send and believe."""

import html
import json
import math

import pytest
import torch

from core.atlas import Atlas
from core.criteria.filter_l2 import FilterL2
from core.plan import Plan
from core.prediction import Anchor, Prediction
from core.whatif import Slider
from view import charts, live

STYLE = (live.FOLDER.parent / "style.css").read_text(encoding="utf-8")
PAGE = f"""<!doctype html><html><style>{STYLE} .stApp {{ color-scheme: light dark }}</style>
<body class="stApp" style="font-family: sans-serif; background: Canvas">
<div class="st-key-live"><div id="host"></div><div id="facts"></div></div></body></html>"""
MOUNT = """async ([html, css, js]) => {
  const root = host.attachShadow({ mode: 'open' });
  root.innerHTML = `<div><div>${html}</div><style>${css}</style></div>`;
  window.module = await import(URL.createObjectURL(new Blob([js], { type: 'text/javascript' })));
  window.sent = [];
  const setTriggerValue = (event, value) => window.sent.push(value);
  window.update = (data) => { module.default({ parentElement: root, data, setTriggerValue }); };
}"""
GRID = [step / 10 for step in range(10)]


def described(count: int = 4, **other) -> dict:
    """Data of `count` sliders, the first half of 16 channels each, the rest of 32."""
    sliders = [
        {
            "name": f"layer{index}",
            "layers": [f"layer{index}"],
            "entries": 16 if index < count / 2 else 32,
            "weights": 1000 * (index + 1),
            "macs": 50000,
        }
        for index in range(count)
    ]
    return {
        "scene": "some network",
        "commit": 0,
        "by": "weights",
        "unit": "channels",
        "least": 1,
        "labels": {"weights": "Weights", "macs": "MACs"},
        "sliders": sliders,
        "levels": [0] * count,
        "locked": [False] * count,
        "terms": [[s["weights"], s["macs"], [index]] for index, s in enumerate(sliders)],
    } | other


def known(count: int = 4, prediction: bool = False) -> dict:
    """Facts of an untouched network that is right on 90 of 100 pictures."""
    measured = {"value": 0.9, "low": 0.83, "high": 0.94, "n": 100, "exact": True, "plan": "nothing removed"}
    found = {"scene": "some network", "original": 0.9, "measured": measured | {"levels": [0] * count}}
    curves = [[-0.1 * (index + 1) * 9 * g * g for g in GRID] for index in range(count)]
    anchor = {"levels": [0.0] * count, "value": 0.9}
    found["prediction"] = {
        "grid": GRID,
        "curves": curves,
        "eps": 0.005,
        "anchor": anchor,
        "band": [0.05, 0.2],
    }
    return found if prediction else found | {"prediction": None}


@pytest.fixture
def mount(chromium):
    """mount(data, facts, **context options) -> a page that shows these bars."""
    contexts = []

    def open_(data: dict | None = None, facts: dict | None = None, **options):
        context = chromium.new_context(**({"viewport": {"width": 1200, "height": 700}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_content(PAGE)
        page.evaluate(MOUNT, [live.source(f"live.{kind}") for kind in ("html", "css")] + [live.SCRIPT])
        tell(page, facts or known(len((data or described())["sliders"])))
        page.evaluate("update", data or described())
        frame(page)
        return page

    yield open_
    for context in contexts:
        context.close()


def tell(page, facts: dict) -> None:
    page.evaluate("text => { facts.innerHTML = text }", _hidden(facts))


def _hidden(facts: dict) -> str:
    return f'<div hidden data-facts="{html.escape(json.dumps(facts))}"></div>'


def frame(page) -> None:
    """Wait until the next picture is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def bar(page, index: int):
    return page.get_by_role("slider").nth(index)


def removed(page) -> list[int]:
    """What the bars say is removed, in per cent."""
    frame(page)
    return [100 - int(each.get_attribute("aria-valuenow")) for each in page.get_by_role("slider").all()]


def sent(page) -> list[dict]:
    return page.evaluate("sent")


def pull(page, index: int, share: float, release: bool = True) -> None:
    """Drag bar `index` down by `share` of its height."""
    box = bar(page, index).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 20
    page.mouse.move(x, y)
    page.mouse.down()
    for part in (0.3, 0.7, 1):
        page.mouse.move(x, y + part * share * box["height"])
    if release:
        page.mouse.up()


# the arithmetic


def test_the_browser_keeps_as_many_entries_as_the_server_at_every_width_and_level(mount):
    script = """() => [0, 1].map(least => Array.from({ length: 128 }, (_, n) =>
        Array.from({ length: 101 }, (_, level) => module.kept(n + 1, level, least))))"""
    single, filters = mount().evaluate(script)
    for width in range(1, 129):
        slider = Slider("one", ("one",), width, width, 1)
        for level in range(101):
            assert single[width - 1][level] == slider.kept("weights", level / 100), (width, level)
            assert filters[width - 1][level] == slider.kept("remove", level / 100), (width, level)


def test_the_browser_writes_numbers_as_the_server_does(mount):
    numbers = [0, 1, 12, 999, 1000, 9999, 9999.6, 10000, 40250, 268336, 999499, 999500, 1e6, 40551424, 3.1e9]
    numbers += [1.37**power for power in range(80)]
    shares = [0, 1, 0.5, 0.4213, 0.12345, 0.99951, 2 / 3, -0.372]
    found = mount().evaluate(
        "([n, s]) => [n.map(module.count), s.map(x => module.percent(x))]", [numbers, shares]
    )
    assert found == [[charts.count(n) for n in numbers], [charts.percent(s) for s in shares]]


def test_costs_are_sums_of_products_of_kept_shares(mount):
    terms, shares = [[100, 1000, [0]], [40, 800, [0, 1]], [7, 0, []]], [0.5, 0.25]
    found = mount().evaluate("([terms, shares]) => module.cost(terms, shares)", [terms, shares])
    assert found == {"weights": 100 * 0.5 + 40 * 0.125 + 7, "macs": 1000 * 0.5 + 800 * 0.125}


def by_hand(prediction: dict, levels: list[float]) -> tuple[float, float, float]:
    """The prediction as its definition reads: low, value, high."""
    eps, anchor = prediction["eps"], prediction["anchor"]

    def curve(index, level):
        grid, values = prediction["grid"], prediction["curves"][index]
        right = next((i for i, g in enumerate(grid) if g >= level and i > 0), len(grid) - 1)
        slope = (values[right] - values[right - 1]) / (grid[right] - grid[right - 1])
        return values[right - 1] + slope * (level - grid[right - 1])

    change = sum(curve(i, level) - curve(i, anchor["levels"][i]) for i, level in enumerate(levels))
    middle = math.log((anchor["value"] + eps) / (1 - anchor["value"] + eps)) + change
    half = prediction["band"][0] + prediction["band"][1] * abs(change)

    def unlink(place):
        return min(max((math.exp(place) * (1 + eps) - eps) / (1 + math.exp(place)), 0), 1)

    return unlink(middle - half), unlink(middle), unlink(middle + half)


@pytest.mark.parametrize(
    "levels", [[10, 0, 0, 0], [37, 5, 0, 0], [0, 0, 93, 0], [100, 100, 100, 100], [20, 20, 20, 20]]
)
def test_the_browser_predicts_what_the_definition_says(levels, mount):
    prediction = known(prediction=True)["prediction"]
    prediction["anchor"] = {"levels": [0.2, 0, 0.1, 0], "value": 0.97}
    found = mount().evaluate("([p, levels]) => module.predict(p, levels)", [prediction, levels])
    expected = by_hand(prediction, [level / 100 for level in levels])
    assert [found[end] for end in ("low", "value", "high")] == pytest.approx(expected, abs=1e-12)


def test_the_browser_predicts_as_the_shell_and_the_server_do(mount):
    hits = torch.tensor([[95, 90, 88, 80, 71, 60, 40, 20, 10], [98, 97, 97, 95, 94, 90, 85, 70, 0]])
    sparsities = tuple(level / 10 for level in range(1, 10))
    prediction = Prediction.of(Atlas("remove", FilterL2(), ("a", "b"), sparsities, hits, 100, True, 98))
    anchor = Anchor(Plan("remove", sparsities={"a": 0.35}), 0.83)
    page = mount()
    for levels in ([35, 0], [35, 1], [0, 0], [100, 95], [50, 50]):
        plan = Plan("remove", sparsities={"a": levels[0] / 100, "b": levels[1] / 100})
        value, (low, high) = prediction.predict(plan, anchor)
        told = json.loads(json.dumps(prediction.to_dict(anchor)))
        found = page.evaluate("([p, levels]) => module.predict(p, levels)", [told, levels])
        assert found == pytest.approx({"low": low, "value": value, "high": high}, abs=1e-4)


# dragging and keys


def test_a_drag_is_drawn_at_once_and_sent_once_when_the_pointer_is_lifted(mount):
    page = mount()
    pull(page, 1, 0.5, release=False)
    assert removed(page) == [0, 50, 0, 0]
    assert bar(page, 1).get_attribute("aria-valuetext") == "keeps 8 of 16 channels, 50 % removed"
    assert page.locator(".weights .value").inner_text() == "9,000"  # 1,000 + 2,000 / 2 + 3,000 + 4,000
    assert page.locator(".macs .change").inner_text() == "-12.5 %"
    assert sent(page) == []
    page.mouse.up()
    frame(page)
    assert sent(page) == [{"commit": 1, "scene": "some network", "levels": {"layer1": 50}, "locks": {}}]


def test_a_press_that_does_not_move_chooses_a_bar_and_changes_nothing(mount):
    page = mount()
    bar(page, 2).click()
    assert removed(page) == [0, 0, 0, 0]
    assert page.locator(".detail .name").inner_text() == "3 · layer2"
    assert sent(page) == []


def test_escape_takes_a_drag_back(mount):
    page = mount()
    pull(page, 0, 0.5, release=False)
    page.keyboard.press("Escape")
    assert removed(page) == [0, 0, 0, 0]
    page.mouse.up()
    assert sent(page) == []


@pytest.mark.parametrize(
    ("keys", "level"),
    [
        (["ArrowDown"], 51),
        (["ArrowLeft", "ArrowLeft"], 52),
        (["ArrowUp"], 49),
        (["ArrowRight"], 49),
        (["PageDown"], 60),
        (["PageUp"], 40),
        (["Home"], 100),
        (["End"], 0),
        (["Home", "PageDown"], 100),
        (["End", "ArrowUp"], 0),
    ],
)
def test_keys_move_the_focused_bar_and_are_sent_together_after_a_pause(keys, level, mount):
    page = mount(described(levels=[50, 0, 0, 0]))
    bar(page, 0).focus()
    for key in keys:
        page.keyboard.press(key)
    assert removed(page)[0] == level
    page.wait_for_function("sent.length === 1")
    page.wait_for_timeout(400)
    assert [message["levels"] for message in sent(page)] == [{"layer0": level}]


def test_a_typed_sparsity_is_drawn_while_typing_and_sent_with_enter(mount):
    page = mount()
    bar(page, 3).click()
    page.get_by_role("spinbutton").fill("37")
    assert removed(page) == [0, 0, 0, 37]
    assert sent(page) == []
    page.get_by_role("spinbutton").press("Enter")
    assert sent(page)[0]["levels"] == {"layer3": 37}
    page.get_by_role("spinbutton").fill("")
    page.get_by_role("spinbutton").fill("900")
    assert removed(page) == [0, 0, 0, 37]
    page.get_by_role("spinbutton").blur()
    frame(page)
    assert page.get_by_role("spinbutton").input_value() == "37"
    assert len(sent(page)) == 1


def test_a_lock_is_set_by_key_and_lifted_by_button(mount):
    page = mount()
    bar(page, 1).focus()
    page.keyboard.press("l")
    assert sent(page)[0]["locks"] == {"layer1": True}
    frame(page)
    assert bar(page, 1).get_attribute("aria-valuetext").endswith("locked")
    page.get_by_role("button", name="Locked").click()
    assert sent(page)[1]["locks"] == {"layer1": False}


def test_a_finger_drags_a_bar(mount):
    page = mount(has_touch=True)
    box = bar(page, 2).bounding_box()
    touch = page.context.new_cdp_session(page)

    def point(kind: str, y: float | None = None) -> None:
        points = [] if y is None else [{"x": box["x"] + box["width"] / 2, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    point("touchStart", box["y"] + 10)
    for step in range(1, 11):
        point("touchMove", box["y"] + 10 + 0.025 * step * box["height"])
    assert removed(page) == [0, 0, 25, 0]
    point("touchEnd")
    frame(page)
    assert sent(page)[0]["levels"] == {"layer2": 25}


# what the server says


def test_a_rerun_never_moves_the_bar_under_the_pointer(mount):
    page = mount()
    pull(page, 1, 0.5, release=False)
    page.evaluate("update", described(levels=[0, 90, 20, 0]))
    assert removed(page) == [0, 50, 20, 0]
    page.mouse.up()
    assert removed(page) == [0, 50, 20, 0]
    assert sent(page)[0]["levels"] == {"layer1": 50}


def test_the_echo_of_an_older_commit_does_not_undo_a_newer_one(mount):
    page = mount()
    pull(page, 0, 0.25)
    pull(page, 0, 0.5)
    assert removed(page)[0] == 75
    page.evaluate("update", described(levels=[25, 0, 0, 0], commit=1))
    assert removed(page)[0] == 75
    page.evaluate("update", described(levels=[75, 0, 0, 0], commit=2))
    assert removed(page)[0] == 75
    page.evaluate("update", described(levels=[0, 0, 0, 0], commit=2))  # Undo
    assert removed(page)[0] == 0


def test_a_commit_carries_what_older_unanswered_ones_said(mount):
    page = mount()
    pull(page, 0, 0.25)
    pull(page, 2, 0.5)
    assert sent(page)[1]["levels"] == {"layer0": 25, "layer2": 50}
    page.evaluate("update", described(levels=[25, 0, 50, 0], commit=2))
    pull(page, 3, 0.5)
    assert sent(page)[2]["levels"] == {"layer3": 50}


def test_other_sliders_forget_what_was_wished_for_the_old_ones(mount):
    page = mount()
    pull(page, 0, 0.5)
    page.evaluate("update", described(6, scene="another network"))
    assert removed(page) == [0] * 6
    pull(page, 5, 0.5)
    assert sent(page)[-1] == {"commit": 2, "scene": "another network", "levels": {"layer5": 50}, "locks": {}}


# measured and predicted


def test_a_prediction_is_never_shown_as_a_measurement(mount):
    page = mount(facts=known(prediction=True))
    tag, value, last = (page.locator(f".accuracy .{part}") for part in ("tag", "value", "last"))
    assert (tag.inner_text(), value.inner_text(), last.inner_text()) == ("measured", "90.0 %", "")
    pull(page, 1, 0.5, release=False)
    frame(page)
    expected = by_hand(known(prediction=True)["prediction"], [0, 0.5, 0, 0])
    assert tag.inner_text() == "predicted"
    assert value.inner_text() == charts.percent(expected[1])
    assert page.locator(".accuracy .rests").inner_text() == f"band {charts.span(expected[::2])}"
    assert last.inner_text() == "measured 90.0 %, n = 100: nothing removed"
    assert "dashed" in value.evaluate("e => getComputedStyle(e).textDecorationStyle")
    page.mouse.up()
    frame(page)
    assert last.inner_text().endswith("; measuring")
    found = known(prediction=True)
    found["measured"] |= {"levels": [0, 50, 0, 0], "value": 0.71, "plan": "layer1 50 %"}
    tell(page, found)
    frame(page)
    assert (tag.inner_text(), value.inner_text(), last.inner_text()) == ("measured", "71.0 %", "")
    assert "dashed" not in value.evaluate("e => getComputedStyle(e).textDecorationStyle")


def test_without_a_prediction_the_last_measurement_stands_dimmed_with_its_plan(mount):
    page = mount()
    pull(page, 0, 0.5)
    frame(page)
    assert page.locator(".accuracy .value").inner_text() == "90.0 %"
    grey, ink = (
        page.locator(f".{box} .value").evaluate("e => getComputedStyle(e).color")
        for box in ("accuracy", "macs")
    )
    assert grey != ink
    assert "nothing removed" in page.locator(".accuracy .last").inner_text()


def test_facts_of_another_scene_are_not_believed(mount):
    page = mount(facts=known(prediction=True))
    tell(page, known(prediction=True) | {"scene": "another network"} | {"original": 0.1})
    pull(page, 0, 0.5)
    frame(page)
    assert page.locator(".accuracy .tag").inner_text() == "predicted"
    page.evaluate("update", described(6, scene="a third network"))
    frame(page)
    assert page.locator(".accuracy").is_hidden()


# sizes


@pytest.mark.parametrize("width", [340, 1200])
def test_sixty_bars_stay_wide_enough_to_hit_and_scroll_by_themselves(width, mount):
    page = mount(described(60), viewport={"width": width, "height": 700})
    narrow = min(each.bounding_box()["width"] for each in page.get_by_role("slider").all())
    assert narrow >= 9
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for _ in range(59):
        page.get_by_role("button", name="Select the next bar").click()
    frame(page)
    box = bar(page, 59).bounding_box()
    assert box["x"] + box["width"] <= width
    pull(page, 59, 0.5)
    assert removed(page)[59] == 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_a_contrast_of_at_least_4_5_to_1(scheme, mount):
    page = mount(facts=known(prediction=True), color_scheme=scheme)
    pull(page, 0, 0.5)
    frame(page)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 15
    assert {text: ratio for text, ratio in found if ratio < 4.5} == {}


CONTRASTS = """() => {
  const light = (colour) => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d');
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  return [...host.shadowRoot.querySelectorAll('.live *')]
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && e.checkVisibility())
    .filter((e) => !e.disabled && getComputedStyle(e).fontSize !== '0px')
    .map((e) => {
      const [high, low] = [light(getComputedStyle(e).color), ground].sort((a, b) => b - a);
      return [e.textContent, (high + 0.05) / (low + 0.05)];
    });
}"""
