"""Anthropic's dialect as bytes: what is rendered, what is parsed, and that any split of a stream says the same."""

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.generation import (
    Chunk,
    Delta,
    Dialect,
    FinishReason,
    GenerationRequest,
    ImagePart,
    Message,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    Usage,
    WireBody,
)
from service.errors import InvalidRequest, UpstreamInvalid
from service.providers.anthropic import AnthropicDecoder
from service.providers.anthropic_wire import completion_of, decode_message, request_fields
from service.providers.wire import SchemaError
from tests.support.wire import ANTHROPIC_USAGE, anthropic_event, anthropic_stream, anthropic_text

HEAD = {"type": "message", "id": "r", "model": "m", "content": []}
START = anthropic_event("message_start", message={**HEAD, "usage": {"input_tokens": 5, "output_tokens": 1}})
TOOL = {"type": "tool_use", "id": "t", "name": "add", "input": {}}


def rendered(*messages: Message, **more: Any) -> dict[str, Any]:
    request = GenerationRequest(model="public", messages=messages, **more)
    return request_fields(request, upstream_model="up", stream=False)


def feed(made: AnthropicDecoder, *pieces: bytes) -> list[Chunk]:
    return [chunk for piece in pieces if (chunk := made.feed(piece)) is not None]


def decoder(*, begun: bool = True) -> AnthropicDecoder:
    made = AnthropicDecoder(provider="fake")
    if begun:
        made.feed(START)
    return made


def deltas_of(*events: bytes) -> list[Delta]:
    made = decoder()
    deltas = [delta for chunk in feed(made, *events) for delta in chunk.deltas]
    if made.failure is not None:
        raise made.failure
    return deltas


def test_system_is_taken_out_and_neighbours_of_a_role_are_merged() -> None:
    fields = rendered(
        Message.of_text("system", "Be brief"),
        Message.of_text("user", "One"),
        Message.of_text("user", "Two"),
        Message.of_text("system", "Be kind"),
        Message.of_text("assistant", "Three"),
        stop=("END",),
        temperature=1.0,
        top_p=0.5,
    )
    assert fields == {
        "model": "up",
        "max_tokens": 4096,
        "system": "Be brief\n\nBe kind",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Three"}]},
        ],
        "temperature": 1.0,
        "top_p": 0.5,
        "stop_sequences": ["END"],
    }


def test_tools_images_and_results_are_rendered_with_the_results_first() -> None:
    fields = rendered(
        Message("assistant", (TextPart(""), ToolCall("c1", "add", '{"a":1}'))),
        Message(
            "user", (TextPart("see"), ImagePart(url="https://x/y.png"), ImagePart(media_type="image/gif", data="R0"))
        ),
        Message("tool", (ToolResult("c1", "2", is_error=True),)),
        tools=(Tool("add", "Adds", {"type": "object"}),),
        tool_choice=ToolChoice("required"),
        parallel_tool_calls=False,
        max_tokens=9,
    )
    assert fields["max_tokens"] == 9
    assert orjson.loads(orjson.dumps(fields["messages"])) == [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "2", "is_error": True},
                {"type": "text", "text": "see"},
                {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0"}},
            ],
        },
    ]
    assert fields["tools"] == [{"name": "add", "description": "Adds", "input_schema": {"type": "object"}}]
    assert fields["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}


def test_own_body_goes_up_as_it_is_but_for_model_and_stream() -> None:
    body = {"model": "public", "messages": [], "stream": True, "thinking": {"type": "enabled"}, "x_new": 1}
    request = GenerationRequest(model="public", messages=(), wire=WireBody(Dialect.ANTHROPIC, body))
    assert request_fields(request, upstream_model="up", stream=False) == {
        "model": "up",
        "messages": [],
        "thinking": {"type": "enabled"},
        "x_new": 1,
    }
    assert request_fields(request, upstream_model="up", stream=True)["stream"] is True


@pytest.mark.parametrize(
    ("more", "body", "field"),
    [
        ({"choices": 2}, {}, "n"),
        ({"temperature": 1.5}, {}, "temperature"),
        ({}, {"response_format": {"type": "json_object"}}, "response_format"),
        ({}, {"logprobs": True}, "logprobs"),
        ({}, {"logit_bias": {"1": 2}}, "logit_bias"),
        ({}, {"modalities": ["text", "audio"]}, "modalities"),
        ({}, {"tools": [{"type": "custom"}]}, "tools.0.type"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_its_field(
    more: dict[str, Any], body: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered(Message.of_text("user", "x"), wire=WireBody(Dialect.OPENAI, body), **more)
    assert [error.field for error in caught.value.fields] == [field]


def test_what_changes_nothing_is_left_out_silently() -> None:
    body = {"response_format": {"type": "text"}, "logprobs": False, "seed": 1, "store": True, "modalities": ["text"]}
    assert set(rendered(Message.of_text("user", "x"), wire=WireBody(Dialect.OPENAI, body))) == {
        "model",
        "max_tokens",
        "messages",
    }


def test_arguments_that_are_no_json_object_are_the_callers_mistake() -> None:
    for arguments in ("{", "[]"):
        with pytest.raises(InvalidRequest) as caught:
            rendered(Message.of_text("user", "x"), Message("assistant", (ToolCall("c", "f", arguments),)))
        assert [error.field for error in caught.value.fields] == ["messages.1.tool_calls"]


def test_tool_calls_are_counted_apart_from_other_blocks() -> None:
    tool = {"type": "tool_use", "id": "t2", "name": "add", "input": {}}
    assert deltas_of(
        anthropic_event("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""}),
        anthropic_event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"}),
        anthropic_event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "x"}),
        anthropic_event("content_block_start", index=1, content_block={**tool, "id": "t1"}),
        anthropic_event("content_block_start", index=2, content_block=tool),
        anthropic_event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"a"'}),
        anthropic_event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 9}),
    ) == [
        Delta(reasoning="hm"),
        Delta(tool_calls=(ToolCallDelta(0, "t1", "add"),)),
        Delta(tool_calls=(ToolCallDelta(1, "t2", "add"),)),
        Delta(tool_calls=(ToolCallDelta(1, arguments='{"a"'),)),
        Delta(finish_reason=FinishReason.TOOL_CALLS),
    ]


def test_tools_that_the_vendor_runs_are_no_calls_for_the_caller() -> None:
    block = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    delta = {"type": "input_json_delta", "partial_json": "{}"}
    events = [
        anthropic_event("content_block_start", index=0, content_block=block),
        anthropic_event("content_block_delta", index=0, delta=delta),
    ]
    assert deltas_of(*events) == []
    assert b"".join(chunk.raw for chunk in feed(decoder(), *events)) == b"".join(events)


def test_usage_counts_the_cached_tokens_among_the_input() -> None:
    first = {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 5, "output_tokens": 1}
    chunks = feed(
        decoder(begun=False),
        anthropic_event("message_start", message={**HEAD, "usage": first}),
        anthropic_event("message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 8}),
    )
    assert chunks[-1].usage == Usage(12, 8, cached_input_tokens=4, cache_write_tokens=5)
    assert chunks[-1].finish_reason is FinishReason.LENGTH


def test_unknown_events_are_handed_on_and_pings_are_not() -> None:
    unknown = anthropic_event("something_new", x=1)
    assert [chunk.raw for chunk in feed(decoder(), anthropic_event("ping"), unknown)] == [unknown]


@pytest.mark.parametrize(
    "event",
    [
        anthropic_event("content_block_delta", index=0),
        anthropic_event("content_block_start", index=0),
        anthropic_event("message_start"),
        anthropic_event("message_start", message=HEAD),
        anthropic_event("message_start", message={**HEAD, "usage": {"output_tokens": 1}}),
        anthropic_event("message_start", message={**HEAD, "usage": {"input_tokens": 5}}),
        anthropic_event("message_delta", delta={"stop_reason": "new_reason"}, usage={"output_tokens": 3}),
        anthropic_event("message_delta", delta={"stop_reason": "end_turn"}),
        anthropic_event("message_delta", delta={"stop_reason": "end_turn"}, usage={}),
    ],
)
def test_events_that_break_the_schema_are_errors(event: bytes) -> None:
    with pytest.raises(UpstreamInvalid, match="breaks its schema"):
        deltas_of(event)


def test_stream_without_its_head_breaks_the_schema() -> None:
    start = anthropic_event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    end = anthropic_event("message_delta", delta={"stop_reason": "end_turn"}, usage=ANTHROPIC_USAGE)
    for event in (start, anthropic_text("a"), end, anthropic_event("something_new", x=1)):
        made = decoder(begun=False)
        assert feed(made, anthropic_event("ping"), event) == []
        assert made.failure is not None
        assert "breaks its schema" in str(made.failure)
        assert not made.finished


def test_head_tells_what_was_read_and_the_end_what_it_took() -> None:
    usage = {"input_tokens": 5, "output_tokens": 1, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 3}
    start = anthropic_event("message_start", message={**HEAD, "usage": usage})
    end = anthropic_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})
    head, text, last = feed(decoder(begun=False), start, anthropic_text("a"), end)
    assert head.first_usage == Usage(28, 1, cached_input_tokens=20, cache_write_tokens=3)
    assert (head.usage, text.usage, text.first_usage, last.first_usage) == (None, None, None, None)
    assert last.usage == Usage(28, 9, cached_input_tokens=20, cache_write_tokens=3)


def test_reason_without_usage_does_not_finish_what_came_before() -> None:
    made = decoder()
    (chunk,) = feed(made, anthropic_text("a") + anthropic_event("message_delta", delta={"stop_reason": "end_turn"}))
    assert chunk.raw == anthropic_text("a")
    assert isinstance(made.failure, UpstreamInvalid)
    assert not made.finished


@pytest.mark.parametrize("pieces", [[], [""]])
def test_tool_call_without_arguments_has_an_empty_object_and_verbatim_bytes(pieces: list[str]) -> None:
    events = [
        anthropic_event("content_block_start", index=0, content_block=TOOL),
        *(_arguments(piece) for piece in pieces),
        anthropic_event("content_block_stop", index=0),
    ]
    assert deltas_of(*events) == [
        Delta(tool_calls=(ToolCallDelta(0, "t", "add"),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments="{}"),)),
    ]
    assert b"".join(chunk.raw for chunk in feed(decoder(), *events)) == b"".join(events)


@pytest.mark.parametrize(
    ("block", "pieces"),
    [(TOOL, ["", '{"a"', ":1}"]), ({**TOOL, "input": {"a": 1}}, []), ({**TOOL, "input": {}}, ["{}"])],
)
def test_end_of_a_tool_call_with_arguments_adds_nothing(block: dict[str, Any], pieces: list[str]) -> None:
    deltas = deltas_of(
        anthropic_event("content_block_start", index=0, content_block=block),
        *(_arguments(piece) for piece in pieces),
        anthropic_event("content_block_stop", index=0),
        anthropic_event("content_block_stop", index=0),
    )
    written = orjson.loads("".join(call.arguments for delta in deltas for call in delta.tool_calls))
    assert written == ({} if pieces == ["{}"] else {"a": 1})


def _arguments(piece: str) -> bytes:
    return anthropic_event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": piece})


TEXTS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), max_size=6)


@given(TEXTS, st.data())
def test_any_split_of_a_streams_bytes_says_the_same(texts: list[str], data: st.DataObject) -> None:
    stream = b"".join(anthropic_stream(texts))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10).map(sorted))
    made = decoder(begun=False)
    chunks = feed(made, *(stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])))
    assert "".join(chunk.text for chunk in chunks) == "".join(texts)
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(5, 3)]
    assert (made.finished, made.ended, made.failure, made.rest()) == (True, True, None, None)


def test_plain_answer_is_read_block_by_block() -> None:
    raw = (
        b'{"id":"r","type":"message","model":"m","stop_reason":"tool_use","content":['
        b'{"type":"thinking","thinking":"hm"},{"type":"text","text":"a"},{"type":"text","text":"b"},'
        b'{"type":"tool_use","id":"t","name":"f","input":{"a": 1}}],"usage":{"input_tokens":2,"output_tokens":3}}'
    )
    answer = completion_of(decode_message(raw), raw, upstream_model="up", input_bytes=8)
    (choice,) = answer.choices
    assert (choice.text, choice.reasoning, choice.finish_reason) == ("ab", "hm", FinishReason.TOOL_CALLS)
    assert choice.tool_calls == (ToolCall("t", "f", '{"a": 1}'),)
    assert (answer.usage, answer.dialect, answer.raw) == (Usage(2, 3), Dialect.ANTHROPIC, raw)


def test_plain_answer_without_a_stop_reason_breaks_the_schema() -> None:
    raw = b'{"id":"r","type":"message","model":"m","stop_reason":null,"content":[]}'
    with pytest.raises(SchemaError, match="no stop reason"):
        completion_of(decode_message(raw), raw, upstream_model="up", input_bytes=8)


def test_text_pieces_are_text() -> None:
    assert deltas_of(anthropic_text("a"), anthropic_text("")) == [Delta(text="a")]
