"""``/streams/{stream_id}``: going on with a resumable stream, from any process, and ending it."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from service.api.deps import AllResources, Context, StreamContext
from service.api.responses import EVENT_STREAM, problems
from service.api.resumption import LAST_EVENT_ID, MAX_NUMBER, OVER, Position, continued, last_event
from service.api.sse import TextFraming
from service.errors import InvalidRequest

router = APIRouter(prefix="/streams", tags=["resumable streams"])

StreamId = Annotated[
    str, Path(max_length=64, description="What the answer that began the stream had as `X-Stream-ID`.")
]


class ContinueQuery(BaseModel):
    """Where to go on."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, le=MAX_NUMBER, description="The number of the last event that you have.")
    ticket: Annotated[str, StringConstraints(max_length=256)] | None = Field(
        None, description="A single-use credential from `POST /tickets`, or the one that began this very stream."
    )


@router.get(
    "/{stream_id}",
    response_class=Response,
    responses={
        200: {"description": "The events behind `after`, and those to come.", "content": EVENT_STREAM},
        **OVER,
        **problems(401, 403, 404, 422, 503),
    },
)
async def continue_stream(
    request: Request,
    resources: AllResources,
    context: StreamContext,
    stream_id: StreamId,
    query: Annotated[ContinueQuery, Query()],
) -> Response:
    """Go on with a stream. A `Last-Event-ID` header, which browsers send, counts more than `after`."""
    await request.body()
    position = last_event(request) or Position(stream_id, query.after)
    if position.stream_id != stream_id:
        raise InvalidRequest.at(LAST_EVENT_ID, f"an event of the stream {stream_id!r}, which the path names")
    framing = TextFraming(request_id=context.request_id, model="")
    return await continued(resources, context, position, framing)


@router.delete("/{stream_id}", status_code=204, responses=problems(401, 403, 404, 422, 503))
async def end_stream(resources: AllResources, context: Context, stream_id: StreamId) -> Response:
    """End a stream, wherever it is generated; its readers get an `error` event, `cancelled`."""
    await resources.streams.end(stream_id, context.principal)
    return Response(status_code=204)
