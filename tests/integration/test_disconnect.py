"""Who hangs up stops paying: on a socket, the provider's call ends, and nobody is told of a failure."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.errors import UpstreamUnavailable
from service.providers.fake import FakeCall, Script
from service.serving.protocols import MAX_PIPELINED_BODY_BYTES, HttpProtocol
from tests.support.fake_app import DEADLINE_S, FakeApp, fake_app_on_socket, soon, until

STEPPED = Script(stepped=True)
HELLO = [{"role": "user", "content": "Hello"}]
PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": "Hello"}),
    ("/chat", {"messages": HELLO}),
    ("/v1/chat/completions", {"model": "gpt-4o", "messages": HELLO}),
    ("/v1/messages", {"model": "gpt-4o", "messages": HELLO, "max_tokens": 9}),
]
STREAMS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/stream", {"params": {"prompt": "Hello"}}),
    ("POST", "/chat", {"json": {"messages": HELLO, "stream": True}}),
    ("POST", "/v1/chat/completions", {"json": {"model": "gpt-4o", "messages": HELLO, "stream": True}}),
    ("POST", "/v1/messages", {"json": {"model": "gpt-4o", "messages": HELLO, "max_tokens": 9, "stream": True}}),
]


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app_on_socket() as running:
        running.provider.script = STEPPED
        yield running


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


@asynccontextmanager
async def begun(
    api: FakeApp, method: str, path: str, request: dict[str, Any]
) -> AsyncIterator[tuple[AsyncIterator[bytes], FakeCall]]:
    """Open a stream whose first piece is on its way."""

    async def step() -> FakeCall:
        call = await api.provider.call()
        call.step()
        return call

    stepping = asyncio.create_task(step())
    async with api.client.stream(method, path, **request) as response:
        assert response.status_code == 200
        yield response.aiter_bytes(), await stepping


async def read_to(text: bytes, pieces: AsyncIterator[bytes]) -> None:
    seen = b""
    while text not in seen:
        seen += await asyncio.wait_for(anext(pieces), DEADLINE_S)


async def hang_up(request: "asyncio.Task[Any]") -> None:
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request


async def nobody_is_left(api: FakeApp, call: FakeCall) -> None:
    """Wait until the call and the request are over, and show that neither counts as a failure."""
    await soon(call.closed)
    assert call.cancelled
    await until(lambda: api.in_flight == 0)
    for place in ("http", "stream", "websocket", "job", "readiness"):
        assert api.value("llm_api_unhandled_errors_total", place=place) == 0


@pytest.mark.parametrize(("path", "body"), PLAIN)
async def test_leaving_a_plain_call_cancels_the_providers(api: FakeApp, path: str, body: dict[str, Any]) -> None:
    request = asyncio.create_task(api.client.post(path, json=body))
    call = await api.provider.call()
    await soon(call.waiting)
    await hang_up(request)
    await nobody_is_left(api, call)
    assert api.value("llm_api_http_requests_total", route=path, method="POST", code="499") == 1
    assert api.value("llm_api_http_requests_total", route=path, method="POST", code="500") == 0


@pytest.mark.parametrize(("method", "path", "request_"), STREAMS)
async def test_leaving_a_stream_before_its_first_content_cancels_the_providers(
    api: FakeApp, method: str, path: str, request_: dict[str, Any]
) -> None:
    request = asyncio.create_task(api.client.request(method, path, **request_))
    call = await api.provider.call()
    await soon(call.waiting)
    await hang_up(request)
    await nobody_is_left(api, call)
    assert api.ends("sse") == {"client_disconnect": 1}
    assert api.value("llm_api_http_requests_total", route=path, method=method, code="499") == 1


@pytest.mark.parametrize(("method", "path", "request_"), STREAMS)
async def test_leaving_in_mid_stream_cancels_the_providers(
    api: FakeApp, method: str, path: str, request_: dict[str, Any]
) -> None:
    async with begun(api, method, path, request_) as (pieces, call):
        await read_to(b"Hello", pieces)
        assert not call.closed.is_set()
    await nobody_is_left(api, call)
    assert api.ends("sse") == {"client_disconnect": 1}
    assert api.value("llm_api_streams_active", transport="sse") == 0
    upstream = {"provider": "fake", "outcome": "cancelled"}
    model = "gpt-4o" if path.startswith("/v1") else "gpt-4o-mini"
    assert api.value("llm_api_upstream_requests_total", model=model, **upstream) == 1


@pytest.mark.parametrize(("method", "path", "request_"), STREAMS)
async def test_pieces_arrive_one_by_one_and_the_end_is_no_disconnect(
    api: FakeApp, method: str, path: str, request_: dict[str, Any]
) -> None:
    async with begun(api, method, path, request_) as (pieces, call):
        for text in (b"Hello", b", ", b"world"):
            await read_to(text, pieces)
            await soon(call.waiting)
            call.step()
        rest = b"".join([piece async for piece in pieces])
    assert b"world" not in rest
    await until(lambda: api.in_flight == 0)
    assert api.ends("sse") == {"complete": 1}
    assert not call.cancelled


@pytest.mark.parametrize("path", ["/generate", "/chat", "/v1/chat/completions", "/v1/messages", "/generate/async"])
async def test_leaving_in_the_middle_of_an_upload_is_no_failure(api: FakeApp, path: str) -> None:
    begun = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"prompt": "x'
        begun.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(api.client.post(path, content=body()))
    await soon(begun)
    await until(lambda: api.in_flight == 1)
    await hang_up(request)
    await until(lambda: api.in_flight == 0)
    assert api.value("llm_api_unhandled_errors_total", place="http") == 0
    assert api.value("llm_api_http_requests_total", route=path, method="POST", code="499") == 1
    assert api.provider.calls == []


async def test_a_stream_that_fails_after_its_client_left_is_still_a_disconnect(api: FakeApp) -> None:
    api.provider.script = Script(pieces=("Hello", UpstreamUnavailable("gone")), stepped=True)
    async with begun(api, *STREAMS[0]) as (pieces, call):
        await read_to(b"Hello", pieces)
    await nobody_is_left(api, call)
    call.step()
    assert api.ends("sse") == {"client_disconnect": 1}


async def test_one_client_leaving_does_not_disturb_another(api: FakeApp) -> None:
    async with httpx.AsyncClient(base_url=api.base_url, trust_env=False) as other:
        leaving = asyncio.create_task(api.client.post("/generate", json={"prompt": "first"}))
        first = await api.provider.call(0)
        staying = asyncio.create_task(other.post("/generate", json={"prompt": "second"}))
        second = await api.provider.call(1)
        await hang_up(leaving)
        await soon(first.closed)
        assert not second.closed.is_set()
        second.step(3)
        assert (await staying).json()["text"] == "Hello, world"


async def test_a_job_outlives_the_connection_that_submitted_it(api: FakeApp) -> None:
    async with httpx.AsyncClient(base_url=api.base_url, trust_env=False) as leaving:
        address = (await leaving.post("/generate/async", json={"prompt": "Hello"})).headers["location"]
    call = await api.provider.call()
    await soon(call.waiting)
    call.step(4)
    await soon(call.closed)
    async with asyncio.timeout(DEADLINE_S):
        while (state := (await api.client.get(address)).json())["status"] == "pending":  # noqa: ASYNC110 - as callers do
            await asyncio.sleep(0.01)
    assert state["text"] == "Hello, world"


async def test_the_next_request_on_a_connection_that_was_kept_is_served(api: FakeApp) -> None:
    api.provider.script = Script()
    for _ in range(3):
        assert (await api.client.post("/generate", json={"prompt": "x"})).status_code == 200
        assert b"[DONE]" in (await api.client.get("/stream", params={"prompt": "x"})).content
    assert api.ends("sse") == {"complete": 3}


# What uvicorn's own protocol misses


async def connect(api: FakeApp, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(api.base_url)
    return await asyncio.open_connection(address.hostname, address.port, **options)


def request_bytes(method: str, path: str, body: bytes = b"") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize(
    "pipelined",
    [
        request_bytes("GET", "/health"),
        request_bytes("POST", "/generate", b"{" + b" " * (MAX_PIPELINED_BODY_BYTES // 2)),
        request_bytes("POST", "/generate", b" " * 9)[:-5],
        request_bytes("GET", "/health") * 5,
    ],
    ids=["one", "one with a long body", "half a one", "five"],
)
async def test_leaving_with_requests_pipelined_cancels_the_one_that_runs(
    api: FakeApp,
    pipelined: bytes,
    abruptly: bool,  # noqa: FBT001 - both ways
) -> None:
    reader, writer = await connect(api)
    writer.write(request_bytes("GET", "/stream?prompt=x") + pipelined)
    call = await api.provider.call()
    call.step()
    await asyncio.wait_for(reader.readuntil(b"data: Hello\n\n"), DEADLINE_S)
    if abruptly:
        writer.transport.abort()
    else:
        writer.close()
    await nobody_is_left(api, call)
    assert api.ends("sse") == {"client_disconnect": 1}
    assert len(api.provider.calls) == 1


async def test_pipelined_requests_are_answered_in_turn(api: FakeApp) -> None:
    api.provider.script = Script()
    reader, writer = await connect(api)
    bodies = [b'{"prompt": "%d"}' % number for number in range(40)]
    writer.write(b"".join(request_bytes("POST", "/generate", body) for body in bodies))
    for _ in bodies:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        assert head.startswith(b"HTTP/1.1 200 ")
        length = next(int(line.split()[1]) for line in head.splitlines() if line.startswith(b"content-length"))
        await reader.readexactly(length)
    writer.close()
    assert [call.request.messages[0].text for call in api.provider.calls] == [str(number) for number in range(40)]  # type: ignore[union-attr]


async def test_a_client_that_does_not_read_holds_no_upstream_call(
    api: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HttpProtocol, "write_timeout_s", 0.05)
    api.provider.script = Script(pieces=("x" * 1_000_000,) * 100, stepped=True)
    _, writer = await connect(api, limit=1_024)
    writer.write(request_bytes("GET", "/stream?prompt=x"))
    call = await api.provider.call()
    call.step(99)
    await nobody_is_left(api, call)
    assert api.ends("sse") == {"slow_client": 1}
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_client_that_reads_on_in_time_is_served_to_the_end(
    api: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = asyncio.Event()
    pause = HttpProtocol.pause_writing

    def tell(protocol: HttpProtocol) -> None:
        pause(protocol)
        paused.set()

    monkeypatch.setattr(HttpProtocol, "pause_writing", tell)
    api.provider.script = Script(pieces=("x" * 1_000_000,) * 20)
    reader, writer = await connect(api, limit=1_024)
    writer.write(request_bytes("GET", "/stream?prompt=x"))
    await soon(paused)
    text = b""
    while not text.endswith(b"0\r\n\r\n"):
        text += await asyncio.wait_for(reader.read(1_000_000), DEADLINE_S)
    assert b"[DONE]" in text
    assert api.ends("sse") == {"complete": 1}
    writer.close()
