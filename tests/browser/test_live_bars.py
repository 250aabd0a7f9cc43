"""The live bars inside the app: what is dragged becomes the plan, and the engine's numbers come back."""

import re
from urllib.parse import unquote

import pytest
from screen import cards, settled

from core.plan import Plan
from core.prediction import Anchor, Prediction
from core.weights import load_dataset, load_model, shipped
from core.whatif import WhatIf
from view import charts, surveys

EDGES = """() => [...document.querySelector('.st-key-live [data-testid=stBidiComponentIsolated]')
    .shadowRoot.querySelectorAll('.live *')]
  .filter((e) => e.checkVisibility() && !e.closest('.strip'))
  .map((e) => e.getBoundingClientRect().right).filter((right) => right > innerWidth + 1)"""


@pytest.fixture(scope="module")
def engine():
    """The engine of the network that the app opens with."""
    first = shipped()[0]
    data = load_dataset(first.dataset)
    return WhatIf(load_model(first.model, first.dataset, first.path), data, data.test)


def plan_of(page, engine) -> Plan:
    return Plan.from_text(re.search(r"plan=([^&]*)", unquote(page.url))[1], engine.sliders)


def bar(page, index: int):
    return page.locator(".st-key-live").get_by_role("slider").nth(index)


def removed(page, index: int) -> int:
    return 100 - int(bar(page, index).get_attribute("aria-valuenow"))


def wait_for(page, index: int, level: int) -> None:
    page.wait_for_selector(f".column:nth-child({index + 1}) .bar[aria-valuenow='{100 - level}']")


def shown(page, number: str) -> str:
    return page.locator(f".live .{number} .value").inner_text()


def take(page, index: int) -> tuple[float, float, float]:
    """Press the pointer on a bar; where it is, and how high the bar."""
    bar(page, index).scroll_into_view_if_needed()
    box = bar(page, index).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 30
    page.mouse.move(x, y)
    page.mouse.down()
    return x, y, box["height"]


def pull(page, index: int, share: float) -> None:
    """Drag bar `index` down by `share` of its height."""
    x, y, height = take(page, index)
    page.mouse.move(x, y + share * height / 2)
    page.mouse.move(x, y + share * height)
    page.mouse.up()


def opened(visit, address: str, **options):
    page = visit(address, **options)
    page.wait_for_selector(".live.ready")
    return settled(page)


def test_a_dragged_bar_ends_in_the_numbers_that_the_engine_gives(server, visit, engine):
    page = opened(visit, f"{server.address}/prune")
    page.wait_for_function(  # until the first pictures of the atlas are known
        "() => JSON.parse(document.querySelector('[data-facts]').dataset.facts).prediction", polling=200
    )
    width = engine.sliders("remove")[9].width
    x, y, height = take(page, 9)
    for percent in (10, 25, 40):
        page.mouse.move(x, y + percent / 100 * height)
        wait_for(page, 9, percent)
        kept = engine.sliders("remove")[9].kept("remove", percent / 100)
        assert f"keeps {kept} of {width} channels" in bar(page, 9).get_attribute("aria-valuetext")
    assert "plan=" not in page.url  # nothing is sent while the pointer is down
    assert page.locator(".live .accuracy .tag").inner_text() == "predicted"
    atlas = next(found for found in engine.atlas("remove") if found.complete and found.n >= surveys.ENOUGH)
    moved = Plan().with_sparsity(engine.sliders("remove")[9].name, 0.4)
    anchor = Anchor(Plan(), engine.original.accuracy)
    predicted, _ = Prediction.of(atlas).predict(moved, anchor)
    assert float(shown(page, "accuracy")[:-2]) == pytest.approx(100 * predicted, abs=1)
    page.mouse.up()
    page.wait_for_selector(".live .accuracy.measured")
    settled(page)
    answer = engine.exact(plan_of(page, engine))
    assert dict(answer.plan.sparsities) == {engine.sliders("remove")[9].name: 0.4}
    assert shown(page, "accuracy") == charts.percent(answer.accuracy)
    assert shown(page, "weights") == charts.count(answer.cost.parameters)
    assert shown(page, "macs") == charts.count(answer.cost.macs)
    for card, number in (("Accuracy", "accuracy"), ("Weights", "weights"), ("MACs per picture", "macs")):
        assert shown(page, number) in cards(page)[card]
    assert page.complaints == []


def test_undo_redo_and_a_preset_move_the_bars(server, visit):
    page = opened(visit, f"{server.address}/prune")
    pull(page, 5, 0.3)
    page.get_by_role("button", name="Undo").and_(page.locator(":enabled")).click()
    wait_for(page, 5, 0)
    page.get_by_role("button", name="Redo").and_(page.locator(":enabled")).click()
    wait_for(page, 5, 30)
    page.get_by_role("button", name="Uniform", exact=True).click()
    wait_for(page, 5, 50)
    wait_for(page, 0, 50)


def test_held_keys_are_one_step_of_undo(server, visit, engine):
    page = opened(visit, f"{server.address}/prune")
    bar(page, 2).focus()
    for _ in range(12):
        page.keyboard.press("ArrowDown", delay=15)
    wait_for(page, 2, 12)
    page.locator(".ps-noun", has_text=f"{engine.sliders('remove')[2].name} 12 %").wait_for()
    assert bar(page, 2).evaluate("e => e === e.getRootNode().activeElement")  # a rerun takes no focus
    settled(page)
    page.get_by_role("button", name="Undo").click()
    page.locator(".ps-noun", has_text="nothing removed").wait_for()
    wait_for(page, 2, 0)


def test_a_typed_sparsity_becomes_the_plan(server, visit, engine):
    page = opened(visit, f"{server.address}/prune")
    bar(page, 3).click()
    page.locator(".live input").fill("37")
    page.locator(".live input").press("Enter")
    page.wait_for_function("() => location.search.includes('plan=')")
    settled(page)
    assert plan_of(page, engine).sparsities == ((engine.sliders("remove")[3].name, 0.37),)


def test_a_preset_leaves_a_locked_bar_where_it_is(server, visit):
    page = opened(visit, f"{server.address}/prune")
    bar(page, 1).focus()
    page.keyboard.press("l")
    page.get_by_role("button", name="Locks (1)").wait_for()
    settled(page)
    page.get_by_role("button", name="Break it").click()
    wait_for(page, 0, 95)
    assert removed(page, 1) == 0
    page.locator(".live").get_by_role("button", name="Locked").click()
    page.get_by_role("button", name="Locks (0)").wait_for()


def test_of_quick_drags_none_is_lost_and_the_last_wins(server, visit, engine):
    page = opened(visit, f"{server.address}/prune")
    pull(page, 11, 0.2)
    pull(page, 10, 0.3)
    pull(page, 11, 0.4)
    x, y, height = take(page, 6)  # and one that is still held while the server answers
    page.mouse.move(x, y + 0.25 * height)
    settled(page)
    assert [removed(page, index) for index in (6, 10, 11)] == [25, 30, 60]
    page.mouse.up()
    page.wait_for_selector(".live .accuracy.measured")
    settled(page)
    names = [engine.sliders("remove")[index].name for index in (6, 10, 11)]
    assert dict(plan_of(page, engine).sparsities) == dict(zip(names, (0.25, 0.3, 0.6), strict=True))
    assert shown(page, "accuracy") == charts.percent(engine.exact(plan_of(page, engine)).accuracy)


def test_single_weights_have_bars_too(server, visit, engine):
    page = opened(visit, f"{server.address}/prune?plan=weights:magnitude:.5x20")
    assert page.locator(".live .bar").count() == len(engine.sliders("weights"))
    pull(page, 0, 0.4)
    wait_for(page, 0, 90)
    page.wait_for_selector(".live .accuracy.measured")
    settled(page)
    answer = engine.exact(plan_of(page, engine))
    assert shown(page, "accuracy") == charts.percent(answer.accuracy)
    assert shown(page, "macs") == charts.count(answer.cost.theoretical_macs)


def test_plain_sliders_are_one_press_away_and_remembered(server, visit):
    page = opened(visit, f"{server.address}/prune?plan=remove:filter-l2:0,.4")
    page.get_by_text("Plain sliders", exact=True).click()
    page.wait_for_selector(".st-key-sliders input[type=range]")
    settled(page)
    assert page.locator(".live").count() == 0
    assert page.locator(".ps-bar").count() == 12
    assert page.locator(".st-key-sliders input[type=range]").nth(1).input_value() == "40"
    page.get_by_role("link", name="Attributions", exact=True).click()
    page.get_by_text("Same answer, same reason").wait_for()
    settled(page)
    page.get_by_role("link", name="Prune", exact=True).click()
    page.wait_for_selector(".st-key-sliders input[type=range]")
    settled(page)
    page.get_by_text("Live bars", exact=True).click()
    wait_for(page, 1, 40)
    assert page.locator(".st-key-sliders").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_a_finger_drags_and_nothing_is_wider_than_the_window(scheme, server, visit):
    page = opened(
        visit,
        f"{server.address}/prune",
        viewport={"width": 390, "height": 844},
        color_scheme=scheme,
        has_touch=True,
    )
    for width in (2560, 683, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(EDGES) == []
    bar(page, 1).scroll_into_view_if_needed()
    box = bar(page, 1).bounding_box()
    touch = page.context.new_cdp_session(page)
    for kind, share in (("touchStart", 0), ("touchMove", 0.2), ("touchMove", 0.5), ("touchEnd", None)):
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 10 + (share or 0) * box["height"]}
        touch.send(
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [] if share is None else [place]}
        )
    wait_for(page, 1, 50)
    page.wait_for_function("() => location.search.includes('plan=')")
    assert page.complaints == []
