"""A background job: a generation that is accepted now and done later."""

from dataclasses import dataclass
from enum import StrEnum

from service.domain.generation import Completion, GenerationRequest
from service.domain.principal import Principal


class JobStatus(StrEnum):
    """Where a job stands. The last three are final."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the job will not change any more."""
        return self in (JobStatus.COMPLETE, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, in the words of the error tree."""

    code: str
    detail: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it stands; a change makes a new one."""

    id: str
    principal: Principal
    """Who asked; nobody else can see the job."""
    request: GenerationRequest
    created_at: float
    """Seconds since the epoch; so are the other times."""
    status: JobStatus = JobStatus.QUEUED
    started_at: float | None = None
    finished_at: float | None = None
    completion: Completion | None = None
    """Given with ``complete``."""
    error: JobError | None = None
    """Given with ``failed``."""
