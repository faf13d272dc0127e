"""The bodies and answers of our own routes. Input with an unknown field is an error, most often a misspelt name."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.domain.generation import FinishReason, GenerationRequest, Message

MAX_TOKENS = 4_096
"""The most that our own routes let a caller ask for."""

DEFAULT_MODEL = "gpt-4o-mini"
DEFAULT_JOB_MODEL = "gpt-4o"
DEFAULT_TEMPERATURE = 0.7
DEFAULT_MAX_TOKENS = 512

Prompt = Annotated[str, StringConstraints(min_length=1, max_length=4_000)]
Model = Annotated[str, StringConstraints(min_length=1, max_length=256)]
MaxTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS, description="The most tokens to generate.")]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
UserId = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{3,64}$")]


class Body(BaseModel):
    """What a caller sends."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GenerateBody(Body):
    """One prompt."""

    prompt: Prompt
    model: Model = DEFAULT_MODEL
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS
    temperature: Temperature = DEFAULT_TEMPERATURE

    def to_request(self) -> GenerationRequest:
        """Say it in the domain's words."""
        return prompt_request(self.prompt, self.model, self.max_tokens, self.temperature)


class AsyncGenerateBody(GenerateBody):
    """One prompt, to be answered later; its defaults suit long answers."""

    model: Model = DEFAULT_JOB_MODEL
    max_tokens: MaxTokens = 2_048
    priority: Literal["interactive", "batch"] | None = Field(
        None, description="`batch` goes after all that is interactive; the key's own priority when left out."
    )
    deadline_s: Annotated[float, Field(gt=0, le=604_800, allow_inf_nan=False)] | None = Field(
        None, description="Seconds after which the answer is of no use: then the job ends as `expired`."
    )
    webhook: Annotated[str, StringConstraints(min_length=1, max_length=2_048)] | None = Field(
        None,
        description="An `https://` address that is told how it ended, by the Standard Webhooks specification.",
    )


class StreamQuery(BaseModel):
    """One prompt, as the query of an address."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt
    model: Model = DEFAULT_MODEL
    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS
    temperature: Temperature = DEFAULT_TEMPERATURE
    resumable: bool = Field(False, description="Ask for a stream that can be continued, from any process.")  # noqa: FBT003
    ticket: Annotated[str, StringConstraints(max_length=256)] | None = Field(
        None, description="A single-use credential from `POST /tickets`, for browsers, which can set no header here."
    )

    def to_request(self) -> GenerationRequest:
        """Say it in the domain's words."""
        return prompt_request(self.prompt, self.model, self.max_tokens, self.temperature)


class AsyncQuery(BaseModel):
    """A prompt in an address, for a job without a body."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt | None = Field(None, description="The prompt, where there is no body.")


class ChatMessage(Body):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[str, StringConstraints(min_length=1)]


class ChatBody(Body):
    """A conversation."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1_000)]
    model: Model = DEFAULT_MODEL
    max_tokens: MaxTokens = 256
    temperature: Temperature = DEFAULT_TEMPERATURE
    user_id: UserId | None = None
    stream: bool = False

    def to_request(self) -> GenerationRequest:
        """Say it in the domain's words."""
        return GenerationRequest(
            model=self.model,
            messages=tuple(Message.of_text(message.role, message.content) for message in self.messages),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            user_id=self.user_id,
        )


class Answer(BaseModel):
    """What every whole answer tells beside its text."""

    model: str
    """The model that answered, by the provider's word."""
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    request_id: str


class GenerateAnswer(Answer):
    """The answer to a prompt."""

    text: str


class AssistantMessage(BaseModel):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatAnswer(Answer):
    """The answer to a conversation."""

    message: AssistantMessage


class JobAccepted(BaseModel):
    """A job that was taken."""

    job_id: str
    status: Literal["queued", "in_progress", "complete", "failed", "cancelled", "expired"]
    """Anything but `queued` is told of a job that was submitted before, with the same key."""


class JobFault(BaseModel):
    """Why a job failed."""

    code: str
    detail: str
    retryable: bool


class JobState(BaseModel):
    """A job as it stands."""

    job_id: str
    status: Literal["pending", "complete", "failed", "cancelled", "expired", "not_found"]
    state: Literal["queued", "in_progress", "complete", "failed", "cancelled", "expired"] | None = None
    """The same, with the two halves of ``pending`` told apart."""
    position: int | None = None
    """How many are before it, while it is queued."""
    attempts: int | None = None
    """How often it was begun: more than once where a process died that worked on it."""
    text: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: FinishReason | None = None
    created_at: float | None = None
    """Seconds since the epoch; so are the other times."""
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    """Until when the result can be asked for."""
    webhook: Literal["pending", "delivered", "failed"] | None = None
    """Whether the address that was given has been told."""
    cost_usd: str | None = None
    """Where the model has a price. Exact, as a decimal number; a JSON number would be read with binary rounding."""
    error: JobFault | None = None


class TicketAnswer(BaseModel):
    """A ticket for one ``GET /stream`` or one WebSocket."""

    ticket: str
    expires_in_s: float


class FieldFault(BaseModel):
    """One thing wrong with the input."""

    field: str
    message: str
    type: str


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    request_id: str
    retry_after_s: float | None = None
    """Seconds; the header has them rounded up."""
    resume: str | None = None
    errors: list[FieldFault] | None = None


def prompt_request(prompt: str, model: str, max_tokens: int, temperature: float) -> GenerationRequest:
    """Make the request of a single prompt."""
    return GenerationRequest(
        model=model,
        messages=(Message.of_text("user", prompt),),
        max_tokens=max_tokens,
        temperature=temperature,
    )
