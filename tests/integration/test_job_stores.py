"""What every job store keeps its word about, in memory and in Redis; and what only a fleet's has to."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError, ResponseError

from service.config import JobSettings, RedisSettings
from service.domain.clock import SystemClock
from service.domain.generation import Usage
from service.domain.job import LOST, Beat, GoneJob, Job, JobError, JobOutcome, JobStatus
from service.domain.principal import Priority
from service.engine.jobs import JobStore
from service.errors import Overloaded, StoreUnavailable
from service.storage.memory_jobs import MemoryJobStore
from service.storage.redis import ScriptDefect, open_redis, script_errors
from service.storage.redis_jobs import RedisJobStore
from tests.support.redis_server import own_redis

DONE = JobOutcome(JobStatus.COMPLETE, answer=b'{"text":"Hello"}', usage=Usage(3, 4), cost_nano_usd=5)
LEASE_S = 0.3
AWAY_S = 0.2


def settings(**changed: float) -> JobSettings:
    """Make settings that a person could not: with a lease that tests can wait for."""
    return JobSettings.model_construct(**{**JobSettings(lease_s=5).model_dump(), "lease_s": LEASE_S, **changed})


@asynccontextmanager
async def redis_store(
    url: str, *, prefix: str | None = None, away_s: float | None = 60.0, **changed: float
) -> AsyncIterator[RedisJobStore]:
    store = RedisJobStore(
        redis=RedisSettings(url=SecretStr(url), timeout_s=1.0),
        settings=settings(**changed),
        prefix=prefix or f"{{jobs-{secrets.token_hex(4)}}}:",
        away_s=away_s,
    )
    async with store.opened():
        yield store


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[JobStore]:
    if request.param == "memory":
        yield MemoryJobStore(settings(queue_max=5), SystemClock())
    else:
        async with redis_store(redis_url, queue_max=5, lease_s=30.0) as made:
            yield made


def job(principal: str = "alice", *, priority: Priority = "interactive", weight: float = 1.0) -> Job:
    return Job(
        id=f"job_{secrets.token_hex(6)}",
        principal=principal,
        route="/generate",
        body=b'{"prompt":"Hi"}',
        priority=priority,
        weight=weight,
    )


async def submitted(store: JobStore, *jobs: Job) -> list[str]:
    for one in jobs:
        await store.submit(one)
    return [one.id for one in jobs]


async def found(store: JobStore, job_id: str) -> Job:
    one = await store.get(job_id)
    assert isinstance(one, Job)
    return one


async def order(store: JobStore) -> list[str]:
    """Take out all that wait, one by one."""
    ids: list[str] = []
    while claimed := await store.claim(1):
        ids += [one.id for one in claimed]
    return ids


async def test_a_job_is_kept_as_it_was_submitted(store: JobStore) -> None:
    one = replace(job(), deadline_s=1_000.0)
    accepted = await store.submit(one)
    assert accepted == replace(one, created_at=accepted.created_at, position=0)
    assert await store.get(one.id) == accepted
    assert await store.get("job_unknown") is None


async def test_what_a_job_was_sent_is_given_to_whom_it_concerns(store: JobStore) -> None:
    one = job()
    accepted = await store.submit(one)
    looks = [accepted, await store.get(one.id), await store.get(one.id, watching=True)]
    (claimed,) = await store.claim(1)
    assert claimed.body == one.body
    assert [look.body for look in (*looks, await store.get(one.id)) if isinstance(look, Job)] == [b""] * 4


async def test_a_deadline_is_counted_by_the_stores_clock(store: JobStore) -> None:
    await submitted(store, replace(job(), deadline_s=30.0, created_at=1.0))
    await asyncio.sleep(0.05)
    (claimed,) = await store.claim(1)
    assert claimed.deadline_s == 30
    assert 20 < (claimed.left_s or 0) < 29.96


async def test_the_same_job_is_kept_once(store: JobStore) -> None:
    one = job()
    assert await store.submit(one) == await store.submit(one)
    assert await order(store) == [one.id]


async def test_no_more_wait_than_may(store: JobStore) -> None:
    await submitted(store, *(job() for _ in range(5)))
    with pytest.raises(Overloaded) as refused:
        await store.submit(job())
    assert refused.value.retry_after_s
    await store.claim(1)
    await store.submit(job())


async def test_one_callers_jobs_are_begun_in_the_order_of_their_coming(store: JobStore) -> None:
    ids = await submitted(store, *(job() for _ in range(5)))
    assert [(await found(store, job_id)).position for job_id in ids] == [0, 1, 2, 3, 4]
    assert await order(store) == ids


async def test_callers_take_turns_however_many_jobs_one_has(store: JobStore) -> None:
    many = await submitted(store, *(job("many") for _ in range(3)))
    few = await submitted(store, *(job("few") for _ in range(2)))
    assert await order(store) == [many[0], few[0], many[1], few[1], many[2]]


async def test_a_caller_of_twice_the_weight_has_twice_the_turns(store: JobStore) -> None:
    light = await submitted(store, *(job("light") for _ in range(2)))
    heavy = await submitted(store, *(job("heavy", weight=2.0) for _ in range(3)))
    assert await order(store) == [light[0], heavy[0], heavy[1], light[1], heavy[2]]


async def test_who_comes_later_is_not_owed_for_the_time_before(store: JobStore) -> None:
    old = await submitted(store, *(job("old") for _ in range(3)))
    await store.claim(2)
    new = await submitted(store, *(job("new") for _ in range(2)))
    assert await order(store) == [new[0], old[2], new[1]]


async def test_batch_comes_after_all_that_is_interactive(store: JobStore) -> None:
    (batch,) = await submitted(store, job(priority="batch"))
    (interactive,) = await submitted(store, job("bob"))
    assert (await found(store, batch)).position == 1
    assert await order(store) == [interactive, batch]


async def test_a_claimed_job_is_in_progress_and_nobody_elses(store: JobStore) -> None:
    (job_id,) = await submitted(store, job())
    (claimed,) = await store.claim(9)
    assert claimed == await found(store, job_id)
    assert (claimed.status, claimed.attempts, claimed.position) == (JobStatus.IN_PROGRESS, 1, None)
    assert claimed.started_at is not None
    assert claimed.body == b'{"prompt":"Hi"}'
    assert await store.claim(9) == []


async def test_a_finished_job_has_its_result_and_the_times_of_its_life(store: JobStore) -> None:
    (job_id,) = await submitted(store, job())
    (claimed,) = await store.claim(1)
    assert await store.finish(claimed, DONE)
    done = await found(store, job_id)
    assert done == claimed.ended(DONE, finished_at=done.finished_at or 0, expires_at=done.expires_at or 0)
    assert done.finished_at is not None
    assert done.expires_at == pytest.approx(done.finished_at + 86_400)
    assert done.created_at <= (done.started_at or 0) <= done.finished_at


async def test_a_failed_job_has_its_error(store: JobStore) -> None:
    (job_id,) = await submitted(store, job())
    (claimed,) = await store.claim(1)
    error = JobError("upstream_rejected", "the context is too long", retryable=False)
    assert await store.finish(claimed, JobOutcome(JobStatus.FAILED, error=error))
    done = await found(store, job_id)
    assert (done.status, done.error, done.answer) == (JobStatus.FAILED, error, None)


async def test_a_job_is_finished_once(store: JobStore) -> None:
    (job_id,) = await submitted(store, job())
    (claimed,) = await store.claim(1)
    assert await store.finish(claimed, DONE)
    assert await store.finish(claimed, replace(DONE, answer=b"{}"))
    assert not await store.finish(replace(claimed, fence="1-other"), DONE)
    assert not await store.release(claimed)
    assert (await found(store, job_id)).answer == DONE.answer


async def test_after_an_acknowledged_cancel_there_is_no_result(store: JobStore) -> None:
    running, waiting = await submitted(store, job(), job())
    (claimed,) = await store.claim(1)
    for job_id in (running, waiting):
        cancelled = await store.cancel(job_id)
        assert isinstance(cancelled, Job)
        assert cancelled.status is JobStatus.CANCELLED
    assert (await store.beat([Beat(running, claimed.fence)])).stopped == {running}
    assert not await store.finish(claimed, DONE)
    assert await store.claim(9) == []
    assert (await found(store, running)).answer is None
    assert await store.cancel("job_unknown") is None


async def test_cancelling_what_is_over_changes_nothing(store: JobStore) -> None:
    (job_id,) = await submitted(store, job())
    (claimed,) = await store.claim(1)
    await store.finish(claimed, DONE)
    done = await found(store, job_id)
    assert await store.cancel(job_id) == done


async def test_a_released_job_is_next_again_and_that_was_no_attempt(store: JobStore) -> None:
    first, second = await submitted(store, job(), job())
    (claimed,) = await store.claim(1)
    assert await store.release(claimed)
    waiting = await found(store, first)
    assert (waiting.status, waiting.attempts, waiting.position) == (JobStatus.QUEUED, 0, 0)
    assert not await store.finish(claimed, DONE)
    again = await store.claim(2)
    assert [one.id for one in again] == [first, second]
    assert again[0].fence != claimed.fence
    assert again[0].attempts == 1


async def test_a_job_that_has_to_wait_is_not_begun_before(store: JobStore) -> None:
    first, second = await submitted(store, job(), job())
    (claimed,) = await store.claim(1)
    assert await store.release(claimed, wait_s=0.2)
    assert [one.id for one in await store.claim(9)] == [second]
    await asyncio.sleep(0.25)
    (again,) = await store.claim(9)
    assert (again.id, again.attempts, again.waits) == (first, 1, 1)


async def test_who_had_to_wait_comes_back_behind_what_waits(store: JobStore) -> None:
    first, second = await submitted(store, job(), job())
    for wait_s, claimed in zip((0.05, 0.1), await store.claim(2), strict=True):
        await store.release(claimed, wait_s=wait_s)
    third, other = await submitted(store, job(), job("bob"))
    await asyncio.sleep(0.15)
    begun = await order(store)
    assert {*begun[:2]} == {third, other}
    assert begun[2:] == [first, second]


async def test_who_had_to_wait_counts_as_waiting_but_could_not_be_begun(store: JobStore) -> None:
    await submitted(store, *(job() for _ in range(5)))
    for claimed in await store.claim(5):
        await store.release(claimed, wait_s=30)
        position = (await found(store, claimed.id)).position
        assert position == 0
    depth = await store.depth()
    assert (depth.waiting["interactive"], depth.deferred, depth.oldest_wait_s) == (0, 5, 0)
    with pytest.raises(Overloaded):
        await store.submit(job())


async def test_what_comes_back_has_not_waited_since_it_was_submitted(store: JobStore) -> None:
    await submitted(store, job())
    (claimed,) = await store.claim(1)
    await asyncio.sleep(0.3)
    await store.release(claimed)
    assert (await store.depth()).oldest_wait_s < 0.25


async def test_setbacks_are_counted(store: JobStore) -> None:
    (job_id,) = await submitted(store, job())
    for setbacks in range(3):
        (claimed,) = await store.claim(1)
        assert claimed.setbacks == setbacks
        await store.release(claimed, is_setback=True)
    assert ((await found(store, job_id)).setbacks, (await found(store, job_id)).attempts) == (3, 0)


async def test_a_job_that_waits_for_a_time_can_be_cancelled(store: JobStore) -> None:
    (job_id,) = await submitted(store, job())
    (claimed,) = await store.claim(1)
    await store.release(claimed, wait_s=0.05)
    assert isinstance(await store.cancel(job_id), Job)
    await asyncio.sleep(0.1)
    assert await store.claim(9) == []
    assert (await found(store, job_id)).status is JobStatus.CANCELLED


async def test_a_deadline_ends_what_waits_and_what_runs(store: JobStore) -> None:
    running, waiting = await submitted(store, *(replace(job(), deadline_s=0.15) for _ in range(2)))
    (claimed,) = await store.claim(1)
    await asyncio.sleep(0.2)
    assert await store.claim(9) == []
    for job_id in (running, waiting):
        late = await found(store, job_id)
        assert late.status is JobStatus.EXPIRED
        assert late.error is not None
        assert late.error.code == "job_expired"
    assert not await store.finish(claimed, DONE)


async def test_a_deadline_ends_what_waits_while_every_worker_is_busy(store: JobStore) -> None:
    (waiting,) = await submitted(store, replace(job(), deadline_s=0.1))
    await asyncio.sleep(0.15)
    await store.beat([])
    assert (await found(store, waiting)).status is JobStatus.EXPIRED


async def test_a_beat_tells_who_is_watched_and_carries_the_text_so_far(store: JobStore) -> None:
    watched, other = await submitted(store, job(), job())
    claimed = {one.id: one for one in await store.claim(2)}
    await store.get(watched, watching=True)
    beats = [Beat(job_id, claimed[job_id].fence) for job_id in (watched, other)]
    answer = await store.beat(beats)
    assert not answer.stopped
    assert answer.watched == {watched}
    await store.beat([replace(beats[0], progress="Hel")])
    assert (await found(store, watched)).progress == "Hel"
    await store.finish(claimed[watched], DONE)
    assert (await found(store, watched)).progress == ""


async def test_depth_tells_what_there_is_to_do(store: JobStore) -> None:
    empty = await store.depth()
    assert (empty.waiting, empty.running, empty.oldest_wait_s) == ({"interactive": 0, "batch": 0}, 0, 0)
    await submitted(store, job(), job(), job(priority="batch"))
    await store.claim(1)
    await asyncio.sleep(0.05)
    depth = await store.depth()
    assert (depth.waiting, depth.running) == ({"interactive": 1, "batch": 1}, 1)
    assert 0.04 <= depth.oldest_wait_s < 5


@pytest.mark.parametrize("end", ["finish", "cancel", "expire"])
async def test_whoever_gave_an_address_is_told_however_the_job_ended(store: JobStore, end: str) -> None:
    deadline_s = 0.1 if end == "expire" else None
    told, _ = await submitted(
        store,
        replace(job(), webhook="https://example.com/hook", webhook_status="pending", deadline_s=deadline_s),
        job(),
    )
    assert (await found(store, told)).webhook_status == "pending"
    claimed = await store.claim(2)
    assert await store.due_webhooks(9, 30) == []
    if end == "cancel":
        await store.cancel(told)
    elif end == "expire":
        await asyncio.sleep(0.15)
        await store.claim(1)
    else:
        await store.finish(claimed[0], DONE)
    await store.finish(claimed[1], DONE)
    ((due, attempt),) = await store.due_webhooks(9, 30)
    assert (due, attempt) == (await found(store, told), 1)
    assert due.webhook == "https://example.com/hook"
    # Held by whoever took it.
    assert await store.due_webhooks(9, 30) == []


async def test_a_message_is_due_until_it_is_settled(store: JobStore) -> None:
    (job_id,) = await submitted(store, replace(job(), webhook="https://example.com", webhook_status="pending"))
    await store.cancel(job_id)
    assert [attempt for _, attempt in await store.due_webhooks(9, 0.05)] == [1]
    await asyncio.sleep(0.1)  # whoever held it has died
    assert [attempt for _, attempt in await store.due_webhooks(9, 30)] == [2]
    await store.settle_webhook(job_id, "pending", wait_s=0.1)
    assert await store.due_webhooks(9, 30) == []
    await asyncio.sleep(0.15)
    assert [attempt for _, attempt in await store.due_webhooks(9, 30)] == [3]
    await store.settle_webhook(job_id, "delivered")
    assert (await found(store, job_id)).webhook_status == "delivered"
    await asyncio.sleep(0.05)
    assert await store.due_webhooks(9, 30) == []


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_of_an_old_result_is_known_that_there_was_one(kind: str, redis_url: str) -> None:
    async with redis_store(redis_url, result_ttl_s=0.1) as in_redis:
        store: JobStore = in_redis if kind == "redis" else MemoryJobStore(settings(result_ttl_s=0.1), SystemClock())
        (job_id,) = await submitted(store, job("alice"))
        (claimed,) = await store.claim(1)
        await store.finish(claimed, DONE)
        await asyncio.sleep(0.2)
        assert await store.get(job_id) == GoneJob("alice")
        assert await store.cancel(job_id) == GoneJob("alice")


# What only a fleet's has to


async def test_who_claimed_before_the_store_forgot_it_cannot_end_anothers_claim(redis_url: str) -> None:
    async with redis_store(redis_url, lease_s=30.0) as store, redis_store(redis_url, lease_s=30.0) as after_a_failover:
        one = job()
        await store.submit(one)
        await after_a_failover.submit(one)
        (before,) = await store.claim(1)
        (claimed,) = await after_a_failover.claim(1)
        assert not await after_a_failover.finish(before, DONE)
        assert (await after_a_failover.beat([Beat(one.id, before.fence)])).stopped == {one.id}
        assert await after_a_failover.finish(claimed, DONE)


async def test_what_a_dead_worker_left_is_next(redis_url: str) -> None:
    async with redis_store(redis_url) as store:
        first, second = await submitted(store, job(), job())
        (claimed,) = await store.claim(1)
        await store.beat([Beat(first, claimed.fence)])
        assert await store.claim(0) == []
        await asyncio.sleep(LEASE_S + 0.1)
        again = await store.claim(2)
        assert [(one.id, one.attempts) for one in again] == [(first, 2), (second, 1)]
        assert not await store.finish(claimed, DONE)
        assert (await store.beat([Beat(first, claimed.fence)])).stopped == {first}
        assert await store.finish(again[0], DONE)


async def test_beats_keep_a_job(redis_url: str) -> None:
    async with redis_store(redis_url) as store:
        await store.submit(job())
        (claimed,) = await store.claim(1)
        for _ in range(6):
            await asyncio.sleep(LEASE_S / 3)
            assert not (await store.beat([Beat(claimed.id, claimed.fence)])).stopped
            assert await store.claim(1) == []
        assert await store.finish(claimed, DONE)


async def test_a_job_that_kills_its_workers_fails_with_the_reason(redis_url: str) -> None:
    async with redis_store(redis_url, attempts_max=2) as store:
        (job_id,) = await submitted(store, job())
        for attempt in (1, 2):
            (claimed,) = await store.claim(1)
            assert claimed.attempts == attempt
            await store.beat([Beat(job_id, claimed.fence)])
            await asyncio.sleep(LEASE_S + 0.1)
        assert await store.claim(1) == []
        lost = await found(store, job_id)
        assert (lost.status, lost.error) == (JobStatus.FAILED, LOST)


async def test_claims_whose_answers_came_too_late_are_no_attempts(redis_url: str) -> None:
    async with redis_store(redis_url, attempts_max=1) as store:
        first, second = await submitted(store, job(), job())
        for _ in range(3):
            assert [one.attempts for one in await store.claim(1)] == [1]
            await asyncio.sleep(LEASE_S + 0.1)
        assert [(one.id, one.attempts) for one in await store.claim(2)] == [(first, 1), (second, 1)]


async def test_a_job_of_which_nobody_ever_tells_is_not_begun_for_ever(redis_url: str) -> None:
    prefix = f"{{jobs-{secrets.token_hex(4)}}}:"
    async with redis_store(redis_url, attempts_max=1, prefix=prefix) as store:
        (job_id,) = await submitted(store, job())
        await store.claim(1)
        client: Redis = Redis.from_url(redis_url)
        await client.hset(f"{prefix}job:{job_id}", "unheard", "40")
        await client.aclose()
        await asyncio.sleep(LEASE_S + 0.1)
        assert await store.claim(1) == []
        assert (await found(store, job_id)).error == LOST


async def test_what_was_given_back_does_not_count_as_a_death(redis_url: str) -> None:
    async with redis_store(redis_url, attempts_max=2) as store:
        await store.submit(job())
        for _ in range(5):
            (claimed,) = await store.claim(1)
            await store.release(claimed)
        assert (await store.claim(1))[0].attempts == 1


async def test_a_record_that_somebody_removed_stops_nobody(redis_url: str) -> None:
    prefix = f"{{jobs-{secrets.token_hex(4)}}}:"
    async with redis_store(redis_url, prefix=prefix) as store:
        waiting, deferred, running, last = await submitted(store, *(job() for _ in range(4)))
        (late,) = await submitted(store, replace(job(), deadline_s=0.05))
        first, second, third = await store.claim(3)
        await store.release(first)
        await store.release(second, wait_s=0.05)
        assert [first.id, second.id, third.id] == [waiting, deferred, running]
        client: Redis = Redis.from_url(redis_url)
        await client.delete(*(f"{prefix}job:{job_id}" for job_id in (waiting, deferred, running, late)))
        await asyncio.sleep(LEASE_S + 0.1)
        assert [one.id for one in await store.claim(9)] == [last]
        assert await store.claim(9) == []
        assert (await store.depth()).waiting == {"interactive": 0, "batch": 0}
        assert await client.zcard(f"{prefix}waiting") == await client.zcard(f"{prefix}deadlines") == 0
        await client.aclose()


async def test_a_record_that_cannot_be_read_fails_alone(redis_url: str) -> None:
    prefix = f"{{jobs-{secrets.token_hex(4)}}}:"
    async with redis_store(redis_url, prefix=prefix) as store:
        first, bad, last = await submitted(store, *(job() for _ in range(3)))
        client: Redis = Redis.from_url(redis_url)
        await client.hdel(f"{prefix}job:{bad}", "fingerprint")
        assert [one.id for one in await store.claim(9)] == [first, last]
        assert await client.hget(f"{prefix}job:{bad}", "status") == b"failed"
        assert b"job_unreadable" in (await client.hget(f"{prefix}job:{bad}", "error") or b"")
        await client.aclose()


async def test_an_error_of_the_script_is_a_defect_and_no_outage(redis_url: str) -> None:
    prefix = f"{{jobs-{secrets.token_hex(4)}}}:"
    async with redis_store(redis_url, prefix=prefix) as store:
        client: Redis = Redis.from_url(redis_url)
        await client.set(f"{prefix}leases", "not a sorted set")
        await client.aclose()
        with pytest.raises(ScriptDefect, match="WRONGTYPE"):
            await store.claim(1)


@pytest.mark.parametrize("answer", ["BUSY Redis is busy running a script", "Error running script: -OOM not allowed"])
def test_what_a_server_refuses_for_a_time_is_an_outage(answer: str) -> None:
    with pytest.raises(StoreUnavailable), script_errors():
        raise ResponseError(answer)


async def test_a_full_store_can_be_drained() -> None:
    with own_redis() as server:
        client: Redis = Redis.from_url(server.url)
        async with redis_store(server.url) as store:
            ids = await submitted(store, *(replace(job(), body=b"x" * 100_000) for _ in range(4)))
            first, second, third = await store.claim(3)
            await client.config_set("maxmemory", 1_000_000)
            with pytest.raises(StoreUnavailable):
                await store.submit(job())
            assert not (await store.beat([Beat(first.id, first.fence)])).stopped
            assert await store.finish(first, DONE)
            assert await store.release(second)
            assert isinstance(await store.cancel(third.id), Job)
            assert [one.id for one in await store.claim(9)] == [second.id, ids[3]]
        await client.aclose()


async def test_a_connection_to_what_has_become_a_replica_is_not_kept() -> None:
    with own_redis() as server:
        client: Redis = Redis.from_url(server.url)
        async with redis_store(server.url) as store, open_redis(RedisSettings(url=SecretStr(server.url))) as other:
            await store.submit(job())
            await other.set("a", "b")
            known = {one["id"] for one in await client.client_list()}
            await client.replicaof("127.0.0.1", "1")
            with pytest.raises(StoreUnavailable):
                await store.claim(1)
            for transaction in (True, False):
                pipeline = other.pipeline(transaction=transaction)
                pipeline.set("a", "b")
                with pytest.raises(ReadOnlyError):
                    await pipeline.execute()
            pipeline = other.pipeline(transaction=False)
            pipeline.set("a", "b")
            assert await pipeline.execute(raise_on_error=False)
            left = {one["id"] for one in await client.client_list()}
            assert len(known & left) == 1  # the test's own
        await client.aclose()


async def test_a_clock_that_was_put_back_keeps_no_dead_workers_job(redis_url: str) -> None:
    prefix = f"{{jobs-{secrets.token_hex(4)}}}:"
    async with redis_store(redis_url, prefix=prefix) as store:
        (job_id,) = await submitted(store, job())
        await store.claim(1)
        later_ms = (SystemClock().wall() + 3_600) * 1_000
        client: Redis = Redis.from_url(redis_url)
        await client.set(f"{prefix}seen", int(later_ms))
        await client.zadd(f"{prefix}leases", {job_id: later_ms})
        await client.aclose()
        assert await store.claim(1) == []
        await asyncio.sleep(LEASE_S + 0.1)
        assert [one.id for one in await store.claim(1)] == [job_id]


async def test_an_outage_is_told_from_a_death_within_half_of_the_lease(redis_url: str) -> None:
    async with redis_store(redis_url, away_s=None) as store:
        await store.submit(job())
        (claimed,) = await store.claim(1)
        await asyncio.sleep(LEASE_S + 0.1)
        assert await store.claim(1) == []
        assert await store.finish(claimed, DONE)


async def test_after_an_outage_of_the_store_nobody_is_taken_for_dead(redis_url: str) -> None:
    async with redis_store(redis_url, away_s=AWAY_S) as store:
        await store.submit(job())
        (claimed,) = await store.claim(1)
        await asyncio.sleep(LEASE_S + AWAY_S)
        # Nobody was heard, so it was the store: its worker has a lease's time to come back.
        assert await store.claim(1) == []
        assert not (await store.beat([Beat(claimed.id, claimed.fence)])).stopped
        assert await store.finish(claimed, DONE)


async def test_who_speaks_first_after_an_outage_does_not_take_the_others_jobs(redis_url: str) -> None:
    async with redis_store(redis_url, away_s=AWAY_S) as store:
        await submitted(store, job(), job())
        first, second = await store.claim(2)
        await asyncio.sleep(LEASE_S + AWAY_S)
        assert not (await store.beat([Beat(first.id, first.fence)])).stopped
        assert await store.claim(2) == []
        assert not (await store.beat([Beat(second.id, second.fence)])).stopped


async def test_a_store_that_is_away_says_so() -> None:
    with own_redis() as server:
        async with redis_store(server.url) as store:
            await store.submit(job())
            server.kill()
            for call in (store.submit(job()), store.get("job_1"), store.claim(1), store.beat([]), store.depth()):
                with pytest.raises(StoreUnavailable):
                    await call


async def test_all_keys_lie_in_one_slot_and_none_is_left_behind(redis_url: str) -> None:
    prefix = f"{{jobs-{secrets.token_hex(4)}}}:"
    async with redis_store(redis_url, prefix=prefix, result_ttl_s=0.05) as store:
        await submitted(store, job(), job("bob", priority="batch"))
        for claimed in await store.claim(2):
            await store.finish(claimed, DONE)
        await store.claim(1)
        await asyncio.sleep(0.1)
        client: Redis = Redis.from_url(redis_url)
        keys = {key.decode().removeprefix(prefix) async for key in client.scan_iter(f"{prefix}*")}
        await client.aclose()
    assert {key.partition(":")[0] for key in keys} <= {"count", "seen", "gone", "done"}
