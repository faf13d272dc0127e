"""Anthropic's bodies as far as we read them; every other field is let through for providers of the same dialect.

Field names and ranges are the vendor's (API reference of messages, read in November 2026 from the types of
``anthropic`` 2.13).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints

from service.api.vendor import Open, as_text_parts


class Source(Open):
    """Where an image or a document is."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


def _unless_text(value: Any) -> Any:
    return None if isinstance(value, str) else value


class Block(Open):
    """A block of content. Which fields it needs depends on ``type``; parse.py checks that."""

    type: str
    text: str | None = None
    source: Annotated[Source | None, BeforeValidator(_unless_text, json_schema_input_type=Source | str | None)] = None
    """A search result has a text there, which is for providers of the same dialect."""
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Any = None
    """Of a tool's result: a string or a list of blocks."""
    is_error: bool | None = None


Blocks = Annotated[list[Block], BeforeValidator(as_text_parts, json_schema_input_type=str | list[Block])]


class MessageBody(Open):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Blocks


class ToolBody(Open):
    """A tool; only those of type ``custom``, which may be left out, can be translated."""

    type: str | None = None
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoiceBody(Open):
    """Which tools the model may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(Open):
    """About the request."""

    user_id: str | None = None


class MessagesRequest(Open):
    """``POST /v1/messages``."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    messages: Annotated[list[MessageBody], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    system: Annotated[
        list[Block] | None, BeforeValidator(as_text_parts, json_schema_input_type=str | list[Block] | None)
    ] = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop_sequences: list[str] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoiceBody | None = None
    metadata: Metadata | None = None


class ErrorDetails(BaseModel):
    """What went wrong."""

    type: str
    message: str
    details: dict[str, Any]


class ErrorResponse(BaseModel):
    """Every failure."""

    type: Literal["error"]
    error: ErrorDetails
    request_id: str


class AnsweredMessage(Open):
    """A whole answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    usage: dict[str, Any]
