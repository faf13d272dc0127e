"""The ``llm-api`` command as a process of its own, in an environment of the test's making."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

from tests.support.redis_server import eventually

TIMEOUT_S = 60
"""Only a command that hangs takes it."""

_PREFIXES = ("LLM_API_", "OPENAI_", "ANTHROPIC_", "REDIS_", "PROMETHEUS_")


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without anything that is a setting, and then the settings given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}
    return {**kept, **(settings or {})}


def run(
    *arguments: str, settings: Mapping[str, str] | None = None, stdin: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=environment(settings),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


class Running:
    """A command that goes on until it is told to stop."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []

    def address(self, label: str) -> str:
        """Return what stands behind a label in the banner; waits for it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            name, _, value = line.strip().partition(" ")
            if name == label:
                return value.strip()
        raise AssertionError(f"it ended without saying {label!r}: {self.lines}")

    def stop(self, signal_number: int) -> tuple[int, str]:
        """Send a signal; return the exit status and the rest of the standard output."""
        assert self.process.stdout is not None
        self.process.send_signal(signal_number)
        # Not communicate(): it does not see what was read ahead for a line before.
        watchdog = threading.Timer(TIMEOUT_S, self.process.kill)
        watchdog.start()
        try:
            output = self.process.stdout.read()
            return self.process.wait(), output
        finally:
            watchdog.cancel()


@contextmanager
def running(*arguments: str, settings: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run a command until the block ends; its log goes to the test's standard error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service", *arguments], env=environment(settings), stdout=subprocess.PIPE, text=True
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()


def is_served(port: int) -> bool:
    """Whether anything accepts connections at a port of this machine."""
    with closing(socket.socket()) as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def is_freed(port: int) -> bool:
    """Whether nothing accepts connections there any more, now or soon."""
    return eventually(lambda: not is_served(port))


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port
