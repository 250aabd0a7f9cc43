"""The Chromium that browser tests and screenshots use: found, or installed.

`python -m tools.chromium` makes sure that one starts. In this order: the one that $CHROMIUM names, an
installed one, Playwright's own download, the system's package through apt-get.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def executable() -> str | None:
    """Path of an installed Chromium; None leaves the choice to Playwright, which has its own."""
    if named := os.environ.get("CHROMIUM"):
        return named
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def launch(playwright: Playwright) -> Browser:
    """A headless Chromium: an installed one, or Playwright's own where that does not start."""
    found = executable()
    if found:
        try:
            return playwright.chromium.launch(executable_path=found)
        except Error:
            if not Path(playwright.chromium.executable_path).exists():
                raise
    return playwright.chromium.launch()


def starts() -> bool:
    """Whether a Chromium can be launched now."""
    try:
        with sync_playwright() as playwright:
            launch(playwright).close()
    except Error:
        return False
    return True


def download() -> None:
    """Playwright's own build, with the system libraries it needs where we may install them."""
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    subprocess.run(command, check=False)
    if not starts() and _may_install():
        subprocess.run([*command, "--with-deps"], check=False)


def package() -> None:
    """The system's package, where there is apt-get and we are root."""
    if _may_install():
        subprocess.run(["apt-get", "update"], check=False)
        subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", "chromium"], check=False)


def _may_install() -> bool:
    return shutil.which("apt-get") is not None and hasattr(os, "geteuid") and os.geteuid() == 0


def main() -> int:
    ways: list[Callable[[], None]] = [lambda: None, download, package]
    for way in ways:
        way()
        if starts():
            return 0
    print(
        "no Chromium starts: install one (Debian, Ubuntu: apt-get install chromium), "
        "or name one in the environment variable CHROMIUM",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
