"""What a background job can ask for: routes that would answer at once, as a pair of pure functions each."""

from collections.abc import Mapping
from typing import Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from service.api.errors import invalid_request
from service.api.openai.parse import generation_request
from service.api.openai.render import completion_body
from service.api.openai.schemas import ChatCompletionRequest
from service.api.schemas import AsyncGenerateBody, GenerateAnswer
from service.domain.generation import Completion, GenerationRequest
from service.domain.job import Job
from service.engine.jobs import JobRoute
from service.errors import InvalidRequest

GENERATE: Final = "/generate"
CHAT_COMPLETIONS: Final = "/v1/chat/completions"

M = TypeVar("M", bound=BaseModel)


class _Generate:
    """One prompt."""

    def read(self, body: bytes) -> GenerationRequest:
        """See :class:`service.engine.jobs.JobRoute`."""
        return _validated(AsyncGenerateBody, body).to_request()

    def write(self, completion: Completion, job: Job) -> bytes:
        """See :class:`service.engine.jobs.JobRoute`."""
        choice = completion.choices[0]
        answer = GenerateAnswer(
            text=choice.text,
            model=completion.model,
            prompt_tokens=completion.usage.input_tokens,
            completion_tokens=completion.usage.output_tokens,
            finish_reason=choice.finish_reason,
            request_id=job.id,
        )
        return answer.model_dump_json().encode()


class _ChatCompletions:
    """A chat, in OpenAI's words."""

    def read(self, body: bytes) -> GenerationRequest:
        """See :class:`service.engine.jobs.JobRoute`."""
        asked = _validated(ChatCompletionRequest, body)
        if asked.stream:
            raise InvalidRequest.at("stream", "takes false: nobody is there to read a stream")
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError as error:  # the schema's reader takes numbers that no double can hold, and NaN
            raise InvalidRequest.at("body", f"not JSON: {error}") from None
        return generation_request(asked, fields)

    def write(self, completion: Completion, job: Job) -> bytes:
        """See :class:`service.engine.jobs.JobRoute`."""
        model = str(orjson.loads(job.body)["model"])
        return completion_body(
            completion, model=model, created=int(job.created_at), completion_id=f"chatcmpl-{job.id.replace('/', '-')}"
        )


def _validated(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_context=False, include_input=False)) from None


BATCH_ROUTES: Final[Mapping[str, JobRoute]] = {CHAT_COMPLETIONS: _ChatCompletions()}
"""What the lines of a batch may ask for, by the path of the route."""
JOB_ROUTES: Final[Mapping[str, JobRoute]] = {GENERATE: _Generate(), **BATCH_ROUTES}
"""What any job may ask for."""
