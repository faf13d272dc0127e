import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk, ParsedChatCompletion

from service.api.openai.framing import DONE, OpenAIFraming
from service.domain.generation import Chunk, Delta, Dialect, FinishReason, ToolCallDelta, Usage
from service.errors import UpstreamUnavailable

USAGE = Usage(input_tokens=11, output_tokens=5, cached_input_tokens=4, reasoning_tokens=2)


def framing(*, include_usage: bool = False) -> OpenAIFraming:
    return OpenAIFraming(
        model="claude", created=1, completion_id="chatcmpl-1", request_id="req_1", include_usage=include_usage
    )


def chunk(*deltas: Delta, usage: Usage | None = None) -> Chunk:
    return Chunk(dialect=Dialect.ANTHROPIC, deltas=deltas, usage=usage, raw=b"event: ping\ndata: {}\n\n")


def framed(chunks: Iterable[Chunk], *, include_usage: bool = False) -> bytes:
    frames = framing(include_usage=include_usage)
    return b"".join([frames.chunk(chunk) for chunk in chunks]) + frames.end()


def data_of(wire: bytes, cuts: Iterable[int] = ()) -> list[str]:
    """Read the stream with the SDK's own decoder, the bytes arriving in pieces."""

    def pieces() -> Iterator[bytes]:
        start = 0
        for cut in sorted({cut % (len(wire) + 1) for cut in cuts}):
            yield wire[start:cut]
            start = cut
        yield wire[start:]

    return [event.data for event in SSEDecoder().iter_bytes(pieces())]


def completion_of(wire: bytes, cuts: Iterable[int] = ()) -> ParsedChatCompletion[None]:
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    *events, done = data_of(wire, cuts)
    assert done == "[DONE]"
    for event in events:
        state.handle_chunk(ChatCompletionChunk.model_validate_json(event))
    return state.get_final_completion()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
CUTS = st.lists(st.integers(0, 100_000), max_size=20)


@given(st.lists(TEXTS), CUTS)
def test_any_text_in_any_pieces_comes_out_of_the_sdk_unchanged(texts: list[str], cuts: list[int]) -> None:
    chunks = [chunk(Delta(text=text)) for text in texts]
    wire = framed([*chunks, chunk(Delta(finish_reason=FinishReason.STOP))])
    answer = completion_of(wire, cuts).choices[0]
    assert (answer.message.content or "") == "".join(texts)
    assert answer.finish_reason == "stop"
    assert wire.count(DONE) == 1


@given(st.lists(st.tuples(st.integers(0, 2), TEXTS)), CUTS)
def test_choices_are_kept_apart(pieces: list[tuple[int, str]], cuts: list[int]) -> None:
    deltas = [Delta(choice=choice, text=text) for choice, text in pieces]
    ends = [Delta(choice=choice, finish_reason=FinishReason.LENGTH) for choice in range(3)]
    # Read one by one, since the SDK's own collector takes choices only if they begin in order.
    *events, done = data_of(framed([chunk(*deltas), chunk(*ends)]), cuts)
    choices = [choice for event in events for choice in ChatCompletionChunk.model_validate_json(event).choices]
    assert done == "[DONE]"
    for index in range(3):
        mine = [choice for choice in choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == "".join(
            text for choice, text in pieces if choice == index
        )
        assert [choice.delta.role for choice in mine] == ["assistant", *[None] * (len(mine) - 1)]
        assert [choice.finish_reason for choice in mine] == [*[None] * (len(mine) - 1), "length"]


@given(st.dictionaries(st.text("abc", min_size=1), st.integers()), st.dictionaries(st.text("xyz"), TEXTS), CUTS)
def test_tool_calls_come_out_of_the_sdk_whole(first: dict[str, int], second: dict[str, str], cuts: list[int]) -> None:
    deltas = [Delta(tool_calls=(ToolCallDelta(index, f"call_{index}", f"tool_{index}"),)) for index in range(2)]
    for index, arguments in enumerate((first, second)):
        deltas += [Delta(tool_calls=(ToolCallDelta(index, arguments=letter),)) for letter in json.dumps(arguments)]
    deltas.append(Delta(finish_reason=FinishReason.TOOL_CALLS))
    answer = completion_of(framed([chunk(delta) for delta in deltas]), cuts).choices[0]
    assert answer.finish_reason == "tool_calls"
    calls = answer.message.tool_calls or []
    assert [(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("call_0", "tool_0", first),
        ("call_1", "tool_1", second),
    ]


def test_bytes_of_the_same_dialect_pass_untouched() -> None:
    raw = b'data: {"choices": [{"delta": {"content":"x"}}],  "odd" :1}\n\n'
    assert framed([Chunk(raw=raw, dialect=Dialect.OPENAI, deltas=(Delta(text="x"),), usage=USAGE)]) == raw + DONE


def test_first_event_names_the_role_and_every_event_the_same_id_and_the_callers_model() -> None:
    wire = framed([chunk(Delta(text="a"), Delta(text="b")), chunk(Delta(finish_reason=FinishReason.STOP))])
    events: list[dict[str, Any]] = [json.loads(data) for data in data_of(wire)[:-1]]
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": "a"},
        {"content": "b"},
        {},
    ]
    assert {(event["id"], event["model"], event["created"], event["object"]) for event in events} == {
        ("chatcmpl-1", "claude", 1, "chat.completion.chunk")
    }


@pytest.mark.parametrize("wanted", [True, False])
def test_usage_comes_last_and_only_if_asked_for(wanted: bool) -> None:  # noqa: FBT001 - a parameter of the test
    wire = framed(
        [chunk(Delta(text="a")), chunk(Delta(finish_reason=FinishReason.STOP), usage=USAGE)], include_usage=wanted
    )
    usage = completion_of(wire).usage
    assert (usage is not None) is wanted
    if usage is not None:
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 5, 16)
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == 4
        assert json.loads(data_of(wire)[-2])["choices"] == []


def test_usage_that_the_provider_left_out_follows_its_events_under_their_id() -> None:
    raw = b'data: {"id": "theirs"}\n\n'
    first = Chunk(raw=raw, dialect=Dialect.OPENAI, response_id="theirs", model="their-model")
    wire = framed([first, Chunk(usage=USAGE)], include_usage=True)
    [theirs, usage, done] = data_of(wire)
    assert (theirs, done) == ('{"id": "theirs"}', "[DONE]")
    event = json.loads(usage)
    assert (event["id"], event["model"], event["usage"]["total_tokens"]) == ("theirs", "their-model", 16)


def test_a_delta_that_adds_nothing_sends_nothing() -> None:
    frames = framing()
    frames.chunk(chunk(Delta(text="a")))
    assert frames.chunk(chunk(Delta())) == b""


def test_failure_is_an_error_object_without_done() -> None:
    [data] = data_of(framing().failure(UpstreamUnavailable("the provider went away")))
    error = json.loads(data)["error"]
    assert error == {
        "message": "the provider went away",
        "type": "server_error",
        "param": None,
        "code": "upstream_unavailable",
        "retryable": True,
        "request_id": "req_1",
    }
