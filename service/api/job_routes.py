"""What a background job can ask for: routes that would answer at once, as a pair of pure functions each."""

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from service.api.errors import invalid_request
from service.api.schemas import AsyncGenerateBody, GenerateAnswer
from service.domain.generation import Completion, GenerationRequest
from service.domain.job import Job
from service.engine.jobs import JobRoute

GENERATE: Final = "/generate"


class _Generate:
    """One prompt."""

    def read(self, body: bytes) -> GenerationRequest:
        """See :class:`service.engine.jobs.JobRoute`."""
        try:
            return AsyncGenerateBody.model_validate_json(body).to_request()
        except ValidationError as error:
            raise invalid_request(error.errors(include_url=False, include_context=False, include_input=False)) from None

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


JOB_ROUTES: Final[Mapping[str, JobRoute]] = {GENERATE: _Generate()}
"""By the path of the route."""
