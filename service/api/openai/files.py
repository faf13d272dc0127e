"""``/v1/files``: the requests of batches, and what came of them, as the ``openai`` SDK has them."""

from collections.abc import AsyncIterator
from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from service.api.deps import Batches, Context
from service.api.openai.schemas import ErrorResponse
from service.api.openai.uploads import Upload
from service.api.vendor import failures
from service.domain.batch import Batch, BatchFile, LineResult
from service.domain.principal import Principal
from service.engine.batches import LINE_BYTES_MAX, BatchService
from service.errors import InvalidRequest, NotFound

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])

OUTPUT, ERRORS = "-output", "-errors"
"""How the ids of a batch's results end; its own id comes before."""
_LOOKUP = failures(ErrorResponse, 400, 401, 403, 404, 429, 500, 503)
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "One request a line, as JSON."},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    }
}


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Literal["batch", "batch_output"] = "batch"
    status: Literal["processed"] = "processed"


class FileDeleted(BaseModel):
    """A file that is there no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post(
    "/files",
    response_model=FileObject,
    responses=failures(ErrorResponse, 400, 401, 403, 408, 413, 429, 500, 503),
    openapi_extra=_UPLOAD,
)
async def upload_file(request: Request, batches: Batches, context: Context) -> Response:
    """Take the requests of a batch, up to 50,000 lines. Each is looked at as it comes, and wrong ones are named."""
    upload = Upload(request, line_bytes_max=LINE_BYTES_MAX)

    async def lines() -> AsyncIterator[bytes]:
        async for line in upload.lines():
            yield line
        purpose = upload.fields.get("purpose")
        if purpose != "batch":
            raise InvalidRequest.at("purpose", "takes 'batch'", kind="missing" if purpose is None else "invalid")

    # The name stands before the lines, and is known when they are over.
    file = await batches.upload(lambda: upload.filename or "", lines(), context)
    return _json(_file_object(file))


@router.get("/files/{file_id}", response_model=FileObject, responses=_LOOKUP)
async def retrieve_file(file_id: str, batches: Batches, context: Context) -> Response:
    """Return what is known of a file, of a batch's results too."""
    batch = await _batch_of(file_id, batches, context.principal)
    if batch is None:
        return _json(_file_object(await batches.file(file_id, context.principal)))
    return _json(
        FileObject(
            id=file_id,
            bytes=0,
            created_at=int(batch.finished_at or 0),
            expires_at=None if batch.kept_until is None else int(batch.kept_until),
            filename=f"{file_id}.jsonl",
            purpose="batch_output",
        )
    )


@router.get("/files/{file_id}/content", response_class=Response, responses=_LOOKUP)
async def file_content(file_id: str, batches: Batches, context: Context) -> Response:
    """Return a file's lines; of a batch's results, one for each of its requests, in their order."""
    batch = await _batch_of(file_id, batches, context.principal)
    if batch is None:
        lines = batches.lines(await batches.file(file_id, context.principal))
    else:
        lines = _results(batches, batch, errors=file_id.endswith(ERRORS))
    return StreamingResponse(_with_ends(lines), media_type="application/jsonl")


@router.delete("/files/{file_id}", response_model=FileDeleted, responses=_LOOKUP)
async def delete_file(file_id: str, batches: Batches, context: Context) -> Response:
    """Forget a file. A batch that runs goes on."""
    await batches.drop_file(file_id, context.principal)
    return _json(FileDeleted(id=file_id))


def result_files(batch: Batch) -> tuple[str | None, str | None]:
    """Name the files of a batch's results and of its errors, once it is over."""
    if batch.finished_at is None:
        return None, None
    return (
        batch.id + OUTPUT if batch.completed else None,
        batch.id + ERRORS if batch.completed < batch.total else None,
    )


async def _batch_of(file_id: str, batches: BatchService, principal: Principal) -> Batch | None:
    """Return the batch whose results the file is; None for an uploaded one."""
    for end in (OUTPUT, ERRORS):
        if file_id.endswith(end):
            batch = await batches.batch(file_id.removesuffix(end), principal)
            if file_id not in result_files(batch):
                raise NotFound(f"there is no file {file_id!r}: the batch is not over, or has no such lines")
            return batch
    return None


def _file_object(file: BatchFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=int(file.created_at),
        expires_at=None if file.expires_at is None else int(file.expires_at),
        filename=file.filename,
    )


async def _results(batches: BatchService, batch: Batch, *, errors: bool) -> AsyncIterator[bytes]:
    # Without a file of errors there was an answer for each line; one that was lost since is told here.
    takes_failures = errors or batch.completed == batch.total
    async for result in batches.results(batch):
        if takes_failures if result.answer is None else not errors:
            yield _result_line(batch, result)


def _result_line(batch: Batch, result: LineResult) -> bytes:
    request_id = f"{batch.id}-{result.number}"
    line: dict[str, Any] = {
        "id": f"batch_req_{request_id.removeprefix('batch_')}",
        "custom_id": orjson.loads(result.request).get("custom_id"),
        "response": None,
        "error": None,
    }
    if result.answer is None:
        error = orjson.loads(result.error or b"{}")
        line["error"] = {"code": error.get("code", "cancelled"), "message": error.get("detail", "it was not done")}
    else:
        line["response"] = {"status_code": 200, "request_id": request_id, "body": orjson.Fragment(result.answer)}
    return orjson.dumps(line)


async def _with_ends(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for line in lines:
        yield line + b"\n"


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
