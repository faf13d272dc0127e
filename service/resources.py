"""What one process shares between requests."""

from dataclasses import dataclass

from service.auth.base import Authenticator, TicketStore
from service.config import Settings
from service.domain.clock import Clock
from service.domain.trace import Tracing
from service.engine.admission import Admission
from service.engine.batches import BatchService
from service.engine.bounded_usage import BoundedUsage
from service.engine.drain import Drain
from service.engine.generation import GenerationService
from service.engine.idempotency import Idempotency
from service.engine.jobs import JobService
from service.engine.readiness import ReadinessCheck
from service.engine.resumption import ResumableStreams
from service.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Resources:
    """Opened once by ``service.wiring``; closed in reverse order, also when start-up fails."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    authenticator: Authenticator
    admission: Admission
    drain: Drain
    tickets: TicketStore
    generation: GenerationService
    streams: ResumableStreams
    jobs: JobService
    batches: BatchService
    idempotency: Idempotency
    readiness: ReadinessCheck
    usage: BoundedUsage | None
    """Where the ledger's records are read; None where none are kept."""
    tracing: Tracing | None = None
    """None where nobody collects traces."""
