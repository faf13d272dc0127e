"""Stream logs between processes on a real server, and what its trouble and theirs does to streams."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.config import StreamSettings
from service.domain.stream import FOREIGN_END, StreamEvent
from service.errors import StoreUnavailable, StreamNotFound
from service.storage import redis_stream_tail, redis_stream_writer
from service.storage.redis import open_redis, redis_errors
from service.storage.redis_stream_entries import ended_key, lease_key, stream_keys
from service.storage.redis_stream_tail import Follower, StreamTail
from service.storage.redis_streams import FIRST_PAGE, RedisStreamLog
from service.telemetry.metrics import Metrics
from tests.support.redis_server import OwnRedis, own_redis
from tests.support.stream_logs import (
    CANCELLATION,
    DEADLINE_S,
    INTERRUPTION,
    Owner,
    begin,
    durable_redis,
    open_redis_log,
    read,
    redis_settings,
    take,
    until,
)

INTERRUPTED = StreamEvent(FOREIGN_END, INTERRUPTION, last=True)
CANCELLED = StreamEvent(FOREIGN_END, CANCELLATION, last=True)
QUICK = StreamSettings(lease_s=1)

Show = Callable[[str, list[str]], None]


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with own_redis() as running:
        yield running


def die(log: RedisStreamLog) -> None:
    """Do what a SIGKILL does to a process, as far as others can see."""
    for task in log._writer._tasks:
        task.cancel()


def stop_renewing(log: RedisStreamLog) -> None:
    """Let a process look dead that still writes."""
    (task,) = (task for task in log._writer._tasks if task.get_name() == "stream-lease")
    task.cancel()


async def keys_of(redis: Redis) -> list[bytes]:
    return sorted([key async for key in redis.scan_iter()])


async def refusals(redis: Redis) -> int:
    """How many commands the server has answered with an error of no particular kind."""
    stats = await redis.info("errorstats")
    return int(stats.get("errorstat_ERR", {}).get("count", 0))


async def until_away(caplog: pytest.LogCaptureFixture, what: str) -> None:
    """Wait until a background task has noticed that the store is away."""
    await until(lambda: any(what in line and "waiting for" in line for line in caplog.messages))


# Two processes


async def test_owner_hears_of_an_end_elsewhere_within_a_quarter_of_a_second(redis_url: str, show: Show) -> None:
    times = []
    async with open_redis_log(redis_url) as owner, open_redis_log(redis_url) as other:
        for _ in range(20):
            stream = await begin(owner)
            ended_at = time.perf_counter()
            assert await other.end(stream.id, CANCELLATION)
            async with asyncio.timeout(DEADLINE_S):
                await stream.told.wait()
            times.append(time.perf_counter() - ended_at)
            assert stream.ends == [CANCELLATION]
    times.sort()
    show("end elsewhere to owner told, ms", [f"median {times[10] * 1e3:.0f}, greatest of 20 {times[-1] * 1e3:.0f}"])
    assert times[-1] < 1


async def test_death_of_the_owner_is_an_event_for_those_who_follow(redis_url: str, show: Show) -> None:
    async with open_redis_log(redis_url, streams=QUICK) as owner, open_redis_log(redis_url, streams=QUICK) as other:
        stream = await begin(owner)
        events = stream.write(3)
        await owner.flush()
        async with other.follow(stream.id, 0) as batches:
            assert await take(batches, 3) == events
            died_at = time.perf_counter()
            die(owner)
            assert await take(batches, 1) == [INTERRUPTED]
            noticed_s = time.perf_counter() - died_at
        late = time.perf_counter()
        assert await read(other, stream.id, 2) == [*events[2:], INTERRUPTED]
        show("owner's death to the event, s", [f"{noticed_s:.2f} with a lease of {QUICK.lease_s:g}"])
        assert noticed_s < QUICK.lease_s + 2
        assert time.perf_counter() - late < 1


async def test_death_that_nobody_saw_is_noticed_by_who_comes_later(redis_url: str) -> None:
    async with open_redis_log(redis_url, streams=QUICK) as other:
        async with open_redis_log(redis_url, streams=QUICK) as owner:
            streams = [await begin(owner) for _ in range(30)]
            written = [stream.write(2) for stream in streams]
            await owner.flush()
            die(owner)
        async with open_redis(redis_settings(redis_url)) as redis:
            assert not await redis.exists(lease_key(owner.owner))
        began = time.perf_counter()
        got = await asyncio.gather(*(read(other, stream.id) for stream in streams))
        assert got == [[*events, INTERRUPTED] for events in written]
        assert time.perf_counter() - began < 2.5


async def test_owner_taken_for_dead_can_add_nothing_and_is_told(redis_url: str) -> None:
    async with open_redis_log(redis_url, streams=QUICK) as owner, open_redis_log(redis_url, streams=QUICK) as other:
        stream = await begin(owner)
        events = stream.write(3)
        await owner.flush()
        stop_renewing(owner)
        assert await read(other, stream.id) == [*events, INTERRUPTED]
        stream.write(4)
        stream.write(1, last=True)
        await owner.flush()
        assert stream.ends == [INTERRUPTION]
        assert await read(other, stream.id) == [*events, INTERRUPTED]


async def test_owner_taken_for_dead_is_told_though_it_writes_nothing(redis_url: str) -> None:
    async with open_redis_log(redis_url, streams=QUICK) as owner, open_redis_log(redis_url, streams=QUICK) as other:
        stream = await begin(owner)
        stop_renewing(owner)
        assert await read(other, stream.id) == [INTERRUPTED]
        assert stream.ends == []
        await owner._writer._tick()
        assert stream.ends == [INTERRUPTION]


async def test_owner_counts_as_alive_before_anybody_can_see_its_stream(redis_url: str) -> None:
    async with open_redis(redis_settings(redis_url)) as redis, open_redis_log(redis_url) as owner:
        stop_renewing(owner)
        await begin(owner)
        assert await redis.exists(lease_key(owner.owner))


async def test_owner_whose_lease_is_over_gets_time_to_renew_it(
    server: OwnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_redis(redis_settings(server.url)) as redis,
        open_redis(redis_settings(server.url, 0.4)) as client,
        open_redis_log(server.url) as owner,
    ):
        stop_renewing(owner)
        stream = await begin(owner)
        tail = StreamTail(client=client, settings=StreamSettings(), metrics=Metrics(CollectorRegistry()))
        reader = Follower(stream.id, 0, tail)
        keys = stream_keys(stream.id)
        async with tail.joined(reader, stream.id, keys, owner=owner.owner, interruption=INTERRUPTION):
            now = asyncio.get_running_loop().time()
            await redis.delete(lease_key(owner.owner))
            await tail._check(now)
            await tail._check(now + 0.9)
            await owner._writer._tick()
            await tail._check(now + 1.8)
            # Absent again, but not since then.
            await redis.delete(lease_key(owner.owner))
            await tail._check(now + 1.9)
            await tail._check(now + 2.8)
            assert tail._absent_since
            # While the store is away nobody can renew, so the time begins anew.
            server.freeze()
            async with tail.running():
                await until_away(caplog, "following")
                assert not tail._absent_since
                server.thaw()
                await owner._writer._tick()
                events = stream.write(1, last=True)
                assert await take(reader, 1) == events


async def test_orderly_end_of_a_process_is_known_before_its_lease_is_over(redis_url: str) -> None:
    patient = StreamSettings(lease_s=60)
    async with open_redis_log(redis_url, streams=patient) as other:
        async with open_redis_log(redis_url, streams=patient) as owner:
            stream = await begin(owner)
            events = stream.write(50)
        # What was appended just before the end is there.
        assert await read(other, stream.id) == [*events, INTERRUPTED]


async def test_server_keeps_nothing_for_ever(server: OwnRedis) -> None:
    streams = StreamSettings(kept_s=100, lease_s=5)
    async with open_redis(redis_settings(server.url)) as redis:
        async with open_redis_log(server.url, streams=streams) as owner, open_redis_log(server.url) as other:
            running, ended, cancelled = [await begin(owner) for _ in range(3)]
            running.write(5)
            ended.write(5, last=True)
            await owner.flush()
            async with other.follow(running.id, 0):
                await other.end(cancelled.id, CANCELLATION)
                times = {key: await redis.ttl(key) for key in await keys_of(redis)}
            assert all(0 < seconds <= 600 for seconds in times.values())
            for stream, bound in ((running, 160), (ended, 100), (cancelled, 300)):
                keys = stream_keys(stream.id)
                assert bound - 10 <= times[keys.meta] <= bound
                assert bound - 10 <= times[keys.events] <= bound
            assert times[lease_key(owner.owner).encode()] <= 5
        left = await keys_of(redis)
        assert lease_key(owner.owner).encode() not in left
        assert ended_key(owner.owner).encode() not in left


async def test_running_stream_outlives_the_time_that_ended_ones_are_kept(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_stream_writer, "RUNNING_S", 0.5)
    monkeypatch.setattr(redis_stream_writer, "REFRESH_S", 0.2)
    async with open_redis_log(server.url, streams=StreamSettings(kept_s=0.5)) as log:
        stream = await begin(log)
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 2)
        events = stream.write(1, last=True)
        await log.flush()
        assert await read(log, stream.id) == events


async def test_stream_that_ended_is_forgotten_in_time(server: OwnRedis) -> None:
    async with (
        open_redis(redis_settings(server.url)) as redis,
        open_redis_log(server.url, streams=StreamSettings(kept_s=0.05)) as log,
    ):
        stream = await begin(log)
        stream.write(1, last=True)
        await log.flush()
        async with asyncio.timeout(DEADLINE_S):
            while await redis.exists(*stream_keys(stream.id)):
                pass
        assert await log.find(stream.id) is None
        with pytest.raises(StreamNotFound):
            await read(log, stream.id)


# The store's trouble


async def test_frozen_store_costs_no_event(server: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    streams = StreamSettings(lease_s=0.6)
    async with (
        open_redis_log(server.url, streams=streams, timeout_s=0.2) as owner,
        open_redis_log(server.url, streams=streams, timeout_s=0.2) as other,
    ):
        stream = await begin(owner)
        events = stream.write(20)
        async with other.follow(stream.id, 0) as batches:
            got = await take(batches, 20)
            for _ in range(3):
                caplog.clear()
                server.freeze()
                events += stream.write(20)
                await until_away(caplog, "writing")
                await until_away(caplog, "following")
                events += stream.write(20)
                server.thaw()
                got += await take(batches, 40)
            events += stream.write(1, last=True)
            got += await take(batches, 1)
        # The leases were over more than once, but their owner lived.
        assert got == events
        assert stream.ends == []
        assert await read(other, stream.id) == events


async def test_batch_whose_answer_was_lost_is_neither_written_twice_nor_taken_for_an_end(
    server: OwnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_redis(redis_settings(server.url)) as redis, AsyncExitStack() as stack:
        owner = await stack.enter_async_context(
            open_redis_log(server.url, streams=StreamSettings(lease_s=0.6), timeout_s=0.2)
        )
        streams = [await begin(owner) for _ in range(3)]
        before = await refusals(redis)
        server.freeze()
        # It is sent, since connections stand, and is read when the server goes on; by then it was sent again.
        written = [stream.write(30) for stream in streams[:2]] + [streams[2].write(30, last=True)]
        await until_away(caplog, "writing")
        server.thaw()
        await owner.flush()
        assert await refusals(redis) > before
        for at in range(2):
            written[at] += streams[at].write(1, last=True)
        await owner.flush()
        assert [await read(owner, stream.id) for stream in streams] == written
        assert [stream.ends for stream in streams] == [[], [], []]


async def test_end_from_elsewhere_while_a_batch_is_in_doubt_wins(
    server: OwnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_redis(redis_settings(server.url)) as redis,
        open_redis_log(server.url, streams=StreamSettings(lease_s=0.6), timeout_s=0.2) as owner,
    ):
        stream = await begin(owner)
        events = stream.write(5)
        await owner.flush()
        await redis.ping()
        server.freeze()
        ending = asyncio.create_task(
            redis.execute_command("XADD", stream_keys(stream.id).events, "1-0", "e", CANCELLATION)  # type: ignore[no-untyped-call]
        )
        await asyncio.sleep(0)
        stream.write(5)
        await until_away(caplog, "writing")
        server.thaw()
        await ending
        # Which of the two came first is the server's affair; this one is too late in any case.
        stream.write(1)
        async with asyncio.timeout(DEADLINE_S):
            await stream.told.wait()
        got = await read(owner, stream.id)
        assert [event.number for event in got[:-1]] in (list(range(1, 6)), list(range(1, 11)))
        assert got[:5] == events
        assert got[-1] == CANCELLED
        assert stream.ends == [CANCELLATION]


async def test_killed_store_that_kept_everything_costs_no_event(caplog: pytest.LogCaptureFixture) -> None:
    with durable_redis() as server:
        async with open_redis_log(server.url) as owner, open_redis_log(server.url) as other:
            stream = await begin(owner)
            events = stream.write(50)
            async with other.follow(stream.id, 0) as batches:
                got = await take(batches, 50)
                for _ in range(3):
                    caplog.clear()
                    events += stream.write(50)
                    server.kill()
                    events += stream.write(50)
                    await until_away(caplog, "writing")
                    await until_away(caplog, "following")
                    server.start()
                    got += await take(batches, len(events) - len(got))
                events += stream.write(1, last=True)
                got += await take(batches, 1)
            assert got == events
            assert await read(other, stream.id) == events
            assert stream.ends == []


async def test_store_that_lost_everything_ends_reading_and_not_generating(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_stream_tail, "MARK_EVERY_S", 0.1)
    with durable_redis() as server:
        async with open_redis_log(server.url) as owner, open_redis_log(server.url) as other:
            stream = await begin(owner)
            events = stream.write(5)
            async with other.follow(stream.id, 0) as batches:
                assert await take(batches, 5) == events
                server.kill()
                server.lose_all()
                server.start()
                with pytest.raises(StreamNotFound):
                    await take(batches, 1)
            stream.write(5)
            stream.write(1, last=True)
            await owner.flush()
            assert "the store lost a running stream" in caplog.messages
            assert await other.find(stream.id) is None
            assert stream.ends == []
            again = await begin(owner)
            events = again.write(3, last=True)
            await owner.flush()
            assert await read(other, again.id) == events


async def test_store_that_lost_its_newest_events_is_not_believed(server: OwnRedis) -> None:
    async with open_redis(redis_settings(server.url)) as redis, open_redis_log(server.url) as log:
        stream = await begin(log)
        events = stream.write(5)
        await log.flush()
        async with log.follow(stream.id, 0) as batches:
            assert await take(batches, 5) == events
            stream.write(5)
            async with redis.pipeline(transaction=True) as pipeline:
                pipeline.xdel(stream_keys(stream.id).events, "0-6", "0-7")
                await log.flush()
                await pipeline.execute()
            stream.write(1, last=True)
        await log.flush()
        for after in (5, 6, 7):
            if after == 7:
                assert [event.number for event in await read(log, stream.id, after)] == [8, 9, 10, 11]
                continue
            with pytest.raises(StreamNotFound):
                await read(log, stream.id, after)


async def test_store_that_is_gone_fails_those_who_wait_and_not_the_owner(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_stream_tail, "AWAY_MAX_S", 0.5)
    monkeypatch.setattr(redis_stream_writer, "FLUSH_S", 0.2)
    async with open_redis_log(server.url) as log:
        stream = await begin(log)
        async with log.follow(stream.id, 0) as batches:
            server.kill()
            with pytest.raises(StoreUnavailable):
                await take(batches, 1)
        stream.write(5)
        for call in (
            begin(log),
            log.find(stream.id),
            log.end(stream.id, b""),
            log.unfollowed_s(stream.id),
            log.flush(),
        ):
            with pytest.raises(StoreUnavailable):
                await call
        with pytest.raises(StoreUnavailable):
            async with log.follow(stream.id, 0):
                pass
        assert stream.ends == []


async def test_log_that_cannot_be_whole_says_that_it_is_interrupted(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_stream_writer, "STREAM_PENDING_BYTES", 20_000)
    async with open_redis_log(server.url, streams=StreamSettings(lease_s=0.6), timeout_s=0.2) as log:
        long, short = await begin(log), await begin(log)
        events, few = long.write(3), short.write(3)
        await log.flush()
        server.freeze()
        few += short.write(1)
        long.write(500)
        long.write(1, last=True)
        await until_away(caplog, "writing")
        server.thaw()
        few += short.write(1, last=True)
        await log.flush()
        got = await read(log, long.id)
        assert got[:3] == events
        # Some more may be there, since a batch may have been under way.
        assert [event.number for event in got[:-1]] == list(range(1, len(got)))
        assert got[-1] == INTERRUPTED
        assert await read(log, short.id) == few
        # Its owner goes on for the client that it has.
        assert long.ends == []
        assert log._writer._pending_bytes == 0


async def test_all_streams_together_hold_no_more_than_the_bound(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_stream_writer, "PENDING_BYTES", 50_000)
    async with open_redis_log(server.url, timeout_s=0.2) as log:
        streams = [await begin(log) for _ in range(50)]
        server.freeze()
        for _ in range(20):
            for stream in streams:
                stream.write(5)
                assert log._writer._pending_bytes < 60_000
        server.thaw()
        ends = [stream.write(1, last=True) for stream in streams]
        await log.flush()
        for stream, end in zip(streams, ends, strict=True):
            got = await read(log, stream.id)
            assert got[-1:] in (end, [INTERRUPTED])
            assert [event.number for event in got[:-1]] == list(range(1, len(got)))
        assert log._writer._pending_bytes == 0


async def test_full_store_is_waited_for(server: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    async with open_redis(redis_settings(server.url)) as redis, open_redis_log(server.url) as log:
        stream = await begin(log)
        await redis.config_set("maxmemory", "1")
        events = stream.write(20)
        await until_away(caplog, "writing")
        events += stream.write(20, last=True)
        await redis.config_set("maxmemory", "0")
        await log.flush()
        assert await read(log, stream.id) == events
        assert stream.ends == []


async def test_log_with_a_hole_is_not_given_for_a_whole_one(redis_url: str) -> None:
    async with open_redis_log(redis_url) as log:
        stream = await begin(log)
        events = stream.write(3)
        # The store had no memory for the second, and again some for the third.
        outcomes = [b"0-1", ResponseError("OOM command not allowed when used memory > 'maxmemory'."), b"0-3"]
        owned = log._writer._streams[stream.id]
        assert log._writer._judge(redis_stream_writer._Sent(owned, events, given_up=False, outcomes=outcomes)) is None
        await log.flush()
        assert await read(log, stream.id) == [INTERRUPTED]


async def test_pipeline_on_a_hanging_server_ends_after_its_time(server: OwnRedis) -> None:
    async with open_redis(redis_settings(server.url, 0.2)) as redis:
        await redis.ping()
        server.freeze()
        for transaction in (False, True):
            pipeline = redis.pipeline(transaction=transaction)
            pipeline.set("a", "b")
            async with asyncio.timeout(10):
                with pytest.raises(StoreUnavailable), redis_errors():
                    await pipeline.execute()
        server.thaw()
        assert await redis.ping()


# Many, and slow ones


async def test_follower_that_does_not_read_is_not_read_for(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_stream_tail, "UNREAD_BYTES", 10_000)
    async with open_redis_log(redis_url) as log:
        stream = await begin(log)
        async with log.follow(stream.id, 0) as slow:
            assert isinstance(slow, redis_stream_tail.Follower)
            fast = asyncio.create_task(read(log, stream.id))
            events = []
            for _ in range(100):
                events += stream.write(50)
                await log.flush()
            events += stream.write(1, last=True)
            # A follower beside it is none the slower.
            assert await fast == events
            one_read = redis_stream_tail.STREAM_EVENTS_MAX * 200
            assert slow._unread_bytes <= 10_000 + one_read
            assert await take(slow, len(events)) == events


async def test_who_joins_while_a_read_waits_gets_what_that_read_leaves_out(server: OwnRedis) -> None:
    async with open_redis(redis_settings(server.url)) as redis, open_redis_log(server.url) as log:
        stream = await begin(log)
        events = stream.write(FIRST_PAGE + 50)
        await log.flush()
        async with log.follow(stream.id, 0) as first:
            await take(first, len(events))
            for _ in range(5):
                async with asyncio.timeout(DEADLINE_S):
                    while not (await redis.info("clients"))["blocked_clients"]:
                        pass
                async with log.follow(stream.id, 0) as second:
                    events += stream.write(1)
                    await take(first, 1)
                    assert await take(second, len(events)) == events


async def test_three_hundred_streams_are_followed_as_they_are_written(redis_url: str, show: Show) -> None:
    count, size = 300, 60
    async with open_redis_log(redis_url) as owner, open_redis_log(redis_url) as other:
        streams = [await begin(owner) for _ in range(count)]
        began, cpu = time.perf_counter(), time.process_time()
        for at in range(size):
            for stream in streams:
                stream.write(1, last=at == size - 1)
            if at % 10 == 9:
                await owner.flush()
        writing = time.process_time() - cpu
        wall, cpu = time.perf_counter() - began, time.process_time()
        written = await asyncio.gather(*(read(other, stream.id) for stream in streams))
        reading = time.process_time() - cpu
        assert [len(events) for events in written] == [size] * count

        streams = [await begin(owner) for _ in range(count)]
        readers = [asyncio.create_task(read(other, stream.id)) for stream in streams]
        began, cpu = time.perf_counter(), time.process_time()
        expected = await asyncio.gather(*(_write_now_and_then(stream, size) for stream in streams))
        got = await asyncio.gather(*readers)
        both, both_wall = time.process_time() - cpu, time.perf_counter() - began
        assert got == expected
    events = count * size
    show(
        f"{count} streams of {size} events, CPU in µs for each event",
        [
            f"written {writing / events * 1e6:.0f} ({events / wall:.0f} a second)",
            f"read from the log {reading / events * 1e6:.0f}",
            f"followed while written, both together {both / events * 1e6:.0f} ({both_wall:.2f} s)",
        ],
    )


async def _write_now_and_then(stream: Owner, count: int) -> list[StreamEvent]:
    events: list[StreamEvent] = []
    for at in range(count):
        events += stream.write(1, last=at == count - 1)
        await asyncio.sleep(0.02)
    return events


async def test_a_store_that_works_keeps_all_of_a_stream_that_comes_faster_than_it_writes(server: OwnRedis) -> None:
    frame = b"data: " + b"x" * 300 + b"\n\n"
    async with open_redis_log(server.url) as log:
        stream = await begin(log)
        for number in range(1, 18_001):
            log.append(stream.id, [StreamEvent(number, frame)])
            await log.room(stream.id)
        log.append(stream.id, [StreamEvent(18_001, frame, last=True)])
        await log.flush()
        got = await read(log, stream.id)
    assert [event.number for event in got] == list(range(1, 18_002))


async def test_a_store_that_is_away_is_not_waited_for(server: OwnRedis) -> None:
    frame = b"x" * redis_stream_writer.ROOM_BYTES
    async with open_redis_log(server.url, timeout_s=0.2) as log:
        stream = await begin(log)
        server.freeze()
        try:
            log.append(stream.id, [StreamEvent(1, frame)])
            log.append(stream.id, [StreamEvent(2, frame)])
            async with asyncio.timeout(DEADLINE_S):
                await log.room(stream.id)
        finally:
            server.thaw()
