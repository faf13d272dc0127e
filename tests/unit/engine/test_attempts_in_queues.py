"""Attempts where providers have queues: which route is asked, who waits, and when places are given back."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.domain.clock import ManualClock
from service.domain.generation import Completion, GenerationRequest, Message, TextPart
from service.engine.attempt import Attempt
from service.engine.catalogue import ModelEntry, Route
from service.errors import Overloaded, UpstreamThrottled, UpstreamTimeout, UpstreamUnavailable
from service.providers.fake import FakeProvider, Script
from service.queueing.work import Work
from service.telemetry.metrics import Metrics
from tests.support.attempts import WORK, attempts_over

REQUEST = GenerationRequest("m", (Message("user", (TextPart("Hi"),)),))
ONE_AT_A_TIME = {"limits": {"concurrency": 1}, "retries": {"max_attempts": 1}}


class Bench:
    """Two providers, of which the first takes one call at a time."""

    def __init__(
        self,
        *,
        routes: tuple[str, ...] = ("first", "second"),
        admission: dict[str, Any] | None = None,
        **sections: Any,
    ) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics(CollectorRegistry())
        self.providers = {name: FakeProvider(name) for name in ("first", "second")}
        self.attempts = attempts_over(
            self.providers,
            sections={"first": ONE_AT_A_TIME, "second": ONE_AT_A_TIME, **sections},
            admission=admission,
            metrics=self.metrics,
            clock=self.clock,
        )
        self.entry = ModelEntry("m", tuple(Route(name, "up") for name in routes), frozenset({"chat"}))

    async def ask(self, work: Work = WORK) -> Attempt:
        """Make a call that answers; its place is kept until the test ends it."""

        async def call(attempt: Attempt) -> Completion:
            return await attempt.provider.complete(
                REQUEST, upstream_model="up", deadline=attempt.deadline, key=attempt.key
            )

        _, attempt = await self.attempts.make(self.entry, work, call)
        return attempt

    def calls(self) -> dict[str, int]:
        return {name: len(provider.calls) for name, provider in self.providers.items() if provider.calls}


async def test_where_the_first_route_would_let_it_wait_the_next_is_asked() -> None:
    bench = Bench()
    assert (await bench.ask()).route.provider == "first"
    assert (await bench.ask()).route.provider == "second"


async def test_where_all_routes_are_full_it_waits_at_the_first() -> None:
    bench = Bench()
    first, _ = await bench.ask(), await bench.ask()
    waiting = asyncio.create_task(bench.ask())
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.calls() == {"first": 1, "second": 1}
    first.turn.end(None)
    assert (await waiting).route.provider == "first"


async def test_who_cannot_be_served_in_time_hears_when_to_come_again_and_no_call_is_made() -> None:
    bench = Bench(routes=("first",))
    await bench.ask()
    with pytest.raises(Overloaded) as caught:
        await bench.ask()
    assert (caught.value.retry_after_s or 0) >= 1
    assert bench.calls() == {"first": 1}


async def test_who_has_no_time_left_is_not_asked_for() -> None:
    bench = Bench(routes=("first",))
    with pytest.raises(UpstreamTimeout):
        await bench.ask(replace(WORK, deadline_at=bench.clock.monotonic()))
    assert bench.calls() == {}


async def test_the_callers_deadline_bounds_the_call() -> None:
    bench = Bench(routes=("first",))
    at = bench.clock.monotonic() + 3
    assert (await bench.ask(replace(WORK, deadline_at=at))).deadline.at == at


async def test_a_call_that_failed_gives_its_place_back() -> None:
    bench = Bench(routes=("first",))
    bench.providers["first"].script = Script(before=UpstreamUnavailable("gone"))
    for _ in range(3):
        with pytest.raises(UpstreamUnavailable):
            await bench.ask()
    assert bench.calls() == {"first": 3}


async def test_a_call_that_is_cancelled_gives_its_place_back() -> None:
    bench = Bench(routes=("first",))
    bench.providers["first"].script = Script(stepped=True)
    asking = asyncio.create_task(bench.ask())
    await bench.providers["first"].call()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    bench.providers["first"].script = Script()
    assert (await bench.ask()).route.provider == "first"


async def test_a_route_without_a_usable_key_gives_its_place_back() -> None:
    bench = Bench(first={**ONE_AT_A_TIME, "breaker": {"failures_in_a_row": 1}})
    bench.providers["first"].script = Script(before=UpstreamUnavailable("gone"))
    for _ in range(3):
        (await bench.ask()).turn.end(None)
    assert bench.calls() == {"first": 1, "second": 3}
    running = bench.metrics.registry.get_sample_value("llm_api_provider_calls_running", {"provider": "first"})
    assert running == 0


async def test_a_request_that_another_route_serves_books_nothing_at_the_first() -> None:
    bench = Bench(first={"limits": {"requests_per_minute": 1, "request_burst": 1}, "retries": {"max_attempts": 1}})
    await bench.ask()
    second = await bench.ask()
    for _ in range(5):
        waiting = asyncio.create_task(bench.ask())
        for _ in range(10):
            await asyncio.sleep(0)
        second.turn.end(None)
        second = await waiting
        assert second.route.provider == "second"
    refused = bench.metrics.registry.get_sample_value(
        "llm_api_queue_refusals_total", {"provider": "first", "priority": "interactive"}
    )
    assert not refused


async def test_the_time_to_wait_is_that_of_the_request_and_not_of_each_route() -> None:
    bench = Bench(admission={"queue_wait_s": 4})
    await bench.ask()
    await bench.ask()
    began = bench.clock.monotonic()
    with pytest.raises(Overloaded):
        await bench.ask()
    assert bench.clock.monotonic() - began <= 4.1


async def test_a_route_that_has_to_rest_keeps_nobody_from_one_that_is_nearly_free() -> None:
    bench = Bench()
    bench.providers["second"].script = Script(before=UpstreamThrottled("slower", retry_after_s=20))
    first = await bench.ask()
    began = bench.clock.monotonic()
    waiting = asyncio.create_task(bench.ask())
    for _ in range(10):
        await asyncio.sleep(0)
    first.turn.end(None)
    assert (await waiting).route.provider == "first"
    assert bench.clock.monotonic() - began < 5


async def test_turn_without_a_key_is_no_failure_of_the_provider_and_is_waited_for_again() -> None:
    bench = Bench(routes=("first",), first={"retries": {"max_attempts": 1}})
    keys = bench.providers["first"].keys
    taken = 0
    take = keys.take

    def others_were_faster(*args: Any, **more: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken <= 3:
            raise UpstreamThrottled("the vendor has nothing left", retry_after_s=0.1)
        return take(*args, **more)

    keys.take = others_were_faster  # type: ignore[method-assign]
    assert (await bench.ask()).route.provider == "first"


async def test_a_stream_that_ends_by_its_callers_deadline_says_nothing_of_the_provider() -> None:
    bench = Bench(routes=("first",), first={"breaker": {"failures_in_a_row": 1}})
    attempt = await bench.ask(replace(WORK, deadline_at=bench.clock.monotonic() + 3))
    bench.clock.advance(3)
    attempt.broke_off(UpstreamTimeout("the time is over"))
    attempt.turn.end(None)
    assert (await bench.ask()).route.provider == "first"
    assert attempt.turn.model.adaptive.value == math.inf
