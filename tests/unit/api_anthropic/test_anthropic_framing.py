import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from anthropic._streaming import SSEDecoder
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from service.api.anthropic.framing import MESSAGE_STOP, AnthropicFraming
from service.domain.generation import Chunk, Delta, Dialect, FinishReason, ToolCallDelta, Usage
from service.errors import UpstreamUnavailable

USAGE = Usage(input_tokens=11, output_tokens=5, cached_input_tokens=4, cache_write_tokens=1)
EVENTS: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def framing() -> AnthropicFraming:
    return AnthropicFraming(model="gpt", message_id="msg_1", request_id="req_1")


def chunk(*deltas: Delta, usage: Usage | None = None) -> Chunk:
    return Chunk(dialect=Dialect.OPENAI, deltas=deltas, usage=usage, raw=b"data: {}\n\n")


def ending(reason: FinishReason = FinishReason.STOP) -> Chunk:
    return chunk(Delta(finish_reason=reason), usage=USAGE)


def framed(chunks: Iterable[Chunk]) -> bytes:
    frames = framing()
    return b"".join([frames.chunk(chunk) for chunk in chunks]) + frames.end()


def events_of(wire: bytes, cuts: Iterable[int] = ()) -> list[dict[str, Any]]:
    """Read the stream with the SDK's own decoder, the bytes arriving in pieces."""

    def pieces() -> Iterator[bytes]:
        start = 0
        for cut in sorted({cut % (len(wire) + 1) for cut in cuts}):
            yield wire[start:cut]
            start = cut
        yield wire[start:]

    events = list(SSEDecoder().iter_bytes(pieces()))
    read = [json.loads(event.data) for event in events]
    assert [event["type"] for event in read] == [event.event for event in events]
    return read


def message_of(wire: bytes, cuts: Iterable[int] = ()) -> Message:
    """Let the SDK put the message together, and check that blocks follow one another as the protocol says."""
    snapshot = None
    buffers: dict[int, bytes] = {}
    events = events_of(wire, cuts)
    for event in events:
        snapshot = accumulate_event(event=EVENTS.validate_python(event), current_snapshot=snapshot, json_bufs=buffers)
    assert snapshot is not None
    blocks = [event["index"] for event in events if event["type"] in ("content_block_start", "content_block_stop")]
    assert blocks == [index for block in range(len(snapshot.content)) for index in (block, block)]
    assert [event["type"] for event in events].count("message_stop") == 1
    assert events[-1]["type"] == "message_stop"
    return snapshot


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
CUTS = st.lists(st.integers(0, 100_000), max_size=20)
CALLS = st.lists(st.dictionaries(st.text("abc", min_size=1), TEXTS, max_size=2), min_size=1, max_size=3)


@given(st.lists(TEXTS), CUTS)
def test_any_text_in_any_pieces_comes_out_of_the_sdk_unchanged(texts: list[str], cuts: list[int]) -> None:
    message = message_of(framed([*(chunk(Delta(text=text)) for text in texts), ending()]), cuts)
    assert "".join(block.text for block in message.content if block.type == "text") == "".join(texts)
    assert message.stop_reason == "end_turn"


@given(CALLS, TEXTS, st.randoms(use_true_random=False), CUTS)
def test_tool_calls_come_out_whole_however_they_interleave(
    calls: list[dict[str, str]], text: str, random: Any, cuts: list[int]
) -> None:
    queues = [
        [
            ToolCallDelta(index, id=f"toolu_{index}", name=f"tool_{index}"),
            *(ToolCallDelta(index, arguments=letter) for letter in json.dumps(arguments)),
        ]
        for index, arguments in enumerate(calls)
    ]
    deltas = [Delta(text=text)]
    while any(queues):
        deltas.append(Delta(tool_calls=(random.choice([queue for queue in queues if queue]).pop(0),)))
    message = message_of(framed([*(chunk(delta) for delta in deltas), ending(FinishReason.TOOL_CALLS)]), cuts)
    assert "".join(block.text for block in message.content if block.type == "text") == text
    assert {block.name: block.input for block in message.content if block.type == "tool_use"} == {
        f"tool_{index}": arguments for index, arguments in enumerate(calls)
    }
    assert message.stop_reason == "tool_use"


def test_a_block_begins_with_each_kind_of_content() -> None:
    call = ToolCallDelta(0, id="toolu_1", name="add", arguments='{"a":')
    message = message_of(
        framed(
            [
                chunk(Delta(reasoning="Hm"), Delta(reasoning="."), Delta(text="Let me "), Delta(text="add")),
                chunk(Delta(tool_calls=(call,)), Delta(text="afterwards"), Delta(refusal=" and no")),
                chunk(Delta(tool_calls=(ToolCallDelta(0, arguments="1}"),))),
                ending(FinishReason.TOOL_CALLS),
            ]
        )
    )
    assert [block.to_dict() for block in message.content] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me add"},
        {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}},
        {"type": "text", "text": "afterwards and no"},
    ]


def test_message_names_the_callers_model_and_ends_with_all_figures() -> None:
    message = message_of(framed([chunk(Delta(text="x")), ending(FinishReason.LENGTH)]))
    assert (message.id, message.model, message.role, message.stop_reason) == ("msg_1", "gpt", "assistant", "max_tokens")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (6, 4, 1)
    assert usage.output_tokens == 5


def test_only_the_first_choice_is_shown() -> None:
    wire = framed([chunk(Delta(text="first"), Delta(choice=1, text="second")), ending()])
    assert [block.to_dict() for block in message_of(wire).content] == [{"type": "text", "text": "first"}]


@pytest.mark.parametrize("stop", [b"", MESSAGE_STOP, b'event:message_stop\r\ndata: {"type":"message_stop"}\r\n\r\n'])
def test_bytes_of_the_same_dialect_pass_untouched_with_exactly_one_end(stop: bytes) -> None:
    raw = b'event: content_block_delta\ndata: {"odd" :1, "text": "event: message_stop"}\n\n'
    chunks = [Chunk(raw=raw, dialect=Dialect.ANTHROPIC), Chunk(raw=raw + stop, dialect=Dialect.ANTHROPIC)]
    assert framed(chunks) == raw + raw + (stop or MESSAGE_STOP)


def test_failure_is_an_error_event() -> None:
    [event] = events_of(framing().failure(UpstreamUnavailable("the provider went away")))
    assert event == {
        "type": "error",
        "error": {
            "type": "api_error",
            "message": "the provider went away",
            "details": {"error_code": "upstream_unavailable", "retryable": True},
        },
        "request_id": "req_1",
    }


def test_failure_after_the_providers_own_end_adds_no_second_one() -> None:
    frames = framing()
    frames.chunk(Chunk(raw=MESSAGE_STOP, dialect=Dialect.ANTHROPIC))
    assert frames.failure(UpstreamUnavailable("late")) == b""
