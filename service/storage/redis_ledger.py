"""The ledger of a fleet in Redis: one script for all that changes it."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from service.config import RedisSettings, UsageSettings
from service.domain.ledger import Batch
from service.domain.usage_record import UsageRecord
from service.storage.redis import close_redis, redis_client, redis_errors, script_errors
from service.storage.usage_json import record_as_json, record_of_json

SCRIPT = files("service.storage").joinpath("ledger.lua").read_text("utf-8")
PREFIX = "{llm-api:usage}:"
"""The braces put all keys into one slot of a Redis Cluster, so that a script may touch them together."""
MAX_CONNECTIONS = 4
PAGE = 500
"""Records that are read at once."""
SCAN = 200
SKEW_S = 60.0
"""By how much a process's clock may be before the store's."""


class RedisLedgerStore:
    """Obeys :class:`service.engine.ledger_writer.LedgerStore` for all processes over one store."""

    def __init__(self, *, redis: RedisSettings, settings: UsageSettings, prefix: str = PREFIX) -> None:
        self._redis = redis
        self._settings = settings
        self.prefix = prefix
        self._keys = [f"{prefix}drafts", f"{prefix}records"]
        self._silent_since: dict[str, float] = {}
        """Of each owner, from when on nobody has heard of it, on the monotonic clock."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["RedisLedgerStore"]:
        """Give the store, over connections of its own."""
        client: Redis = redis_client(self._redis, max_connections=MAX_CONNECTIONS)
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
        return bool(await self._run("apply", batch.owner, batch.number, self._lease_ms, *self._kept, *entries))

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
        return bool(await self._run("adopt", record.id, record_as_json(record), *self._kept))

    async def read(self, since: float, until: float) -> AsyncIterator[UsageRecord]:
        """See :class:`service.engine.ledger_writer.LedgerStore`.

        What was kept elsewhere during an outage stands later among the records than it ended.
        """
        async for _, record in self.follow(f"{max(0, int((since - SKEW_S) * 1_000))}-0"):
            if record.ended_at is not None and since <= record.ended_at < until:
                yield record

    async def follow(self, after: str) -> AsyncIterator[tuple[str, UsageRecord]]:
        """Yield the records after this id of the stream, with their ids, to its present end."""
        while True:
            with redis_errors():
                page: Any = await self._client.xrange(self._keys[1], min=f"({after}", max="+", count=PAGE)
            for entry_id, fields in page:
                after = entry_id.decode()
                yield after, record_of_json(fields[b"r"])
            if len(page) < PAGE:
                return

    @property
    def _lease_ms(self) -> int:
        return int(self._settings.lease_s * 1_000)

    @property
    def _kept(self) -> tuple[int, int]:
        return int(self._settings.kept_s * 1_000), self._settings.records_max

    async def _run(self, operation: str, *arguments: Any) -> Any:
        with script_errors():
            return await self._script(keys=self._keys, args=[operation, *arguments])
