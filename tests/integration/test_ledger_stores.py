"""What every store of the ledger keeps its word about, and what only a fleet's has to."""

import asyncio
import errno
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis

from service.config import RedisSettings, UsageSettings
from service.domain.ledger import Entry
from service.domain.usage_page import FORCED_OUT, PAGE, START, Unreadable, position_order
from service.domain.usage_record import CRASHED, UsageRecord
from service.engine.ledger_writer import LedgerStore, LedgerWriter
from service.errors import StoreUnavailable
from service.storage import append_file
from service.storage.file_ledger import DRAFTS_BYTES, FileLedgerStore
from service.storage.journal import FileJournal
from service.storage.ledger_places import PLACES_MAX
from service.storage.redis import ScriptDefect
from service.storage.redis_ledger import RedisLedgerStore
from service.telemetry.metrics import Metrics
from tests.support.redis_server import own_redis
from tests.support.usage_records import batch, draft, record

LEASE_S = 0.3
FOREVER = 1e11


@asynccontextmanager
async def redis_ledger(
    url: str, *, lease_s: float = 60.0, records_max: int = 1_000_000, metrics: Metrics | None = None
) -> AsyncIterator[RedisLedgerStore]:
    more = {"lease_s": lease_s, "records_max": records_max}
    settings = UsageSettings.model_construct(**{**UsageSettings().model_dump(), **more})
    store = RedisLedgerStore(
        redis=RedisSettings(url=SecretStr(url), timeout_s=0.5),
        settings=settings,
        metrics=metrics,
        prefix=f"{{usage-{secrets.token_hex(4)}}}:",
    )
    async with store.opened():
        yield store


@pytest.fixture(params=["file", "redis"])
async def store(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> AsyncIterator[LedgerStore]:
    if request.param == "file":
        by_file = FileLedgerStore(tmp_path)
        yield by_file
        by_file.close()
    else:
        async with redis_ledger(redis_url) as made:
            yield made


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another task brings about; while the store starts anew, it fails."""
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreUnavailable):
                if await condition():
                    return
            await asyncio.sleep(0.05)


async def any_abandoned(store: LedgerStore) -> bool:
    return bool(await store.abandoned())


async def has_all(store: LedgerStore, count: int) -> bool:
    return len(await kept(store)) >= count


async def none_left(folder: Path) -> bool:
    return not journals(folder)


def journals(folder: Path) -> list[Path]:
    return list(folder.glob("*.journal"))


async def kept(store: LedgerStore, since: float = 0, until: float = FOREVER) -> list[UsageRecord]:
    return [one async for one in store.read(since, until)]


async def test_a_record_comes_in_exchange_for_its_draft(store: LedgerStore) -> None:
    one = record()
    assert await store.apply(batch("a", 1, ("open", draft(one.id))))
    assert await kept(store) == []
    assert await store.apply(batch("a", 2, ("close", one)))
    assert await kept(store) == [one]


async def test_what_was_refused_needs_no_draft(store: LedgerStore) -> None:
    one = record(outcome="rate_limited", calls=())
    await store.apply(batch("a", 1, ("record", one)))
    assert await kept(store) == [one]


async def test_records_are_read_by_the_time_of_their_end(store: LedgerStore) -> None:
    early, late = record(ended_at=1_000.0), record(ended_at=2_000.0)
    await store.apply(batch("a", 1, ("record", early), ("record", late)))
    assert await kept(store, 1_000, 2_000) == [early]
    assert await kept(store, 2_000, 2_001) == [late]


async def test_a_batch_that_is_sent_again_is_passed_over(redis_url: str) -> None:
    one = record()
    async with redis_ledger(redis_url) as store:
        first = batch("a", 1, ("record", one))
        await store.apply(first)
        await store.apply(first)
        assert await kept(store) == [one]


async def test_of_what_is_sent_on_the_part_that_came_through_is_passed_over(redis_url: str) -> None:
    ones = [record() for _ in range(5)]
    async with redis_ledger(redis_url) as store:
        assert await store.apply(batch("a", 1, ("record", ones[0]), ("record", ones[1])))
        assert await store.apply(batch("a", 3, ("record", ones[2])))
        assert await store.apply(batch("a", 2, *(("record", one) for one in ones[1:])))
        assert await store.apply(batch("a", 2, *(("record", one) for one in ones[1:])))
        assert await kept(store) == ones


async def test_drafts_of_the_dead_are_found_and_written_once(redis_url: str) -> None:
    one = draft()
    async with redis_ledger(redis_url, lease_s=LEASE_S) as store:
        await store.apply(batch("dead", 1, ("open", one)))
        assert await store.abandoned() == []
        await until(lambda: any_abandoned(store))
        assert await store.adopt(record(one.id))
        assert not await store.adopt(record(one.id))
        assert len(await kept(store)) == 1


async def test_who_was_only_cut_off_puts_its_own_record_in_place_of_the_crash(redis_url: str) -> None:
    lost, settled = record(), record()
    async with redis_ledger(redis_url) as store:
        await store.apply(batch("slow", 1, ("open", draft(lost.id)), ("open", draft(settled.id))))
        for one in (lost, settled):
            assert await store.adopt(record(one.id, outcome=CRASHED, calls=()))
        assert [found.outcome for found in await kept(store)] == [CRASHED, CRASHED]
        await store.apply(batch("slow", 3, ("amend", settled), ("close", lost), ("close", settled)))
        assert await kept(store) == [lost, settled]
        assert not await store.adopt(record(settled.id, outcome=CRASHED))


async def test_where_a_crash_and_the_true_record_both_stand_the_true_one_counts_alone(redis_url: str) -> None:
    one, other = record(ended_at=9_000.0), record(outcome=CRASHED, ended_at=1_000.0)
    async with redis_ledger(redis_url) as store:
        crash = record(one.id, outcome=CRASHED, ended_at=1_000.0)
        await store.apply(batch("a", 1, ("record", crash), ("record", other), ("record", one)))
        assert await kept(store) == [one, other]
        assert await kept(store, 0, 2_000) == [other]  # wherever the true one counts


async def test_a_file_puts_a_record_in_place_of_the_crash_too(tmp_path: Path) -> None:
    one, other = record(), record()
    dead = FileLedgerStore(tmp_path)
    await dead.apply(batch("dead", 1, ("open", draft(one.id)), ("open", draft(other.id))))
    dead.close()
    store = FileLedgerStore(tmp_path)
    assert await store.adopt(record(one.id, outcome=CRASHED, calls=()))
    # What the dead one had kept elsewhere comes late.
    await store.apply(batch("dead", 3, ("close", one), ("close", other)))
    assert await kept(store) == [one, other]
    assert await store.abandoned() == []


async def test_a_process_that_beats_keeps_its_drafts(redis_url: str) -> None:
    async with redis_ledger(redis_url, lease_s=LEASE_S) as store:
        await store.apply(batch("slow", 1, ("open", draft())))
        for _ in range(10):
            await asyncio.sleep(LEASE_S / 3)
            await store.beat("slow")
            assert await store.abandoned() == []


async def test_the_store_forgets_processes_that_are_gone_for_as_long_as_records_are_kept(redis_url: str) -> None:
    async with redis_ledger(redis_url) as store, Redis.from_url(redis_url) as client:
        await store.apply(batch("gone", 1, ("record", record())))
        prefix = store.prefix
        lasting = {key async for key in client.scan_iter(f"{prefix}*") if await client.pttl(key) == -1}
        assert lasting == {f"{prefix}records".encode()}
        key = f"{prefix}last:gone"
        assert 0 < await client.pttl(key) <= UsageSettings().kept_s * 1_000
        await client.pexpire(key, 1_000)  # an idle process is not forgotten
        await store.beat("gone")
        assert await client.pttl(key) > 1_000


async def filled(store: RedisLedgerStore, count: int, *, first: int = 1) -> None:
    """Write so many records, a hundred at once."""
    for number in range(first, first + count, 100):
        await store.apply(batch("a", number, *(("record", record()) for _ in range(100))))


async def positions(store: RedisLedgerStore, after: str = START) -> list[str]:
    """List those of the records, without the entry that tells of others."""
    found: list[str] = []
    while page := await store.page(await store.ledger_id(), found[-1] if found else after):
        found += [position for position, one in page if isinstance(one, UsageRecord)]
    return found


async def gaps(store: RedisLedgerStore, after: str = START) -> list[tuple[str, bytes]]:
    page = await store.page(await store.ledger_id(), after)
    return [(position, one.raw) for position, one in page if isinstance(one, Unreadable) and one.reason == FORCED_OUT]


FEW = 50


def forced_out(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("llm_api_usage_forced_out_total") or 0.0


@pytest.mark.parametrize("taken", [None, 0, 30, 150])
async def test_what_is_forced_out_before_a_sink_has_it_is_counted_and_told(
    redis_url: str, taken: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(CollectorRegistry())
    async with redis_ledger(redis_url, records_max=FEW, metrics=metrics) as store:
        await store.ledger_id()
        if taken is not None:
            await store.sink_at("files", START)
        await filled(store, 100)
        first = await positions(store)
        assert (len(first), forced_out(metrics), await gaps(store)) == (100, 0, [])
        at = START
        if taken:
            at = first[min(taken, 100) - 1]
            await store.sink_at("files", at)
        await filled(store, 500, first=101)
        left = await positions(store)
        lost = 600 - len(left) - min(taken or 0, 100)
        assert FEW <= len(left) <= FEW + 200  # whole nodes, and a batch
        assert forced_out(metrics) == lost
        ((end, begin),) = await gaps(store, at)
        assert (begin.decode(), position_order(end) < position_order(left[0])) == (at, True)
        assert await gaps(store, end) == []
        assert await store.complete_since(FOREVER) > position_order(left[0])[0] / 1_000
    told = [line for line in caplog.records if "records_max" in line.message]
    assert len(told) == 1


async def test_what_all_sinks_have_is_let_go_without_a_word(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(CollectorRegistry())
    async with redis_ledger(redis_url, records_max=FEW, metrics=metrics) as store:
        at = START
        for number in range(1, 1_001):
            await store.apply(batch("a", number, ("record", record())))
            if number % 20 == 0:
                page = await store.page(await store.ledger_id(), at)
                assert len(page) == 20  # none was lost, and nothing stands for one
                at = page[-1][0]
                await store.sink_at("files", at)
        assert FEW <= len(await kept(store)) <= FEW + 100
        assert forced_out(metrics) == 0
        assert not caplog.records


async def test_a_full_page_holds_no_more_for_what_was_forced_out(redis_url: str) -> None:
    async with redis_ledger(redis_url, records_max=2 * PAGE) as store:
        await filled(store, 3 * PAGE)
        page = await store.page(await store.ledger_id(), START)
        assert len(page) == PAGE
        assert len(await positions(store)) == len(await kept(store))


async def test_a_ledger_is_complete_since_its_first_record(redis_url: str) -> None:
    async with redis_ledger(redis_url) as store:
        empty = await store.complete_since(FOREVER)
        await filled(store, 200)
        (first, *_) = await positions(store)
        assert await store.complete_since(FOREVER) == position_order(first)[0] / 1_000 >= empty - 1


async def test_a_ledger_that_lost_some_is_complete_from_then_on(redis_url: str) -> None:
    async with redis_ledger(redis_url) as store, Redis.from_url(redis_url) as client:
        await store.apply(batch("a", 1, ("record", record())))
        at = await client.time()
        assert not await store.apply(batch("a", 3, ("record", record())))
        assert await store.complete_since(FOREVER) >= at[0] + at[1] / 1e6 - 0.001


async def test_a_script_that_fails_by_itself_is_no_outage(redis_url: str, tmp_path: Path) -> None:
    async with redis_ledger(redis_url) as store, Redis.from_url(redis_url) as client:
        await client.set(f"{store.prefix}drafts", "somebody's")
        with pytest.raises(ScriptDefect):
            await store.apply(batch("a", 1, ("open", draft())))
        ledger = writer(store, tmp_path)
        async with ledger.running():
            first = ledger.put(Entry("record", other := record()))
            await ledger.put(Entry("open", draft(one := "one")))
            await first
            await client.delete(f"{store.prefix}drafts")
            await until(lambda: none_left(tmp_path))
        assert await client.hexists(f"{store.prefix}drafts", one)
        assert await kept(store) == [other]


async def test_a_file_tells_the_next_process_what_the_last_one_left(tmp_path: Path) -> None:
    one, other = draft(), draft()
    first = FileLedgerStore(tmp_path)
    await first.apply(batch("a", 1, ("open", one), ("open", other)))
    await first.apply(batch("a", 3, ("close", record(other.id))))
    first.close()
    second = FileLedgerStore(tmp_path)
    assert [left.id for left in await second.abandoned()] == [one.id]
    assert await second.adopt(record(one.id))
    assert await second.abandoned() == []
    assert {found.id for found in await kept(second)} == {one.id, other.id}
    second.close()
    assert await FileLedgerStore(tmp_path).abandoned() == []


async def test_two_processes_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    mine, theirs, crashed = record(), record(), draft()
    first, second = FileLedgerStore(tmp_path), FileLedgerStore(tmp_path)
    await first.apply(batch("a", 1, ("open", draft(mine.id))))
    assert await second.abandoned() == []  # it runs
    await second.apply(batch("b", 1, ("open", draft(theirs.id)), ("close", theirs), ("open", crashed)))
    await first.apply(batch("a", 2, ("close", mine)))
    assert {one.id for one in await kept(FileLedgerStore(tmp_path))} == {mine.id, theirs.id}
    first.close()
    second.close()
    # One that comes alone finds what either left.
    third = FileLedgerStore(tmp_path)
    assert [left.id for left in await third.abandoned()] == [crashed.id]
    assert await third.adopt(record(crashed.id, outcome=CRASHED))
    third.close()
    assert await FileLedgerStore(tmp_path).abandoned() == []


async def test_a_folder_that_too_many_write_to_is_refused(tmp_path: Path) -> None:
    stores = [FileLedgerStore(tmp_path) for _ in range(PLACES_MAX + 1)]
    for store in stores[:-1]:
        await store.abandoned()
    with pytest.raises(StoreUnavailable, match=r"usage\.dir"):
        await stores[-1].apply(batch("a", 1, ("record", record())))
    for store in stores:
        store.close()


async def test_a_file_keeps_what_could_not_be_written_for_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = record(), record()
    store = FileLedgerStore(tmp_path)
    await store.apply(batch("a", 1, ("open", draft(one.id)), ("open", draft(other.id))))
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(append_file, "_write", full)
        with pytest.raises(StoreUnavailable):
            await store.apply(batch("a", 3, ("close", one)))
    await store.apply(batch("a", 3, ("close", one)))
    assert await kept(store) == [one]
    store.close()
    assert [left.id for left in await FileLedgerStore(tmp_path).abandoned()] == [other.id]


async def test_drafts_that_are_over_take_no_space(tmp_path: Path) -> None:
    store = FileLedgerStore(tmp_path)
    for number in range(1, 1000, 2):
        one = record()
        await store.apply(batch("a", number, ("open", draft(one.id))))
        await store.apply(batch("a", number + 1, ("close", one)))
    assert (tmp_path / "drafts.jsonl").stat().st_size < 2 * DRAFTS_BYTES
    store.close()
    assert not (tmp_path / "drafts.jsonl").exists()
    assert len(await kept(store)) == 500


def writer(store: LedgerStore, folder: Path, owner: str = "w") -> LedgerWriter:
    return LedgerWriter(
        store=store, journal=FileJournal(folder, owner), metrics=Metrics(CollectorRegistry()), owner=owner
    )


async def test_what_comes_in_an_outage_is_written_after_it_in_order_and_once(tmp_path: Path) -> None:
    with own_redis() as redis:
        async with redis_ledger(redis.url) as store:
            ledger = writer(store, tmp_path)
            ones = [record() for _ in range(30)]
            async with ledger.running():
                await ledger.put(Entry("open", draft(ones[0].id)))
                redis.freeze()
                # The first of these is sent, and carried out when the store goes on: it must not be written twice.
                for one in ones:
                    await ledger.put(Entry("close" if one is ones[0] else "record", one))
                assert journals(tmp_path)
                redis.thaw()
                await until(lambda: none_left(tmp_path))
                await ledger.put(Entry("record", last := record()))
            assert await kept(store) == [*ones, last]


async def test_who_writes_while_everything_is_cancelled_does_not_hang_and_loses_nothing(
    tmp_path: Path, redis_url: str
) -> None:
    one, other = record(), record()
    async with redis_ledger(redis_url) as store:
        begun = asyncio.Event()

        async def serving() -> None:
            ledger = writer(store, tmp_path)
            async with ledger.running():
                await ledger.put(Entry("open", draft(one.id)))
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    for task in asyncio.all_tasks():
                        if task.get_name() == "write the ledger":
                            task.cancel()
                            await asyncio.gather(task, return_exceptions=True)
                    await ledger.put(Entry("close", one))
                    await ledger.put(Entry("record", other))

        task = asyncio.create_task(serving())
        await begun.wait()
        task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(task, return_exceptions=True)
        assert await kept(store) == [one, other]


async def test_a_process_takes_over_the_file_of_one_that_died_in_an_outage(tmp_path: Path, redis_url: str) -> None:
    ones = [record() for _ in range(3)]
    dead = FileJournal(tmp_path, "dead")
    for number, one in enumerate(ones, start=1):
        dead.append(batch("dead", number, ("record", one)))
    async with redis_ledger(redis_url) as store:
        await store.apply(batch("dead", 1, ("record", ones[0])))  # it had come through before the outage
        async with writer(store, tmp_path).running():
            await asyncio.sleep(0.2)
            assert await kept(store) == ones[:1]  # the other one lives, and holds its file
            dead.release()
            await until(lambda: has_all(store, len(ones)))
        assert await kept(store) == ones
        assert journals(tmp_path) == []


async def test_a_store_that_lost_its_data_loses_no_record_of_what_runs(tmp_path: Path) -> None:
    with own_redis(tmp_path) as redis:
        async with redis_ledger(redis.url) as store:
            ledger = writer(store, tmp_path)
            first, second = record(), record()
            async with ledger.running():
                await ledger.put(Entry("open", draft(first.id)))
                await ledger.put(Entry("open", draft(second.id)))
                redis.kill()
                with own_redis(tmp_path):
                    await ledger.put(Entry("close", first))
                    await until(lambda: has_all(store, 1))
                    await ledger.put(Entry("close", second))
                    assert await kept(store) == [first, second]


async def test_a_store_that_is_back_from_an_older_state_loses_no_record_of_what_runs(
    redis_url: str, tmp_path: Path
) -> None:
    async with redis_ledger(redis_url) as store:
        first, second = record(), record()
        assert await store.apply(batch("w", 1, ("open", draft(first.id))))
        # The second batch, with another draft, was acknowledged and is gone.
        assert not await store.apply(batch("w", 3, ("close", second)))
        assert await store.apply(batch("w", 4, ("close", first)))
        assert await kept(store) == [second, first]


async def test_a_store_that_comes_back_empty_loses_no_record_of_what_ended_in_its_absence(tmp_path: Path) -> None:
    with own_redis(tmp_path) as redis:
        async with redis_ledger(redis.url) as store:
            ledger = writer(store, tmp_path)
            ones = [record() for _ in range(3)]
            running = draft()
            async with ledger.running():
                for one in (*ones, running):
                    await ledger.put(Entry("open", draft(one.id)))
                redis.kill()
                for one in ones:  # a batch each
                    await ledger.put(Entry("close", one))
                with own_redis(tmp_path):
                    await until(lambda: none_left(tmp_path))
                    assert await kept(store) == ones
                    # What still runs has its draft again, for whoever finds its process dead.
                    await until(lambda: adopted(store, running))


async def test_a_store_that_comes_back_empty_loses_no_record_of_who_died_in_its_absence(
    tmp_path: Path, redis_url: str
) -> None:
    ones = [record() for _ in range(3)]
    dead = FileJournal(tmp_path, "dead")
    for number, one in enumerate(ones, start=4):  # the drafts came before, and are gone
        dead.append(batch("dead", number, ("close", one)))
    dead.release()
    async with redis_ledger(redis_url) as store, writer(store, tmp_path).running():
        await until(lambda: none_left(tmp_path))
        assert await kept(store) == ones


async def adopted(store: LedgerStore, one: UsageRecord) -> bool:
    return await store.adopt(record(one.id, outcome=CRASHED))


def test_a_journal_that_cannot_be_written_keeps_what_it_gets_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    journal = FileJournal(tmp_path / "file" / "folder", "w")
    ones = [batch("w", number, ("record", record())) for number in (1, 2)]
    for _ in range(2):  # once all is sent on, it is tried again
        for one in ones:
            journal.append(one)
        assert journal.first(256) == batch("w", 1, *(("record", one.entries[0].record) for one in ones))
        journal.drop_first()
    assert caplog.text.count("usage.dir") == 1
    for one in ones:
        journal.append(one)
    assert journal.first(1) == ones[0]
    journal.drop_first()
    assert journal.first(1) == ones[1]
    journal.drop_first()
    assert journal.first(256) is None


def test_a_journal_puts_together_what_follows_without_a_gap(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path, "w")
    ones = [record() for _ in range(6)]
    for number, one in zip((1, 2, 3, 5, 6), ones, strict=False):
        journal.append(batch("w", number, ("record", one)))
    assert journal.first(2) == batch("w", 1, ("record", ones[0]), ("record", ones[1]))
    journal.append(batch("w", 7, ("record", ones[5])))
    journal.drop_first()
    assert journal.first(256) == batch("w", 3, ("record", ones[2]))  # the fourth is lost, and the store is to see it
    journal.drop_first()
    assert journal.first(256) == batch("w", 5, *(("record", one) for one in ones[3:]))
    journal.drop_first()
    assert journal.first(256) is None
    assert journals(tmp_path) == []


def test_a_journal_passes_over_a_line_that_it_cannot_read(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path, "w")
    ones = [batch("w", number, ("record", record(model="m" * 200_000))) for number in (1, 3, 5)]
    journal.append(ones[0])
    for one in ones[1:]:
        with (tmp_path / "w.journal").open("ab") as file:
            file.write(b"{}\n")
        journal.append(one)
    for one in ones:
        assert journal.first(256) == one
        journal.drop_first()
    assert journals(tmp_path) == []


def test_a_line_that_was_not_finished_is_none(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path, "w")
    one = batch("w", 1, ("record", record()))
    journal.append(one)
    journal.release()
    with next(tmp_path.glob("*.journal")).open("ab") as file:
        file.write(b'{"owner":"w","num')
    left = FileJournal(tmp_path, "other").left_behind()
    assert left is not None
    assert left.first(256) == one
    left.drop_first()
    assert left.first(256) is None
