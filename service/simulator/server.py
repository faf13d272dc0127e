"""Runs a simulator: in the caller's event loop for tests, or as a process of its own."""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from service.simulator.control import Control, ControlError
from service.simulator.http_protocol import Connection
from service.simulator.ledger import Call, Ledger
from service.simulator.options import SimulatorOptions, add_arguments, from_arguments
from service.simulator.routes import Simulator

try:
    from uvloop import new_event_loop
except ImportError:  # pragma: no cover - there is none for Windows
    from asyncio import new_event_loop  # type: ignore[assignment]  # as good as the other, but slower

BACKLOG: Final = 4096
_PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that the kernel sends when the parent has ended."""
_PARENT_CHECK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class SimulatorHandle:
    """A running simulator, as the program that started it in its own event loop sees it."""

    base_url: str
    control: Control

    @property
    def ledger(self) -> Ledger:
        """The invoice, live."""
        return self.control.ledger

    def calls(self) -> list[Call]:
        """Return every call kept, oldest first."""
        return list(self.control.ledger.calls())

    def change(self, **options: Any) -> None:
        """Change options, or `directives` that hold for every call, as POST /control does."""
        self.control.change(options)

    def reset(self) -> None:
        """Go back to the options given at the start, with an empty ledger."""
        self.control.reset()


@asynccontextmanager
async def running(options: SimulatorOptions | None = None) -> AsyncIterator[SimulatorHandle]:
    """Listen until the block is left; then every connection is closed at once. Without options, on a free port."""
    options = options or SimulatorOptions(port=0)
    loop = asyncio.get_running_loop()
    control = Control(options)
    simulator = Simulator(control)
    connections: set[Connection] = set()
    server = await loop.create_server(
        lambda: Connection(simulator.plan, control.ledger, connections),
        options.host,
        options.port,
        backlog=BACKLOG,
    )
    try:
        address: tuple[Any, ...] = server.sockets[0].getsockname()
        host = f"[{address[0]}]" if server.sockets[0].family == socket.AF_INET6 else address[0]
        yield SimulatorHandle(f"http://{host}:{address[1]}", control)
    finally:
        server.close()
        for connection in list(connections):
            connection.abort()
        await server.wait_closed()


def serve(options: SimulatorOptions) -> None:
    """Serve until SIGTERM or SIGINT; print one line when ready.

    Raises ControlError for an option out of its range, OSError for an address that cannot be listened on.
    """
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(options))


def run(arguments: Sequence[str]) -> None:
    """Serve with the options of a command line."""
    parser = argparse.ArgumentParser(
        prog="llm-api simulate", description="A simulated OpenAI- and Anthropic-compatible upstream."
    )
    add_arguments(parser)
    try:
        serve(from_arguments(parser.parse_args(arguments)))
    except (ControlError, OSError) as exc:
        parser.error(str(exc))


async def _serve(options: SimulatorOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    watch = asyncio.create_task(_watch_parent(stop)) if options.exit_with_parent else None
    async with running(options) as handle:
        # The ledger grows to hundreds of thousands of records: the collector should look at them seldom.
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        print(f"simulator listening on {handle.base_url}", flush=True)  # noqa: T201 - what the caller waits for
        await stop.wait()
    if watch is not None:
        watch.cancel()


async def _watch_parent(stop: asyncio.Event) -> None:
    """Set `stop` when the parent has ended; on Linux the kernel also tells at once, even if this loop is stuck."""
    parent = os.getppid()
    if sys.platform == "linux":
        # The signal comes when the thread that started this process ends, so start it from one that stays.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing but asking tells that a parent has ended
        await asyncio.sleep(_PARENT_CHECK_S)
    stop.set()
