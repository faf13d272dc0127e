"""What a trace tells of a request: HTTP's conventions for servers, and nothing that a caller wrote freely.

Paths and queries hold prompts, tickets and, by mistake, keys: a path is told as its route has it, or not at all.
"""

from typing import Final

from starlette.types import Scope

from service.domain.trace import Span, TraceContext, Tracing, Value
from service.errors import ServiceError
from service.telemetry import semconv

SPAN: Final = "llm_api.span"
"""Where the scope has the request's span, if it is traced."""
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
"""Any other word is an open set."""
REFUSED, SERVER_FAULT = 400, 500
"""From these statuses on there was no answer, and it was our fault (RFC 9110 sections 15.5 and 15.6)."""
STREAM_FAILED = "stream_failed"
"""The ``error.type`` of a stream that failed once its status was out."""


def caller_context(scope: Scope) -> TraceContext | None:
    """Return where the caller stands in a trace of its own. Its baggage is left alone: it is free text."""
    headers = dict(scope["headers"])
    traceparent = headers.get(b"traceparent")
    if traceparent is None:
        return None
    return TraceContext(traceparent.decode("latin-1"), headers.get(b"tracestate", b"").decode("latin-1"))


def log_fields(scope: Scope) -> dict[str, str]:
    """Return what a log line says of a request, so that it can be found."""
    span: Span | None = scope.get(SPAN)
    trace = {} if span is None else {"trace_id": span.trace_id}
    return {"request_id": scope["request_id"], **trace}


def begin_request(tracing: Tracing, scope: Scope) -> Span:
    """Begin the span of an HTTP request, whose route is not known yet."""
    method: str = scope["method"]
    known = method in METHODS
    return tracing.root(
        method if known else "HTTP",
        "server",
        {
            semconv.REQUEST_METHOD: method if known else semconv.OTHER_METHOD,
            semconv.URL_SCHEME: scope["scheme"],
            semconv.PROTOCOL_VERSION: scope["http_version"],
            semconv.REQUEST_ID: scope["request_id"],
        },
        parent=caller_context(scope),
    )


def end_request(span: Span, scope: Scope, *, route: str | None, status: int, outcome: str | None) -> None:
    """End it; ``status`` is 0 where the client left before there was one, which is no failure."""
    told: dict[str, Value] = {}
    if route is not None:
        method = scope["method"]
        span.rename(f"{method if method in METHODS else 'HTTP'} {route}")
        told[semconv.ROUTE] = told[semconv.URL_PATH] = route
    if status:
        told[semconv.RESPONSE_STATUS] = status
    if outcome is not None:
        told[semconv.OUTCOME] = outcome
    span.set(told)
    if status >= SERVER_FAULT:
        span.fail(str(status))
    elif status < REFUSED and outcome == "error":
        span.fail(STREAM_FAILED)
    span.end()


def begin_generation(tracing: Tracing, scope: Scope, request_id: str) -> Span:
    """Begin the span of one generation on a WebSocket; a socket itself may stay open for days, and has none."""
    route: str = scope["route"].path
    return tracing.root(
        f"WS {route}",
        "server",
        {
            semconv.ROUTE: route,
            semconv.URL_PATH: route,
            semconv.URL_SCHEME: scope["scheme"],
            semconv.REQUEST_ID: request_id,
        },
        parent=caller_context(scope),
    )


def end_generation(span: Span, outcome: str, error: ServiceError | None, *, has_begun: bool) -> None:
    """End it, as a request over HTTP that fails so: by the error's status until there was content."""
    span.set({semconv.OUTCOME: outcome})
    if has_begun:
        if outcome == "error":
            span.fail(STREAM_FAILED)
    elif error is not None and error.status >= SERVER_FAULT:
        span.fail(str(int(error.status)))
    span.end()
