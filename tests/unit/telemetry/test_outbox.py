"""The queue in front of a collector: bounded, counted, and never waited for."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from prometheus_client import CollectorRegistry
from typing_extensions import override

from service.telemetry import otlp
from service.telemetry.metrics import Metrics
from service.telemetry.outbox import Outbox

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "5"}
PATIENCE_S = 20.0


class Exporter(SpanExporter):
    """Does as it is told."""

    def __init__(self, answer: Callable[[], SpanExportResult] = lambda: SpanExportResult.SUCCESS) -> None:
        self.answer = answer
        self.batches: list[list[str]] = []
        self.came = threading.Condition()
        self.is_shut = False

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self.came:
            self.batches.append([span.name for span in spans])
            self.came.notify_all()
        return self.answer()

    @override
    def shutdown(self) -> None:
        self.is_shut = True

    def wait(self, count: int) -> None:
        with self.came:
            assert self.came.wait_for(lambda: len(self.batches) >= count, PATIENCE_S)


class Bench:
    def __init__(self, exporter: Exporter, environment: Mapping[str, str], sampler: Sampler = ALWAYS_ON) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.outbox = Outbox(exporter, self.metrics, environment)
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(self.outbox)
        self._tracer = provider.get_tracer("test")

    def end(self, *names: str) -> None:
        for name in names:
            self._tracer.start_span(name).end()

    def counts(self) -> dict[str, float]:
        outcomes = ("exported", "queue_full", "export_failed", "shutdown")
        found = {
            outcome: self.metrics.registry.get_sample_value("llm_api_trace_spans_total", {"outcome": outcome}) or 0
            for outcome in outcomes
        }
        return {outcome: count for outcome, count in found.items() if count}


@contextmanager
def bench(exporter: Exporter, environment: Mapping[str, str] = SOON, sampler: Sampler = ALWAYS_ON) -> Iterator[Bench]:
    made = Bench(exporter, environment, sampler)
    try:
        yield made
    finally:
        made.outbox.close(1.0)


def test_what_ends_is_exported_in_order() -> None:
    exporter = Exporter()
    with bench(exporter) as at:
        at.end("a", "b", "c")
    assert [name for batch in exporter.batches for name in batch] == ["a", "b", "c"]
    assert at.counts() == {"exported": 3}
    assert exporter.is_shut


def test_batches_have_a_size() -> None:
    exporter = Exporter()
    with bench(exporter, {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}) as at:
        at.end("a", "b")
        exporter.wait(1)  # a full batch does not wait for the time to pass
        at.end("c", "d", "e")
    assert all(len(batch) <= 2 for batch in exporter.batches)
    assert at.counts() == {"exported": 5}


def test_spans_that_are_not_sampled_are_left_alone() -> None:
    exporter = Exporter()
    with bench(exporter, sampler=ALWAYS_OFF) as at:
        at.end("a")
    assert exporter.batches == []
    assert at.counts() == {}


def test_full_queue_drops_what_comes_and_counts_it() -> None:
    go_on = threading.Event()

    def silent() -> SpanExportResult:
        go_on.wait(PATIENCE_S)
        return SpanExportResult.SUCCESS

    exporter = Exporter(silent)
    limits = {"OTEL_BSP_MAX_QUEUE_SIZE": "2", "OTEL_BSP_SCHEDULE_DELAY": "5"}
    with bench(exporter, limits) as at:
        at.end("a")
        exporter.wait(1)  # it is with the exporter, which does not answer
        at.end("b", "c", "d", "e")
        assert at.counts() == {"queue_full": 2}
        go_on.set()
    assert [name for batch in exporter.batches for name in batch] == ["a", "b", "c"]
    assert at.counts() == {"exported": 3, "queue_full": 2}


def test_outage_is_one_line_and_its_end_another(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([SpanExportResult.FAILURE] * 3)

    def answer() -> SpanExportResult:
        found = next(answers, SpanExportResult.SUCCESS)
        if len(exporter.batches) == 2:
            raise RuntimeError("whatever the library raises")
        return found

    exporter = Exporter(answer)
    with caplog.at_level(logging.INFO), bench(exporter) as at:
        for number in range(1, 6):
            at.end("a")
            exporter.wait(number)
    assert [record.levelname for record in caplog.records if "outbox" in record.name] == ["WARNING", "INFO"]
    assert at.counts() == {"export_failed": 3, "exported": 2}


def test_stop_waits_for_a_silent_collector_no_longer_than_it_may() -> None:
    never = threading.Event()

    def silent() -> SpanExportResult:
        never.wait(PATIENCE_S)
        return SpanExportResult.FAILURE

    exporter = Exporter(silent)
    made = Bench(exporter, SOON)
    made.end("a")
    exporter.wait(1)
    made.end("b", "c")
    began = time.monotonic()
    made.outbox.close(0.1)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert made.counts() == {"shutdown": 2}
    made.end("d")
    assert made.counts() == {"shutdown": 3}
    never.set()


@pytest.mark.parametrize("given", ["", "0", "-1", "many"])
def test_figures_that_are_none_are_passed_over(given: str) -> None:
    exporter = Exporter()
    with bench(exporter, {**SOON, "OTEL_BSP_MAX_QUEUE_SIZE": given}) as at:
        at.end("a")
    assert at.counts() == {"exported": 1}


async def test_spans_of_one_that_is_not_sampled_do_nothing_and_have_ids() -> None:
    exporter = Exporter()
    async with otlp.opened(lambda: exporter, Metrics(CollectorRegistry())) as tracing:
        root = tracing.root("GET", "server", {}, parent=None)
        root.end()
        root.end()
        root.fail("late")
        root.set({"a": 1})
        assert root.child("POST", "client", {}).trace_id == root.trace_id
    assert exporter.batches == [["GET"]]
