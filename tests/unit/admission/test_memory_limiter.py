"""Limits in memory forget what says nothing any more."""

from decimal import Decimal

from service.admission.memory import FORGET_AT, MemoryLimiter
from service.domain.clock import ManualClock
from service.domain.limits import Demand, quotas_of
from tests.support.limiters import scope


async def test_users_that_are_gone_take_no_memory() -> None:
    clock = ManualClock()
    limiter = MemoryLimiter(clock=clock)
    for number in range(5 * FORGET_AT):
        clock.advance(1)
        user = scope("user", f"alice/{number}", requests_per_minute=60, concurrency=2, usd_per_day=Decimal(1))
        limiter.settle(await limiter.reserve([user], Demand(nano_usd=1)), Demand())
        if number % 1_000 == 0:
            clock.advance(86_400)
    kept = len(limiter._buckets) + len(limiter._spent)
    assert kept <= 2 * FORGET_AT
    assert limiter._running == {}
    assert limiter._open == {}


async def test_who_still_owes_is_not_forgotten() -> None:
    clock = ManualClock()
    limiter = MemoryLimiter(clock=clock)
    debtor = scope(tokens_per_minute=60)
    limiter.settle(await limiter.reserve([debtor], Demand(60)), Demand(1_000))
    for number in range(2 * FORGET_AT):
        await limiter.reserve([scope("user", f"alice/{number}", requests_per_minute=60)], Demand())
    assert limiter._level(quotas_of(debtor)[0]) < 0


async def test_promises_that_are_over_take_no_memory() -> None:
    clock = ManualClock()
    limiter = MemoryLimiter(clock=clock)
    await limiter.promise("far", "t", work_s=100, at_least_s=3_000)
    for number in range(3 * FORGET_AT):
        clock.advance(0.5)
        await limiter.promise(f"pace-{number}", f"ticket-{number}", work_s=0.1, at_least_s=0)
    assert len(limiter._paces) + len(limiter._booked) <= 2 * FORGET_AT
    assert await limiter.promise("far", "other", work_s=0, at_least_s=0) == 3_100 - 1.5 * FORGET_AT
    clock.advance(3_000 - 1.5 * FORGET_AT)
    assert await limiter.redeem("far", "t")
    assert ("far", "t") not in limiter._booked
