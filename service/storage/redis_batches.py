"""Batches of a fleet in Redis, beside the jobs that their lines become: the same script, the same hash tag."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from service.config import JobSettings, RedisSettings
from service.domain.batch import (
    Batch,
    BatchFile,
    BatchStatus,
    LineResult,
    file_not_found,
    too_many_batches,
)
from service.domain.idempotency import other_body
from service.domain.job import queue_full
from service.storage.redis import close_redis, redis_client, redis_errors, script_errors
from service.storage.redis_jobs import PREFIX, SCRIPT
from service.telemetry.metrics import Metrics

PATIENCE_S = 5.0
"""What each command has beyond ``redis.timeout_s``: hundreds of lines go in one."""
MAX_CONNECTIONS = 16
UPLOADING_S = 3_600.0
"""How long the lines of a file are kept whose upload does not come to an end."""
OPEN_MAX = 100
"""Batches of one caller that may be open at once."""
_ANSWER = b"S"
_FILE_GONE, _BEGUN, _OTHER_REQUEST, _TOO_MANY = range(4)
"""What the script answers to a new batch; anything else is a full queue."""
_NOT_DONE = {
    BatchStatus.COMPLETED: b'E{"code":"result_lost","detail":"the store does not have this line\'s result any more"}',
    BatchStatus.EXPIRED: b'E{"code":"batch_expired","detail":"the batch\'s window was over before this line was done"}',
    BatchStatus.CANCELLED: b'E{"code":"batch_cancelled","detail":"the batch was cancelled before this line was done"}',
}
"""What came of a line to which nothing had come when its batch ended."""


class RedisBatchStore:
    """Obeys :class:`service.engine.batches.BatchStore` for all processes over one store."""

    def __init__(
        self, *, redis: RedisSettings, settings: JobSettings, metrics: Metrics | None = None, prefix: str = PREFIX
    ) -> None:
        self._settings = redis
        self._metrics = metrics
        self._queue_max = settings.queue_max
        self._kept_ms = _ms(settings.result_ttl_s)
        self._prefix = prefix
        self._client: Redis | None = None
        self._script: AsyncScript | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["RedisBatchStore"]:
        """Give the store, over connections of its own."""
        client = redis_client(
            self._settings, metrics=self._metrics, patience_s=PATIENCE_S, max_connections=MAX_CONNECTIONS
        )
        self._client = client
        self._script = client.register_script(SCRIPT)
        try:
            yield self
        finally:
            await close_redis(client)

    async def add_lines(self, file_id: str, first: int, lines: Sequence[bytes]) -> None:
        """See :class:`service.engine.batches.BatchStore`."""
        key = self._key("lines", file_id)
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hset(key, mapping={str(first + at): line for at, line in enumerate(lines)})
            pipeline.pexpire(key, _ms(UPLOADING_S))
            await pipeline.execute()

    async def keep_file(self, file: BatchFile) -> BatchFile:
        """See :class:`service.engine.batches.BatchStore`."""
        key = self._key("file", file.id)
        with redis_errors():
            seconds, microseconds = await self._redis.time()
            created_ms = seconds * 1_000 + microseconds // 1_000
            fields = {
                "principal": file.principal,
                "filename": file.filename,
                "size": file.size_bytes,
                "lines": file.lines,
                "created": created_ms,
                "kept": created_ms + self._kept_ms,
            }
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hset(key, mapping=fields)
            pipeline.pexpire(key, self._kept_ms)
            pipeline.pexpire(self._key("lines", file.id), self._kept_ms)
            await pipeline.execute()
        kept = await self.file(file.id)
        if kept is None:
            raise AssertionError("a file that was just kept is there")
        return kept

    async def drop_file(self, file_id: str) -> None:
        """See :class:`service.engine.batches.BatchStore`."""
        await self._run("file-drop", file_id)

    async def file(self, file_id: str) -> BatchFile | None:
        """See :class:`service.engine.batches.BatchStore`."""
        with redis_errors():
            fields = await self._redis.hgetall(self._key("file", file_id))
        if not fields:
            return None
        return BatchFile(
            id=file_id,
            principal=fields[b"principal"].decode(),
            filename=fields[b"filename"].decode(),
            size_bytes=int(fields[b"size"]),
            lines=int(fields[b"lines"]),
            created_at=int(fields[b"created"]) / 1_000,
            expires_at=int(fields[b"kept"]) / 1_000,
        )

    async def lines(self, file_id: str, first: int, count: int) -> Sequence[bytes]:
        """See :class:`service.engine.batches.BatchStore`."""
        with redis_errors():
            found = await self._redis.hmget(self._key("lines", file_id), [str(first + at) for at in range(count)])
        return [line or b"" for line in found]

    async def begin(self, batch: Batch) -> Batch:
        """See :class:`service.engine.batches.BatchStore`."""
        answer, *fields = await self._run(
            "batch",
            batch.id,
            batch.principal,
            batch.weight,
            batch.file_id,
            batch.endpoint,
            batch.total,
            _ms(batch.window_s),
            orjson.dumps(dict(batch.metadata)),
            batch.fingerprint,
            OPEN_MAX,
            self._queue_max,
            batch.traceparent or "",
        )
        if answer == _BEGUN:
            return _batch(batch.id, fields[0])
        if answer == _FILE_GONE:
            raise file_not_found(batch.file_id)
        if answer == _OTHER_REQUEST:
            raise other_body()
        raise too_many_batches(OPEN_MAX) if answer == _TOO_MANY else queue_full(self._queue_max)

    async def batch(self, batch_id: str) -> Batch | None:
        """See :class:`service.engine.batches.BatchStore`."""
        with redis_errors():
            fields = await self._redis.hgetall(self._key("batch", batch_id))
        return _batch(batch_id, [part for pair in fields.items() for part in pair]) if fields else None

    async def cancel(self, batch_id: str) -> Batch | None:
        """See :class:`service.engine.batches.BatchStore`."""
        fields = await self._run("batch-cancel", batch_id, self._kept_ms)
        return _batch(batch_id, fields) if fields else None

    async def of(self, principal: str) -> Sequence[Batch]:
        """See :class:`service.engine.batches.BatchStore`."""
        key = self._key("batches", principal)
        with redis_errors():
            ids = [batch_id.decode() for batch_id in await self._redis.zrevrange(key, 0, -1)]
        found = [(batch_id, await self.batch(batch_id)) for batch_id in ids]
        forgotten = [batch_id for batch_id, batch in found if batch is None]
        if forgotten:
            with redis_errors():
                await self._redis.zrem(key, *forgotten)
        return [batch for _, batch in found if batch is not None]

    async def results(self, batch: Batch, first: int, count: int) -> Sequence[LineResult]:
        """See :class:`service.engine.batches.BatchStore`."""
        numbers = [str(first + at) for at in range(count)]
        with redis_errors():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hmget(self._key("lines", batch.file_id), numbers)
            pipeline.hmget(self._key("results", batch.id), numbers)
            lines, results = await pipeline.execute()
        not_done = _NOT_DONE.get(batch.status)
        return [
            LineResult(
                number=first + at,
                request=line or b"{}",
                answer=result[1:] if result.startswith(_ANSWER) else None,
                error=None if result.startswith(_ANSWER) else result[1:],
            )
            for at, (line, result) in enumerate(zip(lines, (result or not_done for result in results), strict=True))
            if result is not None
        ]

    @property
    def _redis(self) -> Any:  # the library's types allow text where only bytes come
        if self._client is None:
            raise AssertionError("the store is not opened")
        return self._client

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)

    async def _run(self, command: str, *arguments: Any) -> Any:
        if self._script is None:
            raise AssertionError("the store is not opened")
        with script_errors():
            return await self._script(keys=[self._prefix], args=[command, *arguments])


def _batch(batch_id: str, pairs: Sequence[bytes]) -> Batch:
    fields = dict(zip((name.decode() for name in pairs[::2]), pairs[1::2], strict=True))
    created_ms, window_ms = int(fields["created"]), int(fields["window"])
    return Batch(
        id=batch_id,
        principal=fields["principal"].decode(),
        endpoint=fields["endpoint"].decode(),
        file_id=fields["file"].decode(),
        window_s=window_ms / 1_000,
        weight=float(fields["weight"]),
        metadata=orjson.loads(fields["metadata"]),
        fingerprint=fields["fingerprint"].decode(),
        status=BatchStatus(fields["status"].decode()),
        total=int(fields["total"]),
        completed=int(fields["completed"]),
        failed=int(fields["failed"]),
        created_at=created_ms / 1_000,
        finished_at=int(fields["finished"]) / 1_000 if "finished" in fields else None,
        expires_at=(created_ms + window_ms) / 1_000,
        kept_until=int(fields["kept"]) / 1_000 if "kept" in fields else None,
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
