"""What every board of checks does: in memory, on a real server, between two processes there, and without it."""

import asyncio
import math
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from unittest.mock import AsyncMock
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from service.domain.clock import ManualClock, SystemClock
from service.domain.probe import Evidence, Outcome, Probe, Sight, Subject
from service.engine.probe_board import ProbeBoard
from service.storage.probe_board import AWAY_FRESH_S, AWAY_S, KEY_PREFIX, MemoryProbeBoard
from tests.support.probe_boards import open_redis_boards
from tests.support.redis_server import OwnRedis, own_redis

LONG_S = 3_600.0
OK = Probe(Outcome.OK, None, 0.25)
GONE = Probe(Outcome.UNAVAILABLE, "upstream_unavailable: gone, as ü", 1.5)


class Boards(NamedTuple):
    """The boards of two processes."""

    one: ProbeBoard
    other: ProbeBoard


@pytest.fixture(params=["memory", "redis", "redis-two-processes"])
async def boards(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Boards]:
    if request.param == "memory":
        board = MemoryProbeBoard(SystemClock())
        yield Boards(board, board)
        return
    async with open_redis_boards(redis_url, SystemClock(), 2) as (one, other):
        yield Boards(one, one if request.param == "redis" else other)


@pytest.fixture
def subject() -> Subject:
    return Subject("openai", "gpt 4o:{x}", secrets.token_hex(6))


async def look(
    board: ProbeBoard,
    subject: Subject,
    *,
    fresh_s: float = LONG_S,
    lease_s: float = LONG_S,
    evidence: Evidence | None = None,
) -> Sight:
    return await board.look(subject, fresh_s=fresh_s, lease_s=lease_s, evidence=evidence)


async def test_of_a_new_subject_nothing_is_known_and_the_first_who_looks_has_to_check(
    boards: Boards, subject: Subject
) -> None:
    assert await look(boards.one, subject) == Sight(claimed=True)
    assert await look(boards.other, subject) == Sight()


async def test_of_many_that_look_at_once_one_has_to_check(boards: Boards, subject: Subject) -> None:
    sights = await asyncio.gather(*(look(board, subject) for board in boards * 20))
    assert sum(sight.claimed for sight in sights) == 1


async def test_what_one_found_out_all_see(boards: Boards, subject: Subject) -> None:
    await look(boards.one, subject)
    told = await boards.one.publish(subject, GONE)
    seen = await look(boards.other, subject)
    for sight in (told, seen):
        assert (sight.probe, sight.failures, sight.claimed) == (GONE, 1, False)
        assert 0 <= sight.probe_age_s < 5
    assert seen.evidence is None


async def test_a_check_that_is_not_fresh_any_more_is_due_for_one(boards: Boards, subject: Subject) -> None:
    await boards.one.publish(subject, OK)
    assert not (await look(boards.one, subject)).claimed
    assert (await look(boards.one, subject, fresh_s=0)).claimed
    assert not (await look(boards.other, subject, fresh_s=0)).claimed
    await boards.one.publish(subject, OK)
    assert (await look(boards.other, subject, fresh_s=0)).claimed


async def test_a_lease_ends_by_itself(boards: Boards, subject: Subject) -> None:
    assert (await look(boards.one, subject, lease_s=0)).claimed
    assert (await look(boards.other, subject, lease_s=0)).claimed


async def test_failures_are_counted_until_a_success(boards: Boards, subject: Subject) -> None:
    counts = [
        (await board.publish(subject, probe)).failures
        for board, probe in [(boards.one, GONE), (boards.other, GONE), (boards.one, GONE), (boards.other, OK)]
    ]
    assert counts == [1, 2, 3, 0]
    assert (await look(boards.one, subject)).failures == 0


async def test_an_answer_to_traffic_saves_the_check_and_is_seen_by_all(boards: Boards, subject: Subject) -> None:
    seen = await look(boards.one, subject, evidence=Evidence(10))
    assert not seen.claimed
    seen = await look(boards.other, subject)
    assert not seen.claimed
    assert seen.evidence is not None
    assert 10 <= seen.evidence.age_s < 15
    assert not seen.evidence.refused
    assert (await look(boards.other, subject, fresh_s=9)).claimed


async def test_a_refusal_saves_no_check(boards: Boards, subject: Subject) -> None:
    seen = await look(boards.one, subject, evidence=Evidence(1, refused=True))
    assert seen.claimed
    assert seen.evidence is not None
    assert seen.evidence.refused


async def test_the_newest_evidence_wins_whoever_brings_it(boards: Boards, subject: Subject) -> None:
    await look(boards.one, subject, evidence=Evidence(10, refused=True))
    seen = await look(boards.other, subject, evidence=Evidence(20))
    assert seen.evidence is not None
    assert seen.evidence.refused
    seen = await look(boards.other, subject, evidence=Evidence(5))
    assert seen.evidence is not None
    assert (seen.evidence.refused, seen.evidence.age_s < 10) == (False, True)


async def test_subjects_have_nothing_in_common(boards: Boards, subject: Subject) -> None:
    await boards.one.publish(subject, OK)
    for name in ("provider", "model", "fingerprint"):
        other = Subject(
            **{
                "provider": subject.provider,
                "model": subject.model,
                "fingerprint": subject.fingerprint,
                name: "another",
            }
        )
        assert (await look(boards.other, other, lease_s=0)).probe is None


# On a server


async def test_what_is_kept_is_forgotten_in_time_and_holds_no_key(redis_url: str, subject: Subject) -> None:
    async with open_redis_boards(redis_url, SystemClock(), 1) as (board,):
        await look(board, subject, fresh_s=60)
        await board.publish(subject, OK)
        async with Redis.from_url(redis_url) as redis:
            keys = await redis.keys(f"{KEY_PREFIX}*{subject.fingerprint}*")
            assert len(keys) == 1
            assert 250_000_000 < await redis.pttl(keys[0]) <= 259_200_000


async def test_a_clock_of_the_server_that_was_set_back_stops_nothing(redis_url: str, subject: Subject) -> None:
    async with open_redis_boards(redis_url, SystemClock(), 1) as (board,):
        await board.publish(subject, OK)
        async with Redis.from_url(redis_url) as redis:
            (key,) = await redis.keys(f"{KEY_PREFIX}*{subject.fingerprint}*")
            ahead = str(int((await redis.time())[0] * 1_000) + 3_600_000)
            await redis.hset(key, mapping={"checked_at": ahead, "leased_at": ahead, "evidence_at": ahead})
        assert (await look(board, subject, fresh_s=60)).claimed
        assert (await board.publish(subject, GONE)).probe == GONE


async def test_without_the_server_each_process_asks_for_itself_and_seldom(subject: Subject) -> None:
    clock = ManualClock()
    with own_redis() as server:
        async with open_redis_boards(server.url, clock, 2, timeout_s=0.05) as (one, other):
            await one.publish(subject, OK)
            await look(other, subject, fresh_s=60)
            server.kill()
            for board in (one, other):
                assert (await look(board, subject, fresh_s=60)).probe == OK
            clock.advance(AWAY_FRESH_S - 1)
            for board in (one, other):
                assert not (await look(board, subject, fresh_s=60)).claimed
            clock.advance(1)
            for board in (one, other):
                assert (await look(board, subject, fresh_s=60)).claimed
                assert (await board.publish(subject, GONE)).probe == GONE
                assert not (await look(board, subject, fresh_s=60)).claimed


async def test_a_process_that_starts_without_the_server_waits_a_moment_before_it_asks(subject: Subject) -> None:
    clock = ManualClock()
    with own_redis() as server:
        url = server.url
    async with open_redis_boards(url, clock, 1, timeout_s=0.05) as (board,):
        assert await look(board, subject) == Sight()
        clock.advance(AWAY_S - 0.001)
        assert await look(board, subject, evidence=Evidence(7)) == Sight(evidence=Evidence(7))
        clock.advance(0.001)
        assert (await look(board, Subject("other", "m", "f"), fresh_s=60)).claimed


async def test_what_was_found_out_without_the_server_is_told_when_it_is_back(subject: Subject) -> None:
    clock = ManualClock()
    with own_redis() as server:
        async with open_redis_boards(server.url, clock, 2, timeout_s=0.05) as (one, other):
            await look(one, subject)
            server.freeze()
            assert (await one.publish(subject, GONE)).probe == GONE
            server.thaw()
            clock.advance(30)
            assert (await look(one, subject)).probe == GONE
            seen = await look(other, subject)
            assert seen.probe == GONE
            assert 30 <= seen.probe_age_s < 35


async def test_what_the_server_took_is_not_counted_again_where_its_answer_was_lost(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_redis() as server:
        async with open_redis_boards(server.url, ManualClock(), 1) as (board,):
            tell = board._publish

            async def unheard(**given: Any) -> None:
                await tell(**given)
                raise ConnectionError

            for count, (name, fails) in enumerate((("_publish", unheard), ("_look", AsyncMock(side_effect=OSError)))):
                with monkeypatch.context() as patch:
                    patch.setattr(board, name, fails)
                    assert (await board.publish(subject, GONE)).probe == GONE
                for _ in range(2):
                    assert (await look(board, subject)).failures == count + 1
            assert (await board.publish(subject, GONE)).failures == 3


async def test_a_busy_server_is_waited_for_longer_than_a_request_would(subject: Subject) -> None:
    with own_redis() as server:
        async with open_redis_boards(server.url, SystemClock(), 1, timeout_s=0.05) as (board,):
            await board.publish(subject, OK)
            server.freeze()
            asyncio.get_running_loop().call_later(0.3, server.thaw)
            sight = await look(board, subject)
            assert sight.probe == OK
            assert sight.probe_age_s < math.inf


@asynccontextmanager
async def far_away(server: OwnRedis, delay_s: float) -> AsyncIterator[str]:
    """Give an address at which each command takes a time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(urlsplit(server.url).path)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, takes_s: float) -> None:
            while data := await source.read(65_536):
                await asyncio.sleep(takes_s)
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, to_server, delay_s), pump(from_server, writer, 0))

    way = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with way:
        yield f"redis://127.0.0.1:{way.sockets[0].getsockname()[1]}/0"


async def test_of_many_providers_each_is_looked_at_on_a_store_that_is_slow() -> None:
    many = [Subject(f"p{number}", "m", "f") for number in range(40)]
    with own_redis() as server:
        async with (
            far_away(server, 0.03) as url,
            open_redis_boards(url, SystemClock(), 1, timeout_s=0.05) as (board,),
        ):
            sights = await asyncio.gather(*(look(board, subject, fresh_s=60) for subject in many))
    assert [sight.claimed for sight in sights] == [True] * len(many)


async def test_a_provider_that_never_gets_through_is_asked_though_others_do(subject: Subject) -> None:
    clock = ManualClock()
    other = Subject("other", "m", subject.fingerprint)
    with own_redis() as server:
        async with open_redis_boards(server.url, clock, 1, timeout_s=0.05) as (board,):
            await look(board, other)
            server.freeze()
            assert not (await look(board, subject)).claimed
            server.thaw()
            await look(board, other)
            clock.advance(AWAY_S)
            server.freeze()
            assert (await look(board, subject)).claimed
            server.thaw()
