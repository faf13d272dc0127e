"""What happens to every request, as plain ASGI: its id, its size, its count, its place in a stop, the defect."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from service.api.deps import CONTEXT
from service.api.disconnect import CONNECTION, ClientDisconnected, Connection, departure
from service.api.errors import render_error
from service.api.outcome import CLIENT_LEFT, FAULT, HAS_BEGUN, OUTCOME, family_of, fault_of
from service.api.paths import route_path
from service.api.rate_limit import rate_limit_headers
from service.api.request_id import request_id_from
from service.api.request_span import METHODS, SPAN, begin_request, end_request, log_fields
from service.api.server_timing import server_timing
from service.domain.principal import RequestContext
from service.domain.trace import Span, exemplar_of
from service.engine.drain import Drain, Stage
from service.errors import InternalError, RequestTimeout, RequestTooLarge, ServiceError
from service.resources import Resources
from service.telemetry.metrics import Metrics

logger = logging.getLogger("service.access")

UNMATCHED = "unmatched"
"""The route label of a path that no route has: paths themselves are an open set."""
PROBES = frozenset({"/health", "/ready"})
"""Paths that are answered as long as the process runs: no stop waits for them or refuses them."""
JOBS = "/generate/async/"

INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
"""Close codes (RFC 6455 section 7.4.1, and the IANA registry that it founded)."""
BODY_IDLE_S = 30.0
"""Seconds for which a body may stand still: longer than a lost packet or a change of networks takes."""

REST_BYTES = 16 * 1024 * 1024
REST_S = 5.0
REST_IDLE_S = 0.5
"""How much of a refused body is read before it is answered, for how long, and how long it may stand still."""

_DEPARTURES = (ClientDisconnected, ClientDisconnect, WebSocketDisconnect)


class RequestMiddleware:
    """Gives each request its id, counts it, logs it in one line, and answers 500 where no handler did.

    A WebSocket is one request, from its handshake to its end. The outermost layer of ours, so that the id is on every
    response there is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        resources: Resources = scope["state"]["resources"]
        scope["request_id"] = request_id_from(_header(scope, b"x-request-id"))
        if resources.tracing is not None and scope["type"] == "http" and route_path(scope) not in PROBES:
            scope[SPAN] = begin_request(resources.tracing, scope)
        answer = _Answer(send, scope, resources)
        scope["received_at"] = answer.began_at
        serve = self._serve_socket if scope["type"] == "websocket" else self._serve_request
        if route_path(scope) in PROBES or resources.drain.stage >= Stage.REFUSING:
            await serve(scope, receive, answer, resources.metrics)
        else:
            with resources.drain.work():
                await serve(scope, receive, answer, resources.metrics)

    async def _serve_request(self, scope: Scope, receive: Receive, answer: "_Answer", metrics: Metrics) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        # The path is of the same family as the template of its route, and known before there is one.
        family = family_of(route_path(scope), method)
        in_flight = metrics.in_flight.labels(family)
        in_flight.inc()
        try:
            await self._app(scope, receive, answer.send)
        except _DEPARTURES:
            # The client left, while we worked or while it sent its body: nobody is there to be answered.
            scope.setdefault(OUTCOME, departure(scope))
        except Exception as exc:  # the outer edge of a request: a defect becomes a 500 with an id that can be looked up
            error = _defect(exc, scope, metrics, place="http")
            if answer.status:
                raise  # the response has begun; the server closes the connection, which no client takes for an end
            await render_error(error, scope)(scope, receive, answer.send)
        finally:
            in_flight.dec()
            duration_s = _account(scope, metrics, method, family, answer)
            metrics.observe(
                metrics.http_duration.labels(_route_of(scope), method), duration_s, exemplar_of(scope.get(SPAN))
            )

    async def _serve_socket(self, scope: Scope, receive: Receive, answer: "_Answer", metrics: Metrics) -> None:
        try:
            await self._app(scope, receive, answer.send)
        except _DEPARTURES:
            pass
        except Exception as exc:  # the outer edge of a socket, as above
            if answer.is_broken and isinstance(exc, OSError):
                return
            error = _defect(exc, scope, metrics, place="websocket")
            if answer.status:
                # Once it is closed nothing more can be said.
                with contextlib.suppress(OSError, RuntimeError):
                    await answer.send({"type": "websocket.close", "code": INTERNAL_ERROR, "reason": error.title})
            elif "websocket.http.response" in scope.get("extensions", ()):
                await render_error(error, scope)(scope, receive, answer.send)
            else:
                raise
        finally:
            # A handshake is a GET (RFC 6455 section 4.1). How long a socket stays open says nothing of how fast we are.
            _account(scope, metrics, "GET", family_of(route_path(scope), "GET"), answer)


class _Answer:
    """What goes out: puts the request's id on it, ends connections in a stop, and remembers how it began."""

    def __init__(self, send: Send, scope: Scope, resources: Resources) -> None:
        self._send = send
        self._scope = scope
        self._drain = resources.drain
        self._admission = resources.admission
        self._headers = [(b"x-request-id", scope["request_id"].encode())]
        span: Span | None = scope.get(SPAN)
        if span is not None:
            self._headers.append((b"traceparent", span.context.traceparent.encode()))
        self.began_at = time.monotonic()
        self.status = 0
        """0 until an answer has begun."""
        self.is_broken = False
        """Whether the server refused to write, since the client is gone."""

    async def send(self, message: Message) -> None:
        status = _status(message)
        if status is None:
            if message["type"] == "websocket.close" and not self.status:
                # Before the handshake is answered, servers make this of it.
                self.status = HTTPStatus.FORBIDDEN
        else:
            self.status = status
            self._scope[HAS_BEGUN] = True
            message["headers"] = [*message.get("headers", ()), *self._headers, *self._of_context(message)]
            # After a 408 the rest of the body may still come: it must not be taken for the next request.
            if status == HTTPStatus.REQUEST_TIMEOUT or self._drain.stage:
                self._close_after(message)
        try:
            await self._send(message)
        except OSError:
            self.is_broken = True
            raise

    def _of_context(self, message: Message) -> Iterable[tuple[bytes, bytes]]:
        """Say where the caller stands, and where the time went. On a socket each generation has its own word."""
        context: RequestContext | None = self._scope.get(CONTEXT)
        if context is None or message["type"] != "http.response.start":
            return ()
        times = server_timing(context.timings, began_at=self.began_at, now=time.monotonic())
        if self._admission.shadow:
            return times
        return (*times, *rate_limit_headers(context, self._scope["path"], now=datetime.now(UTC)))

    def _close_after(self, message: Message) -> None:
        """Make this the connection's last response. What begins a WebSocket has a ``Connection`` of its own."""
        if (
            message["type"] == "http.response.start"
            and self._scope["http_version"] in {"1.0", "1.1"}  # HTTP/2 knows no such field (RFC 9113 section 8.2.2)
            and all(name.lower() != b"connection" for name, _ in message["headers"])
        ):
            message["headers"].append((b"connection", b"close"))


class IntakeMiddleware:
    """Refuses what cannot be served: all but probes once a stop has come so far, and a body that is too long.

    A body is refused when a length over the limit is declared, else when the limit is passed, and when it stops coming.
    What comes after a body is the client's departure, and may take for ever.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, uploads: Mapping[str, int] | None = None) -> None:
        """``uploads`` has the paths of other limits: their routes keep nothing of a body whole."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._uploads = uploads or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        drain: Drain = scope["state"]["resources"].drain
        if drain.stage >= Stage.REFUSING and not _is_served_to_the_end(scope):
            await _refuse(drain.error(), scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        limit = self._uploads.get(route_path(scope), self._max_body_bytes)
        length = _header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            await _refuse(_too_large(limit), scope, receive, send)
            return
        connection: Connection | None = scope.get(CONNECTION)
        received = 0
        is_complete = False

        async def receive_limited() -> Message:
            nonlocal received, is_complete
            if is_complete:
                return await receive()
            if connection is not None and connection.has_body:
                message = await receive()
            else:
                message = await _before_timeout(receive, drain)
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    await _read_rest(receive)
                    raise _too_large(limit)
            is_complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_limited, send)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"the body is longer than {limit} bytes; send less")


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer what is not served, instead of the application."""
    if scope["type"] == "websocket":
        if "websocket.http.response" in scope.get("extensions", ()):
            await render_error(error, scope)(scope, receive, send)
        else:
            scope[FAULT] = error.fault
            await send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": error.title})
        return
    if _header(scope, b"expect") is None:  # who waits for our word before sending shall not be told to send
        await _read_rest(receive)
    await render_error(error, scope)(scope, receive, send)


async def _read_rest(receive: Receive) -> None:
    """Read what a client sends of a body that is refused, and keep nothing of it.

    Most clients look for an answer only when they have sent all: they would meet a closed connection instead, take it
    for an outage, and send the same again.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + REST_S
    read = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None) as patience:
            while read < REST_BYTES:
                patience.reschedule(min(end, loop.time() + REST_IDLE_S))
                message = await receive()
                read += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _is_served_to_the_end(scope: Scope) -> bool:
    """Whether a request is no new work: a probe, or about a job, of which no other process may know."""
    path = route_path(scope)
    return path in PROBES or (path.startswith(JOBS) and scope.get("method") in ("GET", "DELETE"))


async def _before_timeout(receive: Receive, drain: Drain) -> Message:
    try:
        async with asyncio.timeout(BODY_IDLE_S) as patience:
            with drain.told(Stage.CUTTING, lambda: patience.reschedule(0)):
                return await receive()
    except TimeoutError:
        if drain.stage >= Stage.CUTTING:
            raise drain.error() from None
        raise RequestTimeout(f"nothing of the body came for {BODY_IDLE_S:g} s; send it again") from None


def _status(message: Message) -> int | None:
    """Return the status of a message that begins an answer."""
    match message["type"]:
        case "http.response.start" | "websocket.http.response.start":
            status: int = message["status"]
            return status
        case "websocket.accept":
            return HTTPStatus.SWITCHING_PROTOCOLS
        case _:
            return None


def _defect(exc: Exception, scope: Scope, metrics: Metrics, *, place: str) -> InternalError:
    """Count and log what no code expected; return what the caller is told."""
    metrics.unhandled_errors.labels(place).inc()
    scope[FAULT] = InternalError.fault
    logger.error("unhandled error", exc_info=exc, extra=log_fields(scope))
    return InternalError(f"a defect of the service; quote {scope['request_id']}")


def _account(scope: Scope, metrics: Metrics, method: str, family: str, answer: _Answer) -> float:
    """Count and log one request that is over; return how long it took, in seconds."""
    duration_s = time.monotonic() - answer.began_at
    route = _route_of(scope)
    code = int(answer.status) or CLIENT_LEFT
    metrics.http_requests.labels(route, method, str(code)).inc()
    if route not in PROBES and code != HTTPStatus.SWITCHING_PROTOCOLS:  # a socket's generations count one by one
        metrics.requests_ended.labels(family, fault_of(scope, code)).inc()
    context: RequestContext | None = scope.get(CONTEXT)
    if context is not None and code == HTTPStatus.OK and OUTCOME not in scope:
        others_s = context.timings.others_until(time.monotonic())
        if others_s:
            metrics.observe(
                metrics.overhead.labels("http"), max(0.0, duration_s - others_s), exemplar_of(scope.get(SPAN))
            )
    extra: dict[str, object] = {
        **log_fields(scope),
        "method": method,
        "route": route,
        "status": code,
        "duration_ms": round(duration_s * 1_000, 2),
    }
    if context is not None and context.line is not None:
        extra.update(context.line.written())
    outcome = scope.get(OUTCOME)
    if outcome is not None:
        extra["outcome"] = outcome
    span: Span | None = scope.get(SPAN)
    if span is not None:
        known = None if route == UNMATCHED else route
        end_request(span, scope, route=known, status=int(answer.status), outcome=outcome)
    # Probes come every few seconds, and would be most of the log.
    logger.log(logging.DEBUG if route in PROBES else logging.INFO, "request", extra=extra)
    return duration_s


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _route_of(scope: Scope) -> str:
    route = scope.get("route")
    return getattr(route, "path", UNMATCHED) if route is not None else UNMATCHED
