"""Reading the app's screen: when it is settled, and what its cards say."""

import re


def settled(page):
    """Wait until the server has said all it has to say: no script has run for a while."""
    page.evaluate("window.stillSince = undefined")
    page.wait_for_function(
        """() => {
             const still = document.querySelector('.stApp[data-test-script-state="notRunning"]');
             window.stillSince = still ? window.stillSince ?? performance.now() : undefined;
             return still && performance.now() - window.stillSince > 700;
           }""",
        polling=100,
    )
    return page


def cards(page) -> dict[str, str]:
    """Label -> all text of each card."""
    page.wait_for_selector(".ps-cards:not(:has(.ps-dim)) .ps-card")
    texts = page.locator(".ps-cards .ps-card").all_inner_texts()
    return {text.split("\n")[0]: text for text in texts}


def accuracy(page) -> float:
    settled(page)
    return float(re.search(r"([\d.]+) %", cards(page)["Accuracy"])[1])
