"""Attempts: who is asked again, after how long, how often, and with what; no test waits, the clock is moved."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from service.config import Settings
from service.domain.clock import Clock, ManualClock
from service.domain.generation import Completion, GenerationRequest, Message
from service.engine.attempt import Attempt
from service.engine.attempts import Attempts
from service.engine.breakers import FORGOTTEN_S, MAX_BREAKERS
from service.engine.catalogue import ModelEntry, Route
from service.errors import (
    CircuitOpen,
    InvalidRequest,
    ServiceError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from service.providers.allowance import Left
from service.providers.fake import FakeProvider, Script
from service.providers.keys import KeyRing
from service.telemetry.metrics import Metrics
from tests.support.attempts import WORK, attempts_over
from tests.support.fake_app import soon

REQUEST = GenerationRequest(model="m", messages=(Message.of_text("user", "Hi"),))
GONE = UpstreamUnavailable("gone")
OVERLOADED = UpstreamOverloaded("too much")
REFUSED = UpstreamMisconfigured("refused", refused="key")
OUT_OF_FUNDS = UpstreamMisconfigured("no money", refused="funds")
NO_SUCH_MODEL = UpstreamMisconfigured("no such model", refused="model")
WRONG_ADDRESS = UpstreamMisconfigured("leads elsewhere")
UNABLE = InvalidRequest.at("n", "not here", kind="unsupported")
RETRIED = [GONE, UpstreamInvalid("broken")]
ELSEWHERE_FIRST = [
    OVERLOADED,
    UpstreamTimeout("late"),
    UpstreamThrottled("slower"),
    UpstreamUnavailable("x", retry_after_s=1),
]


def ring(name: str, clock: Clock, *keys: str) -> KeyRing:
    return KeyRing(provider=name, keys=[SecretStr(key) for key in keys], files=(), clock=clock)


@dataclass
class Bench:
    """One or two providers, and the attempts over them."""

    sections: dict[str, Any] = field(default_factory=dict)
    """Of the settings of both providers."""
    routes: tuple[str, ...] = ("first",)
    keys: tuple[str, ...] = ("k1",)
    resilience: dict[str, Any] = field(default_factory=dict)
    random: Callable[[], float] = lambda: 0.5
    name: str = "m"

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.waits: list[float] = []
        self.metrics = Metrics(CollectorRegistry())
        names = ("first", "second")
        self.providers = {name: FakeProvider(name, keys=ring(name, self.clock, *self.keys)) for name in names}
        self.attempts = attempts_over(
            self.providers,
            sections=dict.fromkeys(names, self.sections),
            resilience=self.resilience,
            metrics=self.metrics,
            clock=self.clock,
            waits=self.waits,
            random=self.random,
        )

    @property
    def first(self) -> FakeProvider:
        return self.providers["first"]

    @property
    def second(self) -> FakeProvider:
        return self.providers["second"]

    @property
    def entry(self) -> ModelEntry:
        return ModelEntry(self.name, tuple(Route(name, "up") for name in self.routes), frozenset({"chat"}))

    async def ask(self, model: str = "up") -> Attempt:
        """Make a plain call; return the attempt that answered."""

        async def call(attempt: Attempt) -> Completion:
            return await attempt.provider.complete(
                REQUEST, upstream_model=attempt.route.model, deadline=attempt.deadline, key=attempt.key
            )

        entry = ModelEntry(self.name, tuple(Route(name, model) for name in self.routes), frozenset({"chat"}))
        _, attempt = await self.attempts.make(entry, WORK, call)
        attempt.turn.end(None)
        return attempt

    async def fails(self, kind: type[ServiceError]) -> ServiceError:
        """Make a call that must fail."""
        with pytest.raises(kind) as caught:
            await self.ask()
        return caught.value

    def calls(self) -> dict[str, int]:
        """Return how many calls each provider got."""
        return {name: len(provider.calls) for name, provider in self.providers.items() if provider.calls}

    def kinds(self) -> dict[tuple[str, str, str], float]:
        """Return how often each provider had each kind of attempt and outcome."""
        return self.samples("llm_api_upstream_attempts_total", "provider", "kind", "outcome")

    def samples(self, name: str, *labels: str) -> dict[Any, float]:
        """Return the samples of a metric by their labels."""
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name
        }


def script(*errors: ServiceError) -> list[Script]:
    return [Script(before=error) for error in errors]


# Retries.


@pytest.mark.parametrize("error", RETRIED, ids=lambda error: error.code)
async def test_what_may_pass_is_tried_again_after_a_random_wait_that_grows(error: UpstreamError) -> None:
    bench = Bench(routes=("first", "second"))
    bench.first.scripts.extend(script(error, error))
    assert (await bench.ask()).kind == "retry"
    assert bench.waits == pytest.approx([0.05, 0.1])
    assert bench.calls() == {"first": 3}
    assert bench.kinds() == {
        ("first", "first", error.code): 1,
        ("first", "retry", error.code): 1,
        ("first", "retry", "ok"): 1,
    }


@pytest.mark.parametrize("error", ELSEWHERE_FIRST, ids=lambda error: error.code)
async def test_another_route_is_preferred_to_waiting_for_an_overloaded_one(error: UpstreamError) -> None:
    bench = Bench(routes=("first", "second"))
    bench.first.scripts.extend(script(error))
    assert (await bench.ask()).kind == "fallback"
    assert (bench.calls(), bench.waits) == ({"first": 1, "second": 1}, [])


@pytest.mark.parametrize("error", ELSEWHERE_FIRST, ids=lambda error: error.code)
async def test_overloaded_route_is_asked_again_where_there_is_no_other(error: UpstreamError) -> None:
    bench = Bench()
    bench.first.scripts.extend(script(error))
    assert (await bench.ask()).kind == "retry"
    assert bench.calls() == {"first": 2}


async def test_overloaded_routes_are_come_back_to_when_all_others_failed() -> None:
    bench = Bench(routes=("first", "second"))
    bench.first.scripts.extend(script(OVERLOADED))
    bench.second.scripts.extend(script(WRONG_ADDRESS))
    assert (await bench.ask()).route.provider == "first"
    assert bench.calls() == {"first": 2, "second": 1}


@pytest.mark.parametrize(("random", "wait_s"), [(0.0, 7.0), (0.5, 7.05)])
async def test_retry_after_is_a_minimum_and_gets_jitter(random: float, wait_s: float) -> None:
    bench = Bench(random=lambda: random)
    bench.first.scripts.extend(script(UpstreamThrottled("slower", retry_after_s=7)))
    await bench.ask()
    assert bench.waits == pytest.approx([wait_s])


async def test_wait_beyond_the_deadline_is_not_begun_and_the_caller_hears_when_to_come_back() -> None:
    bench = Bench({"timeouts_s": {"total": 10}})
    bench.first.script = Script(before=UpstreamThrottled("slower", retry_after_s=30))
    error = await bench.fails(UpstreamThrottled)
    assert (error.retry_after_s, bench.waits, bench.calls()) == (30, [], {"first": 1})


@pytest.mark.parametrize("error", [REFUSED, OUT_OF_FUNDS, NO_SUCH_MODEL, WRONG_ADDRESS, UpstreamError("x")], ids=str)
async def test_what_no_waiting_heals_is_asked_once_and_goes_to_the_next_route(error: UpstreamError) -> None:
    bench = Bench(routes=("first", "second"))
    bench.first.script = Script(before=error)
    assert (await bench.ask()).route.provider == "second"
    assert (bench.calls(), bench.waits) == ({"first": 1, "second": 1}, [])


async def test_rejection_is_final() -> None:
    bench = Bench(routes=("first", "second"))
    bench.first.script = Script(before=UpstreamRejected("too long"))
    await bench.fails(UpstreamRejected)
    assert bench.calls() == {"first": 1}


async def test_no_route_is_asked_more_often_than_it_may_be() -> None:
    bench = Bench(routes=("first", "second"))
    bench.first.script = bench.second.script = Script(before=GONE)
    await bench.fails(UpstreamUnavailable)
    assert bench.calls() == {"first": 3, "second": 3}


async def test_request_makes_no_more_attempts_than_it_may_over_all_routes() -> None:
    bench = Bench(routes=("first", "second"), resilience={"attempts_max": 4})
    bench.first.script = bench.second.script = Script(before=GONE)
    await bench.fails(UpstreamUnavailable)
    assert bench.calls() == {"first": 3, "second": 1}


async def test_all_attempts_share_the_time_of_the_first_provider() -> None:
    bench = Bench({"timeouts_s": {"total": 10}}, routes=("first", "second"))
    bench.first.scripts.extend(script(GONE, GONE, GONE))
    began = bench.clock.monotonic()
    await bench.ask()
    deadlines = [call.deadline.at for call in (*bench.first.calls, *bench.second.calls)]
    assert deadlines == [began + 10] * 4


async def test_nothing_is_asked_once_the_time_is_over() -> None:
    bench = Bench({"timeouts_s": {"total": 10}}, routes=("first", "second"))
    calls: list[str] = []

    async def slow(attempt: Attempt) -> None:
        calls.append(attempt.route.provider)
        bench.clock.advance(10)
        raise UpstreamTimeout("late")

    with pytest.raises(UpstreamTimeout):
        await bench.attempts.make(bench.entry, WORK, slow)
    assert calls == ["first"]


async def test_leaving_client_ends_a_wait_at_once() -> None:
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    bench = Bench()
    bench.attempts.sleep = sleep
    bench.first.script = Script(before=GONE)
    task = asyncio.create_task(bench.ask())
    await soon(waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.calls() == {"first": 1}


async def test_what_no_provider_can_do_is_the_callers_mistake_and_asked_of_each_once() -> None:
    bench = Bench(routes=("first", "second"))
    bench.first.script = bench.second.script = Script(before=UNABLE)
    await bench.fails(InvalidRequest)
    assert bench.calls() == {"first": 1, "second": 1}


# The retry budget.


async def test_outage_costs_no_more_than_a_tenth_of_the_requests_and_the_reserve() -> None:
    bench = Bench({"breaker": {"enabled": False}})
    bench.first.script = Script(before=GONE)
    for _ in range(1_000):
        await bench.fails(UpstreamUnavailable)
    made = sum(bench.calls().values())
    # The waits move the clock: the floor of one in a second counts too.
    assert 1_100 <= made <= 1_100 + 10 + sum(bench.waits)
    assert bench.samples("llm_api_retry_budget_exhausted_total", "provider")["first",] > 800


async def test_retry_that_is_not_paid_for_takes_nothing_of_what_the_vendor_says_is_left() -> None:
    bench = Bench({"breaker": {"enabled": False}, "retries": {"budget_ratio": 0, "budget_per_s": 0}})
    bench.first.script = Script(before=GONE)
    while not bench.samples("llm_api_retry_budget_exhausted_total", "provider"):
        await bench.fails(UpstreamUnavailable)
    keys, calls = bench.first.keys, bench.calls()["first"]
    key = keys.take("up")
    assert key is not None
    mark = keys.mark(key, "up")
    assert mark is not None
    keys.hear(mark, (Left("requests", 60, 2, 86_400.0),))
    await bench.fails(UpstreamUnavailable)
    assert bench.calls()["first"] == calls + 1
    assert keys.wait_s("up") == 0.0, "one of two was used"


async def test_fallbacks_are_not_paid_for_by_the_budget() -> None:
    bench = Bench(
        {"breaker": {"enabled": False}, "retries": {"budget_ratio": 0, "budget_per_s": 0}}, ("first", "second")
    )
    bench.first.script = Script(before=GONE)
    for _ in range(50):
        assert (await bench.ask()).route.provider == "second"
    assert bench.calls() == {"first": 60, "second": 50}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
async def test_no_mixture_of_failures_breaks_the_bounds(data: st.DataObject) -> None:
    routes = ("first", "second")
    bench = Bench(routes=routes, keys=("k1", "k2", "k3"), resilience={"attempts_max": data.draw(st.integers(1, 8))})
    errors = [*RETRIED, *ELSEWHERE_FIRST, REFUSED, OUT_OF_FUNDS, NO_SUCH_MODEL, WRONG_ADDRESS, UNABLE, None]
    for _ in range(data.draw(st.integers(1, 6))):
        before = {name: len(bench.providers[name].calls) for name in routes}
        for provider in bench.providers.values():
            drawn = data.draw(st.lists(st.sampled_from(errors), max_size=8))
            provider.scripts.clear()
            provider.scripts.extend(Script(before=error) for error in drawn)
        began = bench.clock.monotonic()
        try:
            await bench.ask()
        except ServiceError as error:
            assert error.status in {422, 502, 503, 504}  # noqa: PT017 - also where nothing is raised the rest holds
        made = {name: len(bench.providers[name].calls) - before[name] for name in routes}
        assert sum(made.values()) <= bench.attempts.resilience.attempts_max
        # Each key but one may be left without a wait.
        assert all(count <= 3 * len(bench.keys) for count in made.values())
        assert bench.clock.monotonic() < began + 600


# Keys.


@pytest.mark.parametrize("error", [REFUSED, OUT_OF_FUNDS], ids=lambda error: error.refused)
async def test_request_goes_on_with_the_next_key_at_once(error: UpstreamMisconfigured) -> None:
    bench = Bench({"retries": {"max_attempts": 1, "budget_ratio": 0, "budget_per_s": 0}}, keys=("k1", "k2", "k3"))
    bench.first.refusals = {"k1": error, "k2": error}
    for _ in range(10):
        attempt = await bench.ask()
        assert attempt.key.secret == "k3"
    assert bench.waits == []
    # Each dead key was met once, by whoever came first.
    assert bench.calls() == {"first": 12}
    assert {kind for _, kind, _ in bench.kinds()} == {"first", "fallback"}


async def test_all_keys_dead_is_our_misconfiguration_and_asks_nobody_until_one_may_live() -> None:
    bench = Bench(keys=("k1", "k2"))
    bench.first.refusals = {"k1": REFUSED, "k2": REFUSED}
    for _ in range(20):
        assert (await bench.fails(UpstreamMisconfigured)).status == 502
    assert bench.calls() == {"first": 2}
    bench.clock.advance(5)
    bench.first.refusals.clear()
    assert (await bench.ask()).key.secret in {"k1", "k2"}


async def test_first_cause_is_told_and_not_that_no_key_was_left() -> None:
    bench = Bench(keys=("k1", "k2"))
    bench.first.refusals = {"k1": OUT_OF_FUNDS, "k2": OUT_OF_FUNDS}
    assert await bench.fails(UpstreamMisconfigured) is OUT_OF_FUNDS


async def test_limited_key_rests_while_the_others_are_used() -> None:
    bench = Bench(keys=("k1", "k2"))
    bench.first.refusals = {"k1": UpstreamThrottled("slower", retry_after_s=30)}
    for _ in range(10):
        assert (await bench.ask()).key.secret == "k2"
    assert (bench.waits, bench.calls()) == ([], {"first": 11})


async def test_request_waits_for_the_first_key_that_rests_without_asking_in_vain() -> None:
    bench = Bench(keys=("k1", "k2"), random=lambda: 0.0)
    bench.first.scripts.extend(
        script(UpstreamThrottled("slower", retry_after_s=30), UpstreamThrottled("slower", retry_after_s=4))
    )
    await bench.ask()
    assert (bench.waits, bench.calls()) == ([4.0], {"first": 3})


# Breakers.


async def test_open_circuit_is_passed_over_for_the_next_route() -> None:
    bench = Bench(routes=("first", "second"))
    bench.first.script = Script(before=GONE)
    for _ in range(20):
        assert (await bench.ask()).route.provider == "second"
    assert bench.calls() == {"first": 5, "second": 20}
    assert bench.samples("llm_api_upstream_breakers_open", "provider", "model") == {("first", "up"): 1}


async def test_all_circuits_open_is_a_503_that_says_why_and_when_the_first_is_tried() -> None:
    bench = Bench(routes=("first", "second"), random=lambda: 0.0)
    bench.first.script = bench.second.script = Script(before=GONE)
    with pytest.raises(UpstreamUnavailable):
        await bench.ask()
    with pytest.raises(UpstreamUnavailable):
        await bench.ask()
    bench.clock.advance(0.5)
    error = await bench.fails(CircuitOpen)
    assert (error.status, error.retry_after_s) == (503, 1.5)
    assert "upstream_unavailable" in str(error)


async def test_single_call_probes_and_closes_the_circuit(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.first.script = Script(before=GONE)
    for _ in range(3):
        with pytest.raises(ServiceError):
            await bench.ask()
    bench.clock.advance(2)
    with caplog.at_level(logging.INFO):
        await bench.fails(UpstreamUnavailable)
        assert sum(bench.calls().values()) == 6, "a probe that fails is not tried again"
        bench.clock.advance(4)
        bench.first.script = Script()
        await bench.ask()
        await bench.ask()
    assert bench.samples("llm_api_upstream_breakers_open", "provider", "model") == {("first", "up"): 0}
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "circuit breaker open",
        "circuit breaker half_open",
        "circuit breaker open",
        "circuit breaker half_open",
        "circuit breaker closed",
    ]


async def test_only_one_of_many_probes() -> None:
    bench = Bench()
    bench.first.script = Script(before=GONE)
    for _ in range(3):
        with pytest.raises(ServiceError):
            await bench.ask()
    bench.clock.advance(2)
    bench.first.script = Script(stepped=True)
    before = sum(bench.calls().values())
    tasks = [asyncio.create_task(bench.ask()) for _ in range(10)]
    probe = await bench.first.call(before)
    await soon(probe.waiting)
    await asyncio.wait(tasks, timeout=0.01)
    assert sum(bench.calls().values()) == before + 1
    probe.step(10)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, CircuitOpen) for result in results) == 9


async def test_throttling_never_opens_a_circuit() -> None:
    bench = Bench({"retries": {"max_attempts": 1}})
    bench.first.script = Script(before=UpstreamThrottled("slower", retry_after_s=0.001))
    for _ in range(100):
        await bench.fails(UpstreamThrottled)
        bench.clock.advance(0.01)
    bench.first.script = Script()
    await bench.ask()


async def test_rejections_of_callers_requests_never_open_a_circuit() -> None:
    bench = Bench()
    bench.first.script = Script(before=UpstreamRejected("too long"))
    for _ in range(100):
        await bench.fails(UpstreamRejected)
    bench.first.script = Script()
    await bench.ask()


async def test_model_that_is_refused_is_left_alone_and_others_are_not() -> None:
    bench = Bench(random=lambda: 0.0)
    bench.first.script = Script(before=NO_SUCH_MODEL)
    assert await bench.fails(UpstreamMisconfigured) is NO_SUCH_MODEL
    error = await bench.fails(UpstreamMisconfigured)
    assert "refuses the model" in error.message
    bench.first.script = Script()
    await bench.ask("another")
    assert bench.calls() == {"first": 2}


async def test_each_key_has_a_circuit_of_its_own() -> None:
    bench = Bench(keys=("k1", "k2"))
    bench.first.refusals = {"k1": GONE}
    for _ in range(30):
        await bench.ask()
    assert sum(call.key is not None and call.key.secret == "k1" for call in bench.first.calls) == 5


async def test_stream_that_broke_off_counts_against_its_circuit() -> None:
    bench = Bench({"breaker": {"calls_at_least": 2}})
    for _ in range(2):
        attempt = await bench.ask()
        attempt.broke_off(UpstreamUnavailable("cut"))
        attempt.broke_off(UpstreamRejected("no outage"))
    await bench.fails(CircuitOpen)


async def test_models_that_callers_make_up_do_not_fill_the_memory() -> None:
    bench = Bench(name="*")
    bench.first.script = Script(before=NO_SUCH_MODEL)
    for number in range(MAX_BREAKERS + 10):
        with pytest.raises(UpstreamMisconfigured):
            await bench.ask(f"made-up-{number}")
    assert bench.samples("llm_api_upstream_breakers_open", "provider", "model") == {("first", "*"): MAX_BREAKERS}


async def timing_out(bench: Bench, seconds: float) -> None:
    async def call(_: Attempt) -> None:
        bench.clock.advance(seconds)
        raise UpstreamTimeout("late")

    with pytest.raises((UpstreamTimeout, CircuitOpen)):
        await bench.attempts.make(bench.entry, WORK, call)


@pytest.mark.parametrize(("seconds", "opens"), [(30.0, True), (5.0, True), (0.5, False)])
async def test_timeout_counts_only_where_the_provider_had_the_time(seconds: float, *, opens: bool) -> None:
    bench = Bench({"timeouts_s": {"total": 2 * seconds}, "retries": {"max_attempts": 1}} if opens else {})
    for _ in range(10):
        await timing_out(bench, seconds)
    assert bool(bench.samples("llm_api_upstream_breakers_open", "provider", "model")) is opens


async def test_breaker_that_nobody_asks_any_more_is_not_told_of_for_ever() -> None:
    bench = Bench()
    bench.first.script = Script(before=GONE)
    for _ in range(3):
        with pytest.raises(ServiceError):
            await bench.ask("one")
    bench.first.script = Script()
    gauge = "llm_api_upstream_breakers_open"
    bench.clock.advance(2 + FORGOTTEN_S / 2)
    await bench.ask("another")
    assert bench.samples(gauge, "model") == {("one",): 1}
    bench.clock.advance(FORGOTTEN_S / 2)
    await bench.ask("another")
    assert bench.samples(gauge, "model") == {("one",): 0}


async def test_breaker_is_not_told_of_for_ever_though_nobody_asks_for_anything() -> None:
    bench = Bench()
    bench.first.script = Script(before=GONE)
    for _ in range(3):
        with pytest.raises(ServiceError):
            await bench.ask("one")
    gauge = "llm_api_upstream_breakers_open"
    async with asyncio.timeout(5), bench.attempts.breakers.swept(every_s=0.001):
        await asyncio.sleep(0.01)
        assert bench.samples(gauge, "model") == {("one",): 1}
        bench.clock.advance(2 * FORGOTTEN_S)
        while bench.samples(gauge, "model") != {("one",): 0}:  # noqa: ASYNC110 - another task's work
            await asyncio.sleep(0.001)


async def test_way_that_opens_soon_says_more_than_one_that_needs_an_operator() -> None:
    bench = Bench(routes=("first", "second"))
    bench.second.script = Script(before=GONE)
    bench.first.script = Script(before=WRONG_ADDRESS)
    for _ in range(3):
        with pytest.raises(ServiceError):
            await bench.ask()
    bench.first.keys = ring("first", bench.clock, "other")
    error = await bench.fails(CircuitOpen)
    assert len(bench.first.calls) == 2
    assert error.retryable


# Other settings while requests run.


def both(**sections: Any) -> Settings:
    provider = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", **sections}
    return Settings.model_validate({"providers": {"first": provider, "second": provider}})


async def test_changed_settings_hold_for_the_next_request_and_forget_what_was_learnt() -> None:
    bench = Bench()
    bench.first.script = Script(before=GONE)
    for _ in range(3):
        with pytest.raises(ServiceError):
            await bench.ask()
    (await bench.attempts.prepare(both(retries={"max_attempts": 1})))()
    assert bench.samples("llm_api_upstream_breakers_open", "provider", "model") == {("first", "up"): 0}
    before = sum(bench.calls().values())
    await bench.fails(UpstreamUnavailable)
    assert sum(bench.calls().values()) == before + 1


async def test_settings_that_stay_keep_what_was_learnt() -> None:
    bench = Bench()
    same = both()
    (await bench.attempts.prepare(same))()
    bench.first.script = Script(before=GONE)
    for _ in range(3):
        with pytest.raises(ServiceError):
            await bench.ask()
    (await bench.attempts.prepare(same))()
    await bench.fails(CircuitOpen)


async def test_provider_that_was_taken_out_is_an_outage_of_its_route_alone() -> None:
    bench = Bench(routes=("first", "second"))
    del bench.providers["first"]
    assert (await bench.ask()).route.provider == "second"
    del bench.providers["second"]
    await bench.fails(UpstreamUnavailable)


# Hedging.


@dataclass
class Race:
    """Two providers, stepped by hand, and what was given up."""

    hedging: Mapping[str, Any]
    keys: tuple[str, ...] = ("k1",)
    routes: tuple[str, ...] = ("first", "second")

    def __post_init__(self) -> None:
        self.due = asyncio.Event()
        self.lost: list[tuple[str, str | None]] = []
        self.bench = Bench(
            routes=self.routes, keys=self.keys, resilience={"hedging": {"enabled": True, **self.hedging}}
        )
        self.bench.attempts._hedging._sleep = self.sleep
        self.gates = {name: asyncio.Event() for name in ("first", "second")}
        self.begun: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("first", "second")}
        self.slept: list[float] = []
        self.errors: dict[str, UpstreamError] = {}

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.due.wait()

    async def call(self, attempt: Attempt) -> str:
        name = attempt.route.provider
        self.begun[name].set()
        await self.gates[name].wait()
        if name in self.errors:
            raise self.errors[name]
        return name

    async def lose(self, attempt: Attempt, value: str | None) -> None:
        self.lost.append((attempt.route.provider, value))

    async def run(self) -> tuple[str, Attempt]:
        return await self.bench.attempts.make(self.bench.entry, WORK, self.call, lose=self.lose)

    def earn(self) -> None:
        """Let so many streams have been that one may be hedged."""
        for _ in range(20):
            self.bench.attempts._hedging._budget.earn()


async def test_late_first_content_gets_a_second_attempt_elsewhere_and_the_loser_is_given_up() -> None:
    race = Race({"delay_s": 0.7})
    race.earn()
    task = asyncio.create_task(race.run())
    await soon(race.begun["first"])
    assert not race.begun["second"].is_set()
    race.due.set()
    await soon(race.begun["second"])
    race.gates["second"].set()
    value, attempt = await task
    assert (value, attempt.kind, race.slept) == ("second", "hedge", [0.7])
    assert race.lost == [("first", None)]
    assert race.bench.kinds() == {("first", "first", "cancelled"): 1, ("second", "hedge", "ok"): 1}


async def test_first_attempt_that_wins_after_all_has_its_rival_given_up() -> None:
    race = Race({"delay_s": 0.7})
    race.earn()
    task = asyncio.create_task(race.run())
    await soon(race.begun["first"])
    race.due.set()
    await soon(race.begun["second"])
    race.gates["first"].set()
    assert (await task)[0] == "first"
    assert race.lost == [("second", None)]


async def test_two_that_arrive_together_leave_one_and_the_other_is_given_up_with_what_it_brought() -> None:
    race = Race({"delay_s": 0.7})
    race.earn()
    task = asyncio.create_task(race.run())
    await soon(race.begun["first"])
    race.due.set()
    await soon(race.begun["second"])
    race.gates["first"].set()
    race.gates["second"].set()
    value, _ = await task
    assert race.lost == [("second" if value == "first" else "first",) * 2]


async def test_second_attempt_is_made_with_another_key_where_there_is_no_other_route() -> None:
    race = Race({"delay_s": 0.7}, keys=("k1", "k2"), routes=("first",))
    race.earn()
    task = asyncio.create_task(race.run())
    await soon(race.begun["first"])
    race.begun["first"].clear()
    race.due.set()
    await soon(race.begun["first"])
    race.gates["first"].set()
    await task
    assert len(race.lost) == 1


async def test_no_second_attempt_with_the_same_key_at_the_same_route() -> None:
    race = Race({"delay_s": 0.7}, routes=("first",))
    race.earn()
    task = asyncio.create_task(race.run())
    await soon(race.begun["first"])
    race.due.set()
    await asyncio.wait((task,), timeout=0.01)
    race.gates["first"].set()
    await task
    assert race.bench.kinds() == {("first", "first", "ok"): 1}


async def test_failure_of_the_second_attempt_leaves_the_first_alone() -> None:
    race = Race({"delay_s": 0.7})
    race.earn()
    race.errors = {"second": GONE}
    race.gates["second"].set()
    task = asyncio.create_task(race.run())
    await soon(race.begun["first"])
    race.due.set()
    await soon(race.begun["second"])
    await asyncio.wait((task,), timeout=0.01)
    assert not task.done()
    race.gates["first"].set()
    assert (await task)[0] == "first"


async def test_failure_of_both_is_the_failure_of_the_usual_way() -> None:
    race = Race({"delay_s": 0.7})
    race.earn()
    race.errors = {"first": WRONG_ADDRESS, "second": GONE}
    task = asyncio.create_task(race.run())
    await soon(race.begun["first"])
    race.due.set()
    await soon(race.begun["second"])
    race.gates["second"].set()
    await asyncio.wait((task,), timeout=0.01)
    race.gates["first"].set()
    with pytest.raises(UpstreamMisconfigured):
        await task
    assert race.lost == []


async def test_client_that_leaves_takes_both_attempts_with_it() -> None:
    race = Race({"delay_s": 0.7})
    race.earn()
    task = asyncio.create_task(race.run())
    await soon(race.begun["first"])
    race.due.set()
    await soon(race.begun["second"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert race.bench.kinds() == {("first", "first", "cancelled"): 1, ("second", "hedge", "cancelled"): 1}


async def test_second_attempts_are_no_more_than_their_part_of_the_streams() -> None:
    race = Race({"delay_s": 0.7, "budget_ratio": 0.05})
    race.due.set()
    race.gates["second"].set()
    hedged = 0
    for _ in range(200):
        race.begun["second"].clear()
        task = asyncio.create_task(race.run())
        await soon(race.begun["first"])
        for _ in range(50):  # a second attempt needs no time, only turns of the loop
            await asyncio.sleep(0)
        hedged += task.done()
        race.gates["first"].set()
        await task
        race.gates["first"].clear()
    assert hedged == 10


async def test_late_is_what_95_of_100_were_not() -> None:
    race = Race({})
    race.earn()
    for gate in race.gates.values():
        gate.set()
    for number in range(100):
        race.bench.attempts._hedging._took(race.bench.entry, number / 100)
    await race.run()
    assert race.slept == [0.95]


async def test_nothing_is_hedged_before_it_is_known_what_is_late() -> None:
    race = Race({})
    for gate in race.gates.values():
        gate.set()
    await race.run()
    assert race.slept == []


def test_attempts_need_no_event_loop_to_be_made() -> None:
    assert isinstance(Bench().attempts, Attempts)
