"""The routes that the ``openai`` SDK calls."""

import time
from fnmatch import fnmatchcase
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from service.api.anthropic.models import AnthropicModel, AnthropicModelPage, model_page
from service.api.anthropic.models import model_fields as anthropic_model_fields
from service.api.anthropic.schemas import ErrorResponse as AnthropicErrorResponse
from service.api.bodies import documented_body, read_body, read_fields
from service.api.deps import AllResources, Context, Generation, TimedContext
from service.api.idempotency import answered_once, documented_key
from service.api.openai.framing import OpenAIFraming
from service.api.openai.parse import embedding_request, generation_request
from service.api.openai.render import completion_body, model_fields, model_list
from service.api.openai.schemas import (
    ChatCompletion,
    ChatCompletionRequest,
    EmbeddingList,
    EmbeddingsRequest,
    ErrorResponse,
    Model,
    ModelList,
)
from service.api.request_timeout import documented_timeout
from service.api.responses import EVENT_STREAM
from service.api.resumption import OVER, asks_for_stream, documented_headers, event_stream
from service.api.vendor import failures
from service.errors import ModelNotFound

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])

_LOOKUP_FAILURES = (400, 401, 403, 404, 429, 500, 503)


AnthropicVersion = Annotated[
    str | None,
    Header(alias="anthropic-version", description="Sent by Anthropic's clients: the answer is in their shape then."),
]


@router.post(
    "/chat/completions",
    responses={
        200: {
            "model": ChatCompletion,
            "description": "The answer; with `stream: true` an event stream that ends with `data: [DONE]`.",
            "content": EVENT_STREAM,
        },
        **OVER,
        **failures(ErrorResponse),
    },
    openapi_extra=documented_key(documented_timeout(documented_headers(documented_body(ChatCompletionRequest)))),
)
async def create_chat_completion(
    request: Request, resources: AllResources, generation: Generation, context: TimedContext
) -> Response:
    """Answer a chat, as OpenAI's chat completions do."""
    body = await read_body(request, ChatCompletionRequest)
    asked = generation_request(body, await read_fields(request))
    created = int(time.time())
    completion_id = f"chatcmpl-{context.request_id}"
    if asks_for_stream(request, stream=bool(body.stream)):
        framing = OpenAIFraming(
            model=body.model,
            created=created,
            completion_id=completion_id,
            request_id=context.request_id,
            include_usage=asked.include_usage,
        )
        return await event_stream(request, resources, context, generation.stream(asked, context), framing)

    async def answer() -> bytes:
        completion = await generation.complete(asked, context)
        return completion_body(completion, model=body.model, created=created, completion_id=completion_id)

    return await answered_once(request, resources, context, answer)


@router.post(
    "/embeddings",
    responses={200: {"model": EmbeddingList, "description": "The vectors."}, **failures(ErrorResponse)},
    openapi_extra=documented_key(documented_timeout(documented_body(EmbeddingsRequest))),
)
async def create_embeddings(
    request: Request, resources: AllResources, generation: Generation, context: TimedContext
) -> Response:
    """Turn texts into vectors, as OpenAI's embeddings do."""
    body = await read_body(request, EmbeddingsRequest)
    asked = embedding_request(body, await read_fields(request))

    async def answer() -> bytes:
        return (await generation.embed(asked, context)).raw

    return await answered_once(request, resources, context, answer)


@router.get(
    "/models",
    responses={
        200: {"model": ModelList | AnthropicModelPage, "description": "The models that this key may use."},
        **failures(ErrorResponse | AnthropicErrorResponse, *_LOOKUP_FAILURES),
    },
)
async def list_models(
    *,
    generation: Generation,
    context: Context,
    anthropic_version: AnthropicVersion = None,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Entries of a page, in Anthropic's shape.")] = 20,
    after_id: Annotated[str | None, Query(description="The page begins after it, in Anthropic's shape.")] = None,
    before_id: Annotated[str | None, Query(description="The page ends before it, in Anthropic's shape.")] = None,
) -> Response:
    """List the models that this key may use."""
    cards = generation.models(context.principal)
    if anthropic_version is not None:
        names = [card.name for card in cards]
        return _json(model_page(names, limit=limit, after_id=after_id, before_id=before_id))
    return _json(model_list(model_fields(card.name, card.owned_by) for card in cards))


@router.get(
    "/models/{model:path}",
    responses={
        200: {"model": Model | AnthropicModel, "description": "The model."},
        **failures(ErrorResponse | AnthropicErrorResponse, *_LOOKUP_FAILURES),
    },
)
async def retrieve_model(
    model: Annotated[str, Path(description="Its name, which may contain slashes.")],
    generation: Generation,
    context: Context,
    anthropic_version: AnthropicVersion = None,
) -> Response:
    """Return one of the models that this key may use."""
    cards = generation.models(context.principal)
    card = next((card for card in cards if model == card.name or fnmatchcase(model, card.name)), None)
    if card is None:
        allowed = ", ".join(card.name for card in cards) or "none"
        raise ModelNotFound.at("model", f"{model!r} is not available; allowed: {allowed}", kind="model_not_found")
    if anthropic_version is not None:
        return _json(orjson.dumps(anthropic_model_fields(model)))
    return _json(orjson.dumps(model_fields(model, card.owned_by)))


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
