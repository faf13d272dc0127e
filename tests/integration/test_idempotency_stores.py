"""What both stores of idempotency keys keep their word about."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from service.config import RedisSettings
from service.domain.clock import SystemClock
from service.domain.idempotency import IdempotencyKey
from service.engine.idempotency import IdempotencyStore
from service.errors import IdempotencyConflict, IdempotencyMismatch, StoreUnavailable
from service.storage.idempotency import CAPACITY, CAPACITY_BYTES, MemoryIdempotencyStore, RedisIdempotencyStore
from service.storage.redis import open_redis
from tests.support.redis_server import own_redis


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[IdempotencyStore]:
    if request.param == "memory":
        yield MemoryIdempotencyStore(SystemClock())
    else:
        async with open_redis(RedisSettings(url=SecretStr(redis_url), timeout_s=1.0)) as redis:
            yield RedisIdempotencyStore(redis)


def key(body: bytes = b"{}", name: str | None = None) -> IdempotencyKey:
    return IdempotencyKey.of("alice", "/generate", name or secrets.token_hex(8), body)


async def test_a_key_is_taken_once_and_its_answer_is_kept(store: IdempotencyStore) -> None:
    mine = key()
    assert await store.begin(mine, "a", 30) is None
    with pytest.raises(IdempotencyConflict):
        await store.begin(mine, "b", 30)
    await store.keep(mine, "a", b"answer", 30)
    assert await store.begin(mine, "b", 30) == b"answer"


async def test_another_body_is_refused_at_any_time(store: IdempotencyStore) -> None:
    mine, other = (key(body, "one") for body in (b"1", b"2"))
    await store.begin(mine, "a", 30)
    with pytest.raises(IdempotencyMismatch):
        await store.begin(other, "b", 30)
    await store.keep(mine, "a", b"answer", 30)
    with pytest.raises(IdempotencyMismatch):
        await store.begin(other, "b", 30)
    await store.forget(mine, "a")


async def test_a_key_that_was_let_go_is_free(store: IdempotencyStore) -> None:
    mine = key()
    await store.begin(mine, "a", 30)
    await store.forget(mine, "b")
    with pytest.raises(IdempotencyConflict):
        await store.begin(mine, "b", 30)
    await store.forget(mine, "a")
    assert await store.begin(mine, "b", 30) is None


async def test_a_key_of_the_dead_is_free_after_its_lease_and_what_they_say_later_counts_for_nothing(
    store: IdempotencyStore,
) -> None:
    mine = key()
    await store.begin(mine, "a", 0.15)
    await asyncio.sleep(0.1)
    await store.renew(mine, "a", 0.2)
    await asyncio.sleep(0.1)
    with pytest.raises(IdempotencyConflict):
        await store.begin(mine, "b", 30)
    await asyncio.sleep(0.15)
    assert await store.begin(mine, "b", 30) is None
    await store.keep(mine, "a", b"too late", 30)
    await store.forget(mine, "a")
    with pytest.raises(IdempotencyConflict):
        await store.begin(mine, "c", 30)


async def test_what_a_holder_says_counts_where_the_store_forgot_it_and_nobody_else_has_the_key(
    store: IdempotencyStore,
) -> None:
    mine, answered, lost = key(), key(), key()
    for one in (mine, answered, lost):
        await store.begin(one, "a", 0.05)
    await asyncio.sleep(0.1)
    await store.begin(lost, "b", 30)
    assert await store.renew(mine, "a", 30)
    assert await store.keep(answered, "a", b"answer", 30)
    assert not await store.renew(lost, "a", 30)
    assert not await store.keep(lost, "a", b"answer", 30)
    for one in (mine, lost):
        with pytest.raises(IdempotencyConflict):
            await store.begin(one, "c", 30)
    assert await store.begin(answered, "c", 30) == b"answer"
    with pytest.raises(IdempotencyMismatch):
        await store.begin(IdempotencyKey(answered.digest, "other"), "c", 30)


async def test_an_answer_that_is_still_coming_holds_as_long_as_its_holder(store: IdempotencyStore) -> None:
    mine = key()
    await store.begin(mine, "a", 30)
    await store.renew(mine, "a", 30, answer=b"stream")
    assert await store.begin(mine, "b", 30) == b"stream"
    await store.forget(mine, "a")
    assert await store.begin(mine, "b", 30) is None


async def test_a_renewal_that_comes_late_does_not_shorten_what_is_kept(store: IdempotencyStore) -> None:
    mine = key()
    await store.begin(mine, "a", 30)
    await store.keep(mine, "a", b"answer", 30)
    await store.renew(mine, "a", 0.05)
    await asyncio.sleep(0.1)
    assert await store.begin(mine, "b", 30) == b"answer"


async def test_an_answer_that_is_worth_nothing_any_more_makes_way_once(store: IdempotencyStore) -> None:
    mine = key()
    await store.begin(mine, "a", 30)
    await store.keep(mine, "a", b"old", 30)
    assert await store.begin(mine, "b", 30, instead_of=b"older") == b"old"
    with pytest.raises(IdempotencyMismatch):
        await store.begin(IdempotencyKey(mine.digest, "other"), "b", 30, instead_of=b"old")
    assert await store.begin(mine, "b", 30, instead_of=b"old") is None
    with pytest.raises(IdempotencyConflict):
        await store.begin(mine, "c", 30, instead_of=b"old")
    await store.keep(mine, "b", b"new", 30)
    assert await store.begin(mine, "c", 30, instead_of=b"old") == b"new"


async def test_an_answer_is_kept_for_its_time(store: IdempotencyStore) -> None:
    mine = key()
    await store.begin(mine, "a", 30)
    await store.keep(mine, "a", b"answer", 0.1)
    await asyncio.sleep(0.15)
    assert await store.begin(mine, "b", 30) is None


async def test_memory_has_an_end() -> None:
    store = MemoryIdempotencyStore(SystemClock())
    first = key()
    await store.begin(first, "a", 30)
    for _ in range(CAPACITY):
        await store.begin(key(), "a", 30)
    assert await store.begin(first, "b", 30) is None


async def test_memory_forgets_answers_before_keys_in_flight() -> None:
    store = MemoryIdempotencyStore(SystemClock())
    mine = key()
    await store.begin(mine, "a", 30)
    for _ in range(CAPACITY + 1):
        await store.keep(key(), "b", b"answer", 30)
    with pytest.raises(IdempotencyConflict):
        await store.begin(mine, "c", 30)


async def test_memory_holds_so_many_bytes_of_answers() -> None:
    store = MemoryIdempotencyStore(SystemClock())
    keys = [key() for _ in range(3)]
    for one in keys:
        await store.keep(one, "a", b"x" * (CAPACITY_BYTES // 2), 30)
    assert await store.begin(keys[0], "b", 30) is None
    assert await store.begin(keys[2], "b", 30) is not None


async def test_a_store_that_is_away_says_so() -> None:
    with own_redis() as server:
        async with open_redis(RedisSettings(url=SecretStr(server.url))) as redis:
            store = RedisIdempotencyStore(redis)
            await store.begin(key(), "a", 30)
            server.kill()
            with pytest.raises(StoreUnavailable):
                await store.begin(key(), "a", 30)
