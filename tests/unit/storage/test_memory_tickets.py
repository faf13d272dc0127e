"""What only the memory of one process has: a clock of ours, and a bound."""

import pytest

from service.domain.clock import ManualClock
from service.domain.principal import Principal
from service.errors import Overloaded, Unauthenticated
from service.storage.tickets import MemoryTicketStore

ALICE = Principal("alice")


async def test_ticket_lives_for_its_time_and_not_longer() -> None:
    clock = ManualClock()
    store = MemoryTicketStore(ttl_s=30, clock=clock)
    early, late = await store.issue(ALICE), await store.issue(ALICE)
    clock.advance(29.999)
    assert await store.redeem(early.value) == ALICE
    clock.advance(0.001)
    with pytest.raises(Unauthenticated):
        await store.redeem(late.value)


async def test_full_store_sheds_until_the_oldest_ticket_is_too_old() -> None:
    clock = ManualClock()
    store = MemoryTicketStore(ttl_s=30, clock=clock, capacity=2)
    first = await store.issue(ALICE)
    clock.advance(10)
    await store.issue(ALICE)
    with pytest.raises(Overloaded) as caught:
        await store.issue(ALICE)
    assert caught.value.retry_after_s == 20
    assert await store.redeem(first.value) == ALICE
    await store.issue(ALICE)
    clock.advance(30)
    await store.issue(ALICE)
    await store.issue(ALICE)


async def test_store_holds_no_ticket_in_clear() -> None:
    store = MemoryTicketStore(ttl_s=30, clock=ManualClock())
    ticket = await store.issue(ALICE)
    assert ticket.value not in repr(vars(store))
