"""Pictures of the app for README and docs: `python -m tools.screenshot`.

Starts the app on a free port, opens each page in a headless Chromium, waits until it has settled, and
writes docs/screenshots/NAME.png.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, Page, sync_playwright

from tools.chromium import launch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "screenshots"
WIDTH, HEIGHT = 1366, 900  # pixels of the window
PATIENCE = 180  # seconds
SETTLED = '[data-testid="stApp"][data-test-script-state="notRunning"]'

PLAN = "/prune?plan=weights%3Amagnitude%3A.1%2C.3x6%2C.5x6%2C.65x6"  # later layers lose more

# File name -> (address, colour scheme).
PICTURES = {
    "start": ("/", "light"),
    "prune": (PLAN, "light"),
    "prune-dark": (PLAN, "dark"),
    "attributions": (PLAN.replace("prune", "attributions", 1), "light"),
    "tradeoffs": ("/tradeoffs", "light"),
    "methods": ("/methods?steps=%5B%22low-rank%22%5D", "light"),
    "learn": ("/learn?lab=rank-of-training", "light"),
}

STEPS = [
    'prune-weights{"scope":"global","sparsity":0.95}',
    'fine-tuning{"epochs":12,"objective":{"method":"attribution-matching"}}',
]
JOB = "/methods?" + urlencode({"m": "small-cnn--cluttered-digits", "steps": json.dumps(STEPS)})
PROOF = "/prove?" + urlencode({"m": "mlp-24--digits"})
CORE = 3  # the row of the core that is marked, from the top of its table
ROW = 35  # pixels of a row of a table
WHOLE = 3000  # pixels: a window in which a whole result fits


def job(browser: Browser, address: str) -> None:
    """A job begun, left, found again while it goes on, cancelled, begun anew and done: five pictures."""

    def show(name: str, until: str, height: int = HEIGHT) -> Page:
        page = browser.new_page(viewport={"width": WIDTH, "height": height})
        page.goto(address + JOB)
        page.get_by_text(re.compile(until)).first.wait_for(timeout=PATIENCE * 1000)
        page.wait_for_timeout(3000)
        page.screenshot(path=FOLDER / f"job-{name}.png")
        print(FOLDER / f"job-{name}.png")
        return page

    page = show("begin", "takes its time")
    page.get_by_role("button", name="Carry out").click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.close()
    show("running", "Validation accuracy went").close()
    page = show("found-again", r"in ([4-9]|1\d) epochs")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.").wait_for()
    page.close()
    page = show("cancelled", "How did the training go")
    page.get_by_role("button", name="Carry out").click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.close()
    show("done", "How far the maps agree", WHOLE).close()


def proof(browser: Browser, address: str) -> None:
    """A proof with and without the original's, and one of its cores in the grid."""
    page = browser.new_page(viewport={"width": WIDTH, "height": WHOLE})
    page.goto(address + PROOF)
    page.get_by_text("Also from scratch").click()
    settle(page)
    page.get_by_role("button", name="Prove", exact=True).click()
    page.get_by_text("Proved robust").first.wait_for(timeout=PATIENCE * 1000)
    settle(page)
    table = page.locator('[data-testid="stDataFrame"]').last.bounding_box()
    page.mouse.click(table["x"] + ROW / 2, table["y"] + (CORE + 0.5) * ROW)
    settle(page)
    page.mouse.move(0, 0)
    height = page.evaluate("document.querySelector('.stMainBlockContainer').scrollHeight")
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.wait_for_timeout(1000)
    page.screenshot(path=FOLDER / "proof.png")
    print(FOLDER / "proof.png")
    page.close()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The app in a process of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:  # as on a fresh machine
        environment = os.environ | {"PRUNESCOPE_CACHE": cache}
        process = subprocess.Popen(
            [*command, "--server.port", str(port)], cwd=ROOT, stdout=subprocess.DEVNULL, env=environment
        )
        yield from _serving(port, process)


def _serving(port: int, process: subprocess.Popen) -> Iterator[str]:
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(f"{address}/_stcore/health", process)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the app stopped with exit code {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit(f"the app did not answer within {PATIENCE} s")


def settle(page: Page) -> None:
    """Wait until the script has run, and stays so for a second."""
    page.wait_for_selector(SETTLED, timeout=PATIENCE * 1000)
    quiet = 0
    while quiet < 5:
        page.wait_for_timeout(200)
        quiet = quiet + 1 if page.query_selector(SETTLED) else 0


def main(names: list[str]) -> None:
    """Take the pictures called `names`, or all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with server() as address, sync_playwright() as playwright:
        browser = launch(playwright)
        stories = {"job": job, "proof": proof}  # pictures of something that is done first
        for name in names or [*PICTURES, *stories]:
            if name in stories:
                stories[name](browser, address)
                continue
            path, scheme = PICTURES[name]
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            page.goto(address + path)
            settle(page)
            if broken := page.query_selector(
                '[data-testid="stException"], [data-testid="stAlertContentError"]'
            ):
                raise SystemExit(f"{path} shows an error: {broken.inner_text()}")
            page.screenshot(path=FOLDER / f"{name}.png")
            page.close()
            print(FOLDER / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
