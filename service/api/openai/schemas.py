"""OpenAI's bodies as far as we read them; every other field is let through for providers of the same dialect.

Field names and ranges are the vendor's (API reference of chat completions, embeddings and models, read in November
2026 from the types of ``openai`` 3.57).
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, StringConstraints

from service.api.vendor import Open, as_text_parts

MAX_STOP_STRINGS = 4
MAX_INPUTS = 2_048
"""Inputs of one embeddings call."""


class ImageUrl(Open):
    """Where an image is."""

    url: str
    """``https://…`` or ``data:…;base64,…``."""
    detail: str | None = None


class ContentPart(Open):
    """A part of a message. Which fields it needs depends on ``type``; parse.py checks that."""

    type: str
    text: str | None = None
    image_url: ImageUrl | None = None
    refusal: str | None = None


class CalledFunction(Open):
    """A function that the model called, with its arguments as JSON text."""

    name: str
    arguments: str


class ToolCallBody(Open):
    """A call in an assistant's message."""

    id: str
    type: str = "function"
    function: CalledFunction | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_typed(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Content = Annotated[
    list[ContentPart] | None, BeforeValidator(as_text_parts, json_schema_input_type=str | list[ContentPart] | None)
]


class ChatMessage(Open):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    """The form before ``tool_calls``."""


class FunctionDefinition(Open):
    """What a function takes."""

    name: Annotated[str, StringConstraints(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(Open):
    """A tool; only those of type ``function`` can be translated."""

    type: str
    function: FunctionDefinition | None = None


class NamedFunction(Open):
    """A function, by its name."""

    name: str


class ToolChoiceBody(Open):
    """Which tools the model may or must call; a word stands for an object of that type."""

    type: str
    function: NamedFunction | None = None


class StreamOptions(Open):
    """How to stream."""

    include_usage: bool | None = None


class ResponseFormat(Open):
    """The form that the answer must have."""

    type: str


class ChatCompletionRequest(Open):
    """``POST /v1/chat/completions``."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The older name of ``max_completion_tokens``, which wins where both are given."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Annotated[
        Annotated[list[str], Field(max_length=MAX_STOP_STRINGS)] | None,
        BeforeValidator(
            _as_list, json_schema_input_type=str | Annotated[list[str], Field(max_length=MAX_STOP_STRINGS)] | None
        ),
    ] = None
    tools: list[ToolBody] | None = None
    tool_choice: Annotated[
        ToolChoiceBody | None,
        BeforeValidator(_as_typed, json_schema_input_type=Literal["none", "auto", "required"] | ToolChoiceBody | None),
    ] = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    """The successor of ``user``."""


def _check_input(value: Any) -> Any:
    """Check one text, a list of texts, one list of tokens, or a list of those; none may be empty."""
    kinds = set(_kinds(value))
    if len(kinds) != 1 or not kinds <= {"text", "token", "tokens"}:
        raise ValueError(
            "must be a text, a list of texts, a list of token numbers or a list of those, none of it empty"
        )
    if isinstance(value, list) and kinds != {"token"} and len(value) > MAX_INPUTS:
        raise ValueError(f"has {len(value)} entries; at most {MAX_INPUTS} are taken")
    return value


def _kinds(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield "text" if value else "empty"
        case list():
            yield from (_kind(item) for item in value)
        case _:
            yield "wrong"


def _kind(item: Any) -> str:
    match item:
        case str():
            return "text" if item else "empty"
        case bool():
            return "wrong"
        case int():
            return "token" if item >= 0 else "wrong"
        case list() if item and all(_kind(token) == "token" for token in item):
            return "tokens"
        case _:
            return "empty"


_Text = Annotated[str, StringConstraints(min_length=1)]
_Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class EmbeddingsRequest(Open):
    """``POST /v1/embeddings``."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    input: Annotated[
        Any,
        PlainValidator(
            _check_input,
            json_schema_input_type=_Text
            | Annotated[list[_Text], Field(min_length=1, max_length=MAX_INPUTS)]
            | _Tokens
            | Annotated[list[_Tokens], Field(min_length=1, max_length=MAX_INPUTS)],
        ),
    ]
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class ErrorDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field, as a dotted path."""
    code: str | None
    retryable: bool
    """Whether the same request may succeed later; our addition, as the two that follow."""
    request_id: str
    resume: str | None = None
    """Where a resumable stream goes on, if only its connection ends."""


class ErrorResponse(BaseModel):
    """Every failure."""

    error: ErrorDetails
    request_id: str


class AnsweredMessage(Open):
    """The model's message."""

    role: str
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class AnsweredChoice(Open):
    """One answer."""

    index: int
    message: AnsweredMessage
    finish_reason: str


class ChatCompletion(Open):
    """A whole answer."""

    id: str
    object: str
    created: int
    model: str
    choices: list[AnsweredChoice]
    usage: dict[str, Any] | None = None


class EmbeddingList(Open):
    """Vectors, in the order of the inputs."""

    data: list[dict[str, Any]]
    usage: dict[str, Any] | None = None


class Model(BaseModel):
    """A model that may be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Seconds since the epoch; always 0, since we do not know it."""
    owned_by: str
    """The provider that is asked first, by its name in the configuration."""


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]
