"""Limiters against a model that is slow and plainly right: it replays all that ever happened, in fractions."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from decimal import Decimal
from fractions import Fraction
from itertools import combinations_with_replacement

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from service.admission.base import LimitReached
from service.domain.limits import NANO, Demand, Limits, Reservation, Scope
from tests.support.limiters import Bench, memory_bench, redis_bench

Opener = Callable[[], AbstractAsyncContextManager[Bench]]

small = st.one_of(st.none(), st.integers(1, 6))
LIMITS = st.builds(
    Limits,
    requests_per_minute=st.one_of(st.none(), st.sampled_from([1, 7, 60, 6_000])),
    request_burst=small,
    tokens_per_minute=st.one_of(st.none(), st.sampled_from([11, 600, 90_000])),
    token_burst=st.one_of(st.none(), st.integers(60, 200)),
    concurrency=small,
    usd_per_day=st.one_of(st.none(), st.sampled_from([Decimal("0.5"), Decimal(2)])),
)
TOKENS = st.integers(0, 11)
NANO_USD = st.integers(0, NANO // 2)
LEASE_S = 1e6
"""Places run out neither in the model nor in memory, whose process is the one that would have to die."""
PAUSES_MS = st.one_of(st.integers(0, 20), st.integers(0, 60_000), st.just(12 * 3_600_000))


class Bucket:
    """What happened to a rate, from the first moment on."""

    def __init__(self, burst: int, per_minute: int, at_ms: int) -> None:
        self.burst = burst
        self.per_minute = per_minute
        self.events: list[tuple[int, int]] = []
        self.began_ms = at_ms

    def level(self, at_ms: int) -> Fraction:
        level, last_ms = Fraction(self.burst), self.began_ms
        for event_ms, taken in [*self.events, (at_ms, 0)]:
            level = min(Fraction(self.burst), level + Fraction(self.per_minute * (event_ms - last_ms), 60_000))
            level = min(Fraction(self.burst), level - taken)
            last_ms = event_ms
        return level

    def first_pass_ms(self, wanted: int, at_ms: int) -> int:
        """Return how long to wait until there is so much."""
        missing = wanted - self.level(at_ms)
        return max(0, -int(-(missing * 60_000 / self.per_minute) // 1))


class Model:
    """The limits of one scope, by what happened to them."""

    def __init__(self, scope: Scope, at_ms: int) -> None:
        limits = scope.limits
        self.requests = self.tokens = None
        if limits.requests_per_minute is not None:
            rate = limits.requests_per_minute
            self.requests = Bucket(limits.request_burst or rate, rate, at_ms)
        if limits.tokens_per_minute is not None:
            rate = limits.tokens_per_minute
            self.tokens = Bucket(limits.token_burst or rate, rate, at_ms)
        self.places = limits.concurrency
        self.running: set[str] = set()
        self.budget = None if limits.usd_per_day is None else int(limits.usd_per_day * NANO)
        self.spent: dict[str, tuple[int, int]] = {}
        """Of each reservation: the day, and how much."""

    def spent_on(self, day: int) -> int:
        return sum(amount for of_day, amount in self.spent.values() if of_day == day)

    def wait_ms(self, demand: Demand, wall_ms: int) -> tuple[int, bool]:
        """Return how long the demand does not pass, and whether nobody can know exactly."""
        waits = [0]
        if self.requests is not None:
            waits.append(self.requests.first_pass_ms(1, wall_ms))
        if self.tokens is not None:
            waits.append(self.tokens.first_pass_ms(demand.tokens, wall_ms))
        day = wall_ms // 86_400_000
        if self.budget is not None and self.spent_on(day) + demand.nano_usd > self.budget and demand.nano_usd:
            waits.append((day + 1) * 86_400_000 - wall_ms)
        full = self.places is not None and len(self.running) >= self.places
        return max([*waits, 1_000 if full else 0]), full

    def take(self, reservation: Reservation, wall_ms: int) -> None:
        if self.requests is not None:
            self.requests.events.append((wall_ms, 1))
        if self.tokens is not None:
            self.tokens.events.append((wall_ms, reservation.demand.tokens))
        self.running.add(reservation.id)
        self.spent[reservation.id] = (wall_ms // 86_400_000, reservation.demand.nano_usd)

    def settle(self, reservation: Reservation, actual: Demand, wall_ms: int) -> None:
        if self.tokens is not None:
            self.tokens.events.append((wall_ms, actual.tokens - reservation.demand.tokens))
        self.running.discard(reservation.id)
        day, _ = self.spent[reservation.id]
        if day == wall_ms // 86_400_000:
            self.spent[reservation.id] = (day, actual.nano_usd)


class Limiters(RuleBasedStateMachine):
    """Asks, ends, waits; after each step the limiter and the model agree to the millisecond."""

    opener: Opener
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.bench: Bench = self.runner.run(self.stack.enter_async_context(type(self).opener()))
        self.admitted_ms: list[int] = []

    @override
    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()

    @property
    def wall_ms(self) -> int:
        return round(self.bench.clock.wall() * 1_000)

    @initialize(key=LIMITS, user=LIMITS, model=LIMITS)
    def configure(self, key: Limits, user: Limits, model: Limits) -> None:
        self.scopes = (Scope("key", "a", key), Scope("user", "a/u", user), Scope("model", "m*", model))
        self.models = tuple(Model(scope, self.wall_ms) for scope in self.scopes)

    def ask(self, demand: Demand) -> Reservation | LimitReached:
        """Ask the limiter, and hold what it says against the model."""
        waits = [model.wait_ms(demand, self.wall_ms) for model in self.models]
        try:
            reservation = self.runner.run(self.bench.limiter.reserve(self.scopes, demand))
        except LimitReached as error:
            refused = error
        else:
            assert not any(wait for wait, _ in waits), "admitted what should have waited"
            for model in self.models:
                model.take(reservation, self.wall_ms)
            self.admitted_ms.append(self.wall_ms)
            return reservation
        assert refused.retry_after_s is not None
        assert round(refused.retry_after_s * 1_000) == max(wait for wait, _ in waits)
        return refused

    @rule(target=running, tokens=TOKENS, nano_usd=NANO_USD)
    def request(self, tokens: int, nano_usd: int) -> object:
        answer = self.ask(Demand(tokens, nano_usd))
        return answer if isinstance(answer, Reservation) else multiple()

    @rule(target=running, tokens=TOKENS, nano_usd=NANO_USD)
    def obey_retry_after(self, tokens: int, nano_usd: int) -> object:
        demand = Demand(tokens, nano_usd)
        refused = self.ask(demand)
        if isinstance(refused, Reservation):
            return refused
        if any(model.wait_ms(demand, self.wall_ms)[1] for model in self.models):
            return multiple()  # a place is needed, and only an end of a request can give it
        wait_ms = round((refused.retry_after_s or 0) * 1_000)
        self.pause(wait_ms - 1)
        assert isinstance(self.ask(demand), LimitReached), "there was an earlier instant"
        self.pause(1)
        answer = self.ask(demand)
        assert isinstance(answer, Reservation), "the instant was no such one"
        return answer

    @rule(reservation=consumes(running), tokens=st.integers(0, 40), nano_usd=NANO_USD)
    def settle(self, reservation: Reservation, tokens: int, nano_usd: int) -> None:
        actual = Demand(tokens, nano_usd)
        for _ in range(2):  # the second time changes nothing
            self.runner.run(self.bench.settle(reservation, tokens=tokens, usd=nano_usd / NANO))
        for model in self.models:
            model.settle(reservation, actual, self.wall_ms)

    @rule(pause_ms=PAUSES_MS)
    def pause(self, pause_ms: int) -> None:
        self.runner.run(self.bench.advance(pause_ms))

    @invariant()
    def no_window_admits_more_than_burst_and_rate(self) -> None:
        for model in getattr(self, "models", ()):
            if model.requests is None:
                continue
            indexes = range(len(self.admitted_ms))
            for first, last in combinations_with_replacement(indexes, 2):
                window_ms = self.admitted_ms[last] - self.admitted_ms[first]
                most = model.requests.burst + Fraction(model.requests.per_minute * window_ms, 60_000)
                assert last - first + 1 <= most


@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_limiter_agrees_with_the_model(backend: str, redis_url: str) -> None:
    class Machine(Limiters):
        opener = staticmethod(memory_bench if backend == "memory" else lambda: redis_bench(redis_url, lease_s=LEASE_S))

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100 if backend == "memory" else 40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
