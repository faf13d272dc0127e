"""OpenAI's chat completions and embeddings as bytes: rendering requests, parsing answers and events; sends nothing.

Parsing is strict about the types of what it reads and blind to the rest, which travels on in the raw bytes. Format:
OpenAI's API reference, "Chat", as of 2026-11, and what compatible servers (llama.cpp, vLLM, OpenRouter) add to it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from service.domain.estimates import estimated_usage
from service.domain.generation import (
    Choice,
    Completion,
    Delta,
    Dialect,
    FinishReason,
    GenerationRequest,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    Usage,
)
from service.errors import InvalidRequest
from service.providers.wire import SchemaError, check_counts, parts_other_than

FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
"""What servers say, in our words. What is not here is an error: "insufficient_system_resource" is no way to finish."""

TRANSLATED_BLOCKS = frozenset({"text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking"})
"""Types of Anthropic's blocks that are translated, or, being earlier thoughts, can be left out."""


class WirePromptDetails(msgspec.Struct, gc=False):
    """What ``prompt_tokens`` consists of."""

    cached_tokens: int | None = None


class WireCompletionDetails(msgspec.Struct, gc=False):
    """What ``completion_tokens`` consists of."""

    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct, gc=False):
    """Tokens; some servers leave out the second figure for embeddings."""

    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: WirePromptDetails | None = None
    completion_tokens_details: WireCompletionDetails | None = None


class WireFunction(msgspec.Struct, gc=False):
    """A function call, or a piece of one."""

    name: str | None = None
    arguments: str | None = None


class WireToolCall(msgspec.Struct, gc=False):
    """A tool call, or a piece of one. ``function`` is missing where a custom tool is called."""

    id: str | None = None
    index: int | None = None
    function: WireFunction | None = None


class WireMessage(msgspec.Struct, gc=False):
    """A message, or what an event adds to it."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[WireToolCall] | None = None


class WireDeltaChoice(msgspec.Struct, gc=False):
    """One choice in an event."""

    index: int = 0
    delta: WireMessage | None = None
    finish_reason: str | None = None


class WireEvent(msgspec.Struct, gc=False):
    """One event of a stream."""

    choices: list[WireDeltaChoice] | None = None
    usage: WireUsage | None = None
    id: str | None = None
    model: str | None = None
    error: Any = None


class WireChoice(msgspec.Struct, gc=False):
    """One whole choice."""

    message: WireMessage
    index: int = 0
    finish_reason: str | None = None


class WireCompletion(msgspec.Struct, gc=False):
    """A whole answer."""

    choices: list[WireChoice] | None = None
    usage: WireUsage | None = None
    id: str | None = None
    model: str | None = None
    error: Any = None


class WireVector(msgspec.Struct, gc=False):
    """One vector, as numbers or as Base64; not looked into."""

    embedding: msgspec.Raw


class WireEmbeddings(msgspec.Struct, gc=False):
    """The answer to a request for embeddings."""

    data: list[WireVector] | None = None
    usage: WireUsage | None = None
    error: Any = None


decode_event = msgspec.json.Decoder(WireEvent).decode
decode_completion = msgspec.json.Decoder(WireCompletion).decode
decode_embeddings = msgspec.json.Decoder(WireEmbeddings).decode


def request_fields(
    request: GenerationRequest, *, upstream_model: str, stream: bool, max_tokens_field: str
) -> dict[str, Any]:
    """Render a request. The caller's own body is taken where it is of this dialect, with every field it has."""
    if request.wire is not None and request.wire.dialect is Dialect.OPENAI:
        fields = {**request.wire.fields, "model": upstream_model}
        options = fields.pop("stream_options", None)
        fields.pop("stream", None)
    else:
        _refuse_untranslatable(request)
        fields = {"model": upstream_model, **_rendered(request, max_tokens_field)}
        options = None
    if stream:
        fields["stream"] = True
        fields["stream_options"] = {**(options if isinstance(options, Mapping) else {}), "include_usage": True}
    return fields


def _refuse_untranslatable(request: GenerationRequest) -> None:
    """Refuse what Anthropic's dialect asks for and this one cannot do, where leaving it out changes the answer."""
    if request.wire is None:
        return
    fields = request.wire.fields
    for name in ("mcp_servers", "container", "output_config", "output_format"):
        if fields.get(name):
            raise InvalidRequest.at(name, "the provider of this model does not support it", kind="unsupported")
    for number, tool in enumerate(fields.get("tools") or ()):
        kind = tool.get("type") or "custom"
        if kind != "custom":
            raise InvalidRequest.at(
                f"tools.{number}.type", f"the provider of this model has no tool {kind!r}", kind="unsupported"
            )
    for where, kind in parts_other_than(TRANSLATED_BLOCKS, fields.get("messages")):
        raise InvalidRequest.at(
            where, f"the provider of this model takes no block of type {kind!r}", kind="unsupported"
        )


def _rendered(request: GenerationRequest, max_tokens_field: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": [turn for message in request.messages for turn in _turns(message)]}
    if request.max_tokens is not None:
        fields[max_tokens_field] = request.max_tokens
    if request.temperature is not None:
        fields["temperature"] = request.temperature
    if request.top_p is not None:
        fields["top_p"] = request.top_p
    if request.stop:
        fields["stop"] = list(request.stop)
    if request.choices != 1:
        fields["n"] = request.choices
    if request.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    **({} if tool.description is None else {"description": tool.description}),
                    "parameters": tool.parameters,
                },
            }
            for tool in request.tools
        ]
        if request.tool_choice is not None:
            fields["tool_choice"] = _tool_choice(request.tool_choice)
        if request.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = request.parallel_tool_calls
    return fields


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.mode == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode


def _turns(message: Message) -> Iterable[dict[str, Any]]:
    """Render a message; results of tools are messages of their own here, and come before what else was said."""
    calls = []
    said: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolResult):
            yield {"role": "tool", "tool_call_id": part.call_id, "content": part.content}
        elif isinstance(part, ToolCall):
            calls.append(
                {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
            )
        else:
            said.append(part)
    if calls:
        yield {"role": "assistant", "content": _content(said) or None, "tool_calls": calls}
    elif said or not message.parts:
        yield {"role": message.role, "content": _content(said)}


def _content(parts: Iterable[Part]) -> str | list[dict[str, Any]]:
    parts = tuple(parts)
    if all(isinstance(part, TextPart) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, TextPart):
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart):
            url = part.url or f"data:{part.media_type or 'image/png'};base64,{part.data}"
            detail = {} if part.detail is None else {"detail": part.detail}
            content.append({"type": "image_url", "image_url": {"url": url, **detail}})
    return content


def finish_reason(word: str | None) -> FinishReason | None:
    """Translate a finish reason; None where there is none. Raises ``SchemaError`` for a word that is not known."""
    if not word:
        return None
    try:
        return FINISH_REASONS[word]
    except KeyError:
        raise SchemaError(f"the finish reason {word[:60]!r} is not known") from None


def delta_of(choice: WireDeltaChoice) -> Delta | None:
    """Translate what an event adds to one choice; None if that is nothing."""
    reason = finish_reason(choice.finish_reason)
    message = choice.delta
    if message is None:
        return None if reason is None else Delta(choice.index, finish_reason=reason)
    text = message.content
    if text and reason is None and message.tool_calls is None and not message.refusal:
        return Delta(choice.index, text, message.reasoning_content or message.reasoning or "")
    reasoning = message.reasoning_content or message.reasoning or ""
    refusal = message.refusal or ""
    calls = _call_deltas(message.tool_calls) if message.tool_calls else ()
    if text or reasoning or refusal or calls or reason is not None:
        return Delta(choice.index, text or "", reasoning, refusal, calls, reason)
    return None


def _call_deltas(calls: list[WireToolCall]) -> tuple[ToolCallDelta, ...]:
    return tuple(
        ToolCallDelta(
            position if call.index is None else call.index,
            call.id or None,
            call.function.name or None,
            call.function.arguments or "",
        )
        for position, call in enumerate(calls)
        if call.function is not None
    )


def checked_embeddings(raw: bytes) -> WireEmbeddings:
    """Parse vectors, or the error that came in their place. Raises ``ValueError``."""
    wire = decode_embeddings(raw)
    if wire.error is None:
        if not wire.data:
            raise SchemaError("there are no vectors")
        for vector in wire.data:
            if bytes(vector.embedding)[:1] not in {b"[", b'"'}:
                raise SchemaError("a vector is neither a list nor text")
    return wire


def usage_of(usage: WireUsage) -> Usage:
    """Translate token counts. Raises ``SchemaError`` for one that cannot be."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens or 0
    prompt_details, completion_details = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (prompt_details.cached_tokens if prompt_details else None) or 0
    reasoning = (completion_details.reasoning_tokens if completion_details else None) or 0
    check_counts(prompt, completion, cached, reasoning)
    return Usage(prompt, completion, cached_input_tokens=cached, reasoning_tokens=reasoning)


def completion_of(wire: WireCompletion, raw: bytes, *, upstream_model: str, input_bytes: int) -> Completion:
    """Translate a whole answer. Raises ``SchemaError``."""
    if not wire.choices:
        raise SchemaError("there are no choices")
    choices = tuple(_choice_of(choice) for choice in sorted(wire.choices, key=lambda choice: choice.index))
    usage = estimated_usage(input_bytes, choices) if wire.usage is None else usage_of(wire.usage)
    return Completion(
        model=wire.model or upstream_model,
        choices=choices,
        usage=usage,
        response_id=wire.id or "",
        dialect=Dialect.OPENAI,
        raw=raw,
    )


def _choice_of(choice: WireChoice) -> Choice:
    reason = finish_reason(choice.finish_reason)
    if reason is None:
        raise SchemaError(f"choice {choice.index} has no finish reason")
    message = choice.message
    return Choice(
        text=message.content or "",
        finish_reason=reason,
        tool_calls=tuple(
            ToolCall(call.id or "", call.function.name or "", call.function.arguments or "")
            for call in message.tool_calls or ()
            if call.function is not None
        ),
        reasoning=message.reasoning_content or message.reasoning or "",
        refusal=message.refusal or "",
    )
