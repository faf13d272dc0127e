"""A request that is sent again with its key is answered once, on every route that asks a model."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.errors import UpstreamUnavailable
from service.providers.fake import Script
from tests.support.fake_app import ALICE, BOB, FakeApp, bearer, fake_app, keyed_auth, soon, until

KEY = {"Idempotency-Key": "order-66"}
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
WHOLE: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": "Hi"}),
    ("/chat", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/chat/completions", CHAT),
    ("/v1/messages", {**CHAT, "max_tokens": 9}),
    ("/v1/embeddings", {"model": "vectors", "input": "Hi"}),
]
STREAMED = [(path, {**body, "stream": True}) for path, body in WHOLE[1:4]]


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app(streams={"headers_after_s": 30}) as running:
        yield running


async def post(api: FakeApp, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return await api.client.post(path, json=body, headers={**KEY, **headers})


@pytest.mark.parametrize(("path", "body"), WHOLE, ids=[path for path, _ in WHOLE])
async def test_the_same_answer_comes_again_and_no_model_is_asked(api: FakeApp, path: str, body: dict[str, Any]) -> None:
    first = await post(api, path, body)
    again = await post(api, path, body)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert len(api.provider.calls) == 1
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["content-type"] == first.headers["content-type"]


@pytest.mark.parametrize(("path", "body"), STREAMED, ids=[path for path, _ in STREAMED])
async def test_the_same_stream_comes_again_from_its_first_event(api: FakeApp, path: str, body: dict[str, Any]) -> None:
    first = await post(api, path, body)
    again = await post(api, path, body)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert b"data: " in first.content
    assert again.headers["x-stream-id"] == first.headers["x-stream-id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(api.provider.calls) == 1


async def test_without_a_key_each_request_is_one_of_its_own(api: FakeApp) -> None:
    for _ in range(2):
        await api.client.post("/generate", json={"prompt": "Hi"})
    assert len(api.provider.calls) == 2


@pytest.mark.parametrize(
    ("path", "status"), [("/generate", 422), ("/v1/chat/completions", 400), ("/generate/async", 422)]
)
async def test_another_body_under_the_same_key_is_refused(api: FakeApp, path: str, status: int) -> None:
    body = {"prompt": "Hi"} if path.startswith("/generate") else CHAT
    await post(api, path, body)
    other = await post(api, path, {**body, "temperature": 0.1})
    assert other.status_code == status
    assert "Idempotency-Key" in other.text
    calls = len(api.provider.calls)
    assert calls <= 1


async def test_while_it_is_answered_the_same_request_is_told_to_come_again(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    first = asyncio.create_task(post(api, "/generate", {"prompt": "Hi"}))
    call = await api.provider.call()
    second = await post(api, "/generate", {"prompt": "Hi"})
    assert (second.status_code, second.json()["code"]) == (409, "idempotency_conflict")
    assert (second.headers["retry-after"], second.json()["retryable"]) == ("1", True)
    call.step(4)
    assert (await first).status_code == 200
    assert (await post(api, "/generate", {"prompt": "Hi"})).json() == (await first).json()
    assert len(api.provider.calls) == 1


async def test_a_client_that_left_finds_its_answer(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    first = asyncio.create_task(post(api, "/generate", {"prompt": "Hi"}))
    call = await api.provider.call()
    await soon(call.waiting)
    first.cancel()
    await asyncio.wait([first])
    assert not call.closed.is_set()
    call.step(4)
    await soon(call.closed)
    await until(lambda: api.resources.drain.running == 0)
    again = await post(api, "/generate", {"prompt": "Hi"})
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert len(api.provider.calls) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_what_failed_may_be_tried_again_under_its_key(api: FakeApp, *, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    api.provider.scripts.append(Script(before=UpstreamUnavailable("gone")))
    assert (await post(api, "/chat", body)).status_code == 502
    assert (await post(api, "/chat", body)).status_code == 200


@pytest.mark.parametrize(("path", "body"), STREAMED, ids=[path for path, _ in STREAMED])
async def test_a_stream_that_broke_off_may_be_tried_again_under_its_key(
    api: FakeApp, path: str, body: dict[str, Any]
) -> None:
    api.provider.scripts.append(Script(pieces=("Hello", UpstreamUnavailable("gone"))))
    broken = await post(api, path, body)
    assert (broken.status_code, b"world" in broken.content) == (200, False)
    again = await post(api, path, body)
    assert "idempotency-replayed" not in again.headers
    assert b"world" in again.content
    assert (await post(api, path, body)).content == again.content
    assert len(api.provider.calls) == 2


async def test_a_stream_that_nobody_read_to_its_end_is_tried_again() -> None:
    async with fake_app(streams={"orphan_s": 0.01}) as api:
        body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
        api.provider.scripts.append(Script(stepped=True))
        first = asyncio.create_task(post(api, "/chat", body))
        call = await api.provider.call()
        first.cancel()
        await soon(call.closed)
        await until(lambda: api.resources.drain.running == 0)
        again = await post(api, "/chat", body)
        assert "idempotency-replayed" not in again.headers
        assert b"world" in again.content


async def test_a_stream_that_its_caller_ended_stays_ended(api: FakeApp) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    api.provider.scripts.append(Script(stepped=True))
    first = asyncio.create_task(post(api, "/chat", body))
    call = await api.provider.call()
    call.step(1)
    await until(lambda: bool(owned(api)))
    (stream_id,) = owned(api)
    await api.client.delete(f"/streams/{stream_id}")
    ended = await first
    again = await post(api, "/chat", body)
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.content, b"cancelled" in again.content) == (ended.content, True)


def owned(api: FakeApp) -> list[str]:
    return list(api.resources.streams._owned)


async def test_a_stream_whose_events_are_not_kept_any_more_is_tried_again(api: FakeApp) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    first = await post(api, "/chat", body)
    api.clock.advance(api.resources.settings.streams.kept_s + 1)
    again = await post(api, "/chat", body)
    assert (again.status_code, b"world" in again.content) == (200, True)
    assert again.headers["x-stream-id"] != first.headers["x-stream-id"]
    assert (await post(api, "/chat", body)).headers["x-stream-id"] == again.headers["x-stream-id"]
    assert len(api.provider.calls) == 2


async def test_who_comes_again_may_have_another_ticket() -> None:
    async with fake_app(auth=keyed_auth()) as api:
        answers = []
        for _ in range(2):
            ticket = (await api.client.post("/tickets", headers=bearer(ALICE))).json()["ticket"]
            params = {"prompt": "Hi", "model": "gpt-4o", "ticket": ticket}
            answers.append(await api.client.get("/stream", params=params, headers=KEY))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].headers["x-stream-id"] == answers[1].headers["x-stream-id"]


async def test_a_key_is_its_callers_and_its_routes_own() -> None:
    async with fake_app(auth=keyed_auth()) as api:
        body = {"prompt": "Hi", "model": "gpt-4o"}
        for caller in (ALICE, BOB):
            answer = await post(api, "/generate", body, **bearer(caller))
            assert answer.status_code == 200
            assert "idempotency-replayed" not in answer.headers
        other = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
        assert (await post(api, "/chat", other, **bearer(ALICE))).status_code == 200
        assert len(api.provider.calls) == 3


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "tab\there", "naïve"])
async def test_what_is_no_key_is_refused_by_name(api: FakeApp, key: str) -> None:
    response = await api.client.post(
        "/generate", json={"prompt": "Hi"}, headers=[(b"idempotency-key", key.encode("latin-1"))]
    )
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert api.provider.calls == []


async def test_a_job_that_is_submitted_again_is_the_same(api: FakeApp) -> None:
    first = await post(api, "/generate/async", {"prompt": "Hi"})
    again = await post(api, "/generate/async", {"prompt": "Hi"})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    await until(lambda: len(api.provider.calls) == 1)
    other = await api.client.post("/generate/async", json={"prompt": "Hi"}, headers={"Idempotency-Key": "other"})
    assert other.json() != first.json()


async def test_a_stop_tells_who_waits_and_frees_the_key() -> None:
    async with fake_app(drain={"timeout_s": 0.05, "delay_s": 0}) as api:
        api.provider.script = Script(stepped=True)
        waiting = asyncio.create_task(post(api, "/generate", {"prompt": "Hi"}))
        call = await api.provider.call()
        await api.resources.drain.run()
        answer = await waiting
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert call.cancelled
