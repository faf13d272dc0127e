"""OpenAI's dialect as bytes: what is rendered, what is parsed, and that any split of a stream says the same."""

from itertools import pairwise
from typing import Any

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
from service.providers.openai import OpenAIDecoder
from service.providers.openai_wire import completion_of, decode_completion, request_fields
from service.providers.wire import SchemaError
from tests.support.wire import DONE, OPENAI_USAGE, openai_event, openai_stream


def rendered(*messages: Message, **more: Any) -> dict[str, Any]:
    request = GenerationRequest(model="public", messages=messages, **more)
    return request_fields(request, upstream_model="up", stream=False, max_tokens_field="max_tokens")


def decoder(*, include_usage: bool = True, choices: int = 1) -> OpenAIDecoder:
    return OpenAIDecoder(provider="fake", include_usage=include_usage, input_bytes=10, choices=choices)


def feed(made: OpenAIDecoder, *pieces: bytes) -> list[Chunk]:
    return [chunk for piece in pieces if (chunk := made.feed(piece)) is not None]


def deltas_of(*events: bytes) -> list[Delta]:
    made = decoder()
    deltas = [delta for chunk in feed(made, *events) for delta in chunk.deltas]
    if made.failure is not None:
        raise made.failure
    return deltas


def test_conversation_is_rendered_message_by_message() -> None:
    fields = rendered(
        Message.of_text("system", "Be brief"),
        Message("user", (TextPart("What is it?"), ImagePart(media_type="image/gif", data="R0", detail="low"))),
        max_tokens=5,
        temperature=0.0,
        top_p=0.5,
        stop=("END",),
        choices=2,
    )
    assert fields == {
        "model": "up",
        "messages": [
            {"role": "system", "content": "Be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0", "detail": "low"}},
                ],
            },
        ],
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["END"],
        "n": 2,
    }


def test_tools_their_calls_and_their_results_are_rendered() -> None:
    fields = rendered(
        Message("assistant", (ToolCall("c1", "add", '{"a":1}'),)),
        Message("user", (TextPart("and?"), ToolResult("c1", "2"))),
        tools=(Tool("add", None, {"type": "object"}),),
        tool_choice=ToolChoice("named", "add"),
        parallel_tool_calls=False,
    )
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    assert fields["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "user", "content": "and?"},
    ]
    assert fields["tools"] == [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    assert fields["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert fields["parallel_tool_calls"] is False


def test_what_only_anthropic_can_do_is_refused_by_its_field() -> None:
    for body, field in (
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            rendered(Message.of_text("user", "x"), wire=WireBody(Dialect.ANTHROPIC, body))
        assert [error.field for error in caught.value.fields] == [field]


def test_tool_call_is_put_together_from_its_pieces() -> None:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}
    second = {"index": 0, "function": {"arguments": '{"a"'}}
    assert deltas_of(openai_event({"tool_calls": [first]}), openai_event({"tool_calls": [second]})) == [
        Delta(tool_calls=(ToolCallDelta(0, "c1", "add", ""),)),
        Delta(tool_calls=(ToolCallDelta(0, None, None, '{"a"'),)),
    ]


def test_reasoning_and_refusal_are_told_from_the_text() -> None:
    assert deltas_of(
        openai_event({"reasoning_content": "hm"}), openai_event({"reasoning": "so"}), openai_event({"refusal": "no"})
    ) == [Delta(reasoning="hm"), Delta(reasoning="so"), Delta(refusal="no")]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
    ],
)
def test_finish_reasons_are_translated(word: str, reason: FinishReason) -> None:
    assert deltas_of(openai_event({}, word)) == [Delta(finish_reason=reason)]


def test_unknown_finish_reason_is_an_error_that_names_it() -> None:
    with pytest.raises(UpstreamInvalid, match="insufficient_system_resource"):
        deltas_of(openai_event({"content": "x"}, "insufficient_system_resource"))


def test_usage_of_every_event_is_told_once_it_is_final() -> None:
    made = decoder()
    chunks = feed(
        made,
        openai_event({"content": "a"}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
        openai_event({"content": "b"}, "stop", usage={"prompt_tokens": 5, "completion_tokens": 2}),
        DONE,
    )
    assert [chunk.usage for chunk in chunks] == [None, Usage(5, 2)]
    assert made.rest() is None
    assert made.ended


def test_cached_and_reasoning_tokens_are_read() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    made = decoder()
    chunks = feed(made, openai_event({}, "stop"), openai_event(None, usage=usage))
    assert chunks[-1].usage == Usage(9, 7, cached_input_tokens=4, reasoning_tokens=3)


def test_answer_is_not_finished_before_every_choice_that_was_asked_for() -> None:
    made = decoder(choices=2)
    feed(made, openai_event({"content": "a"}, "stop"))
    assert not made.finished
    feed(made, openai_event({"content": "b"}, index=1))
    assert not made.finished
    feed(made, openai_event({}, "stop", index=1))
    assert made.finished


def test_end_marker_finishes_the_answer_of_a_server_that_gives_fewer_choices() -> None:
    made = decoder(choices=2)
    feed(made, openai_event({"content": "a"}, "stop"), openai_event(None, usage=OPENAI_USAGE))
    assert not made.finished
    (chunk,) = feed(made, DONE)
    assert chunk.usage == Usage(5, 3)
    assert (made.finished, made.ended, made.rest()) == (True, True, None)


def test_end_marker_finishes_no_choice_that_has_no_reason() -> None:
    for events in ([], [openai_event({"content": "a"}, "stop"), openai_event({"content": "b"}, index=1)]):
        made = decoder(choices=2)
        feed(made, *events, DONE)
        assert (made.finished, made.ended) == (False, True)


def test_usage_is_estimated_where_the_provider_gives_none() -> None:
    made = decoder()
    feed(made, openai_event({"content": "a"}), openai_event({"content": "b"}), openai_event({}, "stop"), DONE)
    rest = made.rest()
    assert rest is not None
    assert rest.usage == Usage(3, 2, estimated=True)
    assert made.rest() is None


def test_first_chunk_says_which_answer_and_model_it_is() -> None:
    chunks = feed(decoder(), openai_event({"role": "assistant"}), openai_event({"content": "a"}))
    assert [(chunk.response_id, chunk.model) for chunk in chunks] == [("r1", "up"), (None, None)]


def test_events_before_a_bad_one_are_handed_on_with_it_kept_for_later() -> None:
    made = decoder()
    chunk = made.feed(openai_event({"content": "good"}) + b"data: bad\n\n")
    assert chunk is not None
    assert chunk.text == "good"
    assert isinstance(made.failure, UpstreamInvalid)


TEXTS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), max_size=6)


@given(TEXTS, st.data())
def test_any_split_of_a_streams_bytes_says_the_same(texts: list[str], data: st.DataObject) -> None:
    stream = b"".join(openai_stream(texts))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10).map(sorted))
    made = decoder()
    chunks = feed(made, *(stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])))
    assert "".join(chunk.text for chunk in chunks) == "".join(texts)
    assert b"".join(chunk.raw for chunk in chunks) == stream.removesuffix(DONE)
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == [FinishReason.STOP]
    assert (made.finished, made.ended, made.failure, made.rest()) == (True, True, None, None)


def test_plain_answer_keeps_the_order_of_its_choices() -> None:
    raw = (
        b'{"id":"r","model":"m","choices":[{"index":1,"message":{"content":"b"},"finish_reason":"stop"},'
        b'{"index":0,"message":{"content":null,"tool_calls":[{"id":"c","function":{"name":"f","arguments":"{}"}}]},'
        b'"finish_reason":"tool_calls"}]}'
    )
    answer = completion_of(decode_completion(raw), raw, upstream_model="up", input_bytes=8)
    assert [choice.text for choice in answer.choices] == ["", "b"]
    assert answer.choices[0].tool_calls == (ToolCall("c", "f", "{}"),)
    assert answer.usage == Usage(2, 1, estimated=True)
    assert answer.raw is raw


@pytest.mark.parametrize(("count", "wrong"), [(-1, "negative"), (10**9 + 1, "more than 1000000000")])
def test_token_count_that_cannot_be_breaks_the_schema(count: int, wrong: str) -> None:
    raw = b'{"choices":[{"message":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":%d}}' % count
    with pytest.raises(SchemaError, match=wrong):
        completion_of(decode_completion(raw), raw, upstream_model="up", input_bytes=0)


def test_usage_alone_is_left_out_of_the_raw_bytes_unless_asked_for() -> None:
    stream = [openai_event({"content": "a"}, "stop"), openai_event(None, usage=OPENAI_USAGE), DONE]
    assert b"".join(chunk.raw for chunk in feed(decoder(include_usage=False), *stream)) == stream[0]
    assert b"".join(chunk.raw for chunk in feed(decoder(), *stream)) == stream[0] + stream[1]
