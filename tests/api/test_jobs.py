"""``/generate/async``: accepted now, answered later, and nobody else's business."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.domain.generation import GenerationRequest, Message
from service.domain.job import Job
from service.engine import job_watch
from service.engine.jobs import JobService
from service.errors import StoreUnavailable, UpstreamRejected
from service.providers.fake import Script
from tests.support.fake_app import ALICE, BOB, DEADLINE_S, FakeApp, bearer, fake_app, keyed_auth, soon, until


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app(jobs={"concurrency": 1, "queue_max": 2, "result_ttl_s": 60}) as running:
        yield running


async def submit(api: FakeApp, **body: Any) -> str:
    response = await api.client.post("/generate/async", json={"prompt": "Hi", **body})
    assert response.status_code == 202, response.text
    job_id: str = response.json()["job_id"]
    return job_id


async def state(api: FakeApp, job_id: str, **headers: str) -> dict[str, Any]:
    response = await api.client.get(f"/generate/async/{job_id}", headers=headers)
    assert response.status_code == 200, response.text
    fields: dict[str, Any] = response.json()
    assert fields["job_id"] == job_id
    return fields


async def ended(api: FakeApp, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            fields = await state(api, job_id)
            if fields["status"] != "pending":
                return fields
            await asyncio.sleep(0)


async def test_a_job_is_accepted_with_its_address_and_when_to_ask(api: FakeApp) -> None:
    response = await api.client.post("/generate/async", json={"prompt": "Hi"})
    job_id = response.json()["job_id"]
    assert response.status_code == 202
    assert response.json() == {"job_id": job_id, "status": "queued"}
    assert response.headers["location"] == f"/generate/async/{job_id}"
    assert response.headers["retry-after"] == "1"
    assert (await api.client.get(response.headers["location"])).status_code == 200


async def test_a_job_that_is_submitted_again_is_told_as_it_stands(api: FakeApp) -> None:
    headers = {"Idempotency-Key": "1"}
    first = await api.client.post("/generate/async", json={"prompt": "Hi"}, headers=headers)
    job_id = first.json()["job_id"]
    await ended(api, job_id)
    again = await api.client.post("/generate/async", json={"prompt": "Hi"}, headers=headers)
    assert (again.status_code, again.json()) == (202, {"job_id": job_id, "status": "complete"})


async def test_the_defaults_suit_long_answers(api: FakeApp) -> None:
    await submit(api)
    assert (await api.provider.call()).request == GenerationRequest(
        model="gpt-4o", messages=(Message.of_text("user", "Hi"),), max_tokens=2_048, temperature=0.7
    )


async def test_a_prompt_in_the_query_needs_no_body(api: FakeApp) -> None:
    response = await api.client.post("/generate/async", params={"prompt": "Hi there"})
    assert response.status_code == 202
    request = (await api.provider.call()).request
    assert isinstance(request, GenerationRequest)
    assert (request.messages[0].text, request.model, request.max_tokens) == ("Hi there", "gpt-4o", 2_048)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "prompt"),
        ({"params": {"foo": "1"}}, "foo"),
        ({"params": {"prompt": "query"}, "json": {"prompt": "body"}}, "prompt"),
        ({"params": {"prompt": ""}}, "prompt"),
        ({"params": {"prompt": "x" * 4_001}}, "prompt"),
        ({"json": {}}, "prompt"),
        ({"json": {"prompt": "x", "max_tokens": 4_097}}, "max_tokens"),
        ({"json": {"prompt": "x", "temperature": 3}}, "temperature"),
        ({"json": {"prompt": "x", "stream": True}}, "stream"),
        ({"json": {"prompt": "x", "model": "gpt-5"}}, "model"),
    ],
)
async def test_what_cannot_be_right_is_refused_at_once(api: FakeApp, request_: dict[str, Any], field: str) -> None:
    response = await api.client.post("/generate/async", **request_)
    assert response.status_code == 422
    assert [fault["field"] for fault in response.json()["errors"]] == [field]
    assert api.provider.calls == []


async def test_a_job_is_pending_and_then_complete(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    job_id, start = await submit(api), api.clock.wall()
    queued = {"job_id": job_id, "status": "pending", "created_at": start}
    assert await state(api, job_id) == {**queued, "state": "queued", "position": 0, "attempts": 0}
    call = await api.provider.call()
    assert await state(api, job_id) == {**queued, "state": "in_progress", "attempts": 1, "started_at": start}
    api.clock.advance(5)
    call.step(4)
    assert await ended(api, job_id) == {
        "job_id": job_id,
        "status": "complete",
        "state": "complete",
        "attempts": 1,
        "text": "Hello, world",
        "model": "upstream-4o",
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "finish_reason": "stop",
        "created_at": start,
        "started_at": start,
        "finished_at": start + 5,
        "expires_at": start + 65,
    }
    assert api.value("llm_api_jobs_finished_total", status="complete") == 1


async def test_a_failed_job_says_why(api: FakeApp) -> None:
    api.provider.script = Script(before=UpstreamRejected("too long"))
    fields = await ended(api, await submit(api))
    assert fields["status"] == "failed"
    assert fields["error"] == {"code": "upstream_rejected", "detail": "too long", "retryable": False}
    assert "text" not in fields


async def test_cancelling_a_running_job_ends_its_call(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    job_id = await submit(api)
    call = await api.provider.call()
    response = await api.client.delete(f"/generate/async/{job_id}")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")
    await soon(call.closed)
    assert call.cancelled
    assert (await state(api, job_id))["status"] == "cancelled"
    await until(lambda: api.value("llm_api_jobs_taken_away_total") == 1)


async def test_cancelling_a_waiting_job_keeps_it_from_running(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    running = await submit(api, prompt="a")
    await soon((await api.provider.call()).waiting)
    waiting, last = [await submit(api, prompt=name) for name in ("b", "c")]
    assert [(await state(api, job_id))["position"] for job_id in (waiting, last)] == [0, 1]
    assert (await api.client.delete(f"/generate/async/{waiting}")).json()["status"] == "cancelled"
    api.provider.calls[0].step(4)
    (await api.provider.call(1)).step(4)
    assert (await ended(api, last))["status"] == "complete"
    assert (await state(api, running))["status"] == "complete"
    assert len(api.provider.calls) == 2


async def test_a_cancel_that_comes_too_late_changes_nothing(api: FakeApp) -> None:
    job_id = await submit(api)
    done = await ended(api, job_id)
    assert (await api.client.delete(f"/generate/async/{job_id}")).json() == done


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("job_id", ["job_unknown", "x" * 2_000, "%ED%A0%80", "%00", "..%2e"])
async def test_an_unknown_job_is_a_404_that_says_so(api: FakeApp, method: str, job_id: str) -> None:
    response = await api.client.request(method, f"/generate/async/{job_id}")
    assert response.status_code == 404
    assert response.json()["status"] == "not_found"


async def test_a_full_queue_is_a_503_that_says_when_to_come_back(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    await submit(api)
    await api.provider.call()
    for _ in range(2):
        await submit(api)
    response = await api.client.post("/generate/async", json={"prompt": "Hi"})
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["retryable"] is True


async def test_a_result_is_kept_for_its_time(api: FakeApp) -> None:
    job_id = await submit(api)
    await ended(api, job_id)
    api.clock.advance(59.5)
    assert (await state(api, job_id))["status"] == "complete"
    api.clock.advance(0.5)
    for method in ("GET", "DELETE"):
        response = await api.client.request(method, f"/generate/async/{job_id}")
        assert (response.status_code, response.json()["code"]) == (410, "job_gone")
    assert (await api.client.get(f"/generate/async/{job_id}/stream")).status_code == 410


async def test_a_late_answer_never_overwrites_a_cancel(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    job_id = await submit(api)
    call = await api.provider.call()
    await soon(call.waiting)
    call.step(4)
    assert (await api.client.delete(f"/generate/async/{job_id}")).json()["status"] == "cancelled"
    for _ in range(10):
        await asyncio.sleep(0)
    fields = await state(api, job_id)
    assert (fields["status"], "text" in fields) == ("cancelled", False)


async def test_shutdown_ends_running_jobs() -> None:
    async with fake_app() as api:
        api.provider.script = Script(stepped=True)
        await submit(api)
        call = await api.provider.call()
        await soon(call.waiting)
    assert call.closed.is_set()
    assert call.cancelled


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_someone_elses_job_looks_like_none(method: str) -> None:
    async with fake_app(auth=keyed_auth()) as api:
        api.provider.script = Script(stepped=True)
        response = await api.client.post("/generate/async", json={"prompt": "Hi"}, headers=bearer(ALICE))
        address = response.headers["location"]
        theirs = await api.client.request(method, address, headers=bearer(BOB))
        assert (theirs.status_code, theirs.json()["status"]) == (404, "not_found")
        assert (await api.client.get(address, headers=bearer(ALICE))).json()["status"] == "pending"
        assert (await api.client.request(method, address)).status_code == 401


async def test_a_deadline_ends_a_job_that_waits_and_one_that_runs(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    running = await submit(api, prompt="a")
    call = await api.provider.call()
    waiting = await submit(api, prompt="b", deadline_s=30)
    api.clock.advance(30)
    fields = await ended(api, waiting)
    assert (fields["status"], fields["error"]["code"]) == ("expired", "job_expired")
    assert (await state(api, running))["status"] == "pending"
    call.step(4)
    late = await submit(api, prompt="c", deadline_s=0.05)
    assert (await ended(api, running))["status"] == "complete"
    call = await api.provider.call(1)
    await soon(call.closed)
    assert (await ended(api, late))["status"] == "expired"


@pytest.mark.parametrize(
    ("body", "field"),
    [({"deadline_s": 0}, "deadline_s"), ({"deadline_s": "9"}, "deadline_s"), ({"priority": "urgent"}, "priority")],
)
async def test_what_is_said_of_a_job_is_checked(api: FakeApp, body: dict[str, Any], field: str) -> None:
    response = await api.client.post("/generate/async", json={"prompt": "Hi", **body})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, field)


async def test_batch_waits_behind_interactive(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    await submit(api, prompt="first")
    await api.provider.call()
    batch = await submit(api, prompt="batch", priority="batch")
    interactive = await submit(api, prompt="interactive")
    assert [(await state(api, job_id))["position"] for job_id in (interactive, batch)] == [0, 1]
    for number, prompt in enumerate(("first", "interactive", "batch")):
        call = await api.provider.call(number)
        assert isinstance(call.request, GenerationRequest)
        assert call.request.messages[0].text == prompt
        call.step(4)


async def test_following_a_job_tells_where_it_stands_and_its_text(api: FakeApp) -> None:
    api.provider.script = Script(stepped=True)
    job_id = await submit(api)
    call = await api.provider.call()
    following = asyncio.create_task(api.client.get(f"/generate/async/{job_id}/stream"))
    call.step(4)
    events = (await following).text
    assert events.startswith("event: status\ndata: ")
    text, _, rest = events.partition("event: usage")
    assert '"state":"complete"' in text
    assert "data: Hello, world\n\n" in text
    assert rest.endswith("data: [DONE]\n\n")


async def test_following_a_job_that_was_cancelled_or_failed_ends_with_an_error(api: FakeApp) -> None:
    api.provider.script = Script(before=UpstreamRejected("too long"))
    failed = await submit(api)
    await ended(api, failed)
    text = (await api.client.get(f"/generate/async/{failed}/stream")).text
    assert "event: error\ndata: " in text
    assert "upstream_rejected" in text
    assert '"job_over":true' in text
    assert "[DONE]" not in text
    api.provider.script = Script(stepped=True)
    cancelled = await submit(api)
    await api.client.delete(f"/generate/async/{cancelled}")
    text = (await api.client.get(f"/generate/async/{cancelled}/stream")).text
    assert '"code":"cancelled"' in text
    assert '"job_over":true' in text
    assert "[DONE]" not in text


@pytest.mark.parametrize(("away", "ends"), [(3, "complete"), (9, "store_unavailable")])
async def test_who_follows_a_job_waits_out_an_outage_of_the_store(
    api: FakeApp, monkeypatch: pytest.MonkeyPatch, away: int, ends: str
) -> None:
    monkeypatch.setattr(job_watch, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(job_watch, "FAILED_LOOKS_MAX", 5)
    api.provider.script = Script(stepped=True)
    job_id = await submit(api)
    call = await api.provider.call()
    get, looks = JobService.get, 0

    async def shaky(*arguments: Any, **options: Any) -> Job:
        nonlocal looks
        looks += 1
        if 2 < looks <= 2 + away:
            raise StoreUnavailable("away")
        if looks == 3 + away:
            call.step(4)
        return await get(*arguments, **options)

    monkeypatch.setattr(JobService, "get", shaky)
    events = (await api.client.get(f"/generate/async/{job_id}/stream")).text
    assert ends in events.rpartition("event: error" if ends == "store_unavailable" else "event: status")[2]
    assert ('"job_over":false' in events) is (ends == "store_unavailable")


async def test_following_an_unknown_job_is_a_404(api: FakeApp) -> None:
    response = await api.client.get("/generate/async/job_unknown/stream")
    assert (response.status_code, response.json()["status"]) == (404, "not_found")
