"""``/v1/batches``: many requests at a time, answered in the background, as the ``openai`` SDK has them."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field, StringConstraints
from starlette.responses import Response

from service.api.bodies import documented_body, read_body
from service.api.deps import Batches, Context
from service.api.idempotency import documented_key, idempotency_key
from service.api.openai.files import result_files
from service.api.openai.schemas import ErrorResponse
from service.api.vendor import Open, failures
from service.domain.batch import Batch, BatchStatus

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])

_LOOKUP = failures(ErrorResponse, 400, 401, 403, 404, 429, 500, 503)


class BatchRequest(Open):
    """``POST /v1/batches``."""

    input_file_id: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(min_length=1, max_length=64)],
                Annotated[str, StringConstraints(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None


class RequestCounts(BaseModel):
    """How many lines there are, and what came of them."""

    total: int
    completed: int
    failed: int


class BatchObject(BaseModel):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: None = None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Literal["in_progress", "completed", "expired", "cancelled"]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int
    expires_at: int | None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """Batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.post(
    "/batches",
    response_model=BatchObject,
    responses=failures(ErrorResponse, 400, 401, 403, 404, 408, 413, 429, 500, 503),
    openapi_extra=documented_key(documented_body(BatchRequest)),
)
async def create_batch(request: Request, batches: Batches, context: Context) -> Response:
    """Begin a batch. Its lines are worked on behind all that somebody waits for."""
    body = await read_body(request, BatchRequest)
    batch = await batches.begin(
        body.input_file_id,
        body.endpoint,
        context,
        metadata=body.metadata or {},
        key=await idempotency_key(request, context),
    )
    return _json(_batch_object(batch))


@router.get("/batches", response_model=BatchList, responses=_LOOKUP)
async def list_batches(
    batches: Batches,
    context: Context,
    after: Annotated[str | None, Query(description="The page begins after it.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Entries of a page.")] = 20,
) -> Response:
    """List the batches of this key, the newest first."""
    known = list(await batches.of(context.principal))
    if after is not None:
        places = [place for place, batch in enumerate(known) if batch.id == after]
        known = known[places[0] + 1 :] if places else []
    page = known[:limit]
    return _json(
        BatchList(
            data=[_batch_object(batch) for batch in page],
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(known) > limit,
        )
    )


@router.get("/batches/{batch_id}", response_model=BatchObject, responses=_LOOKUP)
async def retrieve_batch(batch_id: str, batches: Batches, context: Context) -> Response:
    """Tell how a batch stands."""
    return _json(_batch_object(await batches.batch(batch_id, context.principal)))


@router.post("/batches/{batch_id}/cancel", response_model=BatchObject, responses=_LOOKUP)
async def cancel_batch(batch_id: str, batches: Batches, context: Context) -> Response:
    """End a batch, its calls to providers included; what was done stays. One that is over stays as it is."""
    return _json(_batch_object(await batches.cancel(batch_id, context.principal)))


def _batch_object(batch: Batch) -> BatchObject:
    output_file_id, error_file_id = result_files(batch)
    finished_at = None if batch.finished_at is None else int(batch.finished_at)
    ends: dict[str, Any] = {
        BatchStatus.COMPLETED: {"finalizing_at": finished_at, "completed_at": finished_at},
        BatchStatus.EXPIRED: {"expired_at": finished_at},
        BatchStatus.CANCELLED: {"cancelling_at": finished_at, "cancelled_at": finished_at},
    }.get(batch.status, {})
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        input_file_id=batch.file_id,
        status=batch.status.value,
        output_file_id=output_file_id,
        error_file_id=error_file_id,
        created_at=int(batch.created_at),
        in_progress_at=int(batch.created_at),
        expires_at=None if batch.expires_at is None else int(batch.expires_at),
        request_counts=RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
        metadata=dict(batch.metadata) or None,
        **ends,
    )


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
