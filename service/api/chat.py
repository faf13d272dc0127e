"""``POST /chat``: a conversation, answered whole or streamed."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.bodies import documented_body, read_body
from service.api.deps import AllResources, Generation, TimedContext
from service.api.idempotency import answered_once, documented_key
from service.api.request_timeout import documented_timeout
from service.api.responses import CALLER, EVENT_STREAM, UPSTREAM, json_bytes, problems
from service.api.resumption import OVER, asks_for_stream, documented_headers, event_stream
from service.api.schemas import AssistantMessage, ChatAnswer, ChatBody
from service.api.sse import TextFraming

router = APIRouter(tags=["generation"])

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; an event stream when `stream` is true.",
        "content": EVENT_STREAM,
    }
}


@router.post(
    "/chat",
    response_model=ChatAnswer,
    responses={**ANSWERS, **OVER, **problems(404, 409, *CALLER, *UPSTREAM)},
    openapi_extra=documented_key(documented_timeout(documented_headers(documented_body(ChatBody)))),
)
async def chat(request: Request, resources: AllResources, generation: Generation, context: TimedContext) -> Response:
    """Answer a conversation."""
    body = await read_body(request, ChatBody)
    asked = body.to_request()
    if asks_for_stream(request, stream=body.stream):
        framing = TextFraming(request_id=context.request_id, model=body.model)
        return await event_stream(request, resources, context, generation.stream(asked, context), framing)

    async def answer() -> bytes:
        completion = await generation.complete(asked, context)
        choice = completion.choices[0]
        return json_bytes(
            ChatAnswer(
                message=AssistantMessage(content=choice.text),
                model=completion.model,
                prompt_tokens=completion.usage.input_tokens,
                completion_tokens=completion.usage.output_tokens,
                finish_reason=choice.finish_reason,
                request_id=context.request_id,
            )
        )

    return await answered_once(request, resources, context, answer)
