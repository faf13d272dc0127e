"""Through an nginx that nobody has configured for streams: HTTP/1.0 upstream, buffering on, 60 s of patience."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.keepalive import COMMENT
from service.providers.fake import FakeCall, Script
from tests.support.fake_app import DEADLINE_S, FakeApp, fake_app_on_socket, soon, until
from tests.support.nginx import NO_NGINX, find_nginx, nginx
from tests.support.readers import parse_events, read_events

HELLO = [{"role": "user", "content": "Hello"}]
Ask = tuple[str, str, dict[str, Any]]
STREAM: Ask = ("GET", "/stream", {"params": {"prompt": "Hello"}})
STREAMS: list[Ask] = [
    STREAM,
    ("POST", "/chat", {"json": {"messages": HELLO, "stream": True}}),
    ("POST", "/v1/chat/completions", {"json": {"model": "gpt-4o", "messages": HELLO, "stream": True}}),
    ("POST", "/v1/messages", {"json": {"model": "gpt-4o", "messages": HELLO, "max_tokens": 9, "stream": True}}),
]
each_route = pytest.mark.parametrize("ask", STREAMS, ids=[path for _, path, _ in STREAMS])

IMPATIENT = "proxy_read_timeout 1s;"
NEVER_S = 3_600.0
LEAVING_S = 0.25
"""Within which an upstream call is closed once its client has left, nginx's own noticing included."""


@dataclass
class Reading:
    """A stream that is being read."""

    response: httpx.Response
    pieces: AsyncIterator[bytes]
    seen: bytes = b""

    async def to(self, text: bytes, times: int = 1) -> None:
        """Read until something came so many times."""
        while self.seen.count(text) < times:
            self.seen += await asyncio.wait_for(anext(self.pieces), DEADLINE_S)

    async def rest(self) -> None:
        """Read to the end, which is raised if it is none."""
        async for piece in self.pieces:
            self.seen += piece

    @property
    def terminals(self) -> list[str]:
        return read_events(parse_events([self.seen])).terminals


@dataclass
class Front:
    """The service, whose provider waits for each step, and a client that reaches it through nginx."""

    api: FakeApp
    client: httpx.AsyncClient

    @asynccontextmanager
    async def reading(self, ask: Ask, *, steps: int = 0) -> AsyncIterator[tuple[Reading, FakeCall]]:
        """Open a stream. Its provider takes some steps at once, for nothing may come back before that."""

        async def step() -> FakeCall:
            call = await self.api.provider.call()
            call.step(steps)
            return call

        method, path, request = ask
        stepping = asyncio.create_task(step())
        async with self.client.stream(method, path, **request) as response:
            yield Reading(response, response.aiter_bytes()), await stepping


Opener = Callable[..., AbstractAsyncContextManager[Front]]


@pytest.fixture(scope="module")
def program() -> str:
    found = find_nginx()
    if found is None:
        pytest.skip(NO_NGINX)
    return found


@pytest.fixture
def front(program: str, tmp_path: Path) -> Opener:
    """Give what opens it, with more configuration of nginx, and with settings for ``streams``."""

    @asynccontextmanager
    async def opened(more: str = "", **streams: float) -> AsyncIterator[Front]:
        async with fake_app_on_socket(Script(stepped=True), streams=streams) as api:
            with nginx(program, api.base_url, tmp_path / "nginx", more) as address:
                async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
                    yield Front(api, client)

    return opened


@each_route
async def test_each_event_arrives_before_the_next_is_made(front: Opener, ask: Ask) -> None:
    async with front() as behind:
        async with behind.reading(ask, steps=1) as (reading, call):
            assert reading.response.status_code == 200
            for text in (b"Hello", b", ", b"world"):
                await reading.to(text)
                await soon(call.waiting)
                call.step()
            await reading.rest()
        await until(lambda: behind.api.ends("sse") == {"complete": 1})


@each_route
async def test_status_and_comments_arrive_while_the_provider_is_silent(front: Opener, ask: Ask) -> None:
    async with front(headers_after_s=0.01, keepalive_s=0.01) as behind, behind.reading(ask) as (reading, call):
        await reading.to(COMMENT, times=3)
        assert reading.response.status_code == 200
        assert reading.seen.replace(COMMENT, b"") == b""
        call.step(4)
        await reading.rest()
        assert reading.seen.replace(COMMENT, b"").startswith((b"data: ", b"event: "))


@pytest.mark.parametrize("steps", [0, 1])
@each_route
async def test_leaving_nginx_closes_the_upstream_call(front: Opener, ask: Ask, steps: int) -> None:
    async with front(headers_after_s=0.01) as behind:
        async with behind.reading(ask, steps=steps) as (reading, call):
            await reading.to(b"Hello" if steps else COMMENT)
            left_at = time.monotonic()
        await soon(call.closed)
        assert time.monotonic() - left_at < LEAVING_S
        await until(lambda: behind.api.ends("sse") == {"client_disconnect": 1})


@pytest.mark.parametrize("steps", [0, 1])
async def test_comments_keep_a_silent_stream_through_nginxs_read_timeout(front: Opener, steps: int) -> None:
    async with front(IMPATIENT, headers_after_s=0.3, keepalive_s=0.3) as behind:
        began_at = time.monotonic()
        async with behind.reading(STREAM, steps=steps) as (reading, call):
            await reading.to(COMMENT, times=6)
            assert time.monotonic() - began_at > 1.0
            call.step(4)
            await reading.rest()
        assert reading.terminals == ["done"]
        assert not call.cancelled


async def test_without_comments_nginx_cuts_a_silent_stream_and_nothing_looks_like_its_end(front: Opener) -> None:
    async with front(IMPATIENT, keepalive_s=NEVER_S) as behind, behind.reading(STREAM, steps=1) as (reading, call):
        await reading.to(b"Hello")
        with pytest.raises(httpx.RemoteProtocolError):
            await reading.rest()
        assert (reading.seen, reading.terminals) == (b"data: Hello\n\n", [])
        await soon(call.closed)
        await until(lambda: behind.api.ends("sse") == {"client_disconnect": 1})


async def test_without_an_early_status_nginx_answers_a_slow_first_token_with_its_own_504(front: Opener) -> None:
    async with front(IMPATIENT, headers_after_s=NEVER_S) as behind, behind.reading(STREAM) as (reading, call):
        assert reading.response.status_code == 504
        await soon(call.closed)


async def test_a_quick_failure_is_a_status_through_nginx_too(front: Opener) -> None:
    async with front() as behind:
        behind.api.provider.script = Script(finish_reason=None, pieces=())
        response = await behind.client.get("/stream", params={"prompt": "Hello"})
        assert (response.status_code, response.json()["code"]) == (502, "upstream_invalid_response")
