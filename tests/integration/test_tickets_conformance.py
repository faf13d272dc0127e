"""What every ticket store does, in memory and on a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from service.auth.base import TicketStore
from service.config import RedisSettings
from service.domain.clock import SystemClock
from service.domain.principal import ANONYMOUS, Principal
from service.errors import Unauthenticated
from service.storage.redis import open_redis
from service.storage.tickets import MemoryTicketStore, RedisTicketStore

ALICE = Principal("alice", models=("gpt-4o", "team-a/*"), priority="batch", weight=2.5, key_digest=bytes(range(32)))


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[TicketStore]:
    if request.param == "memory":
        yield MemoryTicketStore(ttl_s=30, clock=SystemClock())
        return
    async with open_redis(RedisSettings(url=SecretStr(redis_url), timeout_s=5)) as redis:
        yield RedisTicketStore(redis, ttl_s=30)


async def test_ticket_stands_for_its_principal(store: TicketStore) -> None:
    ticket = await store.issue(ALICE)
    assert ticket.expires_in_s == 30
    redeemed = await store.redeem(ticket.value)
    assert redeemed == ALICE
    assert redeemed.key_digest == ALICE.key_digest


async def test_ticket_of_somebody_without_a_key_stands_for_them(store: TicketStore) -> None:
    assert await store.redeem((await store.issue(ANONYMOUS)).value) == ANONYMOUS


async def test_ticket_is_good_once(store: TicketStore) -> None:
    ticket = await store.issue(ALICE)
    await store.redeem(ticket.value)
    with pytest.raises(Unauthenticated):
        await store.redeem(ticket.value)


async def test_of_many_that_race_for_a_ticket_one_gets_it(store: TicketStore) -> None:
    ticket = await store.issue(ALICE)
    results = await asyncio.gather(*(store.redeem(ticket.value) for _ in range(20)), return_exceptions=True)
    assert [result for result in results if not isinstance(result, Unauthenticated)] == [ALICE]


async def test_tickets_differ(store: TicketStore) -> None:
    tickets = [await store.issue(ALICE) for _ in range(50)]
    assert len({ticket.value for ticket in tickets}) == 50


@pytest.mark.parametrize("value", ["", "never-issued", "*", "a\r\nFLUSHALL\r\n", "\ud800", "x" * 10_000])
async def test_ticket_that_was_never_issued_is_refused(store: TicketStore, value: str) -> None:
    with pytest.raises(Unauthenticated):
        await store.redeem(value)
