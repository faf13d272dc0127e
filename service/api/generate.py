"""``POST /generate``: one prompt, one answer."""

from fastapi import APIRouter, Request, Response

from service.api.bodies import documented_body, read_body
from service.api.deps import AllResources, Generation, TimedContext
from service.api.idempotency import answered_once, documented_key
from service.api.request_timeout import documented_timeout
from service.api.responses import CALLER, UPSTREAM, json_bytes, problems
from service.api.schemas import GenerateAnswer, GenerateBody

router = APIRouter(tags=["generation"])


@router.post(
    "/generate",
    response_model=GenerateAnswer,
    responses=problems(409, *CALLER, *UPSTREAM),
    openapi_extra=documented_key(documented_timeout(documented_body(GenerateBody))),
)
async def generate(
    request: Request, resources: AllResources, generation: Generation, context: TimedContext
) -> Response:
    """Answer a prompt. A client that hangs up cancels the generation, unless it gave it an idempotency key."""
    body = await read_body(request, GenerateBody)

    async def answer() -> bytes:
        completion = await generation.complete(body.to_request(), context)
        choice = completion.choices[0]
        return json_bytes(
            GenerateAnswer(
                text=choice.text,
                model=completion.model,
                prompt_tokens=completion.usage.input_tokens,
                completion_tokens=completion.usage.output_tokens,
                finish_reason=choice.finish_reason,
                request_id=context.request_id,
            )
        )

    return await answered_once(request, resources, context, answer)
