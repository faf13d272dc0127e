"""Anthropic's Messages API as bytes: rendering requests, parsing answers and events; sends nothing.

Parsing is strict about the types of what it reads and blind to the rest, which travels on in the raw bytes. Format:
Anthropic's API reference, "Messages" and "Streaming messages", as of 2026-11.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from service.domain.estimates import estimated_usage
from service.domain.generation import (
    Choice,
    Completion,
    Dialect,
    FinishReason,
    GenerationRequest,
    ImagePart,
    Part,
    TextPart,
    ToolCall,
    Usage,
)
from service.errors import InvalidRequest
from service.providers.wire import SchemaError, check_counts, parts_other_than

DEFAULT_MAX_TOKENS = 4096
"""Sent where the caller gave none: the API insists on one, and the oldest models take no more."""
MAX_TEMPERATURE = 1.0
TRANSLATED_PARTS = frozenset({"text", "image_url", "refusal"})
"""Types of OpenAI's parts that this API has too; without the others the model would answer another question."""

STOP_REASONS: Mapping[str, FinishReason] = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    # Tools that the vendor runs: the turn is over, and the caller may send it back to have it continued.
    "pause_turn": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}
"""What the API says, in our words."""


class WireUsage(msgspec.Struct, gc=False):
    """Tokens so far. ``input_tokens`` leaves out what was read from the cache or written to it."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class WireBlock(msgspec.Struct, gc=False):
    """A block of content, or its start."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()


class WireMessage(msgspec.Struct, gc=False):
    """A whole answer, or the head of one; ``type`` is ``error`` where it is none."""

    type: str = "message"
    id: str | None = None
    model: str | None = None
    content: list[WireBlock] | None = None
    stop_reason: str | None = None
    usage: WireUsage | None = None


class WireDelta(msgspec.Struct, gc=False):
    """What an event adds to a block, or to the message."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class WireEvent(msgspec.Struct, gc=False):
    """One event of a stream."""

    type: str
    index: int = 0
    delta: WireDelta | None = None
    content_block: WireBlock | None = None
    message: WireMessage | None = None
    usage: WireUsage | None = None


decode_event = msgspec.json.Decoder(WireEvent).decode
decode_message = msgspec.json.Decoder(WireMessage).decode


def request_fields(request: GenerationRequest, *, upstream_model: str, stream: bool) -> dict[str, Any]:
    """Render a request. The caller's own body is taken where it is of this dialect, with every field it has.

    Raises ``InvalidRequest``, naming the field, for what the API cannot do and leaving out would change the answer.
    """
    if request.wire is not None and request.wire.dialect is Dialect.ANTHROPIC:
        fields = {**request.wire.fields, "model": upstream_model}
        fields.pop("stream", None)
    else:
        _refuse_untranslatable(request)
        fields = {"model": upstream_model, **_rendered(request)}
    if stream:
        fields["stream"] = True
    return fields


def _refuse_untranslatable(request: GenerationRequest) -> None:
    if request.choices != 1:
        raise _unsupported("n", "gives one answer only")
    if request.temperature is not None and request.temperature > MAX_TEMPERATURE:
        raise InvalidRequest.at(
            "temperature", "must be at most 1 for the provider of this model", kind="less_than_equal"
        )
    fields: Mapping[str, Any] = request.wire.fields if request.wire is not None else {}
    response_format = fields.get("response_format")
    if isinstance(response_format, Mapping) and response_format.get("type", "text") != "text":
        raise _unsupported("response_format", "has no JSON mode in this API")
    for name in ("logprobs", "top_logprobs", "logit_bias", "audio", "functions", "web_search_options"):
        if fields.get(name):
            raise _unsupported(name, "does not support it")
    if "audio" in (fields.get("modalities") or ()):
        raise _unsupported("modalities", "gives text only")
    for number, tool in enumerate(fields.get("tools") or ()):
        if tool.get("type", "function") != "function":
            raise _unsupported(f"tools.{number}.type", "takes functions only")
    for where, kind in parts_other_than(TRANSLATED_PARTS, fields.get("messages")):
        raise _unsupported(where, f"takes no part of type {kind!r}")


def _unsupported(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest.at(field, f"the provider of this model {reason}", kind="unsupported")


def _rendered(request: GenerationRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "max_tokens": DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
        "messages": _turns(request),
    }
    system = [message.text for message in request.messages if message.role == "system"]
    if any(system):
        fields["system"] = "\n\n".join(text for text in system if text)
    if request.temperature is not None:
        fields["temperature"] = request.temperature
    if request.top_p is not None:
        fields["top_p"] = request.top_p
    if request.stop:
        fields["stop_sequences"] = list(request.stop)
    if request.tools:
        fields["tools"] = [
            {
                "name": tool.name,
                **({} if tool.description is None else {"description": tool.description}),
                "input_schema": tool.parameters or {"type": "object"},
            }
            for tool in request.tools
        ]
        if (choice := _tool_choice(request)) is not None:
            fields["tool_choice"] = choice
    return fields


def _tool_choice(request: GenerationRequest) -> dict[str, Any] | None:
    asked = request.tool_choice
    one_at_a_time = request.parallel_tool_calls is False
    if asked is None and not one_at_a_time:
        return None
    mode = "auto" if asked is None else asked.mode
    choice: dict[str, Any] = {"type": {"required": "any", "named": "tool"}.get(mode, mode)}
    if asked is not None and mode == "named":
        choice["name"] = asked.name
    if one_at_a_time and mode != "none":
        choice["disable_parallel_tool_use"] = True
    return choice


def _turns(request: GenerationRequest) -> list[dict[str, Any]]:
    """Render the conversation; neighbours of the same role become one turn, since the API wants them to alternate."""
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(request.messages):
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message.parts, f"messages.{number}")
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        # Results of tools must stand first in their turn.
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    return turns


def _blocks(parts: Iterable[Part], where: str) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, TextPart):
            if part.text:  # the API refuses empty text
                blocks.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart):
            blocks.append({"type": "image", "source": _image_source(part)})
        elif isinstance(part, ToolCall):
            blocks.append(
                {"type": "tool_use", "id": part.id, "name": part.name, "input": _arguments(part.arguments, where)}
            )
        else:
            error = {"is_error": True} if part.is_error else {}
            blocks.append({"type": "tool_result", "tool_use_id": part.call_id, "content": part.content, **error})
    return blocks


def _image_source(part: ImagePart) -> dict[str, Any]:
    if part.url is not None:
        return {"type": "url", "url": part.url}
    return {"type": "base64", "media_type": part.media_type or "image/png", "data": part.data}


def _arguments(text: str, where: str) -> orjson.Fragment:
    """Return the arguments as they came, which also passes nesting that the encoder would refuse (at 254 levels)."""
    text = text or "{}"
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest.at(f"{where}.tool_calls", "the arguments are not JSON") from exc
    if not isinstance(value, dict):
        raise InvalidRequest.at(f"{where}.tool_calls", "the arguments are not a JSON object")
    return orjson.Fragment(text)


def finish_reason(word: str | None) -> FinishReason | None:
    """Translate a stop reason; None where there is none. Raises ``SchemaError`` for a word that is not known."""
    if not word:
        return None
    try:
        return STOP_REASONS[word]
    except KeyError:
        raise SchemaError(f"the stop reason {word[:60]!r} is not known") from None


def usage_of(first: WireUsage | None, last: WireUsage | None) -> Usage | None:
    """Combine the figures at a stream's head with the final ones, which may leave some out.

    None if either direction has no figure at all. Raises ``SchemaError`` for one that cannot be.
    """

    def latest(name: str) -> int | None:
        for usage in (last, first):
            figure: int | None = getattr(usage, name, None)
            if figure is not None:
                return figure
        return None

    fresh, output = latest("input_tokens"), latest("output_tokens")
    if fresh is None or output is None:
        return None
    read, written = latest("cache_read_input_tokens") or 0, latest("cache_creation_input_tokens") or 0
    check_counts(fresh, output, read, written)
    return Usage(fresh + read + written, output, cached_input_tokens=read, cache_write_tokens=written)


def completion_of(wire: WireMessage, raw: bytes, *, upstream_model: str, input_bytes: int) -> Completion:
    """Translate a whole answer. Raises ``SchemaError``."""
    if wire.content is None:
        raise SchemaError("there is no content")
    reason = finish_reason(wire.stop_reason)
    if reason is None:
        raise SchemaError("there is no stop reason")
    choice = Choice(
        text="".join(block.text or "" for block in wire.content if block.type == "text"),
        finish_reason=reason,
        tool_calls=tuple(
            ToolCall(block.id or "", block.name or "", arguments_of(block) or "{}")
            for block in wire.content
            if block.type == "tool_use"
        ),
        reasoning="".join(block.thinking or "" for block in wire.content if block.type == "thinking"),
    )
    return Completion(
        model=wire.model or upstream_model,
        choices=(choice,),
        usage=usage_of(wire.usage, None) or estimated_usage(input_bytes, (choice,)),
        response_id=wire.id or "",
        dialect=Dialect.ANTHROPIC,
        raw=raw,
    )


def arguments_of(block: WireBlock) -> str:
    """Return a tool call's input as text; empty where it is an empty object, as at the start of a streamed one."""
    text = bytes(block.input).decode()
    return "" if text.replace(" ", "") in {"{}", "null"} else text
