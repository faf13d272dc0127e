"""How long an answer is of use to its caller: taken from each surface, and refused where it is no such time."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection
from starlette.types import Message

from service.api.deps import get_generation
from service.api.request_timeout import MAX_TIMEOUT_MS, MIN_TIMEOUT_MS, REQUEST_TIMEOUT, request_timeout_s
from service.domain.generation import (
    Chunk,
    Completion,
    EmbeddingRequest,
    EmbeddingResult,
    GenerationRequest,
)
from service.domain.principal import RequestContext
from service.engine.generation import GenerationService
from service.errors import InvalidRequest
from tests.support.fake_app import ALICE, DEADLINE_S, FakeApp, bearer, fake_app, keyed_auth

HELLO = [{"role": "user", "content": "Hello"}]
PROBLEM = "application/problem+json"
SURFACES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "generate": ("POST", "/generate", {"json": {"prompt": "Hello"}}),
    "stream": ("GET", "/stream", {"params": {"prompt": "Hello"}}),
    "chat": ("POST", "/chat", {"json": {"messages": HELLO}}),
    "chat-stream": ("POST", "/chat", {"json": {"messages": HELLO, "stream": True}}),
    "openai": ("POST", "/v1/chat/completions", {"json": {"model": "gpt-4o", "messages": HELLO}}),
    "openai-stream": ("POST", "/v1/chat/completions", {"json": {"model": "gpt-4o", "messages": HELLO, "stream": True}}),
    "embeddings": ("POST", "/v1/embeddings", {"json": {"model": "vectors", "input": "Hello"}}),
    "anthropic": ("POST", "/v1/messages", {"json": {"model": "gpt-4o", "messages": HELLO, "max_tokens": 9}}),
    "anthropic-stream": (
        "POST",
        "/v1/messages",
        {"json": {"model": "gpt-4o", "messages": HELLO, "max_tokens": 9, "stream": True}},
    ),
}
ANY_SURFACE = pytest.mark.parametrize("surface", SURFACES)
BAD = ["", "0", "-1", "1.5", "1e3", "+5", "1_000", "0x10", "soon", "1000, 2000", str(MAX_TIMEOUT_MS + 1), "9" * 5_000]


class Recorder:
    """Does what the application's own does, and remembers for whom."""

    def __init__(self, inner: GenerationService) -> None:
        self.inner = inner
        self.contexts: list[RequestContext] = []

    async def complete(self, request: GenerationRequest, context: RequestContext) -> Completion:
        self.contexts.append(context)
        return await self.inner.complete(request, context)

    def stream(
        self, request: GenerationRequest, context: RequestContext
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        self.contexts.append(context)
        return self.inner.stream(request, context)

    async def embed(self, request: EmbeddingRequest, context: RequestContext) -> EmbeddingResult:
        self.contexts.append(context)
        return await self.inner.embed(request, context)


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app() as running:
        yield running


@pytest.fixture
def recorder(api: FakeApp) -> Recorder:
    made = Recorder(api.resources.generation)
    api.app.dependency_overrides[get_generation] = lambda: made
    return made


async def ask(api: FakeApp, surface: str, timeout_ms: str | None, **headers: str) -> httpx.Response:
    method, path, request = SURFACES[surface]
    given_headers = headers if timeout_ms is None else {**headers, REQUEST_TIMEOUT: timeout_ms}
    return await api.client.request(method, path, headers=given_headers, **request)


@ANY_SURFACE
async def test_the_header_sets_the_deadline_from_when_the_request_came(
    api: FakeApp, recorder: Recorder, surface: str
) -> None:
    before = time.monotonic()
    response = await ask(api, surface, "90000")
    assert response.status_code == 200, response.text
    (context,) = recorder.contexts
    assert context.deadline_at == context.received_at + 90.0
    assert before <= context.received_at <= time.monotonic()


@ANY_SURFACE
async def test_without_the_header_there_is_no_deadline(api: FakeApp, recorder: Recorder, surface: str) -> None:
    assert (await ask(api, surface, None)).status_code == 200
    assert [context.deadline_at for context in recorder.contexts] == [None]


@pytest.mark.parametrize("value", ["100", "00700", str(MAX_TIMEOUT_MS)])
def test_any_whole_number_in_bounds_is_taken(value: str) -> None:
    assert request_timeout_s(connection(value)) == int(value) / 1_000


@given(st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=12))
def test_whatever_the_header_holds_it_is_a_time_or_named(value: str) -> None:
    if value.isascii() and value.isdigit() and len(value) <= 8 and MIN_TIMEOUT_MS <= int(value) <= MAX_TIMEOUT_MS:
        assert request_timeout_s(connection(value)) == int(value) / 1_000
    else:
        with pytest.raises(InvalidRequest) as caught:
            request_timeout_s(connection(value))
        assert [fault.field for fault in caught.value.fields] == [REQUEST_TIMEOUT]


def connection(value: str) -> HTTPConnection:
    return HTTPConnection({"type": "http", "headers": [(REQUEST_TIMEOUT.lower().encode(), value.encode("latin-1"))]})


@ANY_SURFACE
async def test_a_bad_value_is_refused_in_the_surfaces_own_shape(api: FakeApp, recorder: Recorder, surface: str) -> None:
    for value in BAD:
        response = await ask(api, surface, value)
        body = response.json()
        match surface.partition("-")[0]:
            case "openai" | "embeddings":
                assert (response.status_code, body["error"]["type"]) == (400, "invalid_request_error")
                assert body["error"]["param"] == REQUEST_TIMEOUT
                message = body["error"]["message"]
            case "anthropic":
                assert (response.status_code, body["error"]["type"]) == (400, "invalid_request_error")
                message = body["error"]["message"]
            case _:
                assert (response.status_code, response.headers["content-type"]) == (422, PROBLEM)
                assert [fault["field"] for fault in body["errors"]] == [REQUEST_TIMEOUT]
                message = body["detail"]
        assert REQUEST_TIMEOUT in message
        assert f"{MIN_TIMEOUT_MS} to {MAX_TIMEOUT_MS}" in message
    assert recorder.contexts == []
    assert api.provider.calls == []


async def test_who_calls_is_looked_at_first() -> None:
    async with fake_app(auth=keyed_auth()) as api:
        assert (await ask(api, "generate", "soon")).status_code == 401
        assert (await ask(api, "generate", "soon", **bearer(ALICE))).status_code == 422


async def test_a_resumable_stream_has_the_deadline_too(api: FakeApp, recorder: Recorder) -> None:
    response = await ask(api, "stream", "90000", **{"X-LLM-Resumable": "true"})
    assert "x-stream-id" in response.headers
    (context,) = recorder.contexts
    assert context.deadline_at == context.received_at + 90.0


async def test_routes_that_do_not_generate_take_no_notice_of_it(api: FakeApp) -> None:
    headers = {REQUEST_TIMEOUT: "soon"}
    assert (await api.client.get("/v1/models", headers=headers)).status_code == 200
    assert (await api.client.post("/generate/async", json={"prompt": "x"}, headers=headers)).status_code == 202


async def test_another_origins_page_may_send_it() -> None:
    async with fake_app(cors={"origins": ["https://app.example"]}) as api:
        headers = {
            "origin": "https://app.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": REQUEST_TIMEOUT.lower(),
        }
        response = await api.client.options("/generate", headers=headers)
    assert response.status_code == 200
    assert REQUEST_TIMEOUT.lower() in response.headers["access-control-allow-headers"].lower()


async def test_it_is_documented_on_every_route_that_takes_it_and_on_no_other(api: FakeApp) -> None:
    paths = (await api.client.get("/openapi.json")).json()["paths"]
    documented = {
        (method.upper(), path)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if any(parameter["name"] == REQUEST_TIMEOUT for parameter in operation.get("parameters", ()))
    }
    assert documented == {(method, path) for method, path, _ in SURFACES.values()}


# On a WebSocket.


async def converse(api: FakeApp, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Send messages on one socket, each after the end of what the one before began; return all that came."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    answers: list[dict[str, Any]] = []
    waiting = list(messages)

    def go_on() -> None:
        if waiting:
            inbox.put_nowait({"type": "websocket.receive", "text": json.dumps(waiting.pop(0))})
        else:
            inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})

    async def send(message: Message) -> None:
        if message["type"] == "websocket.accept":
            go_on()
        elif message["type"] == "websocket.send":
            answers.append(json.loads(message["text"]))
            if answers[-1]["type"] in ("done", "error"):
                go_on()

    inbox.put_nowait({"type": "websocket.connect"})
    scope = {"type": "websocket", "path": "/ws", "headers": [], "query_string": b"", "subprotocols": []}
    async with asyncio.timeout(DEADLINE_S):
        await api.asgi(scope, inbox.get, send)
    return answers


GENERATE = {"type": "generate", "id": "a", "prompt": "Hello"}
CHAT = {"type": "chat", "id": "b", "messages": HELLO}


async def test_messages_set_the_deadline_from_when_they_came(api: FakeApp, recorder: Recorder) -> None:
    answers = await converse(api, {**GENERATE, "timeout_ms": 1_500}, {**CHAT, "timeout_ms": MAX_TIMEOUT_MS}, GENERATE)
    assert [answer["id"] for answer in answers if answer["type"] == "done"] == ["a", "b", "a"]
    timeouts = [
        None if context.deadline_at is None else context.deadline_at - context.received_at
        for context in recorder.contexts
    ]
    assert timeouts == [pytest.approx(1.5), pytest.approx(86_400.0), None]


@pytest.mark.parametrize("message", [GENERATE, CHAT], ids=lambda message: message["type"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "1000", True, MAX_TIMEOUT_MS + 1])
async def test_a_message_with_a_bad_time_is_refused_and_the_socket_stays(
    api: FakeApp, recorder: Recorder, message: dict[str, Any], value: object
) -> None:
    refused, *rest = await converse(api, {**message, "timeout_ms": value}, {**message, "id": "next"})
    assert (refused["type"], refused["status"], refused["id"]) == ("error", 422, message["id"])
    assert [fault["field"] for fault in refused["errors"]] == ["timeout_ms"]
    assert rest[-1]["type"] == "done"
    assert len(recorder.contexts) == 1
