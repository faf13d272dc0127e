"""How a background job is told: to whoever asks, and to the server that its caller named."""

from datetime import UTC, datetime
from typing import Final, Literal

import orjson

from service.api.schemas import JobFault, JobState
from service.domain.generation import FinishReason
from service.domain.job import Job, JobStatus
from service.domain.limits import decimal_usd

_STATUS: Final[dict[JobStatus, Literal["pending", "complete", "failed", "cancelled", "expired"]]] = {
    JobStatus.QUEUED: "pending",
    JobStatus.IN_PROGRESS: "pending",
    JobStatus.COMPLETE: "complete",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
    JobStatus.EXPIRED: "expired",
}


def job_state(job: Job) -> JobState:
    """Tell how a job stands."""
    state = JobState.model_construct(
        job_id=job.id,
        status=_STATUS[job.status],
        state=job.status.value,
        position=job.position,
        attempts=job.attempts,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expires_at=job.expires_at,
        webhook=job.webhook_status,
        cost_usd=None if job.cost_nano_usd is None else decimal_usd(job.cost_nano_usd),
    )
    if job.answer is not None:
        answer = orjson.loads(job.answer)
        state.text = answer["text"]
        state.model = answer["model"]
        state.prompt_tokens = answer["prompt_tokens"]
        state.completion_tokens = answer["completion_tokens"]
        state.finish_reason = FinishReason(answer["finish_reason"])
    if job.error is not None:
        state.error = JobFault(code=job.error.code, detail=job.error.detail, retryable=job.error.retryable)
    return state


def job_event(job: Job) -> bytes:
    """Write the message of a job that is over, as the Standard Webhooks specification has it."""
    message = {
        "type": f"job.{job.status.value}",
        "timestamp": datetime.fromtimestamp(job.finished_at or 0.0, UTC).isoformat(),
        "data": job_state(job).model_dump(mode="json", exclude_none=True),
    }
    return orjson.dumps(message)
