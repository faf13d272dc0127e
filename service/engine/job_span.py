"""What a trace tells of work in the background: its acceptance, and each time that it is begun.

A run is a trace of its own, since a job may wait for hours, and is linked to what accepted it and to the run before.
Its place follows from the job's id and the number of the run: so who begins the next one knows it, although the process
of the run before may have died without a word.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from service.domain.job import Job, JobOutcome
from service.domain.principal import RequestContext
from service.domain.trace import Span, TraceContext, Tracing, Value
from service.engine.model_span import tell_end
from service.telemetry import semconv

SAMPLED = "01"


class PutBack(Exception):  # noqa: N818 - it is no error: the job goes back
    """A run ended before its job did."""


@contextmanager
def accepted(context: RequestContext, destination: str, message_id: str) -> Iterator[str | None]:
    """Trace the block as the acceptance of work; give the ``traceparent`` that its record is to keep."""
    if context.span is None:
        yield None
        return
    span = context.span.child(f"send {destination}", "producer", _message("send", destination, message_id))
    try:
        yield span.context.traceparent
    except BaseException as error:
        tell_end(span, error)
        raise
    finally:
        span.end()


@contextmanager
def run_of(job: Job, tracing: Tracing | None) -> Iterator[Span | None]:
    """Trace the block as a run of a job; one that goes back is no failure."""
    if tracing is None:
        yield None
        return
    before = [] if job.run <= 1 else [place_of(job.id, job.run - 1)]
    accepted_at = [] if job.traceparent is None else [TraceContext(job.traceparent)]
    span = tracing.root(
        f"process {semconv.JOBS}",
        "consumer",
        {**_message("process", semconv.JOBS, job.id), semconv.JOB_RUN: job.run},
        links=[*accepted_at, *before],
        context=place_of(job.id, job.run),
    )
    try:
        yield span
    except PutBack:
        span.set({semconv.OUTCOME: "put_back"})
        raise
    except BaseException as error:
        tell_end(span, error)
        raise
    finally:
        span.end()


def tell_outcome(span: Span | None, outcome: JobOutcome) -> None:
    """Note how a run ended its job."""
    if span is None:
        return
    span.set({semconv.OUTCOME: outcome.status.value})
    if outcome.error is not None:
        span.fail(outcome.error.code)


def place_of(job_id: str, run: int) -> TraceContext:
    """Return where a run stands: ids that are spread like random ones, and the same for whoever asks."""
    digest = sha256(f"{job_id} {run}".encode()).hexdigest()
    return TraceContext(f"00-{digest[:32]}-{digest[32:48]}-{SAMPLED}")


def trace_of(job: Job) -> str:
    """Return the id of the trace that the job's run is."""
    return place_of(job.id, job.run).traceparent.split("-")[1]


def _message(operation: str, destination: str, message_id: str) -> dict[str, Value]:
    return {
        semconv.MESSAGING_SYSTEM: semconv.SYSTEM,
        semconv.MESSAGING_OPERATION: operation,
        semconv.MESSAGING_OPERATION_TYPE: operation,
        semconv.MESSAGING_DESTINATION: destination,
        semconv.MESSAGE_ID: message_id,
    }
