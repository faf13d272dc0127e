"""A generation: what is asked of a model, and what comes back, whole or in pieces."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, Self

import msgspec
import orjson


class Dialect(StrEnum):
    """The wire form in which a request came or a provider speaks."""

    OPENAI = "openai"
    """Chat completions."""
    ANTHROPIC = "anthropic"
    """Messages."""


TOKENS_MAX = 1_000_000_000
"""More than any provider has counted for one call. Its cost fits into the 63 bits that the ledger has for it."""

Role = Literal["system", "user", "assistant", "tool"]


class FinishReason(StrEnum):
    """Why the model stopped. There is no value for "unknown": without a reason a generation is not finished."""

    STOP = "stop"
    """It was done, or met a stop string."""
    LENGTH = "length"
    """It reached the token limit."""
    TOOL_CALLS = "tool_calls"
    """It wants tools called."""
    CONTENT_FILTER = "content_filter"
    """The provider withheld the rest."""


class TextPart(msgspec.Struct, frozen=True):
    """A piece of text in a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True):
    """An image in a message, by address or by value."""

    url: str | None = None
    """``https://…``; None when ``data`` is given."""
    media_type: str | None = None
    """``image/png`` and the like; given with ``data``."""
    data: str | None = None
    """Base64."""
    detail: str | None = None
    """OpenAI's ``auto``, ``low`` or ``high``."""


class ToolCall(msgspec.Struct, frozen=True):
    """The model's wish to have a function called."""

    id: str
    name: str
    arguments: str
    """A JSON object as text, exactly as the model wrote it."""


class ToolResult(msgspec.Struct, frozen=True):
    """What a called function gave, on its way back to the model."""

    call_id: str
    content: str
    is_error: bool = False


Part = TextPart | ImagePart | ToolCall | ToolResult


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of_text(cls, role: Role, text: str) -> Self:
        """Make a message of text alone."""
        return cls(role, (TextPart(text),))

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    """A JSON Schema of the arguments."""

    @cached_property
    def size_bytes(self) -> int:
        """How long it is as JSON; 0 where it is none that could be sent. Counted once, since it may be long."""
        try:
            return len(orjson.dumps((self.name, self.description, self.parameters)))
        except orjson.JSONEncodeError:
            return 0


class ToolChoice(msgspec.Struct, frozen=True):
    """Which tools the model may or must call."""

    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None
    """Given with ``named``."""


class WireBody(msgspec.Struct, frozen=True):
    """The caller's own JSON, kept so that a provider of the same dialect gets every field, known to us or not."""

    dialect: Dialect
    fields: Mapping[str, Any]
    """The body as parsed; must not be changed."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a caller asks of a model. A None means that the caller left it to the provider."""

    model: str
    """The public name, as the caller gave it."""
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    """Upper bound of generated tokens."""
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    choices: int = 1
    """How many answers (OpenAI's ``n``)."""
    user_id: str | None = None
    """The caller's own user, below the principal."""
    include_usage: bool = True
    """Whether the usage event of a stream goes to the caller; we ask the provider for it either way."""
    wire: WireBody | None = None
    """None for our own routes, whose bodies are no vendor's."""
    call_id: str | None = field(default=None, compare=False)
    """What a provider is told that this call to it is known by."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens that a generation took."""

    input_tokens: int
    """Inclusive of cached ones."""
    output_tokens: int
    """Inclusive of reasoning."""
    cached_input_tokens: int = 0
    """Of ``input_tokens``: read from the provider's cache."""
    cache_write_tokens: int = 0
    """Of ``input_tokens``: written to the provider's cache."""
    reasoning_tokens: int = 0
    """Of ``output_tokens``: spent on reasoning."""
    estimated: bool = False
    """True where the provider gave no figures and we counted pieces ourselves."""


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call. The first piece of a call carries ``id`` and ``name``."""

    index: int
    """Which of the answer's tool calls, from 0."""
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    """To be appended."""


class Delta(msgspec.Struct, frozen=True):
    """What one upstream event adds to one choice."""

    choice: int = 0
    text: str = ""
    reasoning: str = ""
    """Reasoning text that some providers send beside the answer."""
    refusal: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Chunk:
    """The whole events that came in one read of a provider's stream."""

    raw: bytes = b""
    """Those events' bytes, verbatim, each ended by a blank line, in ``dialect``; without the provider's own end marker,
    and without a usage event that the caller did not ask for."""
    dialect: Dialect = Dialect.OPENAI
    deltas: tuple[Delta, ...] = ()
    """What they add, in order."""
    usage: Usage | None = None
    """Set in the chunk that carries the provider's final figures."""
    first_usage: Usage | None = None
    """Set in the chunk in which the provider says at the head of a stream what it has read."""
    response_id: str | None = None
    """The provider's id of the answer, in the first chunk."""
    model: str | None = None
    """The model that answers, by the provider's word, in the first chunk."""

    @property
    def text(self) -> str:
        """The text that this chunk adds to the first choice."""
        if len(self.deltas) == 1:
            delta = self.deltas[0]
            return delta.text if delta.choice == 0 else ""
        return "".join(delta.text for delta in self.deltas if delta.choice == 0)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first choice stopped, in the chunk that says so."""
        for delta in self.deltas:
            if delta.choice == 0 and delta.finish_reason is not None:
                return delta.finish_reason
        return None


class Choice(msgspec.Struct, frozen=True):
    """One whole answer."""

    text: str
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    refusal: str = ""


class Completion(msgspec.Struct, frozen=True):
    """A whole generation."""

    model: str
    """The model that answered, by the provider's word."""
    choices: tuple[Choice, ...]
    """At least one, in order of index."""
    usage: Usage
    response_id: str
    dialect: Dialect = Dialect.OPENAI
    raw: bytes = b""
    """The provider's JSON, verbatim, in ``dialect``; empty where there is none."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts, or token lists, to be turned into vectors. The body goes to the provider as it came, but for the model."""

    model: str
    fields: Mapping[str, Any]
    """The body as parsed; must not be changed."""
    user_id: str | None = None
    call_id: str | None = field(default=None, compare=False)
    """What a provider is told that this call to it is known by."""


class EmbeddingResult(msgspec.Struct, frozen=True):
    """Vectors, as the provider's JSON."""

    raw: bytes
    """OpenAI's shape, validated; the vectors are not looked into further than that."""
    usage: Usage
