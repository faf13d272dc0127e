"""What requests get while the process stops."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import Message

from service.engine.drain import Stage
from service.providers.fake import Script
from tests.support.fake_app import ALICE, FakeApp, bearer, fake_app, fake_app_on_socket, keyed_auth, until

HELLO = {"prompt": "Hello", "model": "gpt-4o"}
ORIGIN = "https://app.example"


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app(cors={"origins": [ORIGIN]}) as running:
        yield running


async def test_connections_are_kept_until_the_signal_and_not_from_then_on(api: FakeApp) -> None:
    for path, status in (("/generate", 200), ("/nope", 404)):
        response = await api.client.post(path, json=HELLO)
        assert (response.status_code, response.headers.get("connection")) == (status, None)
    api.resources.drain._reach(Stage.NOTICED)
    for path, status in (("/generate", 200), ("/nope", 404)):
        response = await api.client.post(path, json=HELLO)
        assert (response.status_code, response.headers.get_list("connection")) == (status, ["close"])
    for path in ("/health", "/v1/models", "/docs"):
        response = await api.client.get(path)
        assert (response.status_code, response.headers.get_list("connection")) == (200, ["close"])
    too_long = await api.client.post("/generate", content=b"x" * 2_000_000)
    assert (too_long.status_code, too_long.headers.get_list("connection")) == (413, ["close"])


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_only_http_1_has_a_word_for_it(api: FakeApp, version: str) -> None:
    api.resources.drain._reach(Stage.NOTICED)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/health", "headers": [], "query_string": b""}
    await api.asgi({**scope, "http_version": version}, receive, send)
    assert ((b"connection", b"close") in sent[0]["headers"]) == (version == "1.1")


@pytest.mark.parametrize("path", ["/generate", "/chat", "/generate/async", "/nope"])
async def test_new_work_is_refused_with_problem_details(api: FakeApp, path: str) -> None:
    api.resources.drain._reach(Stage.REFUSING)
    response = await api.client.post(path, json=HELLO, headers={"origin": ORIGIN})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.headers.get_list("connection") == ["close"]
    assert response.headers["access-control-allow-origin"] == ORIGIN
    problem = response.json()
    assert (problem["code"], problem["retryable"]) == ("draining", True)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert api.provider.calls == []


async def test_new_work_is_refused_in_the_vendors_own_shapes(api: FakeApp) -> None:
    api.resources.drain._reach(Stage.REFUSING)
    openai = await api.client.post("/v1/chat/completions", json={})
    assert (openai.status_code, openai.json()["error"]["code"]) == (503, "draining")
    anthropic = await api.client.post("/v1/messages", json={})
    assert anthropic.json()["type"] == "error"
    assert anthropic.status_code in {503, 529}
    for response in (openai, anthropic):
        assert response.headers["retry-after"] == "1"


async def test_a_refusal_needs_no_credential_and_comes_before_the_body_is_looked_at() -> None:
    async with fake_app(auth=keyed_auth()) as api:
        api.resources.drain._reach(Stage.REFUSING)
        for headers in ({}, bearer(ALICE)):
            response = await api.client.post("/generate", content=b"{", headers=headers)
            assert (response.status_code, response.json()["code"]) == (503, "draining")


async def test_probes_are_answered_to_the_end_and_ready_says_why_not(api: FakeApp) -> None:
    assert (await api.client.get("/ready")).json() == {"ready": True, "status": "ready"}
    for stage in (Stage.NOTICED, Stage.REFUSING, Stage.CUTTING, Stage.DRAINED):
        api.resources.drain._reach(stage)
        response = await api.client.get("/ready")
        assert (response.status_code, response.json()) == (
            503,
            {"ready": False, "status": "unready", "reason": "draining"},
        )
        assert api.value("llm_api_ready") == 0
        assert (await api.client.get("/health")).status_code == 200


async def test_readiness_can_last_until_new_work_is_refused() -> None:
    async with fake_app(drain={"readiness": "after_delay"}) as api:
        api.resources.drain._reach(Stage.NOTICED)
        assert (await api.client.get("/ready")).status_code == 200
        assert api.value("llm_api_ready") == 1
        api.resources.drain._reach(Stage.REFUSING)
        assert api.value("llm_api_ready") == 0
        assert (await api.client.get("/ready")).status_code == 503


async def test_a_stop_waits_for_requests_and_not_for_probes_or_refusals() -> None:
    async with fake_app(Script(stepped=True)) as api:
        drain = api.resources.drain
        request = asyncio.create_task(api.client.post("/generate", json=HELLO))
        call = await api.provider.call()
        run = asyncio.create_task(drain.run())
        await until(lambda: drain.stage is Stage.REFUSING)
        for path in ("/health", "/v1/models"):
            await api.client.get(path)
            assert drain.running == 1
        call.step(9)
        assert (await request).status_code == 200
        await run
        assert (drain.stage, drain.running) == (Stage.DRAINED, 0)


async def test_a_plain_request_that_outlasts_the_stop_is_a_503(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_app(Script(stepped=True)) as api:
        request = asyncio.create_task(api.client.post("/generate", json=HELLO))
        call = await api.provider.call()
        api.resources.drain._reach(Stage.CUTTING)
        response = await request
        assert (response.status_code, response.json()["code"]) == (503, "draining")
        assert call.closed.is_set()
        assert call.cancelled


async def test_a_client_that_leaves_is_logged_with_that_outcome(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_app_on_socket(Script(stepped=True)) as api:
        with caplog.at_level(logging.INFO, "service.access"):
            host, _, port = api.base_url.removeprefix("http://").partition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps(HELLO)
            head = f"POST /generate HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            await api.provider.call()
            writer.transport.abort()
            await until(lambda: any(record.name == "service.access" for record in caplog.records))
        assert (await api.client.get("/health")).status_code == 200
    lines = [vars(record) for record in caplog.records if record.name == "service.access"]
    assert [(line["route"], line["status"], line.get("outcome")) for line in lines[:1]] == [
        ("/generate", 499, "client_disconnect")
    ]
    assert all("outcome" not in line for line in lines[1:])


async def test_a_prefix_of_a_proxys_does_not_hide_what_is_a_probe_and_what_is_a_vendors(api: FakeApp) -> None:
    api.resources.drain._reach(Stage.REFUSING)
    answers: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        answers.append(message)

    for path in ("/health", "/v1/models"):
        scope: dict[str, Any] = {"type": "http", "method": "GET", "headers": [], "query_string": b"", "root_path": "/x"}
        await api.asgi({**scope, "http_version": "1.1", "path": f"/x{path}"}, receive, send)
    assert [answer["status"] for answer in answers if "status" in answer] == [200, 503]
    assert json.loads(answers[-1]["body"])["error"]["code"] == "draining"


async def test_a_job_can_be_asked_for_until_the_end(api: FakeApp) -> None:
    job = (await api.client.post("/generate/async", json=HELLO)).headers["location"]
    api.resources.drain._reach(Stage.REFUSING)
    assert (await api.client.get(job)).status_code == 200
    assert (await api.client.post("/generate/async", json=HELLO)).status_code == 503


async def test_an_upload_that_outlasts_the_stop_is_a_503() -> None:
    async with fake_app_on_socket(drain={"delay_s": 0, "timeout_s": 0.05}) as api:
        begun = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b'{"prompt": "x'
            begun.set()
            await asyncio.Event().wait()

        request = asyncio.create_task(api.client.post("/generate", content=body()))
        await begun.wait()
        await until(lambda: api.in_flight == 1)
        await api.resources.drain.run()
        await until(lambda: api.in_flight == 0)
        assert api.value("llm_api_http_requests_total", route="/generate", method="POST", code="503") == 1
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
