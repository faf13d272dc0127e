"""What happens to every request, as plain ASGI: its id, its size, its count, and the defect that nobody expected."""

import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.disconnect import ClientDisconnected
from service.api.errors import render_error
from service.api.request_id import request_id_from
from service.errors import InternalError, RequestTooLarge
from service.telemetry.metrics import Metrics

logger = logging.getLogger("service.access")

UNMATCHED = "unmatched"
"""The route label of a path that no route has: paths themselves are an open set."""
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
"""Methods that are a metric label of their own; any other word counts as ``other``."""

_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
"""ASGI messages that carry a response's headers."""


class RequestMiddleware:
    """Gives each request its id, counts it, logs it in one line, and answers 500 where no handler did.

    The outermost layer of ours, so that the id is on every response there is.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = request_id_from(_header(scope, b"x-request-id"))
        scope["request_id"] = request_id
        scope["received_at"] = time.monotonic()
        header = (b"x-request-id", request_id.encode())
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in _STARTS:
                status = message.get("status", 0)
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        if scope["type"] == "websocket":
            await self._app(scope, receive, send_with_id)
            return
        started = scope["received_at"]
        metrics: Metrics = scope["state"]["resources"].metrics

        metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except (ClientDisconnected, ClientDisconnect):
            # The client left, while we worked or while it sent its body: nobody is there to be answered.
            pass
        except Exception:  # the outer edge of a request: a defect becomes a 500 with an id that can be looked up
            metrics.unhandled_errors.labels("http").inc()
            logger.exception("unhandled error", extra={"request_id": request_id})
            if status:
                raise  # the response has begun; the server closes the connection, which no client takes for an end
            response = render_error(InternalError(f"a defect of the service; quote {request_id}"), scope)
            await response(scope, receive, send_with_id)
        finally:
            metrics.in_flight.dec()
            duration_s = time.monotonic() - started
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = _route_of(scope)
            metrics.http_requests.labels(route, method, str(status or 499)).inc()
            metrics.http_duration.labels(route, method).observe(duration_s)
            logger.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": method,
                    "route": route,
                    "status": status or 499,
                    "duration_ms": round(duration_s * 1_000, 2),
                },
            )


class BodyLimitMiddleware:
    """Refuses a body over the limit: at once when its length is declared, else when the limit is passed."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = _header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > self._max_body_bytes:
            await render_error(self._error(), scope)(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_body_bytes:
                    raise self._error()
            return message

        await self._app(scope, receive_counted, send)

    def _error(self) -> RequestTooLarge:
        return RequestTooLarge(f"the body is longer than {self._max_body_bytes} bytes; send less")


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _route_of(scope: Scope) -> str:
    route = scope.get("route")
    return getattr(route, "path", UNMATCHED) if route is not None else UNMATCHED
