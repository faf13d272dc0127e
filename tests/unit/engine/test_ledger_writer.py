"""What the writer of the ledger does with a store that comes and goes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from service.domain.ledger import Batch, Entry
from service.domain.usage_record import UsageRecord
from service.engine import ledger_writer
from service.engine.ledger_writer import BATCH_MAX, LedgerWriter
from service.errors import InternalError, StoreUnavailable
from service.storage.journal import FileJournal
from service.storage.usage_json import record_as_json
from service.telemetry.metrics import Metrics
from tests.support.usage_records import record


class FakeStore:
    """Obeys ``LedgerStore``, is away when it is told to, and notes what it got."""

    def __init__(self) -> None:
        self.is_away = False
        self.batches: list[Batch] = []
        self.beats = 0
        self.refused = 0

    async def apply(self, batch: Batch) -> bool:
        """Take it."""
        self._answer()
        self.batches.append(batch)
        return True

    async def beat(self, owner: str) -> None:
        """Note it."""
        del owner
        self._answer()
        self.beats += 1

    def _answer(self) -> None:
        if self.is_away:
            self.refused += 1
            raise StoreUnavailable("away")

    async def abandoned(self) -> Sequence[UsageRecord]:
        """Know of none."""
        return []

    async def adopt(self, record: UsageRecord) -> bool:
        """Give none away."""
        del record
        return False

    async def complete_since(self, until: float) -> float:
        raise NotImplementedError

    async def read(self, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """Yield all."""
        del since, until
        for batch in self.batches:
            for entry in batch.entries:
                yield entry.record


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def writer(store: FakeStore, metrics: Metrics, tmp_path: Path) -> LedgerWriter:
    return LedgerWriter(store=store, journal=FileJournal(tmp_path, "w"), metrics=metrics, owner="w")


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks go on until they have brought it about."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - stores have no event for it
            await asyncio.sleep(0.01)


async def finished(waiting: Awaitable[None]) -> None:
    async with asyncio.timeout(10):
        await waiting


async def test_what_came_in_an_outage_is_sent_many_at_once_in_order(
    writer: LedgerWriter, store: FakeStore, tmp_path: Path
) -> None:
    ones = [record() for _ in range(2 * BATCH_MAX + 10)]
    store.is_away = True
    async with writer.running():
        for one in ones:  # each in a batch of its own
            await finished(writer.put(Entry("record", one)))
        store.is_away = False
        await until(lambda: not list(tmp_path.iterdir()))
    assert [len(batch.entries) for batch in store.batches] == [BATCH_MAX, BATCH_MAX, 10]
    assert [batch.number for batch in store.batches] == [1, BATCH_MAX + 1, 2 * BATCH_MAX + 1]
    assert [one async for one in store.read(0, 0)] == ones


def unwritable() -> UsageRecord:
    """Make a record with half of a character, which has no place in a file."""
    return record(model="\ud800")


class EncodingStore(FakeStore):
    """Writes records as a real one does."""

    @override
    async def apply(self, batch: Batch) -> bool:
        """Take it."""
        for entry in batch.entries:
            record_as_json(entry.record)
        return await super().apply(batch)


@pytest.mark.parametrize("is_away", [False, True])
async def test_an_entry_that_cannot_be_written_fails_alone_and_says_so(
    metrics: Metrics, tmp_path: Path, *, is_away: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = EncodingStore()
    store.is_away = is_away
    ledger = LedgerWriter(store=store, journal=FileJournal(tmp_path, "w"), metrics=metrics, owner="w")
    good, bad = [record() for _ in range(3)], unwritable()
    async with ledger.running():
        futures = [ledger.put(Entry("record", one)) for one in (good[0], bad, good[1])]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), InternalError, type(None)]
        store.is_away = False
        await until(lambda: len(store.batches) > 0)
        await finished(ledger.put(Entry("record", good[2])))
        # What runs is opened anew only if it could be opened.
        with pytest.raises(InternalError):
            await ledger.put(Entry("open", bad))
    assert [one async for one in store.read(0, 0)] == good
    numbers = [batch.number + place for batch in store.batches for place in range(len(batch.entries))]
    assert numbers == [1, 2, 3]  # a gap would say that something was lost
    assert caplog.text.count("an entry of the ledger cannot be written") == 2
    assert metrics.unhandled_errors.labels("ledger")._value.get() == 2


async def test_what_still_waits_at_the_end_is_kept_but_for_what_cannot_be(
    writer: LedgerWriter, store: FakeStore, tmp_path: Path
) -> None:
    async with writer.running():
        pass
    good = record()
    futures = [writer.put(Entry("record", one)) for one in (unwritable(), good)]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [InternalError, type(None)]
    assert FileJournal(tmp_path, "w2").left_behind() is None  # it is ours still
    del store


async def test_a_process_without_entries_stays_away_until_the_store_answers(
    writer: LedgerWriter, store: FakeStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(ledger_writer, "BEAT_S", 0.01)
    monkeypatch.setattr(ledger_writer, "RETRY_S", 0.01)
    store.is_away = True
    async with writer.running():
        await until(lambda: store.refused >= 20)
        assert caplog.text.count("goes to a file") == 1
        assert "shared store again" not in caplog.text
        store.is_away = False
        await until(lambda: "shared store again" in caplog.text)
    assert caplog.text.count("goes to a file") == 1
