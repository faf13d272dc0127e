"""``POST /generate``: one prompt, one answer."""

from fastapi import APIRouter, Request, Response

from service.api.bodies import documented_body, read_body
from service.api.deps import Generation, TimedContext
from service.api.disconnect import until_disconnect
from service.api.request_timeout import documented_timeout
from service.api.responses import CALLER, UPSTREAM, json_response, problems
from service.api.schemas import GenerateAnswer, GenerateBody

router = APIRouter(tags=["generation"])


@router.post(
    "/generate",
    response_model=GenerateAnswer,
    responses=problems(*CALLER, *UPSTREAM),
    openapi_extra=documented_timeout(documented_body(GenerateBody)),
)
async def generate(request: Request, generation: Generation, context: TimedContext) -> Response:
    """Answer a prompt. A client that hangs up cancels the generation."""
    body = await read_body(request, GenerateBody)
    completion = await until_disconnect(request, generation.complete(body.to_request(), context))
    choice = completion.choices[0]
    return json_response(
        GenerateAnswer(
            text=choice.text,
            model=completion.model,
            prompt_tokens=completion.usage.input_tokens,
            completion_tokens=completion.usage.output_tokens,
            finish_reason=choice.finish_reason,
            request_id=context.request_id,
        )
    )
