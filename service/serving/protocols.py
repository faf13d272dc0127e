"""uvicorn's protocols, with an end for clients that do not read, and with every departure noticed."""

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from socket import AF_INET, AF_INET6, IPPROTO_TCP
from typing import ClassVar, cast
from weakref import ref

from typing_extensions import override
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from service.serving.joined_writes import JoinedWrites

WRITE_TIMEOUT_S = 30.0
"""Seconds for which writing may be stuck. The kernel's buffer and 64 KiB of ours are full by then, and not 48 KiB were
read: that is no slow network but a client that has stopped reading, and holds an upstream call."""
LEAST_READ_BYTES = 49_152
"""What a client must take in that time."""
SLOW_CLIENT = "llm_api.slow_client"
"""What is true in the scope of a connection that was ended for that; ``service.api.disconnect`` reads it."""

CONNECTION = "llm_api.connection"
"""Where the scope of a request has its :class:`Connection`; ``service.api.disconnect`` asks it."""

MAX_PIPELINED = 16
"""Requests that may wait for the one before them, before we stop reading. No client in use sends more than a few."""
MAX_PIPELINED_BODY_BYTES = 262_144
"""What their bodies may take together, before we stop reading."""


UNSENT_BYTES = 65_536
"""What the kernel takes of an answer before it can send it. Left alone it takes megabytes, on loopback 6 to 8, all
of them paid for, before a client that has stopped reading is noticed."""
_NOTSENT_LOWAT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
"""Linux and macOS have it."""


class _BoundedWrites(asyncio.Protocol, ABC):
    """Aborts the connection when its write buffer stays over the mark for too long. Costs nothing while it does not.

    Aborts and does not close: closing waits for the buffer to empty, which is what does not happen. The application is
    told as of any other departure.
    """

    write_timeout_s: ClassVar[float] = WRITE_TIMEOUT_S

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _stuck: asyncio.TimerHandle | None = None
    _unread = 0
    """What the kernel had not taken when the watch began."""

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def _watch(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._stuck = self.loop.call_later(self.write_timeout_s, self._give_up)

    @override
    def resume_writing(self) -> None:
        self._forget()
        super().resume_writing()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _give_up(self) -> None:
        if self._unread - self.transport.get_write_buffer_size() >= LEAST_READ_BYTES:
            self._watch()  # one large write: it is long above the mark though the client reads
            return
        self._mark_slow()
        self.transport.abort()

    @abstractmethod
    def _mark_slow(self) -> None:
        """Say in the scope of whatever is being answered why its client is taken to have left."""


class Connection:
    """What one request may ask of the connection that it came on, without a task that waits for an answer.

    It stands in the scope, which uvicorn's object of the request holds: were that held here, only the garbage collector
    could free the two.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = ref(cycle)
        self._listeners: list[Callable[[], object]] = []

    @property
    def has_body(self) -> bool:
        """Whether all of the request's body has come, so that reading it waits for nothing."""
        cycle = self._cycle()
        return cycle is None or not cycle.more_body

    def on_departure(self, listener: Callable[[], object]) -> Callable[[], object]:
        """Call ``listener`` when the client leaves before its answer is complete; at once if it has.

        Calling what is returned ends that.
        """
        cycle = self._cycle()
        if cycle is None or cycle.disconnected:
            listener()
            return _nothing
        # A long body has stopped the reading, and a transport that is not read does not tell that its peer is gone.
        cycle.flow.resume_reading()
        self._listeners.append(listener)
        return self._listeners.clear

    def left(self) -> None:
        """Tell who listens."""
        for listener in tuple(self._listeners):
            listener()


def _nothing() -> None:
    """End what never began."""


class HttpProtocol(_BoundedWrites, HttpToolsProtocol):
    """uvicorn's, which notices a departure only for the newest request of a connection, and not while one is queued.

    It stops reading once a request is pipelined, and a transport that is not read does not tell that its peer is gone.
    Here reading goes on within bounds; past them a departure is noticed only when the request that runs is over.
    """

    _answered: RequestResponseCycle | None = None
    _connection: Connection | None = None
    """Of the request that is answered."""

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(cast("asyncio.Transport", JoinedWrites(transport, self.loop)))
        connection = transport.get_extra_info("socket")
        if _NOTSENT_LOWAT is not None and connection is not None and connection.family in (AF_INET, AF_INET6):
            connection.setsockopt(IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT_BYTES)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.pipeline.clear()
        super().connection_lost(exc)
        # After a reset uvicorn 0.54 leaves it running, and it holds the connection's last request for 75 s.
        self._unset_keepalive_if_required()
        cycle = self._answered
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if self._connection is not None:
                self._connection.left()

    @override
    def eof_received(self) -> None:
        # The loop closes its own transport now, not ours, and drops what is written after that.
        cast("JoinedWrites", self.transport).flush()
        super().eof_received()

    @override
    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._go_on_reading()

    @override
    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._go_on_reading()

    def _go_on_reading(self) -> None:
        if (
            0 < len(self.pipeline) <= MAX_PIPELINED
            and sum(len(cycle.body) for cycle, _ in self.pipeline) <= MAX_PIPELINED_BODY_BYTES
        ):
            self.flow.resume_reading()

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        self._connection = Connection(cycle)
        cycle.scope[CONNECTION] = self._connection  # type: ignore[literal-required] # servers may add keys
        super()._start_asgi_task(cycle, app)

    @override
    def _mark_slow(self) -> None:
        if self._answered is not None:
            self._answered.scope[SLOW_CLIENT] = True  # type: ignore[literal-required] # servers may add keys


class WebSocketProtocol(_BoundedWrites, WebSocketsSansIOProtocol):
    """uvicorn's, which calls a message behind its own close frame (a missed pong, bad UTF-8) a mistake of ours."""

    @override
    async def send(self, message: ASGISendEvent) -> None:
        try:
            await super().send(message)
        except RuntimeError as error:
            if self.close_sent and message["type"] in {"websocket.send", "websocket.close"}:
                raise ClientDisconnected from error
            raise

    @override
    def _mark_slow(self) -> None:
        self.scope[SLOW_CLIENT] = True  # type: ignore[literal-required] # servers may add keys
