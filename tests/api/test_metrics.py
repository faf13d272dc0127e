"""What is counted: each thing once, under labels that no caller can make more of."""

import asyncio
import random
import string
from collections.abc import AsyncIterator

import pytest

from service.errors import UpstreamUnavailable
from service.providers.fake import Script
from tests.support.fake_app import FakeApp, bearer, fake_app, keyed_auth, until

HELLO = [{"role": "user", "content": "x"}]


@pytest.fixture
async def api() -> AsyncIterator[FakeApp]:
    async with fake_app() as running:
        yield running


def series(api: FakeApp) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in api.resources.metrics.registry.collect()
        for sample in family.samples
    }


async def test_each_request_counts_once_by_its_route(api: FakeApp) -> None:
    await api.client.post("/generate", json={"prompt": "x"})
    await api.client.post("/generate", json={"prompt": ""})
    await api.client.get("/generate/async/job_1")
    await api.client.get("/generate/async/job_2")
    await api.client.get("/v1/models/gpt-4o")
    await api.client.get("/health")
    (family,) = api.resources.metrics.http_requests.collect()
    counted = {
        (sample.labels["route"], sample.labels["method"], sample.labels["code"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert counted == {
        ("/generate", "POST", "200"): 1,
        ("/generate", "POST", "422"): 1,
        ("/generate/async/{job_id}", "GET", "404"): 2,
        ("/v1/models/{model:path}", "GET", "200"): 1,
        ("/health", "GET", "200"): 1,
    }
    assert api.value("llm_api_http_request_duration_seconds_count", route="/generate", method="POST") == 2
    assert api.in_flight == 0


async def test_requests_in_flight_are_told_by_family(api: FakeApp) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"prompt":'
        begun.set()
        await go_on.wait()
        yield b'"x"}'

    request = asyncio.create_task(api.client.post("/generate", content=body()))
    await begun.wait()
    await until(lambda: api.value("llm_api_http_requests_in_flight", family="generate") == 1)
    assert api.in_flight == 1
    go_on.set()
    assert (await request).status_code == 200
    assert api.in_flight == 0


async def test_an_event_stream_tells_its_longest_gap_once(api: FakeApp) -> None:
    await api.client.get("/stream", params={"prompt": "x"})
    assert api.value("llm_api_stream_longest_gap_seconds_count") == 1
    api.provider.script = Script(pieces=("a", UpstreamUnavailable("gone")))
    await api.client.get("/stream", params={"prompt": "x"})
    assert api.ends("sse") == {"complete": 1, "error": 1}
    assert api.value("llm_api_stream_longest_gap_seconds_count") == 1, "one that breaks off tells nothing"


async def test_upstream_calls_count_by_outcome_and_tokens_by_type(api: FakeApp) -> None:
    await api.client.post("/generate", json={"prompt": "x", "model": "team/one"})
    api.provider.script = Script(before=UpstreamUnavailable("gone"))
    await api.client.post("/generate", json={"prompt": "x", "model": "team/two"})
    calls = "llm_api_upstream_requests_total"
    assert api.value(calls, provider="fake", model="team/*", outcome="ok") == 1
    assert api.value(calls, provider="fake", model="team/*", outcome="upstream_unavailable") == 1
    assert api.value("llm_api_tokens_total", provider="fake", model="team/*", type="input") == 5
    assert api.value("llm_api_tokens_total", provider="fake", model="team/*", type="output") == 3


async def test_ten_thousand_users_paths_models_and_methods_make_no_series_of_their_own(api: FakeApp) -> None:
    dice = random.Random(7)  # noqa: S311 - no secret

    def word() -> str:
        return "".join(dice.choices(string.ascii_lowercase, k=8))

    async def ask() -> None:
        await api.client.get(f"/{word()}")
        await api.client.get(f"/generate/async/{word()}")
        await api.client.get(f"/v1/models/{word()}")
        await api.client.get(f"/v1/{word()}/{word()}")
        await api.client.get(f"/docs/assets/{word()}.js")
        await api.client.request(word().upper(), "/generate")
        await api.client.post("/generate", json={"prompt": "x", "model": word()})
        await api.client.post("/generate", json={"prompt": "x", "model": f"team/{word()}"})
        await api.client.post("/chat", json={"messages": HELLO, "user_id": word()}, headers={"x-request-id": word()})
        await api.client.get("/stream", params={"prompt": "x", word(): "x"})

    await ask()
    known = series(api)
    for _ in range(1_000):
        await ask()
    assert series(api) == known
    assert {value for _, labels in known for name, value in labels if name == "method"} <= {"GET", "POST", "other"}


async def test_keys_and_callers_are_no_labels() -> None:
    async with fake_app(auth=keyed_auth()) as api:
        await api.client.post("/generate", json={"prompt": "x"}, headers=bearer("alice-key-0123456789"))
        await api.client.post("/generate", json={"prompt": "x"}, headers=bearer("wrong-key-0123456789"))
        values = {value for _, labels in series(api) for _, value in labels}
        assert not any("alice" in value or "-key" in value for value in values)


async def test_metrics_are_not_on_the_port_of_the_api(api: FakeApp) -> None:
    response = await api.client.get("/metrics")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_every_stream_end_is_there_from_the_start_so_that_a_rate_has_a_beginning(api: FakeApp) -> None:
    for transport in ("sse", "ws"):
        for reason in ("complete", "client_disconnect", "slow_client", "error", "cancelled"):
            labels = {"transport": transport, "reason": reason}
            assert api.resources.metrics.registry.get_sample_value("llm_api_stream_ends_total", labels) == 0


async def test_readiness_is_a_metric_too() -> None:
    async with fake_app(readiness={"mode": "key", "interval_s": 3_600}) as api:
        await until(lambda: api.value("llm_api_ready") == 1)
