"""Resumable streams: one generation, whatever happens to those who read it."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from service.config import DrainSettings, StreamSettings
from service.domain.clock import ManualClock
from service.domain.principal import Principal, RequestContext
from service.domain.stream import StreamEvent
from service.engine import resumption
from service.engine.drain import Drain
from service.engine.resumption import READ_AHEAD, OwnedStream, ResumableStreams, StreamOver, frames_of
from service.errors import Draining, ServiceError, StoreUnavailable, StreamNotFound, UpstreamTimeout
from service.storage.memory_streams import MemoryStreamLog
from service.telemetry.metrics import Metrics
from tests.support.fake_app import DEADLINE_S, soon, until

ALICE = Principal("alice")
CONTEXT = RequestContext("request-1", ALICE)


class Words:
    """A framing of words."""

    def chunk(self, chunk: str) -> bytes:
        return "".join(f"data: {word}\n\n" for word in chunk.split()).encode()

    def end(self) -> bytes:
        return b"event: usage\ndata: {}\n\ndata: [DONE]\n\n"

    def failure(self, error: ServiceError) -> bytes:
        return f"event: error\ndata: {error.code}\n\n".encode()


class Source:
    """A generation that a test steps."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.taken = 0

    def say(self, *chunks: str | Exception | None) -> None:
        for chunk in chunks:
            self.steps.put_nowait(chunk)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[AsyncIterator[str]]:
        try:
            first = await self._next()
            if first is None:
                raise AssertionError("a stream has content")
            yield self._chunks(first)
        finally:
            self.closed.set()

    async def _chunks(self, first: str) -> AsyncIterator[str]:
        yield first
        while (chunk := await self._next()) is not None:
            yield chunk

    async def _next(self) -> str | None:
        step = await self.steps.get()
        self.taken += 1
        if isinstance(step, Exception):
            raise step
        return step


class Streams:
    """Resumable streams over a log in memory, and what a test needs around them."""

    def __init__(self, log: MemoryStreamLog, streams: ResumableStreams, drain: Drain, metrics: Metrics) -> None:
        self.log = log
        self.streams = streams
        self.drain = drain
        self.metrics = metrics

    async def start(self, source: Source) -> OwnedStream:
        return await self.streams.start(source.stream(), Words(), CONTEXT)

    async def all_of(self, owned: OwnedStream, after: int = 0) -> list[StreamEvent]:
        async with asyncio.timeout(DEADLINE_S), await self.streams.follow(owned.id, after, ALICE) as events:
            return [event async for batch in events for event in batch]

    def ends(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("llm_api_resumable_stream_ends_total", {"reason": reason}) or 0


@asynccontextmanager
async def running(log_type: type[MemoryStreamLog] = MemoryStreamLog, **settings: float) -> AsyncIterator[Streams]:
    stream_settings = StreamSettings.model_validate(settings)
    drain = Drain(DrainSettings(delay_s=0, timeout_s=0.01))
    metrics = Metrics(CollectorRegistry())
    log = log_type(settings=stream_settings, clock=ManualClock())
    streams = ResumableStreams(log=log, settings=stream_settings, drain=drain, metrics=metrics)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(log.opened())
        await stack.enter_async_context(streams.running())
        yield Streams(log, streams, drain, metrics)


async def read_all(owned: OwnedStream) -> list[StreamEvent]:
    async with asyncio.timeout(DEADLINE_S), owned as events:
        return [event async for batch in events for event in batch]


async def kept(log: MemoryStreamLog, stream_id: str) -> list[StreamEvent]:
    async with asyncio.timeout(DEADLINE_S), log.follow(stream_id, 0) as events:
        return [event async for batch in events for event in batch]


def frames(events: Sequence[StreamEvent]) -> list[bytes]:
    return [event.frame for event in events]


def numbers(events: Sequence[StreamEvent]) -> list[int]:
    return [event.number for event in events]


WHOLE = frames_of(b"data: a\n\ndata: b\n\ndata: c\n\n" + Words().end())


async def test_its_client_and_whoever_follows_get_the_same_numbered_events() -> None:
    source = Source()
    source.say("a", "b c", None)
    async with running() as those:
        owned = await those.start(source)
        events = await read_all(owned)
        assert frames(events) == WHOLE
        assert numbers(events) == [1, 2, 3, 4, 5]
        assert [event.last for event in events] == [False] * 4 + [True]
        assert await those.all_of(owned) == events
        assert await those.all_of(owned, after=2) == events[2:]
        assert those.ends("complete") == 1


async def test_it_outlives_its_client_and_runs_once() -> None:
    source = Source()
    source.say("a")
    async with running() as those:
        owned = await those.start(source)
        async with owned as events:
            assert frames(await anext(events)) == WHOLE[:1]
        source.say("b c", None)
        assert frames(await those.all_of(owned, after=1)) == WHOLE[1:]
        assert source.taken == 3


async def test_who_has_everything_is_told_that_it_is_over() -> None:
    source = Source()
    source.say("a", None)
    async with running() as those:
        owned = await those.start(source)
        last = (await read_all(owned))[-1].number
        for after in (last, last + 7):
            with pytest.raises(StreamOver):
                await those.all_of(owned, after=after)


async def test_someone_elses_stream_looks_like_none() -> None:
    source = Source()
    source.say("a", None)
    async with running() as those:
        owned = await those.start(source)
        await read_all(owned)
        messages = []
        for stream_id, principal in ((owned.id, Principal("bob")), ("str_unknown", ALICE)):
            with pytest.raises(StreamNotFound) as refused:
                await those.streams.follow(stream_id, 0, principal)
            messages.append(refused.value.message.replace(stream_id, ""))
            with pytest.raises(StreamNotFound):
                await those.streams.end(stream_id, principal)
        assert messages[0] == messages[1]


async def test_a_failure_before_the_content_is_raised_to_its_client_and_told_to_others() -> None:
    source = Source()
    source.say(UpstreamTimeout("too late"))
    async with running() as those:
        owned = await those.start(source)
        with pytest.raises(UpstreamTimeout):
            await read_all(owned)
        assert frames(await those.all_of(owned)) == [b"event: error\ndata: upstream_timeout\n\n"]
        assert those.ends("error") == 1


async def test_a_failure_after_the_id_was_told_is_an_event_with_a_number() -> None:
    source = Source()
    async with running(headers_after_s=0.001) as those:
        owned = await those.start(source)
        reading = asyncio.create_task(read_all(owned))
        await asyncio.sleep(0.002)
        source.say(UpstreamTimeout("too late"))
        events = await reading
        assert numbers(events) == [1]
        assert frames(events) == [b"event: error\ndata: upstream_timeout\n\n"]


async def test_a_failure_after_content_is_the_one_terminal_event_of_all_readers() -> None:
    source = Source()
    source.say("a", UpstreamTimeout("too late"))
    async with running() as those:
        owned = await those.start(source)
        events = await read_all(owned)
        assert frames(events) == [WHOLE[0], b"event: error\ndata: upstream_timeout\n\n"]
        assert events == await those.all_of(owned)


async def test_a_defect_is_told_to_the_readers_and_counted() -> None:
    source = Source()
    source.say("a", ZeroDivisionError())
    async with running() as those:
        owned = await those.start(source)
        assert frames(await read_all(owned)) == [WHOLE[0], b"event: error\ndata: internal_error\n\n"]
        await asyncio.wait([owned.task])
        place = {"place": "stream"}
        assert those.metrics.registry.get_sample_value("llm_api_unhandled_errors_total", place) == 1


async def test_a_client_that_leaves_before_it_knows_the_id_ends_the_generation() -> None:
    source = Source()
    async with running() as those:
        owned = await those.start(source)
        reading = asyncio.create_task(read_all(owned))
        await asyncio.sleep(0)
        reading.cancel()
        await soon(source.closed)
        await asyncio.wait([owned.task])
        assert those.ends("cancelled") == 1


async def test_without_a_reader_for_long_the_generation_is_cancelled() -> None:
    source = Source()
    source.say("a")
    async with running(orphan_s=0.01) as those:
        owned = await those.start(source)
        async with owned as events:
            await anext(events)
        await soon(source.closed)
        await asyncio.wait([owned.task])
        assert frames(await those.all_of(owned)) == [WHOLE[0], b"event: error\ndata: cancelled\n\n"]
        assert those.ends("orphaned") == 1


async def test_a_follower_keeps_the_generation_alive() -> None:
    source = Source()
    source.say("a")
    looks: list[float] = []

    class Log(MemoryStreamLog):
        @override
        async def unfollowed_s(self, stream_id: str) -> float:
            looks.append(await super().unfollowed_s(stream_id))
            return looks[-1]

    async with running(Log, orphan_s=0.01) as those:
        owned = await those.start(source)
        async with owned as events:
            await anext(events)
        following = asyncio.create_task(those.all_of(owned))
        await until(lambda: len(looks) >= 3)
        source.say("b c", None)
        assert frames(await following) == WHOLE
        assert set(looks) == {0}


async def test_a_reader_that_left_lately_keeps_it_alive_for_as_long_as_one_may_be_away() -> None:
    source = Source()
    source.say("a")
    waits: list[float] = []

    class Log(MemoryStreamLog):
        @override
        async def unfollowed_s(self, stream_id: str) -> float:
            waits.append(asyncio.get_running_loop().time())
            return 0.004 if len(waits) == 1 else math.inf

    async with running(Log, orphan_s=0.02) as those:
        owned = await those.start(source)
        async with owned as events:
            await anext(events)
        await soon(source.closed)
        assert len(waits) == 2
        assert waits[1] - waits[0] > 0.015
        assert those.ends("orphaned") == 1


@pytest.mark.parametrize("who", ["caller", "another process"])
async def test_an_end_before_the_first_content_reaches_the_client_that_waits(who: str) -> None:
    source = Source()
    async with running() as those:
        owned = await those.start(source)
        reading = asyncio.create_task(read_all(owned))
        await asyncio.sleep(0)
        if who == "caller":
            await those.streams.end(owned.id, ALICE)
            expected = b"event: error\ndata: cancelled\n\n"
        else:
            expected = b"event: error\ndata: stream_interrupted\n\n"
            await those.log.end(owned.id, expected)
        assert frames(await reading) == [expected]
        await soon(source.closed)
        await asyncio.wait([owned.task])
        assert those.metrics.registry.get_sample_value("llm_api_resumable_streams_active") == 0


async def test_a_store_that_works_is_given_time() -> None:
    source = Source()
    source.say(*["word"] * 10, None)
    full, emptied = asyncio.Event(), asyncio.Event()

    class Log(MemoryStreamLog):
        @override
        async def room(self, stream_id: str) -> None:
            full.set()
            await emptied.wait()

    async with running(Log) as those:
        owned = await those.start(source)
        reading = asyncio.create_task(read_all(owned))
        await soon(full)
        for _ in range(10):
            await asyncio.sleep(0)
        assert source.taken == 1
        emptied.set()
        assert len(await reading) == 12


async def test_a_store_that_is_away_does_not_make_an_orphan() -> None:
    source = Source()
    source.say("a")
    looks = 0

    class Log(MemoryStreamLog):
        @override
        async def unfollowed_s(self, stream_id: str) -> float:
            nonlocal looks
            looks += 1
            if looks < 3:
                raise StoreUnavailable("away")
            return await super().unfollowed_s(stream_id)

    async with running(Log, orphan_s=0.01) as those:
        owned = await those.start(source)
        async with owned as events:
            await anext(events)
        await soon(source.closed)
        assert looks == 3


async def test_the_caller_can_end_it_and_all_readers_are_told() -> None:
    source = Source()
    source.say("a")
    async with running() as those:
        owned = await those.start(source)
        reading = asyncio.create_task(read_all(owned))
        following = asyncio.create_task(those.all_of(owned))
        await until(lambda: source.taken == 1)
        await asyncio.sleep(0)
        await those.streams.end(owned.id, ALICE)
        await soon(source.closed)
        expected = [WHOLE[0], b"event: error\ndata: cancelled\n\n"]
        assert frames(await reading) == expected
        assert frames(await following) == expected
        await those.streams.end(owned.id, ALICE)  # again, which changes nothing
        assert frames(await those.all_of(owned)) == expected


async def test_a_slow_client_slows_the_upstream() -> None:
    source = Source()
    source.say(*["word"] * (3 * READ_AHEAD), None)
    async with running() as those:
        owned = await those.start(source)
        async with owned as events:
            await until(lambda: source.taken >= READ_AHEAD)
            for _ in range(10):
                await asyncio.sleep(0)
            assert source.taken == READ_AHEAD
            seen = [event async for batch in events for event in batch]
        assert len(seen) == 3 * READ_AHEAD + 2


async def test_a_client_that_leaves_does_not_hold_the_upstream_back() -> None:
    source = Source()
    source.say(*["word"] * (3 * READ_AHEAD), None)
    async with running() as those:
        owned = await those.start(source)
        async with owned:
            await until(lambda: source.taken >= READ_AHEAD)
        assert len(await those.all_of(owned)) == 3 * READ_AHEAD + 2


async def test_a_stop_waits_for_what_finishes_in_time() -> None:
    source = Source()
    source.say("a")
    async with running() as those:
        owned = await those.start(source)
        async with owned as events:
            await anext(events)
        stopping = asyncio.create_task(those.drain.run())
        source.say("b c", None)
        await stopping
        assert frames(await kept(those.log, owned.id)) == WHOLE


async def test_a_stop_cuts_what_does_not_finish_and_says_so() -> None:
    source = Source()
    source.say("a")
    async with running() as those:
        owned = await those.start(source)
        async with owned as events:
            await anext(events)
        async with asyncio.timeout(DEADLINE_S):
            await those.drain.run()
        assert source.closed.is_set()
        assert frames(await kept(those.log, owned.id)) == [WHOLE[0], b"event: error\ndata: stream_interrupted\n\n"]
        assert those.ends("draining") == 1


async def test_a_follower_is_sent_on_when_its_process_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "HANDOVER_S", 0.001)
    source = Source()
    source.say("a")
    async with running() as those, running() as owner:
        owned = await owner.start(source)
        those.streams._log = owner.log  # two processes, one log
        following = await those.streams.follow(owned.id, 0, ALICE)
        async with asyncio.timeout(DEADLINE_S), following as events:
            assert frames(await anext(events)) == WHOLE[:1]
            stopping = asyncio.create_task(those.drain.run())
            with pytest.raises(Draining):
                await anext(events)
            await stopping
        assert not source.closed.is_set()


async def test_followers_are_sent_on_one_after_the_other() -> None:
    source = Source()
    source.say("a")
    async with running() as those, running() as owner:
        owned = await owner.start(source)
        those.streams._log = owner.log  # two processes, one log
        those.drain = those.streams._drain = Drain(DrainSettings(delay_s=0, timeout_s=5))
        moments: list[float] = []

        async def follow() -> None:
            async with await those.streams.follow(owned.id, 0, ALICE) as events:
                await anext(events)
                began.set()
                with those.drain.work(), pytest.raises(Draining):
                    await anext(events)
                moments.append(asyncio.get_running_loop().time())

        began = asyncio.Event()
        following = [asyncio.create_task(follow()) for _ in range(20)]
        await soon(began)
        async with asyncio.timeout(DEADLINE_S):
            await those.drain.run()
            await asyncio.gather(*following)
        assert max(moments) - min(moments) > resumption.HANDOVER_S / 4


async def test_what_still_runs_at_the_end_of_the_process_gets_its_terminal_event() -> None:
    source = Source()
    source.say("a")
    async with running() as those:
        owned = await those.start(source)
        async with owned as events:
            await anext(events)
        log = those.log
    assert source.closed.is_set()
    assert frames(await kept(log, owned.id))[1:] == [b"event: error\ndata: stream_interrupted\n\n"]


async def test_a_stream_whose_last_frame_came_with_its_content_ends_too() -> None:
    class Anthropic(Words):
        @override
        def end(self) -> bytes:
            return b""

    source = Source()
    source.say("a b", None)
    async with running() as those:
        owned = await those.streams.start(source.stream(), Anthropic(), CONTEXT)
        events = await read_all(owned)
        assert [event.frame for event in events if event.frame] == WHOLE[:2]
        with pytest.raises(StreamOver):
            await those.all_of(owned, after=2)


async def test_without_a_store_no_stream_begins() -> None:
    class Log(MemoryStreamLog):
        @override
        async def create(self, record: object, on_end: object) -> None:
            raise StoreUnavailable("away")

    source = Source()
    async with running(Log) as those:
        with pytest.raises(StoreUnavailable):
            await those.start(source)
        assert source.taken == 0
