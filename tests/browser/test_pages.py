"""What people see, in a real Chromium against a real server."""

import re
from urllib.parse import unquote

import pytest
from screen import accuracy, cards, settled

PRUNED = "plan=remove:filter-l2:.3x12"
PAGES = {
    "/": "Five things to try",
    "/prune": "What do I lose",
    "/attributions": "Same answer, same reason",
    "/tradeoffs": "Where is the cliff",
    "/methods": "What does this method do",
    "/prove": "still deserve the certificate",
    "/learn": "What do the words mean",
}
NAMELESS = """() => [...document.querySelectorAll('.stMain button, .stMain input, .stMain [role=slider]')]
    .filter(e => e.offsetParent && !(e.textContent.trim() || e.ariaLabel || e.title || e.labels?.length
                                     || e.getAttribute('aria-labelledby')))
    .map(e => e.outerHTML.slice(0, 120))"""
PATIENCE = 40  # looks, a quarter of a second apart
SIZES = {"phone": (390, 844), "laptop": (1366, 768), "large": (2560, 1440), "zoomed": (683, 384)}


def plain(page):
    """Show the plain sliders in place of the live bars."""
    settled(page)
    page.get_by_text("Plain sliders", exact=True).click()
    page.wait_for_selector(".st-key-sliders")
    return settled(page)


def slide(page, index: int, presses: int, key: str = "ArrowRight", delay: int = 0):
    """Move the `index`-th slider of the layers with the keyboard."""
    thumb = page.locator(".st-key-sliders input[type=range]").nth(index)
    thumb.focus()
    for _ in range(presses):
        page.keyboard.press(key, delay=delay)
    return thumb


@pytest.mark.parametrize("path", PAGES)
def test_every_page_works_as_the_first_request_to_a_fresh_server(path, fresh_server, visit):
    page = visit(f"{fresh_server.address}{path}?{PRUNED}&img=5")
    page.get_by_text(PAGES[path]).first.wait_for()
    settled(page)
    assert "uniform 30 %" in page.locator(".ps-noun").inner_text()
    assert page.get_by_role("spinbutton", name="Picture").input_value() == "5"
    assert page.locator('[data-testid="stException"], [data-testid="stAlertContentError"]').count() == 0
    assert page.complaints == []
    page.get_by_role("link", name="Prune", exact=True).click()  # and the pages know each other from here on
    page.get_by_text(PAGES["/prune"]).wait_for()
    assert "uniform 30 %" in page.locator(".ps-noun").inner_text()


def test_a_slider_moves_accuracy_and_costs(server, visit):
    page = plain(visit(f"{server.address}/prune"))
    before = accuracy(page)
    assert "0.0 points" in cards(page)["Accuracy"]
    slide(page, 0, 1, "End")
    page.wait_for_function("() => location.search.includes('plan=')")
    after = accuracy(page)
    assert after < before - 20
    assert re.search(r"-\d+\.\d points", cards(page)["Accuracy"])
    assert re.search(r"-\d+\.\d %", cards(page)["MACs per picture"])
    assert page.get_by_text(re.compile(r"Lost: \d")).inner_text() != "Lost: 0"
    assert page.complaints == []


def test_the_last_of_quick_changes_wins(server, visit):
    page = plain(visit(f"{server.address}/prune?plan=remove:filter-l2:0,.1"))
    slide(page, 1, 25, delay=30)
    slide(page, 2, 7, delay=30)
    page.wait_for_url(lambda url: unquote(url).endswith("plan=remove:filter-l2:0,.35,.07"))
    settled(page)
    page.wait_for_timeout(1500)  # nothing that was asked earlier comes after it
    settled(page)
    sliders = page.locator(".st-key-sliders input[type=range]")
    assert sliders.nth(1).input_value() == "35"
    assert sliders.nth(2).input_value() == "7"
    assert unquote(page.url).endswith("plan=remove:filter-l2:0,.35,.07")
    shown = cards(page)["Accuracy"]
    again = visit(page.url)
    settled(again)
    assert cards(again)["Accuracy"] == shown  # the number on screen is the number of the last plan


def test_undo_redo_and_back_return_one_step_each(server, visit):
    page = visit(f"{server.address}/prune")
    settled(page)
    page.get_by_role("button", name="Uniform", exact=True).click()
    page.locator(".ps-noun", has_text="uniform 50 %").wait_for()
    page.get_by_role("button", name="Break it").click()
    page.locator(".ps-noun", has_text="uniform 95 %").wait_for()
    settled(page)
    page.get_by_role("button", name="Undo").click()
    page.locator(".ps-noun", has_text="uniform 50 %").wait_for()
    page.get_by_role("button", name="Redo").click()
    page.locator(".ps-noun", has_text="uniform 95 %").wait_for()
    settled(page)
    page.go_back()
    page.locator(".ps-noun", has_text="uniform 50 %").wait_for()
    settled(page)
    page.get_by_role("button", name="Reset").click()
    page.locator(".ps-noun", has_text="nothing removed").wait_for()


def test_chance_is_called_chance(server, visit):
    page = visit(f"{server.address}/prune?plan=remove:filter-l2:.95x12")
    settled(page)
    text = cards(page)["Accuracy"]
    low, high = (float(end) for end in re.search(r"95 % \[([\d.]+), ([\d.]+)\]", text).groups())
    assert ("chance" in text) == (low <= 10 <= high)


def test_two_windows_do_not_disturb_each_other(server, visit):
    one, two = visit(f"{server.address}/prune"), visit(f"{server.address}/prune")
    settled(two)
    before = cards(two)
    one.get_by_role("button", name="Break it").click()
    one.locator(".ps-noun", has_text="uniform 95 %").wait_for()
    settled(one)
    two.get_by_role("button", name="Measure latency").scroll_into_view_if_needed()
    two.get_by_text("MACs", exact=True).click()  # any rerun
    settled(two)
    assert cards(two) == before
    assert "nothing removed" in two.locator(".ps-noun").inner_text()
    assert cards(one)["Accuracy"] != before["Accuracy"]


def test_nothing_removed_gives_identical_pictures_and_no_difference(server, visit):
    page = visit(f"{server.address}/attributions?img=3")
    settled(page)
    a, b = (page.locator(f".ps-figure.{role} img").first.get_attribute("src") for role in "ab")
    assert a.startswith("data:image/png;base64,")
    assert a == b
    assert "equal, pixel by pixel" in page.locator(".ps-figure").nth(3).inner_text()
    scores = page.locator(".ps-range .num").all_inner_texts()
    assert scores[:3] == ["1.000", "1.000", "100.0%"]
    page.goto(f"{server.address}/prune")
    settled(page)
    assert "0.0 points" in cards(page)["Accuracy"]


def test_a_pruned_network_gives_other_pictures_on_one_scale(server, visit):
    page = visit(f"{server.address}/attributions?img=3&{PRUNED}")
    settled(page)
    a, b = (page.locator(f".ps-figure.{role} img").first.get_attribute("src") for role in "ab")
    assert a != b
    ends = [page.locator(f".ps-figure.{role} .ps-scale").first.inner_text() for role in "ab"]
    assert ends[0] == ends[1]
    assert page.locator(".ps-figure img").first.bounding_box()["width"] >= 256
    assert page.locator(".ps-strip img").count() == 5
    assert page.complaints == []


@pytest.mark.parametrize(
    "junk",
    [
        "plan=%00",
        "plan=remove:filter-l2:7",
        "plan=x",
        "m=nothing",
        "img=-4",
        "img=99999999",
        "attr=%7B%7B",
        "seed=zz",
    ],
)
def test_junk_in_the_link_gives_the_baseline_and_one_notice(junk, server, visit):
    page = visit(f"{server.address}/attributions?{junk}")
    settled(page)
    assert page.locator('[data-testid="stAlert"]').count() == 1
    assert "nothing removed" in page.locator(".ps-noun").inner_text()
    assert page.get_by_text("Traceback").count() == 0
    assert page.locator(".ps-figure img").count() >= 4


@pytest.mark.parametrize("path", PAGES)
def test_no_window_needs_horizontal_scrolling(path, server, visit):
    page = visit(f"{server.address}{path}?{PRUNED}")
    settled(page)
    for name, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(700)
        too_wide = page.evaluate(
            """() => [...document.querySelectorAll('.stMain, .stMain *')]
                 .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.offsetParent)
                 .filter(e => !e.matches('input[type=range]'))  // a pixel wide, beside its track
                 .map(e => e.tagName + '.' + e.className).slice(0, 5)"""
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert too_wide == [], name


def test_every_picture_has_words_and_every_control_a_name(server, visit):
    for path in PAGES:
        page = visit(f"{server.address}{path}?{PRUNED}")
        settled(page)
        assert page.locator("img:not([alt]), img[alt='']").count() == 0
        for _ in range(PATIENCE):  # words of a button come a moment after it
            nameless = page.evaluate(NAMELESS)
            if not nameless:
                break
            page.wait_for_timeout(250)
        assert nameless == []


def test_dark_and_light_follow_the_reader(server, visit):
    grounds = {}
    for scheme in ("light", "dark"):
        page = visit(f"{server.address}/prune", color_scheme=scheme)
        settled(page)
        page.wait_for_selector(".ps-card")
        grounds[scheme] = page.evaluate(
            "getComputedStyle(document.querySelector('.ps-card')).backgroundColor"
        )
    assert grounds["light"] != grounds["dark"]


def test_nothing_is_asked_of_the_outside_world(server, visit, chromium):
    page = visit(f"{server.address}/?{PRUNED}")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.wait_for_selector(".st-key-nouns")
    settled(page)
    assert asked
    assert [url for url in asked if not url.startswith((server.address, "data:", "blob:"))] == []


def test_the_plan_downloads_as_recipe_and_as_code(server, visit):
    page = visit(f"{server.address}/prune?{PRUNED}")
    settled(page)
    page.get_by_role("button", name="Export").click()
    for name, words in (("Recipe (JSON)", '"prune-filters"'), ("PyTorch code", "def compress(")):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=name).click()
        assert words in waiting.value.path().read_text()


def test_a_form_that_opens_late_shows_the_values_that_count(server, visit):
    page = visit(f"{server.address}/attributions?img=3&attr=integrated-gradients%7B%22steps%22:20%7D")
    settled(page)
    page.get_by_text("own", exact=True).click()  # a rerun before the form exists in the browser
    settled(page)
    page.get_by_role("button", name="Settings").click()
    steps = page.get_by_role("slider", name="Steps")
    assert steps.input_value() == "20"
    steps.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => decodeURIComponent(location.search).includes('{\"steps\":21}')")


def test_a_lost_picture_leads_to_its_maps_and_back(server, visit):
    page = visit(f"{server.address}/prune?{PRUNED}")
    settled(page)
    link = page.locator(".st-key-thumbs-Lost a").first
    place = re.search(r"#(\d+)", link.inner_text())[1]
    link.click()
    page.get_by_text(PAGES["/attributions"]).wait_for()
    settled(page)
    assert f"Picture #{place}" in page.locator(".ps-figure").first.inner_text()
    assert "uniform 30 %" in page.locator(".ps-noun").inner_text()
    page.go_back()
    page.get_by_text(PAGES["/prune"]).wait_for()
    settled(page)
    assert "uniform 30 %" in page.locator(".ps-noun").inner_text()
    assert page.complaints == []
