"""The routes that the ``anthropic`` SDK calls; ``/v1/models`` is among OpenAI's, since both vendors have it."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.anthropic.framing import AnthropicFraming
from service.api.anthropic.parse import generation_request
from service.api.anthropic.render import message_body
from service.api.anthropic.schemas import AnsweredMessage, ErrorResponse, MessagesRequest
from service.api.bodies import documented_body, read_body, read_fields
from service.api.deps import AllResources, Generation, TimedContext
from service.api.idempotency import answered_once, documented_key
from service.api.request_timeout import documented_timeout
from service.api.responses import EVENT_STREAM
from service.api.resumption import OVER, asks_for_stream, documented_headers, event_stream
from service.api.vendor import failures

router = APIRouter(prefix="/v1", tags=["Anthropic-compatible"])

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": AnsweredMessage,
        "description": "The answer; with `stream: true` an event stream that ends with `message_stop`.",
        "content": EVENT_STREAM,
    },
    **OVER,
    **failures(ErrorResponse),
}


@router.post(
    "/messages",
    responses=_RESPONSES,
    openapi_extra=documented_key(documented_timeout(documented_headers(documented_body(MessagesRequest)))),
)
async def create_message(
    request: Request, resources: AllResources, generation: Generation, context: TimedContext
) -> Response:
    """Answer a conversation, as Anthropic's messages do."""
    body = await read_body(request, MessagesRequest)
    asked = generation_request(body, await read_fields(request))
    message_id = f"msg_{context.request_id}"
    response: Response
    if asks_for_stream(request, stream=bool(body.stream)):
        framing = AnthropicFraming(model=body.model, message_id=message_id, request_id=context.request_id)
        response = await event_stream(request, resources, context, generation.stream(asked, context), framing)
    else:

        async def answer() -> bytes:
            completion = await generation.complete(asked, context)
            return message_body(completion, model=body.model, message_id=message_id)

        response = await answered_once(request, resources, context, answer)
    response.headers["request-id"] = context.request_id  # where the SDK looks for it
    return response
