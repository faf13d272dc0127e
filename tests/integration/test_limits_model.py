"""Limiters against a model that is slow and plainly right: it replays all that ever happened, in fractions."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate, combinations

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
KEEPS = st.sampled_from([0, 0, 0.0625, 0.25, 0.5, 1])
"""Of those, products are exact; the more often nothing is to be left, the more passes."""
NANO_USD = st.one_of(st.sampled_from([0, NANO // 4, NANO // 2]), st.integers(0, NANO // 2))
"""What is free, and what soon makes a whole budget, are often among them."""
LEASE_S = 1e6
"""Places run out neither in the model nor in memory, whose process is the one that would have to die."""
WORK_US = st.one_of(st.integers(0, 2_000), st.integers(0, 40_000_000), st.just(1_500_000_000))
AT_LEAST_US = st.one_of(st.just(0), st.integers(0, 90_000_000), st.integers(3_599_990_000, 3_600_010_000))
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


def left_by(wanted: int, capacity: int, keep: float) -> int:
    """Return how much must be left when so much was taken."""
    return min(capacity - wanted, int(Fraction(keep) * capacity))


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

    def wait_ms(self, demand: Demand, keep: float, wall_ms: int) -> tuple[int, bool]:
        """Return how long the demand does not pass, and whether nobody can know exactly."""
        waits = [0]
        if self.requests is not None:
            waits.append(self.requests.first_pass_ms(1 + left_by(1, self.requests.burst, keep), wall_ms))
        if self.tokens is not None:
            left = left_by(demand.tokens, self.tokens.burst, keep)
            waits.append(self.tokens.first_pass_ms(demand.tokens + left, wall_ms))
        day = wall_ms // 86_400_000
        if self.budget is not None and self.spent_on(day) + demand.nano_usd > self.budget and demand.nano_usd:
            waits.append((day + 1) * 86_400_000 - wall_ms)
        full = self.places is not None and self.places - len(self.running) < 1 + left_by(1, self.places, keep)
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

    def give_back(self, reservation: Reservation, wall_ms: int) -> None:
        if self.requests is not None:
            self.requests.events.append((wall_ms, -1))
        self.settle(reservation, Demand(), wall_ms)


@dataclass
class Booking:
    """Room that was promised."""

    pace: str
    ticket: str
    room_us: int
    work_us: int
    used: bool = False


class Limiters(RuleBasedStateMachine):
    """Asks, ends, waits; after each step the limiter and the model agree to the millisecond."""

    opener: Opener
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.bench: Bench = self.runner.run(self.stack.enter_async_context(type(self).opener()))
        self.counted: list[tuple[int, int]] = []
        """When a request was admitted (1) or given back (-1)."""
        self.bookings: list[Booking] = []

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

    def ask(self, demand: Demand, keep: float) -> Reservation | LimitReached:
        """Ask the limiter, and hold what it says against the model."""
        waits = [model.wait_ms(demand, keep, self.wall_ms) for model in self.models]
        try:
            reservation = self.runner.run(self.bench.limiter.reserve(self.scopes, demand, keep=keep))
        except LimitReached as error:
            refused = error
        else:
            assert not any(wait for wait, _ in waits), "admitted what should have waited"
            for model in self.models:
                model.take(reservation, self.wall_ms)
            self.counted.append((self.wall_ms, 1))
            return reservation
        assert refused.retry_after_s is not None
        assert round(refused.retry_after_s * 1_000) == max(wait for wait, _ in waits)
        return refused

    @rule(target=running, tokens=TOKENS, nano_usd=NANO_USD, keep=KEEPS)
    def request(self, tokens: int, nano_usd: int, keep: float) -> object:
        answer = self.ask(Demand(tokens, nano_usd), keep)
        return answer if isinstance(answer, Reservation) else multiple()

    @rule(target=running, tokens=TOKENS, nano_usd=NANO_USD, keep=KEEPS)
    def obey_retry_after(self, tokens: int, nano_usd: int, keep: float) -> object:
        demand = Demand(tokens, nano_usd)
        refused = self.ask(demand, keep)
        if isinstance(refused, Reservation):
            return refused
        if any(model.wait_ms(demand, keep, self.wall_ms)[1] for model in self.models):
            return multiple()  # a place is needed, and only an end of a request can give it
        wait_ms = round((refused.retry_after_s or 0) * 1_000)
        self.pause(wait_ms - 1)
        assert isinstance(self.ask(demand, keep), LimitReached), "there was an earlier instant"
        self.pause(1)
        answer = self.ask(demand, keep)
        assert isinstance(answer, Reservation), "the instant was no such one"
        return answer

    @rule(reservation=consumes(running), tokens=st.integers(0, 40), nano_usd=NANO_USD)
    def settle(self, reservation: Reservation, tokens: int, nano_usd: int) -> None:
        actual = Demand(tokens, nano_usd)
        for _ in range(2):  # the second time changes nothing
            self.runner.run(self.bench.settle(reservation, tokens=tokens, usd=nano_usd / NANO))
        for model in self.models:
            model.settle(reservation, actual, self.wall_ms)

    @rule(target=running, reservation=consumes(running))
    def overspend_and_ask_for_what_is_free(self, reservation: Reservation) -> object:
        self.settle(reservation, 0, 3 * NANO)
        answer = self.ask(Demand(), 0)
        return answer if isinstance(answer, Reservation) else multiple()

    @rule(reservation=consumes(running))
    def give_back(self, reservation: Reservation) -> None:
        for _ in range(2):
            self.runner.run(self.bench.give_back(reservation))
        self.runner.run(self.bench.settle(reservation, tokens=40))  # is over too
        self.counted.append((self.wall_ms, -1))
        for model in self.models:
            model.give_back(reservation, self.wall_ms)

    @rule(pace=st.sampled_from("ab"), ticket=st.sampled_from("xy"), work_us=WORK_US, at_least_us=AT_LEAST_US)
    def promise(self, pace: str, ticket: str, work_us: int, at_least_us: int) -> None:
        self.book(pace, ticket, work_us, at_least_us)

    def book(self, pace: str, ticket: str, work_us: int, at_least_us: int) -> float:
        """Book room, hold what is promised against the model, and return it."""
        told_s = self.runner.run(
            self.bench.promise(pace, ticket, work_s=work_us / 1_000_000, at_least_s=at_least_us / 1_000_000)
        )
        now_us = self.wall_ms * 1_000
        ends = [booking.room_us + booking.work_us for booking in self.bookings if booking.pace == pace]
        room_us = max([now_us + at_least_us, *ends])
        if room_us > now_us + 3_600_000_000:
            assert told_s == 3_600
        else:
            assert told_s == (room_us - now_us) / 1_000_000
            self.bookings.append(Booking(pace, ticket, room_us, work_us))
        return told_s

    @rule(pace=st.sampled_from("ab"), ticket=st.sampled_from("xy"))
    def redeem(self, pace: str, ticket: str) -> None:
        now_us = self.wall_ms * 1_000
        good = [
            booking
            for booking in self.bookings
            if (booking.pace, booking.ticket, booking.used) == (pace, ticket, False)
            and 0 <= now_us - booking.room_us <= 60_000_000
        ]
        assert self.runner.run(self.bench.limiter.redeem(pace, ticket)) == bool(good)
        if good:
            min(good, key=lambda booking: booking.room_us).used = True

    @rule(pace=st.sampled_from("ab"), ticket=st.sampled_from("xy"), late_ms=st.sampled_from([-1, 0, 60_000, 60_001]))
    def come_when_told(self, pace: str, ticket: str, late_ms: int) -> None:
        told_ms = -int(-self.book(pace, ticket, 7_000, 5_000_000) * 1_000 // 1)
        self.pause(told_ms + late_ms)
        self.redeem(pace, ticket)

    @rule(pause_ms=PAUSES_MS)
    def pause(self, pause_ms: int) -> None:
        self.runner.run(self.bench.advance(pause_ms))

    @invariant()
    def no_window_admits_more_than_burst_and_rate(self) -> None:
        for model in getattr(self, "models", ()):
            if model.requests is None:
                continue
            sums = list(accumulate((change for _, change in self.counted), initial=0))
            for first, beyond in combinations(range(len(sums)), 2):
                window_ms = self.counted[beyond - 1][0] - self.counted[first][0]
                most = model.requests.burst + Fraction(model.requests.per_minute * window_ms, 60_000)
                assert sums[beyond] - sums[first] <= most


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
