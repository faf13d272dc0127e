"""What limits in Redis promise beyond any limiter: nothing leaks, whoever dies, leaves or does not answer."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from service.admission.base import LimitReached
from service.admission.redis import RedisLimiter
from service.config import RedisSettings
from service.domain.limits import Demand, Scope
from service.errors import StoreUnavailable
from service.storage.redis import open_redis
from tests.support.fake_app import until
from tests.support.limiters import redis_limiter, scope
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
        keys = await keys_of(redis, prefix)
        assert len(keys) == 6  # its record, four limits of the key, one of the user
        assert all([await redis.pttl(key) > 0 for key in keys])
        assert {key.partition(b"}")[0] for key in keys} == {prefix.encode().partition(b"}")[0]}


async def test_script_that_the_server_forgot_is_sent_again(redis: Redis, redis_url: str, prefix: str) -> None:
    async with redis_limiter(redis_url, prefix=prefix) as limiter:
        reservation = await limiter.reserve([ALL], Demand(10))
        await redis.script_flush()
        limiter.settle(reservation, Demand())
        await limiter.flush()
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


async def test_answer_that_came_while_this_process_was_busy_is_in_time(own: OwnRedis, prefix: str) -> None:
    async with redis_limiter(own.url, prefix=prefix, timeout_s=0.05) as limiter:
        await limiter.ping()
        for _ in range(10):
            request = asyncio.create_task(limiter.reserve([scope(requests_per_minute=60)], Demand()))
            while not limiter._asked:  # noqa: ASYNC110 - a turn or two
                await asyncio.sleep(0)
            await until(lambda: not limiter._asked)
            await asyncio.sleep(0)
            time.sleep(0.1)  # noqa: ASYNC251 - the stall itself
            await request


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


async def test_store_that_is_full_counts_as_away(own: OwnRedis, prefix: str) -> None:
    limited = scope(tokens_per_minute=600)
    async with (
        redis_limiter(own.url, prefix=prefix) as limiter,
        open_redis(RedisSettings(url=SecretStr(own.url), timeout_s=5)) as redis,
    ):
        await redis.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable):
            await limiter.reserve([limited], Demand(10))
        await redis.config_set("maxmemory", "0")
        await limiter.flush()
        assert (await limiter.reserve([limited], Demand())).balances[0].remaining == 600
