"""The browser of the browser tests: found, or installed where that can be done unattended.

``python -m tests.support.chromium`` installs one if there is none. Where that fails, it says what to do and ends well:
the browser tests are skipped then, with that reason.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REMEDY = "no Chromium: install one (apt-get install chromium), or name it with CHROMIUM=/path/to/it"
INSTALL_TIMEOUT_S = 600


def find_chromium() -> str | None:
    """Return the path of a Chromium: the one that ``CHROMIUM`` names, one on the PATH, or Playwright's own."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def _install() -> None:
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("No Chromium for the browser tests: installing Debian's", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
        ):
            subprocess.run(command, env=environment, timeout=INSTALL_TIMEOUT_S, check=False, stdout=subprocess.DEVNULL)
    else:
        print("No Chromium for the browser tests: asking Playwright for its own", flush=True)
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        subprocess.run(command, timeout=INSTALL_TIMEOUT_S, check=False)


def main() -> None:
    """Install a browser if there is none."""
    if find_chromium() is None:
        _install()
        if find_chromium() is None:
            print(f"The browser tests will be skipped: {REMEDY}", flush=True)


if __name__ == "__main__":
    main()
