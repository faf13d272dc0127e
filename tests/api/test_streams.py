"""``GET /stream`` and ``POST /chat``: the exact bytes of an event stream, and what each failure becomes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx
import orjson
import pytest
from typing_extensions import override

from service.domain.generation import Chunk, Delta, FinishReason, GenerationRequest, Message, Usage
from service.errors import (
    ServiceError,
    UpstreamInvalid,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.fake import FakeProvider, Script
from tests.support.fake_app import FakeApp, fake_app
from tests.support.readers import parse_events, read_events

Route = Literal["/stream", "/chat"]
ROUTES: tuple[Route, ...] = ("/stream", "/chat")
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app() as running:
        yield running


async def ask(api: FakeApp, route: Route, model: str = "gpt-4o-mini", **headers: str) -> httpx.Response:
    if route == "/stream":
        return await api.client.get("/stream", params={"prompt": "Hello", "model": model}, headers=headers)
    body = {"messages": HELLO, "stream": True, "model": model}
    return await api.client.post("/chat", json=body, headers=headers)


def ending(request_id: str, *, model: str = "gpt-4o-mini", reason: str = "stop") -> bytes:
    usage = {
        "model": model,
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "estimated": False,
        "finish_reason": reason,
        "request_id": request_id,
    }
    return b"event: usage\ndata: " + orjson.dumps(usage) + b"\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("pieces", "framed"),
    [
        (("Hello", " there"), b"data: Hello\n\ndata:  there\n\n"),
        (("a\nb",), b"data: a\ndata: b\n\n"),
        (("\n",), b"data: \ndata: \n\n"),
        (("\n\n", "x"), b"data: \ndata: \ndata: \n\ndata: x\n\n"),
        (("a\r\nb",), b'event: text\ndata: "a\\r\\nb"\n\n'),
        (("\r",), b'event: text\ndata: "\\r"\n\n'),
        (("[DONE]",), b"data: [DONE\n\ndata: ]\n\n"),
        (("[DONE]\n",), b"data: [DONE]\ndata: \n\n"),
        ((" [DONE]",), b"data:  [DONE]\n\n"),
        (("", "x", ""), b"data: x\n\n"),
        (("data: x\n\nevent: error",), b"data: data: x\ndata: \ndata: event: error\n\n"),
        (("\u2028\x85\ufeff",), "data: \u2028\x85\ufeff\n\n".encode()),
        (("\x00",), b"data: \x00\n\n"),
        (("👩‍👩‍👧",), "data: 👩‍👩‍👧\n\n".encode()),
        ((), b""),
    ],
)
async def test_the_framing_is_exact(api: FakeApp, route: Route, pieces: tuple[str, ...], framed: bytes) -> None:
    api.provider.script = Script(pieces=pieces)
    response = await ask(api, route, **{"x-request-id": "my-id"})
    assert response.content == framed + ending("my-id")
    read = read_events(parse_events([response.content]))
    assert (read.text, read.terminals) == ("".join(pieces), ["done"])


@pytest.mark.parametrize("route", ROUTES)
async def test_the_headers_keep_proxies_from_holding_the_stream_back(api: FakeApp, route: Route) -> None:
    response = await ask(api, route)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    assert read_events(parse_events([response.content])).usage is not None
    assert response.headers["x-request-id"].encode() in response.content


@pytest.mark.parametrize("route", ROUTES)
async def test_the_finish_reason_is_the_providers_word(api: FakeApp, route: Route) -> None:
    api.provider.script = Script(finish_reason=FinishReason.LENGTH)
    response = await ask(api, route, **{"x-request-id": "my-id"})
    assert response.content.endswith(ending("my-id", reason="length"))


@pytest.mark.parametrize("route", ROUTES)
async def test_an_estimated_usage_says_so(api: FakeApp, route: Route) -> None:
    api.provider.script = Script(usage=Usage(1, 2, estimated=True))
    read = read_events(parse_events([(await ask(api, route)).content]))
    assert read.usage is not None
    assert (read.usage["prompt_tokens"], read.usage["completion_tokens"], read.usage["estimated"]) == (1, 2, True)


async def test_the_query_reaches_the_provider(api: FakeApp) -> None:
    query = {"prompt": "Hi\n there", "model": "gpt-4o", "max_tokens": "9", "temperature": "0.5"}
    assert (await api.client.get("/stream", params=query)).status_code == 200
    call = api.provider.calls[0]
    assert call.upstream_model == "upstream-4o"
    assert call.request == GenerationRequest(
        model="gpt-4o", messages=(Message.of_text("user", "Hi\n there"),), max_tokens=9, temperature=0.5
    )


async def test_the_conversation_reaches_the_provider(api: FakeApp) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert (await api.client.post("/chat", json={"messages": messages, "user_id": "u_1"})).status_code == 200
    assert api.provider.calls[0].request == GenerationRequest(
        model="gpt-4o-mini",
        messages=tuple(Message.of_text(message["role"], message["content"]) for message in messages),  # type: ignore[arg-type] # the literals above
        max_tokens=256,
        temperature=0.7,
        user_id="u_1",
    )


async def test_a_plain_chat_has_all_fields(api: FakeApp) -> None:
    response = await api.client.post("/chat", json={"messages": HELLO})
    assert response.json() == {
        "message": {"role": "assistant", "content": "Hello, world"},
        "model": "gpt-4o-mini",
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "finish_reason": "stop",
        "request_id": response.headers["x-request-id"],
    }


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 4_001}, "prompt"),
        ({"prompt": "x", "max_tokens": "0"}, "max_tokens"),
        ({"prompt": "x", "max_tokens": "4097"}, "max_tokens"),
        ({"prompt": "x", "max_tokens": "many"}, "max_tokens"),
        ({"prompt": "x", "temperature": "2.1"}, "temperature"),
        ({"prompt": "x", "temperature": "nan"}, "temperature"),
        ({"prompt": "x", "model": ""}, "model"),
        ({"prompt": "x", "modell": "gpt-4o"}, "modell"),
    ],
)
async def test_a_wrong_query_parameter_is_named(api: FakeApp, query: dict[str, str], field: str) -> None:
    response = await api.client.get("/stream", params=query)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert [fault["field"] for fault in response.json()["errors"]] == [field]
    assert api.provider.calls == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": HELLO * 1_001}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [*HELLO, {"role": "user", "content": ""}]}, "messages.1.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name"),
        ({"messages": ["x"]}, "messages.0"),
        ({"messages": HELLO, "user_id": "ab"}, "user_id"),
        ({"messages": HELLO, "user_id": "a" * 65}, "user_id"),
        ({"messages": HELLO, "user_id": "a b c"}, "user_id"),
        ({"messages": HELLO, "user_id": "abc\n"}, "user_id"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
        ({"messages": HELLO, "max_tokens": 4_097}, "max_tokens"),
        ({"messages": HELLO, "temperature": 2.5}, "temperature"),
        ({"messages": HELLO, "n": 2}, "n"),
    ],
)
async def test_a_wrong_field_of_a_chat_is_named(api: FakeApp, body: dict[str, Any], field: str) -> None:
    response = await api.client.post("/chat", json=body)
    assert response.status_code == 422
    assert [fault["field"] for fault in response.json()["errors"]] == [field]
    assert api.provider.calls == []


@pytest.mark.parametrize("route", ROUTES)
async def test_an_unknown_model_is_a_422_and_no_stream(api: FakeApp, route: Route) -> None:
    response = await ask(api, route, model="gpt-5")
    assert (response.status_code, response.json()["code"]) == (422, "model_not_found")
    assert api.ends("sse") == {"error": 1}


STARTUP = Chunk(raw=b'data: {"role":"assistant"}\n\n', deltas=(Delta(),), response_id="r1", model="up")
"""What providers send first: a role and no content."""


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("before", [(), (STARTUP,), (STARTUP, STARTUP, "")])
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (UpstreamRejected("too long"), 400, None),
        (UpstreamThrottled("slower", retry_after_s=3), 503, "3"),
        (UpstreamUnavailable("gone"), 502, None),
        (UpstreamInvalid("an error in a 200"), 502, None),
        (UpstreamTimeout("no first token"), 504, None),
    ],
)
async def test_a_failure_before_the_first_content_is_a_status(  # noqa: PLR0917 - the table's columns
    api: FakeApp,
    route: Route,
    before: tuple[Chunk | str, ...],
    error: ServiceError,
    status: int,
    retry_after: str | None,
) -> None:
    api.provider.script = Script(pieces=(*before, error))
    response = await ask(api, route)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert response.headers.get("retry-after") == retry_after
    assert response.json()["code"] == error.code
    assert api.ends("sse") == {"error": 1}


@pytest.mark.parametrize("route", ROUTES)
async def test_a_stream_that_ends_before_any_content_is_a_502(api: FakeApp, route: Route) -> None:
    api.provider.script = Script(pieces=(STARTUP,), finish_reason=None)
    response = await ask(api, route)
    assert (response.status_code, response.json()["code"]) == (502, "upstream_invalid_response")


@pytest.mark.parametrize("route", ROUTES)
async def test_a_failure_after_the_first_content_is_an_error_event_and_nothing_follows(
    api: FakeApp, route: Route
) -> None:
    error = UpstreamUnavailable("the provider went away")
    api.provider.script = Script(pieces=("Hel", error))
    response = await ask(api, route, **{"x-request-id": "my-id"})
    events = parse_events([response.content])
    assert response.status_code == 200
    assert [event.event for event in events] == ["message", "error"]
    assert orjson.loads(events[1].data) == {
        "type": "https://github.com/llm-api/llm-api/blob/main/docs/errors.md#upstream_unavailable",
        "title": error.title,
        "status": 502,
        "detail": "the provider went away",
        "code": "upstream_unavailable",
        "retryable": True,
        "request_id": "my-id",
    }
    assert b"[DONE]" not in response.content
    assert api.ends("sse") == {"error": 1}
    assert api.value("llm_api_upstream_requests_total", provider="fake", model="gpt-4o-mini", outcome=error.code) == 1


@pytest.mark.parametrize("route", ROUTES)
async def test_a_stream_without_a_finish_reason_is_never_passed_off_as_finished(api: FakeApp, route: Route) -> None:
    api.provider.script = Script(finish_reason=None)
    read = read_events(parse_events([(await ask(api, route)).content]))
    assert (read.text, read.terminals, read.usage) == ("Hello, world", ["upstream_invalid_response"], None)


@pytest.mark.parametrize("route", ROUTES)
async def test_the_second_route_takes_over_before_the_first_content(api: FakeApp, route: Route) -> None:
    api.provider.script = Script(pieces=(STARTUP, UpstreamUnavailable("gone")))
    api.backup.script = Script(pieces=("from the second",))
    read = read_events(parse_events([(await ask(api, route, model="two-routes")).content]))
    assert (read.text, read.terminals) == ("from the second", ["done"])
    assert api.provider.calls[0].closed.is_set()
    upstream = "llm_api_upstream_requests_total"
    assert api.value(upstream, provider="fake", model="two-routes", outcome="upstream_unavailable") == 1
    assert api.value(upstream, provider="backup", model="two-routes", outcome="ok") == 1


@pytest.mark.parametrize("route", ROUTES)
async def test_the_second_route_never_takes_over_after_the_first_content(api: FakeApp, route: Route) -> None:
    api.provider.script = Script(pieces=("Hel", UpstreamUnavailable("gone")))
    read = read_events(parse_events([(await ask(api, route, model="two-routes")).content]))
    assert (read.text, read.terminals) == ("Hel", ["upstream_unavailable"])
    assert api.backup.calls == []


class Defective(FakeProvider):
    """Breaks in mid-stream in a way that no code expects."""

    @override
    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[AsyncIterator[Chunk]]:
        async def chunks() -> AsyncIterator[Chunk]:
            yield Chunk(deltas=(Delta(text="Hel"),))
            raise ZeroDivisionError("secret detail")

        yield chunks()


@pytest.mark.parametrize("route", ROUTES)
async def test_a_defect_in_mid_stream_is_an_error_event(
    api: FakeApp, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.provider, "stream", Defective().stream)
    response = await ask(api, route)
    read = read_events(parse_events([response.content]))
    assert (read.text, read.terminals) == ("Hel", ["internal_error"])
    assert b"secret" not in response.content
    assert api.value("llm_api_unhandled_errors_total", place="stream") == 1
    assert api.ends("sse") == {"error": 1}
    outcome = {"provider": "fake", "model": "gpt-4o-mini", "outcome": "internal_error"}
    assert api.value("llm_api_upstream_requests_total", **outcome) == 1


class SlowToClose(FakeProvider):
    """Takes some turns of the event loop to close its connection, as real ones may."""

    closed = False

    @override
    @asynccontextmanager
    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[AsyncIterator[Chunk]]:
        async with super().stream(*args, **kwargs) as chunks:
            try:
                yield chunks
            finally:
                for _ in range(20):
                    await asyncio.sleep(0)
                self.closed = True


@pytest.mark.parametrize("route", ROUTES)
async def test_a_stream_that_was_sent_whole_counts_as_complete_however_slowly_it_closes(
    api: FakeApp, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowToClose()
    monkeypatch.setattr(api.provider, "stream", slow.stream)
    assert (await ask(api, route)).content.endswith(b"data: [DONE]\n\n")
    assert slow.closed
    assert api.ends("sse") == {"complete": 1}
    ok = {"provider": "fake", "model": "gpt-4o-mini", "outcome": "ok"}
    assert api.value("llm_api_upstream_requests_total", **ok) == 1


@pytest.mark.parametrize("route", ROUTES)
async def test_a_finished_stream_counts_once_with_its_tokens(api: FakeApp, route: Route) -> None:
    await ask(api, route)
    assert api.ends("sse") == {"complete": 1}
    assert api.value("llm_api_streams_active", transport="sse") == 0
    assert api.value("llm_api_time_to_first_token_seconds_count", transport="sse") == 1
    assert (
        api.value(
            "llm_api_http_requests_total", route=route, method="GET" if route == "/stream" else "POST", code="200"
        )
        == 1
    )
    for kind, count in (("input", 5), ("output", 3)):
        assert api.value("llm_api_tokens_total", provider="fake", model="gpt-4o-mini", type=kind) == count
