"""The compiled half of the benchmark (``rig/``): builds it, starts its upstream, and gives its clients commands."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from load.bench.processes import pinned
from service.config import user_cache_dir

SOURCES = Path(__file__).parent / "rig"
BUILD_TIMEOUT_S = 300
NO_GO = "the benchmark's load generator is written in Go: install Go 1.21 or newer (https://go.dev/doc/install)"


class RigError(Exception):
    """The rig cannot be built, or does not answer."""


def build() -> Path:
    """Compile the rig, unless these very sources are compiled already; return the program."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.*")))).hexdigest()
    program = user_cache_dir() / "bench" / f"rig-{digest[:16]}"
    if program.is_file():
        return program
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        raise RigError(NO_GO)
    program.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(  # noqa: S603 - our own sources
        [go, "build", "-o", str(program), "."],
        cwd=SOURCES,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RigError(f"the rig does not compile: {done.stderr}")
    return program


@dataclass(frozen=True, slots=True)
class Upstream:
    """The simulated provider."""

    process: "subprocess.Popen[str]"
    address: str
    control: str

    def state(self) -> dict[str, Any]:
        """Return what is open, and how late its chunks were since the last call."""
        return self._ask("state")

    def drop_held(self) -> None:
        """End the held streams that a target has not let go of, so that the next one begins with none."""
        self._ask("drop")

    def _ask(self, what: str) -> dict[str, Any]:
        with urlopen(f"http://{self.control}/{what}", timeout=10) as answer:
            state: dict[str, Any] = json.load(answer)
        return state

    def await_no_held(self, timeout_s: float) -> int | None:
        """Wait until no held stream is left; return when the last was, in Unix microseconds; None after the time."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state())["held"]:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        return int(state["last_left_us"])


class Clients:
    """The load generator."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def run(self, do: str, **command: Any) -> dict[str, Any]:
        """Run one command to its end; return its report."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RigError("the load generator has no pipes")
        self.process.stdin.write(json.dumps({"do": do, **command}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RigError(f"the load generator ended with status {self.process.wait()}")
        report: dict[str, Any] = json.loads(line)
        return report


@contextmanager
def _started(program: Path, role: str, cores: set[int] | None) -> Iterator["subprocess.Popen[str]"]:
    with pinned(cores):
        process = subprocess.Popen(  # noqa: S603 - our own program
            [str(program), role], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def upstream(program: Path, cores: set[int] | None) -> Iterator[Upstream]:
    """Run the simulated provider."""
    with _started(program, "upstream", cores) as process:
        if process.stdout is None:
            raise RigError("the upstream has no pipe")
        address, control = process.stdout.readline().split()
        yield Upstream(process, address, control)


@contextmanager
def clients(program: Path, cores: set[int] | None) -> Iterator[Clients]:
    """Run the load generator."""
    with _started(program, "clients", cores) as process:
        yield Clients(process)


def chat_body(*, stream: bool, chunks: int = 1, gap_us: int = 0, hold: bool = False) -> dict[str, Any]:
    """Make a chat request whose prompt tells the upstream what to do."""
    prompt = f"bench: chunks={chunks} gap_us={gap_us} hold={int(hold)}"
    body: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}]}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def generate_body(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Make the body of ``/generate`` that asks for the same."""
    return {"model": chat["model"], "prompt": chat["messages"][0]["content"]}
