"""What every limiter does, in memory and on a real server."""

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from service.admission.base import DemandTooLarge, LimitReached
from service.domain.limits import NANO, Reservation, Scope
from tests.support.limiters import Bench, memory_bench, redis_bench, scope

HOUR_MS = 3_600_000


@pytest.fixture(params=["memory", "redis"])
async def bench(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Bench]:
    async with memory_bench() if request.param == "memory" else redis_bench(redis_url) as opened:
        yield opened


def left(reservation: Reservation) -> list[tuple[str, int, int]]:
    return [(balance.quota.resource, balance.remaining, balance.reset_ms) for balance in reservation.balances]


async def refusal(bench: Bench, *scopes: Scope, tokens: int = 0, usd: float = 0, keep: float = 0) -> LimitReached:
    with pytest.raises(LimitReached) as caught:
        await bench.reserve(*scopes, tokens=tokens, usd=usd, keep=keep)
    return caught.value


async def test_burst_passes_and_the_next_is_told_the_millisecond(bench: Bench) -> None:
    limited = scope(requests_per_minute=7, request_burst=3)
    for remaining in (2, 1, 0):
        assert left(await bench.reserve(limited))[0][:2] == ("requests", remaining)
    error = await refusal(bench, limited)
    assert error.retry_after_s == 8.572  # 60 s / 7, rounded up to the millisecond
    await bench.advance(8_571)
    assert (await refusal(bench, limited)).retry_after_s == 0.001
    await bench.advance(1)
    await bench.reserve(limited)


async def test_balances_are_those_right_after_the_request(bench: Bench) -> None:
    limited = scope(
        requests_per_minute=60, tokens_per_minute=600, token_burst=100, concurrency=4, usd_per_day=Decimal("2.5")
    )
    assert left(await bench.reserve(limited, tokens=40, usd=0.5)) == [
        ("requests", 59, 1_000),
        ("tokens", 60, 4_000),
        ("concurrency", 3, 0),
        ("usd", 2 * NANO, 23 * HOUR_MS),
    ]


async def test_refusal_takes_nothing_of_any_scope(bench: Bench) -> None:
    rich = scope(requests_per_minute=60, tokens_per_minute=600, concurrency=5, usd_per_day=Decimal(1))
    poor = scope("model", "m", requests_per_minute=1)
    await bench.reserve(rich, poor, tokens=10, usd=0.1)
    for _ in range(5):
        error = await refusal(bench, rich, poor, tokens=10, usd=0.1)
        assert [(quota.kind, quota.resource) for quota in error.quotas] == [("model", "requests")]
    assert [
        (resource, remaining) for resource, remaining, _ in left(await bench.reserve(rich, tokens=10, usd=0.1))
    ] == [
        ("requests", 58),
        ("tokens", 580),
        ("concurrency", 3),
        ("usd", 800_000_000),
    ]


async def test_refusal_says_what_is_left_and_names_the_longest_wait(bench: Bench) -> None:
    limited = scope(requests_per_minute=60, request_burst=1, tokens_per_minute=60, token_burst=10)
    await bench.reserve(limited, tokens=8)
    error = await refusal(bench, limited, tokens=9)
    assert error.retry_after_s == 7
    assert error.message.startswith("key 'alice' may take 60 tokens a minute")
    assert {quota.resource for quota in error.quotas} == {"requests", "tokens"}
    assert [(balance.quota.resource, balance.remaining) for balance in error.balances] == [
        ("requests", 0),
        ("tokens", 2),
    ]


async def test_settling_gives_back_what_was_not_used_and_keeps_the_request_counted(bench: Bench) -> None:
    limited = scope(requests_per_minute=60, tokens_per_minute=100, usd_per_day=Decimal(1))
    await bench.settle(await bench.reserve(limited, tokens=90, usd=0.9), tokens=30, usd=0.25)
    after = left(await bench.reserve(limited, tokens=0, usd=0))
    assert [(resource, remaining) for resource, remaining, _ in after] == [
        ("requests", 58),
        ("tokens", 70),
        ("usd", 750_000_000),
    ]


async def test_settling_on_more_than_was_reserved_takes_it_from_what_comes(bench: Bench) -> None:
    limited = scope(tokens_per_minute=60)
    await bench.settle(await bench.reserve(limited, tokens=50), tokens=90)
    error = await refusal(bench, limited, tokens=10)
    assert error.retry_after_s == 40
    assert error.balances[0].remaining == 0
    await bench.advance(40_000)
    await bench.reserve(limited, tokens=10)


async def test_settling_twice_is_settling_once(bench: Bench) -> None:
    limited = scope(tokens_per_minute=100, concurrency=2)
    reservation = await bench.reserve(limited, tokens=60)
    other = await bench.reserve(limited, tokens=0)
    await bench.settle(reservation, tokens=10)
    await bench.settle(reservation, tokens=0)
    assert [remaining for _, remaining, _ in left(await bench.reserve(limited, tokens=0))] == [90, 0]
    await bench.settle(other)


async def test_a_bucket_is_never_fuller_than_its_burst(bench: Bench) -> None:
    limited = scope(tokens_per_minute=600, token_burst=100)
    reservation = await bench.reserve(limited, tokens=100)
    await bench.advance(HOUR_MS)
    await bench.settle(reservation, tokens=0)
    assert left(await bench.reserve(limited, tokens=30)) == [("tokens", 70, 3_000)]


async def test_places_are_free_again_when_a_request_ends(bench: Bench) -> None:
    limited = scope(concurrency=2)
    first, _ = await bench.reserve(limited), await bench.reserve(limited)
    error = await refusal(bench, limited)
    assert error.message == "key 'alice' may run 2 requests at once: ask again when one of them has ended"
    assert error.retry_after_s == 1
    await bench.settle(first)
    await bench.reserve(limited)


async def test_budget_is_for_a_day_of_the_store(bench: Bench) -> None:
    limited = scope(usd_per_day=Decimal(1))
    await bench.reserve(limited, usd=0.75)
    error = await refusal(bench, limited, usd=0.5)
    assert error.retry_after_s == 23 * 3_600
    await bench.reserve(limited, usd=0)  # what costs nothing passes
    await bench.advance(23 * HOUR_MS - 1)
    assert (await refusal(bench, limited, usd=0.5)).retry_after_s == 0.001
    await bench.advance(1)
    assert left(await bench.reserve(limited, usd=0.5)) == [("usd", 500_000_000, 24 * HOUR_MS)]


async def test_money_of_yesterday_is_not_missing_today(bench: Bench) -> None:
    limited = scope(usd_per_day=Decimal(1))
    late = await bench.reserve(limited, usd=0.5)
    await bench.advance(24 * HOUR_MS)
    await bench.reserve(limited, usd=0.25)
    await bench.settle(late, usd=0.9)
    assert left(await bench.reserve(limited, usd=0))[0][1] == 750_000_000


async def test_what_is_free_passes_though_more_was_spent_than_there_is(bench: Bench) -> None:
    limited = scope(usd_per_day=Decimal("0.5"))
    await bench.settle(await bench.reserve(limited, usd=0.25), usd=0.75)
    await refusal(bench, limited, usd=0.000_000_001)
    assert left(await bench.reserve(limited, usd=0)) == [("usd", 0, 23 * HOUR_MS)]


async def test_senseless_figures_of_a_provider_stay_within_what_can_be_counted(bench: Bench) -> None:
    limited = scope(tokens_per_minute=6_000_000, token_burst=1_000, usd_per_day=Decimal(1))
    await bench.settle(await bench.reserve(limited, tokens=10), tokens=10**15, usd=10**9)
    assert (await refusal(bench, limited, tokens=1)).retry_after_s == 999.991
    await bench.advance(24 * HOUR_MS)
    assert left(await bench.reserve(limited, tokens=1))[0][1] == 999


async def test_what_could_never_pass_is_an_error_of_its_own(bench: Bench) -> None:
    limited = scope(tokens_per_minute=60, token_burst=10, usd_per_day=Decimal("0.5"))
    for tokens, usd, words in ((11, 0.0, "10 tokens at once"), (1, 0.6, "0.5 USD a day")):
        with pytest.raises(DemandTooLarge) as caught:
            await bench.reserve(limited, tokens=tokens, usd=usd)
        assert words in caught.value.message
        assert caught.value.fields[0].field == "max_tokens"
        assert caught.value.retry_after_s is None
    assert left(await bench.reserve(limited, tokens=10))[0][1] == 0


async def test_the_largest_numbers_are_exact(bench: Bench) -> None:
    limited = scope(tokens_per_minute=1, token_burst=100_000_000_000, usd_per_day=Decimal(1_000_000))
    reservation = await bench.reserve(limited, tokens=1, usd=0)
    assert left(reservation)[0] == ("tokens", 99_999_999_999, 60_000)
    await bench.advance(1)
    reservation = await bench.limiter.reserve([limited], reservation.demand)
    assert left(reservation)[0] == ("tokens", 99_999_999_998, 119_999)
    error = await refusal(bench, limited, tokens=100_000_000_000)
    assert error.retry_after_s == 119.999


async def test_part_that_is_to_be_left_is_waited_for_to_the_millisecond(bench: Bench) -> None:
    limited = scope("provider", "openai", requests_per_minute=7, request_burst=39)
    for _ in range(38):
        await bench.reserve(limited, keep=0.05)  # of 39, 1.95 rounded down
    error = await refusal(bench, limited, keep=0.05)
    assert error.message.startswith("provider 'openai' may start 7 requests a minute")
    assert error.balances[0].remaining == 1
    assert error.retry_after_s == 8.572  # 60 s / 7, rounded up to the millisecond
    await bench.advance(8_571)
    assert (await refusal(bench, limited, keep=0.05)).retry_after_s == 0.001
    await bench.advance(1)
    await bench.reserve(limited, keep=0.05)
    await bench.reserve(limited)  # what others had to leave


async def test_tokens_are_left_too(bench: Bench) -> None:
    limited = scope(tokens_per_minute=600, token_burst=100)
    await bench.reserve(limited, tokens=60, keep=0.25)
    assert (await refusal(bench, limited, tokens=20, keep=0.25)).retry_after_s == 0.5
    assert left(await bench.reserve(limited, tokens=15, keep=0.25)) == [("tokens", 25, 7_500)]


async def test_places_are_left_too(bench: Bench) -> None:
    limited = scope(concurrency=4)
    for _ in range(2):
        await bench.reserve(limited, keep=0.5)
    error = await refusal(bench, limited, keep=0.5)
    assert (error.retry_after_s, error.balances[0].remaining) == (1, 2)
    await bench.reserve(limited)


async def test_nothing_becomes_impossible_by_what_is_to_be_left(bench: Bench) -> None:
    limited = scope(requests_per_minute=1, tokens_per_minute=600, token_burst=100, concurrency=1)
    reservation = await bench.reserve(limited, tokens=90, keep=1.0)
    assert [remaining for _, remaining, _ in left(reservation)] == [0, 10, 0]
    await bench.give_back(reservation)
    await bench.reserve(limited, tokens=100, keep=0.5)


async def test_money_is_left_to_nobody(bench: Bench) -> None:
    limited = scope(usd_per_day=Decimal(1))
    assert left(await bench.reserve(limited, usd=1, keep=0.5))[0][1] == 0


async def test_what_is_given_back_was_never_taken(bench: Bench) -> None:
    limited = scope(requests_per_minute=60, tokens_per_minute=100, concurrency=3, usd_per_day=Decimal(1))
    other = await bench.reserve(limited, tokens=10, usd=0.1)
    reservation = await bench.reserve(limited, tokens=60, usd=0.5)
    await bench.give_back(reservation)
    await bench.give_back(reservation)
    await bench.settle(reservation, tokens=90)
    await bench.settle(other, tokens=10, usd=0.1)
    await bench.give_back(other)
    after = left(await bench.reserve(limited))
    assert [remaining for _, remaining, _ in after] == [58, 90, 2, 900_000_000]


async def test_promises_of_a_pace_follow_each_other(bench: Bench) -> None:
    assert await bench.promise(ticket="a", work_s=2) == 0
    assert await bench.promise(ticket="b", work_s=3) == 2
    assert await bench.promise(ticket="c", work_s=1, at_least_s=4) == 5
    assert await bench.promise(ticket="d", work_s=1, at_least_s=8) == 8
    assert await bench.promise("other", "a", at_least_s=0.25) == 0.25
    await bench.advance(4_000)
    assert await bench.promise(ticket="e") == 5
    await bench.advance(60_000)
    assert await bench.promise(ticket="f") == 0


async def test_work_of_less_than_a_millisecond_adds_up(bench: Bench) -> None:
    for _ in range(1_000):
        await bench.promise(work_s=0.000_3)
    assert await bench.promise() == 0.3


async def test_promise_is_good_once_from_its_time_on(bench: Bench) -> None:
    limiter = bench.limiter
    assert await bench.promise(at_least_s=5) == 5
    await bench.advance(4_999)
    assert not await limiter.redeem("p", "t")
    await bench.advance(1)
    assert not await limiter.redeem("p", "other")
    assert not await limiter.redeem("other", "t")
    assert await limiter.redeem("p", "t")
    assert not await limiter.redeem("p", "t")


async def test_promise_is_kept_for_a_minute(bench: Bench) -> None:
    for late_ms, is_good in ((60_000, True), (60_001, False)):
        await bench.promise(at_least_s=1)
        await bench.advance(1_000 + late_ms)
        assert await bench.limiter.redeem("p", "t") == is_good


async def test_equal_requests_have_a_promise_each(bench: Bench) -> None:
    assert [await bench.promise(work_s=50) for _ in range(3)] == [0, 50, 100]
    await bench.advance(100_000)  # the first is too late, the others are not
    assert [await bench.limiter.redeem("p", "t") for _ in range(3)] == [True, True, False]


async def test_nothing_is_booked_more_than_an_hour_ahead(bench: Bench) -> None:
    assert await bench.promise(ticket="a", at_least_s=3_600.001) == 3_600
    assert await bench.promise(ticket="b", at_least_s=1e12) == 3_600
    assert await bench.promise(ticket="c", work_s=2_000) == 0
    assert await bench.promise(ticket="d", work_s=1_600) == 2_000
    assert await bench.promise(ticket="e", work_s=1e12) == 3_600  # just within
    assert await bench.promise(ticket="f") == 3_600
    await bench.advance(3_600_000)
    assert [await bench.limiter.redeem("p", ticket) for ticket in "abcdef"] == [False, False, False, False, True, False]


async def test_names_of_paces_and_tickets_do_not_run_together(bench: Bench) -> None:
    await bench.promise("a:b", "c")
    assert not await bench.limiter.redeem("a", "b:c")
    assert await bench.limiter.redeem("a:b", "c")


async def test_scopes_of_other_names_are_apart(bench: Bench) -> None:
    alice, bob = scope(requests_per_minute=1), scope(name="bob", requests_per_minute=1)
    user = scope("user", requests_per_minute=1)
    await bench.reserve(alice, user)
    await bench.reserve(bob)
    await refusal(bench, alice)
