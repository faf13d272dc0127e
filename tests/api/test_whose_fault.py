"""Each request that ends is somebody's, or nobody's, fault: what objectives are made of."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import get_args

import pytest

from service.api.outcome import FAULT, OUTCOME, family_of, fault_of
from service.app import create_app
from service.domain.generation import Usage
from service.errors import (
    CircuitOpen,
    DeadlinePassed,
    Fault,
    InternalError,
    Overloaded,
    RateLimited,
    ServiceError,
    SocketFull,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
    error_classes,
    fault_of_code,
)
from service.providers.fake import Script
from service.telemetry.metrics import FAMILIES
from tests.support.fake_app import (
    ALICE,
    FakeApp,
    bearer,
    fake_app,
    fake_app_on_socket,
    fake_settings,
    keyed_auth,
    soon,
    until,
)

PROMPT = {"prompt": "x"}
STREAMED = {"prompt": "x", "model": "gpt-4o"}
WAIT_S = 1.0
"""Of a provider; more than a busy machine takes for a request."""


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app() as running:
        yield running


def ended(api: FakeApp) -> dict[tuple[str, str], float]:
    (family,) = api.resources.metrics.requests_ended.collect()
    return {
        (sample.labels["family"], sample.labels["fault"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }


async def test_what_goes_well_is_nobodys_fault(api: FakeApp) -> None:
    await api.client.post("/generate", json=PROMPT)
    await api.client.get("/stream", params=STREAMED)
    await api.client.get("/health")
    assert ended(api) == {("generate", "none"): 1, ("stream", "none"): 1}


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (UpstreamRejected("too long"), "caller"),
        (UpstreamTimeout("late"), "provider"),
        (UpstreamUnavailable("gone"), "provider"),
        (UpstreamMisconfigured("key"), "us"),
        (InternalError("defect"), "us"),
    ],
)
async def test_a_failure_is_whose_its_class_says(api: FakeApp, error: ServiceError, fault: str) -> None:
    api.provider.script = Script(before=error)
    await api.client.post("/generate", json=PROMPT)
    await api.client.get("/stream", params=STREAMED)
    assert ended(api) == {("generate", fault): 1, ("stream", fault): 1}


async def test_a_200_whose_stream_died_is_the_providers_fault(api: FakeApp) -> None:
    api.provider.script = Script(pieces=("one", UpstreamUnavailable("gone")))
    for resumable in ("false", "true"):
        response = await api.client.get("/stream", params={"prompt": "x", "model": "gpt-4o", "resumable": resumable})
        assert response.status_code == 200
        assert "event: error" in response.text
    assert ended(api) == {("stream", "provider"): 2}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_vendors_resumable_stream_that_died_is_too(api: FakeApp, path: str) -> None:
    api.provider.script = Script(pieces=("one", UpstreamTimeout("late")))
    body = {"model": "gpt-4o", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    await api.client.post(path, json=body, headers={"x-llm-resumable": "true"})
    family = "openai" if "chat" in path else "anthropic"
    assert ended(api) == {(family, "provider"): 1}


async def test_mistakes_and_limits_are_the_callers() -> None:
    limited = keyed_auth(default_limits={"requests_per_minute": 1})
    async with fake_app(auth=limited) as api:
        statuses = [
            (await api.client.post("/generate", json=PROMPT, headers=bearer(key))).status_code
            for key in (ALICE, ALICE, "wrong-key-0123456789")
        ]
        await api.client.get("/nowhere")
        assert statuses == [200, 429, 401]
        assert ended(api) == {("generate", "none"): 1, ("generate", "caller"): 2, ("other", "caller"): 1}


async def test_a_client_that_leaves_is_its_own_fault() -> None:
    async with fake_app_on_socket(Script(stepped=True)) as api:
        asked = asyncio.create_task(api.client.get("/stream", params=STREAMED))
        call = await api.provider.call()
        call.step()
        await soon(call.waiting)
        asked.cancel()
        await until(lambda: bool(ended(api)))
        assert ended(api) == {("stream", "caller"): 1}


@pytest.mark.parametrize("resumable", ["false", "true"])
@pytest.mark.parametrize("pieces", [(), ("one",)], ids=["before-content", "after"])
async def test_a_timeout_that_the_caller_set_is_its_own(api: FakeApp, pieces: tuple[str, ...], resumable: str) -> None:
    api.provider.script = Script(pieces=(*pieces, UpstreamTimeout("late")), stepped=True)
    headers = {"x-request-timeout-ms": "60000"}
    params = {**STREAMED, "resumable": resumable}
    asked = asyncio.create_task(api.client.get("/stream", params=params, headers=headers))
    call = await api.provider.call()
    call.step(len(pieces))
    await soon(call.waiting)
    api.clock.advance(time.monotonic() + 61)
    call.step()
    answer = await asked
    assert "deadline_passed" in answer.text
    assert ended(api) == {("stream", "caller"): 1}
    assert api.value("llm_api_upstream_requests_total", provider="fake", model="gpt-4o", outcome="deadline_passed") == 1


async def test_a_provider_that_failed_before_the_callers_time_was_over_is_still_at_fault(api: FakeApp) -> None:
    api.provider.script = Script(before=UpstreamUnavailable("gone"))
    api.backup.script = Script(pieces=(UpstreamTimeout("late"),), stepped=True)
    params = {"prompt": "x", "model": "two-routes"}
    asked = asyncio.create_task(api.client.get("/stream", params=params, headers={"x-request-timeout-ms": "60000"}))
    call = await api.backup.call()
    await soon(call.waiting)
    api.clock.advance(time.monotonic() + 61)
    call.step()
    assert (await asked).json()["code"] == "upstream_unavailable"
    assert ended(api) == {("stream", "provider"): 1}


async def test_what_a_stop_refuses_is_our_fault_in_its_family(api: FakeApp) -> None:
    await api.resources.drain.run(delay_s=0)
    assert (await api.client.post("/generate", json=PROMPT)).status_code == 503
    assert (await api.client.post("/v1/messages", json=PROMPT)).status_code == 503
    assert ended(api) == {("generate", "us"): 1, ("anthropic", "us"): 1}


def test_every_class_of_error_says_whose_fault_it_is() -> None:
    faults = set(get_args(Fault)) - {"none"}
    assert {kind.fault for kind in error_classes()} == faults
    for kind in error_classes():
        of_callers_own_limits = kind in (DeadlinePassed, SocketFull)
        assert (kind.status < 500 or of_callers_own_limits) == (kind.fault == "caller"), kind
    shed: tuple[type[ServiceError], ...] = (Overloaded, UpstreamThrottled)
    assert {kind.fault for kind in shed} == {"capacity"}
    assert (RateLimited.fault, CircuitOpen.fault) == ("caller", "provider")


def test_a_code_that_is_not_ours_is_the_upstreams_word_about_the_request() -> None:
    assert fault_of_code("context_length_exceeded") == "caller"
    assert fault_of_code(UpstreamTimeout.code) == "provider"


@pytest.mark.parametrize(
    ("scope", "status", "fault"),
    [
        ({}, 200, "none"),
        ({}, 404, "caller"),
        ({}, 500, "us"),
        ({OUTCOME: "client_disconnect"}, 200, "caller"),
        ({OUTCOME: "slow_client"}, 200, "caller"),
        ({OUTCOME: "cancelled"}, 200, "us"),
        ({OUTCOME: "client_disconnect", FAULT: "provider"}, 200, "provider"),
    ],
)
def test_what_nobody_noted_follows_from_status_and_outcome(scope: dict[str, str], status: int, fault: str) -> None:
    assert fault_of(scope, status) == fault


def test_each_route_has_a_family_that_is_known() -> None:
    paths = create_app(fake_settings()).openapi()["paths"]
    families = {family_of(path, method.upper()) for path, operations in paths.items() for method in operations}
    assert families | {family_of("/ws", "GET")} == set(FAMILIES)


async def test_who_polls_does_not_outweigh_who_generates(api: FakeApp) -> None:
    job_id = (await api.client.post("/generate/async", json=PROMPT)).json()["job_id"]
    for _ in range(3):
        await api.client.get(f"/generate/async/{job_id}")
    await api.client.delete(f"/generate/async/{job_id}")
    await api.client.get("/generate/async/nowhere")
    assert ended(api) == {("jobs", "none"): 2, ("polls", "none"): 3, ("polls", "caller"): 1}


async def test_tokens_count_by_type_and_cost_by_price() -> None:
    price = {"input": "1", "cached_input": "0.5", "output": "2", "as_of": "2026-11-01", "source": "a page"}
    models = {
        "priced": {"routes": [{"provider": "fake"}], "price_usd_per_million_tokens": price},
        "free": {"routes": [{"provider": "fake"}]},
    }
    async with fake_app(Script(usage=Usage(10, 7, 4, 0, 3)), models=models) as api:
        for model in models:
            await api.client.post("/generate", json={"prompt": "x", "model": model})
        expected = {"input": 10, "output": 7, "cached_input": 4, "cache_write": 0, "reasoning": 3}
        for kind, count in expected.items():
            assert api.value("llm_api_tokens_total", provider="fake", model="priced", type=kind) == count
        cost = api.value("llm_api_cost_usd_total", provider="fake", model="priced")
        assert cost == pytest.approx((6 * 1 + 4 * 0.5 + 7 * 2) / 1e6)
        assert api.value("llm_api_unpriced_requests_total", model="priced") == 0
        assert api.value("llm_api_unpriced_requests_total", model="free") == 1


async def test_our_own_time_does_not_hold_that_of_the_provider() -> None:
    async with fake_app(Script(stepped=True)) as api:
        for number, request in enumerate(("POST /generate", "GET /stream")):
            method, path = request.split()
            asked = asyncio.create_task(api.client.request(method, path, json=PROMPT, params=STREAMED))
            call = await api.provider.call(number)
            await asyncio.sleep(WAIT_S)
            call.step(9)
            await asked
        for transport in ("http", "sse"):
            assert api.value("llm_api_overhead_seconds_count", transport=transport) == 1
            assert api.value("llm_api_overhead_seconds_sum", transport=transport) < WAIT_S
        whole = {"provider": "fake", "model": "gpt-4o-mini", "until": "end"}
        first = {"provider": "fake", "model": "gpt-4o", "until": "first_content"}
        for labels in (whole, first):
            assert api.value("llm_api_upstream_duration_seconds_sum", **labels) >= 0.9 * WAIT_S


def _jobs(api: FakeApp) -> Callable[[], bool]:
    return lambda: api.value("llm_api_jobs_finished_total", status="complete") == 1


async def test_a_job_counts_from_its_acceptance_to_its_end(api: FakeApp) -> None:
    for _ in range(2):
        api.clock.advance(1)
        await api.client.post("/generate/async", json=PROMPT, headers={"idempotency-key": "one"})
    await until(_jobs(api))
    assert api.value("llm_api_jobs_enqueued_total", priority="interactive") == 1
    assert api.value("llm_api_job_wait_seconds_count", priority="interactive") == 1
    assert api.value("llm_api_job_run_seconds_count") == 1
    assert api.value("llm_api_job_redeliveries_total") == 0
