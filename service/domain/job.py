"""A background job: a request that is accepted now and answered later."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, NamedTuple, Self

from service.domain.generation import Usage
from service.domain.principal import Priority
from service.errors import Overloaded

WebhookStatus = Literal["pending", "delivered", "failed"]


class JobStatus(StrEnum):
    """Where a job stands. All but the first two are final."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """Its deadline came first."""

    @property
    def final(self) -> bool:
        """Whether the job will not change any more."""
        return self not in (JobStatus.QUEUED, JobStatus.IN_PROGRESS)


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, in the words of the error tree."""

    code: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it stands; a change makes a new one. Times are in seconds since the epoch, by the store's clock."""

    id: str
    """Of a line of a batch: the batch's, a slash, and its number."""
    principal: str
    """The name of whose it is; nobody else can see it."""
    route: str
    """The route of the API that would have answered at once: ``/generate``."""
    body: bytes = field(repr=False, compare=False)
    """What that route was sent, as JSON; only who submits a job or has claimed it is given that."""
    priority: Priority = "interactive"
    weight: float = 1.0
    """The principal's share of the queue against others."""
    deadline_s: float | None = None
    """How long after its coming nobody wants the answer any more."""
    left_s: float | None = field(default=None, compare=False)
    """What was left of that when this was read."""
    is_new: bool = field(default=False, compare=False)
    """Whether it was accepted just then."""
    webhook: str | None = None
    """The address that is told how it ended."""
    webhook_status: WebhookStatus | None = None
    """How far that has come; None without an address."""
    fingerprint: str = ""
    """Of the request, where the id follows from an idempotency key."""
    traceparent: str | None = None
    """Where its acceptance stands in a trace (W3C Trace Context); None where that was not traced."""
    created_at: float = 0.0
    status: JobStatus = JobStatus.QUEUED
    attempts: int = 0
    """How often it was begun, but for what was given back."""
    fence: str = ""
    """Tells the newest claim from all others: nobody else can finish the job."""
    setbacks: int = 0
    """How often its providers failed it, and it was put back."""
    waits: int = 0
    """How often it was told to wait for what passes."""
    position: int | None = None
    """How many are before it, while it is queued; others' jobs may still come between."""
    started_at: float | None = None
    """When it was begun for the first time."""
    finished_at: float | None = None
    expires_at: float | None = None
    """Until when the result is kept."""
    progress: str = ""
    """The text so far, while it runs and somebody watches."""
    answer: bytes | None = field(default=None, repr=False)
    """Given with ``complete``: what the route would have answered, as JSON."""
    usage: Usage | None = None
    cost_nano_usd: int | None = None
    """What it cost; None where the model has no price."""
    error: JobError | None = None
    """Given with ``failed``, and with ``expired``."""

    @property
    def is_line(self) -> bool:
        """Whether it is a line of a batch."""
        return "/" in self.id

    @property
    def run(self) -> int:
        """How often it was begun at all, 0 before the first time: the number in its fence."""
        return int(self.fence.partition("-")[0] or 0)

    def ended(self, outcome: "JobOutcome", *, finished_at: float, expires_at: float) -> Self:
        """Return the job as it is after this outcome."""
        return replace(
            self,
            status=outcome.status,
            body=b"",
            progress="",
            position=None,
            answer=outcome.answer,
            usage=outcome.usage,
            cost_nano_usd=outcome.cost_nano_usd,
            error=outcome.error,
            finished_at=finished_at,
            expires_at=expires_at,
        )


@dataclass(frozen=True, slots=True)
class GoneJob:
    """What is left of a job that is over, and whose result is not kept any more."""

    principal: str


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job ended."""

    status: JobStatus
    """A final one."""
    answer: bytes | None = field(default=None, repr=False)
    usage: Usage | None = None
    cost_nano_usd: int | None = None
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life from the worker that has a job."""

    job_id: str
    fence: str
    progress: str | None = None
    """The text so far, where somebody watches."""


@dataclass(frozen=True, slots=True)
class BeatAnswer:
    """What the store says to a worker's beats."""

    stopped: frozenset[str]
    """Jobs that are not this worker's any more: cancelled, expired, or given to another."""
    watched: frozenset[str]
    """Jobs at which somebody looks."""


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How much there is to do."""

    waiting: dict[Priority, int]
    """Those that could be begun."""
    running: int
    deferred: int
    """Those that wait for a time, and could not be begun before."""
    oldest_wait_s: float
    """How long one has waited at most that could be begun; 0 where none can."""


class DueWebhook(NamedTuple):
    """A job of which its caller's server is to be told."""

    job: Job
    attempt: int
    """From 1."""


LOST = JobError(
    "job_lost",
    "every process that worked on this job died before it was done; it may be the job that kills them",
    retryable=True,
)
"""Why a job fails that was begun as often as it may be."""
UNREADABLE = JobError("job_unreadable", "the record of this job cannot be read any more", retryable=True)
"""Why a job fails whose record somebody changed."""
DEADLINE_PASSED = JobError(
    "job_expired", "the deadline of this job came before its answer; submit it again with a later one", retryable=True
)


RETRY_AFTER_FULL_S = 5.0
"""A guess, since jobs' lengths are not known."""


def queue_full(queue_max: int) -> Overloaded:
    """Make what a caller is told when no more jobs may wait."""
    return Overloaded(f"{queue_max} jobs are waiting already; try again later", retry_after_s=RETRY_AFTER_FULL_S)
