from typing import Any

import orjson
import pytest

from service.api.anthropic.parse import generation_request
from service.api.anthropic.schemas import MessagesRequest
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
    body = {"model": "claude", "max_tokens": 9, "messages": HELLO, **fields}
    return generation_request(MessagesRequest.model_validate_json(orjson.dumps(body)), body)


def messages_of(*messages: dict[str, Any]) -> tuple[Message, ...]:
    return parsed(messages=list(messages)).messages


def test_fields_reach_the_domain_and_the_wire_keeps_those_that_have_no_place_there() -> None:
    asked = parsed(
        temperature=0.5,
        top_p=0.9,
        stop_sequences=["END"],
        metadata={"user_id": "u-1"},
        system="Be brief",
        top_k=5,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert asked.messages == (Message.of_text("system", "Be brief"), Message.of_text("user", "Hello"))
    assert (asked.max_tokens, asked.temperature, asked.top_p) == (9, 0.5, 0.9)
    assert (asked.stop, asked.user_id) == (("END",), "u-1")
    assert asked.wire is not None
    assert asked.wire.dialect is Dialect.ANTHROPIC
    assert asked.wire.fields["top_k"] == 5


def test_system_may_be_blocks() -> None:
    blocks = [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "B"}]
    assert parsed(system=blocks).messages[0] == Message("system", (TextPart("A"), TextPart("B")))


def test_images_come_by_address_and_by_value() -> None:
    by_value = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    by_address = {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}
    [message] = messages_of({"role": "user", "content": [by_value, by_address, {"type": "text", "text": "Which?"}]})
    assert message.parts == (
        ImagePart(media_type="image/png", data="AAAA"),
        ImagePart(url="https://example.org/cat.png"),
        TextPart("Which?"),
    )


def test_tool_results_become_messages_of_their_own_in_their_order() -> None:
    called = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2"},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": [{"type": "text", "text": "3"}], "is_error": True},
        {"type": "tool_result", "tool_use_id": "toolu_3"},
        {"type": "text", "text": "Go on"},
    ]
    assert messages_of({"role": "assistant", "content": [called]}, {"role": "user", "content": results}) == (
        Message("assistant", (ToolCall("toolu_1", "add", '{"a":1}'),)),
        Message("tool", (ToolResult("toolu_1", "2"),)),
        Message("tool", (ToolResult("toolu_2", "3", is_error=True),)),
        Message("tool", (ToolResult("toolu_3", ""),)),
        Message.of_text("user", "Go on"),
    )


def test_thinking_of_earlier_turns_stays_on_the_wire_alone() -> None:
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    [message] = messages_of({"role": "assistant", "content": [thinking, {"type": "text", "text": "Yes"}]})
    assert message == Message.of_text("assistant", "Yes")


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, ToolChoice("auto"), None),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
        ({"type": "none"}, ToolChoice("none"), None),
        ({"type": "tool", "name": "add", "disable_parallel_tool_use": False}, ToolChoice("named", "add"), True),
    ],
)
def test_tool_choice(choice: object, expected: ToolChoice, parallel: bool | None) -> None:  # noqa: FBT001
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tools = [
        {"name": "add", "description": "Adds", "input_schema": schema},
        {"type": "web_search_20250305", "name": "web_search"},
    ]
    asked = parsed(tools=tools, tool_choice=choice)
    assert asked.tools == (Tool("add", "Adds", schema),)
    assert asked.tool_choice == expected
    assert asked.parallel_tool_calls is parallel


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"type": "text"}, "messages.0.content.0.text"),
        ({"type": "image"}, "messages.0.content.0.source"),
        ({"type": "image", "source": {"type": "url"}}, "messages.0.content.0.source.url"),
        ({"type": "image", "source": {"type": "base64", "data": "A"}}, "messages.0.content.0.source.media_type"),
        ({"type": "image", "source": {"type": "base64", "media_type": "x"}}, "messages.0.content.0.source.data"),
        ({"type": "tool_use", "name": "add"}, "messages.0.content.0.id"),
        ({"type": "tool_use", "id": "x"}, "messages.0.content.0.name"),
        ({"type": "tool_result"}, "messages.0.content.0.tool_use_id"),
        ({"type": "tool_result", "tool_use_id": "x", "content": 5}, "messages.0.content.0.content"),
        ({"type": "tool_result", "tool_use_id": "x", "content": [5]}, "messages.0.content.0.content.0.type"),
        (
            {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text"}]},
            "messages.0.content.0.content.0.text",
        ),
    ],
)
def test_what_a_block_lacks_is_named(block: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages_of({"role": "user", "content": [block]})
    assert caught.value.fields[0].field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tools": [{"name": "add"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ],
)
def test_what_a_tool_lacks_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)
    assert caught.value.fields[0].field == field


def test_search_result_with_its_source_in_words_goes_to_providers_of_the_same_dialect() -> None:
    found = {"type": "search_result", "source": "https://x/y", "title": "t", "content": [{"type": "text", "text": "z"}]}
    asked = parsed(messages=[{"role": "user", "content": [found, {"type": "text", "text": "Which?"}]}])
    assert asked.messages == (Message.of_text("user", "Which?"),)
    assert asked.wire is not None
    assert asked.wire.fields["messages"][0]["content"][0] == found


def test_image_with_a_source_in_words_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages_of({"role": "user", "content": [{"type": "image", "source": "https://x/y.png"}]})
    assert [fault.field for fault in caught.value.fields] == ["messages.0.content.0.source"]
