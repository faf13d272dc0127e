"""Limits without the store: each process keeps its part, money waits, and nobody waits for what is away."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest
from prometheus_client import CollectorRegistry

from service.admission import fallback
from service.admission.base import LimitReached
from service.admission.fallback import FAILURES_TO_OPEN, FallbackLimiter
from service.admission.memory import MemoryLimiter
from service.domain.clock import ManualClock
from service.domain.limits import Demand, Reservation, Scope
from service.errors import StoreUnavailable
from service.telemetry.metrics import Metrics
from tests.support.fake_app import until
from tests.support.limiters import scope


class Store:
    """Answers as memory does, or not at all."""

    def __init__(self, clock: ManualClock) -> None:
        self.limits = MemoryLimiter(clock=clock)
        self.away = False
        self.asked = 0
        self.pinged = 0
        self.settled: list[Demand] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def reserve(self, scopes: Sequence[Scope], demand: Demand) -> Reservation:
        self.asked += 1
        await asyncio.sleep(0)
        self._answer()
        kept = await self.limits.reserve(scopes, demand)
        return Reservation(kept.id, kept.quotas, kept.demand, kept.balances, local=False)

    def settle(self, reservation: Reservation, actual: Demand) -> None:
        self.settled.append(actual)
        self.limits.settle(reservation, actual)

    async def ping(self) -> None:
        self.pinged += 1
        self._answer()

    def _answer(self) -> None:
        if self.away:
            raise StoreUnavailable("away")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> Store:
    return Store(clock)


def limiter_over(store: Store, clock: ManualClock, *, replicas: int = 1, money: str = "closed") -> FallbackLimiter:
    return FallbackLimiter(
        store,
        replicas=replicas,
        money="open" if money == "open" else "closed",
        metrics=Metrics(CollectorRegistry()),
        clock=clock,
    )


async def test_store_decides_as_long_as_it_answers(store: Store, clock: ManualClock) -> None:
    limiter = limiter_over(store, clock)
    limited = scope(requests_per_minute=1, usd_per_day=Decimal(1))
    reservation = await limiter.reserve([limited], Demand(nano_usd=10))
    for _ in range(2 * FAILURES_TO_OPEN):
        with pytest.raises(LimitReached):
            await limiter.reserve([limited], Demand())
    limiter.settle(reservation, Demand(nano_usd=3))
    assert store.settled == [Demand(nano_usd=3)]
    assert not limiter.store_is_away


async def test_each_process_keeps_its_part_while_the_store_is_away(store: Store, clock: ManualClock) -> None:
    store.away = True
    limiter = limiter_over(store, clock, replicas=3)
    limited = scope(requests_per_minute=60, request_burst=7, tokens_per_minute=90, concurrency=2)
    first = await limiter.reserve([limited], Demand(80))  # more than its part: it takes all of that
    assert [(balance.quota.capacity, balance.remaining) for balance in first.balances] == [(2, 1), (30, 0), (1, 0)]
    limiter.settle(first, Demand())
    await limiter.reserve([limited], Demand(30))
    with pytest.raises(LimitReached):
        await limiter.reserve([limited], Demand())
    assert store.settled == []


async def test_part_of_a_small_limit_is_never_nothing(store: Store, clock: ManualClock) -> None:
    store.away = True
    limiter = limiter_over(store, clock, replicas=50)
    await limiter.reserve([scope(requests_per_minute=3)], Demand())
    with pytest.raises(LimitReached) as caught:
        await limiter.reserve([scope(requests_per_minute=3)], Demand())
    assert caught.value.retry_after_s == 60


async def test_nobody_waits_for_a_store_that_failed_three_times(store: Store, clock: ManualClock) -> None:
    store.away = True
    limiter = limiter_over(store, clock)
    for _ in range(20):
        await limiter.reserve([scope(concurrency=100)], Demand())
    assert store.asked == FAILURES_TO_OPEN
    assert limiter.store_is_away
    value = limiter._metrics.registry.get_sample_value
    assert value("llm_api_rate_limiter_store_failures_total") == FAILURES_TO_OPEN
    assert value("llm_api_rate_limiter_fallbacks_total") == 20
    assert value("llm_api_rate_limiter_local") == 1


async def test_many_that_wait_through_one_stall_are_one_failure(store: Store, clock: ManualClock) -> None:
    limiter = limiter_over(store, clock)
    store.away = True
    for wave in range(FAILURES_TO_OPEN):
        assert not limiter.store_is_away, wave
        await asyncio.gather(*(limiter.reserve([scope(concurrency=1_000)], Demand()) for _ in range(50)))
    assert limiter.store_is_away


async def test_failures_that_are_not_in_a_row_are_forgotten(store: Store, clock: ManualClock) -> None:
    limiter = limiter_over(store, clock)
    for _ in range(5 * FAILURES_TO_OPEN):
        store.away = not store.away
        await limiter.reserve([scope(concurrency=100)], Demand())
    assert not limiter.store_is_away


async def test_store_that_is_back_is_asked_again(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "PROBE_EVERY_S", 0.001)
    limiter = limiter_over(store, clock)
    limited = scope(concurrency=100)
    async with limiter.running():
        store.away = True
        local = [await limiter.reserve([limited], Demand()) for _ in range(5)]
        await until(lambda: store.pinged > 2)
        store.away = False
        await until(lambda: not limiter.store_is_away)
        assert not (await limiter.reserve([limited], Demand())).local
        assert all(reservation.local for reservation in local)
        for reservation in local:
            limiter.settle(reservation, Demand())
    assert store.settled == []
    assert limiter._metrics.registry.get_sample_value("llm_api_rate_limiter_local") == 0


async def test_money_waits_for_the_store(store: Store, clock: ManualClock) -> None:
    store.away = True
    limited = [scope(requests_per_minute=60), scope("user", "alice/bob", usd_per_day=Decimal(1))]
    with pytest.raises(StoreUnavailable) as caught:
        await limiter_over(store, clock).reserve(limited, Demand(nano_usd=1))
    assert caught.value.retry_after_s == 1
    assert (await limiter_over(store, clock, money="open").reserve(limited, Demand(nano_usd=1))).local
