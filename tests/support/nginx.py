"""A real nginx in front of the service: found, or unpacked from the distribution's own package, without root."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PACKAGES = ("nginx", "nginx-core")
"""Which of them holds the program depends on the release of Debian or Ubuntu."""
DOWNLOAD_TIMEOUT_S = 30
NO_NGINX = "no nginx: install one (apt-get install nginx), or name it with NGINX_BINARY=/path/to/it"

CONFIG = """
daemon off;
pid nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen {address};
        location / {{
            proxy_pass {upstream};
            {more}
        }}
    }}
}}
"""
"""Of what touches a request, ``proxy_pass`` and nothing else; the rest is about where files are."""


@contextmanager
def nginx(program: str, upstream: str, folder: Path, more: str = "") -> Iterator[str]:
    """Run one before ``upstream``; give its address. ``more`` is added to the location.

    It inherits a socket that listens already, as from an earlier self that it replaces: no port can be taken from it,
    and who connects at once is not refused.
    """
    (folder / "logs").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        (folder / "nginx.conf").write_text(CONFIG.format(address=address, upstream=upstream, more=more))
        command = [program, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]
        environment = {**os.environ, "NGINX": f"{listener.fileno()};"}
        with (folder / "stderr").open("wb") as errors:
            child = subprocess.Popen(command, env=environment, stderr=errors, pass_fds=(listener.fileno(),))
    try:
        yield f"http://{address}"
        if child.poll() is not None:
            raise RuntimeError(f"nginx ended: {(folder / 'stderr').read_text()}")
    finally:
        child.terminate()
        child.wait(10)


@cache
def find_nginx() -> str | None:
    """Return the path of an nginx: the one that ``NGINX_BINARY`` names, an installed one, or one that was unpacked."""
    named = os.environ.get("NGINX_BINARY")
    if named:
        return named
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    return shutil.which("nginx", path=places) or _unpacked()


def _unpacked() -> str | None:
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-api-tests" / "nginx"
    program = cached / "root" / "usr" / "sbin" / "nginx"
    if not _runs(program) and shutil.which("apt-get") and shutil.which("dpkg"):
        cached.mkdir(parents=True, exist_ok=True)
        for package in PACKAGES:
            _download(package, cached)
            if _runs(program):
                break
    return str(program) if _runs(program) else None


def _download(package: str, folder: Path) -> None:
    """Unpack a package below ``folder``; do nothing where that cannot be done."""
    lists = ("-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}")
    if not _done(["apt-get", "download", package], folder):
        # Images have no lists of packages; ones of our own need no root.
        (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        if not _done(["apt-get", *lists, "update"], folder):
            return
        _done(["apt-get", *lists, "download", package], folder)
    for archive in folder.glob(f"{package}_*.deb"):
        _done(["dpkg", "-x", str(archive), str(folder / "root")], folder)


def _runs(program: Path) -> bool:
    return program.is_file() and _done([str(program), "-v"], program.parent)


def _done(command: list[str], folder: Path) -> bool:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
