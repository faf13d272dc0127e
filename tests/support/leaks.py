"""The service as a process of its own that tells, when a signal asks, what it holds: memory, tasks, descriptors.

``python -m tests.support.leaks serve …`` is the ``llm-api`` command with a handler for that signal.
"""

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.support.attempts import PLAIN
from tests.support.command import free_port
from tests.support.live import process

CAN_BE_MEASURED = sys.platform == "linux"
"""What is asked of /proc is there only."""
KEY = "watched-key-0123456789"
_ROOT = Path(__file__).parents[2]
_ASK = signal.SIGUSR1
_LOG = "TESTS_LOG_FILE"
_LISTENING = "0A"
"""In ``/proc/net/tcp`` (include/net/tcp_states.h)."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds at a moment."""

    rss_bytes: int
    """After a garbage collection, with what is free given back: what is left is in use, or lost."""
    objects: int
    """That the garbage collector tracks."""
    tasks: int
    """Of its event loop."""
    descriptors: int
    """Open ones, but for idle connections to the upstream, which a pool keeps on purpose."""
    clients: int
    """Connections of clients, established or not yet closed."""


@dataclass(frozen=True, slots=True)
class WatchedService:
    """A service that runs as its users run it."""

    base_url: str
    metrics_url: str
    log: Path
    """What it wrote to the standard error."""
    upstream_port: int
    child: "subprocess.Popen[str]"

    def holdings(self) -> Holdings:
        """Ask it; with nothing going on, two answers should be alike."""
        assert self.child.stdout is not None
        self.child.send_signal(_ASK)
        told: dict[str, int] = next(
            json.loads(line)["holdings"] for line in self.child.stdout if line.startswith('{"holdings"')
        )
        own_port = urlsplit(self.base_url).port or 0
        ends = _ends_of_connections(self.child.pid)
        idle = sum(count for (_, remote), count in ends.items() if remote == self.upstream_port)
        clients = sum(count for (local, _), count in ends.items() if local == own_port)
        descriptors = len(os.listdir(f"/proc/{self.child.pid}/fd")) - idle  # noqa: PTH208 - the count alone
        return Holdings(**told, descriptors=descriptors, clients=clients)

    def metrics(self) -> dict[str, float]:
        """Return every sample, by its name and labels as they are written."""
        lines = httpx.get(self.metrics_url, trust_env=False).text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def active(self) -> float:
        """Return how many requests and streams the gauges say are going on."""
        gauges = ("llm_api_http_requests_in_flight", "llm_api_streams_active")
        return sum(value for name, value in self.metrics().items() if name.startswith(gauges))

    def defects(self) -> dict[str, float]:
        """Return where an exception came that no code expects."""
        samples = self.metrics().items()
        return {name: value for name, value in samples if name.startswith("llm_api_unhandled_errors_total") and value}

    def log_lines(self) -> list[dict[str, Any]]:
        """Return its log, which must be JSON throughout."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]


@contextmanager
def watched_service(
    simulator: str, folder: Path, *, timeouts_s: Mapping[str, float] | None = None, **sections: Any
) -> Iterator[WatchedService]:
    """Run it in production's profile over a simulator's two faces, as ``tests.support.live.settings_over`` has them.

    Whoever shows ``KEY`` may call it.
    """
    provider = {"timeouts_s": dict(timeouts_s or {}), **PLAIN}
    metrics_port = free_port()
    settings = {
        "profile": "production",
        "server": {"port": 0, "metrics_port": metrics_port},
        "providers": {
            "openai": {"kind": "openai", "base_url": f"{simulator}/v1", "keys": ["sk-upstream-0123456789"], **provider},
            "anthropic": {
                "kind": "anthropic",
                "base_url": simulator,
                "keys": ["sk-ant-upstream-0123456789"],
                **provider,
            },
        },
        "models": {
            "sim*": {"routes": [{"provider": "openai"}]},
            "claude*": {"routes": [{"provider": "anthropic"}]},
        },
        "readiness": {"mode": "off"},
        "auth": {"keys": {"alice": {"key": KEY}}},
        "drain": {"delay_s": 0},
        **sections,
    }
    file, log = folder / "service.json", folder / "service.log"
    file.write_text(json.dumps(settings), "utf-8")
    environment = {"PYTHONPATH": str(_ROOT), "LLM_API_CONFIG": str(file), _LOG: str(log)}
    arguments = ["-m", "tests.support.leaks", "serve"]
    with ExitStack() as stack:
        try:
            started = process(arguments, announces=r"^API +(http://\S+)", environment=environment)
            child, base_url = stack.enter_context(started)
        except RuntimeError as error:
            error.add_note(log.read_text("utf-8") if log.exists() else "it wrote no log")
            raise
        metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        yield WatchedService(base_url, metrics_url, log, urlsplit(simulator).port or 0, child)


def _ends_of_connections(pid: int) -> Counter[tuple[int, int]]:
    """Return the local and the remote port of each established connection that a process has open."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            target = entry.readlink().name
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    ends: Counter[tuple[int, int]] = Counter()
    for line in Path(f"/proc/{pid}/net/tcp").read_text("ascii").splitlines()[1:]:
        _, local, remote, state, *rest = line.split()
        if rest[5] in inodes and state != _LISTENING:
            ends[int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)] += 1
    return ends


def _tell(number: int, frame: FrameType | None) -> None:
    del number, frame
    gc.collect()
    with contextlib.suppress(AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    holdings = {
        "rss_bytes": pages * resource.getpagesize(),
        "objects": len(gc.get_objects()),
        "tasks": len(asyncio.all_tasks(asyncio.get_running_loop())),
    }
    os.write(1, json.dumps({"holdings": holdings}).encode() + b"\n")


def main() -> None:
    """Run the command."""
    from service.cli import main as command  # noqa: PLC0415 - what imports this module for its types needs no service

    log = os.open(os.environ.pop(_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.close(log)
    signal.signal(_ASK, _tell)
    command()


if __name__ == "__main__":
    main()
