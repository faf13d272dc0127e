"""What clients see of a server that is told to stop while they are connected."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.support.command import environment, free_port
from tests.support.readers import Read, parse_events, read_events

START_TIMEOUT_S = 60.0
PATIENCE_S = 30.0
"""How long anything that a stop brings about may take; only a broken one takes it."""
OK = 200
UPGRADE = (
    "connection: upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
"""What a handshake has (RFC 6455 section 1.3)."""
GAP_MS = 100
"""Between the characters of an answer."""


@dataclass
class Reply:
    """What a request got."""

    status: int = 0
    """0 where no response came."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: str = ""
    """The name of the exception, where no response came, or the connection did not end as it should behind it."""

    @property
    def code(self) -> str:
        """The error's code, in either shape."""
        fields = json.loads(self.body)
        return str((fields.get("error") or fields)["code"])

    @property
    def closes(self) -> bool:
        """Whether the server said that it is the connection's last."""
        return self.headers.get("connection", "").lower() == "close"


class Connection:
    """One HTTP/1.1 connection, byte by byte: pools hide what happens to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect; raise ``OSError``."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Send a request and read its whole response, and the connection's end where that is announced."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._send(path, body)
                return await self._reply()
        except (OSError, EOFError, TimeoutError) as error:
            return Reply(failure=type(error).__name__)

    async def stream(self, path: str, body: Mapping[str, Any] | None = None) -> "Stream":
        """Send a request whose response is read by what is returned."""
        await self._send(path, body)
        return Stream(self)

    async def _send(self, path: str, body: Mapping[str, Any] | None) -> None:
        content = json.dumps(body).encode() if body is not None else b""
        head = f"{'POST' if body is not None else 'GET'} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        if path == "/ws":
            head += UPGRADE
        self.writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        await self.writer.drain()

    async def head(self) -> Reply:
        """Read a response's head."""
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Reply(int(first.split()[1]), headers)

    async def _reply(self) -> Reply:
        reply = await self.head()
        reply.body = await self.reader.readexactly(int(reply.headers["content-length"]))
        if reply.closes:
            assert await self.reader.read() == b""
        return reply

    async def is_closed(self) -> bool:
        """Whether the other side closes it, in order, before this test gives up."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.reader.read() == b""
        except (OSError, TimeoutError):
            return False

    def close(self) -> None:
        """Close it."""
        self.writer.close()


class Stream:
    """An event stream that is read in the background."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.reply = Reply()
        self.pieces: list[bytes] = []
        self.begun = asyncio.Event()
        """Set with the first event, or with the end."""
        self.ended_at = 0.0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        reader = self._connection.reader
        try:
            self.reply = await self._connection.head()
            if "content-length" in self.reply.headers:
                self.reply.body = await reader.readexactly(int(self.reply.headers["content-length"]))
                return
            while size := int(await reader.readline() or b"cut", 16):
                self.pieces.append(await reader.readexactly(size))
                await reader.readexactly(2)
                if b"data:" in self.pieces[-1]:
                    self.begun.set()
        except (OSError, EOFError, ValueError) as error:
            self.reply.failure = type(error).__name__
        finally:
            self.ended_at = time.monotonic()
            self.begun.set()
            self._connection.close()

    async def ended(self) -> None:
        """Wait for its end."""
        async with asyncio.timeout(PATIENCE_S):
            await self.task

    async def read(self) -> Read:
        """Wait for its end; return what came, by the contract of our own streams."""
        await self.ended()
        return read_events(parse_events(self.pieces))


@dataclass
class Socket:
    """A WebSocket on which one generation or none runs, read to its end in the background."""

    connection: ClientConnection
    messages: list[dict[str, Any]] = field(default_factory=list)
    close: tuple[int, str] | None = None
    ended_at: float = 0.0
    came: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect; raise ``InvalidStatus`` where that is refused."""
        socket = cls(await connect(f"ws://127.0.0.1:{port}/ws", proxy=None))
        socket.task = asyncio.create_task(socket._read())
        return socket

    async def _read(self) -> None:
        try:
            while True:
                self.messages.append(json.loads(await self.connection.recv()))
                self.came.set()
        except ConnectionClosed as closed:
            self.close = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")
        finally:
            self.ended_at = time.monotonic()
            self.came.set()

    async def send(self, **message: Any) -> None:
        """Send one message, if the socket still takes any."""
        with suppress(WebSocketException):
            await self.connection.send(json.dumps(message))

    async def until(self, kind: str, message_id: str | None) -> dict[str, Any] | None:
        """Wait for a message of this type under this id; None if the socket ends before."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for message in self.messages:
                    if (message["type"], message["id"]) == (kind, message_id):
                        return message
                if self.close is not None:
                    return None
                self.came.clear()
                await self.came.wait()

    async def ended(self) -> tuple[int, str] | None:
        """Wait for the close frame; return its code and reason."""
        assert self.task is not None
        async with asyncio.timeout(PATIENCE_S):
            await self.task
        return self.close

    def text(self, message_id: str) -> str:
        """Return what a generation has given."""
        return "".join(m["text"] for m in self.messages if m["type"] == "delta" and m["id"] == message_id)

    def terminals(self, message_id: str) -> list[str]:
        """Return every message that ends a generation."""
        ends = [m for m in self.messages if m["type"] in {"done", "error"} and m["id"] == message_id]
        return [str(m.get("code", "done")) for m in ends]


@dataclass(frozen=True)
class Program:
    """How a server is started. ``{port}`` stands for its port."""

    name: str
    arguments: Sequence[str]
    settings: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    exit_status: int = 0


class Server:
    """A server in a process of its own, over a simulator."""

    def __init__(self, program: Program, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.program = program
        self.process = process
        self.port = port
        self.connections: list[Connection] = []
        self._log = log

    @property
    def log(self) -> str:
        """What it has written."""
        return self._log.read_text()

    def model(self, purpose: str) -> str:
        """Name a model whose calls the simulator's ledger tells apart, and which writes a character each ``GAP_MS``."""
        return f"sim;piece_chars=1;gap_ms={GAP_MS};ttft_ms={GAP_MS};key={self.program.name}:{purpose}"

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Ask on a connection of its own."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                connection = await self.connect()
        except (OSError, TimeoutError) as error:
            return Reply(failure=type(error).__name__)
        try:
            return await connection.ask(path, body)
        finally:
            connection.close()

    async def stream(self, purpose: str, text: str) -> Stream:
        """Begin an event stream that gives ``text``."""
        query = urlencode({"prompt": f"echo:{text}", "model": self.model(purpose)})
        return await (await self.connect()).stream(f"/stream?{query}")

    async def connect(self) -> Connection:
        """Open a connection; raise ``OSError``."""
        connection = await Connection.open(self.port)
        self.connections.append(connection)
        return connection

    async def socket_or_none(self) -> Socket | None:
        """Open a WebSocket; None where that is not possible any more."""
        try:
            return await Socket.open(self.port)
        except (OSError, WebSocketException):
            return None

    async def until_unready(self) -> Reply:
        """Wait until every worker says that it is; return how one does."""
        async with asyncio.timeout(PATIENCE_S):
            in_a_row = 0
            while in_a_row < 1 + 4 * (self.program.workers - 1):
                reply = await self.ask("/ready")
                in_a_row = in_a_row + 1 if reply.status != OK else 0
                await asyncio.sleep(0.01)
        return reply

    async def until_refusing(self) -> Reply:
        """Wait until new work is refused; return how."""
        async with asyncio.timeout(PATIENCE_S):
            while (reply := await self.ask_what_is_left("/v1/models")).status == OK:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.02)
        return reply

    async def ask_what_is_left(self, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Ask while workers end. One on which nothing runs closes what it has just accepted; another one answers."""
        for _ in range(1 if self.program.workers == 1 else 20):
            reply = await self.ask(path, body)
            if reply.status:
                break
            await asyncio.sleep(0.02)
        return reply

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send the signal."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end of the process; return its status."""
        async with asyncio.timeout(PATIENCE_S):
            while (status := self.process.poll()) is None:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.01)
        return status


@asynccontextmanager
async def started(program: Program, config: Path, log: Path, **settings: str) -> AsyncIterator[Server]:
    """Start a server; kill it with the block if it has not ended."""
    port = free_port()
    arguments = [argument.format(port=port) for argument in program.arguments]
    variables = environment({"LLM_API_CONFIG": str(config), **program.settings, **settings})
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, *arguments], env=variables, stdout=output, stderr=output, start_new_session=True
        )
    server = Server(program, process, port, log)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while server.log.count("startup complete") < program.workers or not (await server.ask("/health")).status:
                assert process.poll() is None, server.log
                await asyncio.sleep(0.02)
        yield server
    finally:
        for connection in server.connections:
            connection.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()
