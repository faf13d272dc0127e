"""A ledger for services that are put together by a test."""

from prometheus_client import CollectorRegistry

from service.domain.clock import Clock, SystemClock
from service.engine.invoices import Invoices
from service.engine.ledger import Ledger
from service.telemetry.metrics import Metrics


def unwritten_ledger(metrics: Metrics | None = None, clock: Clock | None = None) -> Ledger:
    """Make one that keeps nothing."""
    return Ledger(
        writer=None,
        invoices=Invoices({}, lambda _: None),
        metrics=metrics or Metrics(CollectorRegistry()),
        clock=clock or SystemClock(),
    )
