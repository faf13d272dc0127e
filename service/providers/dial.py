"""Making connections: names, addresses, proxies and TLS. What goes over them is no business of this module."""

import asyncio
import itertools
import socket
import ssl
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
from aiohappyeyeballs import start_connection
from aiohappyeyeballs.types import AddrInfoType
from yarl import URL

from service.providers.http1 import Connection

RECEIVE_BYTES = 262_144
"""What the kernel keeps of an answer that we do not read, since our own client does not. Left alone it grows to
megabytes, all of them paid for. It bounds one connection to 2.5 MB a second over 100 ms: far above what a model
writes."""
NAMES_KEPT_S = 10.0
"""How long the addresses of a name are used without asking again."""
HAPPY_EYEBALLS_S = 0.25
"""After so long without an answer the next address is tried beside it (RFC 8305 §8)."""
MAX_PROXY_HEAD_BYTES = 8192


class ConnectFailedError(Exception):
    """No connection came about. Its text is the name of the reason, without addresses."""


class Origin(msgspec.Struct, frozen=True):
    """Where connections lead: those to the same one can stand in for each other."""

    host: str
    port: int
    tls: bool
    proxy: URL | None = None

    @classmethod
    def of(cls, url: URL, proxy: str | None) -> "Origin":
        """Read one. Raises ``ValueError`` for what cannot be dialled."""
        if url.scheme not in {"http", "https"} or not url.host or not url.port:
            raise ValueError("an address is http:// or https:// with a host")
        through = None if proxy is None else URL(proxy)
        if through is not None and (not through.host or not through.port or not _can_pass(through, url)):
            raise ValueError("a proxy is http:// with a host")
        return cls(url.host.rstrip("."), url.port, url.scheme == "https", through)


def _can_pass(proxy: URL, url: URL) -> bool:
    # TLS within TLS would need a second way to start it, for proxies that hardly anybody has.
    return proxy.scheme == "http" or (proxy.scheme == "https" and url.scheme == "http")


def proxy_headers(proxy: URL) -> dict[str, str]:
    """Return the credentials in a proxy's address (RFC 7617), as a header."""
    if proxy.user is None:
        return {}
    pair = f"{proxy.user}:{proxy.password or ''}"
    return {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


@cache
def default_tls() -> ssl.SSLContext:
    """Return what trusts the system's authorities, or those of ``SSL_CERT_FILE``. Reads files: about 20 ms."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context


@dataclass(slots=True)
class _Name:
    addresses: Sequence[AddrInfoType]
    known_until: float
    turns: "itertools.cycle[int]" = field(init=False)

    def __post_init__(self) -> None:
        self.turns = itertools.cycle(range(len(self.addresses)))

    def in_turn(self) -> Sequence[AddrInfoType]:
        """Return all addresses, beginning with another one each time: a name with several spreads the calls."""
        first = next(self.turns)
        return [*self.addresses[first:], *self.addresses[:first]]


class Dialer:
    """Makes connections, and remembers the addresses of names for a while."""

    def __init__(self, *, connect_s: float, tls: ssl.SSLContext | None = None) -> None:
        """``connect_s`` bounds the look-up, the connection and the handshake together."""
        self._connect_s = connect_s
        self._tls = tls
        self._names: dict[tuple[str, int], _Name] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[_Name]] = {}

    async def __call__(self, origin: Origin, until: float) -> Connection:
        """Connect. Raises ``TimeoutError`` at ``until`` on the loop's clock, or ``ConnectFailedError``."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(min(until, loop.time() + self._connect_s)) as limit:
                return await self._dial(origin, loop)
        except TimeoutError as exc:
            if limit.expired():
                raise
            raise ConnectFailedError(type(exc).__name__) from exc  # the kernel's own: an address that does not answer
        except (OSError, UnicodeError, RuntimeError) as exc:  # uvloop says RuntimeError for some failed connections
            raise ConnectFailedError(type(exc).__name__) from exc

    async def _dial(self, origin: Origin, loop: asyncio.AbstractEventLoop) -> Connection:
        proxy = origin.proxy
        hop = (origin.host, origin.port) if proxy is None else (proxy.host or "", proxy.port or 0)
        sock = await start_connection(
            await self._resolve(hop, loop),
            happy_eyeballs_delay=HAPPY_EYEBALLS_S,
            socket_factory=_bounded_socket,
            loop=loop,
        )
        try:
            if proxy is not None and origin.tls:
                await _tunnel(sock, origin, proxy, loop)
            name = origin.host if origin.tls else (hop[0] if proxy is not None and proxy.scheme == "https" else None)
            context = None if name is None else await self._context()
            _, connection = await loop.create_connection(
                lambda: Connection(loop), sock=sock, ssl=context, server_hostname=name
            )
        except BaseException:
            sock.close()
            raise
        return connection

    async def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = await asyncio.to_thread(default_tls)
        return self._tls

    async def _resolve(self, hop: tuple[str, int], loop: asyncio.AbstractEventLoop) -> Sequence[AddrInfoType]:
        name = self._names.get(hop)
        if name is None or name.known_until <= loop.time():
            name = await asyncio.shield(self._asked(hop, loop))
        return name.in_turn()

    def _asked(self, hop: tuple[str, int], loop: asyncio.AbstractEventLoop) -> "asyncio.Task[_Name]":
        """Return the look-up that runs; one for all: a few threads do them, and serve others too."""
        asking = self._asking.get(hop)
        if asking is None:
            asking = self._asking[hop] = loop.create_task(self._look_up(hop, loop))
            asking.add_done_callback(lambda task: self._answered(hop, task))
        return asking

    def _answered(self, hop: tuple[str, int], task: "asyncio.Task[_Name]") -> None:
        del self._asking[hop]
        if not task.cancelled():
            task.exception()  # whoever asked may have left

    async def _look_up(self, hop: tuple[str, int], loop: asyncio.AbstractEventLoop) -> _Name:
        found = await loop.getaddrinfo(*hop, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        if not found:
            raise OSError("a name without addresses")
        name = self._names[hop] = _Name(found, loop.time() + NAMES_KEPT_S)
        return name


async def _tunnel(sock: socket.socket, origin: Origin, proxy: URL, loop: asyncio.AbstractEventLoop) -> None:
    """Ask a proxy for a connection of bytes (RFC 9110 §9.3.6)."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    lines = [f"CONNECT {host}:{origin.port} HTTP/1.1", f"Host: {host}:{origin.port}"]
    lines += [f"{name}: {value}" for name, value in proxy_headers(proxy).items()]
    await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(sock, 4096)
        if not data or len(head) > MAX_PROXY_HEAD_BYTES:
            raise ConnectFailedError("ProxyClosed")
        head += data
    status = head.split(b"\r\n", 1)[0].split(b" ")
    if len(status) < 2 or status[1] != b"200" or not head.endswith(b"\r\n\r\n"):  # noqa: PLR2004
        raise ConnectFailedError("ProxyRefused")


def _bounded_socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    # Before the connection stands, since that is when the window's scale is agreed upon.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
