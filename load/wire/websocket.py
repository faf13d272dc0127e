"""A client of `WS /ws`, one generation at a time: frames by RFC 6455, without extensions."""

import base64
import os
import struct
from array import array
from typing import Final

import msgspec

from load.wire.answers import Usage
from load.wire.connection import Connection

_CONTINUATION, _TEXT, _CLOSE, _PING, _PONG = 0, 1, 8, 9, 10
_MASK: Final = b"\0\0\0\0"
"""Allowed, and it saves masking: what it protects against is a browser's proxy."""


class _Message(msgspec.Struct):
    type: str
    completion_tokens: int = 0
    finish_reason: str | None = None
    code: str | None = None
    text: str = ""


_message = msgspec.json.Decoder(_Message)


def frame(opcode: int, payload: bytes) -> bytes:
    """Make a client's frame."""
    size = len(payload)
    if size < 126:  # noqa: PLR2004 - RFC 6455 section 5.2
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 65_536:  # noqa: PLR2004 - the same
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + _MASK + payload


def text_frame(payload: bytes) -> bytes:
    """Make a frame of text."""
    return frame(_TEXT, payload)


def handshake(path: str, host: str, headers: str) -> bytes:
    """Make the request that opens a socket."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path}/ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    ).encode()


class Greeting:
    """The answer to a handshake."""

    def __init__(self) -> None:
        self._data = b""
        self.status = 0

    def feed(self, data: bytes, now_s: float) -> bool:  # noqa: ARG002 - nothing is timed here
        """Wait for the head; see `Decoder`."""
        self._data += data
        if b"\r\n\r\n" not in self._data:
            return False
        self.status = int(self._data.split(b" ", 2)[1])
        return True

    def eof(self) -> bool:
        """Say that it is not whole."""
        return False


class SocketAnswer:
    """The messages of one generation, up to `done` or `error`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = b""
        self._fragments: list[bytes] = []
        self.times = array("d")
        self.usage: Usage | None = None
        self.done = False
        self.error: bytes | None = None
        self.ended_s: float | None = None

    def feed(self, data: bytes, now_s: float) -> bool:
        """Take frames; see `Decoder`."""
        self._buffer += data
        while (found := _split(self._buffer)) is not None:
            final, opcode, payload, self._buffer = found
            if opcode == _PING:
                self._connection.send(frame(_PONG, payload))
            elif opcode == _CLOSE:
                raise ConnectionResetError("closed by the service")
            elif opcode in (_TEXT, _CONTINUATION):
                self._fragments.append(payload)
                if final:
                    whole = b"".join(self._fragments)
                    self._fragments.clear()
                    self._take(_message.decode(whole), whole, now_s)
        return self.done or self.error is not None

    def eof(self) -> bool:
        """Say that it is not whole."""
        return False

    def _take(self, message: _Message, payload: bytes, now_s: float) -> None:
        if message.type == "delta":
            if message.text:
                self.times.append(now_s)
        elif message.type == "usage":
            self.usage = Usage(message.completion_tokens, message.finish_reason)
        elif message.type == "done":
            self.done, self.ended_s = True, now_s
        elif message.type == "error":
            self.error, self.ended_s = payload, now_s


def _split(data: bytes) -> tuple[bool, int, bytes, bytes] | None:
    """Take the first frame off; None where it is not whole yet."""
    if len(data) < 2:  # noqa: PLR2004 - RFC 6455 section 5.2
        return None
    size, start = data[1] & 0x7F, 2
    if size >= 126:  # noqa: PLR2004 - the same
        start += 2 if size == 126 else 8  # noqa: PLR2004 - the same
        if len(data) < start:
            return None
        size = int.from_bytes(data[2:start], "big")
    if len(data) < start + size:
        return None
    return bool(data[0] & 0x80), data[0] & 0x0F, data[start : start + size], data[start + size :]
