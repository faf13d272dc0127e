"""``/generate/async``: prompts that are accepted now and answered later."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api.bodies import documented_body, read_body
from service.api.deps import Context, Jobs
from service.api.responses import CALLER, json_response, problems
from service.api.schemas import AsyncGenerateBody, AsyncQuery, JobAccepted, JobFault, JobState
from service.domain.job import Job, JobStatus
from service.errors import InvalidRequest, JobNotFound

router = APIRouter(tags=["jobs"])

POLL_AFTER_S = 1
"""What ``Retry-After`` suggests to whoever polls."""

_STATUS: dict[JobStatus, Literal["pending", "complete", "failed", "cancelled"]] = {
    JobStatus.QUEUED: "pending",
    JobStatus.IN_PROGRESS: "pending",
    JobStatus.COMPLETE: "complete",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}

NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": JobState, "description": "No such job, or someone else's"}}


@router.post(
    "/generate/async",
    status_code=202,
    response_model=JobAccepted,
    responses=problems(*CALLER, 503),
    openapi_extra=documented_body(AsyncGenerateBody, required=False),
)
async def submit(request: Request, jobs: Jobs, context: Context, query: Annotated[AsyncQuery, Query()]) -> Response:
    """Accept a prompt, in the body or as the query's `prompt`, and name the job that will answer it."""
    has_body = bool(await request.body())
    if has_body and query.prompt is not None:
        raise InvalidRequest.at("prompt", "stands in the query, and there is a body too: give one of them")
    if not has_body and query.prompt is None:
        raise InvalidRequest.at("prompt", "is missing: give it in a JSON body, or in the query", kind="missing")
    if query.prompt is not None:
        body = AsyncGenerateBody(prompt=query.prompt)
    else:
        body = await read_body(request, AsyncGenerateBody)
    job = await jobs.submit(body.to_request(), context)
    location = {"Location": f"/generate/async/{job.id}", "Retry-After": str(POLL_AFTER_S)}
    return json_response(JobAccepted(job_id=job.id), status=202, headers=location)


@router.get(
    "/generate/async/{job_id}",
    response_model=JobState,
    responses={**NOT_FOUND, **problems(401, 403, 422, 429, 503)},
)
async def status(job_id: str, jobs: Jobs, context: Context) -> Response:
    """Tell how a job stands, and its answer when there is one."""
    try:
        job = await jobs.get(job_id, context.principal)
    except JobNotFound:
        return _not_found(job_id)
    return json_response(_state(job))


@router.delete(
    "/generate/async/{job_id}",
    response_model=JobState,
    responses={**NOT_FOUND, **problems(401, 403, 422, 429, 503)},
)
async def cancel(job_id: str, jobs: Jobs, context: Context) -> Response:
    """Cancel a job, its call to the provider included. One that is over stays as it is."""
    try:
        job = await jobs.cancel(job_id, context.principal)
    except JobNotFound:
        return _not_found(job_id)
    return json_response(_state(job))


def _not_found(job_id: str) -> Response:
    return json_response(JobState(job_id=job_id, status="not_found"), status=404)


def _state(job: Job) -> JobState:
    state = JobState.model_construct(
        job_id=job.id, status=_STATUS[job.status], created_at=job.created_at, finished_at=job.finished_at
    )
    if job.completion is not None:
        state.text = job.completion.choices[0].text
        state.model = job.completion.model
        state.prompt_tokens = job.completion.usage.input_tokens
        state.completion_tokens = job.completion.usage.output_tokens
        state.finish_reason = job.completion.choices[0].finish_reason
    if job.error is not None:
        state.error = JobFault(code=job.error.code, detail=job.error.detail, retryable=job.error.retryable)
    return state
