"""The size of a body: refused at once when it is declared, and when it is passed if it is not."""

from collections.abc import AsyncIterator

import httpx
import pytest
from typing_extensions import override

from tests.support.fake_app import FakeApp, fake_app

LIMIT = 2_048
PATHS = ["/generate", "/chat", "/generate/async", "/v1/chat/completions", "/v1/embeddings", "/v1/messages"]


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
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
