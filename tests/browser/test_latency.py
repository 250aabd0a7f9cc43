"""Measured time on the Prune page, in a real Chromium against a real server."""

import pytest
from screen import cards, settled


def measure(page):
    """Press the button and wait for the chart."""
    settled(page)
    page.get_by_role("button", name="Measure latency").click()
    page.locator(".js-plotly-plot").wait_for()
    return settled(page)


@pytest.mark.parametrize("window", [(1366, 768), (390, 844)])
def test_measured_time_is_drawn_with_its_finding_until_the_plan_changes(server, visit, window):
    width, height = window
    page = visit(
        f"{server.address}/prune?plan=remove:filter-l2:.5x12", viewport={"width": width, "height": height}
    )
    settled(page)
    assert page.locator(".js-plotly-plot").count() == 0
    measure(page)
    drawn = page.locator(".js-plotly-plot").inner_text()
    for label in ("original", "zeros only", "removed", "what MACs alone promise"):
        assert label in drawn
    finding = page.get_by_text("With zeros in the old shapes").inner_text()
    assert "75 % fewer MACs on paper" in finding
    assert page.locator(f'[aria-label="{finding}"], [alt="{finding}"]').count() == 1
    assert " ms" in cards(page)["Latency"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_text("The measured times as a table").click()
    page.locator('[data-testid="stDataFrame"]').first.wait_for()
    page.get_by_role("button", name="Break it").click()
    page.locator(".ps-noun", has_text="uniform 95 %").wait_for()
    settled(page)
    assert page.locator(".js-plotly-plot").count() == 0
    assert "not measured" in cards(page)["Latency"]
    assert page.complaints == []


def test_single_zeros_have_no_smaller_network_and_the_page_says_why(server, visit):
    page = measure(visit(f"{server.address}/prune?plan=weights:magnitude:.5x20"))
    drawn = page.locator(".js-plotly-plot").inner_text()
    assert "zeros only" in drawn
    assert "removed" not in drawn
    assert page.get_by_text("single zeros, which leave every channel in place").count() == 1
