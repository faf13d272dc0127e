"""What every stream log does: in memory, on a real server, and there between two processes."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.config import StreamSettings
from service.domain.clock import SystemClock
from service.domain.stream import FOREIGN_END, StreamEvent
from service.engine.stream_log import StreamLog
from service.errors import StreamNotFound
from service.storage.memory_streams import MemoryStreamLog
from tests.support.stream_logs import CANCELLATION, DEADLINE_S, begin, event, open_redis_log, read, take

EVENTS_MAX = 100


class Logs(NamedTuple):
    """The log of a process that owns streams, and the one of a process that reads and ends them."""

    owner: StreamLog
    reader: StreamLog


@asynccontextmanager
async def open_logs(kind: str, redis_url: str, events_max: int = 20_000) -> AsyncIterator[Logs]:
    streams = StreamSettings(events_max=events_max)
    async with AsyncExitStack() as stack:
        if kind == "memory":
            log = await stack.enter_async_context(MemoryStreamLog(settings=streams, clock=SystemClock()).opened())
            yield Logs(log, log)
            return
        owner = await stack.enter_async_context(open_redis_log(redis_url, streams=streams))
        if kind == "redis":
            yield Logs(owner, owner)
            return
        yield Logs(owner, await stack.enter_async_context(open_redis_log(redis_url, streams=streams)))


KINDS = ["memory", "redis", "redis-two-processes"]


@pytest.fixture(params=KINDS)
async def logs(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Logs]:
    async with open_logs(request.param, redis_url) as opened:
        yield opened


@pytest.fixture(params=KINDS)
async def short_logs(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Logs]:
    """Logs that keep ``EVENTS_MAX`` events."""
    async with open_logs(request.param, redis_url, EVENTS_MAX) as opened:
        yield opened


async def test_record_is_found_as_it_was_written(logs: Logs) -> None:
    for digest, key in ((None, None), ("ab" * 32, bytes(range(32)))):
        stream = await begin(logs.owner, ticket_digest=digest, key_digest=key)
        assert await logs.reader.find(stream.id) == stream.record


@pytest.mark.parametrize("stream_id", ["", "str_unknown", "*", "}{\r\n", "\ud800", "x" * 10_000])
async def test_stream_that_never_was_is_not_found(logs: Logs, stream_id: str) -> None:
    assert await logs.reader.find(stream_id) is None
    assert not await logs.reader.end(stream_id, CANCELLATION)
    assert await logs.reader.unfollowed_s(stream_id) == math.inf
    with pytest.raises(StreamNotFound):
        async with logs.reader.follow(stream_id, 0):
            pass


async def test_ended_stream_is_read_from_any_place(logs: Logs) -> None:
    stream = await begin(logs.owner)
    events = stream.write(250, last=True)
    await logs.owner.flush()
    assert await read(logs.reader, stream.id) == events
    for after in (-1, 0, 1, 99, 100, 101, 249):
        assert await read(logs.reader, stream.id, after) == events[max(after, 0) :]


@pytest.mark.parametrize("after", [3, 4, 1_000, FOREIGN_END, 10**30])
async def test_who_has_seen_the_end_gets_nothing_more(logs: Logs, after: int) -> None:
    stream = await begin(logs.owner)
    stream.write(3, last=True)
    await logs.owner.flush()
    assert await read(logs.reader, stream.id, after) == []


async def test_follower_gets_what_comes_and_is_told_the_end(logs: Logs) -> None:
    stream = await begin(logs.owner)
    events = stream.write(2)
    await logs.owner.flush()
    async with logs.reader.follow(stream.id, 0) as batches:
        got = await take(batches, 2)
        for _ in range(20):
            events += stream.write(3)
            got += await take(batches, 3)
        events += stream.write(1, last=True)
        got += await take(batches, 1)
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
    assert got == events


async def test_stream_without_an_event_yet_can_be_followed_and_ended(logs: Logs) -> None:
    stream = await begin(logs.owner)
    async with logs.reader.follow(stream.id, 0) as batches:
        assert await logs.reader.end(stream.id, CANCELLATION)
        assert await take(batches, 1) == [StreamEvent(FOREIGN_END, CANCELLATION, last=True)]


async def test_terminal_event_may_be_empty(logs: Logs) -> None:
    stream = await begin(logs.owner)
    events = [event(1), StreamEvent(2, b"", last=True)]
    logs.owner.append(stream.id, events)
    await logs.owner.flush()
    assert await read(logs.reader, stream.id) == events


async def test_frames_of_any_bytes_come_back_as_they_were(logs: Logs) -> None:
    stream = await begin(logs.owner)
    events = [StreamEvent(1, bytes(range(256)) * 4), StreamEvent(2, b"x" * 200_000), StreamEvent(3, b"\r\n", last=True)]
    logs.owner.append(stream.id, events)
    await logs.owner.flush()
    assert await read(logs.reader, stream.id) == events


async def test_follower_that_is_ahead_of_the_log_gets_only_what_it_lacks(logs: Logs) -> None:
    stream = await begin(logs.owner)
    stream.write(2)
    await logs.owner.flush()
    async with logs.reader.follow(stream.id, 5) as batches:
        stream.write(3)
        events = stream.write(2)
        assert await take(batches, 2) == events


async def test_followers_at_different_places_do_not_disturb_each_other(logs: Logs) -> None:
    stream = await begin(logs.owner)
    events = stream.write(150)
    await logs.owner.flush()
    readers = [asyncio.create_task(read(logs.reader, stream.id, after)) for after in (0, 0, 75, 149, 150, 160)]
    for _ in range(50):
        events += stream.write(1)
        await asyncio.sleep(0)
    events += stream.write(1, last=True)
    got = await asyncio.gather(*readers)
    assert got == [events[after:] for after in (0, 0, 75, 149, 150, 160)]


async def test_cancelled_wait_loses_no_event(logs: Logs) -> None:
    stream = await begin(logs.owner)
    events: list[StreamEvent] = []
    got: list[StreamEvent] = []
    async with asyncio.timeout(DEADLINE_S), logs.reader.follow(stream.id, 0) as batches:
        for number in range(30):
            events += stream.write(1, last=number == 29)
            try:
                async with asyncio.timeout(0):
                    got += await anext(batches)
            except TimeoutError:
                pass
        async for batch in batches:
            got += batch
    assert got == events


async def test_stream_is_followed_as_long_as_somebody_reads_it(logs: Logs) -> None:
    stream = await begin(logs.owner)
    assert await logs.owner.unfollowed_s(stream.id) == math.inf
    async with logs.reader.follow(stream.id, 0):
        assert await logs.owner.unfollowed_s(stream.id) == 0
    assert await logs.owner.unfollowed_s(stream.id) < 5


async def test_stream_ends_once_whoever_ends_it(logs: Logs) -> None:
    stream = await begin(logs.owner)
    events = stream.write(3)
    await logs.owner.flush()
    ended = await asyncio.gather(*(logs.reader.end(stream.id, CANCELLATION) for _ in range(5)))
    assert sorted(ended) == [False] * 4 + [True]
    async with asyncio.timeout(DEADLINE_S):
        await stream.told.wait()
    assert stream.ends == [CANCELLATION]
    assert await read(logs.reader, stream.id) == [*events, StreamEvent(FOREIGN_END, CANCELLATION, last=True)]


async def test_nothing_comes_behind_an_end_from_elsewhere(logs: Logs) -> None:
    stream = await begin(logs.owner)
    events = stream.write(3)
    await logs.owner.flush()
    assert await logs.reader.end(stream.id, CANCELLATION)
    stream.write(5)
    stream.write(1, last=True)
    await logs.owner.flush()
    async with asyncio.timeout(DEADLINE_S):
        await stream.told.wait()
    assert stream.ends == [CANCELLATION]
    assert await read(logs.reader, stream.id) == [*events, StreamEvent(FOREIGN_END, CANCELLATION, last=True)]


async def test_what_its_owner_ended_cannot_be_ended_again(logs: Logs) -> None:
    stream = await begin(logs.owner)
    events = stream.write(3, last=True)
    await logs.owner.flush()
    assert not await logs.reader.end(stream.id, CANCELLATION)
    stream.write(1)
    assert await read(logs.reader, stream.id) == events
    assert stream.ends == []


@pytest.mark.parametrize("after", [0, 2, 3, 4, 500])
async def test_foreign_end_reaches_those_too_who_were_told_more_than_the_log_has(logs: Logs, after: int) -> None:
    stream = await begin(logs.owner)
    events = stream.write(3)
    await logs.owner.flush()
    await logs.reader.end(stream.id, CANCELLATION)
    end = StreamEvent(FOREIGN_END, CANCELLATION, last=True)
    assert await read(logs.reader, stream.id, after) == [*events[after:], end]
    assert await read(logs.reader, stream.id, FOREIGN_END) == []


async def test_long_stream_keeps_its_newest_events_and_admits_that_others_are_gone(short_logs: Logs) -> None:
    stream = await begin(short_logs.owner)
    events = stream.write(1_000)
    await short_logs.owner.flush()
    for after in (0, 500):
        with pytest.raises(StreamNotFound):
            async with short_logs.reader.follow(stream.id, after):
                pass
    events += stream.write(1, last=True)
    await short_logs.owner.flush()
    for after in (1_001 - EVENTS_MAX, 1_000):
        assert await read(short_logs.reader, stream.id, after) == events[after:]
    with pytest.raises(StreamNotFound):
        await read(short_logs.reader, stream.id, 0)


async def test_follower_that_was_overtaken_is_told_that_events_are_gone(short_logs: Logs) -> None:
    stream = await begin(short_logs.owner)
    stream.write(1)
    await short_logs.owner.flush()
    async with short_logs.reader.follow(stream.id, 0) as batches:
        assert await take(batches, 1) == [event(1)]
        stream.write(2_000)
        await short_logs.owner.flush()
        with pytest.raises(StreamNotFound):
            await take(batches, 2_000)


@pytest.mark.parametrize("kind", KINDS)
@given(
    batches=st.lists(st.integers(1, 40), max_size=12),
    joins=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 120)), min_size=1, max_size=4),
    is_cancelled=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whoever_joins_whenever_gets_exactly_the_rest(
    kind: str, redis_url: str, batches: list[int], joins: list[tuple[int, int]], *, is_cancelled: bool
) -> None:
    async def run() -> None:
        async with open_logs(kind, redis_url) as logs:
            stream = await begin(logs.owner)
            events: list[StreamEvent] = []
            readers = []
            for at in range(len(batches) + 1):
                readers += [
                    (after, asyncio.create_task(read(logs.reader, stream.id, after)))
                    for when, after in joins
                    if min(when, len(batches)) == at
                ]
                await asyncio.sleep(0)
                if at < len(batches):
                    events += stream.write(batches[at])
            if is_cancelled:
                await logs.owner.flush()
                await logs.reader.end(stream.id, CANCELLATION)
                end = StreamEvent(FOREIGN_END, CANCELLATION, last=True)
            else:
                (end,) = stream.write(1, last=True)
            for after, reader in readers:
                expected = [event for event in [*events, end] if event.number > after]
                assert await reader == expected

    asyncio.run(run())
