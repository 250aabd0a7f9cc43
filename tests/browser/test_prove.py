"""The Prove page in a browser: bounds at once, a proof, a counterexample, a cancel, and the way out."""

import re
import time
from urllib.parse import urlencode

from screen import settled
from test_pages import NAMELESS

SMALL = "mlp-24--digits"
AGAIN = time.time_ns() % 10**6  # a seed: jobs of an earlier run of these tests are other jobs


def link(server, radius: float, **others) -> str:
    prop = f'robustness{{"radius":{radius},"seconds":2.0}}'
    return f"{server.address}/prove?" + urlencode({"m": SMALL, "prop": prop, "seed": AGAIN} | others)


def undecided(page) -> list[int]:
    texts = page.locator(".ps-around .ps-card").all_inner_texts()
    return [int(re.search(r"(\d+) of 48 ReLUs are undecided", text)[1]) for text in texts]


def test_a_card_on_start_leads_to_a_network_that_proofs_take(server, visit):
    page = visit(server.address)
    page.get_by_role("link", name="Open").last.click()
    page.get_by_text("What do bounds know at once?").wait_for()
    assert page.get_by_role("button", name="Prove", exact=True).is_enabled()
    assert page.complaints == []


def test_the_radius_moves_bounds_and_grid_of_both_networks(server, visit):
    page = settled(visit(link(server, 0.1)))
    before, cells = undecided(page), page.locator(".ps-cells i").count()
    assert cells == 2 * 48
    assert page.locator(".ps-cells i.open").count() == sum(before)
    thumb = page.get_by_role("slider", name="Radius")
    thumb.focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("() => decodeURIComponent(location.search).includes('\"radius\":0.14')")
    settled(page)
    assert all(now > was for now, was in zip(undecided(page), before, strict=True))
    assert page.locator(".ps-cells i.open").count() == sum(undecided(page))
    assert page.complaints == []


def test_a_proof_is_left_found_again_and_its_cores_are_shown_in_the_grid(server, visit):
    page = settled(visit(link(server, 0.15)))
    page.get_by_role("button", name="Prove", exact=True).click()
    page.get_by_role("button", name="Cancel").or_(page.locator(".ps-verdicts")).first.wait_for()
    page.close()
    page = visit(link(server, 0.15))
    page.locator(".ps-verdict.b", has_text="Proved robust").wait_for()
    settled(page)
    assert "Proved robust" in page.locator(".ps-verdict.a").inner_text()
    assert "up to a tolerance of 1e-6" in page.locator(".stMain").inner_text()
    assert re.search(r"Of the original's \d+ cores \d+ still hold", page.locator(".stMain").inner_text())
    cores = page.locator('[data-testid="stDataFrame"]').nth(1)
    cores.scroll_into_view_if_needed()
    box = cores.bounding_box()
    page.mouse.click(box["x"] + 18, box["y"] + 52)  # the first row's box; the table is a canvas
    page.locator(".ps-cells .marked").first.wait_for()
    settled(page)
    said = page.get_by_text(re.compile(r"Marked: with layer \d, unit \d+ (on|off)")).inner_text()
    assert page.locator(".ps-neurons .a .marked").count() == len(re.findall(r"unit \d+", said))
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(700)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = """() => [...document.querySelectorAll('.stMain, .stMain *')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.offsetParent)
        .filter(e => !e.matches('input[type=range]') && !e.closest('[data-testid=stDataFrame]'))
        .map(e => e.tagName + '.' + e.className).slice(0, 5)"""
    assert page.evaluate(wide) == []
    assert page.complaints == []


def test_a_counterexample_stands_beside_its_picture_with_what_both_networks_say(server, visit):
    page = settled(visit(link(server, 0.15, img=2)))
    page.get_by_role("button", name="Prove", exact=True).click()
    page.locator(".ps-broken").wait_for()
    settled(page)
    assert "Not robust" in page.locator(".ps-verdict.a").inner_text()
    assert page.locator(".ps-broken img").count() == 3
    assert "times as strong as it is" in page.locator(".ps-broken").inner_text()
    moved = float(re.search(r"moved by more than ([\d.]+)", page.locator(".ps-broken").inner_text())[1])
    assert 0 < moved <= 0.15
    label = page.get_by_role("spinbutton", name="Picture, class").get_attribute("aria-label").split()[-1]
    rows = page.locator(".ps-table", has_text="to the counterexample").locator("tr").all_inner_texts()[1:]
    for row, name in zip(rows, ("A original", "B compressed"), strict=True):
        said = re.findall(r"(\d) \(([\d.]+) %\) ([✓✗])", row)
        assert row.startswith(name)
        assert [right for *_, right in said] == ["✓" if digit == label else "✗" for digit, *_ in said]
    assert "✗" in rows[0]
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.evaluate(NAMELESS) == []
    assert page.complaints == []


def test_many_pictures_can_be_cancelled_and_those_by_then_stay(server, visit):
    page = settled(visit(link(server, 0.06)))
    count = page.get_by_role("spinbutton", name="Pictures")
    count.fill("200")
    count.press("Enter")
    settled(page)
    page.get_by_role("button", name="Certify many").click()
    page.get_by_text(re.compile(r"Share of pictures whose answer is proved.*n = \d+")).wait_for()
    page.get_by_role("button", name="Cancel").click()
    asked = time.monotonic()
    page.get_by_text("Cancelled. What there was by then is shown").wait_for()
    assert time.monotonic() - asked < 10  # a second where the machine has nothing else to do
    settled(page)
    n = int(re.search(r"n = (\d+)", page.locator(".stMain").inner_text())[1])
    assert 0 < n < 200
    assert page.complaints == []


def test_a_residual_network_is_refused_with_the_way_to_one_that_can_be_proved_about(server, visit):
    page = settled(visit(f"{server.address}/prove"))  # the default network has shortcuts
    assert "Nothing can be proved about this network here" in page.locator(".stMain").inner_text()
    assert page.get_by_role("button", name="Prove", exact=True).count() == 0
    page.get_by_role("link", name=re.compile("Show ")).click()
    page.get_by_role("button", name="Prove", exact=True).wait_for()
    settled(page)
    assert page.locator(".ps-neurons section").count() >= 1
    assert page.complaints == []
