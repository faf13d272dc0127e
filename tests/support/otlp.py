"""A collector of traces: it records what is exported to it over gRPC, and draws the trees of it."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped] # it ships no types
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from typing_extensions import override

PATIENCE_S = 20.0
ERROR, UNSET = 2, 0
"""Of a status (``opentelemetry/proto/trace/v1/trace.proto``)."""

Tree = tuple[str, str, list[Any]]
"""Kind, name, and the trees below, in the order of their beginnings."""


@dataclass(frozen=True)
class Recorded:
    """One span as it was exported."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    status: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[tuple[str, str]]
    """Trace and span ids."""
    resource: dict[str, Any]
    schema_url: str


@dataclass
class Collector(TraceServiceServicer):
    """Records."""

    endpoint: str = ""
    requests: list[bytes] = field(default_factory=list)
    """All that came, as bytes, to be searched."""
    spans: list[Recorded] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    @override
    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        with self.came:
            self.requests.append(request.SerializeToString())
            self.spans.extend(recorded(request))
            self.came.notify_all()
        return ExportTraceServiceResponse()

    def wait(self, count: int) -> None:
        """Wait until so many spans have come."""
        with self.came:
            assert self.came.wait_for(lambda: len(self.spans) >= count, PATIENCE_S), [one.name for one in self.spans]

    def named(self, name: str) -> list[Recorded]:
        """Return the spans of a name, in the order of their beginnings."""
        return sorted((one for one in self.spans if one.name == name), key=lambda one: one.start_ns)

    def one(self, name: str) -> Recorded:
        """Return the only span of a name."""
        (found,) = self.named(name)
        return found

    def trees(self) -> list[Tree]:
        """Draw each trace, in the order of their beginnings."""
        known = {one.span_id for one in self.spans}
        below: dict[str, list[Recorded]] = defaultdict(list)
        for one in sorted(self.spans, key=lambda one: one.start_ns):
            below[one.parent_id if one.parent_id in known else ""].append(one)

        def drawn(parent: str) -> list[Tree]:
            return [(one.kind, one.name, drawn(one.span_id)) for one in below[parent]]

        return drawn("")


@contextmanager
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Run a collector, and have what is started within the block export to it."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call] # generated code
    port = server.add_insecure_port("127.0.0.1:0")
    collector.endpoint = f"http://127.0.0.1:{port}"
    server.start()
    try:
        export_to(collector.endpoint, monkeypatch)
        yield collector
    finally:
        server.stop(0).wait()


def export_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is started from now on export to an address, at once."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


def recorded(request: ExportTraceServiceRequest) -> Iterator[Recorded]:
    """Read what was exported in one request."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Recorded(
                    name=span.name,
                    kind=WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    status=span.status.code,
                    attributes=_values(span.attributes),
                    events=[(event.name, _values(event.attributes)) for event in span.events],
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    resource=_values(resource.resource.attributes),
                    schema_url=scope.schema_url,
                )


def _values(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)
