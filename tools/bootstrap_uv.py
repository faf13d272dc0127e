"""Put uv into the project's own environment, on a machine that has nothing but Python: no pip, no venv package.

The wheel's address and its SHA-256 come from ``uv.lock``, so what is run is what was locked.
Usage: ``python3 tools/bootstrap_uv.py TARGET``, where TARGET is the path that the executable is to have.
"""

import hashlib
import io
import platform
import stat
import sys
import tomllib
import urllib.request
import zipfile
from pathlib import Path

LOCK = Path(__file__).parent.parent / "uv.lock"
MACHINES = {"AMD64": "x86_64", "amd64": "x86_64", "arm64": "aarch64"}
"""Other names for the two processors that have wheels."""


def wheel() -> tuple[str, str]:
    """Return the address and the hex SHA-256 of uv's wheel for this machine; end the process if there is none."""
    machine = platform.machine()
    machine = MACHINES.get(machine, machine)
    libc = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    wanted = {"Linux": (libc, machine), "Darwin": ("macosx", "arm64" if machine == "aarch64" else machine)}
    marks = wanted.get(platform.system())
    packages = tomllib.loads(LOCK.read_text())["package"]
    uv = next(package for package in packages if package["name"] == "uv")
    for candidate in uv["wheels"]:
        if marks and all(mark in candidate["url"] for mark in marks):
            return candidate["url"], candidate["hash"].removeprefix("sha256:")
    sys.exit(f"uv has no wheel for {platform.system()} on {machine}: install uv yourself and run make again")


def main(target: Path) -> None:
    """Fetch, verify and unpack the executable."""
    url, sha256 = wheel()
    print(f"uv is missing: fetching the locked one into {target.parent}", flush=True)
    with urllib.request.urlopen(url, timeout=120) as response:  # noqa: S310 - the lock holds https addresses only
        body = response.read()
    if hashlib.sha256(body).hexdigest() != sha256:
        sys.exit("uv's wheel is not the one that uv.lock names: nothing was installed")
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/scripts/uv"))
        executable = archive.read(member)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(executable)
    target.chmod(target.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
