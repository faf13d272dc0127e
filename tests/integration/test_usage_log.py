"""What sinks read of a fleet's ledger."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis

from service.config import RedisSettings, UsageSettings
from service.domain.ledger import Kind
from service.domain.usage_page import PAGE, Unreadable
from service.domain.usage_record import UsageRecord
from service.errors import StoreUnavailable
from service.storage.redis_ledger import RedisLedgerStore
from service.storage.usage_files import UsageFiles
from service.telemetry.metrics import Metrics
from service.worker.usage_sink import UsageDrain
from tests.support.usage_records import batch, record

ONE = record()


@asynccontextmanager
async def ledger(url: str, prefix: str, **settings: float) -> AsyncIterator[RedisLedgerStore]:
    usage = UsageSettings.model_construct(**{**UsageSettings().model_dump(), **settings})
    store = RedisLedgerStore(redis=RedisSettings(url=SecretStr(url)), settings=usage, prefix=prefix)
    async with store.opened():
        yield store


@pytest.fixture
def prefix() -> str:
    return f"{{usage-{secrets.token_hex(4)}}}:"


async def test_all_processes_over_a_store_know_its_ledger_by_one_id(redis_url: str, prefix: str) -> None:
    async with ledger(redis_url, prefix) as one, ledger(redis_url, prefix) as other:
        assert await one.ledger_id() == await other.ledger_id()
    async with ledger(redis_url, f"{prefix}2:") as another:
        assert await another.ledger_id() != await one.ledger_id()


async def test_a_position_of_one_ledger_is_not_asked_of_another(redis_url: str, prefix: str) -> None:
    async with ledger(redis_url, prefix) as store, Redis.from_url(redis_url) as client:
        before = await store.ledger_id()
        await store.apply(batch("a", 1, ("record", ONE)))
        assert [one for _, one in await store.page(before, "0-0")] == [ONE]
        await client.delete(f"{prefix}about")  # as a store that lost what it had
        with pytest.raises(StoreUnavailable, match="another"):
            await store.page(before, "0-0")
        after = await store.ledger_id()
        assert after != before
        assert len(await store.page(after, "0-0")) == 1


@pytest.mark.parametrize(
    ("fields", "raw"), [({"r": "{}"}, b"{}"), ({"r": b"\xff"}, b"\xff"), ({"other": "1"}, b"other 1")]
)
async def test_an_entry_that_is_no_record_stops_nobody(
    redis_url: str, prefix: str, fields: dict[str | bytes, str | bytes], raw: bytes
) -> None:
    async with ledger(redis_url, prefix) as store, Redis.from_url(redis_url) as client:
        await client.xadd(f"{prefix}records", fields)  # type: ignore[arg-type] # narrower than what it takes
        await store.apply(batch("a", 1, ("record", ONE)))
        [(_, first), (_, second)] = await store.page(await store.ledger_id(), "0-0")
        assert isinstance(first, Unreadable)
        assert first.raw == raw
        assert second == ONE
        assert [one async for one in store.read(0, 1e11)] == [ONE]


COUNT = 300
"""Redis trims whole blocks of a hundred."""


async def test_what_a_sink_has_still_to_take_is_not_trimmed_for_its_age(redis_url: str, prefix: str) -> None:
    records: list[tuple[Kind, UsageRecord]] = [("record", record()) for _ in range(COUNT)]
    async with ledger(redis_url, prefix, kept_s=0.001) as store, Redis.from_url(redis_url) as client:
        await store.sink_at("postgres", None)
        await store.sink_at("files", f"{10**15}-0")
        for number in (1, 1 + COUNT):
            await store.apply(batch("a", number, *records))
            await asyncio.sleep(0.01)
        page = await store.page(await store.ledger_id(), "0-0")
        assert await client.xlen(f"{prefix}records") == 2 * COUNT
        await store.sink_at("postgres", page[-1][0])
        await store.sink_at("postgres", None)  # as another process says, which does not know how far it is
        await store.apply(batch("a", 1 + 2 * COUNT, *records))
        assert await client.xlen(f"{prefix}records") < 3 * COUNT
        assert [one for _, one in await store.page(await store.ledger_id(), page[-1][0])][:100] == [
            one for _, one in records
        ][len(page) - COUNT :][:100]


async def test_a_sink_of_which_nobody_hears_holds_nothing_up(redis_url: str, prefix: str) -> None:
    records: list[tuple[Kind, UsageRecord]] = [("record", record()) for _ in range(COUNT)]
    async with ledger(redis_url, prefix, kept_s=0.001) as store, Redis.from_url(redis_url) as client:
        await store.sink_at("files", None)
        await client.hset(f"{prefix}sinks", "files:at", str(int((time.time() - 86_401) * 1_000)))
        await store.apply(batch("a", 1, *records))
        await asyncio.sleep(0.01)
        await store.apply(batch("a", 1 + COUNT, *records))
        assert await client.xlen(f"{prefix}records") < 2 * COUNT


def count_lines(folder: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("usage-*"))


async def test_a_drain_takes_all_from_the_store_and_says_how_far_it_is(
    redis_url: str, prefix: str, tmp_path: Path
) -> None:
    files = UsageFiles(tmp_path)
    metrics = Metrics(CollectorRegistry())
    async with ledger(redis_url, prefix) as store, Redis.from_url(redis_url) as client:
        await store.apply(batch("a", 1, *[("record", record()) for _ in range(PAGE + 1)]))
        async with asyncio.timeout(20), UsageDrain(log=store, sink=files, name="files", metrics=metrics).running():
            last = (await client.xinfo_stream(f"{prefix}records"))["last-generated-id"]
            while await client.hget(f"{prefix}sinks", "files") != last:  # noqa: ASYNC110 - another task's work
                await asyncio.sleep(0.01)
    files.close()
    assert count_lines(tmp_path) == PAGE + 1
