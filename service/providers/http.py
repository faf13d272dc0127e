"""How providers are reached over HTTP: what goes up, bounded reads, timeouts, and what a failure of them means.

Connections are the business of ``http_pool``, ``dial`` and ``http1``; what the bytes say, of the modules for each
dialect.
"""

import asyncio
import math
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import orjson
from yarl import URL

from service.config import TimeoutSettings
from service.domain.clock import Deadline
from service.domain.generation import Chunk
from service.errors import (
    InvalidRequest,
    Refused,
    UpstreamError,
    UpstreamInvalid,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.allowance import Mark, Reader
from service.providers.base import ProviderKey
from service.providers.dial import ConnectFailedError, Dialer, Origin, proxy_headers
from service.providers.http1 import Connection, ConnectionLostError, NotHttpError, request_head
from service.providers.http_pool import HttpPool
from service.providers.keys import KeyRing
from service.telemetry.outgoing import Outgoing

MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""Of a plain answer; 2,048 vectors of 1,536 numbers as text take about 30 MiB."""
MAX_ERROR_BYTES = 64 * 1024
"""Of an error's body; the rest is not read."""
SETTLE_S = 3.0
"""How long a stream that has finished may take for its usage figures and its end marker."""
ERROR_BODY_S = 2.0
"""How long the body of an error may take: its status alone says enough."""
NO_HEADERS: Mapping[str, str] = {}
OVERLOADED = 529
"""Anthropic's own status, which others have taken over (Anthropic, "Errors", as of 2026-11)."""

_REFUSALS: Mapping[int, Refused] = {
    401: "key",
    402: "funds",
    403: "model",
    404: "model",
    405: "provider",
    407: "provider",
}
"""A 403 and a 404 are about what was asked for as often as about who asks, and a caller may choose the model's name:
they must not take a key away from all other models."""

_HEADERS: Mapping[str, str] = {"Accept-Encoding": "gzip"}
_STREAM_HEADERS: Mapping[str, str] = {"Accept-Encoding": "identity"}
"""A compressor between us would hold events back to fill its block."""
_FAILURES = (TimeoutError, ConnectFailedError, ConnectionLostError, NotHttpError)
"""What a connection raises."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What goes up in one call."""

    url: URL
    payload: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beside those of every call, and stronger than they are."""
    model: str = ""
    """The provider's name for the model that is asked."""
    key: ProviderKey | None = None
    """The next one that can be used when left out."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a provider said instead of an answer."""

    status: int
    """HTTP status, or what stands for it where an error came inside a 200."""
    code: str | None = None
    """The most specific word for programs in the body."""
    type: str | None = None
    message: str = ""
    retry_after_s: float | None = None


def error_for_status(refusal: Refusal, *, provider: str) -> UpstreamError:
    """Classify a refusal by its status alone; what a vendor's codes say more is decided before."""
    kind: type[UpstreamError]
    status = refusal.status
    if status in _REFUSALS:
        # Not the provider's own words: they may repeat parts of a key, and the caller cannot do anything about it.
        return UpstreamMisconfigured(
            f"the provider refuses our key, account or address (status {status})",
            provider=provider,
            upstream_status=status,
            upstream_code=refusal.code or refusal.type,
            refused=_REFUSALS[status],
        )
    if status == 429:  # noqa: PLR2004 - RFC 6585 section 4
        kind, message = UpstreamThrottled, "the provider is limiting our requests"
    elif status == OVERLOADED:
        kind, message = UpstreamOverloaded, "the provider is overloaded"
    elif status in {408, 409, 425} or status >= 500:  # noqa: PLR2004 - RFC 9110 section 15.6
        kind, message = UpstreamUnavailable, f"the provider failed with status {status}"
    elif status < 400:  # noqa: PLR2004
        kind, message = UpstreamMisconfigured, f"the provider's address leads elsewhere (status {status})"
    else:
        kind, message = UpstreamRejected, refusal.message or f"the provider rejected the request (status {status})"
    error = kind(message, provider=provider, upstream_status=status, upstream_code=refusal.code or refusal.type)
    if kind in {UpstreamThrottled, UpstreamOverloaded, UpstreamUnavailable}:
        error.retry_after_s = refusal.retry_after_s
    return error


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Read when to come back, in seconds from now, from ``retry-after-ms`` or ``retry-after`` (RFC 9110 §10.2.3)."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            seconds = _seconds_until(value, now or datetime.now(UTC))
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _seconds_until(http_date: str, now: datetime) -> float:
    try:
        at = parsedate_to_datetime(http_date)
    except ValueError:
        return math.nan
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now.timestamp()


def text_of(value: object, *, limit: int = 2000) -> str:
    """Return ``value`` if it is text, cut to ``limit`` characters; fields of error bodies can be anything."""
    return value[:limit] if isinstance(value, str) else ""


def proxy_for(url: URL) -> str | None:
    """Return the proxy that the environment names for ``url``; never one for this machine itself."""
    host = url.host or ""
    if host == "localhost" or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Decoder(Protocol):
    """Turns the bytes of one stream into chunks. One instance serves one stream."""

    started: bool
    """Whether a piece of the answer has come."""
    finished: bool
    """Whether every choice that is to come has its finish reason: from here on nothing can take the answer back."""
    ended: bool
    """Whether the provider's end marker has come."""
    failure: UpstreamError | None
    """What was wrong after the events of the last chunk."""

    def feed(self, data: bytes) -> Chunk | None:
        """Take one read's bytes; None if they complete nothing that is worth handing on. Never raises."""
        ...

    def rest(self) -> Chunk | None:
        """Return what is still owed once the stream is over, such as the usage."""
        ...


@asynccontextmanager
async def open_upstream(
    *,
    provider: str,
    timeouts_s: TimeoutSettings,
    keys: KeyRing,
    headers: Callable[[ProviderKey], Mapping[str, str]],
    refused: Callable[[int, Mapping[str, str], bytes], UpstreamError],
    left: Reader,
    keep_alive: bool = True,
    propagate_trace: bool = False,
) -> AsyncIterator["HttpUpstream"]:
    """Open an upstream with a connection pool of its own.

    The pool has no limits, cookies or timeouts: admission and deadlines are decided elsewhere.
    """
    pool = HttpPool(dial=Dialer(connect_s=timeouts_s.connect), keep_alive=keep_alive)
    try:
        yield HttpUpstream(
            provider=provider,
            pool=pool,
            timeouts_s=timeouts_s,
            keys=keys,
            headers=headers,
            refused=refused,
            left=left,
            propagate_trace=propagate_trace,
        )
    finally:
        pool.close()


class _Target(NamedTuple):
    """What calls to one address have in common."""

    origin: Origin
    line: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, url: URL) -> "_Target":
        """Read the environment's proxies once for each address. Raises ``ValueError`` for what cannot be asked."""
        origin = Origin.of(url, proxy_for(url))
        headers = {"Host": url.host_port_subcomponent or ""}
        path = url.raw_path_qs
        if origin.proxy is not None and not origin.tls:  # RFC 9112 §3.2.2
            path = str(url)
            headers |= proxy_headers(origin.proxy)
        return cls(origin, f"POST {path} HTTP/1.1", headers)


class HttpUpstream:
    """Posts JSON to one provider.

    Raises members of ``UpstreamError`` only; a cancelled call closes its connection before it returns.
    """

    def __init__(
        self,
        *,
        provider: str,
        pool: HttpPool,
        timeouts_s: TimeoutSettings,
        keys: KeyRing,
        headers: Callable[[ProviderKey], Mapping[str, str]],
        refused: Callable[[int, Mapping[str, str], bytes], UpstreamError],
        left: Reader,
        propagate_trace: bool = False,
    ) -> None:
        """``headers`` gives those of a key; ``refused`` makes an error of a status, headers and body.

        ``left`` reads what the headers of an answer say is left of the vendor's limits. With ``propagate_trace`` the
        provider is told where its call stands in our trace.
        """
        self.provider = provider
        self.timeouts_s = timeouts_s
        self.keys = keys
        self._pool = pool
        self._headers = headers
        self._refused = refused
        self._left = left
        self._propagates = propagate_trace
        self._targets: dict[URL, _Target] = {}

    async def post(self, ask: Ask, *, deadline: Deadline) -> bytes:
        """Return the body of a JSON answer to a call that has its key.

        Only the deadline bounds the wait: a provider sends nothing of a plain answer before all of it is generated.
        """
        began = False
        try:
            exchange = await self._send(ask, _HEADERS, until=deadline.at)
            try:
                await self._require(exchange, "json", ask, until=deadline.at)
                began = True
                return await self._read(exchange, until=deadline.at)
            finally:
                exchange.leave()
        except _FAILURES as exc:
            raise (self.broken_off(exc) if began else self.failed(exc)) from exc

    def keyed(self, ask: Ask) -> Ask:
        """Give a call its key. Raises what :meth:`service.providers.base.KeyPool.take` does."""
        if ask.key is not None:
            return ask
        return replace(ask, key=self.keys.take(ask.model))

    def noted(self, error: UpstreamError, key: ProviderKey | None, model: str) -> UpstreamError:
        """Take note of what an error says of the call's key; return the error."""
        if key is not None:
            self.keys.note(key, model, error)
        return error

    def stream(self, ask: Ask, decoder: Decoder, *, deadline: Deadline) -> "UpstreamStream":
        """Prepare a stream; nothing is sent before it is entered."""
        return UpstreamStream(self, ask, decoder, deadline)

    async def open_stream(self, ask: Ask, *, until: float) -> "Exchange":
        """Return an exchange with an event stream in its answer, which the caller must leave."""
        try:
            exchange = await self._send(ask, _STREAM_HEADERS, until=until)
            try:
                await self._require(exchange, "event-stream", ask, until=until)
            except BaseException:
                exchange.leave()
                raise
        except _FAILURES as exc:
            raise self.failed(exc) from exc
        return exchange

    async def _send(self, ask: Ask, more_headers: Mapping[str, str], *, until: float) -> "Exchange":
        """Send a request and wait for the head of its answer, whatever its status.

        It is sent once: from the first byte written it may have been read, and be paid for.
        """
        if ask.key is None:
            raise AssertionError("a call has a key by now")
        try:
            body = orjson.dumps(ask.payload)
        except orjson.JSONEncodeError as exc:
            raise InvalidRequest("the request holds text or numbers that JSON cannot carry") from exc
        call = Outgoing.now()
        target, head = self._head(ask, {**more_headers, **self._traced(call, ask.url)}, len(body))
        mark = self.keys.mark(ask.key, ask.model)
        connection = self._pool.take(target.origin) or await self._pool.dial(target.origin, until)
        exchange = Exchange(connection, self._pool, target.origin)
        try:
            connection.send(head, body)
            await connection.head(until)
        except BaseException:
            exchange.leave()
            raise
        self._heard(connection, mark, call)
        return exchange

    def _head(self, ask: Ask, more_headers: Mapping[str, str], length: int) -> tuple[_Target, bytes]:
        try:
            target = self._targets.get(ask.url)
            if target is None:
                target = self._targets[ask.url] = _Target.of(ask.url)
            key_headers = self._headers(ask.key) if ask.key is not None else NO_HEADERS
            headers = {**target.headers, **key_headers, **ask.headers, **more_headers}
            return target, request_head(target.line, headers, length)
        except ValueError:
            # Its text is left out: it may quote a header, and so the key.
            raise UpstreamMisconfigured(
                "the request to the provider cannot be written: its key, address or proxy fits no HTTP head",
                provider=self.provider,
            ) from None

    def _traced(self, call: Outgoing | None, url: URL) -> Mapping[str, str]:
        """Tell where a call goes, if that is told; return the headers that let the provider go on with the trace."""
        if call is None:
            return NO_HEADERS
        call.goes_to(url)
        return call.headers() if self._propagates else NO_HEADERS

    def _heard(self, response: Connection, mark: Mark | None, call: Outgoing | None) -> None:
        """Take note of the head of a response."""
        if call is not None:
            call.answered(response.status)
        if mark is not None and (left := self._left(response.headers)):
            self.keys.hear(mark, left)

    def failed(self, exc: Exception) -> UpstreamError:
        """Classify what a connection raised."""
        if isinstance(exc, TimeoutError):
            return UpstreamTimeout("the provider did not answer in time", provider=self.provider)
        if isinstance(exc, NotHttpError):
            return UpstreamInvalid("the provider's response is not HTTP", provider=self.provider)
        return UpstreamUnavailable(f"the connection to the provider failed ({exc})", provider=self.provider)

    def broken_off(self, exc: Exception) -> UpstreamError:
        """Classify what a connection raised after the head of a success: the answer may have to be paid for."""
        if isinstance(exc, TimeoutError):
            return self.failed(exc)
        return UpstreamInvalid(f"the provider's answer broke off ({exc})", provider=self.provider)

    async def _require(self, exchange: "Exchange", subtype: str, ask: Ask, *, until: float) -> None:
        """Raise unless the response is a success with a body of the kind that was asked for."""
        response = exchange.connection
        found = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        ok = 200 <= response.status < 300  # noqa: PLR2004 - RFC 9110 section 15.3
        if ok and found.partition("/")[2].rpartition("+")[2] == subtype:
            if ask.key is not None:
                self.keys.accepted(ask.key)
            return
        body = await self._read_some(response, until=until)
        error = self.noted(self._refused(response.status, response.headers, body), ask.key, ask.model)
        if ok and isinstance(error, UpstreamInvalid):
            raise UpstreamInvalid(
                f"the provider answered with the content type {found[:80] or 'none'!r}",
                provider=self.provider,
                upstream_status=response.status,
            )
        raise error

    async def _read(self, exchange: "Exchange", *, until: float) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := await exchange.connection.read(until):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise UpstreamInvalid("the provider's answer is too long", provider=self.provider)
        return b"".join(pieces)

    @staticmethod
    async def _read_some(response: Connection, *, until: float) -> bytes:
        """Read an error's body, or what comes of it in time."""
        body = b""
        until = min(until, asyncio.get_running_loop().time() + ERROR_BODY_S)
        try:
            while len(body) < MAX_ERROR_BYTES and (piece := await response.read(until)):
                body += piece
        except _FAILURES:
            pass
        return body[:MAX_ERROR_BYTES]


class Exchange:
    """A connection in the hands of one call, until it is left."""

    __slots__ = ("_origin", "_pool", "connection")

    def __init__(self, connection: Connection, pool: HttpPool, origin: Origin) -> None:
        self.connection = connection
        self._pool = pool
        self._origin = origin

    def leave(self, *, soon_over: bool = False) -> None:
        """Give the connection back if the answer is whole; close it at once if not, unless it is soon over."""
        if soon_over and not self.connection.over:
            self._pool.linger(self._origin, self.connection)
        else:
            self._pool.give(self._origin, self.connection)


class UpstreamStream:
    """One streamed answer, which ends only after its finish reason.

    Leaving the context closes the connection at once, unless the body was read to its end.
    """

    def __init__(self, upstream: HttpUpstream, ask: Ask, decoder: Decoder, deadline: Deadline) -> None:
        self._upstream = upstream
        self._ask: Ask | None = ask
        self._decoder = decoder
        self._deadline = deadline
        self._over = False

    async def __aenter__(self) -> Self:
        """Send the request; raises what fails until the head of a good response is there."""
        if self._ask is None:
            raise RuntimeError("a stream can be entered only once")
        ask, self._ask = self._upstream.keyed(self._ask), None  # an idle stream must not keep its prompt alive
        self._asked_with = (ask.key, ask.model)
        self._loop = asyncio.get_running_loop()
        self._first_token_at = min(self._loop.time() + self._upstream.timeouts_s.first_token, self._deadline.at)
        self._exchange = await self._upstream.open_stream(ask, until=self._first_token_at)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        self._exchange.leave(soon_over=self._decoder.ended)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        decoder, connection = self._decoder, self._exchange.connection
        # Once for all reads that bring no piece of the answer: comments and pings are no reason to wait longer. A
        # reader that comes late for the next piece has not used up the provider's time.
        until = self._patience()
        while not self._over:
            if decoder.failure is not None and not decoder.finished:
                raise self._upstream.noted(decoder.failure, *self._asked_with)
            if decoder.ended or decoder.failure is not None:
                self._over = True
                break
            try:
                while (data := connection.ready()) is None:
                    await connection.wait(until)
            except _FAILURES as exc:
                if not decoder.finished:
                    raise self._upstream.broken_off(exc) from exc
                data = b""  # too late to matter
            if data:
                chunk = decoder.feed(data)
                if chunk is not None:
                    return chunk
            else:
                self._over = True
        return self._last()

    def _last(self) -> Chunk:
        """Return what is still owed, once; raise what ends the iteration."""
        if not self._decoder.finished:
            raise UpstreamInvalid(
                "the provider's stream ended without a finish reason", provider=self._upstream.provider
            )
        rest = self._decoder.rest()
        if rest is None:
            raise StopAsyncIteration
        return rest

    def _patience(self) -> float:
        """Return until when the next piece of the answer may come."""
        if self._decoder.finished:
            until = self._loop.time() + SETTLE_S
        elif self._decoder.started:
            until = self._loop.time() + self._upstream.timeouts_s.between_tokens
        else:
            until = self._first_token_at
        return min(until, self._deadline.at)
