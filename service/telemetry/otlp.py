"""Spans by OpenTelemetry's kit, exported over OTLP. Imported only where traces are wanted: the kit costs 40 ms."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Span as KitSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from typing_extensions import override

from service import __version__
from service.domain.trace import Kind, Span, TraceContext, Value
from service.telemetry import semconv
from service.telemetry.metrics import Metrics
from service.telemetry.outbox import Outbox

SHUTDOWN_S = 2.0
"""What the export of the last spans may take, once the process has nothing else to do."""

_KINDS: Mapping[Kind, SpanKind] = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_W3C = TraceContextTextMapPropagator()


@asynccontextmanager
async def opened(
    exporter: Callable[[], SpanExporter], metrics: Metrics, *, shutdown_s: float = SHUTDOWN_S
) -> AsyncIterator["OtlpTracing"]:
    """Export what is traced within the block. The process's global tracer stays as it is."""
    # Each failure of an export would be a line, and each of its retries: the outbox counts them, and has one.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    # It quotes what is malformed in a caller's ``tracestate``: anybody could write into the log, and fill it.
    logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
    outbox = Outbox(exporter(), metrics)
    ids = _Ids()
    provider = TracerProvider(resource=_resource(), id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(outbox)
    tracer = provider.get_tracer(semconv.SCOPE, __version__, schema_url=semconv.SCHEMA_URL)
    try:
        yield OtlpTracing(tracer, ids)
    finally:
        await asyncio.to_thread(outbox.close, shutdown_s)


class OtlpTracing:
    """Obeys :class:`service.domain.trace.Tracing`."""

    def __init__(self, tracer: Tracer, ids: "_Ids") -> None:
        self._tracer = tracer
        self._ids = ids

    def root(
        self,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Value],
        *,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
        context: TraceContext | None = None,
    ) -> Span:
        """See :class:`service.domain.trace.Tracing`."""
        above = Context() if parent is None else _read(parent)
        self._ids.next = None if context is None else _place(context)
        found = [Link(place) for link in links if (place := _place(link)) is not None]
        span = self._tracer.start_span(name, above, _KINDS[kind], attributes, found)
        return OtlpSpan(self._tracer, span) if span.is_recording() else Unrecorded(span.get_span_context())


class OtlpSpan:
    """Obeys :class:`service.domain.trace.Span`."""

    __slots__ = ("_span", "_tracer", "is_sampled", "trace_id")

    def __init__(self, tracer: Tracer, span: KitSpan) -> None:
        self._tracer = tracer
        self._span = span
        place = span.get_span_context()
        self.trace_id = f"{place.trace_id:032x}"
        self.is_sampled = place.trace_flags.sampled

    @property
    def context(self) -> TraceContext:
        """See :class:`service.domain.trace.Span`."""
        return _written(self._span.get_span_context())

    def child(self, name: str, kind: Kind, attributes: Mapping[str, Value]) -> Span:
        """See :class:`service.domain.trace.Span`."""
        above = set_span_in_context(self._span, Context())
        return OtlpSpan(self._tracer, self._tracer.start_span(name, above, _KINDS[kind], attributes))

    def rename(self, name: str) -> None:
        """See :class:`service.domain.trace.Span`."""
        if self._span.is_recording():
            self._span.update_name(name)

    def set(self, attributes: Mapping[str, Value]) -> None:
        """See :class:`service.domain.trace.Span`."""
        if self._span.is_recording():
            self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """See :class:`service.domain.trace.Span`."""
        if self._span.is_recording():
            self._span.add_event(name, attributes)

    def fail(self, error_type: str) -> None:
        """See :class:`service.domain.trace.Span`."""
        if self._span.is_recording():
            self._span.set_attribute(semconv.ERROR_TYPE, error_type)
            self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        """See :class:`service.domain.trace.Span`."""
        if self._span.is_recording():
            self._span.end()


class Unrecorded:
    """Obeys :class:`service.domain.trace.Span` for what its sampler left out, with all that is below it.

    What is left of it is its place, so that whoever is asked on its behalf leaves the trace out too. Its parts have the
    same place: they are what nobody will look for.
    """

    __slots__ = ("context", "trace_id")

    is_sampled = False

    def __init__(self, place: SpanContext) -> None:
        self.context = _written(place)
        self.trace_id = f"{place.trace_id:032x}"

    def child(self, name: str, kind: Kind, attributes: Mapping[str, Value]) -> Span:  # noqa: ARG002 - the protocol's
        """See :class:`service.domain.trace.Span`."""
        return self

    def rename(self, name: str) -> None:
        """See :class:`service.domain.trace.Span`."""

    def set(self, attributes: Mapping[str, Value]) -> None:
        """See :class:`service.domain.trace.Span`."""

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """See :class:`service.domain.trace.Span`."""

    def fail(self, error_type: str) -> None:
        """See :class:`service.domain.trace.Span`."""

    def end(self) -> None:
        """See :class:`service.domain.trace.Span`."""


class _Ids(RandomIdGenerator):
    """Random ids, but for a trace that begins at a given place. Used from the event loop's thread alone."""

    next: SpanContext | None = None

    @override
    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.next is None else self.next.trace_id

    @override
    def generate_span_id(self) -> int:
        given, self.next = self.next, None
        return super().generate_span_id() if given is None else given.span_id


def _read(context: TraceContext) -> Context:
    """Return a caller's place; an empty one where it cannot be read."""
    carrier = {"traceparent": context.traceparent, "tracestate": context.tracestate}
    return _W3C.extract(carrier, Context())


def _written(place: SpanContext) -> TraceContext:
    """Write a place as W3C Trace Context does (sections 3.2 and 3.3)."""
    traceparent = f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"
    return TraceContext(traceparent, place.trace_state.to_header())


def _place(context: TraceContext) -> SpanContext | None:
    found = get_current_span(_read(context))
    place = found.get_span_context()
    return place if isinstance(found, NonRecordingSpan) and place.is_valid else None


def _resource() -> Resource:
    """Say who we are: as ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` say, else by our own name."""
    given = {
        name: value
        for name, value in Resource.create().attributes.items()
        if not (name == SERVICE_NAME and str(value).startswith("unknown_service"))
    }
    return Resource({SERVICE_NAME: "llm-api", SERVICE_VERSION: __version__, **given})
