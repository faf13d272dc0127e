"""``/generate/async``: prompts that are accepted now and answered later."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api.bodies import documented_body, read_body
from service.api.deps import AllResources, Context, Jobs
from service.api.idempotency import documented_key, idempotency_key
from service.api.job_routes import GENERATE
from service.api.job_state import job_state
from service.api.job_stream import JobFraming
from service.api.responses import CALLER, EVENT_STREAM, json_response, problems
from service.api.schemas import AsyncGenerateBody, AsyncQuery, JobAccepted, JobState
from service.api.streaming import EventStreamResponse
from service.domain.job import Job
from service.engine.job_watch import watched
from service.errors import InvalidRequest, JobNotFound
from service.webhooks.address import Forbidden, check_url

router = APIRouter(tags=["jobs"])

POLL_AFTER_S = 1
"""What ``Retry-After`` suggests to whoever polls."""

NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": JobState, "description": "No such job, or someone else's"}}
_LOOKUP = {**NOT_FOUND, **problems(401, 403, 410, 422, 429, 503)}


@router.post(
    "/generate/async",
    status_code=202,
    response_model=JobAccepted,
    responses=problems(*CALLER, 503),
    openapi_extra=documented_key(documented_body(AsyncGenerateBody, required=False)),
)
async def submit(
    request: Request,
    resources: AllResources,
    jobs: Jobs,
    context: Context,
    query: Annotated[AsyncQuery, Query()],
) -> Response:
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
    job = await jobs.submit(
        GENERATE,
        body.model_dump_json(exclude_none=True).encode(),
        context,
        priority=body.priority,
        deadline_s=body.deadline_s,
        webhook=_checked(body.webhook, resources),
        key=await idempotency_key(request, context),
    )
    location = {"Location": f"/generate/async/{job.id}", "Retry-After": str(POLL_AFTER_S)}
    return json_response(JobAccepted(job_id=job.id, status=job.status.value), status=202, headers=location)


@router.get("/generate/async/{job_id}", response_model=JobState, responses=_LOOKUP)
async def status(job_id: str, jobs: Jobs, context: Context) -> Response:
    """Tell how a job stands, and its answer when there is one."""
    try:
        job = await jobs.get(job_id, context.principal)
    except JobNotFound:
        return _not_found(job_id)
    return _answer(job)


@router.get(
    "/generate/async/{job_id}/stream",
    response_class=Response,
    responses={
        200: {
            "description": "`event: status` tells where the job stands, unnamed events carry its text, and "
            "`event: restart` says that it begins again; `event: usage` and `data: [DONE]` end it, or `event: error`, "
            "whose `job_over` tells how the job ended from why it is followed no further.",
            "content": EVENT_STREAM,
        },
        **_LOOKUP,
    },
)
async def follow(request: Request, job_id: str, resources: AllResources, jobs: Jobs, context: Context) -> Response:
    """Follow a job to its end. Who comes late gets all of the text at once; leaving does not end the job."""
    # Nobody needs one here, but what comes after the body is taken for the client's departure.
    await request.body()
    try:
        await jobs.get(job_id, context.principal)
    except JobNotFound:
        return _not_found(job_id)
    news = watched(jobs, job_id, context.principal, resources.drain)
    return EventStreamResponse(news, JobFraming(request_id=context.request_id), ends_itself=True)


@router.delete("/generate/async/{job_id}", response_model=JobState, responses=_LOOKUP)
async def cancel(job_id: str, jobs: Jobs, context: Context) -> Response:
    """Cancel a job, its call to the provider included. One that is over stays as it is."""
    try:
        job = await jobs.cancel(job_id, context.principal)
    except JobNotFound:
        return _not_found(job_id)
    return _answer(job)


def _checked(webhook: str | None, resources: AllResources) -> str | None:
    if webhook is None:
        return None
    settings = resources.settings.webhooks
    if not settings.secrets and not settings.secret_files:
        raise InvalidRequest.at("webhook", "is not offered here: messages could not be signed (webhooks.secrets)")
    try:
        check_url(webhook, allow_http=bool(settings.allow_http), allow_networks=settings.allow_networks or ())
    except Forbidden as error:
        raise InvalidRequest.at("webhook", str(error)) from None
    return webhook


def _not_found(job_id: str) -> Response:
    return json_response(JobState(job_id=job_id, status="not_found"), status=404)


def _answer(job: Job) -> Response:
    headers = None if job.status.final else {"Retry-After": str(POLL_AFTER_S)}
    return json_response(job_state(job), headers=headers)
