"""The service and the simulator as they really run: on a socket."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from typing_extensions import override

from service.app import create_app
from service.config import Settings
from service.resources import Resources
from service.serving.options import uvicorn_options
from service.wiring import open_resources
from tests.support.attempts import PLAIN

START_TIMEOUT_S = 60
"""How long a process may take to say that it listens; only a broken one takes it."""


@dataclass(frozen=True, slots=True)
class LiveService:
    """A service that listens."""

    base_url: str
    resources: Resources


@contextmanager
def serving(settings: Settings) -> Iterator[LiveService]:
    """Serve an application from a thread with an event loop of its own, so that blocking clients can call it."""
    opened: list[Resources] = []

    @asynccontextmanager
    async def opener(given: Settings) -> AsyncIterator[Resources]:
        async with open_resources(given) as resources:
            opened.append(resources)
            yield resources

    listener = socket.create_server(("127.0.0.1", 0))
    started = threading.Event()

    class Server(uvicorn.Server):
        @override
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    config = uvicorn.Config(
        create_app(settings, opener),
        **uvicorn_options(settings),
        log_level="warning",
        timeout_graceful_shutdown=5,
    )
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        if not started.wait(START_TIMEOUT_S) or not opened:
            raise RuntimeError("the service did not start")
        yield LiveService(f"http://127.0.0.1:{listener.getsockname()[1]}", opened[0])
    finally:
        server.should_exit = True
        thread.join(START_TIMEOUT_S)
        listener.close()


@contextmanager
def process(
    arguments: list[str], *, announces: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a Python program until the block ends; give the address that it announces on standard output.

    ``announces`` is a regular expression with one group.
    """
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    watchdog = threading.Timer(START_TIMEOUT_S, child.kill)
    watchdog.start()
    try:
        address = _announced(child, announces)
        watchdog.cancel()
        yield child, address
    finally:
        watchdog.cancel()
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _announced(child: "subprocess.Popen[str]", announces: str) -> str:
    if child.stdout is None:
        raise RuntimeError("the child's output is not read")
    seen = []
    for line in child.stdout:
        seen.append(line)
        found = re.search(announces, line)
        if found:
            return found.group(1)
    raise RuntimeError(f"ended before it listened: {''.join(seen)}")


@contextmanager
def simulating(*options: str) -> Iterator[str]:
    """Run a simulator in a process of its own; give its address."""
    arguments = ["-m", "service.simulator", "--port", "0", *options]
    with process(arguments, announces=r"listening on (http://\S+)") as (_, address):
        yield address


def settings_over(simulator: str, **sections: Any) -> Settings:
    """Make settings whose providers are a simulator's two faces.

    ``gpt-*`` and ``sim*`` go to its OpenAI face, ``claude-*`` to its Anthropic face.
    """
    given: dict[str, Any] = {
        "server": {"metrics_port": 0},
        "embedded": {"store": False},
        "providers": {
            "openai": {"kind": "openai", "base_url": f"{simulator}/v1", "keys": ["sk-upstream-0123456789"], **PLAIN},
            "anthropic": {
                "kind": "anthropic",
                "base_url": simulator,
                "keys": ["sk-ant-upstream-0123456789"],
                **PLAIN,
            },
        },
        "models": {
            "gpt-4o-mini": {"routes": [{"provider": "openai"}]},
            "gpt-4o": {"routes": [{"provider": "openai"}]},
            "claude-3-haiku-20240307": {"routes": [{"provider": "anthropic"}]},
            "text-embedding-3-small": {"routes": [{"provider": "openai"}]},
            "sim*": {"routes": [{"provider": "openai"}]},
            "claude*": {"routes": [{"provider": "anthropic"}]},
        },
        "readiness": {"mode": "off"},
        "auth": {"enabled": False},
    }
    return Settings.model_validate({**given, **sections})
