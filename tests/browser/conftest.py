"""A server of our own, a real Chromium, and pages that remember what their console said."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE_MS = 120_000  # a busy machine must not fail; a quiet one takes seconds

# Streamlit looks for its server below the path of the page first, and finds it one level up.
DISCOVERY = ("_stcore/health", "_stcore/host-config")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)


class Server:
    """One `streamlit run app.py` on a free port."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address, self.log = f"http://127.0.0.1:{self.port}", log
        command = [sys.executable, "-m", "streamlit", "run", "app.py"]
        options = ["--server.port", str(self.port), "--server.headless", "true"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command + options, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the server did not start:\n{log.read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server") / "log.txt")
    yield running
    running.stop()


@pytest.fixture
def fresh_server(tmp_path):
    """A server that nobody has asked for anything yet."""
    running = Server(tmp_path / "log.txt")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=FLAGS + QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """visit(address, **context options) -> a page, in a window of its own, whose frame is drawn."""
    contexts = []

    def open_(address: str, **options):
        context = chromium.new_context(**({"viewport": {"width": 1366, "height": 768}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.complaints = []
        page.on("console", lambda message: _note(page, message))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".st-key-nouns")
        return page

    yield open_
    for context in contexts:
        context.close()


def _note(page, message) -> None:
    where = message.location.get("url", "")
    if message.type == "error" and not where.endswith(DISCOVERY):
        page.complaints.append(f"{message.text} ({where})")
