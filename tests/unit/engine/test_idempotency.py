"""Keys while their store is away: nothing is answered twice, and nothing blocks a key for long."""

import asyncio
import logging

import pytest
from typing_extensions import override

from service.config import DrainSettings
from service.domain.clock import ManualClock
from service.domain.idempotency import IdempotencyKey
from service.domain.principal import RequestContext
from service.engine import idempotency
from service.engine.drain import Drain
from service.engine.idempotency import Answered, Idempotency
from service.errors import IdempotencyConflict, StoreUnavailable
from service.storage.idempotency import MemoryIdempotencyStore
from tests.support.fake_app import until

KEY = IdempotencyKey.of("alice", "/generate", "key", b"{}")
CONTEXT = RequestContext("request-1")


class Flaky(MemoryIdempotencyStore):
    """A store that goes away, and takes a key before it does."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.away = False

    @override
    async def begin(
        self, key: IdempotencyKey, token: str, lease_s: float, *, instead_of: bytes | None = None
    ) -> bytes | None:
        found = await super().begin(key, token, lease_s, instead_of=instead_of)
        self._check()
        return found

    @override
    async def keep(self, key: IdempotencyKey, token: str, answer: bytes, kept_s: float) -> bool:
        self._check()
        return await super().keep(key, token, answer, kept_s)

    @override
    async def forget(self, key: IdempotencyKey, token: str) -> None:
        self._check()
        await super().forget(key, token)

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("away")


async def answer() -> bytes:
    return b"answer"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Flaky:
    monkeypatch.setattr(idempotency, "KEEP_WAIT_S", 0.01)
    monkeypatch.setattr(idempotency, "KEEP_AGAIN_S", (0.01,))
    monkeypatch.setattr(idempotency, "LET_GO_S", (0.0, 0.01))
    return Flaky(clock)


@pytest.fixture
def drain() -> Drain:
    return Drain(DrainSettings())


@pytest.fixture
def once(store: Flaky, drain: Drain) -> Idempotency:
    return Idempotency(store=store, drain=drain)


async def test_an_answer_is_kept_as_soon_as_the_store_is_back(
    store: Flaky, once: Idempotency, drain: Drain, clock: ManualClock
) -> None:
    async def interrupted() -> bytes:
        store.away = True
        return b"answer"

    assert await once.answer(KEY, CONTEXT, interrupted) == Answered(b"answer", replayed=False)
    assert drain.running == 1  # a stop waits for it
    clock.advance(60)
    store.away = False
    await until(lambda: drain.running == 0)
    assert await once.answer(KEY, CONTEXT, answer) == Answered(b"answer", replayed=True)


async def test_an_answer_whose_key_is_somebody_elses_is_not_kept(
    store: Flaky, once: Idempotency, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def overtaken() -> bytes:
        clock.advance(60)
        await store.begin(KEY, "somebody else", 15)
        return b"answer"

    with caplog.at_level(logging.WARNING):
        assert await once.answer(KEY, CONTEXT, overtaken) == Answered(b"answer", replayed=False)
    assert "somebody else's" in caplog.text
    with pytest.raises(IdempotencyConflict):
        await once.answer(KEY, CONTEXT, answer)


async def test_a_key_that_was_taken_unheard_is_let_go(store: Flaky, once: Idempotency) -> None:
    store.away = True
    with pytest.raises(StoreUnavailable):
        await once.answer(KEY, CONTEXT, answer)
    store.away = False
    async with asyncio.timeout(5):
        while True:
            try:
                assert await once.answer(KEY, CONTEXT, answer) == Answered(b"answer", replayed=False)
            except IdempotencyConflict:
                await asyncio.sleep(0.01)
            else:
                return
