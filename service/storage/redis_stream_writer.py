"""The owner's side of stream logs in Redis: events on their way to the store, the lease, and word from elsewhere."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.config import StreamSettings
from service.domain.stream import FOREIGN_END, StreamEvent, StreamRecord
from service.errors import StoreUnavailable
from service.storage.redis import redis_errors, repeat_with_store
from service.storage.redis_stream_entries import (
    StreamKeys,
    ended_key,
    is_behind_newest,
    lease_key,
    put_event,
    put_expiry,
    read_entries,
    stream_keys,
    weight_of,
)
from service.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

BATCH_EVENTS = 500
"""Events that are sent at once at most. To read as many answers takes about 10 ms, for which nothing else runs."""
BATCH_BYTES = 1 << 20
BATCH_EVERY_S = 0.005
"""Seconds between the beginnings of two batches: many streams share one, and a lone event waits for nothing."""
ROOM_BYTES = 512 << 10
"""What may be on its way, for each stream, before its owner waits."""
STREAM_PENDING_BYTES = 4 << 20
"""What may wait for the store, for each stream. Beyond it the log is given up."""
PENDING_BYTES = 64 << 20
"""What may wait for the store, for this process."""
TICK_S = 0.2
"""Seconds between two looks for streams that others ended; the lease is renewed with each."""
RUNNING_S = 60.0
"""A running stream is kept so much longer than ``kept_s``, counted from when its owner last said that it runs."""
REFRESH_S = 20.0
"""How often its owner says so."""
REFRESH_MAX = 250
"""Streams of which that is said in one tick."""
FLUSH_S = 2.0


@dataclass(slots=True, eq=False)
class _Owned:
    """A stream that this process generates, and what of it the store has not confirmed."""

    record: StreamRecord
    on_end: Callable[[bytes], object]
    keys: StreamKeys
    refresh_at: float
    pending: deque[StreamEvent] = field(default_factory=deque)
    pending_bytes: int = 0
    accepted: int = 0
    """How many events were ever taken."""
    settled: int = 0
    """How many of them are in the store, or will never be."""
    given_up_at: float | None = None
    gone: bool = False
    """Whether it is not owned any more."""


@dataclass(slots=True)
class _Sent:
    """The events of one stream in a batch, and what became of them."""

    owned: _Owned
    events: list[StreamEvent]
    given_up: bool
    """Whether the stream was given up before: if it is so only afterwards, the outcomes mean nothing any more."""
    outcomes: list[object] = field(default_factory=list)

    @property
    def is_stale(self) -> bool:
        return self.owned.gone or (self.owned.given_up_at is not None) != self.given_up


class StreamWriter:
    """Sends what the streams of this process append, all of it through one pipeline at a time, in order.

    A batch whose answer was lost is sent again. That is safe, since the store takes each entry once; whether a refusal
    means "have it already" or "the stream was ended by somebody else" is told by the newest entry.
    """

    def __init__(self, *, client: Redis, owner: str, settings: StreamSettings, metrics: Metrics) -> None:
        """``client`` is not shared with requests: its patience may be greater than theirs."""
        self._client = client
        self._owner = owner
        self._settings = settings
        self._metrics = metrics
        self._kept_ms = round(settings.kept_s * 1_000)
        self._lease_ms = max(1, round(settings.lease_s * 1_000))
        self._leased_at = float("-inf")
        self._streams: dict[str, _Owned] = {}
        self._owning = asyncio.Event()
        self._dirty: dict[str, _Owned] = {}
        """Those with something pending, the one that waits longest first."""
        self._has_work = asyncio.Event()
        self._progress = asyncio.Event()
        self._is_away = False
        """Whether the store did not take the last batch."""
        self._pending_bytes = 0
        self._told: list[str] = []
        """Streams of which the word was taken, and can be deleted."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def running_ms(self) -> int:
        """How long the store keeps a running stream of which nobody says any more that it runs."""
        return self._kept_ms + round(RUNNING_S * 1_000)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write in the background. On leaving, write what is left, for a bounded time, and give the lease back."""
        self._tasks = [
            self._in_background(self._write_next, "writing resumable streams", name="stream-writer"),
            self._in_background(self._tick, "owning resumable streams", name="stream-lease"),
        ]
        try:
            yield
        finally:
            with suppress(StoreUnavailable):
                await self.flush()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            with suppress(StoreUnavailable), redis_errors():
                await self._client.delete(lease_key(self._owner), ended_key(self._owner))

    async def hold_lease(self, redis: Redis) -> None:
        """See to it that others take this process for alive, before they can see a stream of it."""
        now = _now()
        if now - self._leased_at > self._settings.lease_s / 2:
            await redis.set(lease_key(self._owner), b"1", px=self._lease_ms)
            self._leased_at = now

    def own(self, record: StreamRecord, on_end: Callable[[bytes], object]) -> None:
        """Take events of this stream from now on."""
        self._streams[record.id] = _Owned(record, on_end, stream_keys(record.id), refresh_at=_now() + REFRESH_S)
        self._owning.set()

    def append(self, stream_id: str, events: Sequence[StreamEvent]) -> None:
        """Take the next events of a stream; those of one that this process does not own are dropped."""
        owned = self._streams.get(stream_id)
        if owned is None or owned.given_up_at is not None or not events:
            return
        self._add(owned, events)
        if owned.pending_bytes > STREAM_PENDING_BYTES or self._pending_bytes > PENDING_BYTES:
            self._give_up(owned)

    def ended_elsewhere(self, stream_id: str, frame: bytes) -> None:
        """Stop owning a stream, if it is owned, and tell its generation."""
        owned = self._streams.get(stream_id)
        if owned is not None:
            self._forget(owned)
            owned.on_end(frame)

    async def room(self, stream_id: str) -> None:
        """Wait while much of a stream is on its way to a store that works."""
        owned = self._streams.get(stream_id)
        while owned is not None and owned.pending_bytes > ROOM_BYTES and not owned.gone and not self._is_away:
            self._progress.clear()
            await self._progress.wait()

    async def flush(self) -> None:
        """Wait until what was taken by now is in the store; raise ``StoreUnavailable`` after ``FLUSH_S``."""
        goals = [(owned, owned.accepted) for owned in self._dirty.values()]
        try:
            async with asyncio.timeout(FLUSH_S):
                while any(owned.settled < goal for owned, goal in goals):
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            raise StoreUnavailable(f"events of streams could not be kept within {FLUSH_S:g} s") from None

    def _in_background(self, step: Callable[[], Awaitable[float]], what: str, *, name: str) -> "asyncio.Task[None]":
        work = repeat_with_store(
            step,
            what,
            on_defect=lambda _: self._metrics.unhandled_errors.labels("stream_log").inc(),
            on_away=lambda _, __: self._drop_too_old(),
        )
        return asyncio.create_task(work, name=name)

    # Events

    async def _write_next(self) -> float:
        await self._has_work.wait()
        began = _now()
        batch = list(self._take())
        pipeline = self._client.pipeline(transaction=False)
        for sent in batch:
            for event in sent.events:
                put_event(pipeline, sent.owned.keys, event, events_max=self._settings.events_max, kept_ms=self._kept_ms)
        try:
            replies: list[object] = await pipeline.execute(raise_on_error=False)
        except BaseException:
            self._is_away = True
            self._progress.set()
            raise
        self._is_away = False
        at = 0
        for sent in batch:
            for event in sent.events:
                sent.outcomes.append(replies[at])
                at += 3 if event.last else 1
        try:
            refusals = [self._judge(sent) for sent in batch]
            await self._resolve([sent for sent, refusal in zip(batch, refusals, strict=True) if _in_doubt(refusal)])
            for refusal in refusals:
                if refusal is not None and not _in_doubt(refusal):
                    raise refusal
        finally:
            self._progress.set()
        return max(0.0, began + BATCH_EVERY_S - _now())

    def _take(self) -> Iterator[_Sent]:
        room, room_bytes = BATCH_EVENTS, BATCH_BYTES
        for owned in self._dirty.values():
            events = []
            for event in islice(owned.pending, room):
                events.append(event)
                room_bytes -= len(event.frame)
                if room_bytes <= 0:
                    break
            yield _Sent(owned, events, owned.given_up_at is not None)
            room -= len(events)
            if room <= 0 or room_bytes <= 0:
                return

    def _judge(self, sent: _Sent) -> ResponseError | None:
        """Settle what is certain; return the refusal of the first event that may not be in the store."""
        if sent.is_stale:
            return None
        if None in sent.outcomes:
            logger.warning("the store lost a running stream", extra={"stream_id": sent.owned.record.id})
            self._forget(sent.owned)
            return None
        # Before one that was taken, those refused as too old are there already.
        taken = max((at for at, outcome in enumerate(sent.outcomes, 1) if isinstance(outcome, bytes)), default=0)
        if any(isinstance(it, ResponseError) and not is_behind_newest(it) for it in sent.outcomes[:taken]):
            # Out of memory for one event, and not for the next: the log has a hole now.
            self._give_up(sent.owned)
            return None
        self._settle(sent.owned, taken)
        refusal = sent.outcomes[taken] if taken < len(sent.outcomes) else None
        return refusal if isinstance(refusal, ResponseError) else None

    async def _resolve(self, doubtful: list[_Sent]) -> None:
        """Find out why events were refused as too old: an earlier attempt wrote them, or somebody ended the stream."""
        if not doubtful:
            return
        pipeline = self._client.pipeline(transaction=False)
        for sent in doubtful:
            pipeline.xrevrange(sent.owned.keys.events, count=1)
        for sent, newest in zip(doubtful, await pipeline.execute(), strict=True):
            owned = sent.owned
            if sent.is_stale or not newest:
                continue
            (event,) = read_entries(newest)
            if not event.last:
                self._settle(owned, sum(waiting.number <= event.number for waiting in owned.pending))
            elif event == owned.pending[-1]:
                self._settle(owned, len(owned.pending))
            else:
                self.ended_elsewhere(owned.record.id, event.frame)

    def _add(self, owned: _Owned, events: Sequence[StreamEvent]) -> None:
        weight = weight_of(events)
        owned.pending.extend(events)
        owned.accepted += len(events)
        owned.pending_bytes += weight
        self._pending_bytes += weight
        self._dirty.setdefault(owned.record.id, owned)
        self._has_work.set()

    def _settle(self, owned: _Owned, count: int) -> None:
        """Take the first pending events for written, and let the next stream come first."""
        events = [owned.pending.popleft() for _ in range(count)]
        weight = weight_of(events)
        owned.settled += count
        owned.pending_bytes -= weight
        self._pending_bytes -= weight
        del self._dirty[owned.record.id]
        if owned.pending:
            self._dirty[owned.record.id] = owned
        elif events and events[-1].last:
            self._forget(owned)
        if not self._dirty:
            self._has_work.clear()

    def _give_up(self, owned: _Owned) -> None:
        """End a log that cannot be whole: its readers are told so, and its owner goes on for the client it has."""
        logger.warning("a resumable stream is not kept any more", extra={"stream_id": owned.record.id})
        owned.given_up_at = _now()
        self._clear(owned)
        self._add(owned, [StreamEvent(FOREIGN_END, owned.record.interruption, last=True)])

    def _drop_too_old(self) -> None:
        """Forget logs that were given up so long ago that the store has forgotten them too."""
        horizon = _now() - self.running_ms / 1_000
        for owned in tuple(self._dirty.values()):
            if owned.given_up_at is not None and owned.given_up_at < horizon:
                self._forget(owned)

    def _forget(self, owned: _Owned) -> None:
        owned.gone = True
        del self._streams[owned.record.id]
        self._clear(owned)
        self._progress.set()
        if not self._streams:
            self._owning.clear()

    def _clear(self, owned: _Owned) -> None:
        owned.pending.clear()
        owned.settled = owned.accepted
        self._pending_bytes -= owned.pending_bytes
        owned.pending_bytes = 0
        self._dirty.pop(owned.record.id, None)
        if not self._dirty:
            self._has_work.clear()

    # The lease

    async def _tick(self) -> float:
        """Renew the lease, say of some streams that they run, and hear which ones others ended. One round trip."""
        await self._owning.wait()
        now = _now()
        pipeline = self._client.pipeline(transaction=False)
        if self._told:
            pipeline.hdel(ended_key(self._owner), *self._told)
        pipeline.set(lease_key(self._owner), b"1", px=self._lease_ms)
        refreshed = list(islice((owned for owned in self._streams.values() if owned.refresh_at <= now), REFRESH_MAX))
        for owned in refreshed:
            put_expiry(pipeline, owned.keys, self.running_ms)
        pipeline.hgetall(ended_key(self._owner))
        *_, ended = await pipeline.execute()
        self._leased_at = now
        for owned in refreshed:
            owned.refresh_at = now + REFRESH_S
        # Deleted only with the next tick, in case that an answer is lost.
        self._told = [stream_id.decode() for stream_id in ended]
        for stream_id, frame in ended.items():
            self.ended_elsewhere(stream_id.decode(), frame)
        return max(0.0, now + TICK_S - _now())


def _in_doubt(refusal: ResponseError | None) -> bool:
    return is_behind_newest(refusal)


def _now() -> float:
    return asyncio.get_running_loop().time()
