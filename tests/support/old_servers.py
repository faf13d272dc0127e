"""Older releases of uvicorn, to show that a stop does not depend on what each of them does at SIGTERM.

``python -m tests.support.old_servers`` installs them into a cache folder outside the checkout. Where that fails it says
so and ends well: the tests on them are skipped then.
"""

import subprocess
import sys
from pathlib import Path

from service.config import user_cache_dir

VERSIONS = ("0.44.0",)
"""0.43 and 0.44 tell every application at SIGTERM that its client has left (Kludex/uvicorn pull requests 2829 and 2913,
which takes it back)."""
INSTALL_TIMEOUT_S = 120


def folder_of(version: str) -> Path:
    """Return where a release is, or would be."""
    return user_cache_dir() / "tests" / f"uvicorn-{version}"


def missing(version: str) -> str | None:
    """Return why a release cannot be used; None if it can."""
    if (folder_of(version) / "uvicorn" / "server.py").is_file():
        return None
    return f"uvicorn {version} is not installed: python -m tests.support.old_servers"


def main() -> None:
    """Install what is missing. Its dependencies are those of the uvicorn that we have."""
    for version in VERSIONS:
        if missing(version) is None:
            continue
        print(f"Installing uvicorn {version} for one test", flush=True)
        uv = str(Path(sys.executable).parent / "uv")
        folder = str(folder_of(version))
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--target", folder, f"uvicorn=={version}"]
        try:
            subprocess.run(command, timeout=INSTALL_TIMEOUT_S, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"The test on uvicorn {version} will be skipped: {error}", flush=True)


if __name__ == "__main__":
    main()
