"""Where records go for good: a table in PostgreSQL, 13 or newer."""

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from pydantic import SecretStr

from service.domain.usage_columns import columns_of
from service.domain.usage_page import (
    FORCED_OUT,
    PAGE,
    START,
    Page,
    SetAside,
    Taken,
    Unreadable,
    UsageLog,
    position_order,
)
from service.domain.usage_record import CRASHED, UsageRecord
from service.errors import StoreUnavailable
from service.storage.usage_json import record_as_json, record_of_json

TIMEOUT_S = 10.0
SKEW_S = 60.0
"""By how much the clock of who writes a record may be before that of the ledger's store."""
LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 7205759403792793))"
"""One process at a time drains a ledger."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS llm_api_usage (
    id text PRIMARY KEY,
    request_id text NOT NULL,
    trace_id text,
    began_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    principal text NOT NULL,
    user_id text,
    model text NOT NULL,
    asked_model text NOT NULL,
    provider text,
    streamed boolean NOT NULL,
    background boolean NOT NULL,
    outcome text NOT NULL,
    fault text NOT NULL,
    finish_reason text,
    calls integer NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cached_input_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    estimated boolean NOT NULL,
    cost_usd numeric(24, 9),
    price text,
    total_s double precision NOT NULL,
    limits_s double precision NOT NULL,
    queue_s double precision NOT NULL,
    upstream_s double precision NOT NULL,
    first_content_s double precision,
    record jsonb NOT NULL
);
CREATE INDEX IF NOT EXISTS llm_api_usage_ended_at ON llm_api_usage (ended_at);
CREATE INDEX IF NOT EXISTS llm_api_usage_principal ON llm_api_usage (principal, ended_at);
CREATE TABLE IF NOT EXISTS llm_api_usage_positions (ledger text PRIMARY KEY, position text NOT NULL);
CREATE TABLE IF NOT EXISTS llm_api_usage_aside (
    ledger text NOT NULL,
    position text NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (ledger, position)
);
"""
"""``record`` is the record as the ledger has it, each call included. Several ledgers may share the tables."""

TABLES = ("llm_api_usage", "llm_api_usage_positions", "llm_api_usage_aside")
COLUMNS = (*columns_of(UsageRecord("", "", 0.0, "", "", "")), "record")
INSERT = (
    f"INSERT INTO llm_api_usage ({', '.join(COLUMNS)}) "  # noqa: S608 - our own names and numbers
    f"VALUES ({', '.join(f'${number}' for number in range(1, len(COLUMNS) + 1))}) ON CONFLICT (id) DO UPDATE "
    f"SET ({', '.join(COLUMNS)}) = ({', '.join(f'excluded.{name}' for name in COLUMNS)}) "
    f"WHERE llm_api_usage.outcome = '{CRASHED}' AND excluded.outcome <> '{CRASHED}'"
)
"""The columns by their names: a table may have got more of them since.

A process that was taken for dead, and was not, writes its own record later: that is the true one.
"""


class UnwritableError(Exception):
    """A record has a time or a number that has no place in a column."""


class PostgresUsage:
    """A sink for records, and a source of them. Raises ``StoreUnavailable``."""

    def __init__(self, url: SecretStr, *, connections_max: int = 1) -> None:
        self._url = url
        self._connections_max = connections_max
        self._pool: Any = None
        self._asyncpg: Any = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["PostgresUsage"]:
        """Give it; it connects with the first use, and makes its tables."""
        try:
            self._asyncpg = importlib.import_module("asyncpg")
        except ImportError as error:
            raise StoreUnavailable(
                "usage.postgres_url takes a library that is not installed: pip install 'llm-api[postgres]'"
            ) from error
        try:
            yield self
        finally:
            if self._pool is not None:
                await self._pool.close()

    async def drain(self, log: UsageLog) -> Taken:
        """Take the page that follows what is there, if no other process does just now.

        The position among the records is kept in the same transaction, so that none is lost and none taken twice.
        """
        ledger = await log.ledger_id()
        async with self._connection() as connection, connection.transaction():
            if not await connection.fetchval(LOCK, ledger):
                return Taken()
            after = await connection.fetchval("SELECT position FROM llm_api_usage_positions WHERE ledger = $1", ledger)
            page = await log.page(ledger, after or START)
            if not page:
                return Taken(position=after)
            aside = await self._insert(connection, ledger, page)
            await connection.execute(
                "INSERT INTO llm_api_usage_positions (ledger, position) VALUES ($1, $2) "
                "ON CONFLICT (ledger) DO UPDATE SET position = excluded.position",
                ledger,
                page[-1][0],
            )
            return Taken(len(page), aside, page[-1][0])

    async def _insert(self, connection: Any, ledger: str, page: Page) -> tuple[SetAside, ...]:
        """Insert all; where the database refuses that, one by one, and set aside what it refuses by itself."""
        try:
            async with connection.transaction():
                await connection.executemany(INSERT, [_row(one) for _, one in page if isinstance(one, UsageRecord)])
            aside = [await self._set_aside(connection, ledger, *one) for one in _unreadable(page)]
        except self._refusals:
            found = [await self._insert_one(connection, ledger, position, one) for position, one in page]
            aside = [one for one in found if one is not None]
        return tuple(aside)

    async def _insert_one(
        self, connection: Any, ledger: str, position: str, one: UsageRecord | Unreadable
    ) -> SetAside | None:
        if isinstance(one, Unreadable):
            return await self._set_aside(connection, ledger, position, one)
        try:
            async with connection.transaction():
                await connection.execute(INSERT, *_row(one))
        except self._refusals as error:
            refused = Unreadable(record_as_json(one), type(error).__name__)
            return await self._set_aside(connection, ledger, position, refused)
        return None

    async def _set_aside(self, connection: Any, ledger: str, position: str, one: Unreadable) -> SetAside:
        await connection.execute(
            "INSERT INTO llm_api_usage_aside (ledger, position, reason, record) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (ledger, position) DO NOTHING",
            ledger,
            position,
            one.reason,
            one.raw,
        )
        return SetAside(position, one.reason)

    @property
    def _refusals(self) -> tuple[type[Exception], ...]:
        """What is the fault of a record, so that the next attempt would bring it again."""
        library = self._asyncpg
        return (
            library.DataError,
            library.IntegrityConstraintViolationError,
            library.ProgramLimitExceededError,
            UnwritableError,
        )

    async def read(self, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """See :class:`service.engine.usage_report.UsageSource`."""
        async for record in self._read("true", since, until):
            yield record

    async def read_of(self, principal: str, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """See :class:`service.engine.bounded_usage.FilteringSource`."""
        async for record in self._read("principal = $3", since, until, principal):
            yield record

    async def complete_since(self, until: float) -> float:
        """See :class:`service.engine.usage_report.UsageSource`: after what was forced out before it came."""
        async with self._connection() as connection:
            gaps = await connection.fetch(
                "SELECT record, position FROM llm_api_usage_aside WHERE reason = $1", FORCED_OUT
            )
        ends = [_seconds(gap["position"]) for gap in gaps if _seconds(gap["record"].decode()) < until]
        return max(ends) + SKEW_S if ends else 0.0

    async def _read(self, condition: str, since: float, until: float, *values: str) -> AsyncIterator[UsageRecord]:
        async with self._connection() as connection, connection.transaction(readonly=True):
            rows = connection.cursor(
                "SELECT record::text FROM llm_api_usage "  # noqa: S608 - our own condition
                f"WHERE ended_at >= $1 AND ended_at < $2 AND {condition} ORDER BY ended_at",
                datetime.fromtimestamp(since, UTC),
                datetime.fromtimestamp(min(until, 253_402_300_799), UTC),
                *values,
                prefetch=PAGE,
            )
            async for (record,) in rows:
                yield record_of_json(record)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        try:
            if self._pool is None:
                pool = await self._asyncpg.create_pool(
                    self._url.get_secret_value(),
                    min_size=0,
                    max_size=self._connections_max,
                    timeout=TIMEOUT_S,
                    command_timeout=TIMEOUT_S,
                )
                try:
                    async with pool.acquire() as connection:
                        await _make_tables(connection)
                except BaseException:
                    pool.terminate()
                    raise
                self._pool = pool
            async with self._pool.acquire(timeout=TIMEOUT_S) as connection:
                yield connection
        except (self._asyncpg.PostgresError, self._asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"PostgreSQL did not take or give records ({type(error).__name__})") from error
        except msgspec.DecodeError as error:
            raise StoreUnavailable("PostgreSQL holds a record that this version cannot read") from error


async def _make_tables(connection: Any) -> None:
    """Make what is missing. A role that may make none is not asked to where all are there."""
    for table in TABLES:
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            await connection.execute(SCHEMA)
            return


def _seconds(position: str) -> float:
    """Return when a position of the ledger was written, in seconds since the epoch."""
    return position_order(position)[0] / 1_000


def _unreadable(page: Page) -> list[tuple[str, Unreadable]]:
    return [(position, one) for position, one in page if isinstance(one, Unreadable)]


def _row(record: UsageRecord) -> tuple[Any, ...]:
    try:
        return (*columns_of(record).values(), record_as_json(record).decode())
    except (OverflowError, ValueError, OSError) as error:
        raise UnwritableError from error
