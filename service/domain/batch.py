"""A batch: many requests in one file, answered in the background, with a result for each line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from service.errors import NotFound, RateLimited


class BatchStatus(StrEnum):
    """Where a batch stands. All but the first are final."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    EXPIRED = "expired"
    """Its window was over first; what was done is there."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A file of requests, one JSON object a line. Times are in seconds since the epoch, by the store's clock."""

    id: str
    principal: str
    """The name of whose it is; nobody else can see it."""
    filename: str
    size_bytes: int
    lines: int
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it stands. Times are in seconds since the epoch, by the store's clock."""

    id: str
    principal: str
    endpoint: str
    """The route that each line asks for: ``/v1/chat/completions``."""
    file_id: str
    window_s: float
    """How long it may take."""
    weight: float = 1.0
    """The principal's share of the queue against others."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    traceparent: str | None = None
    """Where its acceptance stands in a trace, for the jobs that its lines become."""
    fingerprint: str = ""
    """Of the request, where the id follows from an idempotency key."""
    status: BatchStatus = BatchStatus.IN_PROGRESS
    total: int = 0
    completed: int = 0
    failed: int = 0
    """Lines with an error."""
    created_at: float = 0.0
    finished_at: float | None = None
    expires_at: float | None = None
    """When its window is over."""
    kept_until: float | None = None
    """Until when its results can be asked for, once it is over."""


@dataclass(frozen=True, slots=True)
class LineResult:
    """What came of one line."""

    number: int
    """From 1."""
    request: bytes
    """The line, as it was uploaded."""
    answer: bytes | None
    """What the route would have answered, as JSON; None where there is an error."""
    error: bytes | None
    """``{"code", "detail", "retryable"}`` as JSON."""


RETRY_AFTER_MANY_S = 60.0
"""A guess, since batches' lengths are not known."""


def file_not_found(file_id: str) -> NotFound:
    """Make what a caller is told whose file is not there, or is someone else's."""
    return NotFound(f"there is no file {file_id!r}")


def too_many_batches(open_max: int) -> RateLimited:
    """Make what a caller is told who has as many open batches as one may."""
    message = f"{open_max} of your batches are not over yet: wait for one of them, or put more lines into each"
    return RateLimited(message, retry_after_s=RETRY_AFTER_MANY_S)
