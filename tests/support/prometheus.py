"""A Prometheus and its promtool for tests: found, or Debian's taken apart where the machine is a Debian.

``python -m tests.support.prometheus`` puts what is missing into a cache folder outside the checkout. Where that fails
it says so and ends well: a test whose program is not there is skipped, with the reason.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.chart.tools import FOLDER, find
from tests.support.command import free_port
from tests.support.redis_server import eventually

NAMES = ("prometheus", "promtool")
FETCH_TIMEOUT_S = 300
START_TIMEOUT_S = 60.0


def missing(*names: str) -> str | None:
    """Return what to do before a test can run; None if it can."""
    absent = [name for name in names or NAMES if find(name) is None]
    if not absent:
        return None
    return f"no {' and no '.join(absent)}: install Prometheus, or on Debian: python -m tests.support.prometheus"


def program(name: str) -> str:
    """Return the path of one of them, after ``missing`` said nothing."""
    path = find(name)
    if path is None:
        raise RuntimeError(missing(name))
    return path


@dataclass(frozen=True, slots=True)
class Prometheus:
    """One that runs."""

    base_url: str

    def get(self, path: str, **query: str | float) -> Any:
        """Ask its HTTP API; return the data of the answer."""
        with urlopen(f"{self.base_url}/api/v1/{path}?{urlencode(query)}", timeout=30) as answer:  # noqa: S310 - loopback
            return json.load(answer)["data"]

    def query(self, expr: str, *, at: float | None = None) -> list[dict[str, Any]]:
        """Return the series that an expression has now, or had at a time; raise ``HTTPError`` where it is none."""
        time_s = {} if at is None else {"time": at}
        found: list[dict[str, Any]] = self.get("query", query=expr, **time_s)["result"]
        return found

    def scrapes(self) -> int:
        """Return how often each target that is up was scraped, the one that was scraped least."""
        found = self.query("min(sum_over_time(up[1h]) and up == 1)")
        return int(found[0]["value"][1]) if found else 0


@contextmanager
def running_prometheus(folder: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run one with this configuration, which may be JSON since that is YAML; it keeps all in the folder."""
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"),
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    prometheus = Prometheus(f"http://{address}")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            if not eventually(lambda: _is_up(prometheus, process), START_TIMEOUT_S):
                raise RuntimeError(f"Prometheus did not start: {(folder / 'prometheus.log').read_text('utf-8')}")
            yield prometheus
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_up(prometheus: Prometheus, process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        return False
    try:
        prometheus.get("status/buildinfo")
    except OSError:
        time.sleep(0.05)
        return False
    return True


def main() -> None:
    """Fetch what is missing."""
    if missing() is None:
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        print(f"The tests that need it will be skipped: {missing()}", flush=True)
        return
    print("Fetching Debian's Prometheus for the tests of rules and dashboards", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fetch = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=", "prometheus"]
            subprocess.run(fetch, cwd=folder, timeout=FETCH_TIMEOUT_S, check=True)
            (package,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg", "-x", str(package), folder], timeout=FETCH_TIMEOUT_S, check=True)
            FOLDER.mkdir(parents=True, exist_ok=True)
            for name in NAMES:
                shutil.copy2(Path(folder, "usr", "bin", name), FOLDER / name)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            print(f"The tests that need it will be skipped: {error}", flush=True)


if __name__ == "__main__":
    main()
