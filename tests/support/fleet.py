"""Several processes of the service over one store, restarted under a test's hands, and clients that read on."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from service.domain.stream import FOREIGN_END
from tests.support.command import environment, free_port

START_TIMEOUT_S = 60.0
PATIENCE_S = 60.0
"""How long a client tries to get an answer; only a fleet that is broken takes it."""
NOTICE_S = 0.3
"""Between the end of a process, or its signal, and the time at which clients are sent elsewhere."""
OK, REFUSED = 200, 503


class Member:
    """One process, at the same address after each restart, as a Service's pods look to a client."""

    def __init__(self, config: Path, log: Path, environ: Mapping[str, str] | None = None) -> None:
        """``environ`` holds settings beside those of the file."""
        self.port = free_port()
        self.is_endpoint = False
        """Whether new connections should come here, as a Service would decide."""
        self._environ = {**(environ or {}), "LLM_API_CONFIG": str(config)}
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; return when it answers."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "service", "serve", "--port", str(self.port), "--metrics-port", "0"),
                env=environment(self._environ),
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await self._is_up():  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.02)
        self.is_endpoint = True

    async def _is_up(self) -> bool:
        with suppress(OSError, EOFError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer.startswith(b"HTTP/1.1 200")
        return False

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal; wait for the end, and return its status."""
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(number)
        # Whoever chooses among endpoints hears of it a little later; a client is refused, or served, until then.
        asyncio.get_running_loop().call_later(NOTICE_S, self._leave_endpoints)
        async with asyncio.timeout(PATIENCE_S):
            return await process.wait()

    async def kill(self) -> None:
        """End it at once, if it runs."""
        await self.stop(signal.SIGKILL)

    def _leave_endpoints(self) -> None:
        self.is_endpoint = False


@asynccontextmanager
async def fleet(
    folder: Path, *, simulator: str, redis: str, count: int = 2, **sections: Any
) -> AsyncIterator[list[Member]]:
    """Run so many processes; ``sections`` replace those of the settings."""
    settings = {
        "redis": {"url": redis, "timeout_s": 0.5},
        "providers": {"openai": {"kind": "openai", "base_url": f"{simulator}/v1", "keys": ["sk-upstream-0123456789"]}},
        "models": {"sim*": {"routes": [{"provider": "openai"}]}},
        "readiness": {"mode": "off"},
        "drain": {"delay_s": 0.5, "timeout_s": 45},
        "auth": {"enabled": False},
        **sections,
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    members = [Member(config, folder / f"service-{number}.log") for number in range(count)]
    try:
        await asyncio.gather(*(member.start() for member in members))
        yield members
    finally:
        await asyncio.gather(*(member.kill() for member in members))


@dataclass
class Reading:
    """What one client got of one stream, over all of its connections."""

    stream_id: str = ""
    frames: list[bytes] = field(default_factory=list)
    """Its numbered events, without their ``id:`` lines; the first is number 1."""
    terminal: str = ""
    """``done``, or the code of the error event with a number."""
    resumes_s: list[float] = field(default_factory=list)
    """For each time that it went on: from the first attempt to the first event."""
    repeated: int = 0
    """Events whose number was not the next one."""
    lost: str = ""
    """Why it could not go on, if so."""

    @property
    def text(self) -> str:
        """The text, by the contract of our own streams."""
        pieces = []
        for frame in self.frames:
            fields = [line.partition(": ") for line in frame.decode().split("\n")]
            if not any(name == "event" for name, _, _ in fields):
                pieces.append("\n".join(value for name, _, value in fields if name == "data"))
        return "".join(pieces[:-1] if self.terminal == "done" else pieces)


class Client:
    """Reads one stream as docs/streaming.md says, leaves now and then, and goes on with any process that answers."""

    def __init__(self, members: list[Member], chance: random.Random, *, leaves_after: float) -> None:
        """``leaves_after`` is the mean number of events that it reads on one connection."""
        self._members = members
        self._chance = chance
        self._leaves_after = leaves_after

    async def read(self, text: str, model: str) -> Reading:
        """Have a text echoed; read it to its terminal event."""
        reading = Reading()
        query = f"prompt={quote('echo:' + text)}&model={quote(model)}&max_tokens=4096&resumable=true"
        attempts_from = 0.0
        while not reading.terminal and not reading.lost:
            member = self._chance.choice([member for member in self._members if member.is_endpoint] or self._members)
            going_on = bool(reading.stream_id)
            attempts_from = attempts_from or time.monotonic()
            if time.monotonic() - attempts_from > PATIENCE_S:
                reading.lost = "no process answered"
                break
            path = f"/streams/{reading.stream_id}?after={len(reading.frames)}" if going_on else f"/stream?{query}"
            begun_at: float | None = None
            with suppress(OSError, EOFError):
                begun_at = await self._connection(member, path, reading)
            if begun_at is None:
                await asyncio.sleep(0.01)
                continue
            if going_on:
                reading.resumes_s.append(begun_at - attempts_from)
            attempts_from = 0.0
        return reading

    async def _connection(self, member: Member, path: str, reading: Reading) -> float | None:
        """Read on one connection until it or the stream ends; return when the first event came, None if none did."""
        reader, writer = await asyncio.open_connection("127.0.0.1", member.port)
        first: float | None = None
        enough = self._chance.expovariate(1 / self._leaves_after)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status = int(head.split()[1])
            if status != OK:
                if status != REFUSED:
                    reading.lost = f"{status} for {path}"
                return None
            reading.stream_id = head.partition("x-stream-id: ")[2].partition("\r\n")[0]
            rest = b""
            while size := int(await reader.readline(), 16):
                rest += (await reader.readexactly(size + 2))[:-2]
                *blocks, rest = rest.split(b"\n\n")
                for block in blocks:
                    first = first or time.monotonic()
                    if not _take(block, reading):
                        return first
                enough -= len(blocks)
                if enough < 0 or reading.terminal:
                    return first
        except (OSError, EOFError, ValueError):
            pass  # cut: what came before counts
        finally:
            if self._chance.random() < 0.5:  # as often a reset as a close
                writer.transport.abort()
            writer.close()
        return first


def _take(block: bytes, reading: Reading) -> bool:
    """Take an event; False where it is one without a number, which ends the connection."""
    lines = [line for line in block.split(b"\n") if not line.startswith(b":")]
    if not lines:
        return True
    if not lines[0].startswith(b"id: "):
        if lines[0] == b"event: error" and b'"resume"' in block:
            return False
        reading.lost = f"an event without a number: {block!r}"
        return False
    number = int(lines[0].rpartition(b":")[2])
    if number not in (len(reading.frames) + 1, FOREIGN_END):
        reading.repeated += 1
    frame = b"\n".join(lines[1:])
    reading.frames.append(frame)
    if frame == b"data: [DONE]":
        reading.terminal = "done"
    elif frame.startswith(b"event: error"):
        reading.terminal = json.loads(frame.partition(b"data: ")[2])["code"]
    return True


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def texts(chance: random.Random, length: int) -> Iterator[str]:
    """Give texts of so many characters, no two alike, with everything that framing could spoil but CR."""
    alphabet = "abcdefghij \n\n\u2028é漢😀:"
    while True:
        yield "x" + "".join(chance.choices(alphabet, k=length - 2)) + "x"


def seconds(name: str, default: float) -> float:
    """Return a length of time that the environment may set, for longer runs."""
    return float(os.environ.get(name, default))
