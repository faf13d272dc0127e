from typing import Any

import orjson
import pytest

from service.api.openai.parse import generation_request
from service.api.openai.schemas import ChatCompletionRequest
from service.domain.generation import (
    Dialect,
    GenerationRequest,
    ImagePart,
    Message,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from service.errors import InvalidRequest

HELLO = [{"role": "user", "content": "Hello"}]


def parsed(**fields: Any) -> GenerationRequest:
    body = {"model": "gpt-4o", "messages": HELLO, **fields}
    return generation_request(ChatCompletionRequest.model_validate_json(orjson.dumps(body)), body)


def messages_of(*messages: dict[str, Any]) -> tuple[Message, ...]:
    return parsed(messages=list(messages)).messages


def test_least_body_leaves_everything_to_the_provider() -> None:
    asked = parsed()
    assert asked.messages == (Message.of_text("user", "Hello"),)
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.tool_choice) == (None, None, None, None)
    assert asked.choices == 1
    assert not asked.include_usage


def test_fields_reach_the_domain_and_the_wire_keeps_those_that_have_no_place_there() -> None:
    asked = parsed(
        max_completion_tokens=7,
        max_tokens=9,
        temperature=1,
        top_p=0.5,
        n=3,
        stop="END",
        user="u-1",
        parallel_tool_calls=False,
        stream=True,
        stream_options={"include_usage": True},
        seed=42,
        vendor_extension={"deep": [1, None]},
    )
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.choices) == (7, 1, 0.5, 3)
    assert (asked.stop, asked.user_id, asked.parallel_tool_calls, asked.include_usage) == (("END",), "u-1", False, True)
    assert asked.wire is not None
    assert asked.wire.dialect is Dialect.OPENAI
    assert asked.wire.fields["seed"] == 42
    assert asked.wire.fields["vendor_extension"] == {"deep": [1, None]}


def test_developer_is_a_system_message() -> None:
    assert messages_of({"role": "developer", "content": "Be brief"}) == (Message.of_text("system", "Be brief"),)


def test_images_come_by_address_and_by_value() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png", "detail": "low"}}
    inline = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    [message] = messages_of({"role": "user", "content": [{"type": "text", "text": "Which?"}, image, inline]})
    assert message.parts == (
        TextPart("Which?"),
        ImagePart(url="https://example.org/cat.png", detail="low"),
        ImagePart(media_type="image/png", data="AAAA"),
    )


def test_a_tool_call_and_its_result_keep_their_id() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    assert messages_of(
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "2"}]},
    ) == (
        Message("assistant", (ToolCall("call_1", "add", '{"a": 1}'),)),
        Message("tool", (ToolResult("call_1", "2"),)),
    )


def test_the_form_before_tool_calls_is_understood() -> None:
    called, result = messages_of(
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}},
        {"role": "function", "name": "add", "content": "2"},
    )
    [call], [answer] = called.parts, result.parts
    assert isinstance(call, ToolCall)
    assert isinstance(answer, ToolResult)
    assert call.id == answer.call_id


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "add"}}, ToolChoice("named", "add")),
    ],
)
def test_tool_choice(choice: object, expected: ToolChoice) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": schema}}
    asked = parsed(tools=[tool], tool_choice=choice)
    assert asked.tools == (Tool("add", "Adds", schema),)
    assert asked.tool_choice == expected


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user"}, "messages.0.content"),
        ({"role": "assistant"}, "messages.0.content"),
        ({"role": "tool", "content": "2"}, "messages.0.tool_call_id"),
        ({"role": "function", "content": "2"}, "messages.0.name"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0.image_url"),
        (
            {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function"}]},
            "messages.0.tool_calls.0.function",
        ),
    ],
)
def test_what_a_message_lacks_is_named(message: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages_of(message)
    assert caught.value.fields[0].field == field
