"""Over sockets: a stream is alive from the start, quick failures stay statuses, slow readers slow the upstream."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, socket
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx
import openai
import pytest

from service.api.keepalive import COMMENT
from service.config import Settings
from service.errors import UpstreamUnavailable
from service.providers.fake import Script
from service.serving.protocols import HttpProtocol
from tests.support.fake_app import DEADLINE_S, FakeApp, fake_app_on_socket, soon, until
from tests.support.live import LiveService, serving, settings_over
from tests.support.readers import parse_events, read_events
from tests.support.wire import openai_event

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
"""Of a type that every SDK takes."""
Ask = tuple[str, str, dict[str, Any]]


def asks(model: str) -> list[Ask]:
    """Return a request for each streaming route."""
    body = {"model": model, "messages": HELLO, "stream": True}
    return [
        ("GET", "/stream", {"params": {"prompt": "Hello", "model": model}}),
        ("POST", "/chat", {"json": body}),
        ("POST", "/v1/chat/completions", {"json": body}),
        ("POST", "/v1/messages", {"json": {**body, "max_tokens": 9}}),
    ]


each_route = pytest.mark.parametrize("number", range(4), ids=[path for _, path, _ in asks("")])
each_own_route = pytest.mark.parametrize("number", range(2), ids=["/stream", "/chat"])


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    """Serve with little patience for silence, over a provider that waits for each step."""
    async with fake_app_on_socket(Script(stepped=True), streams={"headers_after_s": 0.02, "keepalive_s": 0.02}) as api:
        yield api


class Reading:
    """A stream that is being read."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._pieces = response.aiter_bytes()
        self.seen = b""

    async def to(self, text: bytes, times: int = 1) -> None:
        """Read until something came so many more times."""
        times += self.seen.count(text)
        while self.seen.count(text) < times:
            self.seen += await asyncio.wait_for(anext(self._pieces), DEADLINE_S)

    async def rest(self) -> None:
        """Read to the end."""
        async for piece in self._pieces:
            self.seen += piece


@asynccontextmanager
async def reading(client: httpx.AsyncClient, ask: Ask) -> AsyncIterator[Reading]:
    method, path, request = ask
    async with client.stream(method, path, **request) as response:
        yield Reading(response)


@each_route
async def test_comments_come_in_every_silence(api: FakeApp, number: int) -> None:
    async with reading(api.client, asks("gpt-4o")[number]) as stream:
        call = await api.provider.call()
        assert stream.response.status_code == 200
        for text in (b"Hello", b", ", b"world"):
            await soon(call.waiting)
            await stream.to(COMMENT, times=3)
            call.step()
            await stream.to(text)
        call.step()
        await stream.rest()
    assert api.ends("sse") == {"complete": 1}
    assert not stream.seen.endswith(COMMENT)
    without = stream.seen.replace(COMMENT, b"")
    assert COMMENT.strip() not in without
    assert [event.data for event in parse_events([stream.seen])] == [event.data for event in parse_events([without])]


@each_own_route
async def test_the_text_is_the_same_with_comments_and_without(api: FakeApp, number: int) -> None:
    async with reading(api.client, asks("gpt-4o")[number]) as stream:
        call = await api.provider.call()
        for _ in range(4):
            await stream.to(COMMENT)
            call.step()
        await stream.rest()
    read = read_events(parse_events([stream.seen]))
    assert (read.text, read.terminals) == ("Hello, world", ["done"])


async def test_the_status_goes_out_in_time_though_the_first_token_takes_long(simulator: str) -> None:
    with serving(settings_over(simulator, streams={"headers_after_s": 0.1, "keepalive_s": 0.1})) as service:
        async with httpx.AsyncClient(base_url=service.base_url, trust_env=False) as client:
            began_at = time.monotonic()
            async with reading(client, asks("sim;ttft_ms=3000;tokens=3")[0]) as stream:
                await stream.to(COMMENT, times=2)
                assert time.monotonic() - began_at < 2.0
                assert stream.seen.replace(COMMENT, b"") == b""
                await stream.rest()
                assert time.monotonic() - began_at >= 3.0
        assert read_events(parse_events([stream.seen])).terminals == ["done"]
        ttft = service.resources.metrics.registry.get_sample_value(
            "llm_api_time_to_first_token_seconds_sum", {"transport": "sse"}
        )
        assert ttft is not None
        assert ttft >= 2.9


@pytest.mark.parametrize(
    ("fault", "status"), [("500", 502), ("reset", 502), ("429", 503), ("400", 400), ("empty", 502), ("eof", 502)]
)
@each_own_route
async def test_a_quick_failure_is_a_status(live_service: LiveService, number: int, fault: str, status: int) -> None:
    model = f"sim;fault={fault};after_chunks=0" if fault == "eof" else f"sim;fault={fault}"
    method, path, request = asks(model)[number]
    async with httpx.AsyncClient(base_url=live_service.base_url, trust_env=False) as client:
        response = await client.request(method, path, **request)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")


# A failure when the status is out


def let_fail(api: FakeApp) -> None:
    """Let the provider fail before its first content, at its first step."""
    api.provider.script = Script(pieces=(UpstreamUnavailable("gone"),), stepped=True)


@each_own_route
async def test_a_slow_failure_is_an_error_event(api: FakeApp, number: int) -> None:
    let_fail(api)
    async with reading(api.client, asks("gpt-4o")[number]) as stream:
        await stream.to(COMMENT, times=2)
        (await api.provider.call()).step()
        await stream.rest()
    assert stream.response.status_code == 200
    assert read_events(parse_events([stream.seen])).terminals == ["upstream_unavailable"]
    assert api.ends("sse") == {"error": 1}


async def test_a_slow_failure_is_raised_by_the_openai_sdk(api: FakeApp) -> None:
    let_fail(api)
    async with openai.AsyncOpenAI(base_url=f"{api.base_url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
        (await api.provider.call()).step()
        with pytest.raises(openai.APIError) as caught:
            await anext(aiter(stream))
        await stream.close()
    assert caught.value.code == "upstream_unavailable"


async def test_a_slow_failure_is_raised_by_the_anthropic_sdk(api: FakeApp) -> None:
    let_fail(api)
    async with anthropic.AsyncAnthropic(base_url=api.base_url, api_key="none", max_retries=0) as client:
        stream = await client.messages.create(model="gpt-4o", max_tokens=9, messages=HELLO, stream=True)
        (await api.provider.call()).step()
        with pytest.raises(anthropic.APIStatusError, match="gone"):
            await anext(aiter(stream))
        await stream.close()


@each_route
async def test_another_route_takes_over_though_the_status_is_out(api: FakeApp, number: int) -> None:
    let_fail(api)
    api.backup.script = Script(pieces=("from the second",), stepped=True)
    async with reading(api.client, asks("two-routes")[number]) as stream:
        await stream.to(COMMENT, times=2)
        (await api.provider.call()).step()
        call = await api.backup.call()
        await soon(call.waiting)
        await stream.to(COMMENT, times=2)
        call.step(2)
        await stream.rest()
    assert b"from the second" in stream.seen
    assert b"gone" not in stream.seen
    assert api.ends("sse") == {"complete": 1}
    upstream = "llm_api_upstream_requests_total"
    assert api.value(upstream, provider="fake", model="two-routes", outcome="upstream_unavailable") == 1
    assert api.value(upstream, provider="backup", model="two-routes", outcome="ok") == 1


# The vendors' SDKs read comments as nothing

SLOW = "sim;ttft_ms=200;gap_ms=60;tokens=6"
QUICK = "sim;ttft_ms=0;gap_ms=0;tokens=6"


@pytest.fixture(scope="module")
def talkative(simulator: str) -> Iterator[LiveService]:
    """Serve over the simulator with a comment in each gap between tokens."""
    models = {
        "slow": {"routes": [{"provider": "openai", "model": SLOW}]},
        "slow-claude": {"routes": [{"provider": "anthropic", "model": SLOW}]},
        "quick": {"routes": [{"provider": "openai", "model": QUICK}]},
        "quick-claude": {"routes": [{"provider": "anthropic", "model": QUICK}]},
    }
    streams = {"headers_after_s": 0.01, "keepalive_s": 0.01}
    with serving(settings_over(simulator, models=models, streams=streams)) as service:
        yield service


async def comments_in(service: LiveService, ask: Ask) -> int:
    method, path, request = ask
    async with httpx.AsyncClient(base_url=service.base_url, trust_env=False) as client:
        response = await client.request(method, path, **request)
    assert response.status_code == 200
    return response.content.count(COMMENT)


@pytest.mark.parametrize("model", ["slow", "slow-claude"])
async def test_the_openai_sdk_reads_a_stream_with_comments(talkative: LiveService, model: str) -> None:
    assert await comments_in(talkative, asks(model)[2]) >= 8

    async def read(client: openai.AsyncOpenAI) -> tuple[str, str | None]:
        async with client.chat.completions.stream(model=model, messages=HELLO) as stream:
            answer = (await stream.get_final_completion()).choices[0]
        return answer.message.content or "", answer.finish_reason

    async with openai.AsyncOpenAI(base_url=f"{talkative.base_url}/v1", api_key="none", max_retries=0) as client:
        text, reason = await read(client)
    assert len(text.split()) >= 3
    assert reason in {"stop", "length"}


@pytest.mark.parametrize("model", ["slow", "slow-claude"])
async def test_the_anthropic_sdk_reads_a_stream_with_comments(talkative: LiveService, model: str) -> None:
    assert await comments_in(talkative, asks(model)[3]) >= 8
    async with (
        anthropic.AsyncAnthropic(base_url=talkative.base_url, api_key="none", max_retries=0) as client,
        client.messages.stream(model=model, max_tokens=9, messages=HELLO) as stream,
    ):
        message = await stream.get_final_message()
    (block,) = message.content
    assert block.type == "text"
    assert len(block.text.split()) >= 3
    assert message.stop_reason in {"end_turn", "max_tokens"}


# Back-pressure

MOST_ON_ITS_WAY = 2 * 1024 * 1024
"""Bytes that may have left the upstream when nobody reads."""
SMALL = 65_536
"""What the kernel keeps for each end of each connection. Left alone it takes several megabytes on a loopback, where our
own share would not be seen."""


class Endless:
    """An upstream that writes as fast as it is read, and counts."""

    def __init__(self) -> None:
        self.written = 0
        self.closed = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        event = openai_event({"content": "x" * 1_000})
        try:
            while True:
                writer.write(event)
                await writer.drain()
                self.written += len(event)
        except ConnectionError:
            self.closed.set()
        finally:
            writer.close()


@asynccontextmanager
async def endless() -> AsyncIterator[tuple[Endless, str]]:
    upstream = Endless()
    listener = socket()
    listener.setsockopt(SOL_SOCKET, SO_SNDBUF, SMALL)
    listener.bind(("127.0.0.1", 0))
    async with await asyncio.start_server(upstream.answer, sock=listener):
        yield upstream, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


async def connected(base_url: str, request: bytes) -> socket:
    """Send a request from a socket that keeps little, and read nothing."""
    address = urlsplit(base_url)
    client = socket()
    client.setsockopt(SOL_SOCKET, SO_RCVBUF, SMALL)
    client.setblocking(False)  # noqa: FBT003 - its only argument
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (address.hostname, address.port))
    await loop.sock_sendall(client, request)
    return client


async def test_a_client_that_stops_reading_stops_the_reading_of_the_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpProtocol, "write_timeout_s", 1.0)
    async with endless() as (upstream, base_url):
        settings = Settings.model_validate(
            {
                "server": {"metrics_port": 0},
                "embedded": {"store": False},
                "providers": {"endless": {"kind": "openai", "base_url": base_url, "keys": ["sk-0123456789abcdef"]}},
                "models": {"m": {"routes": [{"provider": "endless"}]}},
                "readiness": {"mode": "off"},
                "auth": {"enabled": False},
            }
        )
        with serving(settings) as service:
            value = service.resources.metrics.registry.get_sample_value
            client = await connected(
                service.base_url, b"GET /stream?prompt=x&model=m HTTP/1.1\r\nhost: localhost\r\n\r\n"
            )
            with client:
                await soon(upstream.closed)
                assert 0 < upstream.written < MOST_ON_ITS_WAY
                labels = {"transport": "sse", "reason": "slow_client"}
                await until(lambda: value("llm_api_stream_ends_total", labels) == 1)
                assert value("llm_api_streams_active", {"transport": "sse"}) == 0
