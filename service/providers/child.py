"""Servers that we start ourselves as child processes: waited for, watched, restarted, and ended with us."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from service.errors import UpstreamUnavailable

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
"""From the start of a child to the line that says where it listens; the first start unpacks the model."""
STOP_TIMEOUT_S = 5.0
"""From SIGTERM to SIGKILL."""
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STABLE_S = 60.0
"""A child that ran this long before it died starts again with the first backoff."""
TAIL_LINES = 20
"""Of the child's standard error, kept for the message when it fails to start."""

_PR_SET_PDEATHSIG = 1
"""``prctl(2)``, Linux."""


class ChildFailedError(UpstreamUnavailable):
    """A child did not come up. The message holds the end of what it wrote."""


class Child:
    """One server process. It says where it listens in a line that ends with its address."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._readers: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls, name: str, arguments: Sequence[str], *, ready: str, environment: Mapping[str, str]
    ) -> "tuple[Child, str]":
        """Start ``python -m …`` and return it with the address that follows ``ready`` on its standard output.

        Raises ``ChildFailedError`` if it ends or takes too long; it is ended then.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *arguments,
            stdin=asyncio.subprocess.PIPE,  # its end tells the child that we are gone, on every system
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C is for us: what runs is finished first
        )
        child = cls(process, name)
        try:
            return child, await child._until_ready(ready)
        except BaseException:
            await child.stop()
            raise

    async def _until_ready(self, ready: str) -> str:
        out, err = self._process.stdout, self._process.stderr
        if out is None or err is None:
            raise AssertionError("both were asked for as pipes")
        self._readers.append(asyncio.create_task(self._keep_tail(err)))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                async for line in out:
                    text = line.decode(errors="replace").strip()
                    if text.startswith(ready):
                        self._readers.append(asyncio.create_task(_drain(out)))
                        return text.removeprefix(ready).strip()
                status = await self._process.wait()
        except TimeoutError as exc:
            raise ChildFailedError(f"the {self._name} was not up after {START_TIMEOUT_S:.0f} s{self._said()}") from exc
        await asyncio.wait(self._readers, timeout=1)
        raise ChildFailedError(f"the {self._name} ended at its start with status {status}{self._said()}")

    def _said(self) -> str:
        return "".join(f"\n  {line}" for line in self._tail)

    async def _keep_tail(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self._tail.append(line.decode(errors="replace").rstrip())

    async def wait(self) -> int:
        """Wait for its end and return the exit status."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End it, gently at first. A cancelled call has ended it too."""
        try:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        finally:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            for reader in self._readers:
                reader.cancel()
            await asyncio.gather(*self._readers, return_exceptions=True)


async def _drain(stream: asyncio.StreamReader) -> None:
    """Read and drop, so that the child never waits for us to take its output."""
    async for _ in stream:
        pass


@asynccontextmanager
async def run_child(
    name: str, arguments: Sequence[str], *, ready: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[str]:
    """Keep a server running while the context is open, and give its address; ``environment`` is added to ours.

    One that dies is started again after a pause, at the same port (``--port`` is appended to ``arguments``); calls in
    the meantime find nobody there. Raises ``ChildFailedError`` if the first start fails.
    """
    environment = environment or {}
    child, address = await Child.start(name, [*arguments, "--port", "0"], ready=ready, environment=environment)
    port = address.rpartition(":")[2]
    keeper = asyncio.create_task(
        _keep_running(child, name, [*arguments, "--port", port], ready=ready, environment=environment)
    )
    try:
        yield address
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def _keep_running(
    child: Child, name: str, arguments: Sequence[str], *, ready: str, environment: Mapping[str, str]
) -> None:
    loop = asyncio.get_running_loop()
    running: Child | None = child
    backoff = FIRST_BACKOFF_S
    try:
        while True:
            if running is not None:
                started = loop.time()
                status = await running.wait()
                await running.stop()
                running = None
                logger.error("the %s ended with status %s and is started again", name, status)
                if loop.time() - started >= STABLE_S:
                    backoff = FIRST_BACKOFF_S
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF_S)
            try:
                running, _ = await Child.start(name, arguments, ready=ready, environment=environment)
            except (ChildFailedError, OSError) as exc:
                logger.error("the %s does not start: %s", name, exc)  # noqa: TRY400 - the message says it all
    finally:
        if running is not None:
            await running.stop()


def end_with_parent() -> None:
    """Make this process end when the one that started it does; called by the child, with its pipe as standard input."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_exit_at_end_of_input, name="parent-watch", daemon=True).start()


def _exit_at_end_of_input() -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 4096):
            pass
    os._exit(0)
