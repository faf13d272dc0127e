"""One HTTP/1.1 connection to a provider: a request goes out, the head and the body of its answer come in (RFC 9112).

The parser is llhttp, by httptools. What a status means, and when to connect, is the business of others.
"""

import asyncio
import math
import zlib
from collections.abc import Callable, Mapping
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from typing_extensions import override

from service.providers.inflate import CODINGS, Inflater

HELD_BYTES = 128 * 1024
"""Of a body that nobody reads: beyond that nothing is read from the socket. One more read of it may be on its way."""
MAX_HEAD_BYTES = 64 * 1024
"""Of names and values in a head; also of what may come in a row that is no body: interim answers and trailers."""
MAX_FIELDS = 256
"""Of a head; the vendors send about 30."""
_NO_BODY = frozenset({204, 304})
"""Statuses whose answers end with their head (RFC 9112 §6.3)."""


class NotHttpError(Exception):
    """What came is no HTTP, or more of it than anybody needs. Its text repeats nothing of what came."""


class ConnectionLostError(Exception):
    """The connection ended before the answer did. Its text is the name of the reason."""


def request_head(line: str, headers: Mapping[str, str], length: int) -> bytes:
    """Write a head, ``Content-Length`` included. Raises ``ValueError`` if a header would end its line or the head."""
    lines = [line, *[f"{name}: {value}" for name, value in headers.items()], f"Content-Length: {length}", "", ""]
    text = "\n".join(lines)
    if text.count("\n") != len(lines) - 1 or "\r" in text or "\0" in text:
        raise ValueError("a header holds the end of a line")
    return text.replace("\n", "\r\n").encode()


class Connection(asyncio.Protocol):
    """One exchange at a time: :meth:`send`, :meth:`head`, then :meth:`read` until it gives nothing.

    ``over`` holds whenever nothing is to come: before the first request, and from the end of an answer to the next
    request. Whatever comes then closes the connection: it answers nothing that was asked.
    """

    __slots__ = (
        "_armed_for",
        "_bodied",
        "_due",
        "_failure",
        "_field_bytes",
        "_fields",
        "_held",
        "_inflater",
        "_interim",
        "_keep",
        "_loop",
        "_on_end",
        "_other_bytes",
        "_parser",
        "_paused",
        "_pieces",
        "_timer",
        "_transport",
        "_until_close",
        "_waiter",
        "headers",
        "idle_since",
        "over",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        # As liberal as RFC 9112 §2.2, §5.2 and §7.1.1 tell readers to be: bare LF, folded lines, spaces after a size.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = math.inf
        self._due = math.inf
        self._paused = False
        self._on_end: Callable[[Connection], None] | None = None
        self.idle_since = 0.0
        """On the loop's clock; the pool's."""
        self._reset()
        self.over = True

    def _reset(self) -> None:
        self.over = False
        self.status = 0
        """Of the answer; 0 until its head has come."""
        self.headers: dict[str, str] = {}
        """Names in lower case; of a repeated one the first."""
        self._failure: Exception | None = None
        self._pieces: list[bytes] = []
        self._held = 0
        self._fields = 0
        self._field_bytes = 0
        self._other_bytes = 0
        self._bodied = False
        self._interim = False
        self._keep = False
        self._until_close = False
        self._inflater: Inflater | None = None

    # What the owner calls.

    @property
    def is_open(self) -> bool:
        """Whether a request can be written."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        """Whether the answer is whole, and the next one can come on this connection."""
        if self._transport is None or self._transport.is_closing():
            return False
        return self.over and self._keep and self._transport.get_write_buffer_size() == 0

    def send(self, head: bytes, body: bytes) -> None:
        """Write a request. Raises ``ConnectionLostError`` if nothing can be written."""
        if not self.is_open:
            raise ConnectionLostError("closed")
        self._reset()
        cast("asyncio.Transport", self._transport).writelines((head, body))

    async def head(self, until: float) -> None:
        """Wait for ``status`` and ``headers``, until an instant of the loop's clock."""
        while not self.status:
            await self.wait(until)

    async def read(self, until: float) -> bytes:
        """Return what has come of the body, or comes next; nothing at its end.

        What came before a failure is returned before it is raised: ``TimeoutError``, ``NotHttpError`` or
        ``ConnectionLostError``.
        """
        while (data := self.ready()) is None:
            await self.wait(until)
        return data

    def ready(self) -> bytes | None:
        """Return what :meth:`read` can without waiting; None where it must wait. Raises what that does."""
        if self._inflater is not None:
            if data := self._inflated(self._inflater):
                return data
        elif self._pieces:
            return self._taken()
        if self.over:
            return b""
        if self._failure is not None:
            raise self._failure
        return None

    def end_without(self, on_end: Callable[["Connection"], None]) -> None:
        """Let the rest of the body come and drop it; tell when it is there. Nobody may read any more."""
        self._taken()
        self._on_end = on_end

    def drop_unread(self) -> None:
        """Drop what nobody read of an answer, and go on reading: else nothing of the next one would ever come."""
        self._taken()
        self._inflater = None

    def close(self) -> None:
        """Close the socket at once, whatever is still to be written."""
        self._on_end = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._armed_for = math.inf
        if self._transport is not None:
            self._transport.abort()

    def _taken(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self._held = 0
        if self._paused:
            self._paused = False
            if self.is_open:
                cast("asyncio.Transport", self._transport).resume_reading()
        return data

    def _inflated(self, inflater: Inflater) -> bytes:
        try:
            data = inflater.step() if inflater.owes else b""
            while not data and self._pieces:
                data = inflater.step(self._taken())
        except zlib.error as exc:
            self.close()
            raise NotHttpError("the body is not compressed as its head says") from exc
        if not data and self.over and not inflater.ended:
            self.close()
            raise ConnectionLostError("compressed data without an end")
        return data

    def wait(self, until: float) -> "asyncio.Future[None]":
        """Return what is done once more has come, or fails with ``TimeoutError`` at that instant. One at a time.

        No coroutine: one that waits for each of an answer's pieces is made and kept for each of them.
        """
        waiter = self._loop.create_future()
        if self._failure is not None:
            waiter.set_exception(self._failure)
            return waiter
        self._waiter = waiter
        self._due = until
        if until < self._armed_for:
            self._arm(until)
        return waiter

    # One timer serves the whole connection. It is moved when it fires: setting and cancelling one around each read
    # costs about 3 µs a chunk.

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._armed_for = math.inf
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._due <= self._loop.time():
            self._waiter = None  # its failure knows who waited: a ring
            waiter.set_exception(TimeoutError())
        else:
            self._arm(self._due)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What the event loop calls.

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if self.over or self._failure is not None or self._parser is None:
            self.close()
            return
        self._bodied = False
        try:
            self._parser.feed_data(data)
            self._count_what_is_no_body(len(data))
        except (HttpParserError, HttpParserUpgrade, NotHttpError):
            self._spoil()
        self._wake()
        self._tell_end()

    def _count_what_is_no_body(self, size: int) -> None:
        self._other_bytes = 0 if self._bodied else self._other_bytes + size
        if not self.over and self._other_bytes > MAX_HEAD_BYTES:
            raise NotHttpError("too much comes that is no body")

    def _spoil(self) -> None:
        self._keep = False
        if not self.over:  # else it is what came behind the end, and the answer is whole
            self._fail(NotHttpError("the answer breaks the format"))

    def _tell_end(self) -> None:
        if self.over and self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end(self)

    @override
    def eof_received(self) -> None:
        """See :class:`asyncio.Protocol`."""
        self._end("closed")
        self.close()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._end("closed" if exc is None else type(exc).__name__)
        self.close()
        self._transport = None
        self._parser = None  # it holds methods of ours: a ring, which would be left to the garbage collector

    def _end(self, reason: str) -> None:
        self._keep = False
        if self.over or self._failure is not None:
            return
        if self._until_close and reason == "closed":
            self.over = True
            self._wake()
        else:
            self._fail(ConnectionLostError(reason))

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._wake()
        self.close()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """See :class:`httptools.HttpResponseParser`."""
        if self.over:
            self._keep = False  # a second answer, to nothing

    def on_header(self, name: bytes, value: bytes) -> None:
        """See :class:`httptools.HttpResponseParser`; trailers come here too, and are dropped."""
        if self.status:
            return
        self._fields += 1
        self._field_bytes += len(name) + len(value)
        if self._fields > MAX_FIELDS or self._field_bytes > MAX_HEAD_BYTES:
            raise NotHttpError("the head is too long")
        key = name.decode("latin-1").lower()
        if key not in self.headers:
            # The parser leaves the space behind a value, which is no part of it (RFC 9110 §5.5).
            self.headers[key] = value.strip(b" \t").decode("utf-8", "surrogateescape")
        elif key == "transfer-encoding":
            raise NotHttpError("the body is encoded twice")

    def on_headers_complete(self) -> None:
        """See :class:`httptools.HttpResponseParser`."""
        parser = cast("HttpResponseParser", self._parser)
        status = parser.get_status_code()
        if self.over:
            return
        if status < 200:  # noqa: PLR2004 - RFC 9110 §15.2
            if status == 101:  # noqa: PLR2004
                raise NotHttpError("the protocol was changed")
            self._interim = True
            return
        encoding = self.headers.get("transfer-encoding")
        if encoding is not None and encoding.lower() != "chunked":
            raise NotHttpError("the body has an encoding that was not offered")
        self._until_close = encoding is None and "content-length" not in self.headers and status not in _NO_BODY
        self._keep = not self._until_close and parser.should_keep_alive()
        coding = self.headers.get("content-encoding", "identity").lower()
        if coding in CODINGS:
            self._inflater = Inflater()
        elif coding not in {"identity", ""}:
            raise NotHttpError("the body is compressed in a way that was not offered")
        self.status = status

    def on_body(self, piece: bytes) -> None:
        """See :class:`httptools.HttpResponseParser`."""
        if not self.status:
            raise NotHttpError("an interim answer has a body")  # it would stand before that of the answer
        self._bodied = True
        if self.over or self._on_end is not None:
            return
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held > HELD_BYTES and not self._paused:
            self._paused = True
            cast("asyncio.Transport", self._transport).pause_reading()

    def on_message_complete(self) -> None:
        """See :class:`httptools.HttpResponseParser`."""
        if self._interim:
            self._interim = False
            self.headers = {}
        elif self.status:
            self.over = True
