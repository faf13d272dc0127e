"""``GET /stream``: one prompt, streamed to anything that reads server-sent events, a browser's EventSource too."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api.deps import AllResources, Generation, TimedStreamContext
from service.api.idempotency import documented_key
from service.api.request_timeout import documented_timeout
from service.api.responses import CALLER, EVENT_STREAM, UPSTREAM, problems
from service.api.resumption import OVER, documented_headers, event_stream
from service.api.schemas import StreamQuery
from service.api.sse import TextFraming

router = APIRouter(tags=["generation"])

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Unnamed events carry text; `event: usage` and `data: [DONE]` end it, or `event: error` does.",
        "content": EVENT_STREAM,
    }
}


@router.get(
    "/stream",
    response_class=Response,
    responses={**STREAMED, **OVER, **problems(404, 409, *CALLER, *UPSTREAM)},
    openapi_extra=documented_key(documented_timeout(documented_headers())),
)
async def stream(
    request: Request,
    resources: AllResources,
    generation: Generation,
    context: TimedStreamContext,
    query: Annotated[StreamQuery, Query()],
) -> Response:
    """Stream the answer to a prompt."""
    # Nobody needs one here, but what comes after the body is taken for the client's departure.
    await request.body()
    framing = TextFraming(request_id=context.request_id, model=query.model)
    started = generation.stream(query.to_request(), context)
    return await event_stream(request, resources, context, started, framing, resumable=query.resumable)
