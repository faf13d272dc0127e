"""The readers' side of stream logs in Redis: one blocking read for all streams that this process follows."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from redis.asyncio import Redis

from service.config import StreamSettings
from service.domain.stream import StreamEvent, events_after
from service.errors import ServiceError, StoreUnavailable, StreamNotFound
from service.storage.redis import repeat_with_store
from service.storage.redis_stream_entries import (
    StreamEnd,
    StreamKeys,
    lease_key,
    read_entries,
    weight_of,
    write_ends,
)
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

BLOCK_S = 0.1
"""How long one read waits for news, and a new follower at most until it takes part."""
ROUND_S = 0.01
"""Seconds between the beginnings of two reads that bring news: what came in between costs one."""
ROUND_EVENTS = 1_000
"""Events in one read, about, all streams together."""
STREAM_EVENTS_MIN, STREAM_EVENTS_MAX = 4, 200
UNREAD_BYTES = 256 << 10
"""What may wait for a follower; with more its stream is not read for it until it has taken some."""
MARK_EVERY_S = 3.0
"""How often that is said again, and looked whether the store still has the stream."""
QUIET_S = 1.0
"""Of a stream that has been silent for so long it is asked whether its owner lives."""
CHECK_EVERY_S = 0.5
ABSENT_S = 1.0
"""An owner without a lease gets so long to renew it. After an outage the leases of all have run out, and live owners
come back within two ticks and a back-off."""
AWAY_MAX_S = 10.0
"""Followers wait for a store that is away for so long."""


class Follower:
    """Gives the events of one stream, in order and once each. A cancelled wait loses nothing."""

    def __init__(self, stream_id: str, after: int, tail: "StreamTail") -> None:
        self.position = after
        """The number of the newest event that was given to it, read or not."""
        self.ended = False
        self._stream_id = stream_id
        self._tail = tail
        self._error: ServiceError | None = None
        self._unread: deque[Sequence[StreamEvent]] = deque()
        self._unread_bytes = 0
        self._arrived = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether more may be given to it now."""
        return self._unread_bytes < UNREAD_BYTES

    def offer(self, events: Sequence[StreamEvent], start: int) -> None:
        """Give it what the log has behind ``start``, without a gap as far as the store knows."""
        if self.ended or not events or self.position < start:
            # It came after this read had begun; the next one begins where it stands.
            return
        fresh = events_after(events, self.position)
        if fresh is None:
            self.fail(StreamNotFound(f"events of the stream {self._stream_id!r} are not kept any more"))
            return
        if fresh:
            self.position = fresh[-1].number
            self._unread.append(fresh)
            self._unread_bytes += weight_of(fresh)
        if fresh or events[-1].last:
            self.ended = events[-1].last
            self._arrived.set()

    def fail(self, error: ServiceError) -> None:
        """Raise this behind what is unread."""
        if not self.ended:
            self.ended = True
            self._error = error
            self._arrived.set()

    def raise_failure(self) -> None:
        """Raise what reading failed with, if it did."""
        if self._error is not None:
            raise self._error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        while not self._unread:
            if self.ended:
                self.raise_failure()
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        events = self._unread.popleft()
        had_room = self.has_room
        self._unread_bytes -= weight_of(events)
        if not had_room and self.has_room:
            self._tail.wake()
        return events


@dataclass(slots=True, eq=False)
class _Followed:
    """One stream, and who follows it here."""

    stream_id: str
    keys: StreamKeys
    owner: str
    interruption: bytes
    news_at: float
    marked_at: float
    followers: set[Follower] = field(default_factory=set)
    is_over: bool = False
    """Whether its log is known to have ended."""


class StreamTail:
    """Reads all followed streams with one connection, and ends those whose owner is gone.

    What it costs grows with events and reads, not with followers.
    """

    def __init__(self, *, client: Redis, settings: StreamSettings, metrics: Metrics) -> None:
        """``client`` needs a patience greater than ``BLOCK_S``, and one connection."""
        self._client = client
        self._metrics = metrics
        self.followed_ms = round((settings.orphan_s + 2 * MARK_EVERY_S) * 1_000)
        """How long the mark of a follower stays, from which its age is known."""
        self._kept_ms = round(settings.kept_s * 1_000)
        self._streams: dict[bytes, _Followed] = {}
        """By the key of their events."""
        self._changed = asyncio.Event()
        self._absent_since: dict[str, float] = {}
        self._check_at = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read in the background. On leaving, followers that are left get ``StoreUnavailable``."""
        reading = repeat_with_store(
            self._read_once, "following resumable streams", on_defect=self._defect, on_away=self._away
        )
        task = asyncio.create_task(reading, name="stream-tail")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._fail(self._streams.values(), StoreUnavailable("this process is closing"))

    @asynccontextmanager
    async def joined(
        self, follower: Follower, stream_id: str, keys: StreamKeys, *, owner: str, interruption: bytes
    ) -> AsyncIterator[None]:
        """Give a follower what comes, until the block or the stream ends. It takes part after ``BLOCK_S`` at most."""
        now = _now()
        stream = self._streams.setdefault(
            keys.events,
            # Taken for quiet, so that an owner that is gone already is noticed at once.
            _Followed(stream_id, keys, owner, interruption, news_at=now - QUIET_S, marked_at=now),
        )
        stream.followers.add(follower)
        self._check_at = 0.0
        self.wake()
        try:
            yield
        finally:
            self._leave(stream, follower)

    def wake(self) -> None:
        """Look again at who can be read for."""
        self._changed.set()

    def _away(self, error: StoreUnavailable, away_s: float) -> None:
        # Nobody could renew a lease in this time.
        self._absent_since.clear()
        if away_s > AWAY_MAX_S:
            self._fail(self._streams.values(), error)

    def _defect(self, defect: Exception) -> None:
        """Tell the readers; later ones are served."""
        self._metrics.unhandled_errors.labels("stream_log").inc()
        self._fail(self._streams.values(), StoreUnavailable(f"reading failed ({type(defect).__name__})"))

    async def _read_once(self) -> float:
        """Read what is new, and look after owners; return how long to wait until the next time."""
        began = _now()
        if self._streams and began >= self._check_at:
            await self._check(began)
            self._check_at = began + CHECK_EVERY_S
        starts = {
            key: min(follower.position for follower in stream.followers if follower.has_room)
            for key, stream in self._streams.items()
            if any(follower.has_room for follower in stream.followers)
        }
        if not starts:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_EVERY_S if self._streams else None):
                    await self._changed.wait()
            self._changed.clear()
            return 0.0
        count = min(max(ROUND_EVENTS // len(starts), STREAM_EVENTS_MIN), STREAM_EVENTS_MAX)
        answer: Any = await self._client.xread(
            {key: b"0-%d" % start for key, start in starts.items()}, count=count, block=round(BLOCK_S * 1_000)
        )
        is_full = False
        for key, entries in answer:
            is_full |= len(entries) == count
            stream = self._streams.get(key)
            if stream is not None:
                self._hand_out(stream, read_entries(entries), starts[key])
        return 0.0 if is_full else max(0.0, began + ROUND_S - _now())

    def _hand_out(self, stream: _Followed, events: list[StreamEvent], start: int) -> None:
        stream.news_at = _now()
        for follower in tuple(stream.followers):
            if follower.has_room:
                follower.offer(events, start)
                if follower.ended:
                    self._leave(stream, follower)

    async def _check(self, now: float) -> None:
        """Mark streams as followed, and see whether what is silent can still speak."""
        marked = [stream for stream in self._streams.values() if stream.marked_at <= now - MARK_EVERY_S]
        owners = {stream.owner for stream in self._streams.values() if stream.news_at <= now - QUIET_S}
        self._absent_since = {owner: since for owner, since in self._absent_since.items() if owner in owners}
        if not marked and not owners:
            return
        pipeline = self._client.pipeline(transaction=False)
        for stream in marked:
            pipeline.set(stream.keys.followed, b"1", px=self.followed_ms)
        for stream in marked:
            pipeline.exists(stream.keys.events)
        for owner in owners:
            pipeline.exists(lease_key(owner))
        replies = (await pipeline.execute())[len(marked) :]
        for stream, is_kept in zip(marked, replies, strict=False):
            stream.marked_at = now
            if not is_kept:
                lost = StreamNotFound(f"the stream {stream.stream_id!r} is not kept any more")
                self._fail([stream], lost)
        for owner, is_alive in zip(owners, replies[len(marked) :], strict=True):
            if is_alive:
                self._absent_since.pop(owner, None)
            else:
                self._absent_since.setdefault(owner, now)
        await self._end_orphaned({owner for owner, since in self._absent_since.items() if now - since >= ABSENT_S})

    async def _end_orphaned(self, gone: set[str]) -> None:
        """End the streams of owners that are gone, for everybody."""
        ends = [
            StreamEnd(stream.stream_id, stream.owner, stream.interruption)
            for stream in self._streams.values()
            if stream.owner in gone and not stream.is_over
        ]
        if not ends:
            return
        # Those that had ended are being read to their end; all others end by what is written now.
        written = await write_ends(self._client, ends, kept_ms=self._kept_ms)
        for stream in self._streams.values():
            stream.is_over |= stream.owner in gone
        if any(written):
            owners = {end.owner for end, is_new in zip(ends, written, strict=True) if is_new}
            logger.warning(
                "owner of resumable streams is gone", extra={"owners": sorted(owners), "streams": sum(written)}
            )

    def _fail(self, streams: Iterable[_Followed], error: ServiceError) -> None:
        for stream in tuple(streams):
            for follower in tuple(stream.followers):
                follower.fail(error)
                self._leave(stream, follower)

    def _leave(self, stream: _Followed, follower: Follower) -> None:
        stream.followers.discard(follower)
        if not stream.followers and self._streams.get(stream.keys.events) is stream:
            del self._streams[stream.keys.events]


def _now() -> float:
    return asyncio.get_running_loop().time()
