"""A client of the simulator that shows bytes as they are, and bounded waiting for what only a socket decides."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

PATIENCE_S = 10.0
"""How long anything may take here; only a defect takes it."""


async def eventually(condition: Callable[[], object]) -> None:
    """Return when a condition holds; fail if it does not within PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        await asyncio.sleep(0.005)


def request(
    path: str,
    body: dict[str, Any] | bytes | None = None,
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> bytes:
    """Return the bytes of a request."""
    data = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return f"{method} {path} HTTP/1.1\r\nhost: simulator\r\n{lines}content-length: {len(data)}\r\n\r\n".encode() + data


def chat(model: str = "sim", text: str = "hello", *, headers: dict[str, str] | None = None, **more: Any) -> bytes:
    """Return the bytes of an OpenAI chat completion request."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return request("/v1/chat/completions", body, headers=headers)


def message(model: str = "sim", text: str = "hello", **more: Any) -> bytes:
    """Return the bytes of an Anthropic message request."""
    body = {"model": model, "max_tokens": 1000, "messages": [{"role": "user", "content": text}], **more}
    return request("/v1/messages", body, headers={"anthropic-version": "2023-06-01"})


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: list[bytes]
    """The HTTP chunks of a chunked body."""
    whole: bool
    """Whether the body came to its end by its own framing."""

    @property
    def json(self) -> Any:
        """The body's JSON value."""
        return orjson.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The data of each complete server-sent event."""
        events = self.body.decode(errors="replace").split("\n\n")[:-1]
        return [line.removeprefix("data: ") for event in events for line in event.split("\n") if line[:5] == "data:"]

    @property
    def text(self) -> str:
        """The text of a streamed or whole answer of either vendor."""
        if self.headers["content-type"] == "application/json":
            found = self.json
            if "choices" in found:
                return str(found["choices"][0]["message"]["content"])
            return "".join(block["text"] for block in found["content"])
        text = ""
        for event in self.events:
            if event == "[DONE]":
                continue
            data = orjson.loads(event)
            for choice in data.get("choices", ()):
                text += choice["delta"].get("content") or ""
            text += data.get("delta", {}).get("text", "")
        return text


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, base_url: str, *, receive_bytes: int | None = None) -> "Client":
        """Connect; with `receive_bytes`, take in no more than about so many bytes unread."""
        address = urlsplit(base_url)
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)  # noqa: FBT003 - its signature
        await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
        return cls(*await asyncio.open_connection(sock=sock, limit=receive_bytes or 1 << 20))

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    async def call(self, data: bytes) -> Reply:
        """Send a request and read its answer."""
        self.send(data)
        return await self.read()

    async def read(self) -> Reply:
        """Read one answer, complete or not. Raises ConnectionResetError for RST before the head."""
        async with asyncio.timeout(PATIENCE_S):
            status, headers = await self.read_head()
            pieces: list[bytes] = []
            whole = False
            try:
                if headers.get("transfer-encoding") == "chunked":
                    whole = await self._read_chunks(pieces)
                elif "content-length" in headers:
                    length = int(headers["content-length"])
                    while length and (data := await self.reader.read(length)):
                        pieces.append(data)
                        length -= len(data)
                    whole = not length
                else:
                    pieces.append(await self.reader.read())
            except ConnectionResetError:
                pieces.append(self._left_over())
        return Reply(status, headers, b"".join(pieces), pieces, whole)

    async def read_head(self) -> tuple[int, dict[str, str]]:
        """Read a status line and headers."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers

    async def _read_chunks(self, pieces: list[bytes]) -> bool:
        while line := await self.reader.readline():
            size = int(line, 16)
            if not size:
                return await self.reader.readline() == b"\r\n"
            try:
                pieces.append((await self.reader.readexactly(size + 2))[:-2])
            except asyncio.IncompleteReadError as exc:
                pieces.append(exc.partial)
                return False
        return False

    def _left_over(self) -> bytes:
        """Return what came of a chunk before RST; the reader keeps it, but gives only the error."""
        return bytes(self.reader._buffer)  # type: ignore[attr-defined]  # not in its published interface

    async def close(self) -> None:
        """Close with FIN."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def break_off(self) -> None:
        """Close with RST, as a process that is killed may."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
