"""The atlas as people meet it: it fills in, a cell can be pressed, and its number is the plan's."""

import re

from screen import accuracy, settled

ADDRESS = "/tradeoffs?m=small-cnn--cluttered-digits"
LAYER, LAYERS = 1, 4
LEVEL, LEVELS = 4, 9  # 50 %


def surveyed(page):
    """Wait until the atlas is exact."""
    page.get_by_text("exact on all 1,077 test pictures").wait_for()
    page.wait_for_selector(".st-key-atlas .nsewdrag")
    return settled(page)


def place(page, slider: int, level: int) -> tuple[float, float]:
    """The middle of a cell."""
    box = page.locator(".st-key-atlas .nsewdrag").first.bounding_box()
    x = box["x"] + box["width"] * (level + 0.5) / LEVELS
    return x, box["y"] + box["height"] * (slider + 0.5) / LAYERS


def test_a_pressed_cell_is_the_plan_everywhere_and_its_number_is_the_plans(server, visit):
    page = surveyed(visit(server.address + ADDRESS))
    x, y = place(page, LAYER, LEVEL)
    hint = page.locator(".hoverlayer text").first
    for step in range(100):  # a figure that is drawn anew meanwhile forgets the mouse
        page.mouse.move(x + step % 2, y)
        page.wait_for_timeout(100)
        if hint.count():
            break
    said = re.search(r"accuracy ([\d.]+) %", hint.text_content())[1]
    page.mouse.click(x, y)
    page.get_by_text("conv2 50 %").first.wait_for()
    page.wait_for_function("location.search.includes('plan=remove')")
    page.get_by_role("link", name="Prune", exact=True).click()
    page.get_by_text("What do I lose").wait_for()
    assert accuracy(page) == float(said)
    page.get_by_text("Undo", exact=True).click()
    page.get_by_text("nothing removed", exact=True).first.wait_for()
    assert page.complaints == []


def test_another_question_has_another_atlas(server, visit):
    page = surveyed(visit(server.address + ADDRESS))
    assert page.locator(".js-plotly-plot").first.locator(".ytick").count() == LAYERS
    page.goto(f"{server.address}{ADDRESS}&plan=weights:magnitude")
    surveyed(page)
    assert (
        page.locator(".js-plotly-plot").first.locator(".ytick").count() == LAYERS + 1
    )  # single weights of the last layer go, too
    assert page.complaints == []


def test_a_survey_can_be_stopped_and_begun_again(server, visit):
    # an atlas that is always stopped, so that no disk holds it, of a network that takes its time
    page = visit(f"{server.address}/tradeoffs?plan=zero:filter-l1")
    stop = page.locator(".st-key-survey button", has_text="Stop")
    stop.wait_for()
    page.wait_for_selector(".st-key-atlas .nsewdrag")
    stop.click()
    page.get_by_text("stopped").wait_for()
    settled(page)
    assert page.locator(".st-key-atlas .nsewdrag").count() == 1  # what was known stays
    page.locator(".st-key-survey button", has_text="Begin again").click()
    page.locator(".st-key-survey button", has_text="Stop").wait_for()
    page.locator(".st-key-survey button", has_text="Stop").click()
    page.get_by_text("stopped").wait_for()
    assert page.complaints == []
