"""Whether this process traces, by the standard ``OTEL_*`` variables; what does it is imported only then."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import import_module

from service.domain.trace import Tracing
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_EXPORTERS: Mapping[str, str] = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}


DEFAULT_PROTOCOL = "grpc"
"""Where none is named: what the kit itself takes, though the standard has come to recommend ``http/protobuf``."""


def exporter_module(environment: Mapping[str, str]) -> str | None:
    """Return the module of the exporter that the environment asks for; None where it asks for none.

    An endpoint is what asks for it, unless ``OTEL_SDK_DISABLED`` is true or ``OTEL_TRACES_EXPORTER`` is ``none``
    (OpenTelemetry, "Environment Variable Specification" 1.56 and "OTLP Exporter Configuration"). A protocol that is not
    known is passed over with a warning, as the standard wants it.
    """

    def given(name: str) -> str:
        return environment.get(name, "").strip()

    if not (given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or given("OTEL_EXPORTER_OTLP_ENDPOINT")):
        return None
    if given("OTEL_SDK_DISABLED").lower() == "true" or given("OTEL_TRACES_EXPORTER").lower() == "none":
        return None
    protocol = given("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or given("OTEL_EXPORTER_OTLP_PROTOCOL") or DEFAULT_PROTOCOL
    if protocol not in _EXPORTERS:
        logger.warning("OTEL_EXPORTER_OTLP_PROTOCOL takes %s; going by %s", list(_EXPORTERS), DEFAULT_PROTOCOL)
        protocol = DEFAULT_PROTOCOL
    return _EXPORTERS[protocol]


@asynccontextmanager
async def open_tracing(environment: Mapping[str, str], metrics: Metrics) -> AsyncIterator[Tracing | None]:
    """Give what begins traces, or None; on leaving, send what is left, for 2 s at most.

    The environment is the process's own: the exporters read the rest of it, such as their headers, by themselves.
    """
    exporter = exporter_module(environment)
    if exporter is None:
        yield None
        return
    async with import_module("service.telemetry.otlp").opened(import_module(exporter).OTLPSpanExporter, metrics) as it:
        yield it
