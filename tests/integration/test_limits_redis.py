"""What limits in Redis promise beyond any limiter: nothing leaks, whoever dies, leaves or does not answer."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.admission.base import LimitReached
from service.admission.redis import RedisLimiter, _Call, _Lane
from service.config import RedisSettings
from service.domain.limits import NANO, Demand, Reservation, Scope
from service.errors import StoreUnavailable
from service.storage.redis import open_redis
from tests.support.fake_app import until
from tests.support.limiters import redis_limiter, scope, script_on_a_clock
from tests.support.redis_server import OwnRedis, own_redis

ALL = scope(requests_per_minute=60, tokens_per_minute=600, concurrency=2, usd_per_day=Decimal(1))


@pytest.fixture
def prefix() -> str:
    return f"{{llm-api:test-limits-{secrets.token_hex(6)}}}:"


@pytest.fixture
def own() -> Iterator[OwnRedis]:
    with own_redis() as server:
        yield server


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(RedisSettings(url=SecretStr(redis_url), timeout_s=5)) as client:
        yield client


def client_of(own: OwnRedis) -> AbstractAsyncContextManager[Redis]:
    return open_redis(RedisSettings(url=SecretStr(own.url), timeout_s=5))


async def keys_of(redis: Redis, prefix: str) -> list[bytes]:
    return [key async for key in redis.scan_iter(match=f"{prefix}*", count=1_000)]


async def passes(limiter: RedisLimiter, *scopes: Scope) -> bool:
    """Whether a request passes; if so, it runs on."""
    try:
        await limiter.reserve(scopes, Demand())
    except LimitReached:
        return False
    return True


async def until_passes(limiter: RedisLimiter, limited: Scope, timeout_s: float = 5) -> None:
    """Ask until a request passes, which another process's end brings about."""
    async with asyncio.timeout(timeout_s):
        while not await passes(limiter, limited):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.02)


async def test_processes_share_their_limits(redis_url: str, prefix: str) -> None:
    limited = scope(requests_per_minute=1, request_burst=10)
    async with (
        redis_limiter(redis_url, prefix=prefix) as first,
        redis_limiter(redis_url, prefix=prefix) as second,
    ):
        results = await asyncio.gather(*(passes(limiter, limited) for limiter in (first, second) for _ in range(50)))
    assert sum(results) == 10


async def test_nothing_is_kept_for_ever_and_all_keys_are_in_one_slot(redis: Redis, redis_url: str, prefix: str) -> None:
    async with redis_limiter(redis_url, prefix=prefix) as limiter:
        await limiter.reserve([ALL, scope("user", "alice/é\n", requests_per_minute=3)], Demand(5, 5))
        for _ in range(2):
            await limiter.promise("openai é", "t\n", work_s=1, at_least_s=1)
        assert not await limiter.redeem("openai é", "t\n")
        keys = await keys_of(redis, prefix)
        assert len(keys) == 8  # its record, four limits of the key, one of the user, a pace and what is booked at it
        assert all([await redis.pttl(key) > 0 for key in keys])
        assert {key.partition(b"}")[0] for key in keys} == {prefix.encode().partition(b"}")[0]}


async def test_promises_of_ten_processes_never_overlap(redis_url: str, prefix: str, redis: Redis) -> None:
    script, clock_key = script_on_a_clock(prefix)
    await redis.set(clock_key, 1_000_000)
    async with AsyncExitStack() as stack:
        limiters = [
            await stack.enter_async_context(redis_limiter(redis_url, prefix=prefix, script=script)) for _ in range(10)
        ]
        promised = await asyncio.gather(
            *(
                limiter.promise("openai", f"{process}-{number}", work_s=0.000_7, at_least_s=0)
                for number in range(30)
                for process, limiter in enumerate(limiters)
            )
        )
    # At one instant of the store: each has its own time, and no time is lost between two.
    assert sorted(promised) == [number * 700 / 1_000_000 for number in range(300)]


async def test_of_processes_that_redeem_one_promise_one_does(redis_url: str, prefix: str) -> None:
    async with AsyncExitStack() as stack:
        limiters = [await stack.enter_async_context(redis_limiter(redis_url, prefix=prefix)) for _ in range(5)]
        for _ in range(2):
            await limiters[0].promise("openai", "t", work_s=0, at_least_s=0)
        redeemed = await asyncio.gather(*(limiter.redeem("openai", "t") for limiter in limiters for _ in range(4)))
    assert sum(redeemed) == 2


async def test_all_that_is_asked_at_once_shares_a_round_trip(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[str | int]] = []
    run = _Lane.run

    async def watched(lane: _Lane, calls: Sequence[_Call]) -> list[Any]:
        sent.append([call.arguments[0] for call in calls])
        return await run(lane, calls)

    async with redis_limiter(redis_url, prefix=prefix) as limiter:
        monkeypatch.setattr(_Lane, "run", watched)
        _, room_s, redeemed = await asyncio.gather(
            limiter.reserve([scope(requests_per_minute=60)], Demand()),
            limiter.promise("openai", "t", work_s=1, at_least_s=0),
            limiter.redeem("openai", "t"),
        )
    assert sent == [["reserve", "promise", "redeem"]]
    assert (room_s, redeemed) == (0, True)


async def test_script_that_the_server_forgot_is_sent_again(redis: Redis, redis_url: str, prefix: str) -> None:
    async with redis_limiter(redis_url, prefix=prefix) as limiter:
        reservation = await limiter.reserve([ALL], Demand(10))
        await redis.script_flush()
        limiter.settle(reservation, Demand())
        await limiter.flush()
        await redis.script_flush()
        assert await limiter.promise("openai", "t", work_s=1, at_least_s=0) == 0
        await redis.script_flush()
        assert await limiter.redeem("openai", "t")
        await redis.script_flush()
        again = await limiter.reserve([ALL], Demand(10))
    assert [balance.remaining for balance in again.balances] == [58, 590, 1, 1_000_000_000]


async def test_dead_process_gives_its_places_back_and_keeps_its_tokens_charged(redis_url: str, prefix: str) -> None:
    async with redis_limiter(redis_url, prefix=prefix, lease_s=0.5) as survivor:
        settings = RedisSettings(url=SecretStr(redis_url), timeout_s=5)
        dead = RedisLimiter(settings=settings, metrics=survivor._metrics, prefix=prefix, lease_s=0.5)
        async with dead.running():
            for _ in range(2):
                await dead.reserve([ALL], Demand(100))
            assert not await passes(survivor, ALL)
        # It ended without settling, as a process that is killed does.
        await until_passes(survivor, ALL)
        last = await survivor.reserve([ALL], Demand())
    assert 400 <= last.balances[1].remaining < 500  # ten come back in a second


async def test_place_is_held_as_long_as_its_request_runs(redis_url: str, prefix: str, redis: Redis) -> None:
    limited = scope(concurrency=1)
    async with redis_limiter(redis_url, prefix=prefix, lease_s=0.3) as limiter:
        reservation = await limiter.reserve([limited], Demand())
        for _ in range(8):
            await asyncio.sleep(0.1)  # the lease is real time on another machine's clock
            assert not await passes(limiter, limited)
        limiter.settle(reservation, Demand())
        await limiter.flush()
        assert await keys_of(redis, prefix) == []


async def test_store_that_lost_everything_learns_who_runs(redis_url: str, prefix: str, redis: Redis) -> None:
    limited = scope(concurrency=1)
    async with redis_limiter(redis_url, prefix=prefix, lease_s=0.6) as limiter:
        await limiter.reserve([limited], Demand())
        await redis.delete(*await keys_of(redis, prefix))
        async with asyncio.timeout(5):
            while not await keys_of(redis, prefix):  # noqa: ASYNC110 - another server has no event
                await asyncio.sleep(0.02)
        assert not await passes(limiter, limited)


async def test_store_that_does_not_answer_takes_no_longer_than_its_timeout(own: OwnRedis, prefix: str) -> None:
    loop = asyncio.get_running_loop()
    async with redis_limiter(own.url, prefix=prefix, timeout_s=0.05) as limiter:
        own.freeze()
        began = loop.time()
        results = await asyncio.gather(*(limiter.reserve([ALL], Demand(10)) for _ in range(50)), return_exceptions=True)
        took_s = loop.time() - began
        own.thaw()
        assert {type(result) for result in results} == {StoreUnavailable}
        assert took_s < 0.5  # bounded, on a machine that is busy with other things too
        await limiter.flush()
        assert [balance.remaining for balance in (await limiter.reserve([ALL], Demand())).balances] == [
            59,
            600,
            1,
            1_000_000_000,
        ]


async def test_promises_take_no_longer_than_the_timeout_either(own: OwnRedis, prefix: str) -> None:
    loop = asyncio.get_running_loop()
    async with redis_limiter(own.url, prefix=prefix, timeout_s=0.05) as limiter:
        await limiter.ping()
        own.freeze()
        began = loop.time()
        results = await asyncio.gather(
            *(limiter.promise("openai", f"t{number}", work_s=1, at_least_s=0) for number in range(20)),
            *(limiter.redeem("openai", f"t{number}") for number in range(20)),
            return_exceptions=True,
        )
        took_s = loop.time() - began
        own.thaw()
    assert {type(result) for result in results} == {StoreUnavailable}
    assert took_s < 0.5  # bounded, on a machine that is busy with other things too


async def test_answer_that_came_while_this_process_was_busy_is_in_time(own: OwnRedis, prefix: str) -> None:
    async with redis_limiter(own.url, prefix=prefix, timeout_s=5) as limiter:
        await limiter.reserve([ALL], Demand())  # a server that does not know the script yet is asked three times
    async with redis_limiter(own.url, prefix=prefix, timeout_s=0.05) as limiter:
        await limiter.ping()
        results: list[Reservation | BaseException] = []
        for _ in range(10):
            request = asyncio.create_task(limiter.reserve([scope(requests_per_minute=60)], Demand()))
            while not limiter._asked:  # noqa: ASYNC110 - a turn or two
                await asyncio.sleep(0)
            await until(lambda: not limiter._asked)
            await asyncio.sleep(0)
            time.sleep(0.1)  # noqa: ASYNC251 - the stall itself
            results += await asyncio.gather(request, return_exceptions=True)
    # The store may be held up for as long itself, on a machine that is busy; not each time.
    assert sum(isinstance(result, Reservation) for result in results) >= 7


async def test_client_that_leaves_while_the_store_is_asked_takes_nothing(own: OwnRedis, prefix: str) -> None:
    async with redis_limiter(own.url, prefix=prefix, timeout_s=5) as limiter:
        await limiter.flush()
        for _ in range(20):
            own.freeze()
            request = asyncio.create_task(limiter.reserve([ALL], Demand(10)))
            await asyncio.sleep(0)
            await until(lambda: not limiter._asked)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            own.thaw()
            await limiter.flush()
            await limiter.ping()  # the answer that nobody waits for has come too
        after = await limiter.reserve([ALL], Demand())
        assert [balance.remaining for balance in after.balances] == [59, 600, 1, 1_000_000_000]


async def test_reservation_that_arrives_after_it_was_given_up_takes_nothing(
    redis_url: str, prefix: str, redis: Redis
) -> None:
    async with redis_limiter(redis_url, prefix=prefix) as limiter:
        quotas = (await limiter.reserve([ALL], Demand())).quotas
        limiter._give_up("late", quotas, [1, 10, 1, 10])
        limiter._give_up("late", quotas, [1, 10, 1, 10])
        await limiter.flush()
        call = limiter._call("reserve", "late", 1_000, 1_000, quotas=quotas, amounts=[1, 10, 1, 10])
        assert limiter._lanes is not None
        ((verdict, _),) = await limiter._lanes.reserving.run([call])
        assert verdict == -1
        after = await limiter.reserve([ALL], Demand())
    assert [balance.remaining for balance in after.balances] == [58, 600, 0, 1_000_000_000]


async def test_settlement_waits_for_the_store(own: OwnRedis, prefix: str) -> None:
    async with redis_limiter(own.url, prefix=prefix, timeout_s=0.05) as limiter:
        reservation = await limiter.reserve([ALL], Demand(500))
        own.freeze()
        limiter.settle(reservation, Demand(100))
        with pytest.raises(StoreUnavailable):
            await limiter.flush()
        own.thaw()
        await limiter.flush()
        async with asyncio.timeout(5):
            while True:
                try:
                    after = await limiter.reserve([ALL], Demand())
                    break
                except StoreUnavailable:  # a new connection may take longer than so short a timeout
                    continue
    assert after.balances[1].remaining in range(500, 560)


TROUBLES = pytest.mark.parametrize("trouble", ["maxmemory", "min-replicas-to-write"])
"""With 1 of it, a server that is full, or has lost its replicas, answers and takes nothing."""


@TROUBLES
async def test_store_that_took_nothing_is_given_nothing_back(own: OwnRedis, prefix: str, trouble: str) -> None:
    async with redis_limiter(own.url, prefix=prefix) as limiter, client_of(own) as redis:
        await redis.config_set(trouble, "1")
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await limiter.reserve([scope(tokens_per_minute=600)], Demand(10))
        assert not limiter._unsettled
        await limiter.flush()


@TROUBLES
async def test_store_that_answers_and_takes_nothing_fails_the_probe(own: OwnRedis, prefix: str, trouble: str) -> None:
    async with redis_limiter(own.url, prefix=prefix) as limiter, client_of(own) as redis:
        await limiter.ping()
        (written,) = await keys_of(redis, prefix)
        assert 0 < await redis.pttl(written) <= 1_000
        await redis.config_set(trouble, "1")
        assert await redis.ping()
        with pytest.raises(StoreUnavailable):
            await limiter.ping()
        await redis.config_set(trouble, "0")
        await limiter.ping()


@TROUBLES
async def test_settlement_that_the_store_refuses_is_sent_again_and_done_once(
    own: OwnRedis, prefix: str, trouble: str
) -> None:
    limited = scope(tokens_per_minute=1, token_burst=1_000, usd_per_day=Decimal(1))
    async with redis_limiter(own.url, prefix=prefix) as limiter, client_of(own) as redis:
        taken = [await limiter.reserve([limited], Demand(200, 200)) for _ in range(3)]
        await redis.config_set(trouble, "1")
        for reservation in taken:
            limiter.settle(reservation, Demand(100, 100))
        await until(lambda: not limiter._unsettled)
        assert len(limiter._refused) == (0 if trouble == "maxmemory" else 3)
        await redis.config_set(trouble, "0")
        await limiter.flush()
        after = await limiter.reserve([limited], Demand())
    assert [balance.remaining for balance in after.balances] == [700, NANO - 300]


async def test_settlement_that_the_store_refuses_holds_no_other_back(
    redis: Redis, redis_url: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, broken = scope(name="alice", tokens_per_minute=60), scope(name="bob", tokens_per_minute=60)
    async with redis_limiter(redis_url, prefix=prefix) as limiter:
        ill = await limiter.reserve([broken], Demand(10))
        well = [await limiter.reserve([good], Demand(1)) for _ in range(20)]
        await redis.set(f"{prefix}tokens:key:bob", "of another type")
        limiter.settle(ill, Demand())
        for reservation in well:
            limiter.settle(reservation, Demand())
            await until(lambda: not limiter._unsettled)
        assert len(limiter._refused) == 1
        assert (await limiter.reserve([good], Demand())).balances[0].remaining == 60
        await redis.delete(f"{prefix}tokens:key:bob")
        await limiter.flush()
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("settling limits that the store refused: waiting for the shared store") == 1


async def test_who_runs_keeps_its_place_whatever_becomes_of_settlements(
    redis: Redis, redis_url: str, prefix: str
) -> None:
    limited, broken = scope(concurrency=1), scope(name="bob", tokens_per_minute=60)
    async with redis_limiter(redis_url, prefix=prefix, lease_s=0.3) as limiter:
        await limiter.reserve([limited], Demand())
        ill = await limiter.reserve([broken], Demand(10))
        await redis.set(f"{prefix}tokens:key:bob", "of another type")
        limiter.settle(ill, Demand())
        for _ in range(8):
            await asyncio.sleep(0.1)  # the lease is real time on another machine's clock
            assert not await passes(limiter, limited)
        await redis.delete(f"{prefix}tokens:key:bob")
        await limiter.flush()


async def test_who_runs_keeps_its_place_in_a_store_that_is_full(own: OwnRedis, prefix: str) -> None:
    limited = scope(concurrency=1)
    async with redis_limiter(own.url, prefix=prefix, lease_s=0.3) as limiter, client_of(own) as redis:
        await limiter.reserve([limited], Demand())
        await redis.config_set("maxmemory", "1")
        for _ in range(8):
            await asyncio.sleep(0.1)  # the lease is real time on another machine's clock
            assert not await passes(limiter, limited)


async def test_store_that_is_full_counts_as_away(own: OwnRedis, prefix: str) -> None:
    limited = scope(tokens_per_minute=600)
    async with redis_limiter(own.url, prefix=prefix) as limiter, client_of(own) as redis:
        await redis.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable):
            await limiter.reserve([limited], Demand(10))
        await redis.config_set("maxmemory", "0")
        await limiter.flush()
        assert (await limiter.reserve([limited], Demand())).balances[0].remaining == 600
