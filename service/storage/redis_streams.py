"""The logs of resumable streams of a fleet, in Redis: any process reads what any other writes."""

import math
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

from redis.asyncio import Redis
from redis.typing import EncodableT, FieldT

from service.config import RedisSettings, StreamSettings
from service.domain.stream import FOREIGN_END, StreamEvent, StreamRecord
from service.errors import StreamNotFound
from service.storage.redis import close_redis, redis_client, redis_errors
from service.storage.redis_stream_entries import (
    GROUP,
    StreamEnd,
    read_entries,
    stream_keys,
    write_ends,
)
from service.storage.redis_stream_tail import BLOCK_S, MARK_EVERY_S, Follower, StreamTail
from service.storage.redis_stream_writer import StreamWriter
from service.telemetry.metrics import Metrics

PATIENCE_S = 1.0
"""How much longer than a request's a command in the background may take: nobody waits for it, a batch is work for both
sides, and an event loop that is busy must not look like a store that is away. A lease must outlive it."""
FIRST_PAGE = 100
"""Events that a new follower gets with the first answer, which has to fit in a request's timeout; the rest is read as
what comes is."""


class RedisStreamLog:
    """See ``StreamLog`` in ``service.engine.stream_log``; one for each process, which it gives an id of its own.

    Requests use ``redis``. What works in the background has three connections of its own.
    """

    def __init__(
        self, *, redis: Redis, redis_settings: RedisSettings, settings: StreamSettings, metrics: Metrics
    ) -> None:
        self.owner = secrets.token_urlsafe(12)
        """What this process is called in the store."""
        self._redis = redis
        self._kept_ms = round(settings.kept_s * 1_000)
        patience_s = min(PATIENCE_S, settings.lease_s / 3)
        self._write_client = redis_client(redis_settings, metrics=metrics, patience_s=patience_s, max_connections=2)
        self._read_client = redis_client(
            redis_settings, metrics=metrics, patience_s=BLOCK_S + patience_s, max_connections=1
        )
        self._writer = StreamWriter(client=self._write_client, owner=self.owner, settings=settings, metrics=metrics)
        self._tail = StreamTail(client=self._read_client, settings=settings, metrics=metrics)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Write and read in the background. On leaving, what was appended is written, for a bounded time."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(close_redis, self._write_client)
            stack.push_async_callback(close_redis, self._read_client)
            await stack.enter_async_context(self._writer.running())
            await stack.enter_async_context(self._tail.running())
            yield self

    async def create(self, record: StreamRecord, on_end: Callable[[bytes], object]) -> None:
        """See ``StreamLog``. One round trip, and another for the first stream in a while."""
        keys = stream_keys(record.id)
        # In a transaction, so that nothing is left behind without an end to its time.
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hset(keys.meta, mapping=self._written(record))
        pipeline.xgroup_create(keys.events, GROUP, mkstream=True)
        pipeline.pexpire(keys.meta, self._writer.running_ms)
        pipeline.pexpire(keys.events, self._writer.running_ms)
        with redis_errors():
            await self._writer.hold_lease(self._redis)
            await pipeline.execute()
        self._writer.own(record, on_end)

    def append(self, stream_id: str, events: Sequence[StreamEvent]) -> None:
        """See ``StreamLog``."""
        self._writer.append(stream_id, events)

    async def find(self, stream_id: str) -> StreamRecord | None:
        """See ``StreamLog``. One round trip."""
        with redis_errors():
            fields: Any = await self._redis.hgetall(stream_keys(stream_id).meta)
        return _read(stream_id, fields) if fields else None

    @asynccontextmanager
    async def follow(self, stream_id: str, after: int) -> AsyncIterator[AsyncIterator[Sequence[StreamEvent]]]:
        """See ``StreamLog``. Entering costs two round trips."""
        after = min(max(after, 0), FOREIGN_END)
        keys = stream_keys(stream_id)
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.xrange(keys.events, min=b"(0-%d" % after, count=FIRST_PAGE)
        pipeline.exists(keys.events)
        pipeline.hmget(keys.meta, [b"owner", b"interruption"])
        with redis_errors():
            page, is_kept, (owner, interruption) = await pipeline.execute()
        if not is_kept or owner is None:
            raise StreamNotFound(f"the stream {stream_id!r} is not kept any more")
        follower = Follower(stream_id, after, self._tail)
        follower.offer(read_entries(page), after)
        follower.raise_failure()
        if follower.ended:
            yield follower
            return
        with redis_errors():
            await self._redis.set(keys.followed, b"1", px=self._tail.followed_ms)
        async with self._tail.joined(follower, stream_id, keys, owner=owner.decode(), interruption=interruption):
            yield follower

    async def end(self, stream_id: str, frame: bytes) -> bool:
        """See ``StreamLog``. Three round trips."""
        with redis_errors():
            owner: Any = await self._redis.hget(stream_keys(stream_id).meta, "owner")
            if owner is None:
                return False
            (ended,) = await write_ends(
                self._redis, [StreamEnd(stream_id, owner.decode(), frame)], kept_ms=self._kept_ms
            )
        if ended:
            self._writer.ended_elsewhere(stream_id, frame)
        return ended

    async def room(self, stream_id: str) -> None:
        """See ``StreamLog``."""
        await self._writer.room(stream_id)

    async def unfollowed_s(self, stream_id: str) -> float:
        """See ``StreamLog``. One round trip."""
        with redis_errors():
            left_ms: int = await self._redis.pttl(stream_keys(stream_id).followed)
        if left_ms < 0:
            return math.inf
        return max(0.0, (self._tail.followed_ms - left_ms) / 1_000 - MARK_EVERY_S)

    async def flush(self) -> None:
        """See ``StreamLog``."""
        await self._writer.flush()

    def _written(self, record: StreamRecord) -> dict[FieldT, EncodableT]:
        fields: dict[FieldT, EncodableT] = {
            "principal": record.principal,
            "request_id": record.request_id,
            "interruption": record.interruption,
            "cancellation": record.cancellation,
            "owner": self.owner,
        }
        if record.ticket_digest is not None:
            fields["ticket_digest"] = record.ticket_digest
        if record.key_digest is not None:
            fields["key_digest"] = record.key_digest
        return fields


def _read(stream_id: str, fields: dict[bytes, bytes]) -> StreamRecord:
    digest = fields.get(b"ticket_digest")
    return StreamRecord(
        id=stream_id,
        principal=fields[b"principal"].decode(),
        request_id=fields[b"request_id"].decode(),
        interruption=fields[b"interruption"],
        cancellation=fields[b"cancellation"],
        ticket_digest=None if digest is None else digest.decode(),
        key_digest=fields.get(b"key_digest"),
    )
