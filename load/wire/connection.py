"""One connection on gevent's loop, whose incoming bytes are handed to a decoder by the loop's own callback.

A greenlet is switched to only when an answer is whole: a wake-up for each piece would cost more than reading it.
"""

import socket
import time
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import urlsplit

import gevent
from gevent import get_hub
from gevent import socket as gevent_socket
from gevent.event import AsyncResult
from gevent.monkey import get_original

_READ_BYTES: Final = 65_536
IDLE_MAX_S: Final = 2.0
"""A kept connection is not used after so long: uvicorn closes its own after 5 s."""


class Decoder(Protocol):
    """Understands what comes."""

    def feed(self, data: bytes, now_s: float) -> bool:
        """Take bytes and the moment at which they were read; say whether the answer is whole."""

    def eof(self) -> bool:
        """Take the end of the connection; say whether the answer is whole by that."""


class TimedOut(Exception):  # noqa: N818 - the outcome's name
    """The answer was not whole in time."""


class Closed(Exception):  # noqa: N818 - the outcome's name
    """The peer closed before the answer was whole."""


class Connection:
    """A connected socket; one exchange at a time."""

    def __init__(self, raw: socket.socket) -> None:
        self._socket = raw
        self._watcher = get_hub().loop.io(raw.fileno(), 1)
        self.idle_since_s = 0.0

    def exchange(self, request: bytes, decoder: Decoder, until_s: float) -> None:
        """Send, then feed the decoder until it has all, on the clock of `time.perf_counter`.

        Raises TimedOut, Closed or OSError; after any of them the connection is of no more use.
        """
        self._send(request, until_s)
        done: AsyncResult = AsyncResult()
        self._watcher.start(self._readable, decoder, done)
        try:
            done.get(timeout=max(until_s - time.perf_counter(), 0))
        except gevent.Timeout:
            raise TimedOut from None
        finally:
            self._watcher.stop()

    def send(self, data: bytes) -> None:
        """Send a few bytes without waiting, such as a pong from a decoder."""
        self._socket.send(data)

    def _send(self, data: bytes, until_s: float) -> None:
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                left_s = max(until_s - time.perf_counter(), 0.001)
                gevent_socket.wait_write(self._socket.fileno(), left_s, TimedOut())

    def _readable(self, decoder: Decoder, done: AsyncResult) -> None:
        now_s = time.perf_counter()
        try:
            data = self._socket.recv(_READ_BYTES)
            if data:
                whole = decoder.feed(data, now_s)
            else:
                whole = True
                if not decoder.eof():
                    raise Closed  # noqa: TRY301 - told like any other end
        except (BlockingIOError, InterruptedError):
            return
        except Exception as error:  # noqa: BLE001 - this runs in the loop: whoever waits for the answer is told
            self._watcher.stop()
            done.set_exception(error)
            return
        if whole:
            self._watcher.stop()
            done.set(None)

    @property
    def usable(self) -> bool:
        """Whether nothing came since the last answer, the peer's close included."""
        if time.perf_counter() - self.idle_since_s > IDLE_MAX_S:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Close, at whatever stage."""
        self._watcher.stop()
        self._watcher.close()
        self._socket.close()


class Pool:
    """Kept connections to one address. Nothing is ever sent twice: a connection that breaks is a failed request."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{base_url!r}: give an address http://HOST:PORT with --host, or host in the scenario")
        self.host = parts.hostname
        self.port = parts.port or 80
        self.path = parts.path.rstrip("/")
        self._idle: list[Connection] = []
        self._found: list[tuple[object, ...]] = []
        self._found_at_s = 0.0

    def take(self, until_s: float, greet: Callable[[Connection, float], None] | None = None) -> Connection:
        """Return an idle connection, or a new one, greeted. Raises TimedOut, OSError, and what `greet` raises."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        connection = self._connect(until_s)
        if greet is not None:
            try:
                greet(connection, until_s)
            except BaseException:
                connection.close()
                raise
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer was whole."""
        connection.idle_since_s = time.perf_counter()
        self._idle.append(connection)

    def _connect(self, until_s: float) -> Connection:
        family, kind, protocol, address = self._address()
        raw = get_original("socket", "socket")(family, kind, protocol)
        try:
            raw.setblocking(False)  # noqa: FBT003 - the interface of sockets
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                raw.connect(address)
            except BlockingIOError:
                left_s = max(until_s - time.perf_counter(), 0.001)
                gevent_socket.wait_write(raw.fileno(), left_s, TimedOut())
                if code := raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, "connect") from None
        except BaseException:
            raw.close()
            raise
        return Connection(raw)

    def _address(self) -> tuple[int, int, int, object]:
        # Looked up anew now and then, so that a name with many addresses is spread over them.
        if not self._found or time.perf_counter() - self._found_at_s > IDLE_MAX_S:
            self._found = list(gevent_socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM))
            self._found_at_s = time.perf_counter()
        self._found.append(self._found.pop(0))
        family, kind, protocol, _, address = self._found[-1]
        return family, kind, protocol, address  # type: ignore[return-value]  # as getaddrinfo gives them
