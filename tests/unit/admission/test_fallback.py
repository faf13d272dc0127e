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
from service.config import Settings
from service.domain.clock import ManualClock
from service.domain.limits import Demand, Reservation, Scope
from service.errors import BeyondLimit, StoreUnavailable
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
        self.defects = 0
        """How many looks for the store meet a defect of ours."""
        self.full = False
        """Whether it can be read from, and takes nothing."""
        self.slow: asyncio.Event | None = None
        """What the next request waits for, which fails then."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def reserve(self, scopes: Sequence[Scope], demand: Demand, *, keep: float = 0.0) -> Reservation:
        await self._asked()
        if self.full:
            raise StoreUnavailable("full")
        kept = await self.limits.reserve(scopes, demand, keep=keep)
        return Reservation(kept.id, kept.quotas, kept.demand, kept.balances, local=False)

    def settle(self, reservation: Reservation, actual: Demand) -> None:
        self.settled.append(actual)
        self.limits.settle(reservation, actual)

    def give_back(self, reservation: Reservation) -> None:
        self.limits.give_back(reservation)

    async def promise(self, pace: str, ticket: str, *, work_s: float, at_least_s: float) -> float:
        await self._asked()
        return await self.limits.promise(pace, ticket, work_s=work_s, at_least_s=at_least_s)

    async def redeem(self, pace: str, ticket: str) -> bool:
        await self._asked()
        return await self.limits.redeem(pace, ticket)

    async def ping(self) -> None:
        self.pinged += 1
        if self.defects:
            self.defects -= 1
            raise ZeroDivisionError
        self._answer()

    async def _asked(self) -> None:
        self.asked += 1
        slow, self.slow = self.slow, None
        if slow is not None:
            await slow.wait()
            raise StoreUnavailable("too late")
        await asyncio.sleep(0)
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


async def test_late_failure_of_one_that_began_before_others_succeeded_is_the_first(
    store: Store, clock: ManualClock
) -> None:
    limiter = limiter_over(store, clock)
    limited = scope(concurrency=100)
    for _ in range(FAILURES_TO_OPEN - 1):
        store.away = True
        await limiter.reserve([limited], Demand())
    store.away = False
    store.slow = end = asyncio.Event()
    late = asyncio.create_task(limiter.reserve([limited], Demand()))
    await until(lambda: store.slow is None)
    await limiter.reserve([limited], Demand())
    end.set()
    assert (await late).local
    assert not limiter.store_is_away
    store.away = True
    for _ in range(FAILURES_TO_OPEN - 1):
        assert not limiter.store_is_away
        await limiter.reserve([limited], Demand())
    assert limiter.store_is_away


async def test_store_that_can_only_be_read_counts_as_away(store: Store, clock: ManualClock) -> None:
    store.full = True
    limiter = limiter_over(store, clock)
    for _ in range(FAILURES_TO_OPEN):
        assert not limiter.store_is_away
        await limiter.reserve([scope(concurrency=100)], Demand())
        if not limiter.store_is_away:
            await limiter.redeem("openai", "t")
    assert limiter.store_is_away


async def test_failures_between_which_bookings_succeed_are_not_in_a_row(store: Store, clock: ManualClock) -> None:
    limiter = limiter_over(store, clock)
    for _ in range(FAILURES_TO_OPEN):
        for is_away in (True, False):
            store.away = is_away
            await limiter.redeem("openai", "t")
        for is_away in (True, False):
            store.away = is_away
            await limiter.promise("openai", "t", work_s=1, at_least_s=0)
    assert not limiter.store_is_away


async def test_a_refusal_is_an_answer(store: Store, clock: ManualClock) -> None:
    limiter = limiter_over(store, clock)
    limited = scope(concurrency=1)
    await limiter.reserve([limited], Demand())
    for _ in range(2 * FAILURES_TO_OPEN):
        store.away = True
        await limiter.redeem("openai", "t")
        store.away = False
        with pytest.raises(LimitReached):
            await limiter.reserve([limited], Demand())
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


async def test_store_that_fails_the_first_request_after_it_was_back_is_away_at_once(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "PROBE_EVERY_S", 0.001)
    limiter = limiter_over(store, clock)
    limited = scope(concurrency=100)
    async with limiter.running():
        store.full = True
        for _ in range(FAILURES_TO_OPEN):
            await limiter.reserve([limited], Demand())
        asked = store.asked
        await until(lambda: not limiter.store_is_away)
        await limiter.reserve([limited], Demand())
        assert limiter.store_is_away
        assert store.asked == asked + 1
        await until(lambda: not limiter.store_is_away)
        store.full = False
        await limiter.reserve([limited], Demand())
        store.full = True
        await limiter.reserve([limited], Demand())
        assert not limiter.store_is_away  # a failure after a success is the first again


async def test_defect_does_not_end_the_looking_for_the_store(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fallback, "PROBE_EVERY_S", 0.001)
    limiter = limiter_over(store, clock)
    async with limiter.running():
        store.away, store.defects = True, 2
        for _ in range(FAILURES_TO_OPEN):
            await limiter.reserve([scope(concurrency=100)], Demand())
        store.away = False
        await until(lambda: not limiter.store_is_away)
    assert [record.getMessage() for record in caplog.records].count("looking for the store: defect") == 2
    errors = limiter._metrics.registry.get_sample_value("llm_api_unhandled_errors_total", {"place": "limiter"})
    assert errors == 2


@pytest.mark.parametrize("away", [False, True])
async def test_what_could_never_pass_is_told_so_with_and_without_the_store(
    store: Store,
    clock: ManualClock,
    away: bool,  # noqa: FBT001 - a state of the store
) -> None:
    store.away = away
    limiter = limiter_over(store, clock, replicas=4)
    with pytest.raises(BeyondLimit):
        await limiter.reserve([scope(tokens_per_minute=40_000)], Demand(tokens=40_001))
    await limiter.reserve([scope(tokens_per_minute=40_000)], Demand(tokens=40_000))


async def test_parts_and_money_follow_the_configuration(store: Store, clock: ManualClock) -> None:
    store.away = True
    limiter = limiter_over(store, clock, replicas=1)
    limited = scope(requests_per_minute=8, usd_per_day=Decimal(1))
    commit = await limiter.prepare(
        Settings.model_validate({"admission": {"replicas": 4, "money_without_store": "open"}})
    )
    with pytest.raises(StoreUnavailable):
        await limiter.reserve([limited], Demand(nano_usd=1))
    commit()
    assert (await limiter.reserve([limited], Demand(nano_usd=1))).balances[0].quota.capacity == 2


async def test_money_waits_for_the_store(store: Store, clock: ManualClock) -> None:
    store.away = True
    limited = [scope(requests_per_minute=60), scope("user", "alice/bob", usd_per_day=Decimal(1))]
    with pytest.raises(StoreUnavailable) as caught:
        await limiter_over(store, clock).reserve(limited, Demand(nano_usd=1))
    assert caught.value.retry_after_s == 1
    assert (await limiter_over(store, clock, money="open").reserve(limited, Demand(nano_usd=1))).local
    assert (await limiter_over(store, clock).reserve(limited, Demand())).local  # what costs nothing


async def test_limits_of_a_provider_are_kept_in_parts_too(store: Store, clock: ManualClock) -> None:
    store.away = True
    limiter = limiter_over(store, clock, replicas=4)
    limited = scope("provider", "openai", requests_per_minute=80, concurrency=40)
    for _ in range(9):
        await limiter.reserve([limited], Demand(), keep=0.125)
    with pytest.raises(LimitReached) as caught:
        await limiter.reserve([limited], Demand(), keep=0.125)
    assert [(quota.resource, quota.capacity) for quota in caught.value.quotas] == [("concurrency", 10)]
    await limiter.reserve([limited], Demand())


async def test_what_is_to_be_left_is_told_to_the_store(store: Store, clock: ManualClock) -> None:
    limiter = limiter_over(store, clock)
    await limiter.reserve([scope(concurrency=2)], Demand(), keep=0.5)
    with pytest.raises(LimitReached):
        await limiter.reserve([scope(concurrency=2)], Demand(), keep=0.5)


async def test_reservation_is_given_back_to_where_it_was_made(store: Store, clock: ManualClock) -> None:
    limiter = limiter_over(store, clock)
    limited = scope(requests_per_minute=1)
    for store.away in (False, True):
        reservation = await limiter.reserve([limited], Demand())
        assert reservation.local == store.away
        limiter.give_back(reservation)
    for store.away in (False, True):
        await limiter.reserve([limited], Demand())  # nothing of it was counted, in either


async def test_without_the_store_each_process_promises_its_part_of_the_room(store: Store, clock: ManualClock) -> None:
    limiter = limiter_over(store, clock, replicas=3)
    assert [await limiter.promise("openai", "t", work_s=2, at_least_s=1) for _ in range(2)] == [1, 3]
    store.away = True
    told = [await limiter.promise("openai", "t", work_s=2, at_least_s=1) for _ in range(2 * FAILURES_TO_OPEN)]
    assert told == [1 + 6 * number for number in range(2 * FAILURES_TO_OPEN)]
    assert store.asked == 2 + FAILURES_TO_OPEN
    assert limiter.store_is_away


async def test_what_a_process_promised_by_itself_holds_when_the_store_is_back(store: Store, clock: ManualClock) -> None:
    limiter = limiter_over(store, clock)
    await limiter.promise("openai", "by the store", work_s=0, at_least_s=0)
    store.away = True
    await limiter.promise("openai", "here", work_s=0, at_least_s=0)
    assert not await limiter.redeem("openai", "by the store")  # which alone knows of it
    store.away = False
    for is_good in (True, False):
        for ticket in ("by the store", "here"):
            assert await limiter.redeem("openai", ticket) == is_good


@pytest.mark.parametrize("away", [False, True])
async def test_refusals_name_what_the_caller_can_make_smaller(store: Store, clock: ManualClock, *, away: bool) -> None:
    store.away = away
    limiter = limiter_over(store, clock)
    limited = scope(tokens_per_minute=100)
    await limiter.reserve([limited], Demand(tokens=100, set_by="input"))
    with pytest.raises(LimitReached, match=r"for fewer \(input\)"):
        await limiter.reserve([limited], Demand(tokens=10, set_by="input"))
    for named, advice in (("input", "send less input"), ("max_tokens", "send less, or lower max_tokens")):
        with pytest.raises(BeyondLimit, match=advice) as caught:
            await limiter.reserve([limited], Demand(tokens=101, set_by=named))
        assert [fault.field for fault in caught.value.fields] == [named]
