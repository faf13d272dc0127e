"""The browser of the browser tests: found, or installed where that can be done unattended.

``python -m tests.support.chromium`` installs one if there is none. Where that fails, it says what to do and ends well:
the browser tests are skipped then, with that reason.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLAYWRIGHTS_OWN = "chromium-*/chrome-linux*/chrome"
INSTALL_TIMEOUT_S = 600
DEBIAN_PACKAGES = ("chromium", "libatomic1", "fonts-dejavu-core")
"""libatomic1 is for Playwright's own Node.js, which a bare Debian cannot run without it."""
NO_BROWSER = "no Chromium: install one (apt-get install chromium), or name it with CHROMIUM=/path/to/it"
NO_DRIVER = "Playwright's driver does not run here; on Debian: apt-get install libatomic1"


def find_chromium() -> str | None:
    """Return the path of a Chromium: the one that ``CHROMIUM`` names, one on the PATH, or Playwright's own."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    return next((str(path) for path in sorted(folder.glob(PLAYWRIGHTS_OWN), reverse=True)), None)


def missing() -> str | None:
    """Return what to do before a browser test can run; None if it can."""
    if find_chromium() is None:
        return NO_BROWSER
    command = [sys.executable, "-m", "playwright", "--version"]
    driver = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return None if driver.returncode == 0 else NO_DRIVER


def _install() -> None:
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("No Chromium for the browser tests: installing Debian's", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *DEBIAN_PACKAGES],
        ):
            subprocess.run(command, env=environment, timeout=INSTALL_TIMEOUT_S, check=False, stdout=subprocess.DEVNULL)
    else:
        print("No Chromium for the browser tests: asking Playwright for its own", flush=True)
        command = [sys.executable, "-m", "playwright", "install", "chromium"]
        subprocess.run(command, timeout=INSTALL_TIMEOUT_S, check=False)


def main() -> None:
    """Install a browser, and what its driver needs, if that is missing."""
    if missing() is not None:
        _install()
        remedy = missing()
        if remedy is not None:
            print(f"The browser tests will be skipped: {remedy}", flush=True)


if __name__ == "__main__":
    main()
