"""Tracing set up from the environment: what asks for it, and that it costs nothing where nothing does."""

import ast
import logging
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import service
from service.domain.trace import TraceContext
from service.engine.job_span import place_of
from service.telemetry import semconv
from service.telemetry.metrics import Metrics
from service.telemetry.otlp import opened
from service.telemetry.tracing import exporter_module

SERVICE = Path(service.__file__).parent
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}
GRPC = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
HTTP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


@pytest.mark.parametrize(
    ("environment", "module"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
        (ENDPOINT, GRPC),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, GRPC),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, HTTP),
        (
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            GRPC,
        ),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_endpoint_is_what_asks_for_traces(environment: Mapping[str, str], module: str | None) -> None:
    assert exporter_module(environment) == module


def test_unknown_protocol_is_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert exporter_module({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"}) == GRPC
    assert len(caplog.records) == 1


async def test_nothing_that_a_caller_writes_into_its_trace_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with opened(InMemorySpanExporter, Metrics(CollectorRegistry())) as tracing:
        for state in ("CANARY sk-secret", "a=CANARY=,=", "CANARY" * 200):
            caller = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", state)
            tracing.root("POST", "server", {}, parent=caller).end()
        tracing.root("POST", "server", {}, parent=TraceContext("CANARY", "")).end()
    assert "CANARY" not in caplog.text


def test_nothing_of_the_kit_is_imported_without_an_endpoint() -> None:
    program = (
        "import asyncio, sys\n"
        "from service.app import create_app\n"
        "from service.telemetry.metrics import Metrics\n"
        "from service.telemetry.tracing import open_tracing\n"
        "from prometheus_client import CollectorRegistry\n"
        "async def main():\n"
        "    async with open_tracing({}, Metrics(CollectorRegistry())) as tracing:\n"
        "        assert tracing is None\n"
        "asyncio.run(main())\n"
        "kit = ('grpc', 'google.protobuf', 'opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "print([name for name in sys.modules if name.startswith(kit)])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _constants() -> dict[str, object]:
    return {name: value for name, value in vars(semconv).items() if name.isupper()}


def test_names_stand_in_one_module_alone() -> None:
    names = re.compile(r"(gen_ai|messaging|network|url|error)\.[a-z_.]+|http\.(request|response|route)\.[a-z_]+_[a-z]+")
    for path in SERVICE.rglob("*.py"):
        if path.name == "semconv.py":
            continue
        strings = [
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert [text for text in strings if names.fullmatch(text)] == [], path


def test_no_two_names_are_one_and_each_attribute_is_listed() -> None:
    dotted = [
        value
        for value in _constants().values()
        if isinstance(value, str) and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", value)
    ]
    assert len(dotted) == len(set(dotted))
    assert set(dotted) == semconv.ATTRIBUTES | semconv.EVENTS


def test_place_of_a_run_is_known_to_whoever_asks_and_no_other_s() -> None:
    places = {place_of(f"job_{job}", run) for job in range(100) for run in range(1, 4)}
    assert len(places) == 300
    assert place_of("job_1", 1) in places
    assert all(re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", place.traceparent) for place in places)


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_what_is_below_a_trace_that_is_left_out_is_left_out_and_says_so(
    flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    exporter = InMemorySpanExporter()
    caller = TraceContext(f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}", "vendor=1")
    async with opened(lambda: exporter, Metrics(CollectorRegistry())) as tracing:
        root = tracing.root("GET", "server", {}, parent=caller)
        child = root.child("chat", "client", {})
        child.set({"a": 1})
        child.end()
        root.end()
        for span in (root, child):
            version, trace_id, span_id, told = span.context.traceparent.split("-")
            assert (version, trace_id, told) == ("00", "0af7651916cd43dd8448eb211c80319c", flags)
            assert re.fullmatch("(?!0{16})[0-9a-f]{16}", span_id)
            assert span_id != "b7ad6b7169203331"
            assert span.context.tracestate == "vendor=1"
            assert (span.trace_id, span.is_sampled) == (trace_id, flags == "01")
    assert len(exporter.get_finished_spans()) == (2 if flags == "01" else 0)
