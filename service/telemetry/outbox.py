"""What is exported waits here, in a bounded queue; whoever works on requests never waits for a collector.

The kit's own processor drops without a count, and says so in the log each time.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from typing_extensions import override

from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_STANDARD: Mapping[str, int] = {
    "OTEL_BSP_MAX_QUEUE_SIZE": 2_048,
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": 512,
    "OTEL_BSP_SCHEDULE_DELAY": 5_000,
}
"""What the standard's variables are by default (OpenTelemetry, "Environment Variable Specification", batch span
processor); the delay is in milliseconds."""


class Outbox(SpanProcessor):
    """Exports spans in batches from a thread of its own. Each span that ends is exported or counted as dropped."""

    def __init__(self, exporter: SpanExporter, metrics: Metrics, environment: Mapping[str, str] = os.environ) -> None:
        self._exporter = exporter
        self._spans = metrics.trace_spans
        self._room = _figure(environment, "OTEL_BSP_MAX_QUEUE_SIZE")
        self._batch = min(self._room, _figure(environment, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"))
        self._delay_s = _figure(environment, "OTEL_BSP_SCHEDULE_DELAY") / 1_000
        self._queue: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._stops_at: float | None = None
        """Monotonic seconds after which nothing is sent any more."""
        self._is_away = False
        self._thread = threading.Thread(target=self._work, name="trace export", daemon=True)
        self._thread.start()

    @override
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is told of what has not ended."""

    @override
    def on_end(self, span: ReadableSpan) -> None:
        """Take a span over, or drop it where there is no room. Takes about a microsecond."""
        if not span.context.trace_flags.sampled:
            return
        waiting = len(self._queue)
        if self._stops_at is not None:
            self._spans.labels("shutdown").inc()
        elif waiting >= self._room:
            self._spans.labels("queue_full").inc()
        else:
            self._queue.append(span)
            if waiting + 1 >= self._batch:
                self._wake.set()

    @override
    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Have what waits sent soon; does not wait for it."""
        self._wake.set()
        return not self._queue

    def close(self, timeout_s: float) -> None:
        """Send what waits, as far as the time goes; what is left counts as dropped."""
        self._stops_at = time.monotonic() + timeout_s
        self._wake.set()
        self._thread.join(timeout_s)
        self._exporter.shutdown()
        self._drop(len(self._queue), "shutdown")
        self._queue.clear()

    def _work(self) -> None:
        while not self._is_stopping():
            self._wake.wait(self._delay_s)
            self._wake.clear()
            self._send_batch()
            while len(self._queue) >= self._batch and not self._is_stopping():
                self._send_batch()
        while self._queue and time.monotonic() < self._give_up_at():
            self._send_batch()

    def _is_stopping(self) -> bool:
        return self._stops_at is not None

    def _give_up_at(self) -> float:
        return 0.0 if self._stops_at is None else self._stops_at

    def _send_batch(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
        if batch:
            self._send(batch)

    def _send(self, batch: Sequence[ReadableSpan]) -> None:
        try:
            result = self._exporter.export(batch)
        except Exception as error:  # noqa: BLE001 - the outer edge of the thread: it outlives whatever is raised
            self._note(is_away=True, reason=type(error).__name__)
        else:
            if result is SpanExportResult.SUCCESS:
                self._spans.labels("exported").inc(len(batch))
                self._note(is_away=False)
                return
            self._note(is_away=True, reason="see the collector's own log")
        self._drop(len(batch), "export_failed")

    def _drop(self, count: int, outcome: str) -> None:
        self._spans.labels(outcome).inc(count)

    def _note(self, *, is_away: bool, reason: str = "") -> None:
        """Say once that the collector is away, and once that it is back."""
        if is_away and not self._is_away:
            logger.warning("traces cannot be exported: they are dropped and counted", extra={"reason": reason})
        elif self._is_away and not is_away:
            logger.info("traces are exported again")
        self._is_away = is_away


def _figure(environment: Mapping[str, str], name: str) -> int:
    """Return a positive whole number of the environment; the standard's own where it is none."""
    given = environment.get(name, "").strip()
    return int(given) if given.isdecimal() and int(given) > 0 else _STANDARD[name]
