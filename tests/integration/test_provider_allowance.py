"""What the vendor's headers say is left is gone by: over sockets, in both dialects, in plain answers and in streams."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from pydantic import HttpUrl, SecretStr

from service.config import BreakerSettings, ProviderKind, ProviderSettings, TimeoutSettings
from service.domain.clock import Deadline, SystemClock
from service.domain.generation import GenerationRequest, Message
from service.errors import UpstreamError, UpstreamThrottled
from service.providers.base import Provider
from service.providers.build import open_provider
from service.simulator.options import SimulatorOptions
from service.simulator.server import running
from service.telemetry.metrics import Metrics
from tests.support.upstream import Answer, scripted_upstream
from tests.support.wire import anthropic_answer, anthropic_stream, openai_answer, openai_stream

CLOCK = SystemClock()
REQUEST = GenerationRequest(model="public", messages=(Message.of_text("user", "Say hello"),), max_tokens=1)
KINDS = ["openai", "anthropic"]
ANY_KIND = pytest.mark.parametrize("kind", KINDS)
NOTHING_LEFT: Mapping[str, Mapping[str, str]] = {
    "openai": {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    },
    "anthropic": {
        "anthropic-ratelimit-requests-limit": "6",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-11-25T12:00:00Z",
    },
}


@asynccontextmanager
async def opened(
    base_url: str, kind: str = "openai", *, metrics: Metrics | None = None, enabled: bool = True
) -> AsyncIterator[Provider]:
    settings = ProviderSettings(
        kind=ProviderKind(kind),
        base_url=HttpUrl(f"{base_url}/v1"),
        keys=(SecretStr("k"),),
        timeouts_s=TimeoutSettings(connect=5, first_token=5, between_tokens=5),
        breaker=BreakerSettings(enabled=enabled),
    )
    async with open_provider("up", settings, clock=CLOCK, metrics=metrics) as provider:
        yield provider


async def complete(provider: Provider, model: str = "m") -> None:
    await provider.complete(REQUEST, upstream_model=model, deadline=Deadline.after(10, CLOCK))


async def stream(provider: Provider) -> None:
    async with provider.stream(REQUEST, upstream_model="m", deadline=Deadline.after(10, CLOCK)) as chunks:
        async for _ in chunks:
            pass


def answers(kind: str) -> dict[str, Answer]:
    """Make one of each: a plain answer, a stream, a refusal; all say that nothing is left."""
    headers = NOTHING_LEFT[kind]
    plain = (openai_answer if kind == "openai" else anthropic_answer)("Hello")
    events = (openai_stream if kind == "openai" else anthropic_stream)(("Hello",))
    error = {"error": {"type": "invalid_request_error", "message": "no"}}
    return {
        "plain": Answer(plain.pieces, plain.status, plain.content_type, headers),
        "stream": Answer(events, headers=headers),
        "refusal": Answer.of_json(error, 400, headers),
    }


@ANY_KIND
@pytest.mark.parametrize("answer", ["plain", "stream", "refusal"])
async def test_each_kind_of_answer_tells_what_is_left(kind: str, answer: str) -> None:
    metrics = Metrics(CollectorRegistry())
    async with (
        scripted_upstream(answers(kind)[answer]) as upstream,
        opened(upstream.base_url, kind, metrics=metrics) as provider,
    ):
        if answer == "refusal":
            with pytest.raises(UpstreamError):
                await complete(provider)
        else:
            await (complete if answer == "plain" else stream)(provider)
        assert 9.0 < provider.keys.wait_s("m") <= 10.0
        assert provider.keys.wait_s("another") == 0.0
        with pytest.raises(UpstreamThrottled) as caught:
            await complete(provider)
        assert caught.value.retry_after_s is not None
        assert 9.0 < caught.value.retry_after_s <= 10.0
        assert len(upstream.calls) == 1, "what would be refused is not sent"
    labels = {"provider": "up", "resource": "requests"}
    assert metrics.registry.get_sample_value("llm_api_provider_remaining_ratio", labels) == 0.0


@ANY_KIND
async def test_without_breakers_nothing_is_gone_by(kind: str) -> None:
    plain = answers(kind)["plain"]
    async with (
        scripted_upstream(plain, plain) as upstream,
        opened(upstream.base_url, kind, enabled=False) as provider,
    ):
        await complete(provider)
        assert provider.keys.wait_s("m") == 0.0
        await complete(provider)
        assert len(upstream.calls) == 2


@ANY_KIND
@pytest.mark.parametrize("value", ["-1", "0", "many", "9" * 5_000, "\u00e9", "NaN", "1e9"])
async def test_no_header_makes_a_call_fail(kind: str, value: str) -> None:
    plain = (openai_answer if kind == "openai" else anthropic_answer)("Hello")
    headers = dict.fromkeys(NOTHING_LEFT[kind], value)
    async with (
        scripted_upstream(Answer(plain.pieces, plain.status, plain.content_type, headers)) as upstream,
        opened(upstream.base_url, kind) as provider,
    ):
        await complete(provider)
        assert provider.keys.wait_s("m") == 0.0


QUOTA = 600
"""Requests per minute."""
WORKERS = 24
LOAD_S = 5.0


@ANY_KIND
async def test_a_process_that_wants_three_times_the_quota_is_hardly_ever_refused(kind: str) -> None:
    """Nothing of the quota is configured. Whoever has to wait comes again when told; calls are short streams."""
    asked = 0
    options = SimulatorOptions(port=0, ttft_ms=20, gap_ms=0, requests_per_minute=QUOTA)
    async with running(options) as simulator, opened(simulator.base_url, kind) as provider:
        await stream(provider)
        began = time.monotonic()
        until = began + LOAD_S

        async def work() -> None:
            nonlocal asked
            while time.monotonic() < until:
                asked += 1
                try:
                    await stream(provider)
                except UpstreamThrottled as error:
                    await asyncio.sleep(min(error.retry_after_s or 0.0, until - time.monotonic()))

        async with asyncio.timeout(LOAD_S + 10), asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(work())
        there_was = QUOTA * (1 + (time.monotonic() - began) / 60)
        statuses = Counter(call.status for call in simulator.calls())
    served = statuses[200]
    print(f"{kind}: {asked} tries, {dict(statuses)} of {there_was:.0f} that there were")
    assert asked > 3 * (there_was - QUOTA)
    assert statuses[429] <= 0.01 * served
    assert served >= 0.9 * there_was


def test_what_is_over_is_no_longer_in_the_metrics() -> None:
    metrics = Metrics(CollectorRegistry())
    labels = {"provider": "up", "resource": "requests"}
    metrics.note_left("up", "requests", 0.05)
    assert metrics.registry.get_sample_value("llm_api_provider_remaining_ratio", labels) == 0.05
    metrics.note_left("up", "requests", None)
    assert metrics.registry.get_sample_value("llm_api_provider_remaining_ratio", labels) is None
