"""Tickets on a real server: how they lie there, and what its trouble does to callers."""

import asyncio

import pytest
from pydantic import SecretStr

from service.config import RedisSettings
from service.domain.principal import Principal
from service.errors import StoreUnavailable, Unauthenticated
from service.storage.redis import MAX_CONNECTIONS, open_redis
from service.storage.tickets import KEY_PREFIX, RedisTicketStore
from tests.support.redis_server import own_redis

ALICE = Principal("alice")


def settings(url: str, timeout_s: float = 5) -> RedisSettings:
    return RedisSettings(url=SecretStr(url), timeout_s=timeout_s)


async def test_server_holds_no_usable_ticket_and_forgets_it_in_time() -> None:
    with own_redis() as server:
        async with open_redis(settings(server.url)) as redis:
            ticket = await RedisTicketStore(redis, ttl_s=30).issue(ALICE)
            (key,) = await redis.keys("*")
            kept = await redis.get(key)
            assert isinstance(key, bytes)
            assert isinstance(kept, bytes)
            assert key.startswith(KEY_PREFIX.encode())
            assert ticket.value.encode() not in key + kept
            assert 0 < await redis.pttl(key) <= 30_000


async def test_ticket_that_the_server_has_forgotten_is_refused() -> None:
    with own_redis() as server:
        async with open_redis(settings(server.url)) as redis:
            store = RedisTicketStore(redis, ttl_s=0.001)
            ticket = await store.issue(ALICE)
            async with asyncio.timeout(5):
                while await redis.keys("*"):
                    pass
            with pytest.raises(Unauthenticated):
                await store.redeem(ticket.value)


async def test_server_that_is_away_is_no_fault_of_the_caller() -> None:
    with own_redis() as server:
        url = server.url
    async with open_redis(settings(url)) as redis:
        store = RedisTicketStore(redis, ttl_s=30)
        with pytest.raises(StoreUnavailable) as issuing:
            await store.issue(ALICE)
        with pytest.raises(StoreUnavailable):
            await store.redeem("ticket")
        assert url.removeprefix("unix://") not in str(issuing.value)


async def test_server_that_hangs_costs_no_more_than_its_timeouts() -> None:
    with own_redis() as server:
        async with open_redis(settings(server.url, timeout_s=0.2)) as redis:
            store = RedisTicketStore(redis, ttl_s=30)
            ticket = await store.issue(ALICE)
            server.freeze()
            # Far below the minutes for which TCP would wait, however busy the machine is.
            async with asyncio.timeout(10):
                with pytest.raises(StoreUnavailable):
                    await store.redeem(ticket.value)
            server.thaw()


async def test_store_works_again_when_the_server_is_back() -> None:
    with own_redis() as server:
        async with open_redis(settings(server.url, timeout_s=0.3)) as redis:
            store = RedisTicketStore(redis, ttl_s=30)
            server.freeze()
            with pytest.raises(StoreUnavailable):
                await store.issue(ALICE)
            server.thaw()
            ticket = await store.issue(ALICE)
            assert await store.redeem(ticket.value) == ALICE


async def test_calls_given_up_leave_no_connection_behind() -> None:
    with own_redis() as server:
        async with open_redis(settings(server.url, timeout_s=0.3)) as redis:
            store = RedisTicketStore(redis, ttl_s=30)
            server.freeze()
            results = await asyncio.gather(
                *(store.issue(ALICE) for _ in range(MAX_CONNECTIONS + 5)), return_exceptions=True
            )
            assert {type(result) for result in results} == {StoreUnavailable}
            server.thaw()
            for _ in range(MAX_CONNECTIONS + 5):
                await store.issue(ALICE)


async def test_cancelled_call_ends_whenever_the_cancellation_comes() -> None:
    with own_redis() as server:
        async with open_redis(settings(server.url)) as redis:
            store = RedisTicketStore(redis, ttl_s=30)
            for turns in range(60):
                task = asyncio.create_task(_issue_for_ever(store))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                done, _ = await asyncio.wait([task], timeout=5)
                assert done
                assert task.cancelled()


async def test_redis_without_an_address_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match=r"redis\.url"):
        async with open_redis(RedisSettings()):
            pass


async def _issue_for_ever(store: RedisTicketStore) -> None:
    while True:
        await store.issue(ALICE)
