"""The logs of resumable streams of a single process: they are lost when it ends."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Self

from service.config import StreamSettings
from service.domain.clock import Clock
from service.domain.stream import FOREIGN_END, StreamEvent, StreamRecord, events_after
from service.errors import StreamNotFound

ENDED_MAX = 1_024
"""Ended streams that are kept at most; at a usual 100 KB that is 100 MB. Beyond that the oldest are forgotten."""
TRIM_EVERY = 100
"""A log is this much longer than it may be before its oldest events go, so that cutting costs little for each."""


class MemoryStreamLog:
    """Logs of one process. The running ones are kept in any case; they are as many as there are generations."""

    def __init__(self, *, settings: StreamSettings, clock: Clock, ended_max: int = ENDED_MAX) -> None:
        self._settings = settings
        self._clock = clock
        self._ended_max = ended_max
        self._running: dict[str, _Log] = {}
        self._ended: OrderedDict[str, _Log] = OrderedDict()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        """Give the log. Nothing runs in its background."""
        yield self

    async def create(self, record: StreamRecord, on_end: Callable[[bytes], object]) -> None:
        """See ``StreamLog`` in ``service.engine.stream_log``."""
        self._running[record.id] = _Log(record, on_end, self._settings.events_max)

    def append(self, stream_id: str, events: Sequence[StreamEvent]) -> None:
        """See ``StreamLog`` in ``service.engine.stream_log``."""
        log = self._running.get(stream_id)
        if log is None or not events:
            return
        log.add(events)
        if log.ended:
            self._move_to_ended(log)

    async def find(self, stream_id: str) -> StreamRecord | None:
        """See ``StreamLog`` in ``service.engine.stream_log``."""
        log = self._find(stream_id)
        return None if log is None else log.record

    @asynccontextmanager
    async def follow(self, stream_id: str, after: int) -> AsyncIterator[AsyncIterator[Sequence[StreamEvent]]]:
        """See ``StreamLog`` in ``service.engine.stream_log``."""
        log = self._find(stream_id)
        if log is None:
            raise _not_kept(stream_id)
        follower = _Follower(log, max(after, 0))
        follower.check()
        log.followers += 1
        try:
            yield follower
        finally:
            log.followers -= 1
            log.left_at = self._clock.monotonic()

    async def end(self, stream_id: str, frame: bytes) -> bool:
        """See ``StreamLog`` in ``service.engine.stream_log``."""
        log = self._running.get(stream_id)
        if log is None:
            return False
        self.append(stream_id, [StreamEvent(FOREIGN_END, frame, last=True)])
        log.on_end(frame)
        return True

    async def room(self, stream_id: str) -> None:
        """See ``StreamLog`` in ``service.engine.stream_log``; there is always room."""

    async def unfollowed_s(self, stream_id: str) -> float:
        """See ``StreamLog`` in ``service.engine.stream_log``."""
        log = self._find(stream_id)
        if log is None:
            return math.inf
        return 0.0 if log.followers else self._clock.monotonic() - log.left_at

    async def flush(self) -> None:
        """See ``StreamLog`` in ``service.engine.stream_log``; everything is kept at once."""

    def _find(self, stream_id: str) -> "_Log | None":
        self._forget_old()
        return self._running.get(stream_id) or self._ended.get(stream_id)

    def _move_to_ended(self, log: "_Log") -> None:
        log.forgotten_at = self._clock.monotonic() + self._settings.kept_s
        self._ended[log.record.id] = self._running.pop(log.record.id)
        self._forget_old()

    def _forget_old(self) -> None:
        # All are kept equally long, so the oldest stand first.
        now = self._clock.monotonic()
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if len(self._ended) <= self._ended_max and oldest.forgotten_at > now:
                return
            del self._ended[oldest.record.id]


class _Log:
    """Events in the order of their numbers, the newest of them in any case."""

    def __init__(self, record: StreamRecord, on_end: Callable[[bytes], object], events_max: int) -> None:
        self.record = record
        self.on_end = on_end
        self.followers = 0
        self.left_at = -math.inf
        """Monotonic seconds at which the last follower left."""
        self.forgotten_at = 0.0
        self.ended = False
        self.news = asyncio.Event()
        self._events_max = events_max
        self._events: list[StreamEvent] = []

    def add(self, events: Sequence[StreamEvent]) -> None:
        """Append events and tell those who wait."""
        self._events.extend(events)
        self.ended = events[-1].last
        if len(self._events) >= self._events_max + TRIM_EVERY:
            del self._events[: -self._events_max]
        self.news.set()
        self.news = asyncio.Event()

    def after(self, number: int) -> Sequence[StreamEvent]:
        """Return the events behind a number; raise ``StreamNotFound`` where one of them is gone."""
        if not self._events or number >= self._events[-1].number:
            return ()
        # The numbers of all but a foreign end are without a gap, so the place is known.
        first = self._events[0].number
        events = events_after(self._events[max(0, number - first + 1) :] or self._events[-1:], number)
        if events is None:
            raise _not_kept(self.record.id)
        return events


class _Follower:
    """Reads one log from a place in it. A cancelled wait loses nothing."""

    def __init__(self, log: _Log, after: int) -> None:
        self._log = log
        self._after = after

    def check(self) -> None:
        """Raise ``StreamNotFound`` where the next event is gone."""
        self._log.after(self._after)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[StreamEvent]:
        while not (events := self._log.after(self._after)):
            if self._log.ended:
                raise StopAsyncIteration
            await self._log.news.wait()
        self._after = events[-1].number
        return events


def _not_kept(stream_id: str) -> StreamNotFound:
    return StreamNotFound(f"events of the stream {stream_id!r} are not kept any more")
