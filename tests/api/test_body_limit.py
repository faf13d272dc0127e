"""The size of a body: refused at once when it is declared, and when it is passed if it is not."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
from typing_extensions import override

from service.api import middleware
from service.providers.fake import Script
from tests.support.fake_app import DEADLINE_S, FakeApp, fake_app, fake_app_on_socket, soon

LIMIT = 2_048
PATHS = ["/generate", "/chat", "/generate/async", "/v1/chat/completions", "/v1/embeddings", "/v1/messages"]


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeApp]:
    # What is read only to be thrown away is shown over a socket, in test_live_routes.py.
    monkeypatch.setattr(middleware, "REST_BYTES", 0)
    async with fake_app(server={"max_body_bytes": LIMIT}) as running:
        yield running


def of_length(length: int) -> bytes:
    return b'{"prompt": "Hello"}'.ljust(length)


class Pieces(httpx.AsyncByteStream):
    """A body of unknown length that remembers how much of it was read."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.read_bytes = 0

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            self.read_bytes += len(piece)
            yield piece


async def refusal(response: httpx.Response, path: str) -> None:
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert response.headers["x-request-id"]
    body = response.json()
    if path == "/v1/messages":
        assert (body["type"], body["error"]["type"]) == ("error", "request_too_large")
    elif path.startswith("/v1"):
        assert (body["error"]["code"], body["error"]["type"]) == ("request_too_large", "invalid_request_error")
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert (body["code"], body["status"]) == ("request_too_large", 413)


@pytest.mark.parametrize("path", PATHS)
async def test_a_declared_body_over_the_limit_is_refused_before_it_is_read(api: FakeApp, path: str) -> None:
    body = Pieces(of_length(LIMIT + 1))
    response = await api.client.post(path, content=body, headers={"content-length": str(LIMIT + 1)})
    await refusal(response, path)
    assert body.read_bytes == 0
    assert api.provider.calls == []


@pytest.mark.parametrize("path", PATHS)
async def test_a_chunked_body_is_refused_as_soon_as_it_passes_the_limit(api: FakeApp, path: str) -> None:
    body = Pieces(*[b" " * 1_024] * 10)
    await refusal(await api.client.post(path, content=body), path)
    assert body.read_bytes <= LIMIT + 1_024
    assert api.provider.calls == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_at_the_limit_passes(api: FakeApp, chunked: bool) -> None:  # noqa: FBT001 - both ways
    whole = of_length(LIMIT)
    content = Pieces(whole[:100], whole[100:]) if chunked else whole
    assert (await api.client.post("/generate", content=content)).status_code == 200


async def test_a_body_over_the_limit_on_a_route_that_needs_none_is_refused_too(api: FakeApp) -> None:
    request = api.client.build_request("GET", "/stream", params={"prompt": "x"}, content=Pieces(b" " * 3_000))
    await refusal(await api.client.send(request), "/stream")
    assert api.provider.calls == []


async def test_a_body_that_nobody_needs_does_no_harm(api: FakeApp) -> None:
    request = api.client.build_request("GET", "/stream", params={"prompt": "x"}, content=Pieces(b"a", b"b"))
    assert (await api.client.send(request)).content.endswith(b"data: [DONE]\n\n")


async def test_the_default_limit_is_a_mebibyte() -> None:
    async with fake_app() as api:
        assert (await api.client.post("/generate", content=of_length(1_048_576))).status_code == 200
        assert (await api.client.post("/generate", content=of_length(1_048_577))).status_code == 413


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/messages", "/stream?prompt=x"])
@pytest.mark.parametrize("begun", [b"", b'{"prompt'])
async def test_a_body_that_stops_coming_is_given_up(path: str, begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_IDLE_S", 0.05)
    method = "GET" if path.startswith("/stream") else "POST"
    async with fake_app_on_socket() as api:
        address = urlsplit(api.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 99\r\n\r\n".encode() + begun
        )
        head, _, body = (await asyncio.wait_for(reader.read(), DEADLINE_S)).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 408 ")
        assert head.lower().count(b"connection: close") == 1
        assert b"nothing of the body came" in body
        assert api.provider.calls == []


async def test_after_its_body_a_request_may_take_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_IDLE_S", 0.01)
    async with fake_app_on_socket(Script(stepped=True)) as api:
        request = asyncio.create_task(api.client.post("/generate", json={"prompt": "x"}))
        call = await api.provider.call()
        await soon(call.waiting)
        await asyncio.sleep(0.03)  # a limit that were still in force would pass
        call.step(3)
        assert (await request).status_code == 200
