"""Where records go for good: nothing lost and nothing twice, wherever a process dies."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path

import asyncpg  # type: ignore[import-untyped] # ships no types
import pytest
from pydantic import SecretStr
from typing_extensions import override

from service.domain.generation import Usage
from service.domain.usage_page import Page, Unreadable, forced_out
from service.domain.usage_record import CallRecord, UsageRecord
from service.errors import StoreUnavailable
from service.storage.postgres_usage import PostgresUsage
from service.storage.usage_files import UsageFiles
from service.storage.usage_json import record_as_json
from tests.support.postgres import running_postgres
from tests.support.usage_records import record

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture
async def sink(postgres_url: str) -> AsyncIterator[PostgresUsage]:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("DROP TABLE IF EXISTS llm_api_usage, llm_api_usage_positions, llm_api_usage_aside")
    await connection.close()
    async with PostgresUsage(SecretStr(postgres_url)).opened() as made:
        yield made


class Log:
    """Records with their positions, a few at a time."""

    def __init__(self, count: int, page: int = 10, *, ledger: str = "a1") -> None:
        self.entries: list[tuple[str, UsageRecord | Unreadable]] = [
            (f"{number}-0", record(ended_at=1_000_000.0 + number)) for number in range(1, count + 1)
        ]
        self._page = page
        self._ledger = ledger

    async def ledger_id(self) -> str:
        return self._ledger

    async def page(self, ledger_id: str, after: str) -> Page:
        assert ledger_id == self._ledger
        first = int(after.partition("-")[0])
        return self.entries[first : first + self._page]

    async def sink_at(self, sink: str, position: str | None) -> None:
        """Nothing is trimmed here."""

    @property
    def records(self) -> list[UsageRecord]:
        return [one for _, one in self.entries if isinstance(one, UsageRecord)]


class Broken(Log):
    """A store that goes away."""

    @override
    async def page(self, ledger_id: str, after: str) -> Page:
        await super().page(ledger_id, after)
        raise StoreUnavailable("the store went away")


async def stored(sink: PostgresUsage) -> list[UsageRecord]:
    return [one async for one in sink.read(0, 1e11)]


async def test_all_records_come_into_the_table_once(sink: PostgresUsage) -> None:
    log = Log(25)
    assert [(await sink.drain(log)).count for _ in range(4)] == [10, 10, 5, 0]
    assert await stored(sink) == log.records


async def test_a_page_that_failed_is_taken_again(sink: PostgresUsage) -> None:
    log = Log(5)
    with pytest.raises(StoreUnavailable):
        await sink.drain(Broken(5))
    assert (await sink.drain(log)).count == 5
    assert await stored(sink) == log.records


@pytest.mark.parametrize(
    "bad",
    [
        record("bad", model="m\x00"),
        record("bad", calls=(CallRecord("x", "sim", "up", "ok", Usage(2**63, 0), 0),)),
        record("bad", ended_at=1e18),
        Unreadable(b"\0{}", "DecodeError"),
    ],
    ids=["text", "tokens", "time", "unreadable"],
)
async def test_a_record_that_the_database_refuses_is_set_aside_and_stops_no_other(
    sink: PostgresUsage, postgres_url: str, bad: UsageRecord | Unreadable
) -> None:
    log = Log(5)
    log.entries[2] = ("3-0", bad)
    taken = await sink.drain(log)
    assert taken.count == 5
    assert [one.position for one in taken.set_aside] == ["3-0"]
    assert (await sink.drain(log)).count == 0
    assert await stored(sink) == [one for one in log.records if one.id != "bad"]
    connection = await asyncpg.connect(postgres_url)
    (row,) = await connection.fetch("SELECT * FROM llm_api_usage_aside")
    await connection.close()
    assert (row["position"], row["record"]) == ("3-0", as_kept(bad))


async def test_a_table_says_from_when_on_nothing_was_forced_out_before_it_came(sink: PostgresUsage) -> None:
    log = Log(0)
    log.entries = [("1000-0", record()), ("9000-3", forced_out("1000-0")), ("9000-4", record())]
    await sink.drain(log)
    assert len(await stored(sink)) == 2
    assert await sink.complete_since(1e9) == 69.0  # and the clock of who wrote one may have been a minute ahead
    assert await sink.complete_since(1.0) == 0.0  # what ended before had come


async def test_a_true_record_replaces_the_one_of_a_crash_and_no_other(sink: PostgresUsage, postgres_url: str) -> None:
    true, crash = record("a"), record("a", outcome="crashed", calls=(), finish_reason=None)
    log = Log(0)
    for number, one in enumerate((crash, crash, true, crash, record("a", outcome="internal")), 1):
        log.entries.append((f"{number}-0", one))
        await sink.drain(log)
        assert await stored(sink) == [crash if number < 3 else true]
    connection = await asyncpg.connect(postgres_url)
    row = await connection.fetchrow("SELECT outcome, calls, output_tokens, cost_usd FROM llm_api_usage")
    await connection.close()
    assert tuple(row) == ("ok", 1, 4, Decimal("0.000000011"))


async def test_a_report_reads_one_keys_records_alone(sink: PostgresUsage) -> None:
    log = Log(0)
    log.entries = [("1-0", record("a")), ("2-0", record("b", principal="bob'--"))]
    await sink.drain(log)
    assert [one.id async for one in sink.read_of("bob'--", 0, 1e11)] == ["b"]


def as_kept(one: UsageRecord | Unreadable) -> bytes:
    return one.raw if isinstance(one, Unreadable) else record_as_json(one)


async def test_two_ledgers_share_the_tables(sink: PostgresUsage) -> None:
    logs = [Log(15), Log(5, ledger="b2")]
    for log in logs:
        while (await sink.drain(log)).count:
            pass
    assert {one.id for one in await stored(sink)} == {one.id for log in logs for one in log.records}


async def test_one_process_at_a_time_drains(sink: PostgresUsage, postgres_url: str) -> None:
    log = Log(30)
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Log):
        @override
        async def page(self, ledger_id: str, after: str) -> Page:
            begun.set()
            await go_on.wait()
            return await log.page(ledger_id, after)

    async with PostgresUsage(SecretStr(postgres_url)).opened() as other:
        await other.drain(Log(0))
        first = asyncio.create_task(sink.drain(Slow(0)))
        await begun.wait()
        assert (await other.drain(log)).count == 0
        go_on.set()
        assert (await first).count == 10
        assert (await other.drain(log)).count == 10
    assert await stored(sink) == log.records[:20]


async def test_the_table_is_what_finance_asks(sink: PostgresUsage, postgres_url: str) -> None:
    dear = record(
        user="u'1\n",
        calls=(CallRecord("x-1", "sim", "up", "ok", Usage(10, 20, 4, 1, 6), 1_000_000_001),),
    )
    log = Log(0)
    log.entries = [("1-0", dear)]
    await sink.drain(log)
    connection = await asyncpg.connect(postgres_url)
    row = await connection.fetchrow("SELECT * FROM llm_api_usage")
    await connection.close()
    assert row["cost_usd"] == Decimal("1.000000001")
    assert (row["input_tokens"], row["output_tokens"], row["reasoning_tokens"]) == (10, 20, 6)
    assert row["user_id"] == "u'1\n"
    assert json.loads(row["record"])["calls"][0]["id"] == "x-1"


async def test_a_role_that_may_make_no_tables_leaves_no_connection_behind(postgres_url: str) -> None:
    owner = await asyncpg.connect(postgres_url)
    await owner.execute(
        "DROP TABLE IF EXISTS llm_api_usage, llm_api_usage_positions, llm_api_usage_aside; "
        "DROP ROLE IF EXISTS writer; CREATE ROLE writer LOGIN"
    )
    count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'writer'"
    try:
        async with PostgresUsage(SecretStr(as_role(postgres_url, "writer"))).opened() as sink:
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match="InsufficientPrivilege"):
                    await sink.drain(Log(1))
            async with asyncio.timeout(20):
                while await owner.fetchval(count):  # noqa: ASYNC110 - a server tells nobody that it closed one
                    await asyncio.sleep(0.05)
    finally:
        await owner.close()


async def test_a_role_that_may_make_no_tables_writes_into_those_that_are_there(
    sink: PostgresUsage, postgres_url: str
) -> None:
    await sink.drain(Log(0))
    owner = await asyncpg.connect(postgres_url)
    await owner.execute("DROP ROLE IF EXISTS filler; CREATE ROLE filler LOGIN")
    await owner.execute("GRANT SELECT, INSERT ON llm_api_usage_aside TO filler")
    await owner.execute("GRANT SELECT, INSERT, UPDATE ON llm_api_usage, llm_api_usage_positions TO filler")
    try:
        async with PostgresUsage(SecretStr(as_role(postgres_url, "filler"))).opened() as other:
            assert [(await other.drain(Log(15))).count for _ in range(3)] == [10, 5, 0]
    finally:
        await owner.execute("DROP OWNED BY filler")
        await owner.close()


def as_role(url: str, role: str) -> str:
    return url.replace("://postgres:", f"://{role}:").replace("://postgres@", f"://{role}@")


async def test_a_database_that_is_away_is_said_to_be() -> None:
    async with PostgresUsage(SecretStr("postgresql://nobody@127.0.0.1:1/none")).opened() as sink:
        with pytest.raises(StoreUnavailable, match="PostgreSQL"):
            await sink.drain(Log(1))


def lines(folder: Path) -> list[dict[str, object]]:
    paths = sorted(folder.glob("usage-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines() if line[:1] == b"{"]


def break_off(folder: Path, rest: bytes = b'{"id":"half') -> None:
    """Leave what a process leaves that dies while it writes, or a machine that loses power."""
    with next(folder.glob("usage-*.jsonl")).open("ab") as file:
        file.write(rest)


def move_away(folder: Path) -> None:
    for path in folder.glob("usage-*.jsonl"):
        path.unlink()


async def test_files_hold_each_record_once(tmp_path: Path) -> None:
    log = Log(25)
    files = UsageFiles(tmp_path)
    while (await files.drain(log)).count:
        pass
    assert [line["id"] for line in lines(tmp_path)] == [one.id for one in log.records]
    assert lines(tmp_path)[0]["cost_usd"] == "0.000000011"


async def test_files_go_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    log = Log(25)
    first = UsageFiles(tmp_path)
    await first.drain(log)
    first.close()
    break_off(tmp_path)
    second = UsageFiles(tmp_path)
    while (await second.drain(log)).count:
        pass
    assert [line["id"] for line in lines(tmp_path)] == [one.id for one in log.records]


async def test_one_process_at_a_time_writes_files(tmp_path: Path) -> None:
    log = Log(5)
    first, second = UsageFiles(tmp_path), UsageFiles(tmp_path)
    assert (await first.drain(log)).count == 5
    assert (await second.drain(log)).count == 0
    first.close()
    assert (await second.drain(log)).count == 0
    assert len(lines(tmp_path)) == 5


def aside_lines(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in folder.glob("aside-*.jsonl") for line in path.read_bytes().splitlines()]


def written(folder: Path) -> list[object]:
    return [line["id"] for line in lines(folder)]


async def drained(folder: Path, log: Log) -> None:
    """Write all, as a process that starts does."""
    files = UsageFiles(folder)
    while (await files.drain(log)).count:
        pass
    files.close()


async def test_files_go_on_behind_a_line_of_any_length(tmp_path: Path) -> None:
    log = Log(5)
    log.entries[-1] = ("5-0", record(finish_reason=100_000 * "x"))
    await drained(tmp_path, log)
    log.entries.append(("6-0", record()))
    await drained(tmp_path, log)
    assert written(tmp_path) == [one.id for one in log.records]


async def test_files_go_on_behind_a_line_that_cannot_be_read(tmp_path: Path) -> None:
    log = Log(5)
    await drained(tmp_path, log)
    (tmp_path / ".position-a1").unlink()
    break_off(tmp_path, b"\0\0\0\n")
    log.entries.append(("6-0", record()))
    await drained(tmp_path, log)
    (tmp_path / ".position-a1").write_bytes(b"\0\0")  # and where this one cannot be read either
    await drained(tmp_path, log)
    assert written(tmp_path) == [one.id for one in log.records]


@pytest.mark.parametrize(
    "bad",
    [
        record("bad", calls=(CallRecord("x", "sim", "up", "ok", Usage(2**70, 0), 0),)),
        record("bad", ended_at=1e18),
        Unreadable(b"\xff{}", "DecodeError"),
    ],
    ids=["tokens", "time", "unreadable"],
)
async def test_what_no_line_can_hold_is_set_aside_and_stops_no_other(
    tmp_path: Path, bad: UsageRecord | Unreadable
) -> None:
    log = Log(5)
    log.entries[2] = ("3-0", bad)
    files = UsageFiles(tmp_path)
    taken = await files.drain(log)
    assert (taken.count, [one.position for one in taken.set_aside]) == (5, ["3-0"])
    assert written(tmp_path) == [one.id for one in log.records if one.id != "bad"]
    [line] = aside_lines(tmp_path)
    assert (line["position"], base64.b64decode(line["record_base64"])) == ("3-0", as_kept(bad))


async def test_files_tell_of_what_was_forced_out_before_it_came(tmp_path: Path) -> None:
    log = Log(0)
    log.entries = [("9-3", forced_out("1-0")), ("9-4", record())]
    await drained(tmp_path, log)
    assert len(written(tmp_path)) == 1
    [line] = aside_lines(tmp_path)
    assert (line["position"], line["reason"], base64.b64decode(line["record_base64"])) == ("9-3", "forced_out", b"1-0")


async def test_files_go_on_behind_what_was_set_aside_alone(tmp_path: Path) -> None:
    log = Log(0)
    log.entries.append(("1-0", Unreadable(b"?", "DecodeError")))
    for _ in range(2):
        await drained(tmp_path, log)
    assert len(aside_lines(tmp_path)) == 1


async def test_two_ledgers_share_a_folder(tmp_path: Path) -> None:
    logs = [Log(15), Log(5, ledger="b2")]
    for _ in range(2):  # the second time, by processes that start
        for log in logs:
            await drained(tmp_path, log)
    assert sorted(map(str, written(tmp_path))) == sorted(one.id for log in logs for one in log.records)


async def test_files_go_on_where_the_store_became_another(tmp_path: Path) -> None:
    first, second = Log(15), Log(5, ledger="b2")
    files = UsageFiles(tmp_path)
    for log in (first, second):
        while (await files.drain(log)).count:
            pass
    assert len(written(tmp_path)) == 20


async def test_files_that_were_moved_away_are_not_written_again(tmp_path: Path) -> None:
    log = Log(5)
    await drained(tmp_path, log)
    move_away(tmp_path)
    log.entries.append(("6-0", record()))
    await drained(tmp_path, log)
    assert written(tmp_path) == [log.records[-1].id]
