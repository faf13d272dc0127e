"""What an upstream can do wrong before, during and after an answer, and that we tell all of it apart; over sockets."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from pydantic import HttpUrl, SecretStr

from service.config import BreakerSettings, ProviderKind, ProviderSettings, TimeoutSettings
from service.domain.clock import Deadline, SystemClock
from service.domain.generation import (
    Chunk,
    Dialect,
    EmbeddingRequest,
    FinishReason,
    GenerationRequest,
    Message,
    Usage,
    WireBody,
)
from service.errors import (
    InvalidRequest,
    UpstreamError,
    UpstreamInvalid,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers import http
from service.providers.base import Provider
from service.providers.build import open_provider
from tests.support.upstream import NO_HEAD, Answer, ScriptedUpstream, scripted_upstream
from tests.support.wire import (
    DONE,
    anthropic_answer,
    anthropic_event,
    anthropic_stream,
    openai_answer,
    openai_event,
    openai_stream,
)

CLOCK = SystemClock()
REQUEST = GenerationRequest(model="public", messages=(Message.of_text("user", "Say hello"),))
KINDS = ["openai", "anthropic"]
STREAMS = {"openai": openai_stream, "anthropic": anthropic_stream}


@asynccontextmanager
async def opened(
    *answers: Answer, kind: str = "openai", keys: tuple[str, ...] = ("k",), **timeouts: float
) -> AsyncIterator[tuple[Provider, ScriptedUpstream]]:
    async with (
        scripted_upstream(*answers) as upstream,
        opened_at(upstream.base_url, kind, keys, **timeouts) as provider,
    ):
        yield provider, upstream


@asynccontextmanager
async def opened_at(
    base_url: str, kind: str = "openai", keys: tuple[str, ...] = ("k",), **timeouts: float
) -> AsyncIterator[Provider]:
    settings = ProviderSettings(
        kind=ProviderKind(kind),
        base_url=HttpUrl(f"{base_url}/v1"),
        keys=tuple(SecretStr(key) for key in keys),
        timeouts_s=TimeoutSettings(**{"connect": 5, "first_token": 5, "between_tokens": 5, **timeouts}),
        # A key that was refused is asked again: each call is looked at alone.
        breaker=BreakerSettings(enabled=False),
    )
    async with open_provider(kind, settings, clock=CLOCK) as provider:
        yield provider


async def stream_into(provider: Provider, chunks: list[Chunk], request: GenerationRequest = REQUEST) -> None:
    async with provider.stream(request, upstream_model="up", deadline=Deadline.after(10, CLOCK)) as stream:
        async for chunk in stream:
            chunks.append(chunk)  # noqa: PERF401 - what came before a failure must be in it


async def complete(provider: Provider, request: GenerationRequest = REQUEST) -> str:
    answer = await provider.complete(request, upstream_model="up", deadline=Deadline.after(10, CLOCK))
    return answer.choices[0].text


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


# Before the answer.


@pytest.mark.parametrize("kind", KINDS)
async def test_connection_closed_without_a_word_is_unavailable(kind: str) -> None:
    async with opened(NO_HEAD, kind=kind) as (provider, upstream):
        with pytest.raises(UpstreamUnavailable):
            await complete(provider)
        with pytest.raises(UpstreamUnavailable):
            await stream_into(provider, [])
    assert len(upstream.calls) == 2, "a call that may have been paid for is not repeated"


async def test_refused_connection_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with opened_at(f"http://127.0.0.1:{taken.getsockname()[1]}") as provider:
            with pytest.raises(UpstreamUnavailable) as caught:
                await complete(provider)
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "expected"),
    [
        (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, {}, "openai", UpstreamRejected),
        (401, {"error": {"message": "bad key sk-123", "code": "invalid_api_key"}}, {}, "openai", UpstreamMisconfigured),
        (429, {"error": {"type": "insufficient_quota"}}, {}, "openai", UpstreamMisconfigured),
        (500, "<html>oops</html>", {}, "openai", UpstreamUnavailable),
        (529, {"error": {"type": "overloaded_error"}}, {}, "anthropic", UpstreamOverloaded),
        (302, "", {"location": "http://127.0.0.1:1/"}, "openai", UpstreamMisconfigured),
    ],
)
async def test_refusals_become_errors_of_ours(
    status: int, body: object, headers: dict[str, str], kind: str, expected: type[UpstreamError]
) -> None:
    async with opened(Answer.of_json(body, status, headers), kind=kind) as (provider, upstream):
        with pytest.raises(expected) as caught:
            await complete(provider)
        with pytest.raises(expected):
            await stream_into(provider, [])
    assert caught.value.upstream_status == status
    assert caught.value.provider == kind
    assert "sk-123" not in str(caught.value)
    assert len(upstream.calls) == 2


async def test_reason_of_a_rejection_is_kept() -> None:
    error = {"error": {"message": "This model's context is 8192 tokens.", "code": "context_length_exceeded"}}
    async with opened(Answer.of_json(error, 400)) as (provider, _):
        with pytest.raises(UpstreamRejected, match="context is 8192 tokens") as caught:
            await complete(provider)
    assert caught.value.upstream_code == "context_length_exceeded"


async def test_endless_error_body_is_not_read_to_its_end() -> None:
    async with opened(Answer([b"x" * 65_536] * 64, 500, "text/plain", ending="hold")) as (provider, upstream):
        with pytest.raises(UpstreamUnavailable):
            await complete(provider)
        await asyncio.wait_for(upstream.calls[0].left.wait(), 5)


async def test_error_body_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ERROR_BODY_S", 0.05)
    async with opened(Answer([b'{"error"'], 429, "application/json", ending="hold")) as (provider, _):
        with pytest.raises(UpstreamThrottled):
            await complete(provider)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer([b"<html>"], content_type="text/html"), "content type 'text/html'"),
        (Answer([b"{"], content_type=""), "content type 'none'"),
        (Answer([b"not json"], content_type="application/json"), "not JSON"),
        (Answer([b'{"id": "\xff"}'], content_type="application/json"), "UTF-8"),
        (Answer.of_json({}), "breaks its schema"),
        (Answer.of_json({"choices": [], "content": 5}), "breaks its schema"),
        (Answer.of_json([1]), "breaks its schema"),
    ],
)
async def test_plain_answer_that_breaks_the_format_is_invalid(kind: str, answer: Answer, reason: str) -> None:
    async with opened(answer, kind=kind) as (provider, _):
        with pytest.raises(UpstreamInvalid, match=reason):
            await complete(provider)


async def test_answer_without_a_finish_reason_is_invalid() -> None:
    choice = {"index": 0, "message": {"content": "Hi"}, "finish_reason": None}
    async with opened(Answer.of_json({"id": "r", "model": "m", "choices": [choice]})) as (provider, _):
        with pytest.raises(UpstreamInvalid, match="no finish reason"):
            await complete(provider)


async def test_error_object_inside_a_plain_200_is_an_error() -> None:
    error = {"error": {"message": "upstream down", "code": 502}}
    async with opened(Answer.of_json(error)) as (provider, _):
        with pytest.raises(UpstreamUnavailable):
            await complete(provider)
        with pytest.raises(UpstreamUnavailable):
            await stream_into(provider, [])
    busy = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    async with opened(Answer.of_json(busy), kind="anthropic") as (provider, _):
        with pytest.raises(UpstreamOverloaded):
            await complete(provider)


# During the answer.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["cut", "reset"])
async def test_stream_that_breaks_off_is_no_outage_that_costs_nothing(kind: str, ending: Any) -> None:
    gate = asyncio.Event()
    chunks: list[Chunk] = []
    pieces = STREAMS[kind](["Hel", "lo"], finished=False)
    async with (
        opened(Answer([*pieces, gate], ending=ending), kind=kind) as (provider, _),
        provider.stream(REQUEST, upstream_model="up", deadline=Deadline.after(10, CLOCK)) as stream,
    ):
        while text_of(chunks) != "Hello":
            chunks.append(await anext(stream))
        gate.set()
        with pytest.raises(UpstreamInvalid, match="broke off"):
            await anext(stream)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["cut", "reset"])
async def test_plain_answer_that_breaks_off_is_no_outage_that_costs_nothing(kind: str, ending: Any) -> None:
    answer = Answer([b'{"id": '], content_type="application/json", ending=ending)
    async with opened(answer, kind=kind) as (provider, _):
        with pytest.raises(UpstreamInvalid, match="broke off"):
            await complete(provider)


async def test_plain_answer_that_stops_coming_is_a_timeout() -> None:
    answer = Answer([b'{"id": '], content_type="application/json", ending="hold")
    async with opened(answer) as (provider, _):
        with pytest.raises(UpstreamTimeout):
            await provider.complete(REQUEST, upstream_model="up", deadline=Deadline.after(0.2, CLOCK))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "bad",
    [b"data: {not json}\n\n", b"data: []\n\n", b'data: {"choices": 5, "type": 5}\n\n', b'data: {"x": "\xff"}\n\n'],
)
async def test_event_that_breaks_the_format_is_invalid_after_what_was_good(kind: str, bad: bytes) -> None:
    chunks: list[Chunk] = []
    async with opened(Answer([*STREAMS[kind](["Hel", "lo"], finished=False), bad]), kind=kind) as (provider, _):
        with pytest.raises(UpstreamInvalid):
            await stream_into(provider, chunks)
    assert text_of(chunks) == "Hello"


async def test_error_event_in_mid_stream_is_raised_with_its_meaning() -> None:
    chunks: list[Chunk] = []
    error = b'data: {"error": {"message": "slow", "type": "rate_limit_error"}}\n\n'
    async with opened(Answer([*openai_stream(["Hel"], finished=False), error, DONE])) as (provider, _):
        with pytest.raises(UpstreamThrottled):
            await stream_into(provider, chunks)
    assert text_of(chunks) == "Hel"
    event = anthropic_event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    answer = Answer([*anthropic_stream(["Hel"], finished=False), event])
    async with opened(answer, kind="anthropic") as (provider, _):
        with pytest.raises(UpstreamOverloaded):
            await stream_into(provider, [])


async def test_end_marker_without_a_finish_reason_is_invalid() -> None:
    async with opened(Answer([*openai_stream(["Hel"], finished=False), DONE])) as (provider, _):
        with pytest.raises(UpstreamInvalid, match="without a finish reason"):
            await stream_into(provider, [])


async def test_stream_is_whole_only_when_every_choice_has_finished() -> None:
    both = [openai_event({"content": "a"}), openai_event({"content": "b"}, index=1), openai_event({}, "stop", index=1)]
    async with opened(Answer([*both, DONE])) as (provider, _):
        with pytest.raises(UpstreamInvalid, match="without a finish reason"):
            await stream_into(provider, [])
    chunks: list[Chunk] = []
    async with opened(Answer([*both, openai_event({}, "length"), DONE])) as (provider, _):
        await stream_into(provider, chunks)
    assert text_of(chunks) == "a"


@pytest.mark.parametrize(
    ("ending", "expected"),
    [("end", UpstreamInvalid), ("cut", UpstreamInvalid), ("reset", UpstreamInvalid), ("hold", UpstreamTimeout)],
)
async def test_stream_without_a_choice_that_was_asked_for_is_broken_however_it_ends(
    ending: Any, expected: type[UpstreamError]
) -> None:
    gate = asyncio.Event()
    first = openai_event({"content": "a"}, "stop")
    async with (
        opened(Answer([first, gate], ending=ending), between_tokens=0.1 if ending == "hold" else 5) as (provider, _),
        provider.stream(replace(REQUEST, choices=2), upstream_model="up", deadline=Deadline.after(10, CLOCK)) as stream,
    ):
        assert (await anext(stream)).text == "a"
        gate.set()
        with pytest.raises(expected):
            await anext(stream)


async def test_slow_second_choice_is_waited_for_as_any_token_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SETTLE_S", 0.0)
    gate = asyncio.Event()
    texts = ["", ""]
    second = openai_event({"content": "b"}, "stop", index=1)
    async with (
        opened(Answer([openai_event({"content": "a"}, "stop"), gate, second, DONE])) as (provider, _),
        provider.stream(replace(REQUEST, choices=2), upstream_model="up", deadline=Deadline.after(10, CLOCK)) as stream,
    ):
        async for chunk in stream:
            asyncio.get_running_loop().call_later(0.05, gate.set)
            for delta in chunk.deltas:
                texts[delta.choice] += delta.text
    assert texts == ["a", "b"]


async def test_server_that_knows_one_choice_only_gives_a_whole_stream() -> None:
    chunks: list[Chunk] = []
    async with opened(Answer(openai_stream(["Hi"]))) as (provider, _):
        await stream_into(provider, chunks, replace(REQUEST, choices=2))
    assert text_of(chunks) == "Hi"
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(5, 3)]


@pytest.mark.parametrize(
    ("kind", "sign"),
    [
        ("openai", b": keep-alive\n\n"),
        ("anthropic", b": keep-alive\n\n"),
        ("anthropic", anthropic_event("ping")),
    ],
)
async def test_signs_of_life_do_not_pass_for_the_next_token(kind: str, sign: bytes) -> None:
    chunks: list[Chunk] = []
    pieces: list[bytes | asyncio.Event] = [*STREAMS[kind](["Hel"], finished=False)]
    gates = [asyncio.Event() for _ in range(40)]
    for gate in gates:
        pieces += [gate, sign]
    pieces += STREAMS[kind](["late"])[-3:]
    async with opened(Answer(pieces), kind=kind, between_tokens=0.2) as (provider, _):
        # Forty signs, 20 ms apart, outlast the 200 ms; a slow machine only makes them last longer.
        timers = [asyncio.get_running_loop().call_later(0.02 * turn, gate.set) for turn, gate in enumerate(gates)]
        with pytest.raises(UpstreamTimeout):
            await stream_into(provider, chunks)
    for timer in timers:
        timer.cancel()
    assert text_of(chunks) == "Hel"


async def test_slow_reader_is_not_taken_for_a_slow_provider() -> None:
    gate = asyncio.Event()
    pieces: list[bytes | asyncio.Event] = [
        openai_event({"content": "Hel"}),
        gate,
        openai_event({"content": "lo"}, "stop"),
        DONE,
    ]
    async with (
        opened(Answer(pieces), between_tokens=0.5) as (provider, _),
        provider.stream(REQUEST, upstream_model="up", deadline=Deadline.after(10, CLOCK)) as stream,
    ):
        text = (await anext(stream)).text
        await asyncio.sleep(0.6)  # longer than between_tokens: the reader's own time
        asyncio.get_running_loop().call_later(0.01, gate.set)
        async for chunk in stream:
            text += chunk.text
    assert text == "Hello"


@pytest.mark.parametrize("kind", KINDS)
async def test_silence_between_tokens_times_out_and_hangs_up(kind: str) -> None:
    chunks: list[Chunk] = []
    answer = Answer(STREAMS[kind](["Hel"], finished=False), ending="hold")
    async with opened(answer, kind=kind, between_tokens=0.1) as (provider, upstream):
        with pytest.raises(UpstreamTimeout):
            await stream_into(provider, chunks)
        await asyncio.wait_for(upstream.calls[0].left.wait(), 5)
    assert text_of(chunks) == "Hel"


@pytest.mark.parametrize("kind", KINDS)
async def test_signs_of_life_do_not_pass_for_the_first_token(kind: str) -> None:
    async with opened(
        Answer(STREAMS[kind]([], finished=False), ending="hold"), kind=kind, first_token=0.2, between_tokens=30
    ) as (provider, _):
        with pytest.raises(UpstreamTimeout):
            await stream_into(provider, [])


async def test_slow_head_times_out() -> None:
    async with opened(Answer(ending="hold", head_after=asyncio.Event()), first_token=0.1) as (provider, upstream):
        with pytest.raises(UpstreamTimeout):
            await stream_into(provider, [])
        await asyncio.wait_for(upstream.calls[0].left.wait(), 5)


# After the answer.


@pytest.mark.parametrize("ending", ["end", "cut", "reset", "hold"])
@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_after_the_finish_reason_can_take_the_answer_back(
    kind: str, ending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SETTLE_S", 0.1)
    finish = {
        "openai": openai_event({}, "stop"),
        "anthropic": anthropic_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
    }[kind]
    gate = asyncio.Event()
    chunks: list[Chunk] = []
    answer = Answer([*STREAMS[kind](["Hel", "lo"], finished=False), finish, gate], ending=ending)
    async with (
        opened(answer, kind=kind) as (provider, _),
        provider.stream(REQUEST, upstream_model="up", deadline=Deadline.after(10, CLOCK)) as stream,
    ):
        async for chunk in stream:
            chunks.append(chunk)
            if chunk.finish_reason is not None:
                gate.set()
    assert text_of(chunks) == "Hello"
    expected = Usage(3, 2, estimated=True) if kind == "openai" else Usage(5, 3)
    assert [chunk.usage for chunk in chunks if chunk.usage] == [expected]


async def test_nonsense_after_the_finish_reason_is_not_handed_on() -> None:
    chunks: list[Chunk] = []
    async with opened(Answer([openai_event({"content": "Hi"}, "stop"), b"data: {oops\n\n"])) as (provider, _):
        await stream_into(provider, chunks)
    assert text_of(chunks) == "Hi"
    assert b"oops" not in b"".join(chunk.raw for chunk in chunks)


@pytest.mark.parametrize("kind", KINDS)
async def test_connection_is_used_again_after_a_whole_stream_but_not_after_a_broken_one(kind: str) -> None:
    whole = Answer(STREAMS[kind](["Hello"]))
    broken = Answer(STREAMS[kind](["Hello"], finished=False), ending="hold")
    async with opened(whole, whole, broken, whole, kind=kind) as (provider, upstream):
        for _ in range(2):
            await stream_into(provider, [])
        async with provider.stream(REQUEST, upstream_model="up", deadline=Deadline.after(10, CLOCK)) as stream:
            await anext(stream)
        await stream_into(provider, [])
    assert [call.connection for call in upstream.calls] == [1, 1, 1, 2]


# What goes up.


async def test_callers_own_body_goes_up_with_every_field_of_it() -> None:
    body = {"model": "public", "messages": [], "seed": 7, "x_new": {"a": 1}, "stream": True, "stream_options": {"x": 1}}
    request = GenerationRequest(model="public", messages=(), include_usage=False, wire=WireBody(Dialect.OPENAI, body))
    chunks: list[Chunk] = []
    async with opened(Answer(openai_stream(["Hello"])), openai_answer("Hello")) as (provider, upstream):
        await stream_into(provider, chunks, request)
        await complete(provider, request)
    sent = {"model": "up", "messages": [], "seed": 7, "x_new": {"a": 1}}
    assert upstream.calls[0].body == {**sent, "stream": True, "stream_options": {"x": 1, "include_usage": True}}
    assert upstream.calls[1].body == sent
    raw = b"".join(chunk.raw for chunk in chunks)
    assert raw == b"".join(openai_stream(["Hello"])[:-2]), "the usage that the caller did not ask for is left out"
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(5, 3)], "and is known to us all the same"
    assert body["stream_options"] == {"x": 1}, "the caller's body is not changed"


async def test_raw_events_are_those_of_the_upstream() -> None:
    chunks: list[Chunk] = []
    async with opened(Answer(openai_stream(["Héllo", " \r\n"]))) as (provider, _):
        await stream_into(provider, chunks)
    assert b"".join(chunk.raw for chunk in chunks) == b"".join(openai_stream(["Héllo", " \r\n"])[:-1])
    chunks.clear()
    async with opened(Answer(anthropic_stream(["Héllo"])), kind="anthropic") as (provider, _):
        await stream_into(provider, chunks)
    expected = [event for event in anthropic_stream(["Héllo"]) if b"ping" not in event and b"message_stop" not in event]
    assert b"".join(chunk.raw for chunk in chunks) == b"".join(expected)


async def test_events_of_one_read_are_one_chunk() -> None:
    chunks: list[Chunk] = []
    async with opened(Answer([b"".join(openai_stream(["a", "b", "c"]))])) as (provider, _):
        await stream_into(provider, chunks)
    assert len(chunks) == 1
    assert [delta.text for delta in chunks[0].deltas] == ["a", "b", "c", ""]
    assert chunks[0].deltas[-1].finish_reason is FinishReason.STOP


async def test_keys_are_used_in_turn_and_in_each_vendors_way() -> None:
    async with opened(openai_answer("Hi"), keys=("one", "two")) as (provider, upstream):
        for _ in range(4):
            await complete(provider)
    assert {call.headers["authorization"] for call in upstream.calls} == {"Bearer one", "Bearer two"}
    assert upstream.calls[0].headers["authorization"] != upstream.calls[1].headers["authorization"]
    assert upstream.calls[0].path == "/v1/chat/completions"
    async with opened(Answer(anthropic_stream(["Hi"])), kind="anthropic") as (provider, upstream):
        await stream_into(provider, [])
    headers = upstream.calls[0].headers
    assert "k" in {headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer ")}
    assert headers["anthropic-version"] == "2026-10-21"
    assert headers["accept-encoding"] == "identity"
    assert upstream.calls[0].path == "/v1/messages"


async def test_temperature_goes_up_in_the_api_version_that_still_has_it() -> None:
    warm = replace(REQUEST, temperature=0.5)
    own = replace(REQUEST, wire=WireBody(Dialect.ANTHROPIC, {"model": "x", "messages": [], "top_k": 3}))
    async with opened(anthropic_answer("Hi"), kind="anthropic") as (provider, upstream):
        for request in (REQUEST, warm, own):
            await complete(provider, request)
    versions = [call.headers["anthropic-version"] for call in upstream.calls]
    assert versions == ["2026-10-21", "2023-06-01", "2023-06-01"]


async def test_embeddings_are_the_providers_own_json() -> None:
    body = {"object": "list", "data": [{"embedding": [0.25], "index": 0}], "usage": {"prompt_tokens": 2, "x": 1}}
    asked = EmbeddingRequest("public", {"model": "public", "input": ["a"], "dimensions": 1})
    async with opened(Answer.of_json(body)) as (provider, upstream):
        result = await provider.embed(asked, upstream_model="up", deadline=Deadline.after(10, CLOCK))
    assert result.raw == json.dumps(body).encode()
    assert result.usage == Usage(2, 0)
    assert upstream.calls[0].body == {"model": "up", "input": ["a"], "dimensions": 1}
    async with opened(Answer.of_json({"data": [{"embedding": 1}]})) as (provider, _):
        with pytest.raises(UpstreamInvalid, match="neither a list nor text"):
            await provider.embed(asked, upstream_model="up", deadline=Deadline.after(10, CLOCK))


async def test_anthropic_has_no_embeddings_and_says_so_without_a_call() -> None:
    async with opened(NO_HEAD, kind="anthropic") as (provider, upstream):
        with pytest.raises(InvalidRequest) as caught:
            await provider.embed(EmbeddingRequest("m", {}), upstream_model="m", deadline=Deadline.after(10, CLOCK))
    assert [error.field for error in caught.value.fields] == ["model"]
    assert upstream.calls == []
