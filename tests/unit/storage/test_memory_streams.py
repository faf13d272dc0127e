"""What only the memory of one process has: a clock of ours, and a bound."""

import asyncio

import pytest

from service.config import StreamSettings
from service.domain.clock import ManualClock
from service.domain.stream import FOREIGN_END, StreamEvent
from service.errors import StreamNotFound
from service.storage.memory_streams import MemoryStreamLog
from tests.support.stream_logs import CANCELLATION, begin, event, read, take


async def test_ended_stream_is_kept_for_its_time_and_not_longer() -> None:
    clock = ManualClock()
    log = MemoryStreamLog(settings=StreamSettings(kept_s=300), clock=clock)
    stream = await begin(log)
    events = stream.write(2, last=True)
    clock.advance(299.999)
    assert await read(log, stream.id) == events
    clock.advance(0.001)
    assert await log.find(stream.id) is None
    assert not await log.end(stream.id, CANCELLATION)
    with pytest.raises(StreamNotFound):
        await read(log, stream.id)


async def test_running_stream_is_kept_however_long_it_takes() -> None:
    clock = ManualClock()
    log = MemoryStreamLog(settings=StreamSettings(kept_s=300), clock=clock)
    stream = await begin(log)
    events = stream.write(1)
    clock.advance(1_000_000)
    events += stream.write(1, last=True)
    assert await read(log, stream.id) == events


async def test_of_many_ended_streams_the_oldest_are_forgotten() -> None:
    log = MemoryStreamLog(settings=StreamSettings(), clock=ManualClock(), ended_max=3)
    streams = [await begin(log) for _ in range(6)]
    for stream in reversed(streams[:5]):
        stream.write(1, last=True)
    assert [await log.find(stream.id) is not None for stream in streams] == [True, True, True, False, False, True]


async def test_who_reads_a_stream_that_is_forgotten_meanwhile_reads_on() -> None:
    log = MemoryStreamLog(settings=StreamSettings(), clock=ManualClock(), ended_max=0)
    stream = await begin(log)
    async with log.follow(stream.id, 0) as batches:
        events = stream.write(2, last=True)
        assert await log.find(stream.id) is None
        assert await take(batches, 2) == events


async def test_owner_is_told_at_once_who_ended_its_stream() -> None:
    log = MemoryStreamLog(settings=StreamSettings(), clock=ManualClock())
    stream = await begin(log)
    stream.write(1)
    assert await log.end(stream.id, CANCELLATION)
    assert stream.ends == [CANCELLATION]
    assert await read(log, stream.id) == [event(1), StreamEvent(FOREIGN_END, CANCELLATION, last=True)]


async def test_log_holds_little_more_than_it_may_keep() -> None:
    log = MemoryStreamLog(settings=StreamSettings(events_max=10), clock=ManualClock())
    stream = await begin(log)
    for _ in range(1_000):
        stream.write(1)
        assert len(log._running[stream.id]._events) <= 110


async def test_stream_is_followed_until_the_last_follower_leaves() -> None:
    clock = ManualClock()
    log = MemoryStreamLog(settings=StreamSettings(), clock=clock)
    stream = await begin(log)
    async with log.follow(stream.id, 0):
        async with log.follow(stream.id, 0):
            pass
        clock.advance(5)
        assert await log.unfollowed_s(stream.id) == 0
    clock.advance(7)
    assert await log.unfollowed_s(stream.id) == 7


async def test_all_who_wait_are_woken_by_one_event() -> None:
    log = MemoryStreamLog(settings=StreamSettings(), clock=ManualClock())
    stream = await begin(log)
    readers = [asyncio.create_task(read(log, stream.id)) for _ in range(50)]
    await asyncio.sleep(0)
    events = stream.write(1, last=True)
    assert await asyncio.gather(*readers) == [events] * 50
