"""HTTP/1.1 on one client connection: requests in, one delivery at a time out; routes.py decides what to answer."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import unquote

import httptools
from typing_extensions import override

from service.simulator.delivery import Delivery
from service.simulator.ledger import ConnectionRecord, Ledger
from service.simulator.plan import Plan

MOST_BODY_BYTES: Final = 64 * 1024 * 1024
MOST_PIPELINED: Final = 1000
"""Requests that may wait behind the one being answered; reading is never paused, lest a client's leaving go unseen."""


@dataclass(slots=True)
class Request:
    """One request, fully received."""

    method: str = ""
    path: str = ""
    query: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    """Lower-case names; of a repeated header, the last."""
    directives: list[tuple[bytes, bytes]] = field(default_factory=list)
    """The `x-sim…` headers, all of them."""
    body: bytes = b""
    keep_alive: bool = True
    http10: bool = False


class Connection(asyncio.Protocol):
    """Parses what a client sends, answers in order, and tells the delivery at once when the client has left."""

    def __init__(
        self, plan: Callable[[Request, ConnectionRecord], Plan], ledger: Ledger, open_connections: set["Connection"]
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._open_connections = open_connections
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Request] = deque()
        self._delivery: Delivery | None = None
        self._serving = False
        self._closing = False
        self._url = b""
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._request = Request()
        self.paused = False

    # What the event loop calls.

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but ancestry
        # Paused by the first byte that the operating system does not take: only then is `delivered` exact.
        transport.set_write_buffer_limits(high=0)
        self._parser = httptools.HttpRequestParser(self)
        self._record = self._ledger.open_connection()
        self._open_connections.add(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._open_connections.discard(self)
        self._ledger.close_connection(self._record)
        self._waiting.clear()
        if (delivery := self._delivery) is not None:
            self._delivery = None
            delivery.abandon()
        del self._parser  # it refers back to this object

    @override
    def eof_received(self) -> None:
        # A client that has finished sending has left, for HTTP clients close both ways; waiting for the
        # write buffer to empty would hide it for as long as the client's peer keeps the other half open.
        self._transport.abort()

    @override
    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(b"501 Not Implemented")
            return
        except httptools.HttpParserError:
            self._refuse(b"400 Bad Request")
            return
        self._serve()

    @override
    def pause_writing(self) -> None:
        self.paused = True

    @override
    def resume_writing(self) -> None:
        self.paused = False
        if self._delivery is not None:
            self._delivery.resume()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._request = Request()
        self._url = b""
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        name = name.lower()
        self._request.headers[name] = value
        if name.startswith(b"x-sim"):
            self._request.directives.append((name, value))

    def on_headers_complete(self) -> None:
        """Take what the request line says, and let a client that asks for leave send its body."""
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.http10 = self._parser.get_http_version() == "1.0"
        request.keep_alive = self._parser.should_keep_alive()
        target = self._url.decode("latin-1")
        if not target.startswith("/"):
            target = "/" + target.partition("://")[2].partition("/")[2]
        path, _, request.query = target.partition("?")
        request.path = unquote(path) if "%" in path else path
        expects = request.headers.get(b"expect")
        if expects is not None and expects.lower() == b"100-continue" and self._delivery is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        if self._body_bytes <= MOST_BODY_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Queue the request."""
        self._request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if self._body_bytes > MOST_BODY_BYTES or len(self._waiting) >= MOST_PIPELINED:
            self._refuse(b"413 Content Too Large")
            return
        self._waiting.append(self._request)

    # What the delivery calls.

    def write(self, data: bytes) -> None:
        """Hand bytes to the operating system, or keep them and become paused."""
        self._transport.write(data)

    def reset(self) -> None:
        """Close at once with RST."""
        self._delivery = None
        self._closing = True
        raw: socket.socket | None = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def cut(self) -> None:
        """Close with FIN after the bytes already written."""
        self._delivery = None
        self._closing = True
        self._transport.close()

    def delivered(self, *, reusable: bool) -> None:
        """Take the next request; a connection that is not reusable is closed."""
        self._delivery = None
        if not reusable:
            self.cut()
        elif self._waiting:
            self._serve()

    def abort(self) -> None:
        """Close at once: the simulator ends."""
        self._transport.abort()

    def _serve(self) -> None:
        """Answer what waits, in a loop rather than by recursion: many answers are whole before this returns."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._waiting and self._delivery is None and not self._closing:
                request = self._waiting.popleft()
                self._delivery = delivery = Delivery(
                    self,
                    self._plan(request, self._record),
                    self._ledger,
                    self._loop,
                    keep_alive=request.keep_alive,
                    http10=request.http10,
                )
                delivery.start()
        finally:
            self._serving = False

    def _refuse(self, status: bytes) -> None:
        """Answer what is not HTTP, or not HTTP that is served here, and close."""
        self._waiting.clear()
        if self._delivery is None and not self._closing:
            self._transport.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
            self.cut()
