"""Every route of ours on a socket, over a simulated upstream, read by clients that we did not write."""

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiohttp
import pytest
from websockets.asyncio.client import connect

from tests.conftest import CALLER_KEY
from tests.support.live import LiveService, serving, settings_over
from tests.support.readers import read_socket, read_sse

MODELS = ["gpt-4o-mini", "claude-3-haiku-20240307"]
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("model", MODELS)
async def test_generate_and_chat_answer(live_service: LiveService, model: str) -> None:
    async with aiohttp.ClientSession(live_service.base_url) as session:
        async with session.post("/generate", json={"prompt": "Hello", "model": model}) as response:
            answer = await response.json()
            assert response.status == 200, answer
        assert answer["text"]
        assert answer["finish_reason"] in {"stop", "length"}
        assert answer["prompt_tokens"] > 0
        assert answer["completion_tokens"] > 0
        assert answer["request_id"] == response.headers["x-request-id"]
        async with session.post("/chat", json={"messages": HELLO, "model": model}) as response:
            answer = await response.json()
        assert answer["message"]["role"] == "assistant"
        assert answer["message"]["content"]


@pytest.mark.parametrize("model", MODELS)
async def test_streams_end_once_with_their_usage(live_service: LiveService, model: str) -> None:
    async with aiohttp.ClientSession() as session:
        base_url = live_service.base_url
        query = {"prompt": "Hello", "model": model}
        body = {"messages": HELLO, "model": model, "stream": True}
        for read in (
            await read_sse(session, "GET", f"{base_url}/stream", params=query),
            await read_sse(session, "POST", f"{base_url}/chat", json=body),
        ):
            assert read.text
            assert read.terminals == ["done"]
            assert read.usage is not None
            assert read.usage["completion_tokens"] > 0
            assert read.usage["model"] == model


@pytest.mark.parametrize("model", MODELS)
async def test_a_socket_streams(live_service: LiveService, model: str) -> None:
    async with connect(live_service.base_url.replace("http", "ws") + "/ws", proxy=None) as connection:
        read = await read_socket(connection, {"type": "generate", "id": "a", "prompt": "Hello", "model": model})
        assert read.text
        assert read.terminals == ["done"]


async def test_a_job_is_done(live_service: LiveService) -> None:
    async with aiohttp.ClientSession(live_service.base_url) as session:
        async with session.post("/generate/async", params={"prompt": "Hello"}) as response:
            assert response.status == 202
            address = response.headers["location"]
        async with asyncio.timeout(10):
            while True:
                async with session.get(address) as response:
                    job = await response.json()
                if job["status"] != "pending":
                    break
        assert (job["status"], bool(job["text"])) == ("complete", True)


async def test_probes_and_pages_answer_and_metrics_do_not(live_service: LiveService) -> None:
    async with aiohttp.ClientSession(live_service.base_url) as session:
        for path, status in (("/health", 200), ("/ready", 200), ("/docs", 200), ("/", 200), ("/metrics", 404)):
            async with session.get(path) as response:
                assert response.status == status, path
                assert response.headers["x-request-id"]


async def test_a_key_and_a_ticket_open_what_nothing_else_does(keyed_service: LiveService) -> None:
    async with aiohttp.ClientSession(keyed_service.base_url) as session:
        async with session.get("/stream", params={"prompt": "x"}) as response:
            assert (response.status, response.headers["www-authenticate"]) == (401, 'Bearer realm="llm-api"')
        key = {"authorization": f"Bearer {CALLER_KEY}"}
        async with session.post("/tickets", headers=key) as response:
            ticket = (await response.json())["ticket"]
        address = f"{keyed_service.base_url}/stream"
        read = await read_sse(session, "GET", address, params={"prompt": "x", "ticket": ticket})
        assert read.terminals == ["done"]
        async with session.get(address, params={"prompt": "x", "ticket": ticket}) as response:
            assert response.status == 401


@pytest.fixture(scope="module")
def probing_service(simulator: str) -> Iterator[LiveService]:
    with serving(settings_over(simulator, readiness={"mode": "strict", "interval_s": 0.05})) as service:
        yield service


async def test_readiness_follows_a_real_call(probing_service: LiveService) -> None:
    async with aiohttp.ClientSession(probing_service.base_url) as session, asyncio.timeout(10):
        while True:
            async with session.get("/ready") as response:
                if response.status == 200:
                    assert (await response.json())["status"] == "ready"
                    return


# Bytes that no HTTP client would send


def exchange(service: LiveService, request: bytes) -> bytes:
    """Send bytes, and read until the service closes."""
    address = urlsplit(service.base_url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


def test_a_declared_body_over_the_limit_is_refused_before_it_is_sent(live_service: LiveService) -> None:
    head = b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1048577\r\n\r\n"
    answer = exchange(live_service, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_a_client_that_sends_all_before_it_looks_for_an_answer_is_told(live_service: LiveService) -> None:
    address = urlsplit(live_service.base_url)
    for _ in range(5):
        connection = http.client.HTTPConnection(f"{address.hostname}:{address.port}", timeout=20)
        connection.request("POST", "/generate", b" " * 8_000_000, {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["code"] == "request_too_large"
        connection.close()


def test_who_waits_for_our_word_is_refused_at_once(live_service: LiveService) -> None:
    head = b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\nexpect: 100-continue\r\ncontent-length: 1048577\r\n\r\n"
    assert exchange(live_service, head).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(live_service: LiveService) -> None:
    head = b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = exchange(live_service, head + b"100001\r\n" + b" " * 0x100001 + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "request_too_large"


@pytest.mark.parametrize(
    "header", [b"x-request-id: a\nSet-Cookie: x", b"x-request-id: a\r\n Set-Cookie: x", b"x-request-id: \xff"]
)
def test_a_request_id_forges_no_header(live_service: LiveService, header: bytes) -> None:
    answer = exchange(
        live_service, b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n" + header + b"\r\n\r\n"
    )
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith((b"http/1.1 200 ", b"http/1.1 400 "))
    assert b"\nset-cookie" not in head


@pytest.mark.parametrize("target", [b"/%ff", b"/generate/async/%ED%A0%80", b"/stream?prompt=%ED%A0%80", b"/%00", b"//"])
def test_an_odd_address_is_no_defect(live_service: LiveService, target: bytes) -> None:
    answer = exchange(live_service, b"GET " + target + b" HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
    assert int(answer.split(b" ")[1]) in {200, 400, 404}
