"""The ledger of a fleet in Redis: one script for all that changes it."""

import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from service.config import RedisSettings, UsageSettings
from service.domain.ledger import Batch
from service.domain.usage_page import PAGE, START, Page, Unreadable, forced_out, position_order
from service.domain.usage_record import CRASHED, UsageRecord
from service.errors import StoreUnavailable
from service.storage.redis import close_redis, redis_client, redis_errors, script_errors
from service.storage.usage_json import record_as_json, record_of_json, record_or_not
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

SCRIPT = files("service.storage").joinpath("ledger.lua").read_text("utf-8")
PREFIX = "{llm-api:usage}:"
"""The braces put all keys into one slot of a Redis Cluster, so that a script may touch them together."""
MAX_CONNECTIONS = 4
SCAN = 200
SKEW_S = 60.0
"""By how much a process's clock may be before the store's."""
TOLD_AGAIN_S = 60.0
"""After so long without a record that was forced out, the next one is told to the log."""


class RedisLedgerStore:
    """Obeys :class:`service.engine.ledger_writer.LedgerStore` for all processes over one store."""

    def __init__(
        self, *, redis: RedisSettings, settings: UsageSettings, metrics: Metrics | None = None, prefix: str = PREFIX
    ) -> None:
        """Who only reads takes no ``metrics``."""
        self._redis = redis
        self._settings = settings
        self._metrics = metrics
        self.prefix = prefix
        self._keys = [f"{prefix}drafts", f"{prefix}records"]
        self._about = f"{prefix}about"
        self._sinks = f"{prefix}sinks"
        self._id: str | None = None
        self._silent_since: dict[str, float] = {}
        """Of each owner, from when on nobody has heard of it, on the monotonic clock."""
        self._forced_at = -TOLD_AGAIN_S
        """When a record was forced out last, on the monotonic clock."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["RedisLedgerStore"]:
        """Give the store, over connections of its own."""
        client: Redis = redis_client(self._redis, metrics=self._metrics, max_connections=MAX_CONNECTIONS)
        self._client = client
        self._script: AsyncScript = client.register_script(SCRIPT)
        try:
            yield self
        finally:
            await close_redis(client)

    async def apply(self, batch: Batch) -> bool:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        entries = (
            part for entry in batch.entries for part in (entry.kind, entry.record.id, record_as_json(entry.record))
        )
        kept, lost = await self._run("apply", batch.owner, batch.number, self._lease_ms, *self._kept, *entries)
        self._tell_forced_out(lost)
        return bool(kept)

    async def beat(self, owner: str) -> None:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        await self._run("beat", owner, self._lease_ms, self._kept[0])

    async def abandoned(self) -> Sequence[UsageRecord]:
        """See :class:`service.engine.ledger_writer.LedgerStore`.

        An owner has to be silent for one lease more, in which this process has heard of the store: after an outage of
        the store, all are silent.
        """
        found: list[tuple[str, UsageRecord]] = []
        cursor: Any = b"0"
        while True:
            cursor, page = await self._run("silent", cursor, SCAN)
            for value in page:
                owner, _, record = value.partition(b"\n")
                found.append((owner.decode(), record_of_json(record)))
            if int(cursor) == 0:
                break
        now = time.monotonic()
        self._silent_since = {owner: self._silent_since.get(owner, now) for owner, _ in found}
        return [record for owner, record in found if now - self._silent_since[owner] >= self._settings.lease_s]

    async def adopt(self, record: UsageRecord) -> bool:
        """See :class:`service.engine.ledger_writer.LedgerStore`."""
        adopted, lost = await self._run("adopt", record.id, record_as_json(record), *self._kept)
        self._tell_forced_out(lost)
        return bool(adopted)

    async def read(self, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """See :class:`service.engine.ledger_writer.LedgerStore`.

        What was kept elsewhere during an outage stands later among the records than it ended. What is no record is
        passed over, and told to the log. A crash comes last, and not where the true record follows it.
        """
        unreadable = 0
        crashed: dict[str, UsageRecord] = {}
        async for record in self._follow(f"{max(0, int((since - SKEW_S) * 1_000))}-0"):
            if isinstance(record, Unreadable):
                unreadable += 1
                continue
            if record.outcome == CRASHED:
                crashed[record.id] = record
                continue
            crashed.pop(record.id, None)
            if record.ended_at is not None and since <= record.ended_at < until:
                yield record
        for record in crashed.values():
            if record.ended_at is not None and since <= record.ended_at < until:
                yield record
        if unreadable:
            logger.warning("the ledger has entries that are no records", extra={"count": unreadable})

    async def complete_since(self, until: float) -> float:
        """See :class:`service.engine.ledger_writer.LedgerStore`. Before its first record, a ledger knows nothing."""
        del until
        with redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hget(self._about, "since")
                pipe.xrange(self._keys[1], count=1)
                since, first = await pipe.execute()
        if since is not None:
            return int(since) / 1_000
        return position_order(first[0][0].decode())[0] / 1_000 if first else time.time()

    async def ledger_id(self) -> str:
        """See :class:`service.domain.usage_page.UsageLog`. Drawn once for a store, and lost with what is in it."""
        if self._id is None:
            with redis_errors():
                await self._client.hsetnx(self._about, "id", secrets.token_hex(8))
                self._id = (await self._client.hget(self._about, "id")).decode()  # type: ignore[union-attr]
        return self._id

    async def page(self, ledger_id: str, after: str) -> Page:
        """See :class:`service.domain.usage_page.UsageLog`. The id is asked in the round trip that reads.

        What was forced out in between stands as one entry that is no record.
        """
        with redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hmget(self._about, "id", "forced")
                pipe.xrange(self._keys[1], min=f"({after}", max="+", count=PAGE)
                (found, forced), entries = await pipe.execute()
        if found is None or found.decode() != ledger_id:
            self._id = None
            raise StoreUnavailable("the ledger's store is another one than before, or lost what it had")
        page = [(entry_id.decode(), _entry(fields)) for entry_id, fields in entries]
        if forced is not None and position_order(forced.decode()) > position_order(after):
            page.insert(0, (forced.decode(), forced_out(after)))
        return page[:PAGE]

    async def sink_at(self, sink: str, position: str | None) -> None:
        """See :class:`service.domain.usage_page.UsageLog`. A sink of which nobody hears for a day is forgotten."""
        with redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                if position is None:
                    pipe.hsetnx(self._sinks, sink, START)
                else:
                    pipe.hset(self._sinks, sink, position)
                pipe.hset(self._sinks, f"{sink}:at", str(int(time.time() * 1_000)))
                await pipe.execute()

    async def _follow(self, after: str) -> AsyncIterator[UsageRecord | Unreadable]:
        """Yield the entries after this id of the stream, to its present end."""
        while True:
            with redis_errors():
                page: Any = await self._client.xrange(self._keys[1], min=f"({after}", max="+", count=PAGE)
            for entry_id, fields in page:
                after = entry_id.decode()
                yield _entry(fields)
            if len(page) < PAGE:
                return

    def _tell_forced_out(self, lost: int) -> None:
        """Count what was forced out, and tell the log when that begins."""
        if not lost:
            return
        now = time.monotonic()
        if now - self._forced_at >= TOLD_AGAIN_S:
            logger.error(
                "usage.records_max forces records out of the store that are kept nowhere else: raise it",
                extra={"count": lost, "records_max": self._settings.records_max},
            )
        self._forced_at = now
        if self._metrics is not None:
            self._metrics.usage_forced_out.inc(lost)

    @property
    def _lease_ms(self) -> int:
        return int(self._settings.lease_s * 1_000)

    @property
    def _kept(self) -> tuple[int, int]:
        return int(self._settings.kept_s * 1_000), self._settings.records_max

    async def _run(self, operation: str, *arguments: Any) -> Any:
        with script_errors():
            return await self._script(keys=self._keys, args=[operation, *arguments])


def _entry(fields: Mapping[bytes, bytes]) -> UsageRecord | Unreadable:
    if b"r" not in fields:
        return Unreadable(b" ".join(part for field in fields.items() for part in field), "no record")
    return record_or_not(fields[b"r"])
