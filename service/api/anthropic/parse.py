"""From an Anthropic body to what the engine is asked; checks what the schema alone cannot say."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from service.api.anthropic.schemas import Block, MessageBody, MessagesRequest, Source, ToolBody, ToolChoiceBody
from service.domain.generation import (
    Dialect,
    GenerationRequest,
    ImagePart,
    Message,
    Part,
    Role,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    WireBody,
)
from service.errors import InvalidRequest


def generation_request(body: MessagesRequest, fields: Mapping[str, Any]) -> GenerationRequest:
    """Make the request of a message; ``fields`` is the same body as it was parsed from JSON.

    Raise ``InvalidRequest`` naming the field. What the domain has no word for stays in ``wire`` alone.
    """
    choice = body.tool_choice
    one_at_a_time = choice.disable_parallel_tool_use if choice else None
    return GenerationRequest(
        model=body.model,
        messages=tuple(_messages(body)),
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stop=tuple(body.stop_sequences or ()),
        tools=tuple(_tools(body.tools or [])),
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=None if one_at_a_time is None else not one_at_a_time,
        user_id=body.metadata.user_id if body.metadata else None,
        wire=WireBody(Dialect.ANTHROPIC, fields),
    )


def _messages(body: MessagesRequest) -> Iterator[Message]:
    if body.system:
        yield Message("system", tuple(_parts(body.system, "system")))
    for index, message in enumerate(body.messages):
        yield from _turn(message, f"messages.{index}.content")


def _turn(message: MessageBody, where: str) -> Iterator[Message]:
    """Split a turn at its tool results, which are messages of their own everywhere else."""
    role: Role = message.role
    parts: list[Part] = []
    split = False
    for part in _parts(message.content, where):
        if isinstance(part, ToolResult):
            if parts:
                yield Message(role, tuple(parts))
                parts = []
            yield Message("tool", (part,))
            split = True
        else:
            parts.append(part)
    if parts or not split:
        yield Message(role, tuple(parts))


def _parts(blocks: list[Block], where: str) -> Iterator[Part]:
    for index, block in enumerate(blocks):
        yield from _part(block, f"{where}.{index}")


def _part(block: Block, where: str) -> Iterator[Part]:
    match block.type:
        case "text":
            yield TextPart(_needed(block.text, block.type, f"{where}.text"))
        case "image":
            if block.source is None:
                raise _missing(block.type, f"{where}.source")
            yield from _image(block.source, f"{where}.source")
        case "tool_use":
            yield ToolCall(
                id=_needed(block.id, block.type, f"{where}.id"),
                name=_needed(block.name, block.type, f"{where}.name"),
                arguments=orjson.dumps(block.input or {}).decode(),
            )
        case "tool_result":
            call_id = _needed(block.tool_use_id, block.type, f"{where}.tool_use_id")
            yield ToolResult(call_id, _result_text(block.content, f"{where}.content"), is_error=bool(block.is_error))
        case _:  # thinking, documents, server tools and what comes after us: for providers of the same dialect
            return


def _image(source: Source, where: str) -> Iterator[ImagePart]:
    match source.type:
        case "base64":
            yield ImagePart(
                media_type=_needed(source.media_type, source.type, f"{where}.media_type"),
                data=_needed(source.data, source.type, f"{where}.data"),
            )
        case "url":
            yield ImagePart(url=_needed(source.url, source.type, f"{where}.url"))
        case _:  # the vendor's own files: for providers of the same dialect
            return


def _result_text(content: Any, where: str) -> str:
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "".join(_result_texts(content, where))
        case _:
            raise InvalidRequest.at(where, "must be a string or a list of blocks")


def _result_texts(blocks: list[Any], where: str) -> Iterator[str]:
    for index, block in enumerate(blocks):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequest.at(f"{where}.{index}.type", "must be the type of the block", kind="missing")
        if block["type"] == "text":
            text = block.get("text")
            if not isinstance(text, str):
                raise _missing("text", f"{where}.{index}.text")
            yield text


def _needed(value: str | None, kind: str, where: str) -> str:
    if value is None:
        raise _missing(kind, where)
    return value


def _missing(kind: str, where: str) -> InvalidRequest:
    return InvalidRequest.at(where, f"type {kind!r} needs it", kind="missing")


def _tools(tools: list[ToolBody]) -> Iterator[Tool]:
    for index, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            continue  # the vendor's own tools: for providers of the same dialect
        if not tool.name:
            raise InvalidRequest.at(f"tools.{index}.name", "a custom tool needs it", kind="missing")
        if tool.input_schema is None:
            raise InvalidRequest.at(f"tools.{index}.input_schema", "a custom tool needs it", kind="missing")
        yield Tool(tool.name, tool.description, tool.input_schema)


def _tool_choice(choice: ToolChoiceBody | None) -> ToolChoice | None:
    if choice is None:
        return None
    match choice.type:
        case "auto":
            return ToolChoice("auto")
        case "none":
            return ToolChoice("none")
        case "any":
            return ToolChoice("required")
        case "tool":
            if choice.name is None:
                raise InvalidRequest.at("tool_choice.name", "a choice of type 'tool' needs it", kind="missing")
            return ToolChoice("named", choice.name)
