"""From an OpenAI body to what the engine is asked; checks what the schema alone cannot say."""

from collections.abc import Iterator, Mapping
from typing import Any

from service.api.openai.schemas import (
    ChatCompletionRequest,
    ChatMessage,
    ContentPart,
    EmbeddingsRequest,
    ToolBody,
    ToolCallBody,
    ToolChoiceBody,
)
from service.domain.generation import (
    Dialect,
    EmbeddingRequest,
    GenerationRequest,
    ImagePart,
    Message,
    Part,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    WireBody,
)
from service.errors import InvalidRequest


def generation_request(body: ChatCompletionRequest, fields: Mapping[str, Any]) -> GenerationRequest:
    """Make the request of a chat completion; ``fields`` is the same body as it was parsed from JSON.

    Raise ``InvalidRequest`` naming the field. What the domain has no word for stays in ``wire`` alone.
    """
    return GenerationRequest(
        model=body.model,
        messages=tuple(_message(message, f"messages.{index}") for index, message in enumerate(body.messages)),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stop=tuple(body.stop or ()),
        tools=tuple(_tools(body.tools or [])),
        tool_choice=_tool_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        choices=body.n or 1,
        user_id=body.safety_identifier or body.user,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        wire=WireBody(Dialect.OPENAI, fields),
    )


def embedding_request(body: EmbeddingsRequest, fields: Mapping[str, Any]) -> EmbeddingRequest:
    """Make the request of an embeddings call; the body goes on as it came."""
    return EmbeddingRequest(model=body.model, fields=fields, user_id=body.user)


def _message(message: ChatMessage, where: str) -> Message:
    match message.role:
        case "system" | "developer":
            return Message("system", tuple(_needed_parts(message, where)))
        case "user":
            return Message("user", tuple(_needed_parts(message, where)))
        case "assistant":
            return Message("assistant", tuple(_assistant_parts(message, where)))
        case "tool":
            if message.tool_call_id is None:
                raise InvalidRequest.at(f"{where}.tool_call_id", "a tool's message needs it", kind="missing")
            return Message("tool", (ToolResult(message.tool_call_id, _result_text(message, where)),))
        case "function":
            if message.name is None:
                raise InvalidRequest.at(f"{where}.name", "a function's message needs it", kind="missing")
            return Message("tool", (ToolResult(_legacy_id(message.name), _result_text(message, where)),))


def _needed_parts(message: ChatMessage, where: str) -> Iterator[Part]:
    if message.content is None:
        raise InvalidRequest.at(f"{where}.content", f"a message of {message.role!r} needs it", kind="missing")
    return _parts(message.content, where)


def _result_text(message: ChatMessage, where: str) -> str:
    return "".join(part.text for part in _needed_parts(message, where) if isinstance(part, TextPart))


def _assistant_parts(message: ChatMessage, where: str) -> Iterator[Part]:
    if message.content is None and not message.tool_calls and not message.function_call and message.refusal is None:
        raise InvalidRequest.at(f"{where}.content", "is needed where no tool is called", kind="missing")
    yield from _parts(message.content or [], where)
    if message.refusal is not None:
        yield TextPart(message.refusal)
    for index, call in enumerate(message.tool_calls or []):
        yield from _tool_call(call, f"{where}.tool_calls.{index}")
    if message.function_call is not None:
        name = message.function_call.name
        yield ToolCall(_legacy_id(name), name, message.function_call.arguments)


def _legacy_id(function: str) -> str:
    """Make the id that ties a call to its result in the form before tool calls, where the name alone did."""
    return f"call_{function}"


def _parts(parts: list[ContentPart], where: str) -> Iterator[Part]:
    for index, part in enumerate(parts):
        yield from _part(part, f"{where}.content.{index}")


def _part(part: ContentPart, where: str) -> Iterator[Part]:
    match part.type:
        case "text":
            if part.text is None:
                raise InvalidRequest.at(f"{where}.text", "a part of type 'text' needs it", kind="missing")
            yield TextPart(part.text)
        case "refusal":
            if part.refusal is None:
                raise InvalidRequest.at(f"{where}.refusal", "a part of type 'refusal' needs it", kind="missing")
            yield TextPart(part.refusal)
        case "image_url":
            if part.image_url is None:
                raise InvalidRequest.at(f"{where}.image_url", "a part of type 'image_url' needs it", kind="missing")
            yield _image(part.image_url.url, part.image_url.detail)
        case _:  # audio, files and what comes after us: for providers of the same dialect
            return


def _image(url: str, detail: str | None) -> ImagePart:
    header, comma, data = url.partition(",")
    if comma and header.startswith("data:") and header.endswith(";base64"):
        media_type = header.removeprefix("data:").partition(";")[0]
        return ImagePart(media_type=media_type, data=data, detail=detail)
    return ImagePart(url=url, detail=detail)


def _tool_call(call: ToolCallBody, where: str) -> Iterator[ToolCall]:
    if call.function is not None:
        yield ToolCall(call.id, call.function.name, call.function.arguments)
    elif call.type == "function":
        raise InvalidRequest.at(f"{where}.function", "a call of type 'function' needs it", kind="missing")


def _tools(tools: list[ToolBody]) -> Iterator[Tool]:
    for index, tool in enumerate(tools):
        if tool.function is not None:
            function = tool.function
            yield Tool(function.name, function.description, function.parameters or {"type": "object", "properties": {}})
        elif tool.type == "function":
            raise InvalidRequest.at(f"tools.{index}.function", "a tool of type 'function' needs it", kind="missing")


def _tool_choice(choice: ToolChoiceBody | None) -> ToolChoice | None:
    if choice is None:
        return None
    match choice.type:
        case "auto" | "none" | "required":
            return ToolChoice(choice.type)
        case "function":
            if choice.function is None:
                raise InvalidRequest.at("tool_choice.function", "a choice of type 'function' needs it", kind="missing")
            return ToolChoice("named", choice.function.name)
        case _:  # allowed_tools, custom: for providers of the same dialect
            return None
